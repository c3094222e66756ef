"""What a sweep can maximise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["OBJECTIVES", "Objective"]


@dataclass(frozen=True)
class Objective:
    """What is maximised: a function of a point's mean scores on dev (`vsf.bench.tables.METRICS`).

    `needs` are the scores, `answers` the fields of `Answer` that a judge must give for them.
    """

    name: str
    help: str
    needs: tuple[str, ...]
    answers: tuple[str, ...]
    controls: bool
    score: Callable[[Mapping[str, float]], float]


OBJECTIVES: dict[str, Objective] = {
    o.name: o
    for o in (
        Objective(
            "balanced",
            "half of joint (true negative: object there, part gone, picture whole) plus half of intact (unrelated "
            "negative, same noise: object there, part there, picture whole)",
            ("balanced",), ("answer_1", "answer_2", "quality"), True, lambda s: s["balanced"],
        ),
        Objective(
            "paper", "0.4 positive + 0.6 negative (arXiv 2508.10931)",
            ("positive", "negative"), ("answer_1", "answer_2"), False, lambda s: 0.4 * s["positive"] + 0.6 * s["negative"],
        ),
    )
}  # fmt: skip
"""What a sweep can maximise, by name."""
