"""The picture of `make demo`: prompts drawn without and with a negative from the same noise, and where it acted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

from .demo.models import DemoModel
from .draw import Request, draw
from .guidance import Guidance, describe
from .images import Card, overlay, sheet

__all__ = ["show"]


def _middle(drawn: Any) -> Image.Image:
    """A picture, or the middle frame of a clip."""
    return drawn[len(drawn) // 2] if isinstance(drawn, list) else drawn


def show(
    pipe: Any,
    model: DemoModel,
    guidance: Guidance | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """A labelled sheet of what the model shows, of a clip the middle frame.

    `seed` is added to its noise seeds, `guidance` None is the recommended; `progress` is called with (prompts done,
    prompts in all).
    """
    guidance = guidance or model.recommended
    cards: list[Card] = []
    record = guidance.has_map
    for done, entry in enumerate(model.shown):
        request = Request(
            entry.prompt, entry.negative, guidance, model.steps, entry.seed + seed, guidance_scale=model.guidance_scale
        )
        drawn = draw(pipe, request, compare=True, record=record)
        guided = _middle(drawn.guided[0])
        pictures = [("without", _middle(drawn.plain[0])), ("with the negative", guided)]
        if drawn.suppression is not None:
            share = drawn.suppression.map()[0].numpy()
            share = share[len(share) // 2] if share.ndim == 3 else share
            pictures.append((f"where it acted (up to {share.max():.0%})", overlay(guided, share)))
        cards.append(Card(entry.prompt, entry.negative, pictures))
        if progress is not None:
            progress(done + 1, len(model.shown))
    return sheet(
        cards,
        columns=2,
        title="What should not be there",
        subtitle=f"Each card: one noise, {model.steps} steps, no classifier-free guidance. {describe(guidance.settings())}",
    )
