"""`vsf bench transfer`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ...libraries import offline_unless, quiet_libraries
from ..common import opt, problems, say
from ..generate import as_problems
from .demo import stages


def transfer(
    folders: Annotated[list[Path], typer.Argument(help="Folders of `vsf bench demo`, one per model.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; what is in it already is not done again.")] = Path(
        "out/transfer"
    ),
    workers: Annotated[int | None, opt("Processes that draw (one per core, up to 8).", min=1, max=64)] = None,
    seed: Annotated[int, typer.Option(help="Of the tests.", min=0)] = 0,
) -> None:
    """Each model's frozen settings on the test cases of the others: a matrix per method, transfer.md and transfer.json.

    vsf bench transfer out/demo out/flux out/wan
    """
    offline_unless(False)
    from ...bench.transfer import transfer as run
    from ...bench.transfer import write_matrix

    with problems(out), as_problems(), stages() as stage:
        quiet_libraries()
        matrix = run(folders, out, workers=workers or min(8, os.cpu_count() or 1), seed=seed, progress=stage)
        table, data = write_matrix(matrix, out)
    say(table.read_text("utf-8"))
    say(f"{table}  {data}")


def register(bench: typer.Typer) -> None:
    """Add the command."""
    bench.command()(transfer)
