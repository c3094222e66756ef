"""The oracle of a demo world as a judge: exact questions, a network trained on this world, no doubt about wording."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...demo.worlds import FIRST, OracleError, World, world
from ...registry import check, option
from ..cases import Case
from ..run import Answer
from .base import Exhibit, JudgeError, PictureError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["OracleJudge"]

#: Pictures that are read together.
_GROUP = 16


@dataclass(eq=False)
class OracleJudge:
    """Reads pictures of a demo world.

    Object and colour as the case says (`answer_1`), the case's part less probable than not (`answer_2`), the share of
    the object's other typical parts that are there (`kept`), the object whatever its colour (`identity`), and the
    distance to clean renders (`quality`, 0.5 at their edge; `about()["threshold"]` is where a picture counts as whole).

    `oracle` is another than the shipped one, or its folder.

    Raises:
        JudgeError: its weights are missing or damaged.
    """

    gives: ClassVar = ("answer_1", "answer_2", "quality", "kept", "identity")

    oracle: Any = None
    world: str | None = option("the demo world (default: that of the cases)", None)

    def __post_init__(self) -> None:
        check(self)
        self._of = world_of(self.world)
        if self.oracle is None or isinstance(self.oracle, (str, Path)):
            self.oracle = load(self._of, self.oracle)

    def about(self) -> dict[str, Any]:
        """The hash of its weights, and the quality from which a picture is whole."""
        return {
            "kind": "oracle",
            "version": 1,
            "oracle_sha256": self.oracle.fingerprint,
            "threshold": self.oracle.threshold,
        }

    def refuses(self, case: Case) -> str | None:
        """Whether the case names no part and no object of the demo world."""
        ours = case.of_world() is self._of and case.part in self._of.parts and case.object in self._of.objects
        return None if ours else "not a case of the demo world"

    def read(self, items: Sequence[Exhibit]) -> Iterator[Answer]:
        """Answers group by group. Cases that do not name a part and an object of the demo world are not judged."""
        known: list[Exhibit] = []
        for item in items:
            if why := self.refuses(item.case):
                yield item.not_judged(why)
            else:
                known.append(item)
        for item, reading, i in readings(self.oracle, known):
            yield item.not_judged(reading) if isinstance(reading, str) else self._answer(item, reading, i)

    def answer(self, picture: Image.Image, question: str, *, asks: str = "other", item: str = "") -> float | None:
        """P(yes) by `asks` and `item` alone: a part of its world, or an object, after its colour if that is asked, too
        ("red bike"). None for what it does not know, and for "other"."""
        import numpy as np

        reading = self.oracle.read(np.array(picture)[None])
        if asks in ("missing", "kept"):
            if item not in self._of.parts:
                return None
            there = float(reading.part(item)[0])
            return there if asks == "kept" else 1 - there
        color, _, name = item.rpartition(" ")
        if asks != "object" or name not in self._of.objects or (color and color not in self._of.colors):
            return None
        if not hasattr(reading, "object_probs"):
            return float(reading.objects[0] == name and (not color or reading.colors[0] == color))
        # The columns of a reading stand in the order of its world.
        there = float(reading.object_probs[0, self._of.objects.index(name)])
        return there * (float(reading.color_probs[0, self._of.colors.index(color)]) if color else 1.0)

    def _answer(self, item: Exhibit, reading: Any, i: int) -> Answer:
        case = item.case
        assert case.part is not None
        identity = reading.objects[i] == case.object
        parts = {
            name: round(float(reading.part(name)[i]), 4) for name in (case.part, *item.kept) if name in self._of.parts
        }
        others = [bool(reading.has(name)[i]) for name in item.kept if name in parts]
        return item.judged(
            answer_1=identity and (case.color is None or reading.colors[i] == case.color),
            answer_2=not reading.has(case.part)[i],
            quality=round(float(reading.quality[i]), 6),
            kept=sum(others) / len(others) if others else None,
            identity=identity,
            details={"object": reading.objects[i], "color": reading.colors[i], "parts": parts},
        )


def world_of(name: str | None) -> World:
    """A demo world by its name, None being the first. Raises JudgeError."""
    try:
        return world(name or FIRST)
    except ValueError as error:
        raise JudgeError(str(error)) from error


def load(of: World, folder: str | Path | None = None) -> Any:
    """A world's shipped oracle or one in a folder. Raises JudgeError."""
    try:
        return of.load_oracle(folder)
    except OracleError as error:
        raise JudgeError(str(error)) from error


def readings(oracle: Any, items: Sequence[Exhibit]) -> Iterator[tuple[Exhibit, Any, int]]:
    """Each item with a reading and its row in it, or with why there is none, a text."""
    import numpy as np

    for start in range(0, len(items), _GROUP):
        by_size: dict[tuple[int, ...], list[tuple[Exhibit, Any]]] = {}
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
