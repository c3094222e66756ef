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

    Of a clip it reads every frame: object and colour must be there in all of them and the part gone from all of them;
    `kept` and `quality` are means over them; `flicker`, `motion` and `ends` say how they follow each other.

    `oracle` is another than the shipped one, or its folder.

    Raises:
        JudgeError: its weights are missing or damaged.
    """

    gives: ClassVar = ("answer_1", "answer_2", "quality", "kept", "identity", "flicker", "motion", "ends")

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
        for item, reading, at in readings(self.oracle, known):
            yield item.not_judged(reading) if isinstance(reading, str) else self._answer(item, reading, at)

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

    def _answer(self, item: Exhibit, reading: Any, at: slice) -> Answer:
        import numpy as np

        case = item.case
        assert case.part is not None
        objects, colors = reading.objects[at], reading.colors[at]
        identity = all(name == case.object for name in objects)
        names = [name for name in (case.part, *item.kept) if name in self._of.parts]
        others = [float(np.mean(reading.has(name)[at])) for name in item.kept if name in names]
        there, quality = reading.has(case.part)[at], reading.quality[at]
        parts = {name: [round(float(p), 4) for p in reading.part(name)[at]] for name in names}
        details: dict[str, Any] = {"object": objects, "color": colors, "parts": parts}
        clip: dict[str, float] = {}
        if item.frames == 1:
            details = {"object": objects[0], "color": colors[0], "parts": {name: p[0] for name, p in parts.items()}}
        else:
            pixels = np.stack([np.asarray(frame, np.float32) for frame in item.clip()]) / 255
            clip = {
                "flicker": float(np.mean(there[1:] != there[:-1])),
                "motion": round(float(np.abs(np.diff(pixels, axis=0)).mean()), 6),
                "ends": round(float(min(quality[0], quality[-1]) - quality[len(quality) // 2]), 6),
            }
        return item.judged(
            answer_1=identity and (case.color is None or all(color == case.color for color in colors)),
            answer_2=not there.any(),
            quality=round(float(quality.mean()), 6),
            kept=sum(others) / len(others) if others else None,
            identity=identity,
            details=details,
            **clip,
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


def readings(oracle: Any, items: Sequence[Exhibit]) -> Iterator[tuple[Exhibit, Any, slice]]:
    """Each item with a reading and the rows of its frames in it, or with why there is none, a text."""
    import numpy as np

    for start in range(0, len(items), _GROUP):
        by_size: dict[tuple[int, ...], list[tuple[Exhibit, Any]]] = {}
        for item in items[start : start + _GROUP]:
            try:
                frames = np.stack([np.asarray(frame) for frame in item.clip()])
            except PictureError as error:
                yield item, str(error), slice(0)
                continue
            by_size.setdefault(frames.shape[1:], []).append((item, frames))
        for group in by_size.values():
            # The number of pictures in a group changes the last bits of what is read. An answer is to depend on its
            # own picture only, also when judging was interrupted: so every group has the same size.
            pixels = np.concatenate([frames for _, frames in group])
            reading = oracle.read(pixels[np.arange(-(-len(pixels) // _GROUP) * _GROUP) % len(pixels)], batch=_GROUP)
            ends = np.cumsum([len(frames) for _, frames in group]).tolist()
            for (item, frames), end in zip(group, ends, strict=True):
                yield item, reading, slice(end - len(frames), end)
