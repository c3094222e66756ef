"""The commands that choose cases, and that say what a model draws of them without guidance."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_runs import make_run, point, says

from vsf.bench.cases import CaseSet, load_cases
from vsf.bench.run import Run, Unit
from vsf.cli import main
from vsf.cli.bench.generate import make_plan


def some() -> CaseSet:
    """Four narrative and four short cases of two categories."""
    cases = load_cases("neggen")
    chosen = [
        case
        for category in ("food", "people")
        for style in ("narrative", "short")
        for case in [c for c in cases if (c.category, c.style) == (category, style)][:2]
    ]
    return CaseSet("some", cases.license, tuple(replace(c, split="test") for c in chosen))


def test_measure_says_which_negatives_are_absent_anyway(tmp_path: Path, capsys: Any):
    cases = some()
    gone, half = cases.cases[0].id, cases.cases[5].id

    def answer(unit: Unit) -> dict[str, Any]:
        if unit.point != "none":
            return says(True, True)  # of guided pictures nothing is read here
        return says(unit.case != half, unit.case == gone or (unit.case == half and unit.seed == 0))

    run = make_run(tmp_path / "run", (point("none"), point("vsf")), {"made": answer}, case_set=cases)
    assert main(["bench", "cases", "--measure", str(run.folder)]) == 0
    out = capsys.readouterr().out
    assert "some on demo, without guidance, judged by made: 8 of 8 cases, 16 pictures" in out
    assert "object there: .875 (" in out and "negative absent anyway: .188 (" in out and "categories)" in out
    assert "absent anyway in half of the pictures or more: 2" in out
    assert f"{gone} [test] 1.00 of 2 (object there 1.00): {cases.cases[0].prompt} - {cases.cases[0].negative}" in out
    assert f"{half} [test] 0.50 of 2 (object there 0.00)" in out
    rows = {line.split()[0]: line.split()[-3:] for line in out.splitlines() if line.startswith(("food", "people"))}
    assert rows == {"food": ["4", "1.00", "0.25"], "people": ["4", "0.75", "0.12"]}
    assert "style: narrative" in out and "style: short" in out
    assert main(["bench", "cases", "--measure", str(run.folder), "--list"]) == 0
    assert all(case.id in capsys.readouterr().out for case in cases.cases[:1])


def test_measure_says_no_in_one_line(tmp_path: Path, capsys: Any):
    guided = make_run(tmp_path / "guided", (point("vsf"),), {"made": lambda unit: says()})
    two = make_run(tmp_path / "two", (point("none"),), {"a": lambda unit: says(), "b": lambda unit: says()})
    for arguments, words in (
        (["--measure", str(guided.folder)], "no point without guidance"),
        (["--measure", str(tmp_path)], "holds no run"),
        (["--measure", str(two.folder)], "choose one with --judge: a, b"),
        (["neggen", "--measure", str(two.folder)], "leave out NAME"),
        (["--judge", "a"], "--judge is of --measure"),
    ):
        assert main(["bench", "cases", *arguments]) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1
    assert main(["bench", "cases", "--measure", str(two.folder), "--judge", "b"]) == 0


def test_limit_draws_an_even_seeded_subset_and_not_the_first():
    """`--limit 44` counted the alphabetically first 14 of 30 pairs twice."""
    given = {"point": ["none"], "cases": "demo-v1", "split": "dev", "limit": 34}
    plan, cases = make_plan(given)
    objects = Counter(cases.groups[id] for id in plan.cases)
    assert set(objects.values()) == {2} and len(objects) == 17
    assert plan.cases == make_plan(given)[0].cases != make_plan({**given, "limit_seed": 1})[0].cases
    assert plan.cases != tuple(c.id for c in cases.split("dev")[:34])
    few = make_plan({**given, "cases": "neggen", "split": "test", "limit": 20})
    assert set(Counter(few[1].groups[id] for id in few[0].cases).values()) == {2}


def test_limit_seed_needs_limit(tmp_path: Path, capsys: Any):
    assert main(["bench", "generate", str(tmp_path / "run"), "-p", "none", "--limit-seed", "1"]) == 2
    assert "--limit-seed says which cases --limit takes; give both" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["demo-v1", "neggen-v1"])
def test_an_old_set_can_be_drawn_again_by_name(name: str, tmp_path: Path):
    plan, cases = make_plan({"point": ["none"], "cases": name, "limit": 3})
    run = Run.create(tmp_path / "run", plan, cases)
    assert Run.open(run.folder).cases == load_cases(name) and run.plan.cases_hash == load_cases(name).hash
