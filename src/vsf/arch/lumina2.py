"""Lumina-Image 2.0 (and NetaLumina)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .base import Family, GuidedPass, Negative, Tap, append_masked
from .caches import apart


class Lumina2(Family):
    """One stream over `[text, image, pads]`, with the border between text and image where each sample's text ends.

    Checked in diffusers 0.42.1: a context refiner lets the text tokens see each other first, and the image's first
    rotary position is the length of the text. So the negative goes through `caption_embedder` and the refiner on its
    own; in front of each main layer the stream is put into the order `[image, text and pads, negative]`, and behind it
    back. The image's positions do not move; the negative's are placed such that the image is as far away as it would
    be if the negative were the prompt. Pads are never seen.
    """

    name = "Lumina2"
    models = ("Lumina2Transformer2DModel",)
    geometry = "image_first"
    blocks = ("layers",)
    text_width = "cap_feat_dim"

    def taps(self, model: nn.Module) -> Sequence[Tap]:
        return [Tap(layer, partial(_join, model), _part) for layer in model.layers]  # pyright: ignore

    def extend(self, call: dict[str, Any], negative: Negative) -> None:
        append_masked(call, negative)

    def longest(self, model: nn.Module) -> int:
        return min(model.config.axes_lens[1:])  # pyright: ignore

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        """With no system prompt in front, as the pipeline encodes its own negative prompts."""
        given = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        _, _, embeds, mask = pipe.encode_prompt("", do_classifier_free_guidance=True, negative_prompt=[text], **given)
        return embeds[0, mask[0].bool()]


def _start(model: Any, frame: GuidedPass, x: Tensor) -> Any:
    """The negative's tokens as the context refiner leaves them, their rotary factors, and the order of the stream."""
    negative: Any = frame.negative
    text = frame.call["encoder_attention_mask"].sum(1, keepdim=True)
    height, width = frame.call["hidden_states"].shape[-2:]
    image = (height // model.config.patch_size) * (width // model.config.patch_size)
    frame.n_pos = x.shape[1] - image
    place = torch.arange(x.shape[1], device=x.device)
    is_image = (place >= text) & (place < text + image)
    order = torch.argsort((~is_image).int(), dim=1, stable=True)

    stream = model.time_caption_embed.caption_embedder(negative.embeds)
    ids = torch.zeros(*negative.keep.shape, 3, dtype=torch.int64, device=x.device)
    ids[..., 0] = text - negative.keep.sum(1, keepdim=True) + torch.arange(frame.n_neg, device=x.device)
    turn = model.rope_embedder._get_freqs_cis(ids.abs())
    turn = torch.where(ids[..., :1] < 0, turn.conj(), turn)  # the table has no negative positions
    seen = negative.keep | ~negative.keep.any(1, keepdim=True)  # no row without any key
    for layer in model.context_refiner:
        stream = apart(layer, partial(layer, stream, seen, turn))
    return stream, turn, order


def _pick(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))


def _join(model: Any, frame: GuidedPass, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, mask, freqs, *rest = args
    if frame.kept is None:
        frame.kept = _start(model, frame, x)
    stream, turn, order = frame.kept
    x, freqs = torch.cat([_pick(x, order), stream.to(x)], 1), torch.cat([_pick(freqs, order), turn], 1)
    return (x, None if mask is None else mask.gather(1, order), freqs, *rest), kwargs


def _part(frame: GuidedPass, args: tuple[Any, ...], output: Tensor) -> Tensor:
    _, turn, order = frame.kept
    frame.kept = output[:, -frame.n_neg :], turn, order
    return _pick(output[:, : -frame.n_neg], order.argsort(1))
