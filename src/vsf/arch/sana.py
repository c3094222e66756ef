"""Sana, Sana-Sprint and Sana-Video."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from .base import MaskedCross


class Sana(MaskedCross):
    """The self attention is linear and has no text.

    Checked in diffusers 0.42.1: the text enters through `caption_projection` and `caption_norm`, token by token; pads
    are masked in the text encoder (which is causal) and in the model, so the real tokens are all there is to see. As
    in Sana's own negative prompts, no instruction ("complex human instruction") is put in front of the text.
    """

    name = "Sana"
    models = ("SanaTransformer2DModel", "SanaVideoTransformer3DModel")
    pixels = 32

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        given: dict[str, Any] = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        if "do_classifier_free_guidance" in inspect.signature(pipe.encode_prompt).parameters:  # not in Sana-Sprint
            given["do_classifier_free_guidance"] = False
        embeds, mask = pipe.encode_prompt(text, complex_human_instruction=None, **given)[:2]
        return embeds[0, mask[0].bool()]
