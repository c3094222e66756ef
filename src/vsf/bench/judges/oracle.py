"""The oracle of the demo world as a judge: exact questions, a network trained on this world, no doubt about wording."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..run import Answer
from .base import Item, JudgeError, PictureError

if TYPE_CHECKING:
    from ...demo.oracle import Oracle, Reading

__all__ = ["OracleJudge"]

#: Pictures that are read together.
_GROUP = 16


class OracleJudge:
    """Reads pictures of the demo world.

    Object and colour as the case says (`answer_1`), the case's part less probable than not (`answer_2`), the share of
    the object's other typical parts that are there (`kept`), the object whatever its colour (`identity`), and the
    distance to clean renders (`quality`, 0.5 at their edge; `about()["threshold"]` is where a picture counts as whole).

    Args:
        oracle: another than the shipped one, or its folder.

    Raises:
        JudgeError: its weights are missing or damaged.
    """

    def __init__(self, oracle: Oracle | str | Path | None = None) -> None:
        self.oracle = load(oracle) if oracle is None or isinstance(oracle, (str, Path)) else oracle

    def about(self) -> dict[str, Any]:
        """The hash of its weights, and the quality from which a picture is whole."""
        return {
            "kind": "oracle",
            "version": 1,
            "oracle_sha256": self.oracle.fingerprint,
            "threshold": self.oracle.threshold,
        }

    def read(self, items: Sequence[Item]) -> Iterator[Answer]:
        """Answers group by group. Cases that do not name a part and an object of the demo world are not judged."""
        from ...demo import world

        known: list[Item] = []
        for item in items:
            if item.case.part in world.PARTS and item.case.object in world.OBJECTS:
                known.append(item)
            else:
                yield item.not_judged("not a case of the demo world")
        for item, reading, i in readings(self.oracle, known):
            yield item.not_judged(reading) if isinstance(reading, str) else _answer(item, reading, i)


def load(folder: str | Path | None = None) -> Oracle:
    """The shipped oracle or one in a folder. Raises JudgeError."""
    from ...demo.oracle import OracleError, load_oracle

    try:
        return load_oracle(folder)
    except OracleError as error:
        raise JudgeError(str(error)) from error


def readings(oracle: Oracle, items: Sequence[Item]) -> Iterator[tuple[Item, Reading | str, int]]:
    """Each item with a reading and its row in it, or with why there is none."""
    import numpy as np

    for start in range(0, len(items), _GROUP):
        by_size: dict[tuple[int, ...], list[tuple[Item, Any]]] = {}
        for item in items[start : start + _GROUP]:
            try:
                pixels = np.asarray(item.picture())
            except PictureError as error:
                yield item, str(error), 0
                continue
            by_size.setdefault(pixels.shape, []).append((item, pixels))
        for group in by_size.values():
            # The number of pictures in a group changes the last bits of what is read. An answer is to depend on its
            # own picture only, also when judging was interrupted: so every group has the same size.
            pixels = np.stack([group[i % len(group)][1] for i in range(_GROUP)])
            reading = oracle.read(pixels, batch=_GROUP)
            yield from ((item, reading, i) for i, (item, _) in enumerate(group))


def _answer(item: Item, reading: Reading, i: int) -> Answer:
    from ...demo import world

    case = item.case
    assert case.part is not None
    identity = reading.objects[i] == case.object
    parts = {name: round(float(reading.part(name)[i]), 4) for name in (case.part, *item.kept) if name in world.PARTS}
    others = [bool(reading.has(name)[i]) for name in item.kept if name in parts]
    return item.judged(
        answer_1=identity and (case.color is None or reading.colors[i] == case.color),
        answer_2=not reading.has(case.part)[i],
        quality=round(float(reading.quality[i]), 6),
        kept=sum(others) / len(others) if others else None,
        identity=identity,
        details={"object": reading.objects[i], "color": reading.colors[i], "parts": parts},
    )
