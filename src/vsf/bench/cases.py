"""Cases of the benchmark: what is drawn, what must not be in it, and how a judge is asked.

A set of cases is one JSON Lines file (UTF-8). Its first line is a header, every other line is a case::

    {"format": "vsf-cases", "version": 1, "name": "neggen", "license": "Apache-2.0"}
    {"id": "...", "prompt": "...", "negative": "...", "question_1": "...", "question_2": "...", "split": "dev", ...}

Both questions are answered by yes or no: is the main object there, with or without the negative, and is the negative
missing? The grammar and the two questions follow NegGenBench; docs/cases.md describes every field.

This module needs no package beyond the standard library: not pydantic either, which would not name every bad line of a file
in a sentence of ours, and whose import takes longer than all of this. `vsf.bench.rules` checks what a set says,
`vsf.bench.taken` makes sets from the public benchmark's file and from the demo world.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from hashlib import sha256
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..demo.worlds import FIRST, WORLDS, World, world
from ..files import write_whole

__all__ = [
    "FORMAT", "LATEST", "SETS", "SPLITS", "VERSION", "Case", "CaseSet", "CasesError", "load_cases", "save_cases", "slug",
    "text_problems",
]  # fmt: skip

FORMAT = "vsf-cases"
VERSION = 1
SETS = ("neggen-v2", "common", "demo-v2", "neggen-v1", "demo-v1")
"""Names of the sets that come with the package; what was drawn with an old version can be drawn and read again."""
LATEST = {"neggen": "neggen-v2", "common": "common", "demo": "demo-v2"}
"""What a set's name without a version means."""
SPLITS = ("dev", "test")

_REQUIRED = ("id", "prompt", "negative", "question_1", "question_2", "split", "category", "source")
_OPTIONAL = ("object", "part", "color", "background", "unrelated", "kept", "style", "world")
_HEADER = ("format", "version", "name", "license")
# Ids name files and folders of a run, on every operating system.
_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,118}[A-Za-z0-9])?")


class CasesError(ValueError):
    """A file of cases that cannot be used.

    Attributes:
        source: the file.
        problems: (line or entry number, counted from 1; what is wrong with it), in order, every bad one.
    """

    def __init__(self, source: str, problems: Iterable[tuple[int, str]], unit: str = "line") -> None:
        self.source = source
        self.problems = sorted(problems)
        count = len({number for number, _ in self.problems})
        head = f"{source}: {count} bad {unit}{'s' if count != 1 else ''}, no case was loaded"
        super().__init__("\n".join([head, *(f"  {unit} {number}: {text}" for number, text in self.problems)]))


def text_problems(name: str, value: object) -> list[str]:
    """What is wrong with a text of a case; nothing if it can be used."""
    if not isinstance(value, str):
        return [f"{name} must be a string, got {type(value).__name__} {json.dumps(value, default=str)[:60]}"]
    if not value.strip():
        return [f"{name} is empty"]
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
        return [f"{name} has a line break, control character or broken surrogate in it: {value[:60]!r}"]
    if value != value.strip():
        return [f"{name} begins or ends with a space: {value[:60]!r}"]
    return []


def _case_problems(row: Mapping[str, object]) -> list[str]:
    """What is wrong with the fields of one case; nothing if it can be used."""
    problems: list[str] = []
    if missing := [name for name in _REQUIRED if name not in row]:
        problems.append(f"missing field{'s' if len(missing) > 1 else ''} {', '.join(missing)}")
    if unknown := [name for name in row if name not in _REQUIRED + _OPTIONAL]:
        problems.append(
            f"unknown field{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))} "
            f"(allowed: {', '.join(_REQUIRED + _OPTIONAL)})"
        )
    for name in _REQUIRED + _OPTIONAL:
        if name in row:
            problems += text_problems(name, row[name])
    name, split = row.get("id"), row.get("split")
    if isinstance(name, str) and name.strip() and not _ID.fullmatch(name):
        problems.append(
            f"id {name[:60]!r} must be 1 to 120 of the characters A-Z a-z 0-9 . _ - and begin and end with a letter "
            "or digit"
        )
    if isinstance(split, str) and split not in SPLITS:
        problems.append(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if "world" in row and row["world"] not in WORLDS:
        problems.append(f"world must be one of {', '.join(WORLDS)}, got {row['world']!r}")
    return problems


@dataclass(frozen=True)
class Case:
    """One question to a method: draw ``prompt`` without ``negative``.

    Attributes:
        id: unique in its set (also where case is ignored), fit for a file name.
        prompt: what is drawn.
        negative: the negative prompt.
        question_1: is the main object there, with or without the negative? (yes is good)
        question_2: is the negative missing? (yes is good)
        split: "dev" for tuning, "test" for the one final run.
        category: kind of thing, for tables.
        source: where the case comes from.
        object: the main object, if known.
        part: demo worlds: the unwanted part, a word of the world.
        color: demo worlds: the object's colour.
        background: demo worlds: the background.
        unrelated: the control's negative, where `vsf.bench.controls.unrelated` shall not choose one.
        kept: the object's other essential parts, which must stay; separated by commas, as all fields are one line of text.
        style: how the prompt is written ("narrative": a scene in 15 to 30 words), where a set has several.
        world: the demo world that `part` is of, where that is not the first, "pictures".

    Raises:
        ValueError: a field is not a string, empty, or not of the allowed form; every problem is named.
    """

    id: str
    prompt: str
    negative: str
    question_1: str
    question_2: str
    split: str
    category: str
    source: str
    object: str | None = None
    part: str | None = None
    color: str | None = None
    background: str | None = None
    unrelated: str | None = None
    kept: str | None = None
    style: str | None = None
    world: str | None = None

    def __post_init__(self) -> None:
        if problems := _case_problems(self.to_dict()):
            raise ValueError(f"case {self.id!r}: " + "; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """The fields in their order, without the optional ones that are None."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in pairs if value is not None or name in _REQUIRED}

    def of_world(self) -> World | None:
        """The demo world it is of; None for a case that names no part of one."""
        return None if self.part is None else world(self.world or FIRST)


@dataclass(frozen=True)
class CaseSet:
    """A named set of cases, in order.

    Raises:
        ValueError: no cases, an id twice, or an empty name or license.
    """

    name: str
    license: str
    cases: tuple[Case, ...]

    def __post_init__(self) -> None:
        problems = text_problems("name", self.name) + text_problems("license", self.license)
        if not self.cases:
            problems.append("a set needs at least one case")
        seen: set[str] = set()
        for case in self.cases:
            if case.id.lower() in seen:
                problems.append(f"id {case.id!r} occurs twice")
            seen.add(case.id.lower())
        if problems:
            raise ValueError(f"cases {self.name!r}: " + "; ".join(problems))

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    def split(self, name: str) -> tuple[Case, ...]:
        """The cases of one split, in order; ValueError for a name that is not in ``SPLITS``."""
        if name not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {name!r}")
        return tuple(case for case in self.cases if case.split == name)

    def moved(self, name: str) -> CaseSet:
        """The same cases, asked of another demo world that has the same words."""
        return replace(self, name=name, cases=tuple(replace(case, world=name) for case in self.cases))

    @property
    def world(self) -> str:
        """The name of the demo world that its cases are of; the first world's for a set of none."""
        return next((case.world for case in self.cases if case.world is not None), FIRST)

    @cached_property
    def _unit(self) -> tuple[str, dict[str, str]]:
        """What the outermost group is called, and the group of every case."""
        by_category = {case.id: case.category for case in self.cases}
        by_object = {case.id: case.object or "" for case in self.cases}
        named = all(by_object.values())
        if len(set(by_category.values())) == 1:  # a category that all share groups nothing
            return ("object", by_object) if named else ("case", {case.id: case.id for case in self.cases})
        if not named:
            return "category", by_category
        # The outermost: groups that share a category or an object are one. "bike/wheels" and "bike/basket" are a bike.
        joined: dict[str, str] = {}
        for case in self.cases:
            ours = joined.setdefault(f"category {case.category}", case.category)
            theirs = joined.setdefault(f"object {case.object}", ours)
            if theirs != ours:
                joined.update({key: theirs for key, label in joined.items() if label == ours})
        whole = {case.id: joined[f"object {case.object}"] for case in self.cases}
        if len(set(whole.values())) == 1:
            return "object", by_object
        if len(set(whole.values())) == len(set(by_category.values())):
            return "category", by_category
        if len(set(whole.values())) == len(set(by_object.values())):
            return "object", by_object
        return "group", whole

    @property
    def unit(self) -> str:
        """What statistics count: "object", "category", "group" (of both, crossed) or, where a set says neither, "case"."""
        return self._unit[0]

    @property
    def groups(self) -> Mapping[str, str]:
        """The outermost group of every case by its id: cases of one group are not independent of each other.

        Whichever of category and object is the wider; cases that share either are one group. A category that all cases
        have in common says nothing and is left out.
        """
        return self._unit[1]

    def sample(self, split: str | None, n: int | None = None, seed: int = 0) -> tuple[Case, ...]:
        """``n`` cases of a split (None: of both), spread evenly over groups and, in them, over categories; in the set's order.

        Which ones, a hash of seed and names decides, so other cases may come and go. A smaller sample of one seed is
        part of a larger one. All of the split where it has no more than ``n``, or where ``n`` is None.

        Raises:
            ValueError: no such split, or ``n`` below 1.
        """
        there = self.cases if split is None else self.split(split)
        if n is None:
            return there
        if n < 1:
            raise ValueError(f"a sample needs at least 1 case, got {n}")
        keys = (lambda case: self.groups[case.id], lambda case: case.category)
        chosen = {case.id for case in _spread(there, keys, seed)[:n]}
        return tuple(case for case in there if case.id in chosen)

    @property
    def header(self) -> dict[str, Any]:
        """The first record of the file."""
        return {"format": FORMAT, "version": VERSION, "name": self.name, "license": self.license}

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of header and cases in canonical JSON: the same for files that differ only in spacing, line
        ends, the order of fields or how characters are escaped; another one for any other change, order included."""
        rows = [self.header, *(case.to_dict() for case in self.cases)]
        lines = (json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":")) for row in rows)
        return sha256("\n".join(lines).encode()).hexdigest()


def _spread(cases: Sequence[Case], keys: Sequence[Callable[[Case], str]], seed: int) -> list[Case]:
    """All cases in rounds over the first key's groups, each of which is spread over the next; shuffled by hash."""

    def shuffle(name: str) -> bytes:
        return sha256(f"{seed}|{name}".encode()).digest()

    if not keys:
        return sorted(cases, key=lambda case: shuffle(case.id))
    parts: dict[str, list[Case]] = {}
    for case in cases:
        parts.setdefault(keys[0](case), []).append(case)
    queues = [_spread(parts[name], keys[1:], seed) for name in sorted(parts, key=shuffle)]
    return [case for turn in zip_longest(*queues) for case in turn if case is not None]


# ---------------------------------------------------------------------------------------------------------------
# Files


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"field {', '.join(map(repr, twice))} occurs twice")
    return dict(pairs)


def _parse(line: bytes) -> dict[str, object] | str:
    """The object in a line, or what is wrong with the line."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start + 1})"
    try:
        row = json.loads(text, object_pairs_hook=_pairs)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at character {error.pos + 1})"
    except RecursionError:
        return "not a case (JSON nested too deeply)"
    except ValueError as error:
        return str(error)
    return row if isinstance(row, dict) else f"not a JSON object but {type(row).__name__}"


def _header_problems(row: Mapping[str, object]) -> list[str]:
    if row.get("format") != FORMAT:
        example = json.dumps({"format": FORMAT, "version": VERSION, "name": "...", "license": "..."})
        return [f"the first line must be a header such as {example}"]
    problems: list[str] = []
    version = row.get("version")
    if type(version) is not int or version != VERSION:
        problems.append(f"version must be {VERSION}, got {version!r}")
    if unknown := [name for name in row if name not in _HEADER]:
        problems.append(f"unknown header field {', '.join(map(repr, unknown))} (allowed: {', '.join(_HEADER)})")
    for name in ("name", "license"):
        problems += text_problems(name, row[name]) if name in row else [f"missing header field {name}"]
    return problems


def _read(data: bytes, source: str) -> CaseSet:
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    rows = [(number, _parse(line)) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise CasesError(source, [(1, "the file is empty")])
    problems: list[tuple[int, str]] = []
    header: dict[str, object] = {}
    cases: list[Case] = []
    first: dict[str, int] = {}
    for i, (number, row) in enumerate(rows):
        if isinstance(row, str):
            problems.append((number, row))
            continue
        if i == 0:
            header = row
            wrong = _header_problems(row)
        else:
            wrong = _case_problems(row)
            name = row.get("id")
            if isinstance(name, str) and first.setdefault(name.lower(), number) != number:
                wrong.append(f"id {name!r} was already used on line {first[name.lower()]}")
            if not wrong:
                cases.append(Case(**{key: str(value) for key, value in row.items()}))
        if wrong:
            problems.append((number, "; ".join(wrong)))
    if len(rows) == 1:
        problems.append((rows[0][0], "no case follows"))
    if problems:
        raise CasesError(source, problems)
    return CaseSet(str(header["name"]), str(header["license"]), tuple(cases))


def load_cases(name_or_path: str | os.PathLike[str]) -> CaseSet:
    """A set that comes with the package, by name (see ``SETS`` and ``LATEST``) or by its demo world's, or a file, by path.

    Raises:
        FileNotFoundError: neither a name of a shipped set nor a file.
        CasesError: the file has bad lines; the error lists every one.
    """
    name = LATEST.get(str(name_or_path), name_or_path)
    if isinstance(name_or_path, str) and name in SETS:
        return _read((files("vsf.bench") / "sets" / f"{name}.jsonl").read_bytes(), name_or_path)
    if name_or_path in WORLDS:
        of = str(name_or_path)
        cases = load_cases(world(of).cases)
        return cases if cases.world == of else cases.moved(of)
    path = Path(name_or_path)
    if not path.is_file():
        also = ", ".join(name for name in SETS if name not in LATEST.values())
        raise FileNotFoundError(
            f"no file of cases at {str(path)!r}; sets that come with vsf: {', '.join(LATEST)}; versions before: {also}"
        )
    return _read(path.read_bytes(), str(path))


def save_cases(cases: CaseSet, path: str | os.PathLike[str]) -> None:
    """Write a set as JSON Lines. The file appears whole or not at all; equal sets give equal bytes."""
    rows = [cases.header, *(case.to_dict() for case in cases)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(path, text.encode())


def slug(text: str) -> str:
    """A text as a short lower-case name: letters, digits and hyphens; may be empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")
