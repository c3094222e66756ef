"""What a judge's own probabilities mean: a temperature and a cut per kind of question, `judge.json` beside its weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .base import JudgeError

__all__ = ["FILE", "Calibration", "Scale"]

FILE = "judge.json"
FORMAT, VERSION = "vsf-judge", 1
_SURE = 1e-9  # nobody's log-odds are infinite


@dataclass(frozen=True)
class Scale:
    """P = sigmoid((x - cut) / temperature) for log-odds x of yes against no (Platt 1999; Guo et al. 2017, arXiv 1706.04599)."""

    temperature: float = 1.0
    cut: float = 0.0

    def __call__(self, p: float) -> float:
        """The calibrated probability for the model's own."""
        p = min(max(p, _SURE), 1 - _SURE)
        x = (math.log(p) - math.log1p(-p) - self.cut) / self.temperature
        return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


@dataclass(frozen=True)
class Calibration:
    """Scales by what is asked ("object", "missing", "kept"); a kind without one keeps the model's own probabilities.

    `record` is what else the file says: where the judge comes from and on what it was fitted.
    """

    scales: Mapping[str, Scale] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, p: float, asks: str) -> float:
        """The calibrated P(yes) to a question of a kind."""
        scale = self.scales.get(asks)
        return p if scale is None else scale(p)

    def about(self) -> dict[str, list[float]] | None:
        """[temperature, cut] by kind, for the judge's record; None where there is none."""
        return {asks: [one.temperature, one.cut] for asks, one in sorted(self.scales.items())} or None

    def plain(self) -> dict[str, Any]:
        """What the file says."""
        scales = {asks: {"temperature": one.temperature, "cut": one.cut} for asks, one in self.scales.items()}
        return {"format": FORMAT, "version": VERSION, "calibration": scales, **self.record}

    @classmethod
    def read(cls, folder: Path) -> Calibration:
        """The calibration in a folder; none where it has no such file. Raises JudgeError where it cannot be used."""
        path = folder / FILE
        if not path.is_file():
            return cls()
        try:
            said = json.loads(path.read_text("utf-8"))
            if said.pop("format") != FORMAT or said.pop("version") != VERSION:
                raise ValueError(f"it is not of {FORMAT} {VERSION}")
            scales = {
                str(a): Scale(float(s["temperature"]), float(s["cut"])) for a, s in said.pop("calibration").items()
            }
            if not all(0 < s.temperature < math.inf and math.isfinite(s.cut) for s in scales.values()):
                raise ValueError("a temperature must be above 0, and a cut a number")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise JudgeError(f"the calibration in {path} cannot be used: {why}") from error
        return cls(scales, said)
