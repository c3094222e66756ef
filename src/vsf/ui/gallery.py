"""What negative prompts are good for, as entries that can be tried: three uses named by the paper."""

from __future__ import annotations

from dataclasses import dataclass

from .model import PageModel

__all__ = ["Entry", "Group", "groups"]


@dataclass(frozen=True)
class Entry:
    """One prompt to try; with `seed`, one noise that shows it well (picked for show)."""

    prompt: str
    negative: str
    seed: int | None = None


@dataclass(frozen=True)
class Group:
    """One use. `note` says what the model of the page cannot show of it."""

    title: str
    text: str
    entries: tuple[Entry, ...]
    note: str = ""


def groups(model: PageModel) -> tuple[Group, ...]:
    """The gallery of a model."""
    return _demo() if model.demo else _LARGE


def _demo() -> tuple[Group, ...]:
    from ..demo.settings import SHOWN

    return (
        Group(
            "Removing essential parts",
            "What the model would always draw, because it belongs there.",
            tuple(Entry(*shown) for shown in SHOWN),
        ),
        Group(
            "Away from a style",
            "The demo world knows three styles: flat, outlined, and cutout with a white rim. "
            "Anti-aesthetic prompts (no bokeh, nothing glossy) need a large model.",
            (
                Entry("a cat", "cutout", 3),
                Entry("a house on grass", "outlined", 4),
                Entry("a robot", "purple, brown", 3),
            ),
        ),
        Group(
            "The same noun in both prompts",
            "What is left of a thing without itself. Here that is a colour and a rough shape; abstract art needs a large model.",
            (
                Entry("a red car on grass", "car", 4),
                Entry("a red car on grass", "car", 5),
                Entry("a blue cat in a room", "cat", 4),
                Entry("a face", "face", 6),
            ),
        ),
    )


_LARGE = (
    Group(
        "Removing essential parts",
        "What the model would always draw, because it belongs there.",
        (
            Entry("a bicycle leaning on a brick wall", "wheels"),
            Entry("an old man playing poker in a bar", "cards"),
            Entry("a birthday cake on a table", "candles"),
            Entry("a snowy mountain village", "houses"),
        ),
    ),
    Group(
        "Away from the usual beauty",
        "Few-step models make everything glossy. The negative names what is too much of it.",
        (
            Entry("portrait of a fisherman, snapshot", "professional, bokeh, glossy skin, studio light"),
            Entry("a kitchen on a rainy morning", "clean, bright, magazine, saturated"),
            Entry("a street in the suburbs", "dramatic light, cinematic, wide angle"),
        ),
    ),
    Group(
        "The same noun in both prompts",
        "What is left of a thing without itself.",
        (
            Entry("a chair", "chair"),
            Entry("a cathedral made of glass", "cathedral"),
            Entry("a horse, oil painting", "horse"),
        ),
    ),
)
