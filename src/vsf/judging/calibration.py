"""Fitting a temperature and a cut per kind of question on labels that training did not see."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..bench.judges.calibration import Calibration, Scale
from .labels import Label, LabelsError

__all__ = ["fit_calibration", "fit_scale"]

_LIMIT = (
    20.0  # of a temperature, and of one over it: a judge that is never wrong on few labels is not sure beyond measure
)
_FEWEST = 10


def fit_scale(log_odds: Sequence[float], answers: Sequence[bool]) -> Scale:
    """The scale that minimises the log loss: logistic regression on the log-odds, its slope held to 1/20 .. 20.

    Yes counts as (n + 1) / (n + 2) of n yes, no likewise (Platt 1999): who was right on few labels is not sure of all others.

    Raises:
        ValueError: only one of the two answers occurs.
    """
    from scipy.optimize import minimize

    x, yes = np.asarray(log_odds, float), np.asarray(answers, bool)
    if yes.all() or not yes.any():
        raise ValueError("a temperature and a cut are fitted to both answers, and only one occurs")
    target = np.where(yes, (yes.sum() + 1) / (yes.sum() + 2), 1 / ((~yes).sum() + 2))

    def loss(at: Any) -> tuple[float, Any]:
        z = math.exp(at[0]) * x + at[1]
        slope = (np.exp(-np.logaddexp(0, -z)) - target) / len(x)
        return float((np.logaddexp(0, z) - target * z).mean()), np.array(
            [math.exp(at[0]) * (slope * x).sum(), slope.sum()]
        )

    edge = math.log(_LIMIT)
    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-edge, edge), (None, None)],
                     options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}).x  # fmt: skip
    temperature = math.exp(-found[0])
    return Scale(round(temperature, 6), round(-float(found[1]) * temperature, 6))


def fit_calibration(labels: Iterable[Label], log_odds: Iterable[float], **record: Any) -> Calibration:
    """A scale for every kind of question that has at least ten labels of both answers together.

    Args:
        log_odds: of yes against no, the judge's own, one per label.

    Raises:
        LabelsError: a kind has only one of the two answers.
    """
    of: dict[str, list[tuple[float, bool]]] = {}
    for label, x in zip(labels, log_odds, strict=True):
        if label.answer is not None:
            of.setdefault(label.asks, []).append((x, label.answer))
    scales: dict[str, Scale] = {}
    for asks, pairs in sorted(of.items()):
        if len(pairs) < _FEWEST:
            continue
        try:
            scales[asks] = fit_scale([x for x, _ in pairs], [answer for _, answer in pairs])
        except ValueError as error:
            raise LabelsError(f"questions of the kind {asks!r}: {error}") from error
    return Calibration(scales, record)
