"""Folders of an earlier version are read into the same figures.

`before.tar.xz` was made with commit da2d112 (21 November 2026), before the benchmark was parted and judges got records; its
pictures of tries, locks and whatever a page shows beside the means are left out::

    vsf bench generate run --cases demo --split test --limit 2 --seeds 0 -p none -p vsf
    vsf bench judge run --judge oracle
    vsf bench report run --out report.html                     # table.md: the first table of report.md
    vsf bench sweep sweep --arms vsf,nasa --budget 2 --limit 1 --seeds 0
"""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest

from vsf.bench import tables
from vsf.bench.generate import missing
from vsf.bench.run import Run
from vsf.cli import main


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(Path(__file__).with_name("before.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder


def means(table: str) -> dict[str, dict[str, str]]:
    """Row -> column -> mean. Intervals were by case then, and are by object now."""
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    return {row[0]: dict(zip(head[1:], (cell.partition(" ")[0] for cell in row[1:]), strict=True)) for row in rows}


def test_a_run_gives_the_same_table(before: Path, tmp_path: Path) -> None:
    run = Run.open(before / "run")
    assert list(missing(run)) == []
    then = means((before / "table.md").read_text("utf-8"))
    assert len(then["vsf"]) == 10 and then["vsf"]["balanced"] == ".750"
    results = tables.Results.load([run])
    now = means(tables.markdown(results, list(results.points), list(tables.METRICS)))
    assert {row: {k: v for k, v in cells.items() if k in then[row]} for row, cells in now.items()} == then
    assert main(["bench", "report", str(run.folder), "--out", str(tmp_path / "report.html")]) == 0


def test_a_finished_sweep_gives_the_same_points(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    points = before / "sweep" / "points.json"
    then = json.loads(points.read_bytes())
    assert main(["bench", "sweep", str(before / "sweep")]) == 0
    now = json.loads(points.read_bytes())
    assert now["points"] == then["points"] and now["about"]["dev"] == then["about"]["dev"]
    assert re.search(r"nasa │ +0 │ +1\.000 │ +1\.000 │ +1\.000", capsys.readouterr().out)


def test_an_unfinished_sweep_of_other_ranges_says_what_to_do(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    path = before / "sweep" / "sweep.json"
    data = json.loads(path.read_bytes())
    try:
        path.write_text(json.dumps({**data, "budget": 3}))
        assert main(["bench", "sweep", str(before / "sweep")]) == 2
    finally:
        path.write_text(json.dumps(data))
    assert "was begun with other ranges of vsf, nasa; give another folder" in capsys.readouterr().err
