"""The methods VSF is compared with, each one equation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .base import Guidance, PerSample, knob

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.geometry import Pieces

__all__ = ["CFG", "NAG", "NASA", "NoGuidance"]


@dataclass(frozen=True)
class NoGuidance(Guidance):
    """The model as it is: the negative prompt is ignored."""

    label = "none"
    negative = "none"

    def combine(self, at: Pieces, knob: Mapping[str, Tensor]) -> Tensor:
        return at.unguided.out


@dataclass(frozen=True)
class CFG(Guidance):
    """Classifier-free guidance with the negative prompt (arXiv 2207.12598): ``u + scale (c - u)``.

    u and c are the model's predictions with the negative and with the positive prompt: a second forward pass. It is
    not an equation over attention, so it runs through the pipeline's own implementation, whose other rules apply too
    (a sample without a negative prompt is guided away from the empty prompt).
    """

    label = "cfg"
    negative = "pipeline"

    scale: float = knob(
        5.0, "extrapolation away from the negative's prediction", low=1.0, high=15.0, step=0.5, minimum=1.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ranges != ((0.0, 1.0),) or self.blocks is not None:
            raise ValueError("CFG runs through the pipeline's own implementation, which has no start, stop and blocks")

    def combine(self, at: Pieces, knob: Mapping[str, Tensor]) -> Tensor:
        raise TypeError("CFG combines predictions, not attention outputs")


@dataclass(frozen=True)
class NASA(Guidance):
    """NASA (SNOOPI, arXiv 2412.02687): ``Z = Z+ - scale Z-``.

    Z- is the attention output of the same image queries in the negative branch.
    """

    label = "nasa"
    negative = "padded"

    scale: PerSample = knob(0.25, "how much of the negative branch is subtracted", step=0.05, per_sample=True)

    @property
    def neutral(self) -> bool:
        return self._all("scale", 0.0)

    def combine(self, at: Pieces, knob: Mapping[str, Tensor]) -> Tensor:
        z = at.unguided.out
        return z - knob["scale"].to(z.dtype) * at.branch.out


@dataclass(frozen=True)
class NAG(Guidance):
    """Normalized Attention Guidance (arXiv 2505.21179)::

        G = scale Z+ - (scale - 1) Z-;  r = |G| / |Z+|;  Z = alpha G min(r, tau) / r + (1 - alpha) Z+

    with the L1 norm over the channels of the merged heads (as the paper; an early snapshot of its code used L2). Z-
    is the attention output of the same image queries in the negative branch.
    """

    label = "nag"
    negative = "padded"
    per_head = False

    scale: PerSample = knob(4.0, "extrapolation away from the negative", low=1.0, high=12.0, step=0.5, per_sample=True)
    tau: PerSample = knob(
        2.5, "longest allowed output, relative to the unguided one", low=1.0, high=8.0, per_sample=True
    )
    alpha: PerSample = knob(0.125, "blend between unguided (0) and guided (1)", maximum=1.0, per_sample=True)

    @property
    def neutral(self) -> bool:
        return self._all("scale", 1.0) or self._all("alpha", 0.0)

    def combine(self, at: Pieces, knob: Mapping[str, Tensor]) -> Tensor:
        z, z_neg = at.unguided.out, at.branch.out
        scale, alpha = (knob[name].to(z.dtype) for name in ("scale", "alpha"))
        # G and Z are written as Z+ plus a correction, so that scale 1 and alpha 0 leave the model bit-equal.
        g = z + (scale - 1) * (z - z_neg)
        tau = knob["tau"]  # at least fp32: the sum over all channels overflows fp16 and loses most digits of bf16
        r = _l1(g, tau.dtype) / _l1(z, tau.dtype).clamp_min(1e-6)
        g = g * (tau / r.clamp_min(1e-6)).clamp_max(1.0).to(g.dtype)
        return z + alpha * (g - z)


def _l1(x: Tensor, dtype: Any) -> Tensor:
    return x.abs().sum((1, 3), keepdim=True, dtype=dtype)
