"""`vsf bench export`: what judges said about a run, as labelled pictures that do not say what drew them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..common import opt, problems
from ..judge.labels import keep
from .judge import open_run


def export(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False, metavar="RUN")],
    *,
    judge: Annotated[
        list[str], opt("Whose answers, people's among them; may be given several times.", "--judge", "-j")
    ],
    out: Annotated[Path, opt("The folder of labels; one that is there gets the new ones added.", "--out", "-o")],
) -> None:
    """Turn judges' answers about a run, finished or not, into labels: pictures, questions, answers, no method.

    vsf bench export RUN --judge oracle --judge human-ann --out labels/
    """
    from ...judging import from_run

    with problems(out):
        keep(from_run(open_run(folder), judge), out)


def register(bench: typer.Typer) -> None:
    """Add the command of this file."""
    bench.command()(export)
