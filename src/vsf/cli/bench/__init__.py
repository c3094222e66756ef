"""`vsf bench ...`: cases, pictures, judgements, settings and reports. One file per command."""

from __future__ import annotations

from importlib import import_module

import typer

bench = typer.Typer(
    help="Measure: does the negative prompt work, how well, at what price, and how sure are we?", no_args_is_help=True
)

# In the order in which they are used; each module holds a `register(bench)`.
for _name in ("cases", "generate", "judge", "export", "sweep", "report", "demo", "transfer"):
    import_module(f"{__name__}.{_name}").register(bench)
