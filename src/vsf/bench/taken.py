"""Cases that are not written but taken: from the public benchmark's file, and from the demo world."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from ..demo.worlds import FIRST, World, world
from .cases import SPLITS, Case, CasesError, CaseSet, slug, text_problems

__all__ = ["DEV_OBJECTS", "import_neggenbench", "make_demo_cases", "questions"]

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
            wrong += text_problems(key, texts[key]) if key in texts else []
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


#: Objects of the demo world on which settings are chosen; the others are for the test.
DEV_OBJECTS = ("bike", "cake", "cat", "flower", "snowman")


def make_demo_cases(version: int = 2, drawn: Collection[str] = ()) -> CaseSet:
    """The demo world's held-out combinations (object, typical part, colour, background) as cases.

    None was seen in training. The prompt is the world's own caption that names no part ("a red bike on grass"), the
    negative one typical part's word.

    Args:
        version: in 2 whole objects are held out: those in DEV_OBJECTS are "dev" with all their combinations, the
            others are "test". In 1, ``world.split`` decided for each combination, so that dev and test shared every
            (object, part) pair.
        drawn: version 2: ids of cases that earlier evidence drew; they are left out of "test".

    ``sets/demo-v1.jsonl`` is version 1, ``sets/demo-v2.jsonl`` is version 2 with the cases of docs/evidence as `drawn`.

    Raises:
        ValueError: no such version.
    """
    if version not in (1, 2):
        raise ValueError(f"version must be 1 or 2, got {version!r}")
    every = _held_out()
    if version == 1:
        return CaseSet("demo", "Apache-2.0", every)
    return CaseSet(
        "demo-v2",
        "Apache-2.0",
        tuple(
            replace(case, split="dev" if case.object in DEV_OBJECTS else "test")
            for case in every
            if case.object in DEV_OBJECTS or case.id not in drawn
        ),
    )


def questions(of: World, object: str, color: str, part: str) -> tuple[str, str]:
    """The two questions of a demo case: is this object there, and is the part missing from it?"""
    import numpy as np

    rng = np.random.default_rng(0)  # decides nothing: at most one part is named
    with_part = of.code.Scene(object, color, (part,), of.backgrounds[0], of.styles[0], 0)
    subject, _, phrase = of.code.caption(with_part, "mention", rng, False, False).partition(" with ")
    return (
        f"Is there {subject} in the picture, with or without {phrase}?",
        f"{'Are' if part.endswith('s') else 'Is'} the {part} missing from the {object}?",
    )


def _held_out() -> tuple[Case, ...]:
    """Every held-out combination with the world's own split, in rounds over the (object, part) pairs."""
    import numpy as np

    of = world(FIRST)
    code, rng = of.code, np.random.default_rng(0)  # decides nothing: no part is named
    cases: list[Case] = []
    for one in of.held_out(SPLITS):
        scene = code.Scene(one.object, one.color, (), one.background, "flat", 0)
        question_1, question_2 = questions(of, one.object, one.color, one.part)
        cases.append(
            Case(
                id=f"{one.object}-{one.part}-{one.color}-{one.background}",
                prompt=code.caption(scene, "bare", rng, True, False),
                negative=one.part,
                question_1=question_1,
                question_2=question_2,
                split=one.split,
                category=f"{one.object}/{one.part}",
                source="vsf.demo.world",
                object=one.object,
                part=one.part,
                color=one.color,
                background=one.background,
            )
        )
    return tuple(cases)
