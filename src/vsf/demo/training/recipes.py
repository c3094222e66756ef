"""Recipe files: TOML into frozen dataclasses, with every wrong key named."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from ...files import read_toml

T = TypeVar("T")


def read_recipe(kind: type[T], name: str, path: str | Path | None = None) -> T:
    """A recipe of `kind` from a file, by default the shipped recipes/NAME.toml.

    Raises ValueError naming every unknown or missing key; OSError where the file cannot be read.
    """
    source = files("vsf.demo") / "recipes" / f"{name}.toml" if path is None else Path(path)
    return from_dict(kind, read_toml(source.read_text("utf-8")))


def from_dict(kind: type[T], values: dict[str, Any], where: str = "recipe") -> T:
    """Build a (nested) dataclass from plain dicts. Raises ValueError naming every unknown or missing key."""
    names = {f.name for f in fields(kind)}  # pyright: ignore[reportArgumentType]
    if names != set(values):
        unknown, missing = sorted(set(values) - names), sorted(names - set(values))
        raise ValueError(f"{where}: unknown keys {unknown}, missing keys {missing}")
    hints = get_type_hints(kind)
    made: dict[str, Any] = {}
    for name, value in values.items():
        if is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: {name} must be a table, got {value!r}")
            made[name] = from_dict(hints[name], value, f"{where} [{name}]")
        else:
            made[name] = tuple(value) if isinstance(value, list) else value
    return kind(**made)
