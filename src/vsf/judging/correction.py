"""What a judge's errors change: the benchmark's rates with the judge's error in their intervals, and the order of its points.

Two corrections of the share of pictures to which a judge says yes, both from labels whose true answers are known:

- Rogan and Gladen (1978): ``p = (q + Sp - 1) / (Se + Sp - 1)``, with q the share of yes, and sensitivity and specificity of the
  judge on any labels of the same kind of question. It assumes that the judge errs as often on every point's pictures as on these.
- Prediction-powered inference (Angelopoulos et al. 2023, Science 382, arXiv 2301.09633), tuned as in Angelopoulos, Duchi and
  Zrnic (2023, arXiv 2311.01453): ``p = mean(l f) + mean(y - l f)``, f what the judge says of all pictures of a point, y what is
  true of those that are labelled, l the slope of y on f between 0 and 1. It assumes that these were picked at random, and nothing
  of the judge.

Their errors are those of the delete-one-group jackknife (Efron and Stein 1981): a group takes its pictures and its labels with
it, so what both have in common is in them. Where no group has both, pictures and labels are two samples. Intervals stay between 0
and 1 as those of `vsf.stats.cluster_share` do (Korn and Graubard 1998).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..bench.judges import exhibits
from ..bench.judges.base import PictureError
from ..bench.run import Answer, Run, Unit
from ..grammar import unknown
from ..stats import Interval, cluster_share
from .agreement import Key
from .evaluate import answered, truth
from .labels import Label, Labels, LabelsError

__all__ = ["FIGURES", "Corrected", "Judged", "corrected_rates", "prediction_powered", "rogan_gladen"]

FIGURES = {
    "positive": ("answer_1", "true", "object"),
    "negative": ("answer_2", "true", "missing"),
    "unrelated": ("answer_2", "unrelated", "missing"),
}
"""Rates of the benchmark that are answers to one question: the answer, the kind of negative, and what is asked."""

_LEAST = 0.05  # sensitivity + specificity - 1, below which a judge tells next to nothing
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Corrected:
    """One point's rate under one judge.

    Attributes:
        point: its name in the run.
        raw: as the judge says it.
        gladen, powered: corrected; None where it cannot be.
        labelled: how many of its judged pictures have a known answer.
        true: the rate among these alone, for comparison.
    """

    point: str
    raw: Interval
    gladen: Interval | None
    powered: Interval | None
    labelled: int
    true: Interval | None


@dataclass(frozen=True)
class Judged:
    """A judge on a run: its errors on the labels, and every point's rates.

    `sensitivity` is None where the labels hold no true yes, `specificity` where they hold no true no.
    """

    judge: str
    sensitivity: Interval | None
    specificity: Interval | None
    points: tuple[Corrected, ...]


def _jackknife(
    estimate: Callable[[_Floats], _Floats], sums: _Floats, samples: Sequence[NDArray[np.intp]], level: float, n: int
) -> Interval | None:
    """The interval of an estimate between 0 and 1 from the sums [G, D] of each group; None where it is not defined.

    `estimate` maps sums [..., D] to [...]. `samples` are the groups of each sample.
    """
    from scipy.stats import beta, norm, t

    whole = sums.sum(0)
    value = float(estimate(whole))
    without = estimate(whole - sums)
    if not np.isfinite(value):
        return None
    mean, count = min(1.0, max(0.0, value)), len(sums)
    if not np.isfinite(without).all() or any(len(groups) < 2 for groups in samples):
        return Interval(mean, 0.0, 1.0, n, count)
    parts = [(len(g) - 1) / len(g) * float(np.square(without[g] - without[g].mean()).sum()) for g in samples]
    if sum(parts) < 1e-24:  # all groups alike; the next one may differ, see `vsf.stats.cluster_mean`
        share = 1 - (0.5 - level / 2) ** (1 / min(map(len, samples)))
        return Interval(mean, mean * (1 - share), mean + share * (1 - mean), n, count)
    freedom = sum(parts) ** 2 / sum(v**2 / (len(g) - 1) for v, g in zip(parts, samples, strict=True))
    tail, error = 0.5 + level / 2, float(np.sqrt(sum(parts)))
    if mean in (0.0, 1.0):
        half = float(t.ppf(tail, freedom)) * error
        return Interval(mean, max(0.0, mean - half), min(1.0, mean + half), n, count)
    draws = mean * (1 - mean) / error**2 * float((norm.ppf(tail) / t.ppf(tail, freedom)) ** 2)
    hits = mean * draws
    low, high = beta.ppf(1 - tail, hits, draws - hits + 1), beta.ppf(tail, hits + 1, draws - hits)
    return Interval(mean, min(float(low), mean), max(float(high), mean), n, count)


def _by_group(groups: Sequence[Any], names: Sequence[Any], columns: Sequence[ArrayLike]) -> _Floats:
    index = np.searchsorted(np.asarray(names), np.asarray(groups))
    sums = [np.bincount(index, np.asarray(c, dtype=np.float64), len(names)) for c in columns]
    return np.stack(sums, axis=1).astype(np.float64)


def rogan_gladen(
    said: ArrayLike,
    groups: Sequence[str],
    known: ArrayLike,
    said_known: ArrayLike,
    known_groups: Sequence[str],
    level: float = 0.95,
) -> Interval | None:
    """The true rate behind a judge's answers.

    Args:
        said: what the judge says of N pictures, yes or no; `groups` [N].
        known, said_known: what is true of M labels, and what the judge says of them; `known_groups` [M].

    Returns:
        None where the labels lack true yes or true no, or the judge tells next to nothing (Se + Sp - 1 below 0.05).
    """  # fmt: skip
    f, y, g = (np.asarray(x, dtype=np.float64) for x in (said, known, said_known))
    names = sorted({*groups, *known_groups})
    sums = np.concatenate(
        [
            _by_group(groups, names, [f, np.ones_like(f)]),
            _by_group(known_groups, names, [y * g, y, (1 - y) * (1 - g), 1 - y]),
        ],
        axis=1,
    )

    def estimate(total: _Floats) -> _Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            q, se, sp = (total[..., i] / total[..., i + 1] for i in (0, 2, 4))
            return np.where(se + sp - 1 >= _LEAST, (q + sp - 1) / (se + sp - 1), np.nan)

    both = set(groups) & set(known_groups)
    index = np.arange(len(names))
    ours = np.isin(np.asarray(names), np.asarray(list(set(groups))))
    return _jackknife(estimate, sums, [index] if both else [index[ours], index[~ours]], level, len(f))


def prediction_powered(
    said: ArrayLike, known: ArrayLike, groups: Sequence[str], level: float = 0.95
) -> Interval | None:
    """The true rate among N pictures that a judge answered, some of which are labelled.

    Args:
        said: what the judge says, yes or no [N].
        known: what is true [N], NaN where that is not known; those that are known were picked at random.
        groups: [N].

    Returns:
        None where nothing is known.
    """
    f, y = np.asarray(said, dtype=np.float64), np.asarray(known, dtype=np.float64)
    has = ~np.isnan(y)
    if not has.any():
        return None
    y, one = np.where(has, y, 0.0), has.astype(np.float64)
    names = sorted(set(groups))
    # f is 0 or 1, so that its square is itself.
    sums = _by_group(groups, names, [f, np.ones_like(f), one, y, f * one, f * y])

    def estimate(total: _Floats) -> _Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            all_f, count, n, sum_y, sum_f, sum_fy = np.moveaxis(total, -1, 0)
            spread = sum_f / n - (sum_f / n) ** 2
            slope = (sum_fy / n - sum_f * sum_y / n**2) / spread
            slope = np.where(spread > 1e-12, np.clip(slope, 0, 1), 1.0)
            return slope * all_f / count + (sum_y - slope * sum_f) / n

    return _jackknife(estimate, sums, [np.arange(len(names))], level, len(f))


def corrected_rates(
    run: Run,
    judge: str,
    labels: Labels,
    figure: str = "negative",
    annotator: str | None = None,
    without: Sequence[str] = (),
) -> Judged:
    """Every point's rate under a judge, raw and corrected by labels.

    The judge's errors come from labels of the run's own pictures, and from labels that the judge answered as an annotator.

    Args:
        annotator: whose answers are true; else the consensus of all but the judge and those in `without`, such as other
            judges that are measured.

    Raises:
        LabelsError: an unknown figure; or the labels know no answer to a question that the judge answered.
        RunError: the run has no such judge.
    """
    if figure not in FIGURES:
        raise LabelsError(unknown("figure", figure, FIGURES))
    field, kind, asks = FIGURES[figure]
    run.judge(judge)
    known = {key: one for key, one in truth(labels, annotator, [judge, *without]).items() if one.asks == asks}
    ours = _ours(run, judge, field)
    pairs: dict[Key, tuple[float, float, str]] = {}
    if judge in labels.annotators:
        for key, p in answered(labels, judge).items():
            if key in known and p is not None:
                pairs[key] = _pair(known[key], p >= 0.5)
    for key, said, group in ours.values():
        if key in known:
            pairs[key] = (float(bool(known[key].answer)), float(said), group)
    true, said, groups = ([pair[i] for pair in pairs.values()] for i in range(3))
    if not pairs:
        raise LabelsError(
            f"no labels tell how {judge} errs about {asks!r}: none of its answers has a known one; "
            f"vsf judge eval LABELS --judge ... --keep {judge} has it answer them"
        )
    rates: list[Interval | None] = []
    for yes in (1.0, 0.0):
        mine = [i for i, y in enumerate(true) if y == yes]
        hits = [float(said[i] == yes) for i in mine]
        rates.append(cluster_share(hits, [str(groups[i]) for i in mine]) if mine else None)
    points: list[Corrected] = []
    for point in run.plan.points:
        wanted = kind if kind in run.plan.kinds(point) else "true"  # without guidance both are one picture
        units = {unit: Unit.parse(unit) for unit in ours}
        mine = [ours[id] for id, unit in units.items() if (unit.point, unit.kind) == (point.name, wanted)]
        if mine:
            points.append(_point(point.name, mine, known, true, said, [str(g) for g in groups]))
    return Judged(judge, rates[0], rates[1], tuple(points))


def _pair(label: Label, said: bool) -> tuple[float, float, str]:
    return float(bool(label.answer)), float(said), label.group or label.image


_Ours = tuple[Key, bool, str]
"""Picture and question, the judge's answer, and the group."""


def _ours(run: Run, judge: str, field: str) -> dict[str, _Ours]:
    """What the judge said about the run's pictures, by unit."""
    said: dict[str, Answer] = {a.unit: a for a in run.judged(judge) if getattr(a, field) is not None}
    found: dict[str, _Ours] = {}
    for item in exhibits(run, [unit for unit in run.plan.units if unit.id in said]):
        try:
            name = sha256(item.png()).hexdigest()
        except PictureError as error:
            raise LabelsError(f"{item.image}: {error}") from error
        question = item.case.question_1 if field == "answer_1" else item.case.question_2
        found[item.unit] = (name, question), bool(getattr(said[item.unit], field)), run.cases.groups[item.case.id]
    return found


def _point(
    name: str, mine: Sequence[_Ours], known: Mapping[Key, Label], true: Any, said: Any, groups: Sequence[str]
) -> Corrected:
    f, where = [float(said) for _, said, _ in mine], [group for _, _, group in mine]
    y = [float(bool(known[key].answer)) if key in known else np.nan for key, _, _ in mine]
    has = [i for i, value in enumerate(y) if not np.isnan(value)]
    return Corrected(
        name,
        cluster_share(f, where),
        rogan_gladen(f, where, true, said, groups),
        prediction_powered(f, y, where),
        len(has),
        cluster_share([y[i] for i in has], [where[i] for i in has]) if has else None,
    )
