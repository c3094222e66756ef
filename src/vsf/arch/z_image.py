"""Z-Image and Z-Image-Turbo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.attention import additive
from .base import Family, GuidedPass, Negative, Tap
from .caches import apart

MULTIPLE = 32  # captions and images are padded to this, each sample for itself


def _up(n: Any) -> Any:
    return -(-n // MULTIPLE) * MULTIPLE


class ZImage(Family):
    """One stream over `[image, text]`, text of each sample as long as it is.

    Checked in diffusers 0.42.1: captions are padded to 32 with `cap_pad_token`, and these pads are seen; a context
    refiner lets the text tokens see each other first; the image's first rotary position is the padded length of the
    caption + 1. So the negative goes through `cap_embedder` and the refiner on its own and joins the stream in the
    main layers, in front of each and taken out behind it, so that nothing else (such as a ControlNet's residuals)
    meets it. The image's positions do not move; the negative's are placed such that the image is as far away as it
    would be if the negative were the prompt. (Pads of an image whose token count is not a multiple of 32 stay at
    position 0 in any case; distances to those are not kept.) The nested inputs of Omni are refused.
    """

    name = "Z-Image"
    models = ("ZImageTransformer2DModel",)
    geometry = "image_first"
    text_argument = "cap_feats"
    blocks = ("layers",)
    attention = "attention"
    text_width = "cap_feat_dim"

    def taps(self, model: nn.Module) -> Sequence[Tap]:
        return [Tap(layer, partial(_join, model), _part) for layer in model.layers]  # pyright: ignore

    def extend(self, call: dict[str, Any], negative: Negative) -> None:
        rows = zip(call["cap_feats"], negative.embeds, negative.keep, strict=True)
        call["cap_feats"] = [torch.cat([text, embeds[keep]]) for text, embeds, keep in rows]

    def stride(self, model: nn.Module) -> int:
        return 2

    def longest(self, model: nn.Module) -> int:
        return min(model.config.axes_lens[1:])  # pyright: ignore

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        """Real tokens; where `padded` is wanted, the pads are the model's own and come with the refiner."""
        given = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        return pipe.encode_prompt(text, do_classifier_free_guidance=False, **given)[0][0]

    def grid(self, model: nn.Module, call: Mapping[str, Any]) -> tuple[int, ...] | None:
        height, width = (side // call.get("patch_size", 2) for side in call["x"][0].shape[-2:])
        # Otherwise there are pads among the image tokens.
        return (height, width) if height * width % MULTIPLE == 0 else None


def _start(model: Any, frame: GuidedPass) -> Any:
    """The negative's tokens as the context refiner leaves them, and their rotary factors."""
    negative: Any = frame.negative
    caption = [_up(len(text)) for text in frame.call["cap_feats"]]
    lengths, seen = negative.keep.sum(1, keepdim=True), negative.keep
    frame.n_pos = max(caption)
    x = model.cap_embedder(negative.embeds)
    if negative.padded:
        frame.n_neg = _up(frame.n_neg)
        x = torch.nn.functional.pad(x, (0, 0, 0, frame.n_neg - x.shape[1]))
        place = torch.arange(frame.n_neg, device=x.device)
        x = torch.where((place < lengths)[..., None], x, model.cap_pad_token)
        seen = place < _up(lengths)
        frame.neg_bias = additive(seen, torch.float32)[:, None, None]
    ids = torch.zeros(*x.shape[:2], 3, dtype=torch.int32, device=x.device)
    first = 1 + torch.tensor(caption, device=x.device)[:, None] - _up(lengths)
    ids[..., 0] = first + torch.arange(x.shape[1], device=x.device)
    turn = model.rope_embedder(ids.abs().flatten(0, 1)).unflatten(0, ids.shape[:2])
    turn = torch.where(ids[..., :1] < 0, turn.conj(), turn)  # the table has no negative positions
    for layer in model.context_refiner:
        x = apart(layer, partial(layer, x, seen | ~seen.any(1, keepdim=True), turn))  # no row without any key
    return x, turn


def _join(model: Any, frame: GuidedPass, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if frame.kept is None:
        frame.kept = _start(model, frame)
    stream, turn = frame.kept
    x, mask, freqs, *rest = args
    return (torch.cat([x, stream.to(x)], 1), mask, torch.cat([freqs, turn], 1), *rest), kwargs


def _part(frame: GuidedPass, args: tuple[Any, ...], output: Tensor) -> Tensor:
    frame.kept = output[:, -frame.n_neg :], frame.kept[1]
    return output[:, : -frame.n_neg]
