"""The command line. One file per group of commands; everything heavy is imported inside the commands."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

import typer

from .bench import bench
from .common import Problem
from .demo import demo
from .generate import generate
from .info import info
from .judge import judge
from .models import models
from .ui import ui

__all__ = ["app", "main"]

app = typer.Typer(
    name="vsf",
    help="Negative prompts for few-step image generators, inside attention.\n\n"
    'Start here:  [bold]vsf generate "a red bike" --negative wheels --compare[/bold]',
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
app.command(epilog="Every picture carries its settings. [dim]Words the demo model knows: vsf info[/dim]")(generate)
app.command()(models)
app.command()(ui)
app.command()(info)
app.add_typer(demo, name="demo")
app.add_typer(bench, name="bench")
app.add_typer(judge, name="judge")

# The base of all usage errors (unknown option, missing argument), wherever typer keeps it.
_UsageError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 for a failed gate, 2 for bad input, 130 for an interrupt."""
    # Read when torch loads: threads that wait for each other by spinning are 20 times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = app(arguments or ["--help"], prog_name="vsf", standalone_mode=False)
    except Problem as problem:
        return _fail(str(problem))
    except _UsageError as error:
        return _fail(error.format_message())  # pyright: ignore[reportAttributeAccessIssue]
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:  # typer gives an interrupt this code, too
        return _fail("stopped", 130)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int = 2) -> int:
    # Indented lines are a list, one thing each; all else is one line, however a library broke it.
    head, *rest = re.split(r"\n(?=  )", message)
    print("\n  ".join(" ".join(part.split()) for part in ("error: " + head, *rest)), file=sys.stderr)
    return code
