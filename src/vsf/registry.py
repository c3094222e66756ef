"""What plugs in, as one table each: name -> "module:Class", imported when it is used. Torch-free.

A class of a table is a dataclass; a field made by `option` is something that a person may choose. Command lines, pages and
files make such an object in one way, `Table.make`, and the record of one (its name and its options) makes it again.

Where a row is data and costs nothing to import (presets, demo models, arms of a sweep), the table is a plain dict of records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib import import_module
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from .grammar import did_you_mean, unknown

__all__ = ["Option", "Table", "check", "option", "options"]

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """One thing to choose about an object: the single source of its command-line flag, limits and description.

    Attributes:
        kind: bool, int, float or str (paths are text).
        optional: whether it may be None.
        default: what it is if nobody chooses; ``dataclasses.MISSING`` if somebody must.
        low, high: limits.
    """

    name: str
    kind: type
    optional: bool
    default: Any
    help: str
    low: float = -math.inf
    high: float = math.inf

    @property
    def required(self) -> bool:
        return self.default is MISSING


def option(help: str, default: Any = MISSING, **limits: Any) -> Any:
    """A dataclass field that is an `Option`; `limits` are its low and high."""
    return field(default=default, metadata={"option": {"help": help, **limits}})


def options(kind: Any) -> dict[str, Option]:
    """The options of a class by name, in order."""
    hints = get_type_hints(kind)
    found: dict[str, Option] = {}
    for f in fields(kind):
        if "option" in f.metadata:
            allowed = get_args(hints[f.name]) or (hints[f.name],)
            plain = next((t for t in (bool, int, float) if t in allowed), str)
            found[f.name] = Option(f.name, plain, type(None) in allowed, f.default, **f.metadata["option"])
    return found


def check(made: Any) -> None:
    """Whether an object's options have values of their kind, within their limits; for its `__post_init__`.

    Raises:
        ValueError: one has not; it is named, with what is allowed.
    """
    for spec in options(type(made)).values():
        value = getattr(made, spec.name)
        if not _right(spec, value):
            words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[spec.kind]
            words += f" from {spec.low:g}" if spec.low > -math.inf else ""
            words += f" to {spec.high:g}" if spec.high < math.inf else " up" if spec.low > -math.inf else ""
            raise ValueError(f"{type(made).__name__}.{spec.name} is {value!r}; allowed: {words}")


def _right(spec: Option, value: Any) -> bool:
    if value is None:
        return spec.optional
    if spec.kind in (bool, str):
        return isinstance(value, spec.kind) or (spec.kind is str and hasattr(value, "__fspath__"))
    number = isinstance(value, (int, spec.kind)) and not isinstance(value, bool)
    return number and spec.low <= value <= spec.high and value < math.inf


@dataclass(frozen=True)
class Table(Generic[T]):
    """Objects by name; a row is the object itself, or where it is: "module:attribute", imported when asked for.

    Attributes:
        what: what a row is, in words, for error messages ("judge").
    """

    what: str
    rows: Mapping[str, T | str]

    def __getitem__(self, name: str) -> T:
        """Raises ValueError for a name that is not in the table, with the nearest one that is."""
        if name not in self.rows:
            raise ValueError(unknown(self.what, name, self.rows))
        row = self.rows[name]
        if not isinstance(row, str):
            return row
        module, _, attribute = row.partition(":")
        return getattr(import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self.rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def check(self, name: str, given: Mapping[str, Any], spell: Callable[[str], str] = str) -> None:
        """Whether the class of that name takes these options; `spell` is how an option is written where it was given.

        Raises:
            ValueError: an unknown name or option, or one that is needed and missing.
        """
        known = options(self[name])
        if wrong := next((key for key in given if key not in known), None):
            have = ", ".join(map(spell, known)) or "none of its own"
            hint = did_you_mean(wrong, known)
            raise ValueError(f"{spell(wrong)} is no option of the {self.what} {name}, which has {have}{hint}")
        if missing := next((key for key in known if known[key].required and key not in given), None):
            raise ValueError(f"the {self.what} {name} needs {spell(missing)}")

    def make(self, name: str, given: Mapping[str, Any], **more: Any) -> Any:
        """The object of that name with these options; a record of it, {"name", "args"}, holds just these two.

        `more` are options of this time and place ("download"); they are left out where the class has none such.

        Raises:
            ValueError: as `check` of the table and of the object.
        """
        self.check(name, given)
        kind: Any = self[name]
        here = {key: value for key, value in more.items() if key in options(kind) and key not in given}
        return kind(**given, **here)
