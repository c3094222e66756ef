"""Qwen-Image, Qwen-Image-Edit and Qwen-Image-Layered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import Family, GuidedPass, Tap

#: What the edit pipelines put in front of the prompt for the picture.
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


class QwenImage(Family):
    """Joint attention over `[text, image]`, 60 dual-stream blocks.

    Checked in diffusers 0.42.1: the model makes text positions itself, one per row of its text, from the image size
    on; the tap re-arranges them so that the prompt keeps its own and the negative gets those it would have as the
    prompt. `encoder_hidden_states_mask` (absent where no prompt of the batch is padded) becomes the attention mask,
    by key only. Edit and Layered are the same class; their reference images are image tokens, and the second
    timestep of Edit-2511 (`zero_cond_t`) modulates those alone.
    """

    name = "Qwen-Image"
    models = ("QwenImageTransformer2DModel",)
    geometry = "text_first"
    packed = True
    mask_argument = "encoder_hidden_states_mask"
    late = False  # the tap only arranges positions

    def taps(self, model: nn.Module) -> Sequence[Tap]:
        return [Tap(model.pos_embed, after=_positions)]  # pyright: ignore

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        """One prompt is never padded here. The edit pipelines' template is used without its picture."""
        template = getattr(pipe, "prompt_template_encode", "")  # a modular pipeline keeps it in its text block
        limit = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        pipe.prompt_template_encode = template.replace(PICTURE, "")
        try:
            return pipe.encode_prompt(text, **limit)[0][0]
        finally:
            pipe.prompt_template_encode = template

    def grid(self, model: nn.Module, call: Mapping[str, Any]) -> tuple[int, ...] | None:
        """None where there are reference images or layers as well."""
        shapes = call["img_shapes"][0]
        shapes = [shapes] if isinstance(shapes, tuple) else shapes
        return tuple(shapes[0][1:]) if len(shapes) == 1 and shapes[0][0] == 1 else None  # pyright: ignore


def _positions(frame: GuidedPass, args: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of the rotary table for `[negative, (its upstream copy,) prompt]` from those of `[0, 1, 2, ...]`."""
    image, text = output
    prompt = frame.n_pos - frame.n_copy
    return image, torch.cat([text[: frame.n_neg], text[prompt : frame.n_pos], text[:prompt]])
