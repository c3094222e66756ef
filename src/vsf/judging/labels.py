"""Labelled pictures: a yes/no question about a picture, somebody's answer, and nothing about what drew it.

::

    LABELS/
      labels.json          {"format": "vsf-labels", "version": 1, "labels": 96, "images": 40, "annotators": [...], ...}
      labels.jsonl         one answer a line, the fields of `Label`
      images/SHA256.png    the pictures, by the hash of these bytes

Pictures are re-coded from their pixels (`Exhibit.png`), so that nothing of their settings is in them; the name of a run,
a point or a method is nowhere. What is asked has three kinds, from the benchmark: question 1 asks for the "object" (yes:
it is there), question 2 whether the negative is "missing" (yes: it is absent), and further ones whether a part that has
to stay was "kept" (yes: it can be seen).

A judge that answers such questions has `answer(picture, question, asks=, item=)` and gives P(yes); see
`vsf.bench.judges.base.Answering`.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bench.judges.base import PictureError, read_picture
from ..files import json_bytes, write_whole
from ..grammar import unknown

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ANSWERED", "ASKS", "DAMAGE", "Label", "Labels", "LabelsError", "read_rows", "seen", "word"]

FORMAT = "vsf-labels"
VERSION = 1
ASKS = ("object", "missing", "kept", "other")
"""What a question is about: is the object there, is the item missing, is the item (still) there, or anything else."""
DAMAGE = ("", "intact", "missing", "half removed", "distorted", "object gone")
"""What is the matter with the picture, "" where that is not known."""
ANSWERED = {"yes": True, "no": False, "cannot tell": None}
"""Answers as words."""

Source = bytes | Path | Callable[[], bytes]
"""The PNG bytes of a picture, the file that holds them, or what makes them again: many pictures need not fit in memory."""

_BELOW_HALF = math.nextafter(0.5, 0)
_SHOWN = 8  # problems of a file that are listed
_HASH = re.compile(r"[0-9a-f]{64}")


class LabelsError(ValueError):
    """Labels that cannot be read, joined or written."""


@dataclass(frozen=True)
class Label:
    """One answer to one yes/no question about one picture.

    Attributes:
        image: SHA-256 (hex) of the picture as a PNG of nothing but pixels.
        question: as it was asked.
        asks: one of `ASKS`.
        answer: yes, no, or None for "cannot tell".
        annotator: who answered: a judge's name, a person's, "world" for what is true by construction.
        seconds: it took.
        confidence: the probability, 0 to 1, that the annotator gives its own answer.
        group: what must not stand on both sides of a split: the object.
        category: for tables.
        damage: one of `DAMAGE`.
        item: what is asked for: "red bike", "wheels".

    Raises:
        ValueError: a field is not of this form; every problem is named.
    """

    image: str
    question: str
    asks: str
    answer: bool | None
    annotator: str
    seconds: float | None = None
    confidence: float | None = None
    group: str = ""
    category: str = ""
    damage: str = ""
    item: str = ""

    def __post_init__(self) -> None:
        if problems := _problems(asdict(self)):
            raise ValueError("; ".join(problems))

    @property
    def key(self) -> tuple[str, str]:
        """What is asked: picture and question."""
        return self.image, self.question

    @property
    def yes(self) -> float | None:
        """The annotator's probability of yes, from 0.5 on for yes and below for no: by its confidence, else 1 or 0; None where
        it cannot tell."""
        if self.answer is None:
            return None
        sure = 1.0 if self.confidence is None else self.confidence
        # What was answered goes before a probability that was rounded, or that had another cut than one half.
        return max(sure, 0.5) if self.answer else min(1 - sure, _BELOW_HALF)


_FIELDS = {field.name: field.default for field in fields(Label)}
_NEEDED = ("image", "question", "asks", "answer", "annotator")


def _problems(row: Mapping[str, Any]) -> list[str]:
    """What is wrong with the fields of a label; nothing if it can be used."""
    found = [f"unknown field {name!r} (allowed: {', '.join(_FIELDS)})" for name in row if name not in _FIELDS]
    found += [f"missing field {name}" for name in _NEEDED if name not in row]
    for name in ("image", "question", "asks", "annotator", "group", "category", "damage", "item"):
        value = row.get(name, "")
        if not isinstance(value, str) or (name in _NEEDED and name in row and not value.strip()):
            found.append(f"{name} must be {'a text' if name in _NEEDED else 'text'}, got {value!r}"[:120])
    if found:
        return found
    if not _HASH.fullmatch(row["image"]):
        found.append(f"image must be 64 hex digits, the SHA-256 of a picture, got {row['image'][:80]!r}")
    for name, allowed in (("asks", ASKS), ("damage", DAMAGE)):
        if row.get(name, "") not in allowed:
            found.append(unknown(f"value of {name}", row[name], [a or '""' for a in allowed]))
    if not (row["answer"] is None or isinstance(row["answer"], bool)):
        found.append(f"answer must be true, false or null (cannot tell), got {row['answer']!r}")
    for name, high in (("seconds", math.inf), ("confidence", 1.0)):
        value = row.get(name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value <= high and value != math.inf):
            found.append(f"{name} must be a number from 0{' to 1' if high == 1 else ' up'} or null, got {value!r}")
    return found


class Labels:
    """Labels with their pictures. Made from parts, by `open`, `merge` or the `from_...` functions.

    Args:
        labels: in order; equal answers of one annotator to one question about one picture are kept once.
        images: every picture by its hash, see `Source`.
        source: where they come from, for the record.
        places: where each label stands, for messages.

    Raises:
        LabelsError: a picture is missing, or one annotator gave two answers to one question about one picture.
    """

    def __init__(
        self,
        labels: Iterable[Label],
        images: Mapping[str, Source],
        source: Sequence[str] = (),
        places: Sequence[str] | None = None,
    ) -> None:
        every = list(labels)
        where = list(places) if places is not None else [f"label {i}" for i in range(1, len(every) + 1)]
        first: dict[tuple[str, str, str], int] = {}
        kept: list[int] = []
        for i, label in enumerate(every):
            if label.image not in images:
                raise LabelsError(f"{where[i]}: there is no picture {label.image}.png")
            j = first.setdefault((*label.key, label.annotator), i)
            if every[j].answer != label.answer:
                raise LabelsError(
                    f"{label.annotator} contradicts itself about picture {label.image[:12]}: {label.question!r} is "
                    f"{word(every[j].answer)} in {where[j]} and {word(label.answer)} in {where[i]}"
                )
            if j == i:
                kept.append(i)
        self._labels = tuple(every[i] for i in kept)
        self._places = tuple(where[i] for i in kept)
        used = {label.image for label in self._labels}
        self._images = {name: image for name, image in images.items() if name in used}
        self.source = tuple(dict.fromkeys(source))

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[Label]:
        return iter(self._labels)

    @property
    def images(self) -> tuple[str, ...]:
        """The hashes of its pictures."""
        return tuple(self._images)

    @cached_property
    def annotators(self) -> tuple[str, ...]:
        """Who answered, in order of appearance."""
        return tuple(dict.fromkeys(label.annotator for label in self._labels))

    def of(self, annotator: str) -> Labels:
        """The labels of one annotator. Raises LabelsError where there is none of that name."""
        if annotator not in self.annotators:
            raise LabelsError(unknown("annotator", annotator, self.annotators or ("nobody",)))
        return self.only(label for label in self._labels if label.annotator == annotator)

    def asking(self, kinds: Sequence[str]) -> Labels:
        """The labels whose questions are of some kinds. Raises LabelsError where there is none of one."""
        there = sorted({label.asks for label in self._labels})
        for kind in kinds:
            if kind not in there:
                raise LabelsError(unknown("kind of question", kind, there or ("none",)))
        return self.only(label for label in self._labels if label.asks in kinds)

    def only(self, labels: Iterable[Label], source: Sequence[str] | None = None) -> Labels:
        """These labels, some of its own or others of its pictures; with another `source`, where that is given."""
        return Labels(labels, self._images, self.source if source is None else source)

    def png(self, image: Label | str) -> bytes:
        """A picture's bytes. Raises LabelsError: it is not there, unreadable, or another than its name says."""
        name = image if isinstance(image, str) else image.image
        found = self._images.get(name)
        if found is None:
            raise LabelsError(f"there is no picture {name[:80]!r} among these labels")
        try:
            data = found if isinstance(found, bytes) else found.read_bytes() if isinstance(found, Path) else found()
        except (OSError, PictureError) as error:
            where = found if isinstance(found, Path) else f"{name}.png"
            raise LabelsError(
                f"the picture {where} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from error
        if sha256(data).hexdigest() != name:
            raise LabelsError(f"the picture {name}.png is damaged: its bytes have another hash than its name")
        return data

    def picture(self, image: Label | str) -> Image.Image:
        """A picture in RGB, by its label or its hash. Raises LabelsError as `png`."""
        try:
            return read_picture(BytesIO(self.png(image)))
        except PictureError as error:
            raise LabelsError(f"{image if isinstance(image, str) else image.image}.png: {error}") from error

    def merge(self, *others: Labels) -> Labels:
        """All labels of both or more. Raises LabelsError where one annotator's answers contradict each other."""
        every = (self, *others)
        images: dict[str, Source] = {}
        for one in every:
            images |= one._images
        labels = [label for one in every for label in one]
        places = [place for one in every for place in one._places]
        return Labels(labels, images, [s for one in every for s in one.source], places)

    @property
    def header(self) -> dict[str, Any]:
        """What `labels.json` says."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "labels": len(self),
            "images": len(self._images),
            "annotators": list(self.annotators),
            "source": list(self.source),
        }

    def save(self, folder: str | Path, lose: bool = False) -> None:
        """Write a folder of labels, whole or not at all; a folder that holds some of them is brought up to all of them.

        Args:
            lose: also where labels that are there would be lost.

        Raises:
            LabelsError: the folder holds something else, or labels that are not among these.
            OSError: it cannot be written (a full disk).
        """
        folder = Path(folder)
        lines = "".join(json.dumps(asdict(label), ensure_ascii=False) + "\n" for label in self._labels).encode()
        there = folder.is_dir() and any(folder.iterdir())
        if there:
            old = Labels.open(folder)
            if not lose and (lost := set(old) - set(self)):
                raise LabelsError(
                    f"{folder} holds {len(lost)} other labels, which would be lost; merge them or give another folder"
                )
        elif folder.exists() and not folder.is_dir():
            raise LabelsError(f"{folder} is a file; labels are a folder")
        # A new folder appears under its name when it is complete. In an old one pictures come first, then the one file that
        # names them.
        folder.parent.mkdir(parents=True, exist_ok=True)
        target = folder if there else folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
        try:
            (target / "images").mkdir(parents=True, exist_ok=True)
            for image in self._images:
                path = target / "images" / f"{image}.png"
                if not path.is_file():
                    write_whole(path, self.png(image))
            files = [("labels.jsonl", lines), ("labels.json", json_bytes(self.header, 1))]
            for name, data in files[::-1] if lose else files:  # what is counted is never more than what is there
                write_whole(target / name, data)
            if not there:
                if folder.is_dir():
                    folder.rmdir()
                target.rename(folder)
        except BaseException:
            if not there:
                shutil.rmtree(target, ignore_errors=True)
            raise

    @classmethod
    def open(cls, folder: str | Path) -> Labels:
        """Read a folder of labels. Pictures are read, and held to their names, when they are asked for.

        Raises:
            LabelsError: no labels there, or bad lines, of which the first are listed; or a picture is missing.
        """
        folder = Path(folder)
        try:
            head = json.loads((folder / "labels.json").read_bytes())
            data = (folder / "labels.jsonl").read_bytes()
            names = {path.name for path in (folder / "images").iterdir()} if (folder / "images").is_dir() else set()
        except FileNotFoundError:
            raise LabelsError(f"{folder} holds no labels (no labels.json and labels.jsonl)") from None
        except (OSError, ValueError) as error:
            raise LabelsError(f"the labels in {folder} cannot be read: {error}") from error
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise LabelsError(f"{folder}/labels.json is not of {FORMAT}")
        if head.get("version") != VERSION:
            raise LabelsError(f"{folder} has labels of version {head.get('version')!r}; this vsf reads {VERSION}")
        rows = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
        if isinstance(head.get("labels"), int) and len(rows) < head["labels"]:
            raise LabelsError(f"{folder}/labels.jsonl ends early: {len(rows)} of {head['labels']} labels are there")
        labels = read_rows(f"{folder}/labels.jsonl", "line", [(n, _parse(line)) for n, line in rows])
        places = [f"{folder}/labels.jsonl line {number}" for number, _ in rows]
        images: dict[str, Source] = {
            label.image: folder / "images" / f"{label.image}.png" for label in labels if f"{label.image}.png" in names
        }
        return cls(labels, images, [str(s) for s in head.get("source", [])], places)


def word(answer: bool | None) -> str:
    """An answer as a word."""
    return next(text for text, value in ANSWERED.items() if value is answer)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"


def read_rows(source: str, unit: str, rows: Sequence[tuple[int, Any]]) -> list[Label]:
    """Labels from numbered rows of plain data. Raises LabelsError, which lists the first bad ones."""
    labels: list[Label] = []
    bad: list[str] = []
    for number, row in rows:
        try:
            if not isinstance(row, dict):
                raise ValueError(row if isinstance(row, str) else "not a JSON object")
            if wrong := _problems(row):
                raise ValueError("; ".join(wrong))
            labels.append(Label(**row))
        except ValueError as error:
            bad.append(f"  {unit} {number}: {error}")
    if bad:
        more = [f"  and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
        raise LabelsError(
            "\n".join([f"{source}: {len(bad)} bad {unit}{'s' if len(bad) > 1 else ''}", *bad[:_SHOWN], *more])
        )
    return labels


def seen(part: str) -> str:
    """The question for a part that has to be there, as `LocalJudge` asks it."""
    return f"Can you see {part} in this picture?"
