"""How well a judge answers, on labels: accuracy, balanced accuracy, AUROC, calibration, with intervals that count groups.

Every figure but the calibration error is a mean of each question's influence, so that `vsf.stats.cluster_mean` gives it a
cluster-robust error with its correction for few groups: for AUROC these are the placement values of DeLong et al. (1988),
summed by cluster as in Obuchowski (1997). The expected calibration error (Naeini et al. 2015, of P(yes) in 15 equal bins) has
percentiles of a bootstrap over whole groups; it is above 0 also for who is calibrated, the more the fewer questions there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import plain
from ..stats import Interval, cluster_mean, cluster_share, cohen_kappa
from .agreement import ADJUDICATED, Key, consensus
from .labels import Label, Labels, LabelsError

__all__ = ["Measured", "answered", "ask", "ask_and_keep", "evaluate", "kappas", "kept_as", "truth"]

BINS = 15
_PIECE = 100  # answers after which they are saved
_BY = ("asks", "damage", "category")
Answers = Mapping[Key, float | None]
"""P(yes) by picture and question; None where the judge cannot tell."""


@dataclass(frozen=True)
class Measured:
    """Figures for some questions; None where they are not defined.

    Attributes:
        by: what the questions have in common ("all", "asks", "damage", "category"), and `name` which.
        questions: that are answered; `open`: those that the judge could not answer, which count nowhere.
        yes: how many of the answered are truly yes.
        accuracy: share of right answers, yes being said from P = 0.5 on.
        balanced: mean of the shares among what is truly yes and what is truly no. None, as `auroc`, without both.
        auroc: probability that a true yes has a higher P(yes) than a true no.
        ece: expected calibration error. None, as `auroc`, for answers without probabilities.
    """

    by: str
    name: str
    questions: int
    open: int
    yes: int
    accuracy: Interval | None = None
    balanced: Interval | None = None
    auroc: Interval | None = None
    ece: Interval | None = None


def ask(
    judge: Any,
    labels: Labels,
    keys: Iterable[Key] | None = None,
    progress: Callable[[int, int], None] | None = None,
    found: dict[Key, float | None] | None = None,
) -> dict[Key, float | None]:
    """Ask a judge (`vsf.bench.judges.base.Answering`) the questions of some labels, each once.

    Args:
        found: filled with the answers, each as soon as it is there.

    Raises:
        LabelsError: the judge answers no questions but those of cases, or with what is no probability; or a picture cannot
            be read.
        JudgeError: it cannot go on.
    """
    if not hasattr(judge, "answer"):
        raise LabelsError(f"{type(judge).__name__} cannot be asked the questions of labels: it has no `answer`")
    wanted = None if keys is None else set(keys)
    todo = {label.key: label for label in labels if wanted is None or label.key in wanted}
    found = {} if found is None else found
    for done, (key, label) in enumerate(todo.items(), 1):
        p = judge.answer(labels.picture(label), label.question, asks=label.asks, item=label.item)
        if p is not None and not 0 <= p <= 1:  # nan would count as a no
            raise LabelsError(f"{type(judge).__name__} answered {p!r}; allowed: a probability from 0 to 1, or None")
        found[key] = None if p is None else float(p)
        if progress:
            progress(done, len(todo))
    return found


def ask_and_keep(
    judge: Any, name: str, folder: str | Path, keys: Iterable[Key], progress: Callable[[int, int], None] | None = None
) -> dict[Key, float | None]:
    """Ask a judge and keep its answers among the labels of a folder, as an annotator's; what is there is not asked again.

    Saved every 100 answers, and when the judge stops, so that somebody else's interruption costs little. Who answered (what
    `about` says) becomes part of the labels' source.

    Raises:
        LabelsError: another judge has this name, or as `ask`.
        JudgeError: as `ask`; what was answered is kept.
        OSError: the folder cannot be written.
    """
    labels = Labels.open(folder)
    about = f"{name}: {json.dumps(plain(judge.about()), sort_keys=True)}"
    if any(line.startswith(f"{name}: ") and line != about for line in labels.source):
        raise LabelsError(f"{name!r} in {folder} is a judge with other settings; give this one another name")
    wanted = list(keys)
    there = answered(labels, name) if name in labels.annotators else {}
    found = {key: there[key] for key in wanted if key in there}
    todo = [key for key in wanted if key not in there]
    for start in range(0, len(todo), _PIECE):
        new: dict[Key, float | None] = {}
        try:
            ask(judge, labels, todo[start : start + _PIECE], found=new)
        finally:
            if new:
                labels = kept_as(name, new, Labels.open(folder), [about])  # others may have added to it
                labels.save(folder)
        found |= new
        if progress:
            progress(len(found), len(wanted))
    return found


def answered(labels: Labels, annotator: str) -> dict[Key, float | None]:
    """What an annotator of the labels answered. Raises LabelsError for an unknown name."""
    return {label.key: label.yes for label in labels.of(annotator)}


def truth(labels: Labels, annotator: str | None = None, without: Iterable[str] = ()) -> dict[Key, Label]:
    """What is taken for true: one annotator's yes and no, or the consensus of all but some.

    Raises:
        LabelsError: an unknown annotator, or nothing is known.
    """
    if annotator is not None:
        found = {label.key: label for label in labels.of(annotator) if label.answer is not None}
    else:
        found = consensus(labels, list(without))
    if not found:
        raise LabelsError("no question has an answer that could be taken for true")
    return found


def kept_as(annotator: str, answers: Answers, labels: Labels, source: Sequence[str] = ()) -> Labels:
    """The labels with these answers among them, as an annotator's. Raises LabelsError: that one has said otherwise."""
    asked = {label.key: label for label in labels}
    new = [
        replace(
            asked[key], annotator=annotator, answer=None if p is None else p >= 0.5, seconds=None,
            confidence=None if p is None else max(p, 1 - p),
        )
        for key, p in answers.items()
    ]  # fmt: skip
    return labels.merge(labels.only(new, source)) if new else labels


def evaluate(true: Mapping[Key, Label], answers: Answers, level: float = 0.95, seed: int = 0) -> list[Measured]:
    """Figures over all questions that have a true answer and that were asked, then by `asks`, `damage` and `category`.

    Raises:
        LabelsError: not one question is in both.
    """
    asked = [label for key, label in true.items() if key in answers]
    if not asked:
        raise LabelsError("the judge was asked none of the questions whose true answers are known")
    rows = [_measure("all", "all", asked, answers, level, seed)]
    for by in _BY:
        names = sorted({str(getattr(label, by)) for label in asked})
        if len(names) > 1:
            rows += [
                _measure(by, name or "not known", [o for o in asked if getattr(o, by) == name], answers, level, seed)
                for name in names
            ]
    return rows


def _measure(by: str, name: str, asked: list[Label], answers: Answers, level: float, seed: int) -> Measured:
    said = [(label, p) for label in asked if (p := answers[label.key]) is not None]
    p = np.array([p for _, p in said], dtype=np.float64)
    y = np.array([bool(label.answer) for label, _ in said], dtype=bool)
    groups = np.array([label.group or label.image for label, _ in said], dtype=str)
    row = Measured(by, name, len(said), len(asked) - len(said), int(y.sum()))
    if not said:
        return row
    right = (p >= 0.5) == y
    row = replace(row, accuracy=cluster_share(right, groups, level))
    soft = not np.isin(p, (0.0, 1.0)).all()
    if y.any() and not y.all():
        row = replace(row, balanced=_linear(*_balanced(right, y), groups, level))
        if soft:
            row = replace(row, auroc=_linear(*_auroc(p, y), groups, level))
    return replace(row, ece=_ece(p, y, groups, level, seed)) if soft else row


def _linear(value: float, influence: NDArray[np.float64], groups: NDArray[Any], level: float) -> Interval:
    """The interval of a figure between 0 and 1 from each question's influence [N] on it, the mean of which is 0.

    Student's t around the log-odds of the figure (delta method), which keeps the level where groups differ much: around the
    figure itself 93 % of the intervals held the truth in simulation, and 94.5 % so.
    """
    around = cluster_mean(value + influence, groups, level)
    half = around.high - value
    if not 0 < value < 1 or not np.isfinite(half):  # one group, or all alike
        return cluster_mean(value + influence, groups, level, (0.0, 1.0))
    odds, half = np.log(value / (1 - value)), half / (value * (1 - value))
    low, high = (float(1 / (1 + np.exp(-x))) for x in (odds - half, odds + half))
    return replace(around, mean=value, low=low, high=high)


def _balanced(right: NDArray[np.bool_], y: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]]:
    rates = {true: float(right[y == true].mean()) for true in (True, False)}
    influence = np.empty(len(y))
    for true, rate in rates.items():
        influence[y == true] = (right[y == true] - rate) * len(y) / (2 * (y == true).sum())
    return (rates[True] + rates[False]) / 2, influence


def _auroc(p: NDArray[np.float64], y: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]]:
    from scipy.stats import rankdata

    n1, n0 = int(y.sum()), int((~y).sum())
    ranks = rankdata(p)
    above = (ranks[y] - rankdata(p[y])) / n0  # share of the true no's below each true yes, ties by half
    below = 1 - (ranks[~y] - rankdata(p[~y])) / n1
    value = float(above.mean())
    influence = np.empty(len(y))
    influence[y], influence[~y] = (above - value) * len(y) / n1, (below - value) * len(y) / n0
    return value, influence


def _ece(
    p: NDArray[np.float64], y: NDArray[np.bool_], groups: NDArray[Any], level: float, seed: int, resamples: int = 2000
) -> Interval:
    names, index = np.unique(groups, return_inverse=True)
    gaps = np.zeros((len(names), BINS))
    np.add.at(gaps, (index, np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], p)), p - y)
    sizes = np.bincount(index).astype(np.float64)
    value = float(np.abs(gaps.sum(0)).sum() / len(p))
    if len(names) == 1:
        return Interval(value, 0.0, 1.0, len(p), 1)
    times = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), resamples)
    drawn = np.abs(times @ gaps).sum(1) / (times @ sizes)
    low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value, min(float(low), value), max(float(high), value), len(p), len(names))


def kappas(labels: Labels, answers: Answers, without: Iterable[str] = ()) -> dict[str, Interval]:
    """Cohen's kappa of a judge with every annotator of the labels with whom it is defined, by their names."""
    found: dict[str, Interval] = {}
    for name in labels.annotators:
        both = [
            (label.answer, p >= 0.5, label.group or label.image)
            for label in labels.of(name)
            if label.answer is not None and (p := answers.get(label.key)) is not None
        ]
        if name not in (*without, ADJUDICATED) and len({value for a, b, _ in both for value in (a, b)}) == 2:
            ours, theirs, groups = (np.array(column) for column in zip(*both, strict=True))
            found[name] = cohen_kappa(ours, theirs, groups)
    return found
