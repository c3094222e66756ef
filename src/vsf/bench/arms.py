"""What a sweep tries: methods with the ranges of their knobs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..guidance import METHODS, knobs

__all__ = ["ARMS", "ARM_SETS", "DEFAULT_ARMS", "Arm", "Range"]


@dataclass(frozen=True)
class Range:
    """Values of one knob: from `low` to `high`, in steps of `step` where given, evenly in its logarithm with `log`."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies in the range, from 0 (low) to 1 (high)."""
        low, high, at = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return (at - low) / (high - low)


@dataclass(frozen=True)
class Arm:
    """One method with the ranges of its knobs: it gets one budget.

    Attributes:
        fixed: the method's label and what is not searched.
        space: knob -> range.
        published: settings tried first, on every model.
        paper: the ranges are a paper's and stay as they are, also where the best point lies on their bound.
    """

    name: str
    fixed: Mapping[str, Any]
    space: Mapping[str, Range]
    published: tuple[Mapping[str, float], ...]
    paper: bool = False

    def settings(self, chosen: Mapping[str, float]) -> dict[str, Any]:
        """All settings of the method, every knob in them. Raises ValueError for what the method does not allow."""
        from ..guidance import make_method

        return make_method({**self.fixed, **{k: round(float(v), 3) for k, v in chosen.items()}}).settings()

    def on_bound(self, settings: Mapping[str, Any]) -> list[str]:
        """The knobs that stand at an end of their range (within 5 % of it) beyond which the method would go on.

        A best try that has any says that the range is too narrow.
        """
        own = knobs(METHODS[self.fixed["method"]])
        found: list[str] = []
        for name, range in self.space.items():
            at = range.share(float(settings[name]))
            limit = own[name]
            if at <= 0.05 and (limit.minimum is None or range.low > limit.minimum):
                found.append(f"{name} {settings[name]:g} is at the lower end of {range.low:g} to {range.high:g}")
            elif at >= 0.95 and (limit.maximum is None or range.high < limit.maximum):
                found.append(f"{name} {settings[name]:g} is at the upper end of {range.low:g} to {range.high:g}")
        return found


def _when() -> dict[str, Range]:
    return {"start": Range(0.0, 0.5, 0.125), "stop": Range(0.5, 1.0, 0.125)}


_ALWAYS = {"start": 0.0, "stop": 1.0}
_VSF, _UPSTREAM = {"method": "vsf", "layout": "paper"}, {"method": "vsf", "layout": "upstream"}
_NAG, _NASA, _CFG = {"method": "nag"}, {"method": "nasa"}, {"method": "cfg"}

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        # Our own ranges: wide, and when guidance acts is searched, too. Where the best point of an earlier sweep stood at
        # an end of its range (offset 1.9 of 2, scale 7.2 of 8, start .25 of .25, tau 1.2 of 1 to 8), it goes on now.
        Arm("vsf", _VSF, {"scale": Range(0, 8), "offset": Range(0, 4), **_when()},
            ({"scale": 3.5, "offset": 0.1, **_ALWAYS},)),
        Arm("vsf-norm", _VSF, {"scale": Range(0, 8), "offset": Range(0, 4), "normalize": Range(0.7, 1.5), **_when()},
            ({"scale": 3.5, "offset": 0.1, "normalize": 1.0, **_ALWAYS},)),
        Arm("vsf-upstream", _UPSTREAM, {"scale": Range(0, 16), "offset": Range(0, 4), **_when()},
            ({"scale": 3.5, "offset": 0.1, **_ALWAYS},)),
        # The paper's range of NAG; the wider one of the next arm holds the settings it calls NAG++.
        Arm("nag", _NAG, {"scale": Range(4, 8), "tau": Range(1, 8), "alpha": Range(0, 1)},
            ({"scale": 4.0, "tau": 2.5, "alpha": 0.125},), paper=True),
        Arm("nag-wide", _NAG, {"scale": Range(1, 16), "tau": Range(0.5, 8, log=True), "alpha": Range(0, 1), **_when()},
            ({"scale": 9.0, "tau": 5.0, "alpha": 0.5, **_ALWAYS},)),
        Arm("nasa", _NASA, {"scale": Range(0, 1.5), **_when()},
            ({"scale": 0.25, **_ALWAYS},)),
        Arm("cfg", _CFG, {"scale": Range(1, 15, log=True)}, ({"scale": 5.0},)),
        # As published (arXiv 2508.10931): all steps guided.
        Arm("vsf-published", _VSF, {"scale": Range(0, 5), "offset": Range(0, 0.5)}, ({"scale": 3.5, "offset": 0.1},),
            paper=True),
        Arm("vsf-upstream-published", _UPSTREAM, {"scale": Range(0, 5), "offset": Range(0, 0.5)},
            ({"scale": 3.5, "offset": 0.1},), paper=True),
        Arm("nasa-published", _NASA, {"scale": Range(0, 0.5)}, ({"scale": 0.25},), paper=True),
        Arm("cfg-published", _CFG, {"scale": Range(10, 15)}, ({"scale": 10.0},), paper=True),
        # One free knob each, the strength; all else as published, all steps guided. With cfg, which has no other knob.
        Arm("vsf-scale", _VSF | {"offset": 0.1}, {"scale": Range(0, 8)}, ({"scale": 3.5},)),
        Arm("vsf-norm-scale", _VSF | {"offset": 0.1, "normalize": 1.0}, {"scale": Range(0, 8)}, ({"scale": 3.5},)),
        Arm("vsf-upstream-scale", _UPSTREAM | {"offset": 0.1}, {"scale": Range(0, 16)}, ({"scale": 3.5},)),
        Arm("nag-scale", _NAG | {"tau": 2.5, "alpha": 0.125}, {"scale": Range(1, 16)}, ({"scale": 4.0},)),
        Arm("nasa-scale", _NASA, {"scale": Range(0, 1.5)}, ({"scale": 0.25},)),
    )
}  # fmt: skip
"""What a sweep can try, by name."""

DEFAULT_ARMS = ("vsf", "vsf-norm", "vsf-upstream", "nag", "nag-wide", "nasa", "cfg")

ARM_SETS = {
    "default": DEFAULT_ARMS,
    "one-knob": ("vsf-scale", "vsf-norm-scale", "vsf-upstream-scale", "nag-scale", "nasa-scale", "cfg"),
}
"""Names for several arms: `default` gives every method all its knobs, 1 to 5 of them, and so unequal searches; `one-knob`
gives every method its strength alone."""
