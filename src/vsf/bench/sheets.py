"""Pictures of a report: contact sheets, and the cases that are shown, chosen by rules that the page states."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from .run import Answer
from .tables import METRICS, Results

__all__ = ["Strip", "Thumbnail", "case_means", "evenly", "extremes", "strip"]

_THUMB = 192


@dataclass(frozen=True)
class Thumbnail:
    """A thumbnail with what the judge said."""

    source: str
    alt: str
    answer: Answer | None
    good: bool | None


@dataclass(frozen=True)
class Strip:
    """One case on a contact sheet: a row of pictures per kind of negative."""

    case: Any
    seed: int
    rows: tuple[tuple[str, str, tuple[Thumbnail | None, ...]], ...]
    note: str = ""


# ---------------------------------------------------------------------------------------------------------------
# Pictures


@lru_cache(maxsize=4096)
def _thumb(path: Path) -> str:
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return ""
    image.thumbnail((_THUMB, _THUMB), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=88, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _picture(results: Results, point: str, case: str, seed: int, kind: str) -> Thumbnail | None:
    if results.points[point].method == "none":
        kind = "true"
    run = results.where.get((point, case, seed, kind))
    name = point.partition("@")[0]
    source = _thumb(run.image(f"{name}/{case}--{seed}--{kind}")) if run else ""
    if not source:
        return None
    answer = results.answers[point].get((case, seed, kind))
    if answer is None:
        return Thumbnail(source, f"{point}: not judged", None, None)

    def said(value: bool | None) -> str:
        return "not judged" if value is None else "yes" if value else "no"

    quality = "" if answer.quality is None else f", quality {answer.quality:.2f}"
    alt = f"{point}: object there {said(answer.answer_1)}, part missing {said(answer.answer_2)}{quality}"
    known = (answer.answer_1, answer.answer_2, answer.quality)
    good = None
    if None not in known:
        good = bool(answer.answer_1 and answer.answer_2 and (answer.quality or 0.0) >= results.threshold)
    return Thumbnail(source, alt, answer, good)


def strip(results: Results, points: Sequence[str], case: str, controls: bool, note: str = "") -> Strip | None:
    """The pictures of a case from its first noise, with the control below where asked; None where there is none."""
    seeds = sorted({seed for point in points for seed in results.noises.get((point, case), ())})
    if not seeds:
        return None
    negative = results.cases[case].negative
    rows = [("without", negative, tuple(_picture(results, p, case, seeds[0], "true") for p in points))]
    if controls:
        other = _unrelated(results, points, case, seeds[0])
        pictures = tuple(_picture(results, p, case, seeds[0], "unrelated") for p in points)
        if other and any(pictures):
            rows.append(("control: without", other, pictures))
    if not any(picture for *_, row in rows for picture in row):
        return None  # a run that was read from a file of answers
    return Strip(results.cases[case], seeds[0], tuple(rows), note)


def _unrelated(results: Results, points: Sequence[str], case: str, seed: int) -> str:
    """The negative that the control was really drawn with, from a record."""
    for point in points:
        run = results.where.get((point, case, seed, "unrelated"))
        if run is not None:
            try:
                record = run.records.get(f"{point.partition('@')[0]}/{case}--{seed}--unrelated")
            except KeyError:
                continue
            if record.get("negative"):
                return str(record["negative"])
    return ""


# ---------------------------------------------------------------------------------------------------------------
# What is shown, by rule


def evenly(items: Sequence[str], count: int) -> list[str]:
    """So many of the items, at even distances."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def case_means(results: Results, point: str, metric: str) -> dict[str, float]:
    """The mean of a figure over the noises of each case."""
    sums: dict[str, list[float]] = {}
    for (case, _), value in results.values(point, metric).items():
        sums.setdefault(case, []).append(value)
    return {case: sum(v) / len(v) for case, v in sums.items()}


def extremes(
    results: Results, reference: str, points: Sequence[str], count: int
) -> list[tuple[str, str, list[Strip]]]:
    metric = "joint" if results.values(reference, "joint") else "negative"
    guided = [p for p in points if results.points[p].method != "none"]
    means = {p: case_means(results, p, metric) for p in guided}
    others = [p for p in guided if p != reference]
    order = [c for c in results.cases if all(c in means[p] for p in guided)]
    if not order or not guided:
        return []
    label = METRICS[metric].label
    found: list[tuple[str, str, list[Strip]]] = []

    def add(title: str, rule: str, ranked: list[tuple[float, str]]) -> None:
        strips = [strip(results, points, case, True, f"{label}: {value:+.2f}") for value, case in ranked[:count]]
        if kept := [s for s in strips if s is not None]:
            found.append((title, rule, kept))

    if others and reference in guided:
        lead = {c: means[reference][c] - float(np.mean([means[p][c] for p in others])) for c in order}
        rule = (
            f"mean {label} of {reference} over the seeds of a case, minus that of the other guided methods together; "
            "equal cases in the order of the set; the first seed is shown"
        )
        ahead = sorted(((v, c) for c, v in lead.items() if v > 0), key=lambda pair: -pair[0])
        behind = sorted(((v, c) for c, v in lead.items() if v < 0), key=lambda pair: pair[0])
        add(f"Where {reference} is furthest ahead", f"up to {count}, the largest {rule}", ahead)
        add(f"Where {reference} is furthest behind", f"up to {count}, the lowest {rule}", behind)
    hardest = sorted(((float(np.mean([means[p][c] for p in guided])), c) for c in order), key=lambda pair: pair[0])
    add(
        "The hardest cases",
        f"the {count} lowest means of {label} over all guided methods and the seeds of a case",
        hardest,
    )
    return found
