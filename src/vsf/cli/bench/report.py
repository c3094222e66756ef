"""`vsf bench report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..common import Problem, progress_bar, say, warn, writable


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of judged runs.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file; a Markdown table is put beside it.")] = Path(
        "report.html"
    ),
    judge: Annotated[
        str | None, typer.Option("--judge", "-j", help="Whose answers, where several judged.", show_default=False)
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Point that the others are compared with (vsf, else the first).", show_default=False),
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Negative prompts, measured",
    sweep: Annotated[
        Path | None, typer.Option(help="Folder of the sweep that chose the settings.", show_default=False)
    ] = None,
    sheet: Annotated[int, typer.Option(min=1, max=2000, help="Cases on the contact sheet.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of permutation tests and bootstraps.")] = 0,
) -> None:
    """Write one self-contained page about judged runs, and a Markdown table in the paper's format.

    vsf bench report out/test out/ablations --sweep out/sweep --out report.html
    """
    writable(out, ".html")
    from ...bench.plots import PlotError
    from ...bench.report import build, write_report
    from ...bench.run import Run, RunError
    from ...bench.sweep import Sweep, SweepError

    try:
        opened = [Run.open(folder) for folder in runs]
        tuned = None if sweep is None else Sweep.open(sweep)
        with progress_bar("computing"):
            made = build(opened, judge=judge, reference=reference, title=title, sweep=tuned, seed=seed, cases=sheet)
            page, table = write_report(made, out)
    except (RunError, SweepError, PlotError) as error:
        raise Problem(str(error)) from error
    except OSError as error:
        raise Problem(f"cannot write {out}: {error.strerror or error}") from error
    for finding in made.findings:
        say(f"- {finding}")
    for note in made.notes:
        warn(note)
    say(f"{page}  {table}")


def register(bench: typer.Typer) -> None:
    """Add the commands of this file."""
    bench.command()(report)
