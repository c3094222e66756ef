"""The whole benchmark on the demo model: settings chosen on dev, frozen, run once on test, judged, reported.

Every stage goes on where it was stopped; a finished one is not done again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from .cases import load_cases
from .generate import begin, generate
from .judges import OracleJudge, judge_run
from .points import read_points
from .report import build, write_report
from .run import Plan, Point, Run, RunError
from .sweep import DEFAULT_ARMS, Sweep, run_sweep

__all__ = ["FULL", "QUICK", "Scope", "ablation_points", "frozen_points", "run_demo"]

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, in all)."""

REFERENCE = "vsf"
JUDGE = "oracle"


@dataclass(frozen=True)
class Scope:
    """How much is drawn.

    Attributes:
        budget, dev_cases: tries per method, and dev cases of each (one noise, with controls).
        more: further points per method for the trade-off curves, drawn from one noise without controls.
        cases, seeds: of the test; ablation_seeds: of the ablations, on the same cases.
    """

    budget: int = 18
    dev_cases: int = 30
    more: int = 2
    cases: int = 150
    seeds: int = 4
    ablation_seeds: int = 2


FULL = Scope()
QUICK = Scope(budget=2, dev_cases=5, more=0, cases=12, seeds=1, ablation_seeds=1)


def frozen_points() -> tuple[Point, ...]:
    """The settings that come with the package, chosen on dev by an earlier sweep."""
    return read_points(Path(str(files("vsf.bench").joinpath("frozen/demo.json"))))


def ablation_points(vsf: Point) -> tuple[Point, ...]:
    """VSF at these settings with one ingredient left out: the offset, and what `vsf.bench.ablations` has."""
    from .ablations import ABLATIONS

    settings: dict[str, Any] = dict(vsf.settings)
    shared = {k: settings[k] for k in ("scale", "offset", "start", "stop", "blocks")}
    without = () if settings["offset"] == 0 else (Point("ablation-no-offset", settings | {"offset": 0.0}),)
    return (*without, *(Point(label, cls(**shared).settings()) for label, cls in ABLATIONS.items()))


def run_demo(
    out: str | Path,
    scope: Scope = FULL,
    *,
    workers: int = 2,
    frozen: bool = False,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[Path, Path]:
    """Do all of it in `out`, and give the paths of the page and of its Markdown table.

    Args:
        workers: processes that draw, one thread each on as many cores.
        frozen: take the settings that come with the package instead of sweeping.
        seed: of the sweep and of the tests.

    Raises:
        RunError, SweepError: `out` holds something else, or a method cannot be drawn.
        OSError: it cannot be written to.
    """
    out = Path(out)
    if there := [name for name in ("plan.json", "sweep.json") if (out / name).exists()]:
        raise RunError(f"{out} is a folder of another command ({there[0]}); give another one")
    cases = load_cases("demo")
    sweep = None
    if frozen:
        points = frozen_points()
    else:
        dev = tuple(case.id for case in cases.split("dev")[: scope.dev_cases])
        sweep = Sweep(out / "sweep", DEFAULT_ARMS, scope.budget, cases, dev, seed=seed).create()
        run_sweep(sweep, workers=workers, progress=lambda *at: progress("choosing settings on dev", *at))
        points = sweep.freeze(scope.more)
    main = tuple(p for p in points if "+" not in p.name)
    curve = tuple(p for p in points if "+" in p.name)
    test = Plan(
        model="demo",
        points=(Point("none", {"method": "none", "start": 0.0, "stop": 1.0, "blocks": None}), *main),
        cases=tuple(case.id for case in cases.split("test")[: scope.cases]),
        cases_name=cases.name,
        cases_hash=cases.hash,
        seeds=tuple(range(scope.seeds)),
        batch=32,
    )
    plans = {"test": test}
    vsf = next(p for p in main if p.name == REFERENCE)
    plans["ablations"] = replace(test, points=ablation_points(vsf), seeds=tuple(range(scope.ablation_seeds)))
    if curve:
        plans["curve"] = replace(test, points=curve, seeds=(0,), controls=False)
    runs: list[Run] = []
    judge = OracleJudge()
    for name, plan in plans.items():
        run = begin(out / name, plan, cases)
        generate(run, workers=workers, progress=lambda *at, name=name: progress(f"drawing: {name}", *at))
        judge_run(run, judge, JUDGE, progress=lambda *at, name=name: progress(f"judging: {name}", *at))
        runs.append(run)
    progress("report", 0, 1)
    report = build(
        runs,
        judge=JUDGE,
        reference=REFERENCE,
        title="Negative prompts on the demo world",
        sweep=sweep,
        seed=seed,
    )
    return write_report(report, out / "report.html")
