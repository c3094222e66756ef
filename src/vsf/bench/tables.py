"""From answers to figures: scores with intervals, and cost. `vsf.bench.compare` compares them.

Everything is clustered by the outermost group that the cases declare (`CaseSet.groups`): pictures of one object or one
category hang together, whatever their noise, colour or background. A picture that was not drawn or not judged counts as
neither good nor bad; it is left out of a score, and its pair out of a comparison, and it is counted.
docs/bench/statistics.md says what each figure assumes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .. import stats
from ..guidance import METHODS
from ..guidance import describe as in_a_line
from ..stats import Interval
from .cases import Case
from .controls import kept
from .run import Answer, Point, Run, RunError

__all__ = [
    "METRICS", "PRIMARY", "QUESTIONS", "TESTED", "CaseSeed", "Cost", "Metric", "Results", "cell", "describe", "group_of",
    "is_ablation", "markdown", "short",
]  # fmt: skip

CaseSeed = tuple[str, int]


@dataclass(frozen=True)
class Metric:
    """A figure of one picture (or of one picture and its control), averaged over a point's pictures.

    Attributes:
        more: +1 if more is better, -1 if less is.
    """

    name: str
    label: str
    help: str
    more: int = 1
    bounds: tuple[float, float] = (0.0, 1.0)


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("positive", "positive", "the main object is there (question 1)"),
        Metric("negative", "negative", "the unwanted part is missing (question 2)"),
        Metric("quality", "quality", "quality of the picture, 0 to 1"),
        Metric("negative_unrelated", "unrelated", "the part is missing although the negative was about something else",
               more=-1),
        Metric("specificity", "specificity", "negative minus unrelated, same case and noise: what the negative meant",
               bounds=(-1.0, 1.0)),
        Metric("retention", "retention", "share of the object's other parts that are still there"),
        Metric("identity", "identity", "it is still that object, whatever its colour or setting"),
        Metric("joint", "joint", "object there, part missing, and quality above the threshold, all in one picture"),
        Metric("intact", "intact", "with the unrelated negative: object there, part there, quality above the threshold"),
        Metric("balanced", "balanced", "half of joint plus half of intact; settings are chosen by it"),
        Metric("complete", "joint, parts kept", "joint, and all of the object's other parts are still there"),
        Metric("flicker", "flicker", "clips: share of changes of frame at which the verdict on the part changes", more=-1),
        Metric("motion", "motion kept", "clips: how much moves, as a share of what moves without guidance, at most 1"),
        Metric("ends", "ends", "clips: quality of the first or the last frame, the worse, minus that of the middle one",
               bounds=(-1.0, 1.0)),
    )
}  # fmt: skip
"""Every figure by its name, in the order of tables: the three published ones, then the controls."""

PRIMARY = "balanced"
"""The figure that was named before anything was drawn; all others are secondary."""

TESTED = ("positive", "negative", "quality", "specificity", "retention", "joint", "balanced")
"""Figures that are compared with the reference. With the points they make the family that Holm's correction is for."""

QUESTIONS = ("answer_1", "answer_2", "identity")
"""Yes/no answers on which judges can agree."""


def _value(
    metric: str, true: Answer | None, other: Answer | None, threshold: float, alone: bool = False
) -> float | None:
    """The figure of one (case, seed) from the answers to its two pictures; None where one that is needed is missing.

    `alone`: the case names no other parts, so that none can be lost.
    """

    def both(answer: Answer | None, gone: bool) -> float | None:
        if answer is None or answer.answer_1 is None or answer.answer_2 is None or answer.quality is None:
            return None
        return float(answer.answer_1 and answer.answer_2 is gone and answer.quality >= threshold)

    def need(*parts: float | bool | None) -> list[float] | None:
        return None if any(p is None for p in parts) else [float(p) for p in parts if p is not None]

    if metric == "joint":
        return both(true, True)
    if metric == "complete":
        pair = need(both(true, True), 1.0 if alone else true and true.kept)
        return None if pair is None else float(pair[0] == 1.0 and pair[1] == 1.0)
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
        "retention": "kept", "identity": "identity", "flicker": "flicker", "motion": "motion", "ends": "ends",
    }[metric]  # fmt: skip
    value = None if answer is None else getattr(answer, field)
    return None if value is None else float(value)


def is_ablation(point: Point) -> bool:
    """Whether a point leaves something out of a method, rather than being one: see `vsf.guidance.variants`.

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


_PLURAL = {"object": "objects", "category": "categories", "group": "groups", "case": "cases"}


class Results:
    """One judge's answers to one or more runs, by point.

    Points of the same name in several runs are one point if the same picture would come of them: equal settings, model,
    steps, size and whatever else the plans say of a picture. Otherwise the later one is called `NAME@RUN`.

    Attributes:
        points: by name, in the order of the runs.
        cases: those of the plans, by id; `groups`: the cluster of each (`CaseSet.groups`).
        unit: what clusters are called, for texts ("objects", "categories", "cases", ...).
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
        self.groups: dict[str, str] = {}
        units = {run.cases.unit for run in self.runs}
        self.unit = _PLURAL[units.pop()] if len(units) == 1 else "groups"
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
                self.groups[case] = run.cases.groups[case]
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
            # Who could judge nothing at all (a refused key, another world's pictures) is nobody to choose from.
            common = [name for name in common if any(run.has_judged(name) for run in runs)] or common
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

    @cached_property
    def noises(self) -> dict[tuple[str, str], list[int]]:
        """The seeds that were planned for every (point, case)."""
        found: dict[tuple[str, str], list[int]] = {}
        for point, case, seed, _ in self.where:
            found.setdefault((point, case), []).append(seed)
        return found

    def pair(self, point: str, case: str, seed: int) -> tuple[Answer | None, Answer | None]:
        """The answers to a picture and to its control; without guidance both are the same picture."""
        answers = self.answers[point]
        true = answers.get((case, seed, "true"))
        return true, true if self.points[point].method == "none" else answers.get((case, seed, "unrelated"))

    def values(self, point: str, metric: str) -> dict[CaseSeed, float]:
        """The figure of every (case, seed) that has one. KeyError for an unknown point or metric."""
        METRICS[metric]
        if metric == "complete" and all(answer.kept is None for answer in self.answers[point].values()):
            return {}  # this judge says nothing of other parts
        found: dict[CaseSeed, float] = {}
        for case, seed in dict.fromkeys((case, seed) for case, seed, _ in self.answers[point]):
            alone = metric == "complete" and not kept(self.cases[case])
            value = _value(metric, *self.pair(point, case, seed), self.threshold, alone)
            if metric == "motion":
                value = self._motion_kept(point, value, case, seed)
            if value is not None:
                found[case, seed] = value
        return found

    def _motion_kept(self, point: str, motion: float | None, case: str, seed: int) -> float | None:
        """Of the motion of the same clip without guidance; None where there is no such clip, or nothing moves in it.

        It is of the same model, dtype and size, and of the same steps and guidance scale if there is one of these.
        """
        plain = [name for name, other in self.points.items() if other.method == "none"]
        for made in (slice(2, None), slice(2, 7)):  # of what the plans say, see `_made`
            for name in plain:
                answer = self.answers[name].get((case, seed, "true"))
                if self._made[name][made] == self._made[point][made] and answer is not None:
                    return None if motion is None or not answer.motion else min(1.0, motion / answer.motion)
        return None

    def clusters(self, keys: Iterable[CaseSeed]) -> list[str]:
        """The cluster of each (case, seed)."""
        return [self.groups[case] for case, _ in keys]

    def interval(self, point: str, metric: str) -> Interval | None:
        """The mean of a figure with its interval, clustered by group; None where the judge gave none.

        The specificity of no guidance is 0 by definition, not by measurement: its interval has no width.
        """
        values = self.values(point, metric)
        if not values:
            return None
        numbers, clusters = list(values.values()), self.clusters(values)
        if metric == "specificity" and self.points[point].method == "none":
            return Interval(0.0, 0.0, 0.0, len(numbers), len(set(clusters)))
        if METRICS[metric].bounds == (0.0, 1.0):
            return stats.cluster_share(numbers, clusters)
        return stats.cluster_mean(numbers, clusters, bounds=METRICS[metric].bounds)

    def scores(self, point: str) -> dict[str, Interval]:
        """Every figure of a point that the judge gave."""
        found = {name: self.interval(point, name) for name in METRICS}
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
# Text


def cell(interval: Interval | None) -> str:
    """An interval with its number of clusters, as `.870 (.842 to .894; 17)`; an en dash where there is none."""
    if interval is None:
        return "–"
    mean, low, high = (short(v) for v in (interval.mean, interval.low, interval.high))
    return f"{mean} ({low} to {high}; {interval.clusters})"


def short(value: float, digits: int = 3) -> str:
    """A number without the zero before its point, as `.870`, `−.052` or `∞`."""
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
    return in_a_line({name: value for name, value in settings.items() if (name, value) != ("layout", "paper")})
