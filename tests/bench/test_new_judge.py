"""What a judge costs: one file and one row. Everything else follows: its flags, its record, sweeps and pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("optuna")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from bench_runs import make_run, point

from vsf.bench.judges import JUDGES
from vsf.registry import options

DOCS = Path(__file__).parents[2] / "docs/bench/judges.md"

FILE = '''
from dataclasses import dataclass
from typing import ClassVar

from vsf.registry import check, option


@dataclass(eq=False)
class DarkJudge:
    """Finds everything in what is dark enough."""

    gives: ClassVar = ("answer_1", "answer_2", "quality")
    light: float = option("brightness from which a picture is too light", 0.5, low=0, high=1)

    def __post_init__(self):
        check(self)

    def about(self):
        return {"kind": "dark", "light": self.light}

    def read(self, items):
        for item in items:
            bright = item.picture().convert("L").resize((1, 1)).getpixel((0, 0)) / 255
            yield item.judged(answer_1=bright < self.light, answer_2=bright < self.light, quality=1 - bright)
'''
ROW = 'from vsf.bench.judges import JUDGES\nJUDGES.rows["dark"] = "dark_judge:DarkJudge"\n'
COMMANDS = """
import json, sys
from vsf.cli import main
for arguments in json.loads(sys.argv[1]):
    print("code", main(["bench", *arguments]), flush=True)
"""


def test_a_judge_is_one_file_and_one_row(tmp_path: Path) -> None:
    (tmp_path / "dark_judge.py").write_text(FILE)
    run = make_run(tmp_path / "run", [point("none"), point("vsf"), point("nag")], {})
    sweep = ["sweep", str(tmp_path / "sweep"), "--arms", "nasa", "--budget", "1", "--limit", "1", "--judge", "dark"]
    commands = [
        ["judge", "--help"],
        ["judge", str(run.folder), "--judge", "dark", "--light", "2"],
        ["judge", str(run.folder), "--judge", "oracle", "--light", "0.5"],
        ["judge", str(run.folder), "--judge", "dark", "--light", "0.75"],
        [*sweep, "--judge-light", "0.25", "--objective", "paper", "--steps", "1"],
        ["report", str(run.folder), "--out", str(tmp_path / "report.html")],
    ]
    path = os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])
    done = subprocess.run(
        [sys.executable, "-c", ROW + COMMANDS, json.dumps(commands)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "160"},
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("code ")] == [
        "code 0", "code 2", "code 2", "code 0", "code 0", "code 0",
    ], done.stdout + done.stderr  # fmt: skip
    assert "--light" in done.stdout and "brightness from which a picture is too light (0.5)" in done.stdout
    assert "'--light'" in done.stderr
    assert "--light is no option of the judge oracle" in done.stderr
    assert run.judge("dark") == {"kind": "dark", "light": 0.75, "seed": 0}
    answers = list(run.judged("dark"))
    assert len(answers) == len(list(run.plan.units)) and all(a.status == "judged" for a in answers)
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_bytes())["judge"] == {
        "name": "dark",
        "args": {"light": 0.25},
    }
    assert (tmp_path / "sweep" / "points.json").is_file()
    assert "judge dark" in (tmp_path / "report.md").read_text("utf-8")


def test_the_table_of_the_docs_has_every_option() -> None:
    rows = [line.strip("| ").split(" | ") for line in DOCS.read_text("utf-8").splitlines() if line.startswith("| `--")]
    wanted = [
        [f"`--{name.replace('_', '-')}`", kind, spec.help, *([] if spec.default is None or spec.default is False else
            ["needed" if spec.required else str(spec.default)])]
        for kind in JUDGES for name, spec in options(JUDGES[kind]).items()
    ]  # fmt: skip
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == wanted
