"""Intervals, tests, agreement and trade-offs for measurements that come in clusters (several seeds of one case).

Pure numpy and scipy. Images of one case share the prompt, so they are not independent draws: every interval here
treats the *case* as the unit (cluster-robust variance). Randomness is handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as _scipy_stats  # pyright: ignore[reportMissingTypeStubs]

#: The cluster of each value: anything numpy can sort.
Labels = Sequence[object] | NDArray[Any]

# scipy is untyped
_scipy: Any = _scipy_stats


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence limits, from ``n`` values in ``clusters`` clusters."""

    mean: float
    low: float
    high: float
    n: int
    clusters: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_dict(self) -> dict[str, float | int]:
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n, "clusters": self.clusters}


def _prepare(values: ArrayLike, clusters: Labels) -> tuple[NDArray[np.float64], NDArray[np.intp], int]:
    x = np.asarray(values, dtype=np.float64)
    labels: NDArray[Any] = np.asarray(clusters)
    if x.ndim != 1 or labels.shape != x.shape:
        raise ValueError(f"values and clusters must be 1-D and of one length, got {x.shape} and {labels.shape}")
    if x.size == 0:
        raise ValueError("values is empty; at least one value is needed")
    if not np.isfinite(x).all():
        raise ValueError("values holds NaN or infinity; leave out what could not be judged")
    index: NDArray[np.intp] = np.unique(labels, return_inverse=True)[1]
    return x, index, int(index.max()) + 1


def _level(level: float) -> float:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    return level


def cluster_se(values: ArrayLike, clusters: Labels) -> float:
    """Cluster-robust standard error of the mean of ``values`` [N].

    ``sqrt(G/(G-1) * sum_g (sum_{i in g} (x_i - mean))^2) / N`` for G clusters: the sandwich estimator of Liang and
    Zeger (1986) for a regression on a constant, with the usual small-sample factor G/(G-1). Infinite for G = 1.
    """
    x, index, g = _prepare(values, clusters)
    if g == 1:
        return float("inf")
    sums = np.bincount(index, weights=x - x.mean(), minlength=g)
    return float(np.sqrt(g / (g - 1) * np.square(sums).sum()) / x.size)


def cluster_mean(
    values: ArrayLike,
    clusters: Labels,
    level: float = 0.95,
    bounds: tuple[float, float] = (-float("inf"), float("inf")),
) -> Interval:
    """Mean with a t interval on G - 1 degrees of freedom around :func:`cluster_se`, cut off at what values can be."""
    x, _, g = _prepare(values, clusters)
    wide = float(_scipy.t.ppf(0.5 + _level(level) / 2, max(1, g - 1)))
    half = wide * cluster_se(values, clusters)
    mean = float(x.mean())
    return Interval(mean, max(mean - half, bounds[0]), min(mean + half, bounds[1]), int(x.size), g)


def cluster_proportion(values: ArrayLike, clusters: Labels, level: float = 0.95) -> Interval:
    """Proportion of ones in 0/1 ``values`` with a Wilson interval at the effective sample size.

    The effective size is ``n_eff = p (1 - p) / se^2`` with :func:`cluster_se`, at most N; where every value is the
    same (se = 0) it is the number of clusters, the most cautious reading. The score interval stays inside [0, 1] and
    does not collapse at 0 or 1, which a t interval does (Korn and Graubard 1998 make the same substitution).
    """
    x, _, g = _prepare(values, clusters)
    if not np.isin(x, (0.0, 1.0)).all():
        raise ValueError("a proportion needs 0/1 values; use cluster_mean for others")
    n, p, se = int(x.size), float(x.mean()), cluster_se(values, clusters)
    if g == 1 or p in (0.0, 1.0):
        n_eff = float(g)
    elif se == 0.0:
        # Every cluster has the same mean: between-cluster noise is not seen, so no gain over N independent draws.
        n_eff = float(n)
    else:
        n_eff = min(float(n), p * (1 - p) / se**2)
    z2 = float(_scipy.norm.ppf(0.5 + _level(level) / 2)) ** 2
    centre = (p + z2 / (2 * n_eff)) / (1 + z2 / n_eff)
    half = np.sqrt(z2 * (p * (1 - p) / n_eff + z2 / (4 * n_eff**2))) / (1 + z2 / n_eff)
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), n, g)


def paired_difference(a: ArrayLike, b: ArrayLike, clusters: Labels, level: float = 0.95) -> Interval:
    """Mean of ``a - b`` over matched pairs [N] (same case, same noise), clustered, with :func:`cluster_mean`."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values must match one to one, got shapes {first.shape} and {second.shape}")
    return cluster_mean(first - second, clusters, level)


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided exact McNemar p-value for paired 0/1 outcomes [N]: a sign test on the discordant pairs.

    Needs independent pairs, so one pair per case; with several seeds per case use :func:`paired_permutation`.
    """
    first, second = np.asarray(a), np.asarray(b)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"paired values must be 1-D and of one length, got {first.shape} and {second.shape}")
    if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        raise ValueError("McNemar's test needs 0/1 (or boolean) outcomes")
    only_a = int(np.sum((first == 1) & (second == 0)))
    only_b = int(np.sum((first == 0) & (second == 1)))
    if only_a + only_b == 0:
        return 1.0
    return float(_scipy.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def paired_permutation(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Labels,
    rng: np.random.Generator,
    resamples: int = 10_000,
) -> float:
    """Two-sided p-value of the paired difference when the signs of whole clusters are flipped at random.

    Exact enumeration of all 2^G sign patterns where there are no more of them than ``resamples``; otherwise random
    patterns with the observed one counted in, ``(1 + hits) / (1 + resamples)``, which cannot be 0.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values must match one to one, got shapes {first.shape} and {second.shape}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    x, index, g = _prepare(first - second, clusters)
    sums = np.bincount(index, weights=x, minlength=g)
    observed = abs(sums.sum())
    slack = 1e-9 * max(1.0, float(np.abs(sums).sum()))  # equal sums may differ in the last bits
    if g < 60 and 2**g <= resamples:
        signs: NDArray[Any] = np.array(list(product((-1, 1), repeat=g)))
        return float(np.mean(np.abs(signs @ sums) >= observed - slack))
    hits = 0
    for start in range(0, resamples, 1000):
        signs = rng.integers(0, 2, size=(min(1000, resamples - start), g)) * 2 - 1
        hits += int(np.sum(np.abs(signs @ sums) >= observed - slack))
    return (1 + hits) / (1 + resamples)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's (1979) step-down adjusted p-values, in the order given; compare each with the family-wise level."""
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p_values must be a 1-D list of numbers in [0, 1]")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * (p.size - np.arange(p.size)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def cohen_kappa(a: ArrayLike, b: ArrayLike, clusters: Labels, level: float = 0.95) -> Interval:
    """Cohen's (1960) kappa of two raters' categories [N], with a clustered interval.

    ``kappa = (po - pe) / (1 - pe)``: agreement po beyond the agreement pe that raters with these margins would reach by
    guessing. The standard error is that of Fleiss, Cohen and Everitt (1969), written as each item's influence on kappa,
    so that :func:`cluster_se` makes it cluster-robust. Where the raters agree on every item that error is 0; the lower
    limit then comes from the Wilson interval of po instead, so that few items do not look like proof.

    Raises:
        ValueError: not one pair per item, or both raters always gave one and the same answer (pe = 1: undefined).
    """
    first, second = np.asarray(a), np.asarray(b)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"two raters' answers must be 1-D and of one length, got {first.shape} and {second.shape}")
    agree, index, g = _prepare(first == second, clusters)
    _, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
    n, k = first.size, int(codes.max()) + 1
    i, j = codes[:n], codes[n:]
    p, q = np.bincount(i, minlength=k) / n, np.bincount(j, minlength=k) / n
    po, pe = float(agree.mean()), float(p @ q)
    if k == 1:
        raise ValueError("kappa is undefined: both raters always gave the same one answer")
    kappa = (po - pe) / (1 - pe)
    if po == 1.0:
        low = (cluster_proportion(agree, clusters, level).low - pe) / (1 - pe)
        return Interval(1.0, low, 1.0, n, g)
    influence = (agree - po) / (1 - pe) - (1 - po) / (1 - pe) ** 2 * (q[i] + p[j] - 2 * pe)
    around = cluster_mean(influence, index, level)
    return Interval(kappa, max(-1.0, kappa + around.low), min(1.0, kappa + around.high), n, g)


def pareto_front(points: ArrayLike) -> NDArray[np.intp]:
    """Indices of the points [N, K] that no other point beats, more being better on every axis; ascending in axis 0.

    A point is beaten if another is at least as good on every axis and better on one; equal points stay together.
    """
    x = np.asarray(points, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"points must be finite and of shape [N, K], got shape {x.shape}")
    beats = (x[:, None] >= x[None]).all(-1) & (x[:, None] > x[None]).any(-1)
    free = np.flatnonzero(~beats.any(0))
    return free[np.argsort(x[free, 0], kind="stable")]


def tradeoff_area(
    x: ArrayLike, y: ArrayLike, low: tuple[float, float] = (0.0, 0.0), high: tuple[float, float] = (1.0, 1.0)
) -> float:
    """Share of the box from ``low`` to ``high`` in which some point is at least as good on both axes, in [0, 1].

    With x and y two scores [N] of which more is better, this is the area under the staircase through the Pareto front
    (the hypervolume of Zitzler and Thiele 1998, divided by the box): no setting that was not tried is credited, and the
    limits do not depend on the points. It never falls when a point is added, so compare curves of as many points.
    """
    points = np.stack([np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)], axis=-1)
    (x0, y0), (x1, y1) = low, high
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ValueError("x and y must be 1-D, of one length and finite")
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"the box must have an area, got {low} to {high}")
    inside = np.clip(points, (x0, y0), (x1, y1))
    inside = inside[np.argsort(-inside[:, 0], kind="stable")]  # from the right: a step adds what is above those before
    area, top = 0.0, y0
    for px, py in inside:
        if py > top:
            area += (px - x0) * (py - top)
            top = py
    return float(area / ((x1 - x0) * (y1 - y0)))
