"""The seam between methods and models.

A family says where its attention is, in which order its tokens stand and how text enters; it knows no method. The two
geometries below do the slicing for all of them. Legend: B batch, H heads, S image queries, P positive text tokens,
N negative text tokens, D head size, W text embedding width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core.attention import Attended, attend, attend_few, merge
from ..guidance import Guidance

__all__ = ["Family", "Frame", "Negative", "cross_attention", "joint_attention"]

#: Up to this many tokens an attention is written out (`attend_few`), above it takes the fused kernel.
FEW = 64


@dataclass
class Frame:
    """What one forward pass needs to know about its negative tokens."""

    method: Guidance
    n_pos: int
    n_neg: int
    knob: Mapping[str, Tensor]  # [B, 1, 1, 1] each
    neg_bias: Tensor | None  # [B, 1, 1, N]: -inf where a sample has fewer tokens than N; None: all have N
    pos_bias: Tensor | None  # [B, 1, 1, P]: likewise, where `layout="upstream"` appends the negative to the positive
    guided: Tensor | None  # [B, 1, 1, 1] bool: False where a sample has no negative; None: all have one
    weight: Tensor | None = None  # [B, 1, N, 1]: weight of each negative token; None: all 1


@dataclass
class Negative:
    """The negative prompt of a batch as the model's text input: `embeds` `[B, N, W]`, `keep` `[B, N]` bool."""

    embeds: Tensor
    keep: Tensor


def _side(frame: Frame, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Attended:
    few = min(q.shape[2], k.shape[2]) <= FEW
    return (attend_few if few else attend)(q, k, v, bias, scale)


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, -math.inf)


def _guide(frame: Frame, pos: Attended, neg: Attended) -> Tensor:
    out = frame.method.combine(pos, neg, frame.knob)
    return out if frame.guided is None else torch.where(frame.guided, out, pos.out)


def _flip(frame: Frame, v: Tensor) -> Tensor:
    return v if frame.weight is None else v * frame.weight.to(v.dtype)


Recorder = Callable[[Attended, Attended], None]


def cross_attention(
    frame: Frame,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    active: bool = True,
    record: Recorder | None = None,
) -> Tensor:
    """Image queries `[B, H, S, D]` over the text keys `[B, H, P + N, D]`, negative tokens last.

    Both layouts and both kinds of method see the same thing here: the negative is the keys of its own tokens.
    """
    p = frame.n_pos
    mask = _additive(mask, q)
    pos_mask, neg_mask = (None, None) if mask is None else (mask[..., :p], mask[..., p:])
    pos = attend(q, k[:, :, :p], v[:, :, :p], pos_mask, scale)
    if not active:
        return pos.out
    neg_bias = _plus(neg_mask, frame.neg_bias)
    neg = _side(frame, q, k[:, :, p:], _flip(frame, v[:, :, p:]), neg_bias, scale)
    if record is not None:
        record(pos, neg)
    return _guide(frame, pos, neg)


def joint_attention(
    frame: Frame,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    active: bool = True,
    record: Recorder | None = None,
    text_first: bool = False,
) -> Tensor:
    """Joint attention over `[image, positive, negative]`, or over `[negative, positive, image]` with `text_first`.

    ========  ==============================================================
    rows      see
    ========  ==============================================================
    image     image + positive (the unguided call), and the negative by the method's rule
    positive  image + positive, never the negative (the unguided call)
    negative  image + negative, never the positive
    ========  ==============================================================
    """
    length, n, p = q.shape[2], frame.n_neg, frame.n_pos
    if text_first:
        negative, main, rows = slice(0, n), slice(n, length), slice(p, length - n)
        image = slice(n + p, length)
    else:
        negative, main, rows = slice(length - n, length), slice(0, length - n), slice(0, length - n - p)
        image = rows
    mask = _additive(mask, q)

    def seen(queries: slice, keys: slice) -> Tensor | None:
        """The model's own mask for these queries and keys."""
        if mask is None:
            return None
        return (mask if mask.shape[-2] == 1 else mask[..., queries, :])[..., keys]

    main_mask = seen(main, main)
    if frame.pos_bias is not None:
        pad = frame.pos_bias.new_zeros(frame.pos_bias.shape[0], 1, 1, length - n - p)
        bias = torch.cat([frame.pos_bias, pad] if text_first else [pad, frame.pos_bias], -1).to(q.dtype)
        main_mask = _plus(main_mask, bias)
    unguided = attend(q[:, :, main], k[:, :, main], v[:, :, main], main_mask, scale)

    k_neg, v_neg = k[:, :, negative], v[:, :, negative]
    k_image, v_image = k[:, :, image], v[:, :, image]
    own_bias = _plus(seen(negative, negative), frame.neg_bias)
    stream = merge(
        _side(frame, q[:, :, negative], k_image, v_image, seen(negative, image), scale),
        _side(frame, q[:, :, negative], k_neg, v_neg, own_bias, scale),
    ).out
    out = unguided.out
    if active:
        pos = Attended(out[:, :, rows], unguided.lse[:, :, rows])
        neg_bias = _plus(seen(image, negative), frame.neg_bias)
        neg = _side(frame, q[:, :, image], k_neg, _flip(frame, v_neg), neg_bias, scale)
        if frame.method.negative == "branch":
            neg = merge(attend(q[:, :, image], k_image, v_image, seen(image, image), scale), neg)
        if record is not None:
            record(pos, neg)
        guided = _guide(frame, pos, neg)
        text = out[:, :, :p] if text_first else out[:, :, length - n - p :]
        pieces = [stream, text, guided] if text_first else [guided, text, stream]
    else:
        pieces = [stream, out] if text_first else [out, stream]
    # Written as [B, S, H, D] in memory, which is how the processors read it next.
    return torch.cat([x.transpose(1, 2) for x in pieces], 1).transpose(1, 2)


class Family(ABC):
    """One architecture. Subclasses are stateless; see `docs/adding-a-model.md`."""

    #: Name in messages, and the class names of the models it serves.
    name: ClassVar[str]
    models: ClassVar[tuple[str, ...]]
    #: How text meets the image.
    geometry: ClassVar[Literal["cross", "image_first", "text_first"]]
    #: The argument of the model's forward that carries the text `[B, P, W]`.
    text_argument: ClassVar[str] = "encoder_hidden_states"

    @abstractmethod
    def sites(self, model: nn.Module) -> Sequence[nn.Module]:
        """The attention modules where text meets the image, one per block, in order."""

    @abstractmethod
    def width(self, model: nn.Module) -> int:
        """W, the width of the text embeddings the model takes."""

    @abstractmethod
    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        """Encode one negative prompt with the pipeline's own encoders to `[N, W]`.

        Not `padded`: real tokens only. `padded`: as the pipeline encodes a prompt, with `max_sequence_length` where
        the pipeline has such an argument (its default if None).
        """

    def extend(self, call: dict[str, Any], negative: Negative) -> None:
        """Add the negative tokens to the text inputs in `call` (the model's forward arguments by name), in place."""
        text = call[self.text_argument]
        order = [negative.embeds, text] if self.geometry == "text_first" else [text, negative.embeds]
        call[self.text_argument] = torch.cat(order, 1)

    def grid(self, model: nn.Module, call: Mapping[str, Any]) -> tuple[int, int] | None:
        """Height and width of the image's token grid (or of a multiple of it), where the model has one."""
        x = call.get("hidden_states", call.get("sample"))
        return (int(x.shape[-2]), int(x.shape[-1])) if isinstance(x, Tensor) and x.ndim >= 4 else None
