"""`vsf bench report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..common import Problem, opt, progress_bar, say, warn, writable


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of judged runs, or one file of answers (.csv.gz).", metavar="RUN...")
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file; a Markdown table is put beside it.")] = Path(
        "report.html"
    ),
    judge: Annotated[str | None, opt("Whose answers, where several judged.", "--judge", "-j")] = None,
    reference: Annotated[str | None, opt("Point that the others are compared with (vsf, else the first).")] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Negative prompts, measured",
    sweep: Annotated[Path | None, opt("Folder of the sweep that chose the settings.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--run", help="Of a file of answers, only this run; several times.", metavar="NAME"),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            help="Also write all answers to this file (.csv.gz), from which the page's figures can be had again."
        ),
    ] = None,
    figures: Annotated[
        str | None, opt("What is tested against the reference, separated by commas; choose before there are answers.")
    ] = None,
    sheet: Annotated[int, typer.Option(help="Cases on the contact sheet.", min=1, max=2000)] = 20,
    seed: Annotated[int, typer.Option(help="Of permutation tests and bootstraps.", min=0)] = 0,
) -> None:
    """Write one self-contained page about judged runs, and a Markdown table in the paper's format.

    vsf bench report out/test out/ablations --sweep out/sweep --out report.html

    vsf bench report answers.csv.gz --run test --out report.html
    """
    writable(out, ".html")
    if answers is not None:
        writable(answers, ".gz")
    from ...bench.answers import read_answers, write_answers
    from ...bench.page import write_report
    from ...bench.report import build
    from ...bench.run import Run, RunError
    from ...bench.sweep import Sweep, SweepError
    from ...bench.tables import TESTED

    try:
        stored = [path for path in runs if path.is_file()]
        if stored and len(runs) > 1:
            raise Problem(f"{stored[0]} is a file of answers, which stands alone; got {len(runs)} runs")
        if only and not stored:
            raise Problem("--run chooses runs of a file of answers; of folders, name those you want")
        opened = read_answers(stored[0], only or ()) if stored else [Run.open(folder) for folder in runs]
        tuned = None if sweep is None else Sweep.open(sweep)
        with progress_bar("computing"):
            tested = TESTED if figures is None else tuple(name.strip() for name in figures.split(","))
            made = build(
                opened, judge=judge, reference=reference, title=title, sweep=tuned, seed=seed, cases=sheet, tested=tested
            )  # fmt: skip
            page, table = write_report(made, out)
            if answers is not None:
                write_answers(answers, opened, made.results.judge)
    except (RunError, SweepError) as error:
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
