"""What transfers: each model's frozen settings on the test cases of the others, as a matrix per method.

Begins where `vsf bench demo` ended on several models: from their test runs come the settings, the cases and the pictures under
a model's own settings; only what one model draws under another one's settings is drawn here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from .. import stats
from ..demo.models import demo_model
from ..files import json_bytes, write_whole
from ..stats import Interval
from .compare import compare
from .demo import JUDGE, Progress
from .generate import begin, generate
from .judges import OracleJudge, judge_run
from .run import Point, Run, RunError
from .tables import METRICS, PRIMARY, Results, cell, describe

__all__ = ["Cell", "Matrix", "transfer", "write_matrix"]


@dataclass(frozen=True)
class Cell:
    """One method under the settings of `source`, drawn by `target`.

    Attributes:
        score: the figure, with its interval.
        difference: minus that under `target`'s own settings, over the same cases and noises; None where both are the same.
        p_holm: of that difference, corrected for all of the matrix.
    """

    arm: str
    source: str
    target: str
    settings: str
    score: Interval
    difference: Interval | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Matrix:
    """All cells; `metric` is what their scores are of."""

    metric: str
    models: tuple[str, ...]
    arms: tuple[str, ...]
    cells: tuple[Cell, ...]

    def at(self, arm: str, source: str, target: str) -> Cell:
        """One cell. StopIteration where it was not drawn."""
        return next(c for c in self.cells if (c.arm, c.source, c.target) == (arm, source, target))


def _tests(folders: Sequence[Path]) -> dict[str, Run]:
    """The test runs of finished benchmarks, by their models."""
    tests: dict[str, Run] = {}
    for folder in folders:
        if not (folder / "test" / "plan.json").is_file():
            raise RunError(f"{folder} holds no test of `vsf bench demo`")
        run = Run.open(folder / "test")
        if JUDGE not in run.judges():
            raise RunError(f"the test in {folder} is not judged yet; `vsf bench demo` goes on with it")
        if run.plan.model in tests:
            raise RunError(f"two of the folders are of the model {run.plan.model}")
        tests[run.plan.model] = run
    if len(tests) < 2:
        raise RunError("a transfer needs the benchmarks of at least two models")
    return tests


def transfer(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    workers: int = 2,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Matrix:
    """Draw, judge and compare all of it in `out`; stopped, it goes on where it was.

    Args:
        folders: of `run_demo`, one per model.
        workers: processes that draw.
        seed: of the tests.

    Raises:
        RunError: a folder without a judged test, fewer than two models, or a setting that a model refuses.
        OSError: `out` cannot be written to.
    """
    out, tests = Path(out), _tests([Path(folder) for folder in folders])
    chosen = {
        model: {point.name: point for point in run.plan.points if point.method != "none"}
        for model, run in tests.items()
    }
    arms = tuple(arm for arm in next(iter(chosen.values())) if all(arm in points for points in chosen.values()))
    drawn: dict[str, list[Run]] = {model: [run] for model, run in tests.items()}
    for source, target in itertools.permutations(tests, 2):
        points = tuple(Point(f"{arm}-from-{source}", chosen[source][arm].settings) for arm in arms)
        name, test = f"{source}-to-{target}", tests[target]
        run = begin(out / name, replace(test.plan, points=points), test.cases)
        generate(run, workers=workers, progress=lambda *done, name=name: progress(f"drawing: {name}", *done))
        judge = OracleJudge(world=demo_model(target).world)
        judge_run(run, judge, JUDGE, progress=lambda *done, name=name: progress(f"judging: {name}", *done))
        drawn[target].append(run)
    cells: list[Cell] = []
    rng = np.random.default_rng(seed)
    for target, runs in drawn.items():
        results = Results(runs, JUDGE)

        def made(arm: str, source: str, name: str, results: Results = results, target: str = target) -> Cell:
            score = results.interval(name, PRIMARY)
            if score is None:
                raise RunError(f"nothing that {target} drew as {name} could be judged")
            return Cell(arm, source, target, describe(results.points[name].settings), score)

        for arm in arms:
            cells.append(made(arm, target, arm))
            others = {f"{arm}-from-{source}": source for source in tests if source != target}
            for c in compare(results, arm, rng, others, (PRIMARY,)):
                cells.append(replace(made(arm, others[c.point], c.point), difference=c.difference, p_holm=c.p))
    compared = [i for i, c in enumerate(cells) if c.p_holm is not None]
    for i, p in zip(compared, stats.holm([cells[i].p_holm or 0.0 for i in compared]), strict=True):
        cells[i] = replace(cells[i], p_holm=float(p))
    return Matrix(PRIMARY, tuple(tests), arms, tuple(cells))


def write_matrix(matrix: Matrix, out: str | Path) -> tuple[Path, Path]:
    """Write transfer.md and transfer.json in `out`, and give their paths. Raises OSError."""
    out = Path(out)
    markdown, data = out / "transfer.md", out / "transfer.json"
    lines = [
        "# What transfers",
        "",
        f"{METRICS[matrix.metric].label.capitalize()}: {METRICS[matrix.metric].help}. Rows: the model that the settings were "
        "chosen on; columns: the model that drew with them, on its test cases. After the semicolon: the difference to that "
        "model's own settings over the same cases and noises; * beyond chance (Holm-corrected over all of them).",
    ]
    for arm in matrix.arms:
        lines += ["", f"## {arm}", "", "| chosen on | settings | " + " | ".join(matrix.models) + " |"]
        lines.append("|---" * (len(matrix.models) + 2) + "|")
        for source in matrix.models:
            row = [matrix.at(arm, source, target) for target in matrix.models]
            shown = [
                cell(c.score) if c.difference is None else
                f"{cell(c.score)}; {c.difference.mean:+.3f} ({c.difference.low:+.3f} to {c.difference.high:+.3f})"
                f"{'*' if (c.p_holm or 0.0) < 0.05 else ''}"
                for c in row
            ]  # fmt: skip
            lines.append(f"| {source} | {row[0].settings} | {' | '.join(shown)} |")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(markdown, ("\n".join(lines) + "\n").encode())
    write_whole(data, json_bytes({"metric": matrix.metric, "cells": [asdict(c) for c in matrix.cells]}, 1))
    return markdown, data
