"""The matrix of what one model's settings are worth on another."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from bench_runs import draw, make_run, point, says

from vsf.bench import transfer as module
from vsf.bench.run import Answer, Run, RunError, Unit
from vsf.bench.transfer import transfer, write_matrix
from vsf.cli import main

ARMS = {"demo": {"vsf": 1.0, "nag": 2.0}, "demo-flux": {"vsf": 3.0, "nag": 4.0}}


def said(model: str) -> Any:
    """The part goes where a model draws under its own settings, and under another's in every second case."""

    def answer(unit: Unit) -> dict[str, Any]:
        if unit.kind == "unrelated":
            return says(a2=False)
        own = "-from-" not in unit.point
        return says(a2=own or int(unit.case.rpartition("-")[2]) % 2 == 0)

    return answer


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    for model, scales in ARMS.items():
        points = [point("none"), point("vsf", scale=scales["vsf"]), point("nag", scale=scales["nag"])]
        make_run(tmp_path / model / "test", points, {"oracle": said(model)}, n=8, model=model)
    return [tmp_path / model for model in ARMS]


@pytest.fixture
def unreal(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Nothing is drawn: pictures of nothing, and answers by rule."""
    begun: list[Run] = []

    def judge(run: Run, _judge: Any, name: str, **_more: Any) -> None:
        store = run.set_judge(name, {"kind": "made"})
        for unit in run.plan.units:
            store.put(unit.id, asdict(Answer(unit.id, **said(run.plan.model)(unit))))

    monkeypatch.setattr(module, "generate", lambda run, **_: (begun.append(run), draw(run)))
    monkeypatch.setattr(module, "judge_run", judge)
    monkeypatch.setattr(module, "OracleJudge", lambda **_: None)
    return begun


def test_every_models_settings_are_drawn_by_every_other(
    folders: list[Path], unreal: list[Run], tmp_path: Path
) -> None:
    matrix = transfer(folders, tmp_path / "out")
    assert {run.folder.name: {p.name: p.settings["scale"] for p in run.plan.points} for run in unreal} == {
        "demo-to-demo-flux": {"vsf-from-demo": 1.0, "nag-from-demo": 2.0},
        "demo-flux-to-demo": {"vsf-from-demo-flux": 3.0, "nag-from-demo-flux": 4.0},
    }
    assert all(run.plan.cases == Run.open(folders[0] / "test").plan.cases for run in unreal)
    assert len(matrix.cells) == 8 and matrix.arms == ("vsf", "nag")
    for cell in matrix.cells:
        if cell.source == cell.target:  # joint 1 and intact 1
            assert cell.score.mean == 1.0 and cell.difference is None
        else:  # joint in every second case, intact in all
            assert cell.score.mean == 0.75 and cell.difference is not None
            assert cell.difference.mean == pytest.approx(-0.25) and cell.p_holm is not None and cell.p_holm >= 0.05
    markdown, data = write_matrix(matrix, tmp_path / "out")
    assert markdown.read_text().count("-0.250") == 4 and "| demo-flux |" in markdown.read_text()
    assert len(json.loads(data.read_text())["cells"]) == 8


def test_folders_that_are_no_benchmarks_of_different_models_are_refused(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match="at least two models"):
        transfer(folders[:1], tmp_path / "out")
    with pytest.raises(RunError, match="two of the folders are of the model demo"):
        transfer([folders[0], folders[0]], tmp_path / "out")
    make_run(tmp_path / "new" / "test", [point("none")], {}, model="demo-flux")
    with pytest.raises(RunError, match="not judged yet"):
        transfer([folders[0], tmp_path / "new"], tmp_path / "out")
    assert main(["bench", "transfer", str(tmp_path), str(folders[0]), "--out", str(tmp_path / "out")]) == 2
    assert "holds no test of `vsf bench demo`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
