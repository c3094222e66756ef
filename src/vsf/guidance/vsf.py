"""Value Sign Flip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .base import Guidance, PerSample, knob

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.attention import Attended

__all__ = ["VSF"]


@dataclass(frozen=True)
class VSF(Guidance):
    """Value Sign Flip (arXiv 2508.10931).

    The negative tokens join the keys of the image queries; their values are negated and scaled::

        Z = softmax(Q [K+ ; K-]^T / sqrt(d) + [0 ; -offset]) [V+ ; -scale V-]

    which, with w the share of attention that goes to the negative, is ``Z = (1 - w) Z+ - scale w Z-``: the values are
    flipped first (`values`), then merged by w (`combine`).

    Args:
        scale: strength alpha of the flipped values; one number, or one per sample.
        offset: beta, subtracted from the negative scores; one number, or one per sample. ``inf`` switches the
            negative off.
        layout: ``"paper"``: the negative reaches the image only through its flipped values. ``"upstream"``: as the
            public code does for joint attention, the negative prompt is also appended, unflipped, to the positive
            one; scales published for SD3.5 (3.3 to 4.5) mean this layout. On cross attention both are the same.
        normalize: if given, no query's output may be longer than ``normalize`` times its unguided output, per head
            (``Z min(1, normalize |Z+| / |Z|)``); one number, or one per sample; at strong scales far fewer pictures break.
        start, stop: the range of steps that is guided, as fractions.
        blocks: the numbers of the transformer blocks that are guided; all by default.
    """

    label = "vsf"

    scale: PerSample = knob(3.5, "strength of the flipped values", high=10.0, step=0.1, per_sample=True)
    offset: PerSample = knob(
        0.1,
        "subtracted from the negative scores",
        high=2.0,
        step=0.05,
        minimum=-10_000.0,
        maximum=math.inf,
        per_sample=True,
        infinite=True,
    )
    layout: Literal["paper", "upstream"] = knob(
        "paper", "which rows see the negative prompt", choices=("paper", "upstream")
    )
    normalize: PerSample | None = knob(
        None,
        "longest allowed output, relative to the unguided one",
        low=0.5,
        high=2.0,
        optional=True,
        per_sample=True,
    )

    @property
    def neutral(self) -> bool:
        return self.layout == "paper" and self._all("offset", math.inf)

    def share(self, pos: Attended, neg: Attended, knob: Mapping[str, Tensor]) -> Tensor:
        """w, the share of attention that goes to the negative, `[B, H, S, 1]`."""
        return (neg.lse - pos.lse).unsqueeze(-1).sub(knob["offset"]).sigmoid()

    def values(self, v: Tensor, knob: Mapping[str, Tensor]) -> Tensor:
        return -knob["scale"].to(v.dtype) * v

    def combine(self, pos: Attended, neg: Attended, knob: Mapping[str, Tensor]) -> Tensor:
        w = self.share(pos, neg, knob)
        w = w.to(pos.out.dtype)
        # lerp(a, b, w) = a + w (b - a): exactly the unguided output where w is 0.
        limited = "normalize" in knob  # not self.normalize, whose value would become a part of a compiled graph
        if not limited and not pos.out.requires_grad and not neg.out.requires_grad:
            return pos.out.lerp_(neg.out, w)  # in place: nobody needs the unguided output any more
        z = pos.out.lerp(neg.out, w)
        if limited:
            z = z * (knob["normalize"] * _length(pos.out) / _length(z).clamp_min(1e-12)).clamp_max(1.0).to(z.dtype)
        return z


def _length(x: Tensor) -> Tensor:
    return x.float().norm(dim=-1, keepdim=True) if x.element_size() < 4 else x.norm(dim=-1, keepdim=True)
