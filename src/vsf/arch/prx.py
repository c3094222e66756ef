"""PRX (and its distilled versions)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Family


class PRX(Family):
    """Image queries over `[text, image]` in every block: the text is keys and values alone, and the same in all blocks.

    Checked in diffusers 0.42.1: the text is projected token by token; only image tokens have positions; a boolean mask over the
    text hides pads, in the text encoder as well, so that the real tokens are all there is to see.
    """

    name = "PRX"
    models = ("PRXTransformer2DModel",)
    geometry = "keys"
    blocks = ("blocks",)
    attention = "attention"
    text_width = "context_in_dim"
    mask_argument = "attention_mask"

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        embeds, mask = pipe.encode_prompt(
            text, do_classifier_free_guidance=False, tokenizer_max_length=max_sequence_length
        )[:2]
        return embeds[0, mask[0].bool()]
