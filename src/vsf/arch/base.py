"""The seam between methods and models.

A family says where its attention is, in which order its tokens stand and how text enters; it knows no method. The two
geometries below do the slicing for all of them. Legend: B batch, H heads, S image queries, P positive text tokens,
N negative text tokens, D head size, W text embedding width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core.attention import Attended, attend, attend_few, merge
from ..guidance import Guidance

__all__ = [
    "Family", "Frame", "Negative", "Tap", "append_masked", "cross_attention", "extend_mask", "joint_attention", "too_long",
]  # fmt: skip

#: Up to this many keys an attention is written out (`attend_few`), above it takes the fused kernel. (Few queries over many
#: keys take the fused kernel, too: the matrix product would copy all keys and values first, at 8 times the cost.)
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
    n_copy: int = 0  # of P: the copy of the negative that `layout="upstream"` adds to the prompt
    # For taps: the negative and the model's arguments by name as given, what one tap keeps for the next, and whether
    # the next attention of a guided module is not over the text.
    negative: Negative | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    kept: Any = None
    skip: bool = False
    #: The site guided last: a second attention of the same site is an adapter's own, not the one over the text.
    last: int = -1
    _elsewhere: dict[torch.device, Frame] = field(default_factory=dict)

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


@dataclass
class Negative:
    """The negative prompt of a batch as the model's text input: `embeds` `[B, N, W]`, `keep` `[B, N]` bool.

    `copy`: this is the copy that `layout="upstream"` adds to the prompt, so its positions go on behind the prompt's;
    otherwise the positions of the negative restart where the prompt's start.
    """

    embeds: Tensor
    keep: Tensor
    copy: bool = False


@dataclass(frozen=True)
class Tap:
    """A pair of forward hooks on a submodule; they run only inside a guided forward pass of the model.

    `before(frame, args, kwargs)` may return new `(args, kwargs)`, `after(frame, args, output)` a new output.
    """

    module: nn.Module
    before: Callable[[Frame, tuple[Any, ...], dict[str, Any]], Any] | None = None
    after: Callable[[Frame, tuple[Any, ...], Any], Any] | None = None


def _side(frame: Frame, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Attended:
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


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, -math.inf)


def _guide(frame: Frame, pos: Attended, neg: Attended) -> Tensor:
    out = frame.method.combine(pos, neg, frame.knob)
    return out if frame.guided is None else torch.where(frame.guided, out, pos.out)


def _flip(frame: Frame, v: Tensor) -> Tensor:
    v = frame.method.values(v, frame.knob)
    return v if frame.weight is None else v * frame.weight.to(v.dtype)


Recorder = Callable[[Attended, Attended], None]
#: q, k, v, the model's own mask, scale -> output and log-sum-exp: the kernel of the big, unguided call.
Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None", "float | None"], Attended]


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

    Both layouts and both kinds of method see the same thing here: the negative is the keys of its own tokens.
    """
    p = frame.n_pos
    pos_mask, neg_mask = (None, None) if mask is None else (mask[..., :p], _additive(mask[..., p:], q))
    pos = kernel(q, k[:, :, :p], v[:, :, :p], pos_mask, scale)
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
    kernel: Attend = attend,
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

    def own_mask(queries: slice, keys: slice) -> Tensor | None:
        """The model's own mask for these queries and keys."""
        if mask is None:
            return None
        return (mask if mask.shape[-2] == 1 else mask[..., queries, :])[..., keys]

    def seen(queries: slice, keys: slice) -> Tensor | None:
        return _additive(own_mask(queries, keys), q)

    main_mask = own_mask(main, main)
    if frame.pos_bias is not None:
        pad = frame.pos_bias.new_zeros(frame.pos_bias.shape[0], 1, 1, length - n - p)
        bias = torch.cat([frame.pos_bias, pad] if text_first else [pad, frame.pos_bias], -1).to(q.dtype)
        main_mask = _plus(seen(main, main), bias)
        kernel = attend  # the model has no such bias, and the kernel that was chosen for it may take none
    unguided = kernel(q[:, :, main], k[:, :, main], v[:, :, main], main_mask, scale)

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
            neg = merge(kernel(q[:, :, image], k_image, v_image, own_mask(image, image), scale), neg)
        if record is not None:
            record(pos, neg)
        guided = _guide(frame, pos, neg)
        text = out[:, :, :p] if text_first else out[:, :, length - n - p :]
        pieces = [stream, text, guided] if text_first else [guided, text, stream]
    else:
        pieces = [stream, out] if text_first else [out, stream]
    # Written as [B, S, H, D] in memory, which is how the processors read it next.
    return torch.cat([x.transpose(1, 2) for x in pieces], 1).transpose(1, 2)


def extend_mask(mask: Tensor | None, n: int) -> Tensor | None:
    """A text mask `[B, P]` (1 = visible) or bias `[B, 1, P]` (0 = visible) with `n` more visible columns.

    Which of the negative tokens are real is added in the attention itself.
    """
    if mask is None:
        return None
    return torch.cat([mask, mask.new_full((*mask.shape[:-1], n), 1 if mask.ndim == 2 else 0)], -1)


def append_masked(call: dict[str, Any], negative: Negative) -> None:
    """Lengthen a text that is a prefix with a mask: real negative tokens directly behind the real positive ones."""
    text = torch.cat([call["encoder_hidden_states"], negative.embeds], 1)
    mask = torch.cat([call["encoder_attention_mask"], negative.keep.to(call["encoder_attention_mask"])], 1)
    order = torch.argsort((~mask.bool()).int(), dim=1, stable=True)
    call["encoder_hidden_states"] = text.gather(1, order[..., None].expand(-1, -1, text.shape[-1]))
    call["encoder_attention_mask"] = mask.gather(1, order)


def too_long(text: str, tokens: int, limit: int, who: str) -> ValueError:
    """The error for a negative of which only the first `limit` of its `tokens` would be read."""
    short = text if len(text) <= 50 else text[:47].rstrip() + "..."
    return ValueError(
        f"the negative prompt {short!r} is {tokens} tokens long, counted with special tokens and template; {who} takes "
        f"{limit}; shorten it, or (VSF) give its parts weights, as in 'a:1, b:1', since each part is encoded on its own"
    )


class Family(ABC):
    """One architecture. Subclasses are stateless; see `docs/adding-a-model.md`."""

    #: Name in messages, and the class names of the models it serves.
    name: ClassVar[str]
    models: ClassVar[tuple[str, ...]]
    #: How text meets the image.
    geometry: ClassVar[Literal["cross", "image_first", "text_first"]]
    #: The argument of the model's forward that carries the text `[B, P, W]`.
    text_argument: ClassVar[str] = "encoder_hidden_states"
    #: For a family with taps: whether they bring the negative tokens in, so that `extend` does not.
    late: ClassVar[bool] = True
    #: The tokenizers that, in pipelines with several, serve the pooled embedding alone, which stays the positive
    #: prompt's: what they cut off a negative is not missed.
    pooled: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def sites(self, model: nn.Module) -> Sequence[nn.Module]:
        """The attention modules where text meets the image, one per block, in order."""

    @abstractmethod
    def width(self, model: nn.Module) -> int:
        """W, the width of the text embeddings the model takes."""

    @abstractmethod
    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        """Encode one negative prompt with the pipeline's own encoders to `[N, W]`.

        What the pipeline's tokenizers cut off is noticed by the caller (`vsf.encode`); a pipeline that cuts in another
        way needs a check here (`too_long`).

        Not `padded`: real tokens only. `padded`: as the pipeline encodes a prompt, with `max_sequence_length` where
        the pipeline has such an argument (its default if None).
        """

    def taps(self, model: nn.Module) -> Sequence[Tap]:
        """Where negative tokens cannot simply join the text inputs: the hooks that bring them in further down.

        If this is not empty and the family is `late`, `extend` is called only to lengthen the positive prompt itself
        (`layout="upstream"`), and the taps put the tokens of `frame.negative` behind the positive ones. The model's
        own attention mask need not know of them: their columns are made visible (`neg_bias` hides the missing ones).
        """
        return ()

    def extend(self, call: dict[str, Any], negative: Negative) -> None:
        """Add the negative tokens to the text inputs in `call` (the model's forward arguments by name), in place."""
        text = call[self.text_argument]
        order = [negative.embeds, text] if self.geometry == "text_first" else [text, negative.embeds]
        call[self.text_argument] = torch.cat(order, 1)

    def text(self, call: Mapping[str, Any]) -> Any:
        """The positive text `[B, P, W]`, of which only shape, dtype and device are read; no tensor if it is unfit."""
        text = call.get(self.text_argument)
        if isinstance(text, list) and all(isinstance(t, Tensor) for t in text):  # one per sample
            return torch.nn.utils.rnn.pad_sequence(text, batch_first=True)
        return text

    def grid(self, model: nn.Module, call: Mapping[str, Any]) -> tuple[int, int] | None:
        """Height and width of the image's token grid (or of a multiple of it), where the model has one."""
        x = call.get("hidden_states", call.get("sample"))
        return (int(x.shape[-2]), int(x.shape[-1])) if isinstance(x, Tensor) and x.ndim == 4 else None
