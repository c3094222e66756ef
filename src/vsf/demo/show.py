"""The picture of `make demo`: prompts drawn without and with a negative from the same noise, and where it acted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from ..draw import Request, draw
from ..guidance import VSF, Guidance
from ..images import Card, overlay, sheet
from .evaluate import describe
from .settings import RECOMMENDED, SHOWN, STEPS

__all__ = ["show"]


def show(
    pipe: Any,
    guidance: Guidance = RECOMMENDED,
    shown: Sequence[tuple[str, str, int]] = SHOWN,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """A labelled sheet of `shown` (prompt, negative, noise seed; `seed` is added to each).

    `progress` is called with (prompts done, prompts in all).
    """
    cards: list[Card] = []
    record = isinstance(guidance, VSF)
    for done, (prompt, negative, noise) in enumerate(shown):
        drawn = draw(pipe, Request(prompt, negative, guidance, STEPS, noise + seed), compare=True, record=record)
        pictures = [("without", drawn.plain[0]), ("with the negative", drawn.guided[0])]
        if drawn.suppression is not None:
            share = drawn.suppression.map()[0].numpy()
            pictures.append((f"where it acted (up to {share.max():.0%})", overlay(drawn.guided[0], share)))
        cards.append(Card(prompt, negative, pictures))
        if progress is not None:
            progress(done + 1, len(shown))
    return sheet(
        cards,
        columns=2,
        title="What should not be there",
        subtitle=f"Each card: one noise, {STEPS} steps, no classifier-free guidance. {describe(guidance.settings())}",
    )
