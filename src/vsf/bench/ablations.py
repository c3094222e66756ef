"""The paper's ablations: VSF with one of its ingredients taken away, to see what each is good for.

``VSF(offset=0)`` is the first of them and needs nothing from here. The others change who sees what, which no equation
over two attention outputs can say, so they run in a dense attention of their own (`vsf.bench.dense`), on the joint
attention of Stable Diffusion 3 only. docs/bench/ablations.md has the row tables.

Torch is imported when something is drawn, not before.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from ..guidance import METHODS, VSF, Guidance
from ..guidance.base import PerSample, knob

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.attention import Attended

__all__ = [
    "ABLATIONS", "Ablation", "Dense", "EmbeddingFlip", "NoDuplication", "NoIsolation", "NoIsolationNoDuplication",
    "guided", "make_method",
]  # fmt: skip

_VSF = {f.name: f for f in fields(VSF)}


@dataclass(frozen=True)
class Ablation(Guidance):
    """VSF in its paper layout, written out densely, with something left out.

    Args:
        scale, offset: as in `vsf.VSF`; one number, or one per sample.

    Four groups of keys: the image, the positive text, the negative text as it is ("negative"), and its flipped copy
    ("flipped": values times ``-scale``, scores minus ``offset``). `sees` says which of them each group of rows attends
    to, in one softmax.
    """

    sees: ClassVar[Mapping[str, str]] = {
        "image": "image positive flipped",
        "positive": "image positive",
        "negative": "image negative",
    }
    #: Whether the negative's embedding is multiplied by ``-scale`` before the transformer, instead of the values in it.
    flips_embedding: ClassVar[bool] = False

    scale: PerSample = knob(_VSF["scale"].default, **_VSF["scale"].metadata["knob"])
    offset: PerSample = knob(_VSF["offset"].default, **_VSF["offset"].metadata["knob"])

    @property
    def neutral(self) -> bool:
        return self._all("offset", math.inf)

    def combine(self, pos: Attended, neg: Attended, knob: Mapping[str, Tensor]) -> Tensor:
        raise TypeError(f"{type(self).__name__} is not an equation over two attention outputs; "
                        "use vsf.bench.ablations.guided")  # fmt: skip


@dataclass(frozen=True)
class Dense(Ablation):
    """Nothing left out: VSF itself in the dense attention of the ablations, to check that attention."""

    label = "vsf-dense"


@dataclass(frozen=True)
class NoIsolation(Ablation):
    """The positive text sees the flipped negative, and the negative text sees the positive."""

    label = "vsf-no-isolation"
    sees = {
        "image": "image positive flipped",
        "positive": "image positive flipped",
        "negative": "image positive negative",
    }


@dataclass(frozen=True)
class NoDuplication(Ablation):
    """One copy of the negative is both text stream and flipped keys: its own rows see it flipped."""

    label = "vsf-no-duplication"
    sees = {
        "image": "image positive flipped",
        "positive": "image positive",
        "negative": "image flipped",
    }


@dataclass(frozen=True)
class NoIsolationNoDuplication(Ablation):
    """One copy and no walls: every row sees everything, the negative flipped."""

    label = "vsf-no-isolation-no-duplication"
    sees = dict.fromkeys(("image", "positive", "negative"), "image positive flipped")


@dataclass(frozen=True)
class EmbeddingFlip(Ablation):
    """The negative's embedding is multiplied by ``-scale`` before the transformer; no value is flipped in it."""

    label = "vsf-embedding-flip"
    flips_embedding = True


ABLATIONS: dict[str, type[Ablation]] = {
    m.label: m for m in (NoIsolation, NoDuplication, NoIsolationNoDuplication, EmbeddingFlip)
}
"""Every ablation by its name in command lines and records, besides VSF with offset 0."""


def make_method(settings: Mapping[str, Any]) -> Guidance:
    """The method that `Guidance.settings()` describes, ablations included; knobs not given take their defaults.

    What JSON made of it is undone: lists become tuples, the words "inf" and "-inf" numbers.

    Raises:
        ValueError: no such method or setting (the nearest name is said), or a value out of its range.
        TypeError: a value of the wrong type.
    """
    known: dict[str, type[Guidance]] = {**METHODS, **ABLATIONS, Dense.label: Dense}
    given = dict(settings)
    label = given.pop("method", None)
    if label not in known:
        near = difflib.get_close_matches(str(label), known, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown method {label!r}; allowed: {', '.join([*METHODS, *ABLATIONS])}{hint}")
    method = known[label]
    allowed = [f.name for f in fields(method)]
    if unknown := [name for name in given if name not in allowed]:
        near = difflib.get_close_matches(unknown[0], allowed, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"method {label} has no setting {unknown[0]!r}; it has {', '.join(allowed)}{hint}")

    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return tuple(plain(v) for v in value)
        return float(value) if isinstance(value, str) and value in ("inf", "-inf", "nan") else value

    return method(**{name: plain(value) for name, value in given.items()})


@contextmanager
def guided(pipe: Any, method: Guidance, negatives: str | Sequence[str | None] | None, **options: Any) -> Iterator[Any]:
    """Guide a pipeline inside a `with` block: `vsf.negative_guidance` for a method, the dense attention for an ablation.

    Args:
        pipe: a diffusers pipeline; for an ablation one of Stable Diffusion 3.
        method: what `make_method` gives.
        negatives: as `negative_prompt` of `vsf.negative_guidance`.
        options: further arguments of `vsf.negative_guidance`.

    Raises:
        UnsupportedModel: an ablation on another model than Stable Diffusion 3.
        ValueError, TypeError, RuntimeError: as `vsf.negative_guidance`.
    """
    if isinstance(method, Ablation):
        from .dense import dense_guidance

        context = dense_guidance(pipe, method, negatives, **options)
    else:
        from ..guide import negative_guidance

        context = negative_guidance(pipe, method, negatives, **options)
    with context as inside:
        yield inside
