"""Choosing settings: dev only, equal budgets, several workers, nothing lost."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from bench_runs import cases, draw

from vsf import stats
from vsf.bench import sweep as module
from vsf.bench.points import read_points
from vsf.bench.run import Answer, Run
from vsf.bench.sweep import ARMS, DEFAULT_ARMS, OBJECTIVES, Sweep, SweepError, work


def made(folder: Path, **changes) -> Sweep:
    set_ = cases(4, "dev")
    given = {"arms": ("vsf", "nasa"), "budget": 5, "cases": set_, "chosen": tuple(c.id for c in set_)}
    return Sweep(folder, **{**given, **changes})


def evaluate(run: Run) -> None:
    """A world in which the part goes from a scale of 1 on, pictures break from 2 on, and the last case never works."""
    draw(run)
    scale = run.plan.points[0].settings["scale"]
    store = run.set_judge(module.JUDGE, {"kind": "made"})
    for unit in run.plan.units:
        gone = unit.kind == "true" and scale >= 1 and unit.case != "case-3"
        answer = Answer(unit.id, answer_1=scale < 2, answer_2=gone, quality=1.0 if scale < 2 else 0.0)
        store.put(unit.id, asdict(answer))


def test_every_arm_gets_the_same_number_of_tries_and_starts_from_what_is_published(tmp_path: Path):
    sweep = made(tmp_path / "sweep").create()
    work(sweep, evaluate=evaluate)
    rows = sweep.rows()
    assert [(r.arm, r.number) for r in rows] == [(arm, i) for arm in ("vsf", "nasa") for i in range(5)]
    assert {r.state for r in rows} == {"complete"}
    for arm in sweep.arms:
        first = [*ARMS[arm].published, *ARMS[arm].demo]
        tried = [r.settings for r in rows if r.arm == arm]
        assert [{k: t[k] for k in f} for t, f in zip(tried, first, strict=False)] == [dict(f) for f in first]
        for t in tried:
            assert all(r.low - 1e-3 <= t[k] <= r.high + 1e-3 for k, r in ARMS[arm].space.items())
            assert all(t[k] == v for k, v in ARMS[arm].fixed.items())
    best = sweep.best()
    # joint on 3 of 4 cases, intact on all
    assert best["vsf"].value == pytest.approx((0.75 + 1) / 2) and 1 <= best["vsf"].settings["scale"] < 2


def test_a_sweep_is_decided_by_its_seed_and_goes_on_where_it_stopped(tmp_path: Path):
    whole = made(tmp_path / "whole").create()
    work(whole, evaluate=evaluate)

    class Stop(BaseException):
        pass

    count = 0

    def dying(run: Run) -> None:
        nonlocal count
        count += 1
        if count in (3, 7):
            raise Stop
        evaluate(run)

    cut = made(tmp_path / "cut").create()
    for _ in range(2):
        with pytest.raises(Stop):
            work(cut, evaluate=dying)
        _forget_workers(cut)
    work(Sweep.open(cut.folder), evaluate=evaluate)
    assert cut.rows() == whole.rows()
    other = made(tmp_path / "other", seed=1).create()
    work(other, evaluate=evaluate)
    assert other.rows() != whole.rows()


def _forget_workers(sweep: Sweep) -> None:
    """As if the process that holds a try were gone."""
    for arm in sweep.arms:
        for trial in sweep.study(arm).get_trials():
            if trial.state.name == "RUNNING":
                sweep._storage.set_trial_user_attr(trial._trial_id, "worker", None)


def test_a_try_that_fails_counts_and_says_why(tmp_path: Path):
    def fragile(run: Run) -> None:
        if run.plan.points[0].settings["scale"] > 1:
            raise ValueError("does not fit")
        evaluate(run)

    sweep = made(tmp_path / "sweep").create()
    work(sweep, evaluate=fragile)
    failed = [r for r in sweep.rows() if r.state == "fail"]
    assert failed and {r.reason for r in failed} == {"ValueError: does not fit"}
    assert len(sweep.rows()) == 10
    work(sweep, evaluate=fragile)
    assert len(sweep.rows()) == 10  # nothing is tried twice


def test_what_every_try_would_meet_ends_the_sweep_instead(tmp_path: Path):
    def full(run: Run) -> None:
        raise OSError("no space left on device")

    sweep = made(tmp_path / "sweep").create()
    with pytest.raises(OSError, match="no space"):
        work(sweep, evaluate=full)
    assert not any(r.state == "fail" for r in sweep.rows())


def test_chosen_settings_are_frozen_with_where_they_come_from(tmp_path: Path):
    sweep = made(tmp_path / "sweep").create()
    with pytest.raises(SweepError, match="10 tries .* are not finished"):
        sweep.freeze()
    work(sweep, evaluate=evaluate)
    points = sweep.freeze(more=1)
    assert [p.name for p in points][0] == "vsf" and read_points(sweep.folder / "points.json") == points
    assert points[0].settings == sweep.best()["vsf"].settings
    about = json.loads((sweep.folder / "points.json").read_bytes())["about"]
    assert about["sweep"]["budget"] == 5 and about["sweep"]["chosen"] == ["case-0", "case-1", "case-2", "case-3"]
    # The front holds what nothing beats, on all tries.
    done = [(r.scores["negative"], r.scores["positive"]) for r in sweep.rows() if r.arm == "vsf"]
    front = {(r.scores["negative"], r.scores["positive"]) for r in sweep.front("vsf")}
    assert front == {done[i] for i in stats.pareto_front(done)}


def test_settings_are_never_chosen_on_test_cases(tmp_path: Path):
    with pytest.raises(SweepError, match="dev cases only; 4 of 4 are not, the first is case-0"):
        made(tmp_path / "sweep", cases=cases(4, "test"))
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": ("vsff",)}, "unknown arm 'vsff'"),
        ({"arms": ()}, "arms without repeats"),
        ({"arms": ("vsf", "vsf")}, "arms without repeats"),
        ({"budget": 0}, "at least 1"),
        ({"objective": "best"}, "unknown objective 'best'; allowed: balanced, paper"),
        ({"chosen": ("nobody",)}, "no case 'nobody'"),
        ({"chosen": ()}, "needs dev cases"),
    ],
)
def test_bad_input_is_one_error(tmp_path: Path, changes: dict, words: str):
    with pytest.raises(SweepError, match=words):
        made(tmp_path / "sweep", **changes)


def test_a_folder_holds_one_sweep(tmp_path: Path):
    sweep = made(tmp_path / "sweep").create()
    assert made(tmp_path / "sweep").create() == sweep
    assert Sweep.open(sweep.folder).to_dict() == sweep.to_dict()
    with pytest.raises(SweepError, match="a sweep with other budget, objective"):
        made(tmp_path / "sweep", budget=6, objective="paper").create()
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").write_text("x")
    with pytest.raises(SweepError, match="not empty"):
        made(tmp_path / "else").create()
    with pytest.raises(SweepError, match="holds no sweep"):
        Sweep.open(tmp_path)


def test_the_objectives_are_their_definitions():
    assert OBJECTIVES["paper"].score({"positive": 0.5, "negative": 1.0}) == pytest.approx(0.8)
    assert OBJECTIVES["balanced"].score({"balanced": 0.7}) == 0.7
    assert not OBJECTIVES["paper"].controls and OBJECTIVES["balanced"].controls


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_starts_inside_its_ranges_with_settings_its_method_takes(name: str):
    arm = ARMS[name]
    for chosen in [*arm.published, *arm.demo]:
        assert set(chosen) == set(arm.space)
        assert all(r.low <= chosen[k] <= r.high for k, r in arm.space.items())
        assert arm.settings(chosen)["method"] == arm.fixed["method"]
    for edge in ("low", "high"):
        arm.settings({k: getattr(r, edge) for k, r in arm.space.items()})
    assert set(DEFAULT_ARMS) <= set(ARMS)


CHILD = """
import sys, time
sys.path.insert(0, {tests!r})
from test_sweep import evaluate
from vsf.bench.sweep import Sweep, work
def slow(run):
    time.sleep(0.02)
    evaluate(run)
work(Sweep.open(sys.argv[1]), evaluate=slow)
"""


def child(sweep: Sweep) -> subprocess.Popen[bytes]:
    code = CHILD.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen([sys.executable, "-c", code, str(sweep.folder)], env=environment)


@pytest.mark.parametrize("storage", [None, "sqlite"])
def test_two_workers_share_a_storage_and_one_may_be_killed(tmp_path: Path, storage: str | None):
    if storage == "sqlite":
        pytest.importorskip("sqlalchemy")
        storage = f"sqlite:///{tmp_path / 'study.db'}"
    sweep = made(tmp_path / "sweep", budget=5, storage=storage).create()
    for arm in sweep.arms:
        sweep.study(arm)
    one, two = child(sweep), child(sweep)
    try:
        until = time.monotonic() + 60
        while sum(r.state == "complete" for r in sweep.rows()) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(random.Random(0).random() * 0.05)
        one.kill()
        one.wait()
        assert two.wait(120) == 0
    finally:
        for process in (one, two):
            process.kill()
            process.wait()
    work(sweep, evaluate=evaluate)  # takes over what the killed one held
    rows = sweep.rows()
    assert [(r.arm, r.number) for r in rows] == [(arm, i) for arm in sweep.arms for i in range(5)]
    assert {r.state for r in rows} == {"complete"}
    assert replace(sweep, arms=("vsf",)).best()["vsf"].value == pytest.approx(0.875)
