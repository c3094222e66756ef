"""CogView3-Plus."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .base import count_tokens
from .cogview4 import CogView4


class CogView3Plus(CogView4):
    """Joint attention over `[text, image]` in `attn1` of every block, as in CogView4.

    Checked in diffusers 0.42.1: only image tokens have positions, which are added where they enter; text is projected token by
    token and has no mask anywhere.
    """

    name = "CogView3-Plus"
    models = ("CogView3PlusTransformer2DModel",)
    pixels = 8

    def longest(self, model: nn.Module) -> int:
        return model.config.pos_embed_max_size  # pyright: ignore

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        length = max_sequence_length or 224
        if not padded:
            # T5 runs without a mask here, so pads would change the real tokens: encode at the exact length.
            length = count_tokens(pipe, pipe.tokenizer, text, length)
        return pipe.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=length)[0][0]
