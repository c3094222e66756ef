"""Bria 3.x."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import count_tokens
from .flux import Flux


class Bria(Flux):
    """Like Flux.1, without a pooled embedding.

    Checked in diffusers 0.42.1: no text mask; the T5 encoder runs on the real tokens alone and the pipeline pads
    with zero vectors behind it. `txt_ids` are zero.
    """

    name = "Bria"
    models = ("BriaTransformer2DModel",)
    packed = False  # as Flux, but its pipeline's `vae_scale_factor` counts that already

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        length = max_sequence_length or 128
        embeds = pipe.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=length)[0][0]
        return embeds if padded else embeds[: count_tokens(pipe, pipe.tokenizer, text, length)]
