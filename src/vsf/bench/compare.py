"""Comparisons: points with a reference, judges with each other, curves of several points.

All by the clusters of `vsf.bench.tables.Results`; docs/bench/statistics.md says what each assumes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import stats
from ..stats import Interval
from .run import Answer, Run, RunError, Unit
from .tables import METRICS, QUESTIONS, TESTED, CaseSeed, Results

__all__ = ["Agreement", "Comparison", "Prior", "agreement", "compare", "priors", "smallest_p", "tradeoff"]


@dataclass(frozen=True)
class Comparison:
    """One point against the reference in one figure, over the (case, seed) pairs that both have.

    Attributes:
        difference: point minus reference, with a 95 % interval.
        p: two-sided, by flipping the signs of whole clusters. `p_holm`: corrected for the family.
    """

    point: str
    reference: str
    metric: str
    difference: Interval
    p: float
    p_holm: float


def compare(
    results: Results,
    reference: str,
    rng: np.random.Generator,
    points: Iterable[str] | None = None,
    metrics: Sequence[str] = TESTED,
    resamples: int = 10_000,
) -> list[Comparison]:
    """Every point against the reference in every figure both have, Holm-corrected over all of them together.

    Raises:
        RunError: no such reference.
    """
    if reference not in results.points:
        raise RunError(f"no point {reference!r} to compare with; there: {', '.join(results.points)}")
    found: list[Comparison] = []
    for point, metric in itertools.product(points if points is not None else results.points, metrics):
        if point == reference:
            continue
        ours, theirs = results.values(point, metric), results.values(reference, metric)
        keys = [key for key in ours if key in theirs]
        if not keys:
            continue
        a, b = np.array([ours[k] for k in keys]), np.array([theirs[k] for k in keys])
        clusters = results.clusters(keys)
        width = METRICS[metric].bounds[1] - METRICS[metric].bounds[0]
        difference = stats.cluster_mean(a - b, clusters, bounds=(-width, width))
        p = stats.paired_permutation(a, b, clusters, rng, resamples)
        found.append(Comparison(point, reference, metric, difference, p, 1.0))
    holm = stats.holm([c.p for c in found]) if found else []
    return [replace(c, p_holm=float(p)) for c, p in zip(found, holm, strict=True)]


def smallest_p(found: Sequence[Comparison]) -> float:
    """The least Holm-corrected p that these comparisons could have given: with G clusters no p is below 2 / 2^G."""
    return min(1.0, len(found) * 2 / 2.0 ** max((c.difference.clusters for c in found), default=1))


# ---------------------------------------------------------------------------------------------------------------
# Agreement


@dataclass(frozen=True)
class Agreement:
    """How far two judges agree on a question, over the pictures that both answered.

    `kappa` is None where it is undefined (both always gave the same answer) or where no picture was answered twice.
    """

    first: str
    second: str
    question: str
    n: int
    same: Interval | None
    kappa: Interval | None


def agreement(runs: Sequence[Run]) -> list[Agreement]:
    """Cohen's kappa for every two judges of these runs and every yes/no question, clustered as everything is."""
    said: dict[str, dict[tuple[str, str], Answer]] = {}
    groups: dict[str, str] = {}
    for run in runs:
        groups |= run.cases.groups
        for judge in run.judges():
            mine = said.setdefault(judge, {})
            for answer in run.judged(judge):
                if answer.status == "judged":
                    mine[str(run.folder), answer.unit] = answer
    found: list[Agreement] = []
    for (first, ours), (second, theirs) in itertools.combinations(sorted(said.items()), 2):
        for question in QUESTIONS:
            pairs = [
                (getattr(ours[key], question), getattr(theirs[key], question), groups[Unit.parse(key[1]).case])
                for key in ours
                if key in theirs
            ]
            pairs = [p for p in pairs if p[0] is not None and p[1] is not None]
            if not pairs:
                continue
            a, b, clusters = ([p[i] for p in pairs] for i in range(3))
            same = stats.cluster_share([float(x == y) for x, y in zip(a, b, strict=True)], clusters)
            kappa = stats.cohen_kappa(a, b, clusters) if len({*a, *b}) > 1 else None
            found.append(Agreement(first, second, question, len(pairs), same, kappa))
    return found


@dataclass(frozen=True)
class Prior:
    """What a model draws of a case without guidance: in how many judged pictures the object is there, and in how many
    the negative is absent anyway."""

    case: str
    judged: int
    there: float
    absent: float


def priors(results: Results) -> list[Prior]:
    """Without guidance, case by case in the set's order: what the negative of a case has to do at all.

    Raises:
        RunError: no point without guidance, or none of its pictures has both answers.
    """
    names = [name for name, point in results.points.items() if point.method == "none"]
    if not names:
        raise RunError("these runs hold no point without guidance (vsf bench generate RUN -p none)")
    said: dict[str, list[Answer]] = {}
    for name in names:
        for (case, _, _), answer in results.answers[name].items():
            if answer.answer_1 is not None and answer.answer_2 is not None:
                said.setdefault(case, []).append(answer)
    if not said:
        raise RunError(f"{results.judge} answered both questions on no picture without guidance")
    return [
        Prior(
            case,
            len(said[case]),
            sum(bool(a.answer_1) for a in said[case]) / len(said[case]),
            sum(bool(a.answer_2) for a in said[case]) / len(said[case]),
        )
        for case in results.cases
        if case in said
    ]


# ---------------------------------------------------------------------------------------------------------------
# Trade-off


def tradeoff(
    results: Results,
    points: Sequence[str],
    rng: np.random.Generator,
    x: str = "negative",
    y: str = "positive",
    low: tuple[float, float] = (0.0, 0.0),
    high: tuple[float, float] = (1.0, 1.0),
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval | None:
    """Area under the trade-off curve of one method's points: `stats.tradeoff_area` of their mean scores.

    The interval is a percentile bootstrap over clusters, all points of the curve together, so what the points share
    (cases and noises) stays shared; with few clusters it is too narrow. None if a point lacks one of the scores.
    """
    columns: list[tuple[dict[CaseSeed, float], dict[CaseSeed, float]]] = [
        (results.values(point, x), results.values(point, y)) for point in points
    ]
    if not columns or any(not a or not b for a, b in columns):
        return None
    clusters = sorted({results.groups[case] for pair in columns for values in pair for case, _ in values})
    at = {cluster: i for i, cluster in enumerate(clusters)}
    totals = np.zeros((2 * len(columns), len(clusters)))
    counts = np.zeros_like(totals)
    for row, values in enumerate(values for pair in columns for values in pair):
        for (case, _), value in values.items():
            totals[row, at[results.groups[case]]] += value
            counts[row, at[results.groups[case]]] += 1

    def areas(weights: np.ndarray[Any, Any]) -> list[float]:
        with np.errstate(invalid="ignore"):
            means = (weights @ totals.T) / (weights @ counts.T)  # [R, 2 P]
        return [stats.tradeoff_area(m[0::2], m[1::2], low, high) for m in means if np.isfinite(m).all()]

    area, g = areas(np.ones((1, len(clusters))))[0], len(clusters)
    draws = areas(rng.multinomial(g, np.full(g, 1 / g), size=resamples).astype(float))
    lower, upper = (float(q) for q in np.quantile(draws, (0.5 - level / 2, 0.5 + level / 2)))
    return Interval(area, lower, upper, int(counts.sum() / 2), g)
