"""PixArt-alpha and PixArt-Sigma (and their LCM, DMD and Flash versions)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import MaskedCross


class PixArt(MaskedCross):
    """Checked in diffusers 0.42.1: the text enters through `caption_projection`, token by token; pads are masked in the
    text encoder and in the model, so the real tokens are all there is to see.
    """

    name = "PixArt"
    models = ("PixArtTransformer2DModel",)
    pixels = 8

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        given = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        embeds, mask = pipe.encode_prompt(text, do_classifier_free_guidance=False, **given)[:2]
        return embeds[0, mask[0].bool()]
