"""Wan 2.1 and 2.2 (text, image and text-image to video), VACE, Animate, SkyReels-V2, ChronoEdit, Helios; AnyFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import Family, GuidedPass, Negative, Tap


def _embed(module: nn.Module, frame: GuidedPass, args: tuple[Any, ...], output: Any) -> None:
    assert frame.negative is not None
    frame.kept = module.text_embedder(frame.negative.embeds)  # pyright: ignore


def _append(frame: GuidedPass, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    text = args[0]
    return (torch.cat([text, frame.kept.to(text)], 1), *args[1:]), kwargs


def _next_is_image(frame: GuidedPass, args: tuple[Any, ...], output: Any) -> None:
    frame.skip = True


class Wan(Family):
    """Cross attention in every `attn2`.

    Checked in diffusers 0.42.1: the text enters through `condition_embedder.text_embedder`, token by token, so the
    negative tokens may join it there. Image-to-video models with an image encoder (`added_kv_proj_dim`) take the last
    512 tokens for the text and everything before for the image, hard-coded; there the negative tokens join only at
    the inputs of `to_k` and `to_v`, behind that split, and the attention over the image is left alone. `encode_prompt`
    sets everything behind the real tokens to zero. Animate's face adapter attends to the face
    alone. In Helios the frames drawn before may be left out of the cross attention, or attend to the text as well.
    """

    name = "Wan"
    models = (
        "WanTransformer3DModel",
        "WanVACETransformer3DModel",
        "WanAnimateTransformer3DModel",
        "SkyReelsV2Transformer3DModel",
        "ChronoEditTransformer3DModel",
        "HeliosTransformer3DModel",
    )
    geometry = "cross"
    blocks = ("blocks", "vace_blocks")
    attention = "attn2"
    text_width = "text_dim"
    pixels = 16

    def taps(self, model: nn.Module) -> Sequence[Tap]:
        sites: Any = self.sites(model)
        if sites[0].add_k_proj is None:
            return ()
        embedder: Any = model.condition_embedder
        taps = [Tap(embedder, after=lambda *call: _embed(embedder, *call))]
        for attention in sites:
            fused = getattr(attention, "fused_projections", False)
            keys_values = [attention.to_kv] if fused else [attention.to_k, attention.to_v]
            taps += [Tap(x, before=_append) for x in keys_values]
            taps.append(Tap(attention.norm_added_k, after=_next_is_image))
        return taps

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        # The pipelines' own default is 512, that of encode_prompt is not.
        embeds = pipe.encode_prompt(
            text, do_classifier_free_guidance=False, max_sequence_length=max_sequence_length or 512
        )[0][0]
        return embeds if padded else embeds[: int(embeds.any(-1).sum())]


class AnyFlow(Wan):
    """Wan's blocks and text under a flow map of any number of steps, from one step time to another.

    Checked in diffusers 0.42.1: the blocks have a cross attention of their own without an image branch. Latents come
    frame by frame, `[B, frames, channels, height, width]`.
    """

    name = "AnyFlow"
    models = ("AnyFlowTransformer3DModel",)

    def taps(self, model: nn.Module) -> Sequence[Tap]:
        return ()

    def extend(self, call: dict[str, Any], negative: Negative) -> None:
        if call.get("encoder_hidden_states_image") is not None:
            raise ValueError(
                "AnyFlow runs with encoder_hidden_states_image, which it joins to the text in one attention, so the "
                "negative prompt would stand without the image; leave it out"
            )
        super().extend(call, negative)

    def grid(self, model: nn.Module, call: Mapping[str, Any]) -> tuple[int, ...] | None:
        x: Tensor = call["hidden_states"]
        return (x.shape[1], *x.shape[3:])
