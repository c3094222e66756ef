"""`vsf bench generate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...libraries import offline_unless, quiet_libraries
from ..common import Problem, opt, progress_bar, say, warn, with_flags
from ..generate import as_problems
from .plans import plan_flags, planned

if TYPE_CHECKING:
    from ...bench.cases import CaseSet
    from ...bench.run import Run, RunPlan

_PLAN = "The plan (of a new run)"
_WHERE = "Where it is drawn"


def generate(
    run: Annotated[
        Path, typer.Argument(help="Folder of the run; alone, an unfinished run goes on.", show_default=False)
    ],
    *,
    point: Annotated[
        list[str] | None,
        opt(
            "What is compared; several times. NAME=METHOD:... names it.",
            "--point",
            "-p",
            panel=_PLAN,
            metavar="METHOD:KNOB=VALUE,...",
        ),
    ] = None,
    points: Annotated[Path | None, opt("A file of points, as a sweep writes it.", panel=_PLAN)] = None,
    split: Annotated[str | None, opt("dev, test or all (test).", panel=_PLAN)] = None,
    limit_seed: Annotated[int | None, opt("Which cases --limit takes (0).", panel=_PLAN, min=0)] = None,
    no_controls: Annotated[
        bool, typer.Option("--no-controls", help="Leave out the unrelated negatives.", rich_help_panel=_PLAN)
    ] = False,
    device: Annotated[str | None, opt("cpu, cuda, ... (default: cuda if there).", panel=_WHERE)] = None,
    workers: Annotated[
        int, typer.Option(help="Processes, or with --ray actors.", min=1, max=1024, rich_help_panel=_WHERE)
    ] = 1,
    ray: Annotated[
        str | None,
        opt("Draw on a Ray cluster (auto, HOST:PORT, local), one actor per GPU.", panel=_WHERE, metavar="ADDRESS"),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch an id from its hub.", rich_help_panel=_WHERE)
    ] = False,
    **given: Any,
) -> None:
    """Draw cases x points x seeds into a run folder; begin one, or go on with one.

    [bold]Examples[/bold]

    vsf bench generate out/run -p none -p vsf -p nag:scale=3 --limit 50

    vsf bench generate out/run

    vsf bench generate out/sd35 --model sd3.5-large-turbo --cases neggen --points best.json --ray auto
    """
    offline_unless(download)
    from ...bench.cluster import launched
    from ...bench.generate import begin
    from ...bench.run import Run, RunError

    given |= {"point": point, "points": points, "split": split, "limit_seed": limit_seed}
    given |= {"no_controls": no_controls or None}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        with launched(device) as ranks:
            if ranks.count > 1 and (workers > 1 or ray is not None):
                raise Problem("--workers and --ray do not go with a launch of several processes")
            first = ranks.rank == 0
            plan = make_plan(given) if given else None
            if first:
                if plan is not None:
                    opened = begin(run, *plan)
                elif (run / "plan.json").is_file() or run.is_dir():
                    opened = Run.open(run)
                else:
                    raise Problem(f"{run} holds no run; to begin one, say what is compared: --point none --point vsf")
                ranks.wait()
            else:
                ranks.wait()
                opened = Run.open(run)
            _draw(opened, ranks, workers, ray, download)
            ranks.wait()
            if first:
                _report(opened)
    except RunError as error:
        raise Problem(str(error)) from error
    except OSError as error:
        raise Problem(f"cannot write to {run}: {(error.strerror or str(error)).lower()}") from error


def _draw(run: Run, ranks: Any, workers: int, ray: str | None, download: bool) -> None:
    from ...bench.generate import generate as draw
    from ...bench.generate import missing

    if not (todo := sum(len(wanted) for _, _, wanted in missing(run))):
        return
    total = sum(1 for _ in run.plan.units)
    text = "drawing" if todo == total else f"drawing ({total - todo} of {total} are there)"
    with as_problems(), progress_bar(text, -(-todo // ranks.count)) as progress:
        quiet_libraries()
        draw(
            run,
            device=ranks.device,
            download=download,
            workers=workers,
            ray=ray,
            share=(ranks.rank, ranks.count),
            progress=progress if ranks.rank == 0 else None,
            warn=warn,
        )


def _report(run: Run) -> None:
    """What is there now."""
    units = list(run.plan.units)
    broken = [unit.id for unit in units if run.records.get(unit.id).get("broken")]
    if broken:
        more = ", ..." if len(broken) > 3 else ""
        warn(f"{len(broken)} of {len(units)} pictures are broken and drawn black: {', '.join(broken[:3])}{more}")
    say(f"{run.folder}  ({len(units)} pictures: {len(run.plan.points)} points, {len(run.plan.cases)} cases, "
        f"{len(run.plan.seeds)} seeds{', with controls' if run.plan.controls else ''})")  # fmt: skip


def make_plan(given: Mapping[str, Any]) -> tuple[RunPlan, CaseSet]:
    """The plan that the flags say, by their names, and its cases. Raises Problem, RunError."""
    from ...bench.points import parse_points, read_points
    from ...bench.run import RunError, RunPlan

    if "limit_seed" in given and "limit" not in given:
        raise Problem("--limit-seed says which cases --limit takes; give both")
    cases, chosen, common = planned(given, given.get("split", "test"), given.get("limit_seed", 0))
    points = read_points(given["points"]) if "points" in given else ()
    points += parse_points(given.get("point", ()), common["model"])
    if not points:
        raise Problem("nothing to compare: give --point METHOD (several times) or --points FILE")
    names = [point.name.lower() for point in points]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RunError(f"the point {twice!r} is in the file and given, too; name one of them: NAME=METHOD:...")
    controls = "no_controls" not in given
    return RunPlan(
        points=points, cases=chosen, cases_name=cases.name, cases_hash=cases.hash, controls=controls, **common
    ), cases


def register(bench: typer.Typer) -> None:
    """Add the commands of this file."""
    bench.command()(with_flags(generate, *plan_flags(_PLAN, limit="all", seeds="0-3")))
