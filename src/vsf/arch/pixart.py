"""PixArt-alpha and PixArt-Sigma (and their LCM, DMD and Flash versions)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .base import Family, Negative, extend_mask


class PixArt(Family):
    """Cross attention in every `attn2`, with a mask over the text.

    Checked in diffusers 0.42.1: the text enters through `caption_projection`, token by token; pads are masked in the
    text encoder and in the model, so the real tokens are all there is to see.
    """

    name = "PixArt"
    models = ("PixArtTransformer2DModel",)
    geometry = "cross"

    def sites(self, model: nn.Module) -> Sequence[nn.Module]:
        return [block.attn2 for block in model.transformer_blocks]  # pyright: ignore

    def width(self, model: nn.Module) -> int:
        config: Any = model.config
        return config.caption_channels or config.cross_attention_dim

    def extend(self, call: dict[str, Any], negative: Negative) -> None:
        super().extend(call, negative)
        call["encoder_attention_mask"] = extend_mask(call.get("encoder_attention_mask"), negative.embeds.shape[1])

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        given = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        embeds, mask = pipe.encode_prompt(text, do_classifier_free_guidance=False, **given)[:2]
        return embeds[0, mask[0].bool()]
