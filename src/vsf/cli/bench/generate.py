from __future__ import annotations

import typer


def register(bench: typer.Typer) -> None:
    """Add the commands of this file."""
