"""A run on disk: what goes in comes out, and what cannot be a run is refused with a sentence."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsf.bench.cases import CaseSet, load_cases, save_cases
from vsf.bench.generate import begin, missing
from vsf.bench.points import parse_points
from vsf.bench.run import KINDS, Answer, Point, Run, RunError, RunPlan, Store, Unit

CASES = load_cases("demo")
POINTS = parse_points(["none", "vsf:offset=inf", "a=vsf:scale=2,blocks=0+1", "cfg:scale=3,steps=16,guidance_scale=1"])
IDS = tuple(case.id for case in CASES.cases[:5])
UNITS = st.builds(
    Unit,
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+=,-]{0,20}[A-Za-z0-9]", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}[A-Za-z0-9]", fullmatch=True),
    st.integers(0, 10**12),
    st.sampled_from(KINDS),
)


def plan(**changes: Any) -> RunPlan:
    return replace(
        RunPlan("demo", POINTS, IDS, CASES.name, CASES.hash, seeds=(0, 3), batch=4, size=(64, 32)), **changes
    )


# -- units ------------------------------------------------------------------------------------------------------------


@given(UNITS)
def test_a_unit_is_found_by_its_name(unit: Unit) -> None:
    assert Unit.parse(unit.id) == unit


@pytest.mark.parametrize("name", ["", "a/b", "a/b--1", "a/b--x--true", "a/b--1--false", "a/b/c--1--true"])
def test_what_names_no_unit_is_refused(name: str) -> None:
    with pytest.raises(RunError, match="POINT/CASE--SEED--KIND"):
        Unit.parse(name)


@given(UNITS, UNITS)
def test_noise_depends_on_case_and_seed_and_nothing_else(a: Unit, b: Unit) -> None:
    assert (a.noise_seed == b.noise_seed) == ((a.case, a.seed) == (b.case, b.seed))
    assert replace(a, point="x", kind="unrelated").noise_seed == a.noise_seed
    assert 0 <= a.noise_seed < 2**63 - 257  # what `vsf generate --seed` takes


# -- plans ------------------------------------------------------------------------------------------------------------


def test_a_plan_survives_json() -> None:
    given = plan(extra={"sigmas": [1.0, 0.5]}, dtype="float32", revision="v1")
    again = RunPlan.from_dict(json.loads(json.dumps(given.to_dict(), allow_nan=False)))
    assert again.to_dict() == given.to_dict()
    assert again.chunks == given.chunks and again.size == (64, 32)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 1000])
def test_groups_hold_every_unit_once_and_one_point_each(batch: int) -> None:
    p = plan(batch=batch)
    assert all(1 <= len(group) <= batch and len({unit.point for unit in group}) == 1 for group in p.chunks)
    wanted = {
        Unit(point.name, case, seed, kind)  # type: ignore[arg-type]
        for point in POINTS
        for case in IDS
        for seed in (0, 3)
        for kind in (KINDS if point.method != "none" else KINDS[:1])
    }
    assert Counter(p.units) == Counter(wanted)


def test_without_controls_only_the_true_negative_is_drawn() -> None:
    assert {unit.kind for unit in plan(controls=False).units} == {"true"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"points": ()}, "points without repeats"),
        ({"points": (POINTS[0], replace(POINTS[1], name="NONE"))}, "points without repeats"),
        ({"cases": (IDS[0], IDS[0])}, "cases without repeats"),
        ({"seeds": ()}, "seeds without repeats"),
        ({"batch": 0}, "at least 1"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        plan(**changes)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "-a", "x" * 101, "a\n", "né"])
def test_the_name_of_a_point_is_fit_for_a_folder(name: str) -> None:
    with pytest.raises(RunError, match="allowed"):
        Point(name, {"method": "none"})


# -- stores -----------------------------------------------------------------------------------------------------------


def test_a_store_gives_back_what_was_put(tmp_path: Path) -> None:
    store = Store(tmp_path / "x")
    assert store.keys() == set()
    store.put("p/a--0--true", {"x": [1, None, float("inf")]})
    store.put("q/b", {})
    store.put("p/a--0--true", {"x": 2})
    (tmp_path / "x" / "p" / ".a.json.123.part").write_text("{")
    (tmp_path / "x" / "p" / "notes.txt").write_text("")
    (tmp_path / "x" / "loose.json").write_text("{}")
    assert store.keys() == {"p/a--0--true", "q/b"}
    assert store.get("p/a--0--true") == {"x": 2} and "q/b" in store and "q/c" not in store
    with pytest.raises(KeyError):
        store.get("q/c")


# -- folders ----------------------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_is_opened_as_it_was_made(tmp_path: Path) -> None:
    made = Run.create(tmp_path / "deep" / "run", plan(), CASES)
    before = files(made.folder)
    again = Run.create(made.folder, plan(), CASES)
    opened = Run.open(made.folder)
    assert files(made.folder) == before
    for run in (again, opened):
        assert run.plan.to_dict() == plan().to_dict() and run.cases.hash == CASES.hash
    assert opened.case[IDS[0]] == CASES.cases[0]


def test_another_plan_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    run = Run.create(tmp_path, plan(), CASES)
    before = files(tmp_path)
    with pytest.raises(RunError, match="other points, steps; give another folder"):
        Run.create(tmp_path, plan(steps=3, points=POINTS[:2]), CASES)
    assert files(tmp_path) == before
    run.records.put(next(run.plan.units).id, {})
    with pytest.raises(RunError, match="other steps"):
        begin(tmp_path, plan(steps=3), CASES)
    assert Run.open(tmp_path).plan.steps == 8


def test_a_plan_of_which_nothing_was_drawn_gives_way(tmp_path: Path) -> None:
    begin(tmp_path, plan(), CASES)
    assert begin(tmp_path, plan(steps=3), CASES).plan.steps == 3
    assert Run.open(tmp_path).plan.steps == 3


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="not empty and holds no run"):
        Run.create(tmp_path, plan(), CASES)
    assert files(tmp_path) == {"thesis.tex": b""}


def test_who_was_killed_while_beginning_begins_again(tmp_path: Path) -> None:
    save_cases(CASES, tmp_path / "cases.jsonl")
    (tmp_path / ".cases.jsonl-abc").write_text("half")
    (tmp_path / ".plan.json.abc.part").write_text("half")
    assert Run.create(tmp_path, plan(), CASES).plan.batch == 4


def damage(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    "damaged, message",
    [
        (lambda folder: (folder / "plan.json").unlink(), "holds no run"),
        (lambda folder: (folder / "cases.jsonl").unlink(), "holds no run"),
        (damage("plan.json", ""), "cannot be read"),
        (damage("plan.json", '{"format": "vsf-run", "version": 1'), "cannot be read"),
        (
            damage("plan.json", '{"format": "vsf-run", "version": 2}'),
            "is of vsf-run version 2; this vsf reads version 1",
        ),
        (damage("plan.json", '{"format": "vsf-run", "version": 1}'), "cannot be read"),
        (damage("plan.json", "[1]"), "cannot be read|not a plan"),
        (damage("cases.jsonl", "nonsense"), "cannot be read"),
    ],
)
def test_a_damaged_run_is_refused(tmp_path: Path, damaged: Any, message: str) -> None:
    Run.create(tmp_path, plan(), CASES)
    damaged(tmp_path)
    with pytest.raises(RunError, match=message):
        Run.open(tmp_path)


def test_cases_that_were_changed_are_noticed(tmp_path: Path) -> None:
    Run.create(tmp_path, plan(), CASES)
    other = CaseSet(CASES.name, CASES.license, CASES.cases[:-1])
    save_cases(other, tmp_path / "cases.jsonl")
    with pytest.raises(RunError, match="the hash differs"):
        Run.open(tmp_path)


def test_what_is_missing_shrinks_by_what_was_drawn(tmp_path: Path) -> None:
    run = Run.create(tmp_path, plan(), CASES)
    units = list(run.plan.units)
    assert [group for _, group, _ in missing(run)] == list(run.plan.chunks)
    for unit in units[:5]:
        run.records.put(unit.id, {})
    assert sum(len(wanted) for _, _, wanted in missing(run)) == len(units)  # no picture is there
    for unit in units[:6]:
        run.image(unit).parent.mkdir(parents=True, exist_ok=True)
        run.image(unit).write_bytes(b"")
    wanted = set().union(*(wanted for _, _, wanted in missing(run)))
    assert wanted == {unit.id for unit in units[5:]}
    assert [number for number, _, _ in missing(run)] == list(range(1, len(run.plan.chunks)))


def test_answers_come_back_in_the_order_of_the_plan(tmp_path: Path) -> None:
    run = Run.create(tmp_path, plan(), CASES)
    units = list(run.plan.units)
    store = run.set_judge("oracle", {"kind": "oracle", "threshold": 0.5})
    answers = [
        Answer(units[3].id, answer_1=True, answer_2=False, quality=0.5, details={"a": [1]}),
        Answer(units[1].id, "not judged", reason="refused"),
    ]
    for answer in answers:
        store.put(answer.unit, {**vars(answer), "of a later version": 1})
    store.put("gone/x--0--true", {"unit": "gone/x--0--true"})
    assert run.judges() == ["oracle"] and run.judge("oracle")["threshold"] == 0.5
    assert list(run.judged("oracle")) == [answers[1], answers[0]]
    with pytest.raises(RunError, match="no judge 'api'.*there: oracle"):
        run.judge("api")
    with pytest.raises(RunError, match="allowed"):
        run.set_judge("../x", {})
