"""Pictures of what is no object of the world: the world's parts on bodies and in places that nobody has seen.

Who learns parts from the world's few objects learns where each object has them. Here a body is a heap of shapes, or an object's
body, and parts stand where any of the given objects has them, moved and stretched; so what remains to be learned is the part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from .objects import DRAW_OBJECT
from .parts import BEHIND, DRAW_PART, Anchor, slot_of
from .pen import Pen, Placement, Shape, dark, light, mix
from .render import HORIZONS, backdrop, paint
from .scenes import allowed_extras
from .words import BACKGROUNDS, COLORS, RGB, STYLES, TYPICAL

__all__ = ["Strange", "strange"]

_LEAST = 10  # pixels of a part, at 64 pixels a side, by which it can be seen
_CUT = (0.3, 0.55)
_FACTOR = 4


@dataclass(frozen=True)
class Strange:
    """A picture uint8 [S, S, 3], the parts that can be seen in it, and the colour of its body."""

    pixels: NDArray[np.uint8]
    parts: frozenset[str]
    color: str


def strange(rng: np.random.Generator, objects: Sequence[str], size: int = 64) -> Strange:
    """A strange picture with up to three parts; in about every fifth one part is cut by 30 to 55 %, and counts as there.

    Args:
        objects: whose bodies are used, and whose places for parts.
    """

    def pick(some: Sequence[str]) -> str:
        return some[int(rng.integers(len(some)))]

    n = size * _FACTOR
    color, style = pick(tuple(COLORS)), pick(STYLES)
    canvas, _ = backdrop(pick(BACKGROUNDS), n, int(rng.integers(2 * HORIZONS)))
    scale = float(rng.uniform(0.33, 0.4)) * n
    flip = -1.0 if rng.random() < 0.5 else 1.0
    frame = Placement(float(rng.uniform(0.46, 0.54)) * n, float(rng.uniform(0.5, 0.58)) * n, flip * scale, scale)
    body = Pen()
    if rng.random() < 0.6:
        _heap(body, COLORS[color], rng)
    else:
        DRAW_OBJECT[pick(objects)](body, COLORS[color], tuple(rng.uniform(-1, 1, 3)))
    drawn: dict[str, list[Shape]] = {}
    for part in rng.permutation(tuple(DRAW_PART))[: int(rng.integers(0, 4))]:
        pen = Pen()
        DRAW_PART[str(part)](pen, _place(str(part), objects, rng))
        drawn[str(part)] = pen.shapes
    if "smoke" in drawn and "steam" in drawn:  # they look alike
        del drawn["steam"]

    def render(parts: Sequence[str]) -> NDArray[np.uint8]:
        image = canvas.copy()
        behind = [shape for part in parts if part in BEHIND for shape in drawn[part]]
        front = [shape for part in parts if part not in BEHIND for shape in drawn[part]]
        paint(ImageDraw.Draw(image), [*behind, *body.shapes, *front], frame, style, n)
        return np.asarray(image.reduce(_FACTOR))

    parts = list(drawn)
    picture = render(parts)
    for part in list(parts):
        without = render([other for other in parts if other != part])
        mask = (without != picture).any(2)
        if mask.sum() * (64 / size) ** 2 < _LEAST:  # hidden: it is not there
            parts.remove(part)
            picture = without
        elif rng.random() < 1 / 7:
            y, x = np.nonzero(mask)
            angle, share = rng.uniform(0, 2 * np.pi), rng.uniform(*_CUT)
            order = np.argsort(np.cos(angle) * x + np.sin(angle) * y, kind="stable")[: round(share * len(x))]
            picture = picture.copy()
            picture[y[order], x[order]] = without[y[order], x[order]]
            break
    return Strange(picture, frozenset(parts), color)


def _place(part: str, objects: Sequence[str], rng: np.random.Generator) -> Anchor:
    able = [name for name in objects if part in TYPICAL[name] or part in allowed_extras(name)] or list(objects)
    name = able[int(rng.integers(len(able)))]
    anchors = DRAW_OBJECT[name](Pen(), (0, 0, 0), (0.0, 0.0, 0.0))
    at = anchors.get(slot_of(name, part)) or anchors.get("front") or anchors["top"]
    dx, dy = rng.normal(0, 0.2, 2)
    return Anchor(at.x + dx, at.y + dy, at.w * rng.uniform(0.75, 1.3), at.h * rng.uniform(0.75, 1.3))


def _heap(pen: Pen, color: RGB, rng: np.random.Generator) -> None:
    """A heap of shapes, mostly in one colour, with some small ones on it."""
    grey: RGB = mix((255, 255, 255), (20, 20, 30), float(rng.uniform(0.1, 0.9)))
    other: RGB = list(COLORS.values())[int(rng.integers(len(COLORS)))]
    colors = [color, color, dark(color), light(color), grey, other]
    large = int(rng.integers(1, 5))
    for i in range(large + int(rng.integers(0, 5))):
        most = 0.75 if i < large else 0.2
        x, y = rng.uniform(-0.5, 0.5, 2) if i else rng.uniform(-0.15, 0.25, 2)
        w, h = rng.uniform(0.3 * most, most, 2)
        paint_in = colors[int(rng.integers(len(colors)))] if i else color
        kind = int(rng.integers(4))
        if kind == 0:
            pen.oval(x, y, w, h, paint_in)
        elif kind == 1:
            pen.rect(x - w, y - h, x + w, y + h, paint_in, float(rng.uniform(0, 0.15)))
        elif kind == 2:
            corners = rng.uniform(-1, 1, (int(rng.integers(3, 5)), 2)) * (w, h) + (x, y)
            turned = sorted(corners.tolist(), key=lambda at: np.arctan2(at[1] - y, at[0] - x))
            pen.poly([(float(a), float(b)) for a, b in turned], paint_in)
        else:
            pen.line(
                [(x - w, y - h), (x + w * float(rng.uniform(-1, 1)), y + h)], float(rng.uniform(0.06, 0.25)), paint_in
            )
