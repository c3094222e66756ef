"""The statistics against their definitions, an independent package where there is one, and simulation.

Everything is float64. `rel=1e-12` is a sum of up to 10^4 terms in another order, `rel=1e-9` also a quantile, which both
sides find by iteration to about 1e-10, and pytest's own 1e-6 is for numbers that are written out. A simulation may be off by
its own standard error, four times.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from vsf import stats


def clustered(rng, g=30, k=4, p=None):
    """0/1 values whose clusters have their own rates, so that values of one cluster hang together."""
    rates = rng.beta(1.5, 1.0, size=g) if p is None else np.full(g, p)
    return rng.binomial(1, np.repeat(rates, k)).astype(float), np.repeat(np.arange(g), k)


def uneven(rng, sizes=(14, 12, 12, 9, 8, 7, 5, 4, 4, 3)):
    """Values whose clusters have a level of their own and unequal sizes, with the cluster of each."""
    c = np.repeat(np.arange(len(sizes)), sizes)
    return rng.normal(size=len(c)) + rng.normal(size=len(sizes))[c], c


def cluster_se(x, c):
    return stats._spread(*stats._prepare(x, c))[0]


def test_cluster_se_matches_the_pairwise_definition():
    rng = np.random.default_rng(0)
    x, c = clustered(rng)
    g, n = len(set(c)), len(x)
    total = sum((x[i] - x.mean()) * (x[j] - x.mean()) for i, j in product(range(n), range(n)) if c[i] == c[j])
    assert cluster_se(x, c) == pytest.approx(np.sqrt(g / (g - 1) * total) / n, rel=1e-12)


def test_unequal_clusters_get_the_bias_reduced_sandwich_and_its_degrees_of_freedom():
    x, c = uneven(np.random.default_rng(1))
    n, g = len(x), c.max() + 1
    # CR2 by its matrices: A_i = (I - H_ii)^(-1/2) of the hat matrix H = 11'/N, and the regressor is the constant.
    hat = np.full((n, n), 1 / n)
    columns = []
    for i in range(g):
        at = np.flatnonzero(c == i)
        values, vectors = np.linalg.eigh(np.eye(len(at)) - hat[np.ix_(at, at)])
        adjust = vectors @ np.diag(values**-0.5) @ vectors.T
        columns.append((np.eye(n) - hat)[:, at] @ adjust @ np.ones(len(at)) / n)
    influence = np.stack(columns)  # [G, N]: the variance estimate is the sum of (influence x)^2
    assert cluster_se(x, c) == pytest.approx(np.sqrt(np.square(influence @ x).sum()), rel=1e-12)
    # Satterthwaite: twice the squared mean over the variance of that quadratic form, where a cluster is all alike.
    alike = (c[:, None] == c).astype(float)
    form = influence @ alike @ influence.T
    df = np.trace(form) ** 2 / np.square(form).sum()
    t = pytest.importorskip("scipy.stats").t.ppf(0.975, df)
    i = stats.cluster_mean(x, c)
    assert (i.high - i.low) / 2 == pytest.approx(t * cluster_se(x, c), rel=1e-9)
    assert df < g - 1.5  # G - 1 would promise too much here


def test_cluster_mean_matches_statsmodels():
    sm = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(1)
    x = rng.normal(size=90) + np.repeat(rng.normal(size=30), 3)
    c = np.repeat(np.arange(30), 3)
    fit = sm.OLS(x, np.ones((90, 1))).fit(cov_type="cluster", cov_kwds={"groups": c}, use_t=True)
    ours = stats.cluster_mean(x, c)
    low, high = fit.conf_int()[0]
    assert (ours.mean, ours.low, ours.high) == pytest.approx((fit.params[0], low, high), rel=1e-9)


def test_one_value_per_cluster_is_the_ordinary_standard_error():
    x = np.random.default_rng(2).normal(size=50)
    assert cluster_se(x, np.arange(50)) == pytest.approx(x.std(ddof=1) / np.sqrt(50))


def test_copies_of_a_case_add_no_precision():
    x = np.random.default_rng(3).random(20)
    for interval in (stats.cluster_mean, stats.cluster_share):
        one = interval(x, np.arange(20))
        many = interval(np.repeat(x, 10), np.repeat(np.arange(20), 10))
        assert (many.low, many.high) == pytest.approx((one.low, one.high))


RUNS = 600
#: docs/bench/statistics.md: .933 or more at rates of .5 and .8. Less three standard errors of the simulation.
PROMISED = 0.933 - 3 * np.sqrt(0.95 * 0.05 / RUNS)


def cover(interval, draw, truth, runs=RUNS):
    """The share of `runs` intervals that hold the truth."""
    return np.mean([(i := interval(*draw())).low - 1e-12 <= truth <= i.high + 1e-12 for _ in range(runs)])


#: Sizes as in the demo set (10 objects of 4 to 14 cases, 4 noises each), ten equal categories, and many pairs.
DESIGNS = {"uneven": (56, 48, 48, 44, 36, 32, 28, 20, 20, 16), "ten": (60,) * 10, "thirty": (20,) * 30}


@pytest.mark.parametrize("alike", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("rate", [0.5, 0.8])
@pytest.mark.parametrize("design", DESIGNS)
def test_intervals_cover_what_they_promise_in_clusters_of_pictures(design, rate, alike):
    """Yes/no pictures whose clusters have rates of their own; `alike` is their correlation within a cluster."""
    rng, sizes = np.random.default_rng(4), DESIGNS[design]
    c = np.repeat(np.arange(len(sizes)), sizes)

    def rates():
        return rng.beta(rate * (1 / alike - 1), (1 - rate) * (1 / alike - 1), len(sizes))[c]

    assert cover(stats.cluster_share, lambda: (rng.binomial(1, rates()).astype(float), c), rate) >= PROMISED
    # A share that is no yes or no: two parts of each picture.
    assert cover(stats.cluster_share, lambda: (rng.binomial(2, rates()) / 2, c), rate) >= PROMISED
    # Differences of two methods; the truth is 0.
    pair = lambda: (rng.binomial(1, rates()) - rng.binomial(1, rates()).astype(float), c)  # noqa: E731
    assert cover(stats.cluster_mean, pair, 0.0) >= PROMISED


def test_pictures_taken_for_independent_would_not_cover():
    """What the unit is good for: with the picture as its own cluster the same intervals hold the truth half the time."""
    rng, c = np.random.default_rng(5), np.repeat(np.arange(10), 60)
    draw = lambda: rng.binomial(1, rng.beta(0.7, 0.3, 10)[c]).astype(float)  # noqa: E731
    assert cover(lambda x: stats.cluster_share(x, np.arange(600)), lambda: (draw(),), 0.7, 50) < 0.6
    assert cover(lambda x: stats.cluster_share(x, c), lambda: (draw(),), 0.7, 200) > 0.9


def test_rare_failures_in_alike_clusters_are_the_stated_weak_spot():
    """docs/bench/statistics.md: near the ends, with few clusters that are strongly alike, coverage falls below 0.95."""
    rng, c = np.random.default_rng(6), np.repeat(np.arange(17), 36)
    draw = lambda: (rng.binomial(1, rng.beta(0.95, 0.05, 17)[c]).astype(float), c)  # noqa: E731
    assert 0.78 <= cover(stats.cluster_share, draw, 0.95) < 0.92


def test_proportion_is_clopper_and_pearson_for_independent_values():
    sm = pytest.importorskip("statsmodels.stats.proportion")
    scipy = pytest.importorskip("scipy.stats")
    x = np.r_[np.ones(37), np.zeros(13)]
    ours = stats.cluster_share(x, np.arange(50))
    # G/(G-1) makes the effective size one smaller than N, and Student's t takes a little more of it.
    draws = 49 * (scipy.norm.ppf(0.975) / scipy.t.ppf(0.975, 49)) ** 2
    low, high = sm.proportion_confint(0.74 * draws, draws, method="beta")
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-9)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_all_agree_the_interval_is_what_so_many_clusters_can_say(value):
    """Seen in a report: other parts kept 1.000 (1.000 to 1.000). Twenty clusters never exclude a share of 3/20."""
    x, c = np.full(60, value), np.repeat(np.arange(20), 3)
    limit = 0.025 ** (1 / 20)  # the chance that a share so large is not seen in 20 clusters is .025
    for i in (
        stats.cluster_share(x, c),
        stats.cluster_mean(x, c, bounds=(0.0, 1.0)),
    ):
        assert i.mean == value and i.clusters == 20
        assert (i.low, i.high) == pytest.approx((limit, 1.0) if value else (0.0, 1 - limit))
    # Two methods that gave the same everywhere: the next cluster may still differ, in either direction.
    same = stats.cluster_mean(np.zeros(60), c, bounds=(-1.0, 1.0))
    assert (same.low, same.high) == pytest.approx((limit - 1, 1 - limit))
    # Without bounds nothing is known.
    assert np.isinf([(i := stats.cluster_mean(x, c)).low, i.high]).all()


def test_one_cluster_says_nothing_about_the_next():
    assert stats.cluster_share([1, 1, 0], [0, 0, 0]).high == 1.0
    i = stats.cluster_share([1, 1, 1], [0, 0, 0])
    assert (i.low, i.high) == (0.0, 1.0)
    i = stats.cluster_mean([0.5, 0.6], [0, 0], bounds=(-1.0, 1.0))
    assert (i.low, i.high) == (-1.0, 1.0)


def test_permutation_enumerates_small_designs_exactly():
    a, b, c = [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3]
    assert stats.paired_permutation(a, b, c, np.random.default_rng(0)) == pytest.approx(2 / 16)


def test_permutation_with_eighteen_clusters_tries_every_pattern():
    rng = np.random.default_rng(17)
    x = rng.normal(size=14) + 0.4
    exact = np.mean([abs(np.dot(s, x)) >= abs(x.sum()) - 1e-9 for s in product((-1, 1), repeat=14)])
    got = stats.paired_permutation(x, np.zeros(14), np.arange(14), np.random.default_rng(0), resamples=100)
    assert got == pytest.approx(exact, rel=1e-12)
    all_up = stats.paired_permutation(np.ones(18), np.zeros(18), np.arange(18), np.random.default_rng(0))
    assert all_up == pytest.approx(2 / 2**18)


def test_permutation_by_sampling_agrees_with_enumeration_and_is_seeded():
    rng = np.random.default_rng(7)
    a, c = clustered(rng, g=12, k=2)
    b, _ = clustered(rng, g=12, k=2)
    exact = stats.paired_permutation(a, b, c, rng, resamples=2**12)
    draws = [stats.paired_permutation(a, b, c, np.random.default_rng(8), resamples=4000) for _ in range(2)]
    assert draws[0] == draws[1] == pytest.approx(exact, abs=4 * np.sqrt(0.25 / 4000))


def test_permutation_is_uniform_without_an_effect():
    rng = np.random.default_rng(9)
    p = []
    for _ in range(200):
        x = rng.normal(size=20)
        p.append(stats.paired_permutation(x, np.zeros(20), np.arange(20) // 2, rng, resamples=1024))
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.09 and abs(np.mean(p) - 0.5) < 0.07


def test_holm_matches_statsmodels():
    sm = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(10).uniform(0, 0.2, size=9)
    assert stats.holm(p) == pytest.approx(sm.multipletests(p, method="holm")[1])
    assert stats.holm([0.01]).tolist() == [0.01]


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.cluster_mean([], []),
        lambda: stats.cluster_mean([1.0, np.nan], [0, 1]),
        lambda: stats.cluster_mean([1.0, 2.0], [0]),
        lambda: stats.cluster_mean([1.0, 2.0], [0, 1], level=1.0),
        lambda: stats.cluster_share([1.5, 1.0], [0, 1]),
        lambda: stats.paired_permutation([1.0], [1.0, 2.0], [0], np.random.default_rng(0)),
        lambda: stats.paired_permutation([1.0], [0.0], [0], np.random.default_rng(0), resamples=0),
        lambda: stats.holm([1.2]),
    ],
)
def test_bad_input_is_one_clear_error(call):
    with pytest.raises(ValueError):
        call()


def test_one_cluster_gives_no_false_precision():
    i = stats.cluster_mean([0.0, 1.0, 1.0], [0, 0, 0])
    assert i.low == -np.inf and i.high == np.inf
    p = stats.cluster_share([1.0, 1.0], ["a", "a"])
    assert p.low < 0.3


def test_bounds_cut_the_interval_and_nothing_else():
    x, c = [1.0, 1.0, 1.0, 0.5], [0, 1, 2, 3]
    free, cut = stats.cluster_mean(x, c), stats.cluster_mean(x, c, bounds=(0.0, 1.0))
    assert free.high > 1 and cut.high == 1 and (cut.mean, cut.low) == (free.mean, free.low)


# -- agreement ------------------------------------------------------------------------------------------------------


def raters(rng, g=40, k=3, error=0.2):
    truth, c = clustered(rng, g, k)
    flip = lambda: np.where(rng.random(truth.size) < error, 1 - truth, truth)  # noqa: E731
    return flip(), flip(), c


def test_kappa_and_its_error_match_statsmodels_for_independent_items():
    sm = pytest.importorskip("statsmodels.stats.inter_rater")
    rng = np.random.default_rng(11)
    a, b = rng.integers(0, 3, 80), rng.integers(0, 3, 80)
    b = np.where(rng.random(80) < 0.5, a, b)
    theirs = sm.cohens_kappa([[np.sum((a == i) & (b == j)) for j in range(3)] for i in range(3)])
    ours = stats.cohen_kappa(a, b, np.arange(80))
    assert ours.mean == pytest.approx(theirs.kappa)
    # G/(G-1) in ours; a t quantile on 79 degrees of freedom against a normal one.
    t = pytest.importorskip("scipy.stats").t.ppf(0.975, 79)
    assert (ours.high - ours.low) / 2 == pytest.approx(t * theirs.std_kappa * np.sqrt(80 / 79))


def test_kappa_of_copies_adds_no_precision_and_answers_need_not_be_numbers():
    a, b, _ = raters(np.random.default_rng(12), g=60, k=1)
    one = stats.cohen_kappa(a, b, np.arange(60))
    many = stats.cohen_kappa(np.repeat(a, 5), np.repeat(b, 5), np.repeat(np.arange(60), 5))
    words = stats.cohen_kappa(np.where(a, "yes", "no"), np.where(b, "yes", "no"), np.arange(60))
    assert (one.low, one.high) == pytest.approx((many.low, many.high))
    assert (one.mean, one.low) == pytest.approx((words.mean, words.low))


def test_kappa_intervals_cover_what_they_promise_in_clusters():
    rng = np.random.default_rng(13)
    # Rates are Beta(1.5, 1): P(1) = .6. Errors of .2 each: agreement .68, margins .56.
    truth, hits = (0.68 - (0.56**2 + 0.44**2)) / (1 - (0.56**2 + 0.44**2)), 0
    for _ in range(400):
        i = stats.cohen_kappa(*raters(rng))
        hits += i.low <= truth <= i.high
    assert 0.915 <= hits / 400 <= 0.985


def test_full_agreement_on_few_items_is_not_proof_and_one_answer_is_undefined():
    a = np.array([0, 1, 1, 0, 1, 0])
    few, more = (
        stats.cohen_kappa(a, a, np.arange(6)),
        stats.cohen_kappa(np.tile(a, 20), np.tile(a, 20), np.arange(120)),
    )
    assert few.mean == more.mean == few.high == 1.0 and few.low < 0.4 < 0.9 < more.low
    with pytest.raises(ValueError, match="undefined"):
        stats.cohen_kappa([1, 1], [1, 1], [0, 1])
    with pytest.raises(ValueError):
        stats.cohen_kappa([1, 1], [1], [0, 1])


# -- trade-offs -----------------------------------------------------------------------------------------------------


def test_pareto_front_is_what_no_point_beats():
    x = np.random.default_rng(14).integers(0, 6, size=(40, 2)).astype(float)
    front = stats.pareto_front(x)
    beaten = [any((q >= p).all() and (q > p).any() for q in x) for p in x]
    assert sorted(front) == [i for i in range(40) if not beaten[i]]
    assert (np.diff(x[front, 0]) >= 0).all()
    assert stats.pareto_front([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]).tolist() == [1, 2, 0]


def test_tradeoff_area_by_hand():
    # Steps: .2 x .9, then from .2 to .5 at .8, then from .5 to .7 at .5; (.4, .3) is beaten and adds nothing.
    x, y = [0.2, 0.5, 0.7, 0.4], [0.9, 0.8, 0.5, 0.3]
    assert stats.tradeoff_area(x, y) == pytest.approx(0.2 * 0.9 + 0.3 * 0.8 + 0.2 * 0.5)
    # Between .5 and 1 on both axes only (.5, .8) and (.7, .5) reach in, with no area; (.7, .6) has one.
    assert stats.tradeoff_area(x, y, (0.5, 0.5), (1.0, 1.0)) == 0.0
    assert stats.tradeoff_area([0.7], [0.6], (0.5, 0.5), (1.0, 1.0)) == pytest.approx(0.2 * 0.1 / 0.25)
    assert stats.tradeoff_area([1.0, 0.3], [1.0, 2.0]) == 1.0
    assert stats.tradeoff_area([], []) == 0.0


def test_tradeoff_area_is_the_share_of_the_box_that_is_beaten():
    rng = np.random.default_rng(15)
    x, y = rng.random(7), rng.random(7)
    probe = rng.random((200_000, 2))
    share = ((probe[:, None, 0] <= x) & (probe[:, None, 1] <= y)).any(1).mean()
    assert stats.tradeoff_area(x, y) == pytest.approx(share, abs=4 * np.sqrt(0.25 / len(probe)))
    assert stats.tradeoff_area([*x, 0.5], [*y, 0.5]) >= stats.tradeoff_area(x, y)
    with pytest.raises(ValueError):
        stats.tradeoff_area(x, y, (1.0, 0.0), (0.0, 1.0))
