"""LTX-Video (distilled and dev; text, image and condition pipelines)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .base import Family, Negative, extend_mask


class LTX(Family):
    """Cross attention in every `attn2`, with a mask over the text.

    Checked in diffusers 0.42.1: the text enters through `caption_projection`, token by token; the model turns the mask
    into a bias of -10000, so padded tokens are never seen. The text encoder, however, runs without a mask, so real
    tokens depend on how many pads stand behind them.
    """

    name = "LTX-Video"
    models = ("LTXVideoTransformer3DModel",)
    geometry = "cross"

    def sites(self, model: nn.Module) -> Sequence[nn.Module]:
        return [block.attn2 for block in model.transformer_blocks]  # pyright: ignore

    def width(self, model: nn.Module) -> int:
        return model.config.caption_channels  # pyright: ignore

    def extend(self, call: dict[str, Any], negative: Negative) -> None:
        super().extend(call, negative)
        call["encoder_attention_mask"] = extend_mask(call.get("encoder_attention_mask"), negative.embeds.shape[1])

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        length = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        embeds, mask = pipe.encode_prompt(text, do_classifier_free_guidance=False, **length)[:2]
        real = int(mask[0].sum())
        if not padded:  # once more, at the exact length
            embeds = pipe.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=real)[0]
        return embeds[0, :real]
