"""The whole benchmark on the demo model, small: every stage, and going on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("optuna")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from vsf.bench import demo
from vsf.bench.arms import DEFAULT_ARMS
from vsf.bench.demo import QUICK, Scope, ablation_points, frozen_points, run_demo
from vsf.bench.points import read_points
from vsf.bench.run import Run, RunError
from vsf.bench.sweep import Sweep
from vsf.bench.tries import Tries
from vsf.cli import main

SMALL = Scope(budget=2, dev_cases=1, more=1, cases=2, seeds=1, ablation_seeds=1)


def test_every_stage_runs_and_nothing_is_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "DEFAULT_ARMS", ("vsf", "nasa"))
    stages: list[str] = []

    def stop(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        if stage == "drawing: ablations" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "out", SMALL, workers=1, progress=stop)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.png")}
    page, table = run_demo(tmp_path / "out", SMALL, workers=1, progress=lambda s, d, t: stages.append(s))
    assert all(p.stat().st_mtime_ns == at for p, at in before.items())
    curve = ["drawing: curve", "judging: curve"] if (tmp_path / "out" / "curve").exists() else []
    assert list(dict.fromkeys(stages)) == [
        "choosing settings on dev", "drawing: test", "judging: test", "drawing: ablations", "judging: ablations",
        *curve, "report",
    ]  # fmt: skip
    test, ablations = Run.open(tmp_path / "out" / "test"), Run.open(tmp_path / "out" / "ablations")
    assert [p.name for p in test.plan.points] == ["none", "vsf", "nasa"]
    assert {case.split for case in test.cases if case.id in test.plan.cases} == {"test"}
    # What was chosen on dev is what is drawn on test, and what the ablations start from.
    chosen = {p.name: p for p in read_points(tmp_path / "out" / "sweep" / "points.json")}
    assert test.plan.point("vsf") == chosen["vsf"]
    assert all(p.settings["scale"] == chosen["vsf"].settings["scale"] for p in ablations.plan.points)
    for run in (test, ablations):
        assert len(list(run.judged("oracle"))) == len(list(run.plan.units))
    text = page.read_text("utf-8")
    assert "vsf-no-duplication" in text and "Tuning" in text and table.read_text("utf-8").startswith("# Negative")
    assert Tries(Sweep.open(tmp_path / "out" / "sweep")).all()[0].state == "complete"


@pytest.mark.parametrize("name", ["plan.json", "sweep.json"])
def test_the_folder_of_another_command_is_refused(tmp_path: Path, name: str):
    (tmp_path / name).write_text("{}")
    with pytest.raises(RunError, match=name):
        run_demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_every_arm_has_frozen_settings():
    points = frozen_points()
    assert set(DEFAULT_ARMS) <= {p.name for p in points}


def test_ablations_keep_the_settings_and_leave_out_one_thing():
    vsf = frozen_points()[0]
    points = {p.name: p for p in ablation_points(vsf)}
    assert points["ablation-no-offset"].settings == {**vsf.settings, "offset": 0.0}
    assert all(p.settings["stop"] == vsf.settings["stop"] for p in points.values())
    zero = type(vsf)("vsf", {**vsf.settings, "offset": 0.0})
    assert "ablation-no-offset" not in {p.name for p in ablation_points(zero)}


def test_another_scope_needs_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "run_sweep", lambda *a, **k: (_ for _ in ()).throw(RunError("stopped")))
    with pytest.raises(RunError, match="stopped"):
        run_demo(tmp_path / "out", QUICK)
    with pytest.raises(ValueError, match="other budget"):
        run_demo(tmp_path / "out", demo.FULL)


def test_the_commands_refuse_bad_input_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    for arguments, words in (
        (["demo", "--out", str(tmp_path / "full" / "file")], "cannot write"),
        (["sweep", str(tmp_path / "full"), "--budget", "2"], "not empty and holds no sweep"),
        (["sweep", str(tmp_path / "new"), "--arms", "vsff"], "did you mean vsf"),
        (["sweep", str(tmp_path / "new"), "--objective", "best"], "allowed: balanced, paper"),
        (["sweep", str(tmp_path / "new"), "--judge", "api"], "needs --judge-model"),
        (
            ["sweep", str(tmp_path / "new"), "--base-url", "http://x"],
            "--judge-base-url is no option of the judge oracle",
        ),
        (["sweep", str(tmp_path / "new"), "--judge", "metrics"], "gives no answer_1 and no answer_2"),
        (["sweep", str(tmp_path / "new"), "--judge", "orakel"], "did you mean oracle"),
        (["sweep", str(tmp_path / "new"), "--cases", "nothing.jsonl"], "nothing.jsonl"),
    ):
        assert main(["bench", *arguments]) == 2, arguments
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_sweep_command_freezes_points_and_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "sweep", "--list", "x"]) == 0 and "nag-wide" in capsys.readouterr().out
    arguments = ["bench", "sweep", str(tmp_path / "s"), "--arms", "nasa", "--budget", "1", "--limit", "1"]
    assert main([*arguments, "--objective", "paper"]) == 0
    assert "points.json" in capsys.readouterr().out
    data = json.loads((tmp_path / "s" / "points.json").read_bytes())
    assert data["points"][0]["settings"]["scale"] == 0.25 and data["about"]["sweep"]["objective"] == "paper"
    assert main(["bench", "sweep", str(tmp_path / "s")]) == 0  # finished: shown again, nothing is drawn
    assert len(list((tmp_path / "s" / "trials").rglob("*.png"))) == 1
