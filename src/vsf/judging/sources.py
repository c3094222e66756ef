"""Where labels come from: what judges and people said about a run, and lists of pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..bench.judges.base import Exhibit, PictureError, png_of, read_picture
from ..bench.run import Answer, Run
from .labels import ANSWERED, Label, Labels, LabelsError, Source, read_rows, seen

__all__ = ["from_answers", "from_json", "from_run"]


def from_answers(
    items: Iterable[tuple[Exhibit, Answer]], annotator: str, groups: Mapping[str, str] | None = None
) -> Labels:
    """What a judge, or a person, said about pictures, as labels; what was not judged is left out.

    Questions 1 and 2 of the case, and one for every kept part of which the answer tells ("Can you see PART in this
    picture?"). Probabilities that a judge noted become the confidence of its answers.

    Args:
        groups: the group of each case by its id; else its object.

    Raises:
        LabelsError: a picture cannot be read, or equal pictures were answered differently.
    """
    labels: list[Label] = []
    places: list[str] = []
    images: dict[str, Source] = {}
    for item, answer in items:
        if answer.status != "judged" or not (asked := _asked(item, answer)):
            continue
        try:
            data = item.png()
        except PictureError as error:
            raise LabelsError(f"{item.image}: {error}") from error
        name = sha256(data).hexdigest()
        images[name] = item.png
        case, took = item.case, answer.details.get("seconds", {})
        group = (groups or {}).get(case.id) or case.object or case.id
        for key, question, asks, what, said, yes in asked:
            sure = None if yes is None or said is None else round(yes if said else 1 - yes, 6)
            seconds = took.get(key) if isinstance(took, Mapping) else None
            labels.append(Label(name, question, asks, said, annotator, seconds, sure, group, case.category, item=what))
            places.append(f"the answer about {answer.unit}")
    return Labels(labels, images, (), places)


_Asked = tuple[str, str, str, str, bool | None, float | None]
"""Key in the answer's details, question, kind of question, item, answer, and P(yes) where it was noted."""


def _asked(item: Exhibit, answer: Answer) -> list[_Asked]:
    case, details = item.case, answer.details
    chance: Mapping[str, float] = details.get("probabilities", {})
    parts: Mapping[str, float] = details.get("parts", {})  # the oracle's P(part)
    unclear = details.get("cannot tell", ())
    found: list[_Asked] = []
    what = " ".join(text for text in (case.color, case.object) if text)
    if answer.answer_1 is not None or "answer_1" in unclear:
        found.append(("answer_1", case.question_1, "object", what, answer.answer_1, chance.get("answer_1")))
    if answer.answer_2 is not None or "answer_2" in unclear:
        yes = chance.get("answer_2")
        if yes is None and case.part is not None and case.part in parts:
            yes = 1 - parts[case.part]
        found.append(("answer_2", case.question_2, "missing", case.part or case.negative, answer.answer_2, yes))
    for part in item.kept:
        key, question = f"kept:{part}", seen(part)
        yes = chance.get(key, parts.get(part))
        if yes is not None or key in unclear:
            said = None if key in unclear or yes is None else yes >= 0.5
            found.append((key, question, "kept", part, said, yes))
        elif answer.kept in (0.0, 1.0):  # of a share alone, only all or none says which
            found.append((key, question, "kept", part, answer.kept == 1.0, None))
    return found


def from_run(run: Run, judges: Sequence[str]) -> Labels:
    """What judges, people among them, said about the pictures of a run, finished or not.

    Raises:
        LabelsError: a judge answered no yes/no question, a picture cannot be read, or answers contradict each other.
        RunError: the run has no such judge.
    """
    from ..bench.judges import exhibits

    parts: list[Labels] = []
    for judge in judges:
        run.judge(judge)
        said = {answer.unit: answer for answer in run.judged(judge)}
        units = [unit for unit in run.plan.units if unit.id in said]
        found = from_answers(((item, said[item.unit]) for item in exhibits(run, units)), judge, run.cases.groups)
        if not len(found):
            raise LabelsError(f"the judge {judge} has answered no yes/no question about the pictures in {run.folder}")
        parts.append(found)
    if not parts:
        raise LabelsError("name at least one judge whose answers become labels")
    whole = parts[0].merge(*parts[1:])
    return Labels(whole, whole._images, [f"run of {run.cases.name}, judged by {', '.join(judges)}"], whole._places)


def from_json(file: str | Path, annotator: str = "file") -> Labels:
    """Labels from a JSON list of {"image": path, "question": text, "answer": "yes"|"no"|"cannot tell"|true|false|null}.

    Paths are relative to the file. Any field of `Label` may be given besides; `asks` is "other" where it is not.

    Raises:
        LabelsError: no such file, bad entries, of which the first are listed, or contradictions.
    """
    file = Path(file)
    try:
        rows = json.loads(file.read_bytes())
    except OSError as error:
        raise LabelsError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise LabelsError(f"{file} is not JSON ({error})") from error
    if not isinstance(rows, list) or not rows:
        raise LabelsError(f"{file} must be a JSON list of entries with image, question and answer")
    images: dict[str, Source] = {}
    read: list[tuple[int, Any]] = []
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            row = {"asks": "other", "annotator": annotator, **row}
            if isinstance(row.get("answer"), str):
                row["answer"] = ANSWERED.get(row["answer"].strip().lower(), row["answer"])
            if isinstance(row.get("image"), str):
                recoded = partial(_recoded, file.parent / row["image"])
                try:
                    row["image"] = sha256(recoded()).hexdigest()
                except PictureError as error:
                    read.append((number, f"{row['image']}: {error}"))
                    continue
                images[row["image"]] = recoded
        read.append((number, row))
    labels = read_rows(str(file), "entry", read)
    return Labels(labels, images, [file.name], [f"{file} entry {number}" for number, _ in read])


def _recoded(file: Path) -> bytes:
    return png_of(read_picture(file, any_format=True))
