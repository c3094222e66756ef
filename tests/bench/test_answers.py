"""Answers as one file: the same tables without the pictures, the committed evidence included."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_runs import make_run, point, says

from vsf.bench.answers import read_answers, write_answers
from vsf.bench.compare import compare
from vsf.bench.run import Run, RunError, Unit
from vsf.bench.tables import Results, markdown
from vsf.cli import main

POINTS = (point("none"), point("vsf"), point("nag"))
EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"


def answer(unit: Unit) -> dict[str, Any] | None:
    if unit.case == "case-4":
        return {"status": "not judged", "reason": "refused: no"}
    if unit.case == "case-5":
        return None
    return says(True, unit.point == "vsf" and unit.kind == "true", 0.1 + 0.2, kept=1 / 3, identity=None)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "first", POINTS, {"made": answer}, threshold=0.25)


def test_the_tables_are_the_same_without_the_pictures(run: Run, tmp_path: Path):
    other = make_run(tmp_path / "second", (point("vsf", scale=9.0),), {"made": answer}, seeds=(7,), threshold=0.25)
    write_answers(tmp_path / "a.csv.gz", [run, other], "made")
    before, after = Results.load([run, other]), Results.load(read_answers(tmp_path / "a.csv.gz"))
    assert markdown(after) == markdown(before) and after.points.keys() == before.points.keys()
    assert after.answers == before.answers and after.threshold == 0.25 and after.judge == "made"
    assert after.unjudged["vsf"]["refused"] == 4 and after.groups == before.groups
    tests = [compare(results, "vsf", np.random.default_rng(0)) for results in (before, after)]
    assert tests[0] == tests[1]
    # Where it was made is kept where it is the same for all pictures.
    assert {r["weights"] for r in after.records["vsf"]} == {"ab" * 32}
    only = read_answers(tmp_path / "a.csv.gz", ["second"])
    assert [r.folder.name for r in only] == ["second"] and list(Results.load(only).points) == ["vsf"]
    again = tmp_path / "again.csv.gz"
    write_answers(again, [run, other], "made")
    assert again.read_bytes() == (tmp_path / "a.csv.gz").read_bytes()


def test_a_stored_run_cannot_be_judged_on(run: Run, tmp_path: Path):
    write_answers(tmp_path / "a.csv.gz", [run], "made")
    (stored,) = read_answers(tmp_path / "a.csv.gz")
    with pytest.raises(RunError, match="cannot be changed"):
        stored.answers("made").put("vsf/x", {})
    with pytest.raises(RunError, match="no judge 'x' in first; there: made"):
        stored.judge("x")


def test_what_cannot_be_read_is_one_sentence(run: Run, tmp_path: Path):
    good = tmp_path / "a.csv.gz"
    write_answers(good, [run], "made")
    lines = gzip.decompress(good.read_bytes()).decode().splitlines()
    bad = tmp_path / "bad.csv.gz"
    for text, words in (
        ("", "is no file of answers"),
        ("run,point\n", "is no file of answers"),
        ("# {}\n", "is no file of answers"),
        ("# [1\n", "cannot be read"),
        ("\n".join([lines[0], lines[1], "elsewhere" + lines[2][5:]]), "cannot be read: KeyError"),
        ("\n".join([lines[0], lines[1], lines[2].replace(",0,", ",zero,", 1)]), "cannot be read: ValueError"),
    ):
        bad.write_bytes(gzip.compress(text.encode()))
        with pytest.raises(RunError, match=re.escape(words)):
            read_answers(bad)
    bad.write_bytes(good.read_bytes()[:200])
    with pytest.raises(RunError, match="cannot be read"):
        read_answers(bad)
    with pytest.raises(RunError, match="cannot read the answers in .*No such file"):
        read_answers(tmp_path / "nothing.csv.gz")
    with pytest.raises(RunError, match="no run 'x' in .*; there: first"):
        read_answers(good, ["x"])
    with pytest.raises(RunError, match="different names, got first, first"):
        write_answers(good, [run, run], "made")


def test_the_command_writes_and_reads_them(run: Run, tmp_path: Path, capsys: Any):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    page, answers = tmp_path / "page.html", tmp_path / "a.csv.gz"
    assert main(["bench", "report", str(run.folder), "--out", str(page), "--answers", str(answers)]) == 0
    again = tmp_path / "again.html"
    assert main(["bench", "report", str(answers), "--run", "first", "--out", str(again)]) == 0
    first, second = (p.with_suffix(".md").read_text() for p in (page, again))
    assert _tables(first) == _tables(second)
    assert 'id="pictures"' in page.read_text() and 'id="pictures"' not in again.read_text()
    capsys.readouterr()
    for arguments, words in (
        ([str(answers), str(run.folder)], "which stands alone"),
        ([str(run.folder), "--run", "first"], "--run chooses runs of a file of answers"),
        ([str(answers), "--run", "x"], "no run 'x'"),
        ([str(run.folder), "--figures", "joy"], "no figure 'joy'"),
        ([str(run.folder), "--answers", str(tmp_path / "a.csv")], "must end with .gz"),
    ):
        assert main(["bench", "report", *arguments, "--out", str(page)]) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1


def _tables(text: str) -> list[str]:
    """The tables' lines, but for the seconds that a file of answers does not keep."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return lines[: next(i for i, line in enumerate(lines) if line.startswith("| method | settings"))]


@pytest.mark.parametrize(
    ("page", "answers", "runs", "reference"),
    [
        ("bench/report", "bench/answers", ("test", "ablations", "curve"), "vsf"),
        ("bench/ablations-strong", "bench/answers", ("test", "ablations-low"), "vsf-published"),
        ("flux/report", "flux/answers", ("test",), "all"),
        ("unseen/demo", "unseen/demo", ("test", "ablations", "curve"), "vsf"),
        ("unseen/demo-flux", "unseen/demo-flux", ("test", "ablations", "curve"), "vsf"),
        ("unseen/demo-wan", "unseen/demo-wan", ("test", "ablations"), "vsf"),
    ],
)
def test_the_committed_tables_come_out_of_the_committed_answers(
    page: str, answers: str, runs: tuple[str, ...], reference: str, tmp_path: Path
) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    out, there = tmp_path / "page.html", (EVIDENCE / f"{page}.md").read_text("utf-8")
    chosen = [argument for run in runs for argument in ("--run", run)]
    title = ["--title", there.splitlines()[0].removeprefix("# ")]
    about = [*chosen, *title, "--reference", reference, "--out", str(out)]
    assert main(["bench", "report", str(EVIDENCE / f"{answers}.csv.gz"), *about]) == 0
    made = out.with_suffix(".md").read_text("utf-8")
    without_date = [[line for line in text.splitlines() if not line.startswith("- page:")] for text in (made, there)]
    assert without_date[0] == without_date[1]
