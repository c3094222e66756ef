"""Stable Diffusion 3 and 3.5 (large, large-turbo, medium)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import Family, count_tokens


class SD3(Family):
    """Joint attention over `[image, text]`; text is `[CLIP tokens | T5 tokens]`.

    SD3.5-medium's dual attention adds `attn2`, image to image, in some blocks; no text enters there.
    """

    name = "Stable Diffusion 3"
    models = ("SD3Transformer2DModel",)
    geometry = "image_first"

    def longest(self, model: nn.Module) -> int:
        return model.config.pos_embed_max_size  # pyright: ignore

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        limit = max_sequence_length or 256
        clip_length = pipe.tokenizer_max_length
        t5_length = limit
        if not padded:
            # T5 runs without a mask here, so pads would change the real tokens: encode at the exact length.
            t5 = None if pipe.text_encoder_3 is None else pipe.tokenizer_3
            t5_length = 0 if t5 is None else count_tokens(pipe, t5, text, limit)
        embeds = pipe.encode_prompt(
            text, text, text, do_classifier_free_guidance=False, max_sequence_length=max(t5_length, 1)
        )[0][0]
        if padded:
            return embeds
        # CLIP is causal: its real tokens do not see the pads behind them.
        real = max(count_tokens(pipe, t, text, clip_length) for t in (pipe.tokenizer, pipe.tokenizer_2))
        return torch.cat([embeds[:real], embeds[clip_length : clip_length + t5_length]])
