"""`vsf bench sweep`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common import Problem, choose, progress_bar, quiet_libraries, say
from ..generate import as_problems

_WHAT = "The sweep (of a new folder)"
_WHERE = "Where it runs"


def _new(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_WHAT, show_default=False, **more)


def sweep(
    folder: Annotated[
        Path, typer.Argument(metavar="SWEEP", help="Folder of the sweep; alone, an unfinished one goes on.")
    ],
    *,
    arms: Annotated[str | None, _new(help="Names, separated by commas; --list shows them.")] = None,
    budget: Annotated[int | None, _new(min=1, help="Tries per arm (16).")] = None,
    objective: Annotated[str | None, _new(help="balanced (default) or paper.")] = None,
    cases: Annotated[str | None, _new(help="neggen, common, demo, or a file (demo); its dev split.")] = None,
    limit: Annotated[int | None, _new(min=1, help="Only the first N dev cases (30).")] = None,
    seeds: Annotated[str | None, _new(metavar="0-3", help="Noises of each case (0).")] = None,
    model: Annotated[str | None, _new(help="demo, a preset, a folder, or an id (demo).")] = None,
    revision: Annotated[str | None, _new(help="Branch, tag or commit of an id.")] = None,
    steps: Annotated[int | None, _new(min=1, max=1000, help="The preset's, else 8.")] = None,
    guidance_scale: Annotated[float | None, _new(help="The pipeline's own (the preset's, else 0).")] = None,
    size: Annotated[str | None, _new(metavar="PIXELS|WxH", help="The model's own.")] = None,
    dtype: Annotated[str | None, _new(help="bfloat16 on cuda, else float32.")] = None,
    batch: Annotated[int | None, _new(min=1, max=1024, help="Pictures at once (demo 32, else 1).")] = None,
    judge: Annotated[str | None, _new("--judge", "-j", help="oracle (default), api or local.")] = None,
    judge_model: Annotated[str | None, _new(help="Model of the judge api or local.")] = None,
    base_url: Annotated[str | None, _new(help="Endpoint of the judge api.")] = None,
    seed: Annotated[int | None, _new(min=0, help="Of the search (0).")] = None,
    storage: Annotated[
        str | None, _new(metavar="URL", help="Optuna's storage, such as sqlite:///sweep.db (a journal in the folder).")
    ] = None,
    more: Annotated[
        int, typer.Option(min=0, max=20, help="Also freeze so many further points of each arm's Pareto front.")
    ] = 0,
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Processes on this machine.", rich_help_panel=_WHERE)
    ] = 1,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, or one per worker: cuda:0,cuda:1.", rich_help_panel=_WHERE, show_default=False),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Show the arms and their ranges, and do nothing.")] = False,
) -> None:
    """Choose settings on dev cases, with as many tries for every method, and freeze them.

    [bold]Examples[/bold]

    vsf bench sweep out/sweep --workers 2

    vsf bench sweep out/sweep --arms vsf,nag --budget 30 --objective paper

    vsf bench generate out/test --points out/sweep/points.json -p none

    Any number of these commands may work on one folder at the same time. Killed ones lose nothing: say it again.
    """
    from ...bench.cases import CasesError
    from ...bench.run import RunError
    from ...bench.sweep import ARMS, DEFAULT_ARMS, Sweep, SweepError, run_sweep

    if show:
        _list()
        return
    given = {
        "arms": arms, "budget": budget, "objective": objective, "cases": cases, "limit": limit, "seeds": seeds,
        "model": model, "revision": revision, "steps": steps, "guidance_scale": guidance_scale, "size": size,
        "dtype": dtype, "batch": batch, "judge": judge, "judge_model": judge_model, "base_url": base_url,
        "seed": seed, "storage": storage,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub library is imported
    try:
        if given or not (folder / "sweep.json").is_file():
            names = tuple(a.strip() for a in arms.split(",")) if arms else DEFAULT_ARMS
            for name in names:
                choose("arm", name, list(ARMS))
            plan = _plan(folder, names, given)
        else:
            plan = Sweep.open(folder)
        total = len(plan.arms) * plan.budget
        with as_problems(), progress_bar(f"trying settings ({plan.images} pictures)", total) as progress:
            quiet_libraries()
            run_sweep(plan, workers=workers, devices=device.split(",") if device else (), progress=progress)
        plan.freeze(more)
    except (SweepError, RunError, CasesError) as error:
        raise Problem(str(error)) from error
    except OSError as error:
        raise Problem(f"cannot write in {folder}: {error.strerror or error}") from error
    _show(plan)


def _plan(folder: Path, arms: tuple[str, ...], given: dict[str, Any]) -> Any:
    from ...bench.sweep import Sweep
    from .generate import _plan as plan_of

    words = {
        "cases": "--cases", "seeds": "--seeds", "model": "--model", "revision": "--revision", "steps": "--steps",
        "guidance_scale": "--guidance-scale", "size": "--size", "dtype": "--dtype", "batch": "--batch",
    }  # fmt: skip
    plan, cases = plan_of(
        {"--seeds": "0"}
        | {words[name]: value for name, value in given.items() if name in words}
        | {"--point": ["none"], "--split": "dev", "--limit": given.get("limit", 30)}
    )
    judge: dict[str, Any] = {"kind": choose("judge", given.get("judge", "oracle"), ["oracle", "api", "local"])}
    for option, name, needed in (("judge_model", "model", ("api", "local")), ("base_url", "base_url", ("api",))):
        if option in given:
            if judge["kind"] not in needed:
                raise Problem(f"--{option.replace('_', '-')} is of the judge {' or '.join(needed)}")
            judge[name] = given[option]
    if judge["kind"] != "oracle" and "model" not in judge:
        raise Problem(f"the judge {judge['kind']} needs --judge-model")
    return Sweep(
        folder, arms, given.get("budget", 16), cases, plan.cases, plan.seeds, given.get("objective", "balanced"),
        plan.model, plan.revision, plan.dtype, plan.steps, plan.guidance_scale, plan.size, plan.batch, plan.extra,
        judge, given.get("storage"), given.get("seed", 0),
    ).create()  # fmt: skip


def _list() -> None:
    from ...bench.sweep import ARMS, DEFAULT_ARMS

    for arm in ARMS.values():
        ranges = ", ".join(
            f"{k} {r.low:g} to {r.high:g}" + (f" by {r.step:g}" if r.step else "") + (" (log)" if r.log else "")
            for k, r in arm.space.items()
        )
        fixed = " ".join(str(v) for v in arm.fixed.values())
        say(f"{arm.name}{'' if arm.name in DEFAULT_ARMS else ' (not by default)'}: {fixed}; {ranges}")


def _show(sweep: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from ...bench.sweep import OBJECTIVES, area
    from ...bench.tables import describe

    rows = sweep.rows()
    best = sweep.best(rows)
    table = Table(title=f"best of {sweep.budget} tries each on {len(sweep.chosen)} dev cases", title_justify="left")
    for name in ("arm", "failed", sweep.objective, "positive", "negative", "area", "settings"):
        table.add_column(name, justify="left" if name in ("arm", "settings") else "right", overflow="fold")
    for arm in sweep.arms:
        mine = [r for r in rows if r.arm == arm]
        row = best[arm]
        table.add_row(
            arm, str(sum(r.state == "fail" for r in mine)), f"{row.value:.3f}", f"{row.scores['positive']:.3f}",
            f"{row.scores['negative']:.3f}", f"{area(mine):.3f}", describe(row.settings),
        )  # fmt: skip
    console = Console()
    console.print(table, highlight=False)
    front = sweep.front(None, rows)
    console.print("Pareto front (negative, positive): " + "; ".join(
        f"{r.arm} {r.scores['negative']:.2f}, {r.scores['positive']:.2f}" for r in front), highlight=False)  # fmt: skip
    console.print(f"{OBJECTIVES[sweep.objective].name}: {OBJECTIVES[sweep.objective].help}", highlight=False)
    say(str(sweep.folder / "points.json"))


def register(bench: typer.Typer) -> None:
    """Add the commands of this file."""
    bench.command()(sweep)
