"""`vsf judge ranks`: what the choice of a judge, and its errors, change in the benchmark's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..bench.judge import open_run
from ..common import opt, problems, progress_bar, say, writable

if TYPE_CHECKING:
    from ...judging.correction import Corrected, Judged
    from ...stats import Interval

_COLUMNS = {"raw": "as judged", "gladen": "Rogan-Gladen", "powered": "prediction-powered", "true": "labelled alone"}


def ranks(
    folder: Annotated[Path, typer.Argument(help="Folder of a judged run.", show_default=False, metavar="RUN")],
    *,
    judge: Annotated[list[str], opt("Whose answers; may be given several times.", "--judge", "-j")],
    labels: Annotated[Path, opt("A folder of labels with known answers, of this run's pictures or of others.")],
    figure: Annotated[str, typer.Option(help="positive, negative or unrelated.")] = "negative",
    true: Annotated[
        str | None,
        opt("Whose answers are true; else what was adjudicated, or all but these judges agree on.", "--truth"),
    ] = None,
    out: Annotated[Path | None, opt("Write all figures to this .json file, too.")] = None,
) -> None:
    """The order of a run's points under each judge, as judged and with the judge's errors taken into account.

    vsf judge ranks RUN --judge oracle --judge local-mine --labels labels/
    """
    from ...files import json_bytes, write_whole
    from ...judging import Labels
    from ...judging.correction import corrected_rates

    if out is not None:
        writable(out, ".json")
    found: list[Judged] = []
    with problems(out or folder):
        known, run = Labels.open(labels), open_run(folder)
        with progress_bar("correcting", len(judge)) as progress:
            for name in dict.fromkeys(judge):
                found.append(corrected_rates(run, name, known, figure, true, judge))
                progress(len(found), len(judge))
        if out is not None:
            write_whole(out, json_bytes([asdict(one) for one in found], 1))
    for one in found:
        _show(one, figure)


def _show(one: Judged, figure: str) -> None:
    from rich.console import Console
    from rich.table import Table

    rates = [(rate, word) for rate, word in ((one.sensitivity, "yes"), (one.specificity, "no")) if rate is not None]
    errs = " and ".join(f"{word} to {_text(rate)} of {rate.n} that are truly {word}" for rate, word in rates)
    say(f"{one.judge} says {errs}")
    table = Table(box=None, pad_edge=False)
    table.add_column(figure)
    for title in _COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("labelled", justify="right")
    places = {column: _places(one.points, column) for column in _COLUMNS}
    for point in one.points:
        cells = [
            "-" if (value := getattr(point, column)) is None else f"{_text(value)} {places[column][point.point]:3}"
            for column in _COLUMNS
        ]
        table.add_row(point.point, *cells, str(point.labelled))
    Console(width=None if Console().is_terminal else 170, highlight=False).print(table)


def _places(points: Sequence[Corrected], column: str) -> dict[str, int]:
    """1 for the highest; equal rates share a place."""
    there = {point.point: value.mean for point in points if (value := getattr(point, column)) is not None}
    return {name: 1 + sum(other > mean for other in there.values()) for name, mean in there.items()}


def _text(value: Interval) -> str:
    return f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"


def register(judge: typer.Typer) -> None:
    """Add the command of this file."""
    judge.command()(ranks)
