"""From answers to figures: scores with intervals, paired tests, agreement of judges, trade-offs, cost.

Everything is clustered by case: the seeds of one prompt hang together. A picture that was not drawn or not judged
counts as neither good nor bad; it is left out of a score, and its pair out of a comparison, and it is counted.
docs/bench/statistics.md says what each figure assumes.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .. import stats
from ..guidance import METHODS
from ..stats import Interval
from .cases import Case
from .run import Answer, Point, Run, RunError

__all__ = [
    "METRICS", "QUESTIONS", "TESTED", "Agreement", "Comparison", "Cost", "Metric", "Results", "agreement", "compare",
    "group_of", "is_ablation", "markdown", "tradeoff",
]  # fmt: skip

_CaseSeed = tuple[str, int]


@dataclass(frozen=True)
class Metric:
    """A figure of one picture (or of one picture and its control), averaged over a point's pictures.

    Attributes:
        binary: only 0 and 1 occur; then intervals are Wilson's at the effective sample size.
        more: +1 if more is better, -1 if less is.
    """

    name: str
    label: str
    help: str
    binary: bool = True
    more: int = 1
    bounds: tuple[float, float] = (0.0, 1.0)


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("positive", "positive", "the main object is there (question 1)"),
        Metric("negative", "negative", "the unwanted part is missing (question 2)"),
        Metric("quality", "quality", "quality of the picture, 0 to 1", binary=False),
        Metric("negative_unrelated", "unrelated", "the part is missing although the negative was about something else",
               more=-1),
        Metric("specificity", "specificity", "negative minus unrelated, same case and noise: what the negative meant",
               binary=False, bounds=(-1.0, 1.0)),
        Metric("retention", "retention", "share of the object's other parts that are still there", binary=False),
        Metric("identity", "identity", "it is still that object, whatever its colour or setting"),
        Metric("joint", "joint", "object there, part missing, and quality above the threshold, all in one picture"),
        Metric("intact", "intact", "with the unrelated negative: object there, part there, quality above the threshold"),
        Metric("balanced", "balanced", "half of joint plus half of intact: the sweep's default objective",
               binary=False),
    )
}  # fmt: skip
"""Every figure by its name, in the order of tables: the three published ones, then the controls."""

TESTED = ("positive", "negative", "quality", "specificity", "retention", "joint", "balanced")
"""Figures that are compared with the reference. With the points they make the family that Holm's correction is for."""

QUESTIONS = ("answer_1", "answer_2", "identity")
"""Yes/no answers on which judges can agree."""


def _value(metric: str, true: Answer | None, other: Answer | None, threshold: float) -> float | None:
    """The figure of one (case, seed) from the answers to its two pictures; None where one that is needed is missing."""

    def both(answer: Answer | None, gone: bool) -> float | None:
        if answer is None or answer.answer_1 is None or answer.answer_2 is None or answer.quality is None:
            return None
        return float(answer.answer_1 and answer.answer_2 is gone and answer.quality >= threshold)

    def need(*parts: float | bool | None) -> list[float] | None:
        return None if any(p is None for p in parts) else [float(p) for p in parts if p is not None]

    if metric == "joint":
        return both(true, True)
    if metric == "intact":
        return both(other, False)
    if metric == "balanced":
        pair = need(both(true, True), both(other, False))
        return None if pair is None else sum(pair) / 2
    if metric == "specificity":
        pair = need(true and true.answer_2, other and other.answer_2)
        return None if pair is None else pair[0] - pair[1]
    answer = other if metric == "negative_unrelated" else true
    field = {
        "positive": "answer_1", "negative": "answer_2", "negative_unrelated": "answer_2", "quality": "quality",
        "retention": "kept", "identity": "identity",
    }[metric]  # fmt: skip
    value = None if answer is None else getattr(answer, field)
    return None if value is None else float(value)


def is_ablation(point: Point) -> bool:
    """Whether a point leaves something out of a method, rather than being one: see `vsf.bench.ablations`.

    By its method, or by its name: points whose name begins with "ablation" (VSF with offset 0 is one).
    """
    return point.method not in METHODS or point.name.startswith("ablation")


def group_of(name: str) -> str:
    """The curve a point belongs to: its name up to the first comma or plus ("vsf+strong", "vsf,scale=2": "vsf").

    What another run made under other conditions is a curve of its own ("vsf+2@run": "vsf@run").
    """
    own, at, run = name.partition("@")
    return re.split(r"[,+]", own, maxsplit=1)[0] + at + run


_CHANCE = ("seed", "spent")
"""What a run notes about a judge that is not part of who it is."""


def _made(run: Run, point: Point) -> tuple[Any, ...]:
    """All that a plan says of a point's pictures but for case and noise."""
    plan = run.plan
    return (
        point.name, dict(point.settings), plan.model, plan.revision, plan.dtype, plan.size, dict(plan.extra),
        plan.steps if point.steps is None else point.steps,
        plan.guidance_scale if point.guidance_scale is None else point.guidance_scale,
    )  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What a point's pictures cost. Seconds are per picture: median, lower and upper quartile; memory is in bytes."""

    seconds: float
    low: float
    high: float
    peak_memory: float | None
    n: int


class Results:
    """One judge's answers to one or more runs, by point.

    Points of the same name in several runs are one point if the same picture would come of them: equal settings, model,
    steps, size and whatever else the plans say of a picture. Otherwise the later one is called `NAME@RUN`.

    Attributes:
        points: by name, in the order of the runs.
        threshold: the quality from which a picture counts as whole: the judge's own, else 0.5.
        answers: point -> (case, seed, kind) -> answer that was given.
        unjudged: point -> reason -> number of pictures, "not asked yet" and "not drawn yet" among them.
    """

    def __init__(self, runs: Sequence[Run], judge: str) -> None:
        self.runs, self.judge = tuple(runs), judge
        self.about = runs[0].judge(judge)
        self.threshold = float(self.about.get("threshold", 0.5))
        self.points: dict[str, Point] = {}
        self.cases: dict[str, Case] = {}
        self.answers: dict[str, dict[tuple[str, int, str], Answer]] = {}
        self.unjudged: dict[str, Counter[str]] = {}
        self.where: dict[tuple[str, str, int, str], Run] = {}  # point, case, seed, kind
        self._units: dict[str, list[tuple[Run, str]]] = {}
        self._made: dict[str, tuple[Any, ...]] = {}
        for run in self.runs:
            about = run.judge(judge)
            if differ := [
                k for k in {**self.about, **about} if k not in _CHANCE and about.get(k) != self.about.get(k)
            ]:
                raise RunError(
                    f"judge {judge!r} is not the same in {run.folder} as in {runs[0].folder} (other {', '.join(differ)})"
                )
            for case in run.plan.cases:
                if self.cases.setdefault(case, run.case[case]) != run.case[case]:
                    raise RunError(f"case {case!r} is not the same in {run.folder} as in the runs before")
            self._add(run)

    @classmethod
    def load(cls, runs: Sequence[Run], judge: str | None = None) -> Results:
        """The answers of `judge`, or of the only judge of all the runs.

        Raises:
            RunError: no run, no such judge, several judges and none was chosen, or runs that do not fit together.
        """
        if not runs:
            raise RunError("no run was given")
        common = [name for name in runs[0].judges() if all(name in run.judges() for run in runs)]
        if judge is None:
            if not common:
                lacking = next((run for run in runs if not run.judges()), None)
                where = f"{lacking.folder} was judged by nobody" if lacking else "no judge saw all of these runs"
                raise RunError(f"{where}; judge first (vsf bench judge)")
            if len(common) > 1:
                raise RunError(f"several judges saw these runs; choose one with --judge: {', '.join(common)}")
            judge = common[0]
        elif judge not in common:
            raise RunError(
                f"judge {judge!r} has not judged all of these runs; those who have: {', '.join(common) or 'none'}"
            )
        return cls(runs, judge)

    def _add(self, run: Run) -> None:
        names: dict[str, str] = {}
        for point in run.plan.points:
            name, made = point.name, _made(run, point)
            if self._made.get(name, made) != made:
                name = f"{name}@{run.folder.resolve().name}"
                if name in self.points:
                    raise RunError(f"two points are named {name}; rename one of the runs' folders")
            names[point.name] = name
            self.points.setdefault(name, point)
            self._made.setdefault(name, made)
            self.answers.setdefault(name, {})
            self._units.setdefault(name, [])
            self.unjudged.setdefault(name, Counter())
        drawn, store = run.records.keys(), run.answers(self.judge)
        asked = store.keys()
        for unit in run.plan.units:
            name, key = names[unit.point], (unit.case, unit.seed, unit.kind)
            if (name, *key) in self.where:
                continue  # another run has this very picture
            self.where[(name, *key)] = run
            if unit.id not in drawn:
                self.unjudged[name]["not drawn yet"] += 1
                continue
            self._units[name].append((run, unit.id))
            if unit.id not in asked:
                self.unjudged[name]["not asked yet"] += 1
                continue
            answer = Answer.from_dict(store.get(unit.id))
            if answer.status == "judged":
                self.answers[name][key] = answer
            else:
                self.unjudged[name][(answer.reason or "no reason given").partition(":")[0]] += 1

    @cached_property
    def records(self) -> dict[str, list[dict[str, Any]]]:
        """How every drawn picture was made, by point."""
        return {name: [run.records.get(id) for run, id in units] for name, units in self._units.items()}

    def pair(self, point: str, case: str, seed: int) -> tuple[Answer | None, Answer | None]:
        """The answers to a picture and to its control; without guidance both are the same picture."""
        answers = self.answers[point]
        true = answers.get((case, seed, "true"))
        return true, true if self.points[point].method == "none" else answers.get((case, seed, "unrelated"))

    def values(self, point: str, metric: str) -> dict[_CaseSeed, float]:
        """The figure of every (case, seed) that has one. KeyError for an unknown point or metric."""
        METRICS[metric]
        found: dict[_CaseSeed, float] = {}
        for case, seed in dict.fromkeys((case, seed) for case, seed, _ in self.answers[point]):
            value = _value(metric, *self.pair(point, case, seed), self.threshold)
            if value is not None:
                found[case, seed] = value
        return found

    def interval(self, point: str, metric: str, level: float = 0.95) -> Interval | None:
        """The mean of a figure with its interval, clustered by case; None where the judge gave none."""
        values = self.values(point, metric)
        if not values:
            return None
        numbers, clusters = list(values.values()), [case for case, _ in values]
        if METRICS[metric].binary:
            return stats.cluster_proportion(numbers, clusters, level)
        return stats.cluster_mean(numbers, clusters, level, METRICS[metric].bounds)

    def scores(self, point: str, level: float = 0.95) -> dict[str, Interval]:
        """Every figure of a point that the judge gave."""
        found = {name: self.interval(point, name, level) for name in METRICS}
        return {name: interval for name, interval in found.items() if interval is not None}

    def cost(self, point: str) -> Cost | None:
        """Seconds per picture and the highest peak memory, from the records; None where none was timed."""
        seconds = [r["seconds"] for r in self.records[point] if isinstance(r.get("seconds"), (int, float))]
        if not seconds:
            return None
        low, middle, high = (float(q) for q in np.percentile(seconds, (25, 50, 75)))
        peaks = [r["peak_memory"] for r in self.records[point] if isinstance(r.get("peak_memory"), (int, float))]
        return Cost(middle, low, high, max(peaks, default=None), len(seconds))


# ---------------------------------------------------------------------------------------------------------------
# Comparisons


@dataclass(frozen=True)
class Comparison:
    """One point against the reference in one figure, over the (case, seed) pairs that both have.

    Attributes:
        difference: point minus reference, with a 95 % interval clustered by case.
        p: two-sided, by flipping the signs of whole cases: the inference to rely on. `p_holm`: corrected for the family.
        mcnemar: exact McNemar test over all pictures, for yes/no figures. It takes the pictures of one case for
            independent, which they are not; with several seeds it is too sure of itself.
        only_point, only_reference: the discordant pairs it counts.
    """

    point: str
    reference: str
    metric: str
    difference: Interval
    p: float
    p_holm: float
    mcnemar: float | None = None
    mcnemar_holm: float | None = None
    only_point: int | None = None
    only_reference: int | None = None


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
        clusters = [case for case, _ in keys]
        width = METRICS[metric].bounds[1] - METRICS[metric].bounds[0]
        plain = Comparison(
            point, reference, metric,
            stats.cluster_mean(a - b, clusters, bounds=(-width, width)),
            stats.paired_permutation(a, b, clusters, rng, resamples),
            1.0,
        )  # fmt: skip
        if METRICS[metric].binary:
            plain = replace(
                plain,
                mcnemar=stats.mcnemar_exact(a, b),
                only_point=int(np.sum((a == 1) & (b == 0))),
                only_reference=int(np.sum((a == 0) & (b == 1))),
            )
        found.append(plain)
    if not found:
        return []
    main = stats.holm([c.p for c in found])
    exact = iter(stats.holm([c.mcnemar for c in found if c.mcnemar is not None]))
    return [
        replace(c, p_holm=float(p), mcnemar_holm=None if c.mcnemar is None else float(next(exact)))
        for c, p in zip(found, main, strict=True)
    ]


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


def agreement(runs: Sequence[Run], questions: Sequence[str] = QUESTIONS) -> list[Agreement]:
    """Cohen's kappa for every two judges of these runs and every yes/no question, clustered by case."""
    said: dict[str, dict[tuple[str, str], Answer]] = {}
    for run in runs:
        for judge in run.judges():
            mine = said.setdefault(judge, {})
            for answer in run.judged(judge):
                if answer.status == "judged":
                    mine[str(run.folder), answer.unit] = answer
    found: list[Agreement] = []
    for (first, ours), (second, theirs) in itertools.combinations(sorted(said.items()), 2):
        for question in questions:
            pairs = [
                (getattr(ours[key], question), getattr(theirs[key], question), _case_of(key[1]))
                for key in ours
                if key in theirs
            ]
            pairs = [p for p in pairs if p[0] is not None and p[1] is not None]
            if not pairs:
                continue
            a, b, clusters = ([p[i] for p in pairs] for i in range(3))
            same = stats.cluster_proportion([float(x == y) for x, y in zip(a, b, strict=True)], clusters)
            kappa = stats.cohen_kappa(a, b, clusters) if len({*a, *b}) > 1 else None
            found.append(Agreement(first, second, question, len(pairs), same, kappa))
    return found


def _case_of(unit: str) -> str:
    return unit.split("/", 1)[1].rsplit("--", 2)[0]


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

    The interval is a percentile bootstrap over cases, all points of the curve together, so what the points share
    (cases and noises) stays shared. None if a point lacks one of the scores.
    """
    columns: list[tuple[dict[_CaseSeed, float], dict[_CaseSeed, float]]] = [
        (results.values(point, x), results.values(point, y)) for point in points
    ]
    if not columns or any(not a or not b for a, b in columns):
        return None
    cases = sorted({case for pair in columns for values in pair for case, _ in values})
    at = {case: i for i, case in enumerate(cases)}
    totals = np.zeros((2 * len(columns), len(cases)))
    counts = np.zeros_like(totals)
    for row, values in enumerate(values for pair in columns for values in pair):
        for (case, _), value in values.items():
            totals[row, at[case]] += value
            counts[row, at[case]] += 1

    def areas(weights: np.ndarray[Any, Any]) -> list[float]:
        with np.errstate(invalid="ignore"):
            means = (weights @ totals.T) / (weights @ counts.T)  # [R, 2 P]
        return [stats.tradeoff_area(m[0::2], m[1::2], low, high) for m in means if np.isfinite(m).all()]

    area = areas(np.ones((1, len(cases))))[0]
    draws = areas(rng.multinomial(len(cases), np.full(len(cases), 1 / len(cases)), size=resamples).astype(float))
    lower, upper = (float(q) for q in np.quantile(draws, (0.5 - level / 2, 0.5 + level / 2)))
    return Interval(area, lower, upper, int(counts.sum() / 2), len(cases))


# ---------------------------------------------------------------------------------------------------------------
# Text


def cell(interval: Interval | None, digits: int = 3) -> str:
    """An interval as `.870 (.842 to .894)`; an en dash where there is none."""
    if interval is None:
        return "–"
    mean, low, high = (_short(v, digits) for v in (interval.mean, interval.low, interval.high))
    return f"{mean} ({low} to {high})"


def _short(value: float, digits: int = 3) -> str:
    if not np.isfinite(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.{digits}f}"
    text = text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
    return text.replace("-", "−")


def markdown(results: Results, points: Iterable[str] | None = None, metrics: Sequence[str] | None = None) -> str:
    """A table in the paper's format (positive, negative, quality) with the controls beside them."""
    chosen = list(points if points is not None else results.points)
    scores = {name: results.scores(name) for name in chosen}
    shown = [m for m in (metrics or METRICS) if any(m in s for s in scores.values())]
    lines = ["| method | " + " | ".join(METRICS[m].label for m in shown) + " |", "|---|" + "---|" * len(shown)]
    for name in chosen:
        cells = " | ".join(cell(scores[name].get(m)) for m in shown)
        lines.append(f"| {name.replace('|', chr(92) + '|')} | {cells} |")
    return "\n".join(lines) + "\n"


def describe(settings: Mapping[str, Any]) -> str:
    """A method's settings in one line, without what is off or left open."""
    skip = {"start": 0.0, "stop": 1.0, "layout": "paper"}
    parts = [
        f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in settings.items()
        if k != "method" and v is not None and skip.get(k) != v
    ]
    return f"{settings['method']}" + (": " + ", ".join(parts) if parts else "")
