"""PRX (and its distilled versions)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Family, Negative


class PRX(Family):
    """Image queries over `[text, image]` in every block: the text is keys and values alone, and the same in all blocks.

    Checked in diffusers 0.42.1: the text is projected token by token; only image tokens have positions; a boolean mask over the
    text hides pads, in the text encoder as well, so that the real tokens are all there is to see.
    """

    name = "PRX"
    models = ("PRXTransformer2DModel",)
    geometry = "keys"

    def sites(self, model: nn.Module) -> Sequence[nn.Module]:
        return [block.attention for block in model.blocks]  # pyright: ignore

    def width(self, model: nn.Module) -> int:
        return model.config.context_in_dim  # pyright: ignore

    def extend(self, call: dict[str, Any], negative: Negative) -> None:
        super().extend(call, negative)
        mask = call.get("attention_mask")
        if mask is not None:  # 1 = visible; which negative tokens are real is added in the attention itself
            call["attention_mask"] = F.pad(mask, (negative.embeds.shape[1], 0), value=1)

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        embeds, mask = pipe.encode_prompt(
            text, do_classifier_free_guidance=False, tokenizer_max_length=max_sequence_length
        )[:2]
        return embeds[0, mask[0].bool()]
