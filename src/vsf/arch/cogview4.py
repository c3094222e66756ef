"""CogView4."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Family, count_tokens


class CogView4(Family):
    """Joint attention over `[text, image]` in `attn1` of every block.

    Checked in diffusers 0.42.1: only image tokens have positions; text and image share all projections; the optional
    `attention_mask` `[B, text]` (no pipeline gives it) is turned into a product of 0 and 1 that is ADDED to the
    scores, as in Chroma.
    """

    name = "CogView4"
    models = ("CogView4Transformer2DModel",)
    geometry = "text_first"
    pixels = 16
    attention = "attn1"
    text_width = "text_embed_dim"
    mask_argument = "attention_mask"

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        """Real tokens stand at the end: the pipeline pads in front, to a multiple of 16, and its encoder is causal
        and unmasked, so they have seen those pads, as in every prompt the model was trained on."""
        length = max_sequence_length or 1024
        embeds = pipe.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=length)[0][0]
        real = count_tokens(pipe, pipe.tokenizer, text, length)
        return embeds if padded else embeds[-real:]
