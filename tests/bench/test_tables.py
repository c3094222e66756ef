"""From answers to figures, on runs written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_runs import cases, make_run, point, says

from vsf import stats
from vsf.bench.cases import CaseSet
from vsf.bench.compare import agreement, compare, priors, smallest_p, tradeoff
from vsf.bench.run import Run, RunError, Unit
from vsf.bench.tables import METRICS, Results, describe, group_of, is_ablation, markdown

POINTS = (point("none"), point("vsf"), point("nag"))


def index(unit: Unit) -> int:
    return int(unit.case.removeprefix("case-"))


def half_gone(unit: Unit) -> dict[str, Any]:
    """VSF removes in every case, NAG in the even ones; unrelated negatives remove in case 0; case 5 is of low quality."""
    true = {"none": False, "vsf": True, "nag": index(unit) % 2 == 0}[unit.point]
    gone = index(unit) == 0 if unit.kind == "unrelated" else true
    return says(True, gone, 0.3 if index(unit) == 5 else 0.9, kept=0.5, identity=True)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results.load([make_run(tmp_path / "run", POINTS, {"made": half_gone}, threshold=0.4)])


def test_every_figure_is_the_mean_of_its_definition(results: Results):
    got = {name: {m: i.mean for m, i in results.scores(name).items()} for name in results.points}
    sixth = 1 / 6
    assert got["vsf"] == pytest.approx({
        "positive": 1, "negative": 1, "quality": (5 * 0.9 + 0.3) / 6, "negative_unrelated": sixth,
        "specificity": 1 - sixth, "retention": 0.5, "identity": 1, "joint": 5 * sixth,
        "intact": 4 * sixth, "balanced": (5 * sixth + 4 * sixth) / 2, "complete": 5 * sixth,
    })  # fmt: skip
    assert got["nag"]["negative"] == 0.5 and got["nag"]["specificity"] == pytest.approx(0.5 - sixth)
    # Without guidance the control is the same picture: nothing is specific about it.
    assert got["none"]["negative"] == got["none"]["negative_unrelated"] == got["none"]["specificity"] == 0.0
    assert list(got["vsf"]) == [name for name in METRICS if name not in ("flicker", "motion", "ends")]  # of clips


def test_intervals_and_tests_are_clustered_by_the_outermost_group_of_the_cases(results: Results):
    """Six cases of three kinds: what is counted is kinds, whatever cases and noises they have."""
    assert results.unit == "categories"
    values = results.values("nag", "negative")
    kinds = [f"kind-{int(case.removeprefix('case-')) % 3}" for case, _ in values]
    assert results.interval("nag", "negative") == stats.cluster_share(list(values.values()), kinds)
    assert results.interval("nag", "negative").clusters == 3 and len(values) == 12
    found = compare(results, "vsf", np.random.default_rng(0), ["nag"])
    assert {c.difference.clusters for c in found} == {3} and min(c.p for c in found) >= 2 / 2**3
    assert tradeoff(results, ["vsf"], np.random.default_rng(0)).clusters == 3


def test_parts_of_one_object_are_one_cluster(tmp_path: Path):
    """Seen in the evidence: 150 cases of 30 (object, part) pairs of 17 objects, counted as 150."""
    from vsf.bench.cases import load_cases

    shipped = load_cases("demo")
    test = CaseSet("few", "x", tuple(c for c in shipped.split("test") if c.object in ("robot", "mug", "train")))
    results = Results.load([make_run(tmp_path / "run", POINTS, {"made": lambda u: says(True, True)}, case_set=test)])
    assert results.unit == "objects" and len(results.cases) > 30
    assert results.interval("vsf", "joint").clusters == 3
    assert len({c.category for c in test}) == 6


def test_no_interval_collapses_because_all_agree(tmp_path: Path):
    """Seen in a report: other parts kept 1.000 (1.000 to 1.000)."""
    always = make_run(tmp_path / "run", POINTS, {"made": lambda u: says(True, u.kind == "true", 1.0, kept=1.0)}, n=30)
    results = Results.load([always])
    for metric, i in results.scores("vsf").items():
        if metric != "identity":
            assert i.high - i.low > 0.5, metric  # three clusters say little
    same = next(c for c in compare(results, "vsf", np.random.default_rng(0), ["nag"]) if c.metric == "quality")
    assert same.difference.mean == 0 and same.difference.low < -0.5 and same.difference.high > 0.5
    # But for what is 0 by definition.
    none = results.interval("none", "specificity")
    assert (none.low, none.mean, none.high) == (0, 0, 0)


def test_all_at_once_with_the_other_parts_kept(tmp_path: Path):
    def lost(unit: Unit):
        return says(True, True, 1.0, kept=0.5 if index(unit) < 2 else 1.0)

    made = cases(4, kept="left arm, right arm")
    alone = replace(made.cases[3], kept=None)
    run = make_run(tmp_path / "run", POINTS[:2], {"made": lambda u: says(True, True) if u.case == "case-3" else lost(u)},
                   case_set=CaseSet("x", "y", (*made.cases[:3], alone)))  # fmt: skip
    results = Results.load([run])
    # Cases 0 and 1 lose an arm, 2 keeps both, 3 has no other parts.
    assert results.interval("vsf", "joint").mean == 1.0 and results.interval("vsf", "complete").mean == 0.5
    silent = make_run(tmp_path / "silent", POINTS[:2], {"made": lambda u: says()}, case_set=made)
    assert results.threshold == 0.5 and "complete" not in Results.load([silent]).scores("vsf")


def test_what_was_not_judged_counts_as_nothing_and_is_counted(tmp_path: Path):
    def some(unit: Unit):
        if index(unit) == 0:
            return {"status": "not judged", "reason": "refused: no"}
        if index(unit) == 1:
            return None
        return says(True, unit.point == "vsf")

    run = make_run(tmp_path / "run", POINTS, {"made": some})
    run.records.path(Unit("vsf", "case-2", 0).id).unlink()
    results = Results.load([run])
    assert results.interval("vsf", "negative").n == 12 - 4 - 1
    assert results.interval("vsf", "specificity").n == 12 - 4 - 1
    assert dict(results.unjudged["vsf"]) == {"refused": 4, "not asked yet": 4, "not drawn yet": 1}
    # A comparison keeps the pairs that both have.
    found = compare(results, "none", np.random.default_rng(0), metrics=["negative"])
    assert [c.difference.n for c in found] == [7, 8] and found[0].difference.mean == 1.0


def test_a_figure_nobody_gave_is_left_out(tmp_path: Path):
    run = make_run(tmp_path / "run", POINTS[:2], {"made": lambda unit: {"quality": 0.7}})
    scores = Results.load([run]).scores("vsf")
    assert list(scores) == ["quality"] and scores["quality"].mean == pytest.approx(0.7)
    assert "positive" not in markdown(Results.load([run]))


def test_comparisons_are_those_of_the_definitions_and_holm_runs_over_all(results: Results):
    found = compare(results, "vsf", np.random.default_rng(0), metrics=["negative", "quality"])
    assert [(c.point, c.metric) for c in found] == [
        ("none", "negative"), ("none", "quality"), ("nag", "negative"), ("nag", "quality"),
    ]  # fmt: skip
    none, _, nag, nag_quality = found
    # Three kinds of cases that all went one way: 2 of 2^3 sign patterns.
    assert none.p == nag.p == pytest.approx(2 / 8)
    assert nag.difference.mean == -0.5 and nag_quality.p == 1.0 and nag_quality.difference.mean == 0
    assert [c.p_holm for c in found] == pytest.approx(stats.holm([c.p for c in found]).tolist())
    # With three clusters four tests can find nothing, whatever comes out.
    assert smallest_p(found) == 1.0 and smallest_p(found[:1]) == 0.25 and smallest_p([]) == 0.0


def test_the_same_seed_gives_the_same_p_values(tmp_path: Path):
    run = make_run(tmp_path / "run", POINTS, {"made": half_gone}, n=20)
    first, second = (compare(Results.load([run]), "none", np.random.default_rng(3)) for _ in range(2))
    assert first == second


def test_points_of_several_runs_stand_side_by_side(tmp_path: Path):
    one = make_run(tmp_path / "one", POINTS[:2], {"made": half_gone})
    two = make_run(tmp_path / "two", (point("nag"), point("vsf", scale=9.0)), {"made": half_gone})
    again = make_run(tmp_path / "three", (point("vsf"),), {"made": half_gone}, seeds=(1, 2))
    results = Results.load([one, two, again])
    assert list(results.points) == ["none", "vsf", "nag", "vsf@two"]
    # The pictures of seed 1 are in two runs and count once.
    assert results.interval("vsf", "negative").n == 18
    assert results.points["vsf@two"].settings["scale"] == 9.0


@pytest.mark.parametrize(
    "other", [{"steps": 4}, {"model": "other"}, {"size": (32, 32)}, {"extra": {"eta": 1}}, {"guidance_scale": 2.0}]
)
def test_points_whose_pictures_would_differ_are_two_points(tmp_path: Path, other: dict[str, Any]):
    one = make_run(tmp_path / "one", POINTS[:2], {"made": half_gone})
    two = make_run(tmp_path / "two", POINTS[:2], {"made": lambda unit: says(a2=False)})
    two.plan = replace(two.plan, **other)
    results = Results.load([one, two])
    assert list(results.points) == ["none", "vsf", "none@two", "vsf@two"]
    assert results.interval("vsf@two", "negative").mean == 0.0 < results.interval("vsf", "negative").mean
    # How pictures were grouped is no such thing.
    two.plan = replace(make_run(tmp_path / "three", POINTS[:2], {"made": half_gone}).plan, batch=2)
    assert list(Results.load([one, two]).points) == ["none", "vsf"]


def test_another_judge_under_the_same_name_is_refused(tmp_path: Path):
    one, two = (make_run(tmp_path / name, POINTS[:2], {"made": half_gone}) for name in ("one", "two"))
    two.set_judge("made", {"kind": "made", "seed": 3, "spent": {"requests": 1}})
    Results.load([one, two])
    two.set_judge("made", {"kind": "made", "model": "b"})
    with pytest.raises(RunError, match="judge 'made' is not the same .* \\(other model\\)"):
        Results.load([one, two])


def test_the_judge_must_be_one_all_runs_have(tmp_path: Path):
    one = make_run(tmp_path / "one", POINTS[:1], {"a": half_gone, "b": half_gone})
    two = make_run(tmp_path / "two", POINTS[1:], {"b": half_gone})
    none = make_run(tmp_path / "none", POINTS[:1], {})
    assert Results.load([one, two]).judge == "b"
    for runs, judge, words in (
        ([one], None, "choose one with --judge: a, b"),
        ([one, two], "a", "judge 'a' has not judged all of these runs; those who have: b"),
        ([one, none], None, "was judged by nobody"),
        ([], None, "no run"),
    ):
        with pytest.raises(RunError, match=words):
            Results.load(runs, judge)
    with pytest.raises(RunError, match="no point 'x'"):
        compare(Results.load([two]), "x", np.random.default_rng(0))


def test_runs_with_other_cases_under_the_same_id_or_other_thresholds_do_not_mix(tmp_path: Path):
    one = make_run(tmp_path / "one", POINTS[:1], {"made": half_gone})
    other = make_run(tmp_path / "two", POINTS[1:], {"made": half_gone}, case_set=cases(6, object="thing"))
    stricter = make_run(tmp_path / "three", POINTS[1:], {"made": half_gone}, threshold=0.9)
    with pytest.raises(RunError, match="case 'case-0' is not the same"):
        Results.load([one, other])
    with pytest.raises(RunError, match="threshold"):
        Results.load([one, stricter])


def test_agreement_of_two_judges(tmp_path: Path):
    def other(unit: Unit) -> dict[str, Any]:
        answer = half_gone(unit)
        return {**answer, "answer_2": answer["answer_2"] != (index(unit) == 3)}

    run = make_run(tmp_path / "run", POINTS, {"a": half_gone, "b": other, "c": lambda u: {"quality": 1.0}})
    found = {(a.first, a.second, a.question): a for a in agreement([run])}
    assert set(found) == {("a", "b", q) for q in ("answer_1", "answer_2", "identity")}
    # Both always say yes: full agreement, and kappa is not defined.
    assert found["a", "b", "answer_1"].kappa is None and found["a", "b", "answer_1"].same.mean == 1.0
    two = found["a", "b", "answer_2"]
    a, b = ([says(u)["answer_2"] for u in run.plan.units] for says in (half_gone, other))
    expected = stats.cohen_kappa(a, b, [run.cases.groups[u.case] for u in run.plan.units])
    assert two.kappa == expected and two.n == 60 and two.same.mean == pytest.approx(5 / 6)


def test_tradeoff_is_the_area_of_the_means_with_a_bootstrap_over_clusters(tmp_path: Path):
    def curve(unit: Unit) -> dict[str, Any]:
        strong = unit.point == "vsf+2"
        return says(not strong or index(unit) % 2 == 0, strong or index(unit) < 10)

    run = make_run(tmp_path / "run", (point("vsf", "vsf"), point("vsf+2", "vsf", scale=9.0)), {"made": curve}, n=40)
    results = Results.load([run])
    area = tradeoff(results, ["vsf", "vsf+2"], np.random.default_rng(0))
    # (.25, 1) and (1, .5)
    assert area.mean == pytest.approx(0.25 * 1 + 0.75 * 0.5)
    assert area.low < area.mean < area.high < area.mean + 0.25
    assert area == tradeoff(results, ["vsf", "vsf+2"], np.random.default_rng(0))
    assert tradeoff(results, ["vsf"], np.random.default_rng(0)).mean == pytest.approx(0.25)
    assert tradeoff(results, [], np.random.default_rng(0)) is None


def test_what_a_model_leaves_out_anyway(tmp_path: Path):
    def plain(unit: Unit) -> dict[str, Any]:
        absent = index(unit) == 1 or (index(unit) == 2 and unit.seed == 0)
        return says(index(unit) != 3, absent)

    results = Results.load([make_run(tmp_path / "run", POINTS, {"made": plain}, n=4)])
    found = {p.case: (p.judged, p.there, p.absent) for p in priors(results)}
    assert found == {"case-0": (2, 1, 0), "case-1": (2, 1, 1), "case-2": (2, 1, 0.5), "case-3": (2, 0, 0)}
    guided = make_run(tmp_path / "guided", POINTS[1:], {"made": plain})
    with pytest.raises(RunError, match="no point without guidance"):
        priors(Results.load([guided]))
    silent = make_run(tmp_path / "silent", POINTS, {"made": lambda u: {"quality": 1.0}})
    with pytest.raises(RunError, match="made answered both questions on no picture without guidance"):
        priors(Results.load([silent]))


def test_cost_comes_from_the_records(results: Results):
    assert results.cost("none").seconds == 0.5 and results.cost("vsf").seconds == 1.0
    assert results.cost("vsf").n == 24 and results.cost("vsf").peak_memory == 2**30


def test_names_and_groups():
    assert [group_of(n) for n in ("vsf", "vsf+2", "vsf,scale=2", "vsf-norm+3", "nag@two", "nag+2@two")] == [
        "vsf", "vsf", "vsf", "vsf-norm", "nag@two", "nag@two",
    ]  # fmt: skip
    assert is_ablation(point("ablation-no-offset", "vsf")) and not is_ablation(point("vsf"))
    assert describe(point("vsf", scale=2.0, stop=0.5).settings) == "vsf: stop 0.5, scale 2, offset 0.1"


def test_the_markdown_table_has_the_published_scores_first(results: Results):
    text = markdown(results)
    assert text.splitlines()[0].startswith("| method | positive | negative | quality | unrelated | specificity |")
    assert "| vsf | 1.000 (" in text and text.count("\n") == 5


def test_an_empty_run_is_readable(tmp_path: Path):
    run = make_run(tmp_path / "run", POINTS, {"made": lambda unit: None})
    results = Results.load([Run.open(run.folder)])
    assert results.scores("vsf") == {} and compare(results, "vsf", np.random.default_rng(0)) == []
    assert results.unjudged["vsf"]["not asked yet"] == 24
