"""Value Sign Flip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .base import Guidance, PerSample, knob

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.geometry import Pieces

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
    has_map = True

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

    @property
    def appends(self) -> bool:
        return self.layout == "upstream"

    def share(self, at: Pieces, knob: Mapping[str, Tensor]) -> Tensor:
        """w, the share of attention that goes to the negative, `[B, H, S, 1]`."""
        return (at.negative.lse - at.unguided.lse).unsqueeze(-1).sub(knob["offset"]).sigmoid()

    def values(self, v: Tensor, knob: Mapping[str, Tensor]) -> Tensor:
        return -knob["scale"].to(v.dtype) * v

    def flipped(self, at: Pieces, knob: Mapping[str, Tensor]) -> Tensor:
        """What the share w of the output is replaced by, `[B, H, S, D]`."""
        return at.negative.out

    def combine(self, at: Pieces, knob: Mapping[str, Tensor]) -> Tensor:
        plain, flipped = at.unguided.out, self.flipped(at, knob)
        w = self.share(at, knob).to(plain.dtype)
        # lerp(a, b, w) = a + w (b - a): exactly the unguided output where w is 0.
        limited = "normalize" in knob  # not self.normalize, whose value would become a part of a compiled graph
        if not limited and not plain.requires_grad and not flipped.requires_grad:
            return plain.lerp_(flipped, w)  # in place: nobody needs the unguided output any more
        z = plain.lerp(flipped, w)
        if limited:
            z = z * (knob["normalize"] * _length(plain) / _length(z).clamp_min(1e-12)).clamp_max(1.0).to(z.dtype)
        return z


def _length(x: Tensor) -> Tensor:
    return x.float().norm(dim=-1, keepdim=True) if x.element_size() < 4 else x.norm(dim=-1, keepdim=True)
