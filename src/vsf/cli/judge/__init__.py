"""`vsf judge ...`: labelled pictures, and judges of one's own. One file per command or two."""

from __future__ import annotations

from importlib import import_module

import typer

judge = typer.Typer(
    help="Judges of one's own: labelled pictures, agreement, accuracy, and what a judge's errors change.",
    no_args_is_help=True,
)

# In the order in which they are used; each module holds a `register(judge)`.
for _name in ("labels", "agreement", "train", "evaluate", "ranks"):
    import_module(f"{__name__}.{_name}").register(judge)
