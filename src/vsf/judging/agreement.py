"""How far annotators agree, where they do not, and what is taken for true.

Two annotators: Cohen's (1960) kappa, with `vsf.stats.cohen_kappa`'s clustered interval. More: Krippendorff's alpha (nominal;
2011, "Computing Krippendorff's Alpha-Reliability") of the krippendorff package, which takes annotators who answered some of
the questions only, with percentiles of a bootstrap over whole groups. "Cannot tell" is no answer, to both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ..libraries import install
from ..stats import Interval, cluster_share, cohen_kappa
from .labels import ASKS, Label, Labels, LabelsError

__all__ = ["ADJUDICATED", "Agreement", "agreement", "consensus", "disagreements"]

ADJUDICATED = "adjudicated"
"""The annotator under whose name decided disagreements are kept."""

Key = tuple[str, str]


@dataclass(frozen=True)
class Agreement:
    """How far some annotators agree.

    Attributes:
        asks: what was asked, one of `ASKS`, or "all".
        annotators: who.
        questions: that at least two of them answered by yes or no; `groups`: those are about.
        same: share of pairs of answers that are equal.
        kind: "kappa" or "alpha"; `value` is None where it is not defined: all gave one and the same answer, or none share
            a question.
    """

    asks: str
    annotators: tuple[str, ...]
    questions: int
    groups: int
    same: Interval | None
    kind: str
    value: Interval | None


def table(labels: Iterable[Label], annotators: Sequence[str]) -> tuple[list[Key], NDArray[np.float64], list[str]]:
    """Questions, answers [annotators, questions] as 1, 0 and NaN (not answered), and the questions' groups."""
    keys: dict[Key, int] = {}
    groups: list[str] = []
    said: list[tuple[int, int, float]] = []
    for label in labels:
        if label.key not in keys:
            keys[label.key] = len(keys)
            groups.append(label.group or label.image)
        if label.answer is not None and label.annotator in annotators:
            said.append((annotators.index(label.annotator), keys[label.key], float(label.answer)))
    answers = np.full((len(annotators), len(keys)), np.nan)
    for who, what, value in said:
        answers[who, what] = value
    return list(keys), answers, groups


def agreement(labels: Labels, annotators: Sequence[str] | None = None, seed: int = 0) -> list[Agreement]:
    """Agreement over all questions, by what they ask, and of every pair where there are more than two annotators.

    Raises:
        LabelsError: fewer than two annotators, or none of that name.
    """
    who = tuple(dict.fromkeys(annotators or (name for name in labels.annotators if name != ADJUDICATED)))
    for name in who:
        labels.of(name)
    if len(who) < 2:
        raise LabelsError(f"agreement needs two annotators; there: {', '.join(labels.annotators)}")
    kinds = [asks for asks in ASKS if any(label.asks == asks for label in labels)]
    found = [_agree("all", labels, who, seed)]
    if len(kinds) > 1:
        found += [_agree(asks, (o for o in labels if o.asks == asks), who, seed) for asks in kinds]
    if len(who) > 2:
        found += [_agree("all", labels, pair, seed) for pair in combinations(who, 2)]
    return found


def _agree(asks: str, labels: Iterable[Label], who: tuple[str, ...], seed: int) -> Agreement:
    _, answers, named = table(labels, who)
    shared = (~np.isnan(answers)).sum(0) >= 2
    answers, groups = answers[:, shared], np.array(named, dtype=object)[shared].astype(str)
    kind = "kappa" if len(who) == 2 else "alpha"
    if not answers.size:
        return Agreement(asks, who, 0, 0, None, kind, None)
    yes, no = np.nansum(answers, 0), np.nansum(1 - answers, 0)
    pairs = (yes + no) * (yes + no - 1)
    same = cluster_share((yes * (yes - 1) + no * (no - 1)) / pairs, groups)
    value: Interval | None = None
    if yes.any() and no.any():
        value = cohen_kappa(answers[0], answers[1], groups) if kind == "kappa" else _alpha(answers, groups, seed)
    return Agreement(asks, who, answers.shape[1], len(set(groups)), same, kind, value)


def _alpha(answers: NDArray[np.float64], groups: NDArray[np.str_], seed: int, resamples: int = 1000) -> Interval:
    try:
        import krippendorff
    except ImportError:
        raise LabelsError(f"Krippendorff's alpha needs the krippendorff package: {install('judge')}") from None
    # How often each question was answered by no and by yes is all that alpha depends on.
    counts = np.stack([np.nansum(1 - answers, 0), np.nansum(answers, 0)], 1).astype(np.int64)
    value = float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))
    names, index = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    values: list[float] = []
    for _ in range(resamples if len(names) > 1 else 0):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[index]
        drawn = np.repeat(counts, times, axis=0)
        if drawn[:, 0].any() and drawn[:, 1].any():
            values.append(float(krippendorff.alpha(value_counts=drawn, level_of_measurement="nominal")))
    low, high = np.quantile(values, [0.025, 0.975]) if values else (-1.0, 1.0)
    return Interval(value, min(float(low), value), max(float(high), value), len(index), len(names))


def disagreements(labels: Labels) -> list[Key]:
    """Questions that some annotator answers by yes and another by no, and that nobody decided."""
    said: dict[Key, set[bool]] = {}
    decided: set[Key] = set()
    for label in labels:
        if label.annotator == ADJUDICATED:
            decided.add(label.key)
        elif label.answer is not None:
            said.setdefault(label.key, set()).add(label.answer)
    return [key for key, answers in said.items() if len(answers) == 2 and key not in decided]


def consensus(labels: Labels, without: Sequence[str] = ()) -> dict[Key, Label]:
    """What is taken for true: what was decided, else what all annotators agree on; what is open is left out.

    Args:
        without: annotators who have no say, such as the one who is measured.
    """
    said: dict[Key, list[Label]] = {}
    for label in _with_a_say(labels, without):
        said.setdefault(label.key, []).append(label)
    found: dict[Key, Label] = {}
    for key, every in said.items():
        last = [label for label in every if label.annotator == ADJUDICATED]
        given = {label.answer for label in last or every} - ({None} if not last else set())
        if len(given) == 1 and None not in given:
            found[key] = next(label for label in last or every if label.answer is not None)
    return found


def _with_a_say(labels: Labels, without: Sequence[str]) -> Iterator[Label]:
    return (label for label in labels if label.annotator not in without)
