"""`vsf bench sweep`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from ...bench.judges import JUDGES
from ...libraries import offline_unless, quiet_libraries
from ..common import choose, opt, problems, progress_bar, say, spelled, with_flags
from ..generate import as_problems
from .judge import judge_flags
from .plans import plan_flags, planned

_WHAT = "The sweep (of a new folder)"
_WHERE = "Where it runs"


def sweep(
    folder: Annotated[
        Path, typer.Argument(help="Folder of the sweep; alone, an unfinished one goes on.", metavar="SWEEP")
    ],
    *,
    arms: Annotated[
        str | None, opt("Names of arms or of sets of them (one-knob), separated by commas; --list.", panel=_WHAT)
    ] = None,
    budget: Annotated[int | None, opt("Tries per arm (16).", panel=_WHAT, min=1)] = None,
    objective: Annotated[str | None, opt("balanced (default) or paper.", panel=_WHAT)] = None,
    judge: Annotated[str | None, opt(f"One of {', '.join(JUDGES)} (oracle).", "--judge", "-j", panel=_WHAT)] = None,
    seed: Annotated[int | None, opt("Of the search (0).", panel=_WHAT, min=0)] = None,
    storage: Annotated[
        str | None,
        opt("Optuna's storage, such as sqlite:///sweep.db (a journal in the folder).", panel=_WHAT, metavar="URL"),
    ] = None,
    more: Annotated[
        int, typer.Option(help="Also freeze so many further points of each arm's Pareto front.", min=0, max=20)
    ] = 0,
    workers: Annotated[
        int, typer.Option(help="Processes on this machine.", min=1, max=256, rich_help_panel=_WHERE)
    ] = 1,
    device: Annotated[str | None, opt("cpu, cuda, or one per worker: cuda:0,cuda:1.", panel=_WHERE)] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch ids from their hub.", rich_help_panel=_WHERE)
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="Show the arms and their ranges, and do nothing.")] = False,
    **given: Any,
) -> None:
    """Choose settings on dev cases, with as many tries for every method, and freeze them.

    [bold]Examples[/bold]

    vsf bench sweep out/sweep --workers 2

    vsf bench sweep out/sweep --arms vsf,nag --budget 30 --objective paper

    vsf bench generate out/test --points out/sweep/points.json -p none

    Any number of these commands may work on one folder at the same time. Killed ones lose nothing: say it again.
    """
    from ...bench.arms import ARM_SETS, ARMS
    from ...bench.chosen import freeze
    from ...bench.search import begun, run_sweep
    from ...bench.sweep import Sweep

    if show:
        _list()
        return
    given |= {"arms": arms, "budget": budget, "objective": objective, "judge": judge, "seed": seed, "storage": storage}
    given = {name: value for name, value in given.items() if value is not None}
    offline_unless(download)
    with problems(folder):
        begins: AbstractContextManager[Any] = nullcontext()
        if given or not (folder / "sweep.json").is_file():
            names: list[str] = []
            for name in (a.strip() for a in (arms or "default").split(",")):
                choose("arm", name, [*ARMS, *ARM_SETS])
                names += ARM_SETS.get(name, (name,))
            plan = _plan(folder, tuple(names), given)
            begins = begun(plan)
        else:
            plan = Sweep.open(folder)
        total = len(plan.arms) * plan.budget
        text = f"trying settings ({plan.images} pictures)"
        with as_problems(), begins, progress_bar(text, total) as progress:
            quiet_libraries()
            devices = device.split(",") if device else ()
            run_sweep(plan, workers=workers, devices=devices, download=download, progress=progress)
        freeze(plan, more)
    _show(plan)


def _plan(folder: Path, arms: tuple[str, ...], given: dict[str, Any]) -> Any:
    from ...bench.sweep import Sweep

    cases, chosen, common = planned({"limit": 30, "seeds": "0", **given}, "dev")
    judge = given.get("judge", "oracle")
    args = {name.removeprefix("judge_"): value for name, value in given.items() if name.startswith("judge_")}
    JUDGES.check(judge, args, lambda name: spelled(f"judge_{name}"))
    return Sweep(
        folder, arms, given.get("budget", 16), cases, chosen, objective=given.get("objective", "balanced"),
        judge={"name": judge, "args": args}, storage=given.get("storage"), seed=given.get("seed", 0), **common,
    )  # fmt: skip


def _list() -> None:
    from ...bench.arms import ARM_SETS, ARMS, DEFAULT_ARMS

    for arm in ARMS.values():
        ranges = ", ".join(
            f"{k} {r.low:g} to {r.high:g}" + (f" by {r.step:g}" if r.step else "") + (" (log)" if r.log else "")
            for k, r in arm.space.items()
        )
        fixed = " ".join(str(v) for v in arm.fixed.values())
        say(f"{arm.name}{'' if arm.name in DEFAULT_ARMS else ' (not by default)'}: {fixed}; {ranges}")
    for name, arms in ARM_SETS.items():
        say(f"{name}: {', '.join(arms)}")


def _show(sweep: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from ...bench.arms import ARMS
    from ...bench.chosen import area, best, front
    from ...bench.objectives import OBJECTIVES
    from ...bench.tables import describe
    from ...bench.tries import Tries

    tries = Tries(sweep).all()
    top = best(tries)
    table = Table(title=f"best of {sweep.budget} tries each on {len(sweep.chosen)} dev cases", title_justify="left")
    for name in ("arm", "failed", sweep.objective, "positive", "negative", "area", "settings"):
        table.add_column(name, justify="left" if name in ("arm", "settings") else "right", overflow="fold")
    for arm in sweep.arms:
        mine = [t for t in tries if t.arm == arm]
        one = top[arm]
        table.add_row(
            arm, str(sum(t.state == "fail" for t in mine)), f"{one.value:.3f}", f"{one.scores['positive']:.3f}",
            f"{one.scores['negative']:.3f}", f"{area(mine):.3f}", describe(one.settings),
        )  # fmt: skip
    console = Console()
    console.print(table, highlight=False)
    console.print("Pareto front (negative, positive): " + "; ".join(
        f"{t.arm} {t.scores['negative']:.2f}, {t.scores['positive']:.2f}" for t in front(tries)), highlight=False)  # fmt: skip
    for arm, one in top.items():
        for text in ARMS[arm].on_bound(one.settings):
            console.print(
                f"{arm}: {text}{', as its paper has it' if ARMS[arm].paper else '; widen it'}", highlight=False
            )
    console.print(f"{OBJECTIVES[sweep.objective].name}: {OBJECTIVES[sweep.objective].help}", highlight=False)
    say(str(sweep.folder / "points.json"))


def register(bench: typer.Typer) -> None:
    """Add the commands of this file."""
    bench.command()(with_flags(sweep, *plan_flags(_WHAT, limit="30", seeds="0"), *judge_flags("judge_")))
