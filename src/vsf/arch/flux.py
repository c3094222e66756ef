"""Flux.1: schnell, dev, Kontext, Fill, Krea; base of the families that are built like it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import Family, Negative, count_tokens


class Flux(Family):
    """Joint attention over `[text, image]` in all dual-stream blocks, then in all single-stream blocks.

    Blocks are counted through: 0-18 dual, 19-56 single for Flux.1. Checked in diffusers 0.42.1: single blocks join
    text and image themselves and part them again at the text's length, so an extended text stays one piece; `txt_ids`
    (one row per token, all zero) must grow with the text; `img_ids` and the pooled embedding stay as they are, the
    latter positive. The reference image of Kontext is image tokens like any other. An IP-adapter's own attention has
    other keys than queries and is left alone.
    """

    name = "Flux.1"
    models = ("FluxTransformer2DModel",)
    geometry = "text_first"
    blocks = ("transformer_blocks", "single_transformer_blocks")
    packed = True
    pooled = ("tokenizer",)
    #: The columns of `txt_ids` that count the tokens from the first on; the others are the same for all tokens.
    counted: ClassVar[tuple[int, ...]] = ()

    def extend(self, call: dict[str, Any], negative: Negative) -> None:
        super().extend(call, negative)
        ids: Tensor = call["txt_ids"]  # [P, axes], or with a batch axis in front
        n = negative.embeds.shape[1]
        rows = ids.amin(-2, keepdim=True).repeat_interleave(n, -2)  # where the prompt starts
        behind = ids.shape[-2] if negative.copy else 0
        for axis in self.counted:
            rows[..., axis] += torch.arange(behind, behind + n, device=ids.device).to(ids.dtype)
        call["txt_ids"] = torch.cat([rows, ids], -2)

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        length = max_sequence_length or 512
        if not padded:
            # T5 runs without a mask here, so pads would change the real tokens: encode at the exact length.
            length = count_tokens(pipe, pipe.tokenizer_2, text, length)
        return pipe.encode_prompt(prompt=text, prompt_2=text, max_sequence_length=length)[0][0]

    def grid(self, model: nn.Module, call: Mapping[str, Any]) -> tuple[int, ...] | None:
        """From `img_ids` (frame or kind, row, column, ...); None where there is a reference image as well."""
        ids: Tensor = call["img_ids"]
        ids = ids[0] if ids.ndim == 3 else ids
        size = (ids.amax(0) - ids.amin(0) + 1).int().tolist()
        return (size[1], size[2]) if size[1] * size[2] == len(ids) else None
