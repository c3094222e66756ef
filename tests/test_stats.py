"""The statistics against their definitions, an independent package where there is one, and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from vsf import stats


def clustered(rng, g=30, k=4, p=None):
    """0/1 values whose clusters have their own rates, so that values of one cluster hang together."""
    rates = rng.beta(1.5, 1.0, size=g) if p is None else np.full(g, p)
    return rng.binomial(1, np.repeat(rates, k)).astype(float), np.repeat(np.arange(g), k)


def test_cluster_se_matches_the_pairwise_definition():
    rng = np.random.default_rng(0)
    x, c = clustered(rng)
    g, n = len(set(c)), len(x)
    total = sum((x[i] - x.mean()) * (x[j] - x.mean()) for i, j in product(range(n), range(n)) if c[i] == c[j])
    assert stats.cluster_se(x, c) == pytest.approx(np.sqrt(g / (g - 1) * total) / n, rel=1e-12)


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
    assert stats.cluster_se(x, np.arange(50)) == pytest.approx(x.std(ddof=1) / np.sqrt(50))


def test_copies_of_a_case_add_no_precision():
    x = np.random.default_rng(3).normal(size=20)
    one = stats.cluster_mean(x, np.arange(20))
    many = stats.cluster_mean(np.repeat(x, 10), np.repeat(np.arange(20), 10))
    assert (many.low, many.high) == pytest.approx((one.low, one.high))


@pytest.mark.parametrize("interval", [stats.cluster_mean, stats.cluster_proportion])
def test_intervals_cover_what_they_promise(interval):
    rng = np.random.default_rng(4)
    truth, hits = 1.5 / 2.5, 0
    for _ in range(400):
        x, c = clustered(rng, g=40)
        i = interval(x, c)
        hits += i.low <= truth <= i.high
    assert 0.915 <= hits / 400 <= 0.985


def test_proportion_is_wilson_for_independent_values():
    sm = pytest.importorskip("statsmodels.stats.proportion")
    x = np.r_[np.ones(37), np.zeros(13)]
    ours = stats.cluster_proportion(x, np.arange(50))
    # G/(G-1) makes the effective size one smaller than N.
    low, high = sm.proportion_confint(0.74 * 49, 49, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-9)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_proportion_at_the_edge_keeps_a_width_and_stays_inside(value):
    i = stats.cluster_proportion(np.full(60, value), np.repeat(np.arange(20), 3))
    assert i.mean == value and 0 <= i.low <= value <= i.high <= 1
    assert 0.05 < i.high - i.low < 0.35


def test_paired_difference_is_the_mean_of_differences():
    rng = np.random.default_rng(5)
    a, c = clustered(rng)
    b, _ = clustered(rng)
    d = stats.paired_difference(a, b, c)
    assert d == stats.cluster_mean(a - b, c)
    assert stats.paired_difference(b, a, c).mean == pytest.approx(-d.mean)


def test_mcnemar_matches_statsmodels_and_its_definition():
    sm = pytest.importorskip("statsmodels.stats.contingency_tables")
    rng = np.random.default_rng(6)
    a, b = rng.binomial(1, 0.7, 40), rng.binomial(1, 0.5, 40)
    table = [[np.sum((a == i) & (b == j)) for j in (1, 0)] for i in (1, 0)]
    assert stats.mcnemar_exact(a, b) == pytest.approx(sm.mcnemar(table, exact=True).pvalue)
    assert stats.mcnemar_exact([1, 1, 1, 1, 0], [0, 0, 0, 0, 0]) == pytest.approx(2 * 0.5**4)
    assert stats.mcnemar_exact([1, 0], [1, 0]) == 1.0


def test_permutation_enumerates_small_designs_exactly():
    a, b, c = [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3]
    assert stats.paired_permutation(a, b, c, np.random.default_rng(0)) == pytest.approx(2 / 16)


def test_permutation_by_sampling_agrees_with_enumeration_and_is_seeded():
    rng = np.random.default_rng(7)
    a, c = clustered(rng, g=12, k=2)
    b, _ = clustered(rng, g=12, k=2)
    exact = stats.paired_permutation(a, b, c, rng, resamples=2**12)
    draws = [stats.paired_permutation(a, b, c, np.random.default_rng(8), resamples=4000) for _ in range(2)]
    assert draws[0] == draws[1] == pytest.approx(exact, abs=0.03)


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
        lambda: stats.cluster_proportion([0.5, 1.0], [0, 1]),
        lambda: stats.paired_difference([1.0], [1.0, 2.0], [0]),
        lambda: stats.mcnemar_exact([0.5], [1]),
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
    p = stats.cluster_proportion([1.0, 1.0], ["a", "a"])
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
    assert stats.tradeoff_area(x, y) == pytest.approx(share, abs=0.004)
    assert stats.tradeoff_area([*x, 0.5], [*y, 0.5]) >= stats.tradeoff_area(x, y)
    with pytest.raises(ValueError):
        stats.tradeoff_area(x, y, (1.0, 0.0), (0.0, 1.0))
