"""`vsf bench demo`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ...demo.models import MODELS
from ...libraries import offline_unless, quiet_libraries
from ...loading import DEMO
from ..common import choose, opt, problems, progress_bar, say
from ..generate import as_problems


def demo(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; what is in it already is not done again.")] = Path(
        "out/bench-demo"
    ),
    model: Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}.")] = DEMO,
    quick: Annotated[bool, typer.Option("--quick", help="The same path with a few cases: to see it work.")] = False,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Take the settings that come with vsf instead of sweeping.")
    ] = False,
    workers: Annotated[int | None, opt("Processes that draw (one per core, up to 8).", min=1, max=64)] = None,
    seed: Annotated[int, typer.Option(help="Of the sweep and of the tests.", min=0)] = 0,
) -> None:
    """The whole benchmark on an embedded model: sweep on dev, frozen test, controls, ablations, page.

    vsf bench demo --quick

    About 18,000 pictures, or 7,300 clips; --quick 440 pictures, which took a minute and a half of processor time. Stopped, it
    goes on where it was.
    """
    offline_unless(False)
    from ...bench.demo import QUICK, run_demo

    with problems(out), as_problems(), stages() as stage:
        quiet_libraries()
        page, table = run_demo(
            out,
            QUICK if quick else None,
            model=choose("model", model, list(MODELS)),
            workers=workers or min(8, os.cpu_count() or 1),
            frozen=frozen,
            seed=seed,
            progress=stage,
        )
    say(table.read_text("utf-8"))
    say(f"{page}  {table}")


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar per stage, and a line on stderr where that is no terminal."""
    begun = time.monotonic()
    with ExitStack() as stack:
        at: dict[str, Callable[[int, int], None]] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in at:
                stack.close()
                at[stage] = stack.enter_context(progress_bar(stage, total))
                if not sys.stderr.isatty():
                    print(f"{time.monotonic() - begun:6.0f} s  {stage} ({total})", file=sys.stderr, flush=True)
            at[stage](done, total)

        yield update


def register(bench: typer.Typer) -> None:
    """Add the commands of this file."""
    bench.command()(demo)
