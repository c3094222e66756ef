"""What negative prompts are good for, as entries that can be tried: three uses named by the paper."""

from __future__ import annotations

from dataclasses import dataclass

from ..demo.models import Theme
from .model import PageModel

__all__ = ["Example", "Group", "groups"]


@dataclass(frozen=True)
class Example:
    """One prompt to try; with `seed`, one noise that shows it well (picked for show)."""

    prompt: str
    negative: str
    seed: int | None = None


@dataclass(frozen=True)
class Group:
    """One use. `note` says what the model of the page cannot show of it."""

    title: str
    text: str
    entries: tuple[Example, ...]
    note: str = ""


def groups(model: PageModel) -> tuple[Group, ...]:
    """The gallery of a model."""
    if model.record is None:
        return _LARGE
    themes = (Theme(_LARGE[0].title, _LARGE[0].text, model.record.shown), *model.record.themes)
    return tuple(
        Group(theme.title, theme.text, tuple(Example(e.prompt, e.negative, e.seed) for e in theme.entries))
        for theme in themes
    )


_LARGE = (
    Group(
        "Removing essential parts",
        "What the model would always draw, because it belongs there.",
        (
            Example("a bicycle leaning on a brick wall", "wheels"),
            Example("an old man playing poker in a bar", "cards"),
            Example("a birthday cake on a table", "candles"),
            Example("a snowy mountain village", "houses"),
        ),
    ),
    Group(
        "Away from the usual beauty",
        "Few-step models make everything glossy. The negative names what is too much of it.",
        (
            Example("portrait of a fisherman, snapshot", "professional, bokeh, glossy skin, studio light"),
            Example("a kitchen on a rainy morning", "clean, bright, magazine, saturated"),
            Example("a street in the suburbs", "dramatic light, cinematic, wide angle"),
        ),
    ),
    Group(
        "The same noun in both prompts",
        "What is left of a thing without itself.",
        (
            Example("a chair", "chair"),
            Example("a cathedral made of glass", "cathedral"),
            Example("a horse, oil painting", "horse"),
        ),
    ),
)
