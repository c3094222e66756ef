"""Ovis-Image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .flux import Flux


class OvisImage(Flux):
    """Like Flux.1; the second and third column of `txt_ids` count the text tokens and restart for the negative.

    Checked in diffusers 0.42.1: no text mask in the transformer; pads are zero vectors, which it sees.
    """

    name = "Ovis-Image"
    models = ("OvisImageTransformer2DModel",)
    counted = (1, 2)

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        length = max_sequence_length or 256
        if not padded:  # the pipeline drops its system prompt's tokens from the front
            tokens = pipe.tokenizer(pipe._get_messages(text)[0], add_special_tokens=False).input_ids
            length = min(length, max(len(tokens) - pipe.user_prompt_begin_id, 1))
        return pipe.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=length)[0][0]
