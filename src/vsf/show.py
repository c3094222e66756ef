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


def show(
    pipe: Any,
    model: DemoModel,
    guidance: Guidance | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Image.Image]:
    """A labelled sheet of what the model shows; of clips, one for every frame.

    `seed` is added to its noise seeds, `guidance` None is the recommended; `progress` is called with (prompts done,
    prompts in all).
    """
    guidance = guidance or model.recommended
    cards: list[list[Card]] = []
    record = guidance.has_map
    for done, entry in enumerate(model.shown):
        request = Request(
            entry.prompt, entry.negative, guidance, model.steps, entry.seed + seed, guidance_scale=model.guidance_scale
        )
        drawn = draw(pipe, request, compare=True, record=record)
        plain, guided = ([one] if isinstance(one, Image.Image) else one for one in (drawn.plain[0], drawn.guided[0]))
        shares: Any = [] if drawn.suppression is None else drawn.suppression.map()[0].numpy()
        shares = shares[None] if len(shares) and shares.ndim == 2 else shares
        frames: list[Card] = []
        for t, frame in enumerate(guided):
            pictures = [("without", plain[t]), ("with the negative", frame)]
            if len(shares):
                # Of a clip the map has a frame per latent one: the first is that of the first picture.
                share = shares[-(-t * (len(shares) - 1) // max(1, len(guided) - 1))]
                pictures.append(
                    (f"where it acted (up to {shares.max():.0%})", overlay(frame, share, float(shares.max())))
                )
            frames.append(Card(entry.prompt, entry.negative, pictures))
        cards.append(frames)
        if progress is not None:
            progress(done + 1, len(model.shown))
    subtitle = (
        f"Each card: one noise, {model.steps} steps, no classifier-free guidance. {describe(guidance.settings())}"
    )
    return [
        sheet(now, columns=2, title="What should not be there", subtitle=subtitle) for now in zip(*cards, strict=True)
    ]
