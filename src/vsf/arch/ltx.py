"""LTX-Video (distilled and dev; text, image and condition pipelines)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import MaskedCross


class LTX(MaskedCross):
    """Checked in diffusers 0.42.1: the text enters through `caption_projection`, token by token; the model turns the mask
    into a bias of -10000, so padded tokens are never seen. The text encoder, however, runs without a mask, so real
    tokens depend on how many pads stand behind them.
    """

    name = "LTX-Video"
    models = ("LTXVideoTransformer3DModel",)
    pixels = 32

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        length = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        embeds, mask = pipe.encode_prompt(text, do_classifier_free_guidance=False, **length)[:2]
        real = int(mask[0].sum())
        if not padded:  # once more, at the exact length
            embeds = pipe.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=real)[0]
        return embeds[0, :real]
