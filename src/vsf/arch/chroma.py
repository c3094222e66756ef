"""Chroma."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import count_tokens
from .flux import Flux


class Chroma(Flux):
    """Like Flux.1, with a mask and without a pooled embedding.

    Checked in diffusers 0.42.1: `attention_mask` `[B, text + image]` (1 = visible) becomes the product of its row and
    column and is then ADDED to the scores, so a masked token is dimmed by e^-1 and not hidden. Negative tokens enter
    it as visible ones, like the prompt's own.
    """

    name = "Chroma"
    models = ("ChromaTransformer2DModel",)
    mask_argument = "attention_mask"

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        """Padded: the real tokens and the first pad, which is what the pipeline's mask shows the model."""
        length = max_sequence_length or 512
        if not padded:
            length = count_tokens(pipe, pipe.tokenizer, text, length)
        embeds, _, mask, *_ = pipe.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=length)
        return embeds[0][: int(mask[0].sum())]
