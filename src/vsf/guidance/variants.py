"""VSF with something exchanged: another table of who sees what, or another point to flip around.

The paper's ablations take one of its ingredients away, to see what each is good for (docs/bench/ablations.md has the row
tables; ``VSF(offset=0)`` is the first of them and needs nothing from here). On cross attention, which has image rows
only, those that differ in the table alone are VSF.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .vsf import VSF

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.geometry import Pieces

__all__ = [
    "ABLATIONS", "VARIANTS", "EmbeddingFlip", "NoDuplication", "NoIsolation", "NoIsolationNoDuplication", "ReferencedVSF",
    "TextVSF",
]  # fmt: skip


@dataclass(frozen=True)
class NoIsolation(VSF):
    """The positive text sees the flipped negative, and the negative text sees the positive."""

    label = "vsf-no-isolation"
    sees = {
        "image": "image positive guided",
        "positive": "image positive guided",
        "negative": "image positive negative",
    }


@dataclass(frozen=True)
class NoDuplication(VSF):
    """One copy of the negative is both text stream and flipped keys: its own rows see it flipped."""

    label = "vsf-no-duplication"
    sees = {**VSF.sees, "negative": "image guided"}


@dataclass(frozen=True)
class NoIsolationNoDuplication(VSF):
    """One copy and no walls: every row sees everything, the negative flipped."""

    label = "vsf-no-isolation-no-duplication"
    sees = dict.fromkeys(("image", "positive", "negative"), "image positive guided")


@dataclass(frozen=True)
class EmbeddingFlip(VSF):
    """The negative's embedding is multiplied by ``-scale`` before the transformer; no value is flipped in it."""

    label = "vsf-embedding-flip"

    def embeddings(self, x: Tensor, knob: Mapping[str, Tensor]) -> Tensor:
        return -knob["scale"].to(x.dtype) * x

    def values(self, v: Tensor, knob: Mapping[str, Tensor]) -> Tensor:
        return v


@dataclass(frozen=True)
class TextVSF(VSF):
    """VSF that guides the rows of the positive text as well as the image's."""

    label = "vsf-text"
    sees = {**VSF.sees, "positive": "image positive guided"}


@dataclass(frozen=True)
class ReferencedVSF(VSF):
    """VSF flipped around r, the attention over the positive text alone, in the place of 0::

        Z = (1 - w) Z+ + w ((1 + scale) r - scale Z-)

    with w the share of attention that goes to the negative, as in VSF. What the negative shares with the prompt (an
    offset common to all text values) is not subtracted. The idea of another reference than 0 is that of flipping around
    the mean value of the other tokens, as community nodes for Krea 2 do.
    """

    label = "vsf-referenced"

    def values(self, v: Tensor, knob: Mapping[str, Tensor]) -> Tensor:
        return v

    def flipped(self, at: Pieces, knob: Mapping[str, Tensor]) -> Tensor:
        r, z_neg = at.positive.out, at.negative.out
        return r + knob["scale"].to(r.dtype) * (r - z_neg)


#: Every ablation by its name in command lines and records, besides VSF with offset 0.
ABLATIONS: dict[str, type[VSF]] = {
    m.label: m for m in (NoIsolation, NoDuplication, NoIsolationNoDuplication, EmbeddingFlip)
}

#: Every method of this file by its name in command lines and records.
VARIANTS: dict[str, type[VSF]] = {**ABLATIONS, **{m.label: m for m in (TextVSF, ReferencedVSF)}}
