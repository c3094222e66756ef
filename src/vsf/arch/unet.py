"""Stable Diffusion 1.x, 2.x and XL (Turbo, Lightning, LCM, DMD2) and Kolors: the conditional UNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .base import Family, count_tokens


class UNet(Family):
    """Cross attention in every `attn2`."""

    name = "Stable Diffusion UNet"
    models = ("UNet2DConditionModel",)
    geometry = "cross"
    mask_argument = "encoder_attention_mask"
    pixels = 8

    def sites(self, model: nn.Module) -> Sequence[nn.Module]:
        return [
            module
            for name, module in model.named_modules()
            # `attn1` takes the text where a block has cross attention only (upscalers)
            if name.endswith(".attn2") or (name.endswith(".attn1") and module.is_cross_attention)
        ]

    def width(self, model: nn.Module) -> int:
        config: Any = model.config
        return config.encoder_hid_dim or config.cross_attention_dim

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        # Kolors has a `max_sequence_length`, which its pipelines check and do not use.
        embeds = pipe.encode_prompt(
            prompt=text, device=pipe._execution_device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0][0]
        if padded:
            return embeds
        # CLIP is causal, so its real tokens do not see the pads behind them; ChatGLM's do not see those in front, which
        # are masked.
        tokenizers = [t for t in (getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2")) if t is not None]
        real = max(count_tokens(pipe, tokenizer, text) for tokenizer in tokenizers)
        return embeds[-real:] if tokenizers[0].padding_side == "left" else embeds[:real]
