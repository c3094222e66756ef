"""Where text meets the image: attention with a negative prompt among the keys, of three kinds.

Cross attention (image queries, text keys), joint attention (text and image are queries and keys), and text as keys alone (image
queries, text and image keys). They do the slicing for every model and every method; neither is known here. A method is what
`Rule` says.
Legend: B batch, H heads, S queries, P positive text tokens, N negative text tokens, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from .attention import Attend, Attended, additive, attend, attend_few, merge

__all__ = ["SEES", "Frame", "Pieces", "Rule", "cross_attention", "joint_attention", "keys_attention"]

#: Up to this many keys an attention is written out (`attend_few`), above it takes the fused kernel. (Few queries over many
#: keys take the fused kernel, too: the matrix product would copy all keys and values first, at 8 times the cost.)
FEW = 64

#: The row table of VSF, and of every method that asks for no other. "guided" is the method's rule over the negative.
SEES: Mapping[str, str] = {
    "image": "image positive guided",
    "positive": "image positive",
    "negative": "image negative",
}


class Rule(Protocol):
    """What the geometries want of a method (see `vsf.guidance.Guidance`)."""

    #: Which keys the rows "image", "positive" and "negative" attend to, as in `SEES`.
    sees: ClassVar[Mapping[str, str]]

    def values(self, v: Tensor, knob: Mapping[str, Tensor]) -> Tensor:
        """The negative's values `[B, H, N, D]` as anything guided meets them."""
        ...

    def combine(self, at: Pieces, knob: Mapping[str, Tensor]) -> Tensor:
        """The guided attention output `[B, H, S, D]`."""
        ...

    def share(self, at: Pieces, knob: Mapping[str, Tensor]) -> Tensor:
        """The share of attention that goes to the negative, `[B, H, S, 1]`."""
        ...


@dataclass
class Frame:
    """What one forward pass needs to know about its negative tokens."""

    method: Rule
    n_pos: int
    n_neg: int
    knob: Mapping[str, Tensor]  # [B, 1, 1, 1] each
    neg_bias: Tensor | None = None  # [B, 1, 1, N]: -inf where a sample has fewer tokens than N; None: all have N
    pos_bias: Tensor | None = None  # [B, 1, 1, P]: likewise, where the negative was appended to the positive prompt
    guided: Tensor | None = None  # [B, 1, 1, 1] bool: False where a sample has no negative; None: all have one
    weight: Tensor | None = None  # [B, 1, N, 1]: weight of each negative token; None: all 1
    n_copy: int = 0  # of P: the copy of the negative that was appended to the positive prompt
    _elsewhere: dict[torch.device, Any] = field(default_factory=dict)

    def on(self, device: torch.device) -> Frame:
        """The same with its tensors on the device of the attention, which offloading can make another than the text's."""
        own = {name: getattr(self, name) for name in ("neg_bias", "pos_bias", "guided", "weight")}
        if all(x is None or x.device == device for x in (*own.values(), *self.knob.values())):
            return self
        if device not in self._elsewhere:
            moved: dict[str, Any] = {name: None if x is None else x.to(device) for name, x in own.items()}
            knob = {name: x.to(device) for name, x in self.knob.items()}
            self._elsewhere[device] = replace(self, knob=knob, **moved)
        return self._elsewhere[device]


class Pieces:
    """The attentions of one group of rows, of which a method takes what its equation names; each `[B, H, S, D]` with its
    log-sum-exp `[B, H, S]`. Only `unguided` is there already, everything else is computed when it is asked for."""

    def __init__(self, unguided: Attended, **later: Callable[[], Attended]) -> None:
        self.unguided = unguided
        self._later = later
        self._made: dict[str, Attended] = {}

    def _get(self, name: str) -> Attended:
        if name not in self._made:
            out, lse = self._later[name]()
            # Under autocast, which is not for small products, they can be of another dtype.
            self._made[name] = Attended(out.to(self.unguided.out.dtype), lse)
        return self._made[name]

    @property
    def negative(self) -> Attended:
        """Over the negative's tokens alone, their values as the method's `values` leaves them.

        Where a sample has no negative: output 0, log-sum-exp -inf."""
        return self._get("negative")

    @property
    def branch(self) -> Attended:
        """As in a forward pass with the negative prompt in the place of the positive one: over image and negative."""
        return self._get("branch")

    @property
    def positive(self) -> Attended:
        """Over the positive text alone."""
        return self._get("positive")


#: Is given w `[B, S]` of the image rows, averaged over heads.
Recorder = Callable[[Tensor], None]


def _side(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Attended:
    if k.shape[2] <= FEW:
        return attend_few(q, k, v, bias, scale)
    if bias is None:
        return attend(q, k, v, None, scale)
    side = attend(q, k, v, bias.to(q.dtype), scale)
    # A sample without a negative sees no key at all here; the fused kernels disagree about what that gives.
    blind = bias.isneginf().all(-1, keepdim=True)
    return Attended(side.out.masked_fill(blind, 0.0), side.lse.masked_fill(blind.squeeze(-1), -math.inf))


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _guided(frame: Frame, at: Pieces, record: Recorder | None = None) -> Tensor:
    if record is not None:
        record(frame.method.share(at, frame.knob).squeeze(-1).mean(1).float().cpu())
    unguided = at.unguided.out
    out = frame.method.combine(at, frame.knob)
    return out if frame.guided is None else torch.where(frame.guided, out, unguided)


def _values(frame: Frame, v: Tensor) -> Tensor:
    v = frame.method.values(v, frame.knob)
    return v if frame.weight is None else v * frame.weight.to(v.dtype)


def cross_attention(
    frame: Frame,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    active: bool = True,
    record: Recorder | None = None,
    kernel: Attend = attend,
) -> Tensor:
    """Image queries `[B, H, S, D]` over the text keys `[B, H, P + N, D]`, negative tokens last.

    The only rows are the image's. The negative branch is the negative's tokens, the positive text is all that is
    unguided.
    """
    p = frame.n_pos
    pos_mask, neg_mask = (None, None) if mask is None else (mask[..., :p], additive(mask[..., p:], q.dtype))
    unguided = kernel(q, k[:, :, :p], v[:, :, :p], pos_mask, scale)
    if not active:
        return unguided.out
    neg_bias = _plus(neg_mask, frame.neg_bias)
    negative = partial(_side, q, k[:, :, p:], _values(frame, v[:, :, p:]), neg_bias, scale)
    return _guided(frame, Pieces(unguided, negative=negative, branch=negative, positive=lambda: unguided), record)


def keys_attention(
    frame: Frame,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    active: bool = True,
    record: Recorder | None = None,
    kernel: Attend = attend,
) -> Tensor:
    """Image queries `[B, H, S, D]` over the keys `[negative, positive, image]`, `[B, H, N + P + S, D]`.

    The only rows are the image's, which see themselves as well: the negative branch is the negative's tokens and the image.
    """
    n, p = frame.n_neg, frame.n_pos
    at = {"negative": slice(0, n), "positive": slice(n, n + p), "image": slice(n + p, None), "own": slice(n, None)}

    def keys(name: str) -> tuple[Tensor, Tensor, Tensor | None]:
        return k[:, :, at[name]], v[:, :, at[name]], None if mask is None else mask[..., at[name]]

    unguided = kernel(q, *keys("own"), scale)
    if not active:
        return unguided.out
    k_neg, v_neg, mask_neg = keys("negative")
    negative = partial(
        _side, q, k_neg, _values(frame, v_neg), _plus(additive(mask_neg, q.dtype), frame.neg_bias), scale
    )

    def positive() -> Attended:
        k_pos, v_pos, mask_pos = keys("positive")
        return _side(q, k_pos, v_pos, additive(mask_pos, q.dtype), scale)

    pieces = Pieces(
        unguided, negative=negative, positive=positive, branch=lambda: merge(kernel(q, *keys("image"), scale), negative())
    )  # fmt: skip
    return _guided(frame, pieces, record)


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
    kernel: Attend = attend,
) -> Tensor:
    """Joint attention over `[image, positive, negative]`, or over `[negative, positive, image]` with `text_first`.

    Which rows see what is the method's table `sees`, by default (`SEES`)

    ========  ==============================================================
    rows      see
    ========  ==============================================================
    image     image + positive (the unguided call), and the negative by the method's rule
    positive  image + positive, never the negative (the unguided call)
    negative  image + negative, never the positive
    ========  ==============================================================

    Image and positive rows share the unguided call whatever the table says; a block that is not `active` has the
    default table without guidance.
    """
    length, n, p = q.shape[2], frame.n_neg, frame.n_pos
    if text_first:
        at = {"negative": slice(0, n), "positive": slice(n, n + p), "image": slice(n + p, length)}
        main = slice(n, length)
    else:
        at = {
            "image": slice(0, length - n - p),
            "positive": slice(length - n - p, length - n),
            "negative": slice(length - n, length),
        }
        main = slice(0, length - n)
    sees = frame.method.sees if active else SEES

    def own_mask(queries: slice, keys: slice) -> Tensor | None:
        """The model's own mask for these queries and keys."""
        if mask is None:
            return None
        return (mask if mask.shape[-2] == 1 else mask[..., queries, :])[..., keys]

    def bias(rows: str, keys: str) -> Tensor | None:
        own = {"negative": frame.neg_bias, "positive": frame.pos_bias}.get(keys)
        return _plus(additive(own_mask(at[rows], at[keys]), q.dtype), own)

    def side(rows: str, keys: str, values: Tensor | None = None) -> Attended:
        return _side(
            q[:, :, at[rows]], k[:, :, at[keys]], v[:, :, at[keys]] if values is None else values,
            bias(rows, keys), scale,
        )  # fmt: skip

    main_mask, call = own_mask(main, main), kernel
    if frame.pos_bias is not None:
        pad = frame.pos_bias.new_zeros(frame.pos_bias.shape[0], 1, 1, length - n - p)
        extra = torch.cat([frame.pos_bias, pad] if text_first else [pad, frame.pos_bias], -1).to(q.dtype)
        main_mask = _plus(additive(main_mask, q.dtype), extra)
        call = attend  # the model has no such bias, and the kernel that was chosen for it may take none
    unguided = call(q[:, :, main], k[:, :, main], v[:, :, main], main_mask, scale)
    negative_values = _values(frame, v[:, :, at["negative"]]) if active else None

    def rows(name: str) -> Tensor:
        """The output of one group of rows."""
        *plain, last = sees[name].split()
        guided = last == "guided"
        if name == "negative":
            parts = [side(name, keys) for keys in (plain if guided else [*plain, last])]
            own = parts[0]
            for part in parts[1:]:
                own = merge(own, part)
            own = Attended(own.out.to(unguided.out.dtype), own.lse)
        else:
            start = at[name].start - main.start
            here = slice(start, start + at[name].stop - at[name].start)
            own = Attended(unguided.out[:, :, here], unguided.lse[:, :, here])
        if not (active and guided):
            return own.out
        negative = partial(side, name, "negative", negative_values)
        pieces = Pieces(
            own,
            negative=negative,
            branch=lambda: merge(image_over_image(name), negative()),
            positive=partial(side, name, "positive"),
        )
        return _guided(frame, pieces, record if name == "image" else None)

    def image_over_image(name: str) -> Attended:
        image = at["image"]
        return kernel(q[:, :, at[name]], k[:, :, image], v[:, :, image], own_mask(at[name], image), scale)

    # Written as [B, S, H, D] in memory, which is how the processors read it next.
    return torch.cat([rows(name).transpose(1, 2) for name in at], 1).transpose(1, 2)
