"""Cases of the benchmark: what is drawn, what must not be in it, and how a judge is asked.

A set of cases is one JSON Lines file (UTF-8). Its first line is a header, every other line is a case::

    {"format": "vsf-cases", "version": 1, "name": "neggen", "license": "Apache-2.0"}
    {"id": "...", "prompt": "...", "negative": "...", "question_1": "...", "question_2": "...", "split": "dev", ...}

Both questions are answered by yes or no: is the main object there, with or without the negative, and is the negative
missing? The grammar and the two questions follow NegGenBench; docs/cases.md describes every field.

This module needs neither torch nor any package beyond the standard library (the demo set's maker needs numpy).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

__all__ = [
    "FORMAT", "SETS", "SPLITS", "VERSION", "Case", "CaseSet", "CasesError", "check_rules", "import_neggenbench",
    "load_cases", "make_demo_cases", "save_cases",
]  # fmt: skip

FORMAT = "vsf-cases"
VERSION = 1
SETS = ("neggen", "common", "demo")
"""Names of the sets that come with the package."""
SPLITS = ("dev", "test")

_REQUIRED = ("id", "prompt", "negative", "question_1", "question_2", "split", "category", "source")
_OPTIONAL = ("object", "part", "color", "background", "unrelated", "kept")
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


def _text_problems(name: str, value: object) -> list[str]:
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
            problems += _text_problems(name, row[name])
    name, split = row.get("id"), row.get("split")
    if isinstance(name, str) and name.strip() and not _ID.fullmatch(name):
        problems.append(
            f"id {name[:60]!r} must be 1 to 120 of the characters A-Z a-z 0-9 . _ - and begin and end with a letter "
            "or digit"
        )
    if isinstance(split, str) and split not in SPLITS:
        problems.append(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
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
        part: demo world: the unwanted part, a word of the world.
        color: demo world: the object's colour.
        background: demo world: the background.
        unrelated: the control's negative, where `vsf.bench.controls.unrelated` shall not choose one.
        kept: the object's other essential parts, which must stay; separated by commas.

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

    def __post_init__(self) -> None:
        if problems := _case_problems(self.to_dict()):
            raise ValueError(f"case {self.id!r}: " + "; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """The fields in their order, without the optional ones that are None."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in pairs if value is not None or name in _REQUIRED}


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
        problems = _text_problems("name", self.name) + _text_problems("license", self.license)
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
        problems += _text_problems(name, row[name]) if name in row else [f"missing header field {name}"]
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
    """A set that comes with the package, by name (see ``SETS``), or a file of one's own, by path.

    Raises:
        FileNotFoundError: neither a name of a shipped set nor a file.
        CasesError: the file has bad lines; the error lists every one.
    """
    if isinstance(name_or_path, str) and name_or_path in SETS:
        return _read((files("vsf.bench") / "sets" / f"{name_or_path}.jsonl").read_bytes(), name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of cases at {str(path)!r}; sets that come with vsf: {', '.join(SETS)}")
    return _read(path.read_bytes(), str(path))


def save_cases(cases: CaseSet, path: str | os.PathLike[str]) -> None:
    """Write a set as JSON Lines. The file appears whole or not at all; equal sets give equal bytes."""
    target = Path(path)
    rows = [cases.header, *(case.to_dict() for case in cases)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


_PUBLIC = ("prompt", "missing_element", "question_1", "question_2")


def import_neggenbench(
    path: str | os.PathLike[str], *, name: str = "neggenbench", license: str = "unknown", dev: float = 0.25
) -> CaseSet:
    """Read the public NegGenBench file: a JSON list of objects with prompt, missing_element, question_1, question_2.

    That benchmark has no splits. The share ``dev`` of the entries, those with the lowest SHA-256 of prompt and missing
    element, become "dev", the others "test", so the division does not depend on the order of the list. Other fields of
    an entry are ignored, and spaces around a text are dropped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: ``dev`` is not in [0, 1].
        CasesError: not such a list; every bad entry is listed.
    """
    if not 0 <= dev <= 1:
        raise ValueError(f"dev must be a share between 0 and 1, got {dev}")
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"no NegGenBench file at {str(source)!r}")
    data = source.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        entries = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CasesError(str(source), [(line, f"not UTF-8 (byte 0x{data[error.start]:02x})")]) from None
    except json.JSONDecodeError as error:
        raise CasesError(str(source), [(error.lineno, f"not JSON ({error.msg})")]) from None
    except RecursionError:
        raise CasesError(str(source), [(1, "not a list of entries (JSON nested too deeply)")]) from None
    if not isinstance(entries, list) or not entries:
        raise CasesError(str(source), [(1, f"a JSON list with entries of {', '.join(_PUBLIC)} is needed")])
    problems: list[tuple[int, str]] = []
    rows: list[dict[str, str]] = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            problems.append((number, f"not a JSON object but {type(entry).__name__}"))
            continue
        texts = {key: value.strip() if isinstance(value, str) else value for key, value in entry.items()}
        wrong = [f"missing field {key}" for key in _PUBLIC if key not in texts]
        for key in _PUBLIC:
            wrong += _text_problems(key, texts[key]) if key in texts else []
        if wrong:
            problems.append((number, "; ".join(wrong)))
        else:
            rows.append(texts)
    if problems:
        raise CasesError(str(source), problems, "entry")

    def rank(i: int) -> tuple[bytes, int]:
        return sha256(f"{rows[i]['prompt']}\n{rows[i]['missing_element']}".encode()).digest(), i

    chosen = set(sorted(range(len(rows)), key=rank)[: round(dev * len(rows))])
    return CaseSet(
        name,
        license,
        tuple(
            Case(
                id=f"{slug(name) or 'case'}-{i + 1:03d}",
                prompt=row["prompt"],
                negative=row["missing_element"],
                question_1=row["question_1"],
                question_2=row["question_2"],
                split="dev" if i in chosen else "test",
                category="neggenbench",
                source="NegGenBench",
            )
            for i, row in enumerate(rows)
        ),
    )


def slug(text: str) -> str:
    """A text as a short lower-case name: letters, digits and hyphens; may be empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")


# ---------------------------------------------------------------------------------------------------------------
# Rules


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower().replace("'s", "").replace("’s", ""))


_GLUE = frozenset(_words("a an and at by for from in is it its of on or the their to with"))
_HINTS = frozenset(
    _words(
        "absent absence bald bare barren blank broken devoid empty except excluding incomplete lack lacking lacks "
        "minus missing naked never no none not nothing plain removed sans stripped torn undecorated unfinished without"
    )
)
_NOT_HINTS = frozenset(("bless", "endless", "restless", "stainless", "timeless", "unless"))
_LENGTH = {"prompt": (3, 60), "negative": (1, 12), "question_1": (5, 50), "question_2": (3, 50)}


_KEPT = (3, 4)  # at most so many parts, of so many words each
_LONGER = 1  # words by which the two negatives may differ


def _stem(word: str) -> str:
    """A crude English stem; enough to see that "leaves" and "leaf", or "glazed" and "glaze" are one word."""
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith("ves") and len(word) > 4:
        word = word[:-3] + "f"
    elif re.search(r"(s|x|z|ch|sh)es$", word):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        word = word[:-1]
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 2 and re.search("[aeiouy]", rest):
            word = re.sub(r"([bdgklmnprt])\1$", r"\1", rest)
            break
    return word.removesuffix("e") if len(word) > 2 else word


@lru_cache(maxsize=4096)
def _stems(text: str) -> tuple[str, ...]:
    return tuple(_stem(word) for word in _words(text) if word not in _GLUE)


def _same(a: str, b: str) -> bool:
    """Equal stems, or one is the beginning or end of the other: "sail" is named by "sailboat"."""
    short, long = sorted((a, b), key=len)
    return a == b or (len(short) >= 4 and (long.startswith(short) or long.endswith(short)))


def stems_clash(a: str, b: str) -> bool:
    """Whether the two texts share a word: equal stems, or one the beginning or end of the other ("sail", "sailboat")."""
    return _names(_stems(a), b)


def word_count(text: str) -> int:
    """Words in a text, punctuation not counted."""
    return len(_words(text))


def _names(stems: Iterable[str], text: str) -> bool:
    """Whether the text has any of the words."""
    return any(_same(a, b) for a in stems for b in _stems(text))


def _hints(text: str) -> list[str]:
    return [
        word
        for word in _words(text)
        if word in _HINTS or (len(word) > 5 and word.endswith("less") and word not in _NOT_HINTS)
    ] + re.findall(r"\w+-(?:free|less)\b", text.lower())


def _violations(case: Case) -> Iterator[str]:
    for name, (low, high) in _LENGTH.items():
        count = len(_words(getattr(case, name)))
        if not low <= count <= high:
            yield f"{name} has {count} words; {low} to {high} are allowed"
    negative = _stems(case.negative)
    prompt = _stems(case.prompt)
    if named := sorted({a for a in negative for b in prompt if _same(a, b)}):
        yield f"the prompt names the negative's {', '.join(map(repr, named))}"
    if hints := _hints(case.prompt):
        yield f"the prompt hints at an absence: {', '.join(map(repr, hints))}"
    main, _, rest = case.question_1.lower().partition("with or without")
    if not rest:
        yield "question_1 does not say 'with or without'"
    elif not _names(negative, rest):
        yield f"question_1 does not name the negative {case.negative!r} after 'with or without'"
    if case.object is None:
        if not set(prompt) & set(_stems(main)):
            yield "question_1 does not mention the prompt's main object"
    else:
        words = set(_stems(case.object))
        if not words <= set(prompt):
            yield f"the prompt does not name the object {case.object!r}"
        if not words <= set(_stems(main)):
            yield f"question_1 does not mention the object {case.object!r}"
        if any(prompt.count(word) > 1 for word in words):
            yield f"the prompt names the object {case.object!r} twice"
        if any(_same(a, b) for a in negative for b in words):
            yield f"the negative {case.negative!r} names the object {case.object!r}"
    if "missing" not in _words(case.question_2):
        yield "question_2 does not ask whether something is missing"
    if not _names(negative, case.question_2):
        yield f"question_2 does not name the negative {case.negative!r}"
    for name in ("question_1", "question_2"):
        if not getattr(case, name).endswith("?"):
            yield f"{name} does not end with a question mark"
    parts = [part.strip() for part in case.kept.split(",")] if case.kept is not None else []
    if len(parts) > _KEPT[0]:
        yield f"kept names {len(parts)} parts; 1 to {_KEPT[0]} are allowed"
    for i, part in enumerate(parts):
        if not 1 <= word_count(part) <= _KEPT[1]:
            yield f"kept names {part!r} of {word_count(part)} words; 1 to {_KEPT[1]} are allowed"
        if _names(negative, part):
            yield f"kept names the negative {case.negative!r}: {part!r}"
        if any(set(_stems(part)) == set(_stems(other)) for other in parts[:i]):
            yield f"kept names {part!r} twice"
        if case.object is not None and set(_stems(part)) == set(_stems(case.object)):
            yield f"kept names the object itself: {part!r}"
    if case.unrelated is not None:
        for what, text in (("prompt", case.prompt), ("negative", case.negative), ("kept parts", case.kept or "")):
            if stems_clash(case.unrelated, text):
                yield f"unrelated ({case.unrelated!r}) shares a word with the {what}"
        if abs(word_count(case.unrelated) - word_count(case.negative)) > _LONGER:
            yield f"unrelated ({case.unrelated!r}) and negative ({case.negative!r}) differ in length by more than a word"


def check_rules(cases: Iterable[Case]) -> list[str]:
    """What a careful author would change, one line "id: problem" each; an empty list if nothing.

    Per case: the prompt names none of the negative's words (compared by stem, compounds count: "sailboat" names
    "sail") and hints at no absence ("without", "no", "bare", "-less", ...); the main object is named once in the
    prompt and by question_1, which says "with or without" the negative; question_2 asks whether the negative is
    missing; kept parts, where given, do not name the negative, and an unrelated negative nothing of the case; lengths.
    Over the set: no object twice (for cases of the demo world: no combination twice), no prompt with the same negative
    twice.

    The rules read English words only. They cannot see whether a picture can be judged: that takes a person.
    """
    problems: list[str] = []
    seen: dict[tuple[str, ...], str] = {}
    for case in cases:
        problems += [f"{case.id}: {text}" for text in _violations(case)]
        keys: list[tuple[str, ...]] = [("prompt with the same negative", case.prompt.lower(), case.negative.lower())]
        if case.object is not None:
            demo = (case.part or "", case.color or "", case.background or "")
            keys.append(("combination" if any(demo) else "object", case.object.lower(), *demo))
        for key in keys:
            if seen.setdefault(key, case.id) != case.id:
                problems.append(f"{case.id}: the same {key[0]} as in {seen[key]} ({', '.join(filter(None, key[1:]))})")
    return problems


# ---------------------------------------------------------------------------------------------------------------
# The demo world's cases


def make_demo_cases() -> CaseSet:
    """Every held-out combination (object, typical part, colour, background) of the demo world.

    ``world.split`` says which are "dev" and which "test"; none was seen in training. The prompt is the world's own
    caption that names no part ("a red bike on grass"), the negative one typical part's word. Cases are ordered in
    rounds: within a split the first k cases are spread as evenly as they can be over the (object, part) pairs, so a
    short run may take the first k. ``sets/demo.jsonl`` is what this function returns.
    """
    import numpy as np

    from ..demo import world

    rng = np.random.default_rng(0)  # decides nothing: at most one part is named
    cases: list[Case] = []
    for split in SPLITS:
        rounds: list[tuple[int, int, Case]] = []
        pairs = [(name, part) for name, parts in world.TYPICAL.items() for part in parts]
        for place, (name, part) in enumerate(pairs):
            held_out = [
                (color, background)
                for color, background in itertools.product(world.COLORS, world.BACKGROUNDS)
                if world.split(name, color, background, part) == split
            ]
            # Shuffled by hash: the same on every machine and with every version of numpy.
            held_out.sort(key=lambda pair: sha256(f"{name}|{part}|{pair[0]}|{pair[1]}".encode()).digest())
            for turn, (color, background) in enumerate(held_out):
                scene = world.Scene(name, color, (), background, "flat", 0)
                with_part = world.Scene(name, color, (part,), background, "flat", 0)
                phrase = world.caption(with_part, "mention", rng, False, False).partition(" with ")[2]
                subject = world.caption(scene, "bare", rng, False, False)
                case = Case(
                    id=f"{name}-{part}-{color}-{background}",
                    prompt=world.caption(scene, "bare", rng, True, False),
                    negative=part,
                    question_1=f"Is there {subject} in the picture, with or without {phrase}?",
                    question_2=f"{'Are' if part.endswith('s') else 'Is'} the {part} missing from the {name}?",
                    split=split,
                    category=f"{name}/{part}",
                    source="vsf.demo.world",
                    object=name,
                    part=part,
                    color=color,
                    background=background,
                )
                rounds.append((turn, place, case))
        cases += [case for _, _, case in sorted(rounds, key=lambda entry: entry[:2])]
    return CaseSet("demo", "Apache-2.0", tuple(cases))
