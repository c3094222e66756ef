"""`vsf bench generate`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common import Problem, choose, progress_bar, quiet_libraries, say, warn
from ..generate import DTYPES, _size, as_problems, warn_of_unknown_words

if TYPE_CHECKING:
    from ...bench.cases import Case, CaseSet
    from ...bench.run import Plan, Run

_PLAN = "The plan (of a new run)"
_WHERE = "Where it is drawn"


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from "0-3" or "0,2,5-7". Raises Problem."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,15})(?:\s*-\s*(\d{1,15}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 0 <= last - first < 10_000:
            raise Problem(f"--seeds is {text!r}; allowed: numbers and ranges such as 0-3 or 0,2,5-7")
        seeds += range(first, last + 1)
    return tuple(seeds)


def read_cases(name: str) -> CaseSet:
    """A set that comes with vsf, or a file of cases. Raises Problem."""
    from ...bench.cases import load_cases

    try:
        return load_cases(name)
    except (OSError, ValueError) as error:
        raise Problem(str(error)) from error


def chosen_cases(cases: CaseSet, split: str, limit: int | None) -> tuple[Case, ...]:
    """The first `limit` cases of a split ("all": both). Raises Problem."""
    chosen = cases.cases if choose("split", split, ["dev", "test", "all"]) == "all" else cases.split(split)
    if not chosen:
        raise Problem(f"the cases {cases.name!r} have none in the split {split}")
    return chosen[:limit]


def generate(
    run: Annotated[
        Path, typer.Argument(help="Folder of the run; alone, an unfinished run goes on.", show_default=False)
    ],
    *,
    cases: Annotated[
        str | None,
        typer.Option(
            help="neggen, common, demo, or a file (default demo).", rich_help_panel=_PLAN, show_default=False
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="dev, test or all (default test).", rich_help_panel=_PLAN, show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first N cases.", rich_help_panel=_PLAN, show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="demo, a preset (see vsf models), a folder, or an id (default demo).",
            rich_help_panel=_PLAN,
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of an id.", rich_help_panel=_PLAN, show_default=False)
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(
            "--point",
            "-p",
            metavar="METHOD:KNOB=VALUE,...",
            help="What is compared; several times. NAME=METHOD:... names it.",
            rich_help_panel=_PLAN,
            show_default=False,
        ),
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(help="A file of points, as a sweep writes it.", rich_help_panel=_PLAN, show_default=False),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="0-3", help="Numbers and ranges (default 0-3).", rich_help_panel=_PLAN, show_default=False
        ),
    ] = None,
    no_controls: Annotated[
        bool, typer.Option("--no-controls", help="Leave out the unrelated negatives.", rich_help_panel=_PLAN)
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="Default: the preset's, else 8.", rich_help_panel=_PLAN, show_default=False
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            help="The pipeline's own (default: the preset's, else 0).", rich_help_panel=_PLAN, show_default=False
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS|WxH", help="Default: the model's own.", rich_help_panel=_PLAN, show_default=False
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Frames of a video.", rich_help_panel=_PLAN, show_default=False),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(DTYPES)} (default: bfloat16 on cuda, else float32).",
            rich_help_panel=_PLAN,
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Pictures at once (default: demo 32, else 1).",
            rich_help_panel=_PLAN,
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, ... (default: cuda if there).", rich_help_panel=_WHERE, show_default=False),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=1024, help="Processes, or with --ray actors.", rich_help_panel=_WHERE)
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Draw on a Ray cluster (auto, HOST:PORT, local), one actor per GPU.",
            rich_help_panel=_WHERE,
            show_default=False,
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch an id from its hub.", rich_help_panel=_WHERE)
    ] = False,
) -> None:
    """Draw cases x points x seeds into a run folder; begin one, or go on with one.

    [bold]Examples[/bold]

    vsf bench generate out/run -p none -p vsf -p nag:scale=3 --limit 50

    vsf bench generate out/run

    vsf bench generate out/sd35 --model sd3.5-large-turbo --cases neggen --points best.json --ray auto
    """
    if not download:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub library is imported
    from ...bench.cluster import launched
    from ...bench.generate import begin
    from ...bench.generate import generate as draw
    from ...bench.run import Run, RunError

    given = {
        "--cases": cases, "--split": split, "--limit": limit, "--model": model, "--revision": revision, "--point": point,
        "--points": points, "--seeds": seeds, "--no-controls": no_controls or None, "--steps": steps, "--size": size,
        "--guidance-scale": guidance_scale, "--frames": frames, "--dtype": dtype, "--batch": batch,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    try:
        with launched(device) as ranks:
            if ranks.count > 1 and (workers > 1 or ray is not None):
                raise Problem("--workers and --ray do not go with a launch of several processes")
            first = ranks.rank == 0
            plan = _plan(given) if given else None
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
            _draw(opened, draw, ranks, ranks.device, workers, ray, download)
            ranks.wait()
            if first:
                _report(opened)
    except RunError as error:
        raise Problem(str(error)) from error
    except OSError as error:
        raise Problem(f"cannot write to {run}: {(error.strerror or str(error)).lower()}") from error


def _draw(run: Run, draw: Any, ranks: Any, device: str | None, workers: int, ray: str | None, download: bool) -> None:
    from ...bench.generate import missing

    if not (todo := sum(len(wanted) for _, _, wanted in missing(run))):
        return
    total = sum(1 for _ in run.plan.units)
    text = "drawing" if todo == total else f"drawing ({total - todo} of {total} are there)"
    with as_problems(), progress_bar(text, -(-todo // ranks.count)) as progress:
        quiet_libraries()
        draw(
            run,
            device=device,
            download=download,
            workers=workers,
            ray=ray,
            share=ranks.share,
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


def _plan(given: dict[str, Any]) -> tuple[Plan, CaseSet]:
    """A plan from the options, with the preset's settings where the model is one. Raises Problem, RunError."""
    from ...bench.points import parse_points, read_points
    from ...bench.run import Plan, RunError
    from ...presets import PRESETS

    model = given.get("--model", "demo")
    preset = PRESETS.get(model)
    if preset is not None and preset.needs_image:
        raise Problem(f"{preset.name} edits a picture, which the benchmark cannot give it")
    if preset is not None and "--revision" in given:
        raise Problem("--revision is of an id; a preset names its own model")
    points = read_points(given["--points"]) if "--points" in given else ()
    points += parse_points(given.get("--point", ()), model)
    if not points:
        raise Problem("nothing to compare: give --point METHOD (several times) or --points FILE")
    names = [point.name.lower() for point in points]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RunError(f"the point {twice!r} is in the file and given, too; name one of them: NAME=METHOD:...")
    if "--dtype" in given:
        choose("dtype", given["--dtype"], DTYPES)
    cases = read_cases(given.get("--cases", "demo"))
    chosen = chosen_cases(cases, given.get("--split", "test"), given.get("--limit"))
    if model == "demo":
        warn_of_unknown_words(*(case.prompt for case in chosen), *(case.negative for case in chosen))
    steps = given.get("--steps", 8 if preset is None else preset.steps)
    extra: dict[str, Any] = {} if preset is None else dict(preset.call)
    if preset is not None and steps != preset.steps:
        extra = {k: v for k, v in extra.items() if k not in ("timesteps", "sigmas")}
    if "--frames" in given:
        extra["num_frames"] = given["--frames"]
    plan = Plan(
        model,
        points,
        tuple(case.id for case in chosen),
        cases.name,
        cases.hash,
        seeds=parse_seeds(given.get("--seeds", "0-3")),
        controls="--no-controls" not in given,
        steps=steps,
        guidance_scale=given.get("--guidance-scale", 0.0 if preset is None else preset.guidance_scale),
        size=_size(given.get("--size")),
        dtype=given.get("--dtype"),
        revision=given.get("--revision"),
        batch=given.get("--batch", 32 if model == "demo" else 1),
        extra=extra,
    )
    return plan, cases


def register(bench: typer.Typer) -> None:
    """Add the commands of this file."""
    bench.command()(generate)
