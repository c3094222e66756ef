"""Intervals, tests, agreement and trade-offs for measurements that come in clusters (pictures of one object).

Pure numpy and scipy. Pictures of one cluster are not independent draws: everything here treats the *cluster* as the
unit, and makes up for there being few of them. Randomness is handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as _scipy_stats  # pyright: ignore[reportMissingTypeStubs]

#: The cluster of each value: anything numpy can sort.
Labels = Sequence[object] | NDArray[Any]

# scipy is untyped
_scipy: Any = _scipy_stats

_EXACT = 18  # clusters up to which every sign pattern is tried


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


def _spread(x: NDArray[np.float64], index: NDArray[np.intp], g: int) -> tuple[float, float]:
    """Cluster-robust standard error of the mean of x [N] in g > 1 clusters, and its degrees of freedom.

    The error is CR2 of Bell and McCaffrey (2002), which for a mean has a closed form: with n_i values and the sum of
    deviations S_i in cluster i, ``sqrt(sum_i S_i^2 / (1 - n_i/N)) / N``. For equal clusters it is the sandwich of
    Liang and Zeger (1986) times sqrt(G/(G-1)). The degrees of freedom are Satterthwaite's for that estimator where the
    values of a cluster are all alike, the worst case: G - 1 for equal clusters, fewer for unequal ones.
    """
    sizes = np.bincount(index, minlength=g).astype(np.float64)
    n = x.size
    weights = 1 / (1 - sizes / n)
    sums = np.bincount(index, weights=x - x.mean(), minlength=g)
    error = float(np.sqrt((np.square(sums) * weights).sum()) / n)
    # S = (diag(n) - n n'/N) u for cluster values u of one variance; the estimator is sum_i w_i S_i^2 / N^2.
    rows = np.sqrt(weights)[:, None] * (np.diag(sizes) - np.outer(sizes, sizes) / n)
    form = rows @ rows.T
    return error, float(np.trace(form) ** 2 / np.square(form).sum())


def _deviating(g: int, level: float) -> float:
    """At most this share of clusters is unlike the g that were seen, all of which are alike: Clopper and Pearson's
    upper limit for none of g."""
    return 1 - (0.5 - level / 2) ** (1 / g)


def cluster_mean(
    values: ArrayLike,
    clusters: Labels,
    level: float = 0.95,
    bounds: tuple[float, float] = (-float("inf"), float("inf")),
) -> Interval:
    """Mean with a t interval of its cluster-robust standard error (CR2), cut off at what values can be (``bounds``).

    The degrees of freedom are Satterthwaite's, G - 1 for clusters of one size. Where all clusters have one mean c, the
    error is 0 but the next cluster may differ: then at most the share q = 1 - (alpha/2)^(1/G) of clusters does, and
    the interval is what that leaves, c - q (c - low) to c + q (high - c).
    """
    x, index, g = _prepare(values, clusters)
    low, high = bounds
    mean, tail = float(x.mean()), 0.5 + _level(level) / 2
    if g == 1:
        return Interval(mean, low, high, int(x.size), g)
    error, df = _spread(x, index, g)
    if error <= 1e-12 * max(1.0, abs(mean)):
        share = _deviating(g, level)
        return Interval(mean, mean - share * (mean - low), mean + share * (high - mean), int(x.size), g)
    half = float(_scipy.t.ppf(tail, df)) * error
    return Interval(mean, max(mean - half, low), min(mean + half, high), int(x.size), g)


def cluster_share(values: ArrayLike, clusters: Labels, level: float = 0.95) -> Interval:
    """Mean of ``values`` between 0 and 1, with an interval that stays inside and does not collapse at the ends.

    Korn and Graubard (1998): Clopper and Pearson's limits for ``p n_eff`` of ``n_eff`` draws, where
    ``n_eff = p (1 - p) / se^2`` with the cluster-robust error, times ``(z / t)^2`` for the few clusters that it comes from,
    and at most N where all values are 0 or 1.
    Where all clusters have one mean (se = 0) it is the number of clusters, the most cautious reading; with one cluster
    nothing is known.

    Figures near 0 or 1 in few clusters are the weak spot: as long as no cluster that fails has been seen, no variance
    estimate knows of it. docs/bench/statistics.md has the coverage by simulation.
    """
    x, index, g = _prepare(values, clusters)
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError("a share needs values between 0 and 1; use cluster_mean for others")
    n, p = int(x.size), min(1.0, max(0.0, float(x.mean())))
    tail = 0.5 + _level(level) / 2
    if g == 1:
        return Interval(p, 0.0, 1.0, n, g)
    error, df = _spread(x, index, g)
    if error <= 1e-12 or p in (0.0, 1.0):
        draws = float(g)
    else:
        draws = p * (1 - p) / error**2
        if np.isin(x, (0.0, 1.0)).all():
            draws = min(draws, float(n))
        draws *= float((_scipy.norm.ppf(tail) / _scipy.t.ppf(tail, df)) ** 2)
    hits = p * draws
    low = float(_scipy.beta.ppf(1 - tail, hits, draws - hits + 1)) if p > 0 else 0.0
    high = float(_scipy.beta.ppf(tail, hits + 1, draws - hits)) if p < 1 else 1.0
    return Interval(p, min(low, p), max(high, p), n, g)


def paired_permutation(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Labels,
    rng: np.random.Generator,
    resamples: int = 10_000,
) -> float:
    """Two-sided p-value of the paired difference when the signs of whole clusters are flipped at random.

    Exact enumeration of all 2^G sign patterns up to G = 18 (or where there are no more of them than ``resamples``);
    otherwise random patterns with the observed one counted in, ``(1 + hits) / (1 + resamples)``, which cannot be 0.
    With G clusters no p-value can be below ``2 / 2^G``.
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
    hits = 0
    if g <= _EXACT or (g < 60 and 2**g <= resamples):
        # A pattern and its opposite give one sum up to its sign: the last cluster's need not be flipped.
        for start in range(0, 2 ** (g - 1), 4096):
            pattern = np.arange(start, min(start + 4096, 2 ** (g - 1)))
            signs: NDArray[Any] = ((pattern[:, None] >> np.arange(g)) & 1) * 2 - 1
            hits += int(np.sum(np.abs(signs @ sums) >= observed - slack))
        return hits / 2 ** (g - 1)
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
    so that :func:`cluster_mean` makes it cluster-robust. Where the raters agree on every item that error is 0; the lower
    limit then comes from the interval of po instead, so that few items do not look like proof.

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
        low = (cluster_share(agree, clusters, level).low - pe) / (1 - pe)
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
