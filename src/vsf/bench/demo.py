"""The whole benchmark on an embedded model: settings chosen on dev, frozen, run once on test, judged, reported.

Every stage goes on where it was stopped; a finished one is not done again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..demo.models import demo_model
from ..loading import DEMO
from .arms import DEFAULT_ARMS
from .cases import load_cases
from .chosen import freeze
from .generate import begin, generate
from .judges import OracleJudge, judge_run
from .page import write_report
from .points import read_points
from .report import build
from .run import Point, Run, RunError, RunPlan
from .search import run_sweep
from .sweep import Sweep

__all__ = ["CLIPS", "FULL", "QUICK", "Scope", "ablation_points", "frozen_points", "run_demo"]

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, in all)."""

REFERENCE = "vsf"
JUDGE = "oracle"


@dataclass(frozen=True)
class Scope:
    """How much is drawn.

    Attributes:
        budget, dev_cases: tries per method, and dev cases of each (one noise, with controls), spread over the objects.
        more: further points per method for the trade-off curves, drawn from one noise without controls.
        cases, seeds: of the test (None: all cases); ablation_seeds: of the ablations, on the same cases.
    """

    budget: int = 18
    dev_cases: int = 30
    more: int = 2
    cases: int | None = None
    seeds: int = 4
    ablation_seeds: int = 2


FULL = Scope()
CLIPS = Scope(budget=10, dev_cases=20, more=0, seeds=2, ablation_seeds=1)  # a clip costs several pictures
QUICK = Scope(budget=2, dev_cases=5, more=0, cases=12, seeds=1, ablation_seeds=1)


def frozen_points(model: str = DEMO) -> tuple[Point, ...]:
    """The settings that come with the package, chosen by an earlier sweep on the same dev cases (docs/evidence/unseen).

    Raises:
        RunError: none come with this model.
    """
    path = Path(str(files("vsf.bench").joinpath(f"frozen/{model}.json")))
    if not path.is_file():
        raise RunError(f"no frozen settings come with the model {model}; a sweep finds them")
    return read_points(path)


def ablation_points(vsf: Point) -> tuple[Point, ...]:
    """VSF at these settings with one ingredient left out: the offset, and what `vsf.guidance.variants` has."""
    from ..guidance.variants import ABLATIONS

    settings: dict[str, Any] = dict(vsf.settings)
    shared = {k: settings[k] for k in ("scale", "offset", "start", "stop", "blocks")}
    without = () if settings["offset"] == 0 else (Point("ablation-no-offset", settings | {"offset": 0.0}),)
    return (*without, *(Point(label, cls(**shared).settings()) for label, cls in ABLATIONS.items()))


def run_demo(
    out: str | Path,
    scope: Scope | None = None,
    *,
    model: str = DEMO,
    workers: int = 2,
    frozen: bool = False,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[Path, Path]:
    """Do all of it in `out`, and give the paths of the page and of its Markdown table.

    Args:
        scope: by default `FULL`, for a model of clips `CLIPS`.
        model: an embedded model's name.
        workers: processes that draw, one thread each on as many cores.
        frozen: take the settings that come with the package instead of sweeping.
        seed: of the sweep and of the tests.

    Raises:
        RunError, SweepError: `out` holds something else, or a method cannot be drawn.
        KeyError: an unknown model.
        OSError: it cannot be written to.
    """
    out = Path(out)
    if there := [name for name in ("plan.json", "sweep.json") if (out / name).exists()]:
        raise RunError(f"{out} is a folder of another command ({there[0]}); give another one")
    known = demo_model(model)
    scope = scope or (CLIPS if known.video else FULL)
    cases = load_cases(known.world)
    at: dict[str, Any] = {
        "model": model,
        "steps": known.steps,
        "guidance_scale": known.guidance_scale,
        "batch": known.batch,
    }
    sweep = None
    if frozen:
        points = frozen_points(model)
    else:
        dev = tuple(case.id for case in cases.sample("dev", scope.dev_cases))
        sweep = Sweep(out / "sweep", DEFAULT_ARMS, scope.budget, cases, dev, seed=seed, **at).create()
        run_sweep(sweep, workers=workers, progress=lambda *done: progress("choosing settings on dev", *done))
        points = freeze(sweep, scope.more)
    main = tuple(p for p in points if "+" not in p.name)
    curve = tuple(p for p in points if "+" in p.name)
    test = RunPlan(
        points=(Point("none", {"method": "none", "start": 0.0, "stop": 1.0, "blocks": None}), *main),
        cases=tuple(case.id for case in cases.sample("test", scope.cases)),
        cases_name=cases.name,
        cases_hash=cases.hash,
        seeds=tuple(range(scope.seeds)),
        **at,
    )
    plans = {"test": test}
    vsf = next(p for p in main if p.name == REFERENCE)
    plans["ablations"] = replace(test, points=ablation_points(vsf), seeds=tuple(range(scope.ablation_seeds)))
    if curve:
        plans["curve"] = replace(test, points=curve, seeds=(0,), controls=False)
    runs: list[Run] = []
    judge = OracleJudge(world=known.world)
    for name, plan in plans.items():
        run = begin(out / name, plan, cases)
        generate(run, workers=workers, progress=lambda *done, name=name: progress(f"drawing: {name}", *done))
        judge_run(run, judge, JUDGE, progress=lambda *done, name=name: progress(f"judging: {name}", *done))
        runs.append(run)
    progress("report", 0, 1)
    report = build(
        runs,
        judge=JUDGE,
        reference=REFERENCE,
        title=f"Negative prompts on the model {model}",
        sweep=sweep,
        seed=seed,
    )
    return write_report(report, out / "report.html")
