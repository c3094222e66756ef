"""A judge's worst mistakes as one picture: where it was most sure of what is not so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .agreement import Key
from .labels import Label, Labels, word

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["worst", "worst_sheet"]


def worst(true: Mapping[Key, Label], answers: Mapping[Key, float | None], count: int) -> list[tuple[Label, float]]:
    """The true labels that were answered wrongly with P(yes), those with the least probability for the truth first."""
    wrong = [
        (label, p) for key, label in true.items() if (p := answers.get(key)) is not None and (p >= 0.5) != label.answer
    ]
    return sorted(wrong, key=lambda pair: (pair[1] if pair[0].answer else 1 - pair[1], pair[0].key))[:count]


def worst_sheet(labels: Labels, mistakes: list[tuple[Label, float]], columns: int = 6) -> Image.Image:
    """Pictures with their question, what is true, and what the judge answered.

    Raises:
        LabelsError: a picture cannot be read.
        ValueError: no mistakes.
    """
    from ..images import Card, sheet

    if not mistakes:
        raise ValueError("there is no mistake to show")
    cards = [
        Card(
            _short(label),
            None,
            [(f"{word(label.answer)}; judge: P(yes) {p:.2f}{_damage(label)}", labels.picture(label))],
        )
        for label, p in mistakes
    ]
    return sheet(cards, min(columns, math.ceil(math.sqrt(len(cards)))))


def _short(label: Label) -> str:
    """The question in a few words."""
    short = {"missing": f"{label.item} missing?", "kept": f"{label.item} to be seen?"}
    return short.get(label.asks, label.question) if label.item else label.question


def _damage(label: Label) -> str:
    return f" ({label.damage})" if label.damage else ""
