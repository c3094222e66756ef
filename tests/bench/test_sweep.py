"""Choosing settings: dev only, equal budgets, several workers, nothing lost."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from bench_runs import cases, draw

from patience import PATIENCE
from tiny import save_tiny
from vsf import stats
from vsf.bench import search
from vsf.bench.arms import ARM_SETS, ARMS, DEFAULT_ARMS
from vsf.bench.chosen import best, freeze, front
from vsf.bench.judges import JudgeError
from vsf.bench.objectives import OBJECTIVES
from vsf.bench.points import read_points
from vsf.bench.run import Answer, Run
from vsf.bench.search import JUDGE, work
from vsf.bench.sweep import Sweep, SweepError
from vsf.bench.tries import Tries
from vsf.cli import main
from vsf.loading import ModelError


def made(folder: Path, **changes) -> Sweep:
    set_ = cases(4, "dev")
    given = {"arms": ("vsf", "nasa"), "budget": 5, "cases": set_, "chosen": tuple(c.id for c in set_)}
    return Sweep(folder, **{**given, **changes})


def evaluate(run: Run) -> None:
    """A world in which the part goes from a scale of 1 on, pictures break from 2 on, and the last case never works."""
    draw(run)
    scale = run.plan.points[0].settings["scale"]
    store = run.set_judge(JUDGE, {"kind": "made"})
    for unit in run.plan.units:
        gone = unit.kind == "true" and scale >= 1 and unit.case != "case-3"
        answer = Answer(unit.id, answer_1=scale < 2, answer_2=gone, quality=1.0 if scale < 2 else 0.0)
        store.put(unit.id, asdict(answer))


def test_every_arm_gets_the_same_number_of_tries_and_starts_from_what_is_published(tmp_path: Path):
    sweep = made(tmp_path / "sweep", budget=16).create()
    work(sweep, evaluate=evaluate)
    rows = Tries(sweep).all()
    assert [(r.arm, r.number) for r in rows] == [(arm, i) for arm in ("vsf", "nasa") for i in range(16)]
    assert {r.state for r in rows} == {"complete"}
    for arm in sweep.arms:
        first = sweep.first(arm)
        assert first == list(ARMS[arm].published)
        tried = [r.settings for r in rows if r.arm == arm]
        assert [{k: t[k] for k in f} for t, f in zip(tried, first, strict=False)] == [dict(f) for f in first]
        for t in tried:
            assert all(r.low - 1e-3 <= t[k] <= r.high + 1e-3 for k, r in ARMS[arm].space.items())
            assert all(t[k] == v for k, v in ARMS[arm].fixed.items())
    top = best(rows)
    # joint on 3 of 4 cases, intact on all
    assert top["vsf"].value == pytest.approx((0.75 + 1) / 2) and 1 <= top["vsf"].settings["scale"] < 2


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
    assert Tries(cut).all() == Tries(whole).all()
    other = made(tmp_path / "other", seed=1).create()
    work(other, evaluate=evaluate)
    assert Tries(other).all() != Tries(whole).all()


def _forget_workers(sweep: Sweep) -> None:
    """As if the process that holds a try were gone."""
    tries = Tries(sweep)
    for arm in sweep.arms:
        for trial in tries.begun(arm):
            if trial.state.name == "RUNNING":
                tries.let_go(arm, trial.number)


def test_a_try_that_fails_counts_and_says_why(tmp_path: Path):
    def fragile(run: Run) -> None:
        if run.plan.points[0].settings["scale"] > 1:
            raise ValueError("does not fit")
        evaluate(run)

    sweep = made(tmp_path / "sweep").create()
    work(sweep, evaluate=fragile)
    failed = [r for r in Tries(sweep).all() if r.state == "fail"]
    assert failed and {r.reason for r in failed} == {"ValueError: does not fit"}
    assert len(Tries(sweep).all()) == 10
    work(sweep, evaluate=fragile)
    assert len(Tries(sweep).all()) == 10  # nothing is tried twice


def test_what_every_try_would_meet_ends_the_sweep_instead(tmp_path: Path):
    def full(run: Run) -> None:
        raise OSError("no space left on device")

    sweep = made(tmp_path / "sweep").create()
    with pytest.raises(OSError, match="no space"):
        work(sweep, evaluate=full)
    assert not any(r.state == "fail" for r in Tries(sweep).all())


def test_a_try_that_two_workers_began_beyond_the_budget_is_none(tmp_path: Path):
    """Both see that one is missing, and ask: the second is given a number more."""
    from optuna.trial import TrialState

    sweep = made(tmp_path / "sweep", arms=("nasa",), budget=3).create()
    study = Tries(sweep).study("nasa")
    for _ in range(3):
        study.ask()
    study.tell(study.ask(), state=TrialState.FAIL)
    with pytest.raises(SweepError, match="^3 tries of the sweep"):
        freeze(sweep)
    work(sweep, evaluate=evaluate)
    assert [r.number for r in Tries(sweep).all()] == [0, 1, 2] and len(freeze(sweep)) == 1


def test_chosen_settings_are_frozen_with_where_they_come_from(tmp_path: Path):
    sweep = made(tmp_path / "sweep").create()
    with pytest.raises(SweepError, match="10 tries .* are not finished"):
        freeze(sweep)
    work(sweep, evaluate=evaluate)
    points = freeze(sweep, more=1)
    assert [p.name for p in points][0] == "vsf" and read_points(sweep.folder / "points.json") == points
    assert points[0].settings == best(Tries(sweep).all())["vsf"].settings
    about = json.loads((sweep.folder / "points.json").read_bytes())["about"]
    assert about["sweep"]["budget"] == 5 and about["sweep"]["chosen"] == ["case-0", "case-1", "case-2", "case-3"]
    # The front holds what nothing beats, on all tries.
    mine = [t for t in Tries(sweep).all() if t.arm == "vsf"]
    done = [(t.scores["negative"], t.scores["positive"]) for t in mine]
    kept = {(t.scores["negative"], t.scores["positive"]) for t in front(mine)}
    assert kept == {done[i] for i in stats.pareto_front(done)}


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


def test_a_sweep_of_before_goes_on(tmp_path: Path):
    """The judge's kind and options stood side by side."""
    sweep = made(tmp_path / "sweep").create()
    path = sweep.folder / "sweep.json"
    data = json.loads(path.read_bytes())
    assert data["judge"] == {"name": "oracle", "args": {}}
    for record in ({"kind": "oracle"}, {"kind": "api", "model": "m", "base_url": "http://x"}):
        path.write_text(json.dumps({**data, "judge": record}))
        opened = Sweep.open(sweep.folder)
        rest = {k: v for k, v in record.items() if k != "kind"}
        assert opened.judge == {"name": record["kind"], "args": rest} and opened.create() == opened
    path.write_text(json.dumps({**data, "judge": {"kind": "orakel"}}))
    with pytest.raises(SweepError, match="unknown judge 'orakel'.*did you mean oracle"):
        Sweep.open(sweep.folder)


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
    for chosen in arm.published:
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
from vsf.bench.search import work
from vsf.bench.sweep import Sweep
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
        Tries(sweep).study(arm)
    one, two = child(sweep), child(sweep)
    try:
        until = time.monotonic() + PATIENCE
        while sum(r.state == "complete" for r in Tries(sweep).all()) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(random.Random(0).random() * 0.05)
        one.kill()
        one.wait()
        assert two.wait(PATIENCE) == 0
    finally:
        for process in (one, two):
            process.kill()
            process.wait()
    work(sweep, evaluate=evaluate)  # takes over what the killed one held
    rows = Tries(sweep).all()
    assert [(r.arm, r.number) for r in rows] == [(arm, i) for arm in sweep.arms for i in range(5)]
    assert {r.state for r in rows} == {"complete"}
    for r in rows:  # what `evaluate` gives: joint on 3 of 4 cases from a scale of 1, nothing from 2
        joint = 0.75 if r.settings["scale"] >= 1 else 0.0
        assert r.value == pytest.approx((joint + 1) / 2 if r.settings["scale"] < 2 else 0.0)


# -- nothing is drawn or left for a sweep that cannot be -----------------------------------------------------------------


def unjudged(run: Run) -> None:
    draw(run)
    store = run.set_judge(JUDGE, {"kind": "made"})
    for unit in run.plan.units:
        store.put(unit.id, asdict(Answer(unit.id, "not judged", reason="cut off: the reply is longer than allowed")))


def test_a_sweep_stops_at_the_first_try_of_which_nothing_was_judged(tmp_path: Path):
    sweep = made(tmp_path / "sweep").create()
    with pytest.raises(SweepError, match="judged none of the 8 pictures of .*0000; .*cut off"):
        work(sweep, evaluate=unjudged)
    assert len(Tries(sweep).all()) == 1 and not any(r.state == "fail" for r in Tries(sweep).all())
    work(sweep, evaluate=evaluate)  # with a judge that can, the same try goes on
    assert {r.state for r in Tries(sweep).all()} == {"complete"} and len(Tries(sweep).all()) == 10


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model") / "tiny"))


def sweep_command(folder: Path, *arguments: str) -> int:
    return main(["bench", "sweep", str(folder), "--arms", "nasa", "--budget", "1", "--limit", "1", *arguments])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "owner/gone"], "add --download"),
        (["--model", "owner/gone", "--workers", "2"], "add --download"),
        (["--model", "TINY", "--cases", "neggen"], "the judge oracle cannot judge 1 of 1 cases"),
        (["--judge", "local", "--judge-model", "owner/gone"], "an id is fetched with --download"),
        (["--judge", "local", "--judge-model", "TINY", "--judge-adapter", "gone"], "the judge .* cannot be loaded"),
    ],
)
def test_a_sweep_that_cannot_be_leaves_nothing(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
):
    given = [tiny if a == "TINY" else a for a in arguments]
    assert sweep_command(tmp_path / "new", *given) == 2
    err = capsys.readouterr().err
    assert re.search(words, err) and err.count("\n") == 1 and not (tmp_path / "new").exists()


def test_without_optuna_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert sweep_command(tmp_path / "new") == 2
    assert "a sweep needs Optuna" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_what_the_hint_says_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[dict] = []

    def load(plan, device=None, download=False):
        asked.append({"model": plan.model, "download": download, "offline": os.environ.get("HF_HUB_OFFLINE")})
        raise ModelError("not here")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("vsf.bench.drawer.load", load)
    assert sweep_command(tmp_path / "new", "--model", "owner/gone", "--download") == 2
    assert asked == [{"model": "owner/gone", "download": True, "offline": None}]


def test_a_folder_with_a_try_in_it_is_kept_whatever_happens(tiny: str, tmp_path: Path):
    folder = tmp_path / "s"
    assert sweep_command(folder, "--objective", "paper") == 0
    before = sorted(p.name for p in folder.rglob("*"))
    assert sweep_command(folder, "--objective", "paper", "--model", tiny) == 2
    assert sorted(p.name for p in folder.rglob("*")) == before


def test_the_judge_of_a_sweep_takes_what_the_judge_alone_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made_with: list[dict] = []

    def seen(judge):
        made_with.append(vars(judge))
        raise JudgeError("seen")

    monkeypatch.setattr("vsf.bench.judges.local.LocalJudge.__post_init__", seen)
    given = ["--judge", "local", "--judge-model", "m", "--judge-adapter", "a", "--judge-dtype", "float16"]
    assert sweep_command(tmp_path / "new", *given, "--judge-revision", "r", "--judge-device", "cpu") == 2
    assert made_with[0].items() >= {
        "model": "m", "adapter": "a", "dtype": "float16", "revision": "r", "device": "cpu",
    }.items()  # fmt: skip


def test_a_best_point_on_the_bound_of_its_range_is_found():
    """Seen in the evidence: offset 1.906 where 0 to 2 was searched."""
    arm = ARMS["vsf"]
    inside = {"scale": 2.5, "offset": 1.9, "start": 0.0, "stop": 1.0}
    assert arm.on_bound(arm.settings(inside)) == []  # start 0 and stop 1 are all there is
    (low, high) = (arm.space["offset"].low, arm.space["offset"].high)
    assert high == 4 and low == 0  # the range goes on beyond what was found
    assert arm.on_bound(arm.settings({**inside, "offset": high - 0.1})) == [
        f"offset {high - 0.1:g} is at the upper end of 0 to 4"
    ]
    assert arm.on_bound(arm.settings({**inside, "start": 0.5})) == ["start 0.5 is at the upper end of 0 to 0.5"]
    assert ARMS["nag"].on_bound(ARMS["nag"].settings({"scale": 4.018, "tau": 1.688, "alpha": 0.342})) == [
        "scale 4.018 is at the lower end of 4 to 8"
    ]
    assert ARMS["nag"].paper and not arm.paper
    assert ARMS["cfg"].on_bound(ARMS["cfg"].settings({"scale": 1.01})) == []  # CFG begins at 1


def test_one_knob_arms_search_as_many_knobs_as_each_other():
    names = ARM_SETS["one-knob"]
    assert {tuple(ARMS[name].space) for name in names} == {("scale",)}
    assert {ARMS[name].fixed["method"] for name in names} == {"vsf", "nag", "nasa", "cfg"}
    # All else is as published, and the published strength is tried first.
    for name in names:
        whole = ARMS[name].settings(ARMS[name].published[0])
        full = ARMS[name.removesuffix("-scale")]
        assert whole == full.settings(full.published[0]), name
    assert len({len(ARMS[name].space) for name in DEFAULT_ARMS}) > 1  # what they are there for


def test_the_command_knows_sets_of_arms_and_says_what_is_on_its_bound(tmp_path: Path, capsys, monkeypatch):
    assert main(["bench", "sweep", str(tmp_path), "--list"]) == 0
    assert "one-knob: vsf-scale" in capsys.readouterr().out
    assert main(["bench", "sweep", str(tmp_path / "x"), "--arms", "two-knobs"]) == 2
    assert "one-knob" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_an_unfinished_sweep_of_other_ranges_does_not_go_on_with_these(tmp_path: Path):
    """The ranges of an earlier version were narrower: tries of both would be one search over neither."""
    sweep = made(tmp_path / "sweep", budget=2).create()
    path = sweep.folder / "sweep.json"
    data = json.loads(path.read_text())
    data["spaces"]["vsf"]["offset"]["high"] = 2.0
    path.write_text(json.dumps(data))
    with pytest.raises(SweepError, match="was begun with other ranges of vsf; give another folder"):
        work(Sweep.open(sweep.folder), evaluate=evaluate)
    assert Tries(sweep).all() == []
    # A finished one is what it is.
    done = made(tmp_path / "done", budget=1).create()
    work(done, evaluate=evaluate)
    data["budget"] = 1
    (done.folder / "sweep.json").write_text(json.dumps(data))
    work(Sweep.open(done.folder), evaluate=evaluate)
    assert len(freeze(Sweep.open(done.folder))) == 2


def test_a_try_that_another_worker_finishes_while_it_is_claimed_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Seen once with two workers: one asks for a try, the other takes it for dead and finishes it before it is signed."""
    sweep = made(tmp_path / "sweep", arms=("nasa",), budget=3).create()
    work(replace(sweep, budget=1), evaluate=evaluate)
    study = Tries(sweep).study("nasa")
    finished = study.get_trials()[0]
    looks = iter([[finished]])
    seen = Tries.left
    monkeypatch.setattr(Tries, "left", lambda *given: next(looks, None) or seen(*given))
    work(sweep, evaluate=evaluate)
    assert [r.state for r in Tries(sweep).all()] == ["complete"] * 3

    asked = type(study).ask

    def slow(self: Any, *given: Any, **more: Any) -> Any:
        trial = asked(self, *given, **more)
        if trial.number == 0:  # another worker finds it unsigned, and is faster
            search._try(Tries(again), "nasa", 0, evaluate)
        return trial

    again = made(tmp_path / "again", arms=("nasa",), budget=2).create()
    monkeypatch.setattr(type(study), "ask", slow)
    work(again, evaluate=evaluate)
    assert [r.state for r in Tries(again).all()] == ["complete"] * 2
