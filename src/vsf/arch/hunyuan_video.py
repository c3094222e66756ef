"""HunyuanVideo (text and image to video, and distilled versions such as FastHunyuan)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .base import Family, GuidedPass, Negative, Tap, append_masked
from .caches import apart


class HunyuanVideo(Family):
    """Joint attention over `[image, text]` in all dual-stream and all single-stream blocks.

    Checked in diffusers 0.42.1: `context_embedder`, the token refiner, lets text tokens see each other and pools them,
    so the negative goes through it on its own and joins behind it. The text is a prefix that the model masks by its
    length (`encoder_attention_mask`, summed), pads are never seen, and rotary positions are the image's alone. The
    pooled embedding stays the positive one.
    """

    name = "HunyuanVideo"
    models = ("HunyuanVideoTransformer3DModel",)
    geometry = "image_first"
    blocks = ("transformer_blocks", "single_transformer_blocks")
    text_width = "text_embed_dim"
    pixels = 16
    pooled = ("tokenizer_2",)

    def taps(self, model: nn.Module) -> Sequence[Tap]:
        refiner: Any = model.context_embedder

        def refine(frame: GuidedPass, args: tuple[Any, ...], output: Tensor) -> Tensor:
            negative: Any = frame.negative
            seen = negative.keep | ~negative.keep.any(1, keepdim=True)  # a sample without a negative: no 0 / 0
            # forward(), not a call: this is a hook of the same module.
            run = partial(refiner.forward, negative.embeds, args[1], seen.to(args[2].dtype))
            return torch.cat([output, apart(refiner, run)], 1)

        return [Tap(refiner, after=refine)]

    def extend(self, call: dict[str, Any], negative: Negative) -> None:
        append_masked(call, negative)

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        if "image" in inspect.signature(pipe.encode_prompt).parameters:
            raise ValueError(f"{type(pipe).__name__} encodes text together with an image; give negative_prompt_embeds")
        given = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        embeds, _, mask = pipe.encode_prompt(text, **given)
        return embeds[0, mask[0].bool()]
