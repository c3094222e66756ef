"""The demo world: small procedural pictures with exact labels.

A :class:`Scene` names an object, its colour, the parts that are drawn on it, a background, a style and a
seed.  :func:`render` draws it.  The seed alone decides placement, size, flip and small changes of shape, so
scenes that differ only in their parts give pictures that differ only where those parts are.

Objects and parts are drawn in object units: the object fills about [-1, 1] x [-1, 1], y points down.
Objects offer anchors (top, base, front, sides), and every part has one routine that draws it at an anchor: a
part word means the same thing on every object, typical or not.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Points = Sequence[tuple[float, float]]

COLORS: dict[str, RGB] = {
    "red": (220, 40, 44),
    "orange": (248, 136, 24),
    "yellow": (252, 216, 48),
    "green": (38, 150, 72),
    "blue": (44, 98, 218),
    "purple": (132, 62, 188),
    "pink": (250, 146, 196),
    "brown": (124, 76, 44),
}
_BACKGROUND_PHRASE = {
    "grass": "on grass",
    "sand": "on sand",
    "night": "at night",
    "sea": "by the sea",
    "city": "in the city",
    "room": "in a room",
}
BACKGROUNDS: tuple[str, ...] = tuple(_BACKGROUND_PHRASE)
STYLES: tuple[str, ...] = ("flat", "outlined", "cutout")
TYPICAL: dict[str, tuple[str, ...]] = {
    "bike": ("basket", "wheels"),
    "boat": ("flag", "sail"),
    "cake": ("candles", "heart"),
    "car": ("wheels", "windows"),
    "castle": ("flag", "windows"),
    "cat": ("scarf",),
    "face": ("glasses", "hat"),
    "flower": ("leaves",),
    "house": ("chimney", "windows"),
    "mountain": ("snow",),
    "mug": ("heart", "steam"),
    "plane": ("windows", "wings"),
    "robot": ("antenna", "buttons"),
    "snowman": ("hat", "scarf"),
    "table": ("candles", "cards"),
    "train": ("smoke", "wheels"),
    "tree": ("apples",),
}
OBJECTS: tuple[str, ...] = tuple(TYPICAL)
_PART_PHRASE = {
    "antenna": "an antenna",
    "apples": "apples",
    "basket": "a basket",
    "buttons": "buttons",
    "candles": "candles",
    "cards": "cards",
    "chimney": "a chimney",
    "flag": "a flag",
    "glasses": "glasses",
    "hat": "a hat",
    "heart": "a heart",
    "leaves": "leaves",
    "sail": "a sail",
    "scarf": "a scarf",
    "smoke": "smoke",
    "snow": "snow",
    "steam": "steam",
    "wheels": "wheels",
    "windows": "windows",
    "wings": "wings",
}
PARTS: tuple[str, ...] = tuple(_PART_PHRASE)
PRIOR = 0.8
SPLITS: tuple[str, ...] = ("train", "dev", "test")
CAPTION_KINDS: tuple[str, ...] = ("exact", "bare", "mention", "part", "empty")
VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {"a", "an", "and", "plain", "with", *OBJECTS, *COLORS, *PARTS, *STYLES[1:]}
        | {word for phrase in _BACKGROUND_PHRASE.values() for word in phrase.split()}
    )
)


@dataclass(frozen=True)
class Scene:
    """One picture of the demo world.

    Attributes:
        object: a name in ``OBJECTS``, or None to draw the parts alone, large.
        color: a name in ``COLORS``, the colour of the object's body.
        parts: the parts that are drawn, sorted, from ``PARTS``.
        background: a name in ``BACKGROUNDS``.
        style: a name in ``STYLES``.
        seed: decides placement, size, flip and small changes of shape, and nothing else.

    Raises:
        ValueError: for an unknown name, unsorted or repeated parts, or no object and no part.
    """

    object: str | None
    color: str
    parts: tuple[str, ...]
    background: str
    style: str
    seed: int

    def __post_init__(self) -> None:
        if self.object is not None:
            _check("object", self.object, OBJECTS)
        _check("color", self.color, tuple(COLORS))
        _check("background", self.background, BACKGROUNDS)
        _check("style", self.style, STYLES)
        for part in self.parts:
            _check("part", part, PARTS)
        if tuple(sorted(set(self.parts))) != self.parts:
            raise ValueError(f"parts must be a sorted tuple without repeats, got {self.parts!r}")
        if self.object is None and not self.parts:
            raise ValueError("a scene without an object needs at least one part")


def _check(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(allowed)}")


# ----------------------------------------------------------------------------------------------------
# Drawing: shapes are recorded in object units and rasterised at the end


class _Shape(NamedTuple):
    kind: str  # "polygon", "ellipse", "round" (rectangle with round corners) or "line"
    points: Points
    color: RGB
    outline: bool  # takes part in the outline of the "outlined" and "cutout" styles
    extra: float  # corner radius or line width


class _Pen:
    """Records shapes; all lengths in object units."""

    def __init__(self) -> None:
        self.shapes: list[_Shape] = []

    def poly(self, points: Points, color: RGB, outline: bool = True) -> None:
        self.shapes.append(_Shape("polygon", points, color, outline, 0.0))

    def oval(self, x: float, y: float, rx: float, ry: float, color: RGB, outline: bool = True) -> None:
        self.shapes.append(_Shape("ellipse", ((x - rx, y - ry), (x + rx, y + ry)), color, outline, 0.0))

    def rect(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        color: RGB,
        radius: float = 0.0,
        outline: bool = True,
    ) -> None:
        self.shapes.append(_Shape("round", ((x0, y0), (x1, y1)), color, outline, radius))

    def line(self, points: Points, width: float, color: RGB, outline: bool = True) -> None:
        self.shapes.append(_Shape("line", points, color, outline, width))


class _Frame(NamedTuple):
    """Maps object units to canvas pixels: x -> cx + sx x, y -> cy + sy y (sx < 0 flips)."""

    cx: float
    cy: float
    sx: float
    sy: float


def _draw(draw: ImageDraw.ImageDraw, shape: _Shape, frame: _Frame, color: RGB, grow: float) -> None:
    cx, cy, sx, sy = frame
    points = [(cx + sx * x, cy + sy * y) for x, y in shape.points]
    if shape.kind == "polygon":
        draw.polygon(points, fill=color)
        if grow:
            _stroke(draw, [*points, points[0]], 2 * grow, color)
    elif shape.kind == "line":
        _stroke(draw, points, shape.extra * abs(sy) + 2 * grow, color)
    else:
        (x0, y0), (x1, y1) = points
        if x0 > x1:
            x0, x1 = x1, x0
        box = (x0 - grow, y0 - grow, x1 + grow, y1 + grow)
        radius = shape.extra * abs(sy) + grow
        if shape.kind == "ellipse":
            draw.ellipse(box, fill=color)
        elif radius > 1:
            draw.rounded_rectangle(box, radius, fill=color)
        else:
            draw.rectangle(box, fill=color)


def _stroke(draw: ImageDraw.ImageDraw, points: Points, width: float, color: RGB) -> None:
    draw.line([xy for point in points for xy in point], fill=color, width=max(1, round(width)))
    r = width / 2
    if r > 1.5:
        for x, y in points:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=color)


@lru_cache(maxsize=4096)
def _mix(color: RGB, other: RGB, share: float) -> RGB:
    a, b, c = (round(p + (q - p) * share) for p, q in zip(color, other, strict=True))
    return a, b, c


def _light(color: RGB, share: float = 0.3) -> RGB:
    return _mix(color, (255, 255, 255), share)


def _dark(color: RGB, share: float = 0.22) -> RGB:
    return _mix(color, (20, 10, 40), share)


_INK: RGB = (36, 34, 48)
_STEEL: RGB = (206, 213, 224)
_WOOD: RGB = (150, 104, 66)
_WHITE: RGB = (252, 252, 255)


# ----------------------------------------------------------------------------------------------------
# Parts: one routine each, drawn at an anchor


class Anchor(NamedTuple):
    """A place on an object in object units; what w and h mean is said where a part is drawn."""

    x: float
    y: float
    w: float
    h: float = 0.0


def _wheels(p: _Pen, a: Anchor) -> None:
    """Wheels of radius h at y, from x - w to x + w: two, or three where those are far apart."""
    for x in (a.x - a.w, a.x, a.x + a.w) if a.w > 2.2 * a.h else (a.x - a.w, a.x + a.w):
        p.oval(x, a.y, a.h, a.h, (34, 36, 44))
        p.oval(x, a.y, a.h * 0.54, a.h * 0.54, (222, 227, 234), False)
        p.oval(x, a.y, a.h * 0.2, a.h * 0.2, (96, 102, 116), False)


def _windows(p: _Pen, a: Anchor) -> None:
    """A row of panes in a box w x h around (x, y): as many as fit at about square, at least two."""
    count = max(2, round(a.w / (a.h * 1.2)))
    pitch = a.w / count
    half = min(pitch * 0.43, a.h * 0.62)
    for i in range(count):
        x = a.x + (i - (count - 1) / 2) * pitch
        p.rect(x - half, a.y - a.h / 2, x + half, a.y + a.h / 2, _WHITE, 0.06)
        e = 0.055
        x0, x1, y0, y1 = x - half + e, x + half - e, a.y - a.h / 2 + e, a.y + a.h / 2 - e
        p.rect(x0, y0, x1, y1, (112, 200, 244), 0.03, False)
        p.poly(((x0, y1), (x0, y0 + 0.1), (x0 + 0.1, y0), (x1 - 0.06, y0)), (186, 232, 252), False)


def _smoke(p: _Pen, a: Anchor) -> None:
    """Grey puffs that rise from (x, y)."""
    for dx, dy, r in ((0.3, -0.58, 0.25), (0.13, -0.3, 0.2), (0.0, -0.08, 0.14)):
        p.oval(a.x + dx, a.y + dy, r, r * 0.92, (112, 116, 130))
        p.oval(a.x + dx - r * 0.16, a.y + dy - r * 0.18, r * 0.68, r * 0.6, (148, 152, 166), False)


def _steam(p: _Pen, a: Anchor) -> None:
    """Three white wavy strokes that rise from (x, y), spread over w."""
    for i in (-1, 0, 1):
        x, top = a.x + i * 0.3, 0.66 + 0.1 * (i == 0)
        wave = [(x + 0.08 * s, a.y - 0.02 - top * t / 4) for t, s in enumerate((0.0, 1.0, 0.0, -1.0, 0.0))]
        p.line(wave, 0.17, (150, 172, 204))
        p.line(wave, 0.1, _WHITE, False)


def _wings(p: _Pen, a: Anchor) -> None:
    """Two steel wings: out of the sides at x -+ w, or, with h, swept back above and below (x, y)."""
    edge, face = (94, 112, 146), (214, 222, 234)
    for d in (-1, 1):
        if a.h:
            root = ((a.x + 0.3, a.y + d * 0.1), (a.x - 0.25, a.y + d * 0.1))
            tip = ((a.x - 0.3, a.y + d * 0.76), (a.x - 0.62, a.y + d * 0.76))
        else:
            x = a.x + d * (a.w - 0.08)
            root = ((x, a.y + 0.3), (x, a.y - 0.14))
            tip = ((x + d * 0.46, a.y + 0.02), (x + d * 0.5, a.y - 0.58))
        low, high = _between(root[0], tip[0], 0.62), _between(root[1], tip[1], 0.62)
        p.poly((root[0], root[1], tip[1], tip[0]), face)
        p.poly((low, high, tip[1], tip[0]), edge, False)
        p.line((_between(*root, 0.5), _between(*tip, 0.5)), 0.045, edge, False)


def _between(a: tuple[float, float], b: tuple[float, float], t: float) -> tuple[float, float]:
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t


def _sail(p: _Pen, a: Anchor) -> None:
    """A mast of height h on (x, y) with a cream sail."""
    h = a.h or 0.85
    x, y = a.x, a.y
    p.rect(x - 0.04, y - h, x + 0.04, y + 0.04, (96, 70, 52))
    p.poly(((x - 0.07, y - h + 0.02), (x - 0.07, y - 0.14), (x - 0.62 * h, y - 0.14)), (255, 246, 222))
    p.poly(
        ((x - 0.07, y - 0.34 * h - 0.1), (x - 0.07, y - 0.14), (x - 0.62 * h, y - 0.14)),
        (238, 218, 178),
        False,
    )
    p.poly(((x + 0.08, y - h * 0.84), (x + 0.08, y - 0.14), (x + 0.4 * h, y - 0.14)), (255, 246, 222))


def _flag(p: _Pen, a: Anchor) -> None:
    """A pole on (x, y) with a crimson flag that has a white stripe."""
    x, y = a.x, a.y
    p.rect(x - 0.045, y - 0.74, x + 0.045, y + 0.04, (92, 80, 84))
    p.poly(
        (
            (x + 0.04, y - 0.74),
            (x + 0.62, y - 0.68),
            (x + 0.5, y - 0.48),
            (x + 0.62, y - 0.28),
            (x + 0.04, y - 0.28),
        ),
        (206, 28, 72),
    )
    p.poly(
        (
            (x + 0.04, y - 0.58),
            (x + 0.55, y - 0.56),
            (x + 0.5, y - 0.48),
            (x + 0.54, y - 0.42),
            (x + 0.04, y - 0.43),
        ),
        _WHITE,
        False,
    )


def _chimney(p: _Pen, a: Anchor) -> None:
    """A brick stack on (x, y)."""
    x, y = a.x, a.y
    p.rect(x - 0.18, y - 0.56, x + 0.18, y + 0.06, (176, 92, 76))
    for i, dy in enumerate((-0.36, -0.2, -0.04)):
        p.rect(x - 0.18, y + dy, x + 0.18, y + dy + 0.035, (226, 186, 168), outline=False)
        dx = -0.05 if i % 2 else 0.05
        p.rect(x + dx, y + dy - 0.13, x + dx + 0.035, y + dy, (226, 186, 168), outline=False)
    p.rect(x - 0.25, y - 0.64, x + 0.25, y - 0.48, (84, 66, 74), 0.03)


def _glasses(p: _Pen, a: Anchor) -> None:
    """Black rims with bright lenses, w wide, around (x, y)."""
    r = a.w * 0.225
    p.line(
        ((a.x - a.w / 2 - 0.04, a.y - 0.04), (a.x + a.w / 2 + 0.04, a.y - 0.04)), 0.08, (24, 22, 30), False
    )
    for d in (-1, 1):
        x = a.x + d * (a.w / 2 - r)
        p.oval(x, a.y, r, r, (24, 22, 30))
        p.oval(x, a.y, r * 0.68, r * 0.68, (226, 246, 255), False)
        p.poly(
            (
                (x - r * 0.45, a.y + r * 0.4),
                (x + r * 0.1, a.y - r * 0.6),
                (x + r * 0.4, a.y - r * 0.5),
                (x - r * 0.2, a.y + r * 0.6),
            ),
            (170, 222, 250),
            False,
        )


def _hat(p: _Pen, a: Anchor) -> None:
    """A black top hat with a golden band, brim w wide on (x, y)."""
    x, y, w = a.x, a.y, max(a.w, 0.8)
    p.rect(x - w * 0.31, y - 0.52, x + w * 0.31, y + 0.02, (40, 38, 52), 0.04)
    p.rect(x - w * 0.25, y - 0.48, x - w * 0.15, y - 0.2, (88, 86, 108), 0.03, False)
    p.rect(x - w * 0.31, y - 0.2, x + w * 0.31, y - 0.05, (255, 196, 40), outline=False)
    p.rect(x - w * 0.52, y - 0.06, x + w * 0.52, y + 0.08, (40, 38, 52), 0.06)


def _scarf(p: _Pen, a: Anchor) -> None:
    """A teal scarf with white stripes, w wide around (x, y), one end hanging."""
    x, y, w = a.x, a.y, a.w
    teal, shade = (0, 156, 162), (0, 120, 132)
    p.rect(x + w * 0.24, y, x + w * 0.24 + 0.25, y + 0.46, shade, 0.05)
    p.rect(x + w * 0.24, y + 0.27, x + w * 0.24 + 0.25, y + 0.36, _WHITE, outline=False)
    p.rect(x - w / 2, y - 0.13, x + w / 2, y + 0.13, teal, 0.12)
    for t in (-0.34, -0.06, 0.3):
        p.rect(x + t * w - 0.045, y - 0.13, x + t * w + 0.045, y + 0.13, _WHITE, outline=False)


def _apples(p: _Pen, a: Anchor) -> None:
    """Five red apples spread over a box w x h around (x, y)."""
    for dx, dy in ((-0.36, -0.08), (0.0, -0.36), (0.36, -0.06), (-0.17, 0.36), (0.22, 0.36)):
        x, y = a.x + dx * a.w, a.y + dy * a.h
        p.oval(x, y, 0.165, 0.16, (255, 226, 200))
        p.oval(x, y, 0.135, 0.13, (214, 22, 34), False)
        p.oval(x - 0.045, y - 0.05, 0.045, 0.04, (255, 180, 170), False)


def _leaves(p: _Pen, a: Anchor) -> None:
    """A large leaf to each side, rooted near x -+ w at y."""
    for d in (-1, 1):
        x, y = a.x + d * min(max(a.w - 0.12, 0.04), 0.62), a.y
        tip = (x + d * 0.56, y - 0.34)
        p.poly(
            (
                (x - d * 0.04, y + 0.08),
                (x + d * 0.08, y - 0.22),
                (x + d * 0.32, y - 0.38),
                tip,
                (x + d * 0.5, y - 0.06),
                (x + d * 0.28, y + 0.1),
            ),
            (124, 200, 48),
        )
        p.line(((x, y + 0.05), (x + d * 0.44, y - 0.26)), 0.05, (56, 128, 44), False)


def _candles(p: _Pen, a: Anchor) -> None:
    """Pale candles with yellow flames on (x, y), four over the width w."""
    count = 4
    for i in range(count):
        x = a.x + (i / (count - 1) - 0.5) * (a.w - 0.14)
        p.rect(x - 0.07, a.y - 0.36, x + 0.07, a.y + 0.04, (255, 244, 214))
        p.rect(x - 0.07, a.y - 0.22, x + 0.07, a.y - 0.14, (255, 150, 170), outline=False)
        p.poly(
            ((x, a.y - 0.68), (x + 0.1, a.y - 0.48), (x, a.y - 0.36), (x - 0.1, a.y - 0.48)), (255, 168, 32)
        )
        p.oval(x, a.y - 0.47, 0.05, 0.09, (255, 240, 110), False)


def _snow(p: _Pen, a: Anchor) -> None:
    """A white cap from the peak (x, y) down by h, of half-width w below; without h a heap w wide."""
    x, y, w, h = a if a.h else (a.x, a.y - 0.5, max(a.w, 0.9) / 2 + 0.04, 0.56)
    rim = ((1.0, 1.0), (0.62, 0.8), (0.3, 1.08), (-0.1, 0.78), (-0.45, 1.06), (-0.66, 0.82), (-1.0, 1.0))
    p.poly([(x, y - 0.03), *((x + u * w, y + v * h) for u, v in rim)], _WHITE)
    p.poly([(x, y), *((x + u * w, y + v * h) for u, v in (*rim[:3], (0.1, 0.9)))], (200, 218, 244), False)


def _cards(p: _Pen, a: Anchor) -> None:
    """A fan of three playing cards around (x, y)."""
    for tilt, mark in ((-0.32, (30, 30, 40)), (0.32, (30, 30, 40)), (0.0, (216, 30, 50))):
        x, y = a.x + tilt * 0.85, a.y + abs(tilt) * 0.2
        ux, uy, hw, hh = 1 - tilt * tilt / 2, tilt, 0.19, 0.3

        def at(
            s: float, t: float, x: float = x, y: float = y, ux: float = ux, uy: float = uy
        ) -> tuple[float, float]:
            return x + s * ux - t * uy, y + s * uy + t * ux

        p.poly((at(-hw, -hh), at(hw, -hh), at(hw, hh), at(-hw, hh)), (150, 156, 172))
        e = 0.03
        p.poly(
            (at(e - hw, e - hh), at(hw - e, e - hh), at(hw - e, hh - e), at(e - hw, hh - e)), _WHITE, False
        )
        p.poly((at(0, -0.16), at(0.1, 0), at(0, 0.16), at(-0.1, 0)), mark, False)


def _antenna(p: _Pen, a: Anchor) -> None:
    """A rod with a red ball on (x, y)."""
    x, y = a.x, a.y
    p.rect(x - 0.06, y - 0.4, x + 0.06, y, (110, 118, 134))
    p.rect(x - 0.2, y - 0.1, x + 0.2, y + 0.04, (150, 158, 174), 0.05)
    p.oval(x, y - 0.46, 0.24, 0.24, (255, 78, 52))
    p.oval(x - 0.08, y - 0.54, 0.08, 0.07, (255, 204, 190), False)


def _buttons(p: _Pen, a: Anchor) -> None:
    """Three golden buttons in a row (w wide) around (x, y)."""
    for d in (-1, 0, 1):
        x = a.x + d * (a.w / 2 - 0.17)
        p.oval(x, a.y, 0.18, 0.18, (110, 66, 16))
        p.oval(x, a.y, 0.14, 0.14, (255, 206, 64), False)
        p.oval(x - 0.05, a.y, 0.035, 0.035, (110, 66, 16), False)
        p.oval(x + 0.05, a.y, 0.035, 0.035, (110, 66, 16), False)


def _heart(p: _Pen, a: Anchor) -> None:
    """A crimson heart with a white rim around (x, y)."""
    for k, color in ((1.0, _WHITE), (0.74, (226, 20, 62))):
        x, y = a.x, a.y + 0.03 * (1 - k)
        for d in (-1, 1):
            p.oval(x + d * 0.155 * k, y - 0.1 * k, 0.185 * k, 0.185 * k, color, k == 1.0)
        p.poly(((x - 0.315 * k, y + 0.0), (x + 0.315 * k, y + 0.0), (x, y + 0.36 * k)), color, k == 1.0)
    p.oval(a.x - 0.14, a.y - 0.12, 0.05, 0.045, (255, 170, 185), False)


def _basket(p: _Pen, a: Anchor) -> None:
    """A wicker basket around (x, y)."""
    x, y = a.x, a.y
    rim, body = (112, 72, 34), (214, 164, 96)
    p.poly(((x - 0.32, y - 0.22), (x + 0.32, y - 0.22), (x + 0.24, y + 0.28), (x - 0.24, y + 0.28)), body)
    for dy in (-0.04, 0.12):
        p.line(((x - 0.27, y + dy), (x + 0.27, y + dy)), 0.04, rim, False)
    for dx in (-0.13, 0.0, 0.13):
        p.line(((x + dx, y - 0.2), (x + dx * 0.8, y + 0.26)), 0.04, rim, False)
    p.rect(x - 0.36, y - 0.29, x + 0.36, y - 0.17, rim, 0.05)


_PART: dict[str, Callable[[_Pen, Anchor], None]] = {
    "antenna": _antenna, "apples": _apples, "basket": _basket, "buttons": _buttons, "candles": _candles,
    "cards": _cards, "chimney": _chimney, "flag": _flag, "glasses": _glasses, "hat": _hat, "heart": _heart,
    "leaves": _leaves, "sail": _sail, "scarf": _scarf, "smoke": _smoke, "snow": _snow, "steam": _steam,
    "wheels": _wheels, "windows": _windows, "wings": _wings,
}  # fmt: skip
_BEHIND = frozenset({"antenna", "chimney", "flag", "sail", "smoke", "steam"})
_SLOT = {
    "antenna": "top", "apples": "front", "basket": "hold", "buttons": "front", "candles": "top",
    "cards": "front", "chimney": "top", "flag": "top", "glasses": "front", "hat": "top",
    "heart": "front", "leaves": "sides",
    "sail": "top", "scarf": "neck", "smoke": "top", "snow": "top", "steam": "top", "wheels": "base",
    "windows": "front", "wings": "sides",
}  # fmt: skip
# Where an object has a place of its own for a part.
_OWN_SLOT = {
    ("boat", "flag"): "stern",
    ("car", "windows"): "cabin",
    ("cat", "glasses"): "eyes",
    ("face", "glasses"): "eyes",
    ("house", "chimney"): "roof",
    ("house", "windows"): "walls",
    ("castle", "windows"): "walls",
    ("robot", "glasses"): "eyes",
    ("snowman", "glasses"): "eyes",
    ("table", "candles"): "right",
    ("table", "cards"): "left",
    ("train", "smoke"): "stack",
    ("plane", "wings"): "swept",
    ("mountain", "snow"): "peak",
    ("flower", "leaves"): "stem",
}
# Slots that overlap although their names differ, and parts that have no sensible place.
_CLASH: dict[str, set[str]] = {
    "bike": {"windows", "apples", "scarf", "glasses", "cards", "buttons", "leaves"},
    "boat": {"glasses", "leaves", "wings", "hat", "candles", "antenna", "chimney", "smoke", "snow", "steam"},
    "car": {"apples", "cards"},
    "castle": {"glasses", "cards", "apples", "buttons", "heart"},
    "cat": {"sail", "windows", "apples", "cards", "buttons", "heart"},
    "face": {"windows", "apples", "cards", "buttons", "heart"},
    "flower": {"sail", "smoke", "steam", "flag", "candles", "antenna", "chimney"},
    "house": {"smoke", "sail", "steam", "apples", "cards", "glasses"},
    "mountain": {"sail", "smoke", "steam", "flag", "candles"},
    "plane": {"wheels", "basket", "leaves", "flag", "scarf"},
    "robot": {"scarf"},
    "snowman": {"cards"},
    "table": {
        "chimney", "smoke", "steam", "sail", "hat", "flag", "antenna", "snow", "windows", "apples", "glasses",
    },
    "train": {"scarf", "apples", "cards", "glasses"},
    "tree": {"sail", "smoke", "steam", "flag", "candles"},
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------
# Objects: each draws its body and returns its anchors; j holds three numbers in [-1, 1] that vary the shape


def _bike(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    seat, head, crank = (-0.26, -0.12 - 0.04 * j[0]), (0.4, -0.1), (-0.06, 0.48)
    back, front = (-0.58, 0.46), (0.58, 0.46)
    d = _dark(c)
    for q in ((back, seat), (back, crank)):
        p.line(q, 0.13, d)
    for q in ((crank, seat), (seat, head), (crank, head), (head, front)):
        p.line(q, 0.15, c)
    p.line((seat, head), 0.05, _light(c, 0.45), False)
    p.line((head, (0.34, -0.36)), 0.1, (120, 126, 140))
    p.line(((0.2, -0.4), (0.34, -0.38), (0.5, -0.3)), 0.12, _INK)
    p.line((seat, (-0.3, -0.3)), 0.09, (120, 126, 140))
    p.rect(-0.52, -0.42, -0.08, -0.28, _INK, 0.07)
    p.oval(*crank, 0.13, 0.13, (120, 126, 140))
    p.line((crank, (0.06, 0.66)), 0.07, _INK)
    for x, y in (back, front):
        p.oval(x, y, 0.1, 0.1, (120, 126, 140))
    return {
        "base": Anchor(0.0, 0.48, 0.58, 0.4),
        "hold": Anchor(0.72, -0.22, 0.6),
        "top": Anchor(-0.3, -0.4, 0.8),
        "sides": Anchor(-0.28, -0.1, 0.3),
        "front": Anchor(0.06, 0.1, 0.8, 0.4),
    }


def _boat(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    w = 0.6 + 0.06 * j[0]
    p.rect(-0.5, 0.0, 0.3, 0.4, _light(c, 0.5), 0.05)
    p.poly(((-0.98, 0.3), (0.98, 0.24), (w, 0.84), (-w, 0.84)), c)
    p.poly(((-0.82, 0.56), (0.8, 0.56), (w, 0.84), (-w, 0.84)), _dark(c), False)
    p.rect(-0.94, 0.26, 0.96, 0.36, _light(c, 0.75), 0.04)
    return {
        "top": Anchor(-0.08, 0.26, 0.8, 1.2),
        "stern": Anchor(0.52, 0.28, 0.6),
        "front": Anchor(0.0, 0.58, 1.0, 0.34),
        "neck": Anchor(0.0, 0.52, 1.5),
        "base": Anchor(0.0, 0.76, 0.42, 0.24),
        "sides": Anchor(0.0, 0.5, 0.8),
        "hold": Anchor(-0.62, 0.2, 0.6),
    }


def _cake(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    w = 0.58 + 0.04 * j[0]
    cream = (255, 246, 236)
    p.oval(0, 0.82, 0.98, 0.13, (214, 222, 234))
    p.rect(-0.82, 0.26, 0.82, 0.84, c, 0.1)
    p.rect(0.52, 0.3, 0.82, 0.84, _dark(c, 0.14), 0.1, False)
    p.rect(-w, -0.16, w, 0.34, c, 0.08)
    p.rect(w - 0.2, -0.12, w, 0.3, _dark(c, 0.14), 0.06, False)
    for y, half in ((0.26, 0.82), (-0.16, w)):
        p.rect(-half, y - 0.06, half, y + 0.08, cream, 0.07)
        for i in range(5):
            x = (i / 4 - 0.5) * (2 * half - 0.2)
            p.oval(x, y + 0.07, 0.09, 0.1 + 0.05 * (i % 2), cream, False)
    return {
        "top": Anchor(0, -0.2, 1.0),
        "front": Anchor(0, 0.58, 1.2, 0.4),
        "neck": Anchor(0, 0.1, 1.24),
        "sides": Anchor(0, 0.2, 0.68),
        "base": Anchor(0, 0.82, 0.5, 0.24),
        "hold": Anchor(0.82, 0.0, 0.6),
    }


def _car(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    top = -0.42 - 0.05 * j[0]
    p.poly(((-0.7, 0.2), (-0.5, top), (0.36, top), (0.66, 0.2)), c)
    p.rect(-0.52, top - 0.03, 0.38, top + 0.07, _light(c), 0.05)
    p.rect(-0.97, 0.12, 0.97, 0.68, c, 0.16)
    p.rect(-0.95, 0.48, 0.95, 0.68, _dark(c), 0.1, False)
    p.rect(-0.86, 0.16, 0.8, 0.23, _light(c, 0.4), 0.03, False)
    p.oval(0.86, 0.32, 0.1, 0.1, (255, 238, 150))
    p.rect(-0.98, 0.28, -0.86, 0.42, (150, 24, 40), 0.03)
    return {
        "base": Anchor(0, 0.66, 0.52, 0.28),
        "cabin": Anchor(-0.06, -0.1, 0.92, 0.42),
        "top": Anchor(-0.06, top, 0.8),
        "front": Anchor(0, 0.4, 0.8, 0.4),
        "sides": Anchor(0, 0.2, 0.84),
        "neck": Anchor(0, 0.36, 1.7),
        "hold": Anchor(0.74, 0.0, 0.6),
    }


def _castle(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    d, t = _dark(c), -0.22 - 0.05 * j[0]
    p.rect(-0.34, -0.42, 0.34, 0.3, d)
    for x in (-0.34, -0.1, 0.14):
        p.rect(x, -0.56, x + 0.2, -0.4, d)
    p.rect(-0.6, 0.1, 0.6, 0.9, c)
    for x in (-0.5, -0.22, 0.06, 0.34):
        p.rect(x, -0.02, x + 0.16, 0.14, c)
    for x in (-0.96, 0.5):
        p.rect(x, t, x + 0.46, 0.9, _light(c, 0.16))
        p.rect(x + 0.3, t, x + 0.46, 0.9, _dark(c, 0.1), outline=False)
        p.rect(x - 0.03, t - 0.02, x + 0.49, t + 0.12, d)
        for k in (0.0, 0.2, 0.4):
            p.rect(x - 0.03 + k, t - 0.14, x + 0.11 + k, t, d)
    p.oval(0, 0.64, 0.17, 0.17, (70, 48, 44))
    p.rect(-0.17, 0.64, 0.17, 0.9, (70, 48, 44))
    return {
        "top": Anchor(0, -0.5, 0.7),
        "walls": Anchor(0, 0.28, 0.84, 0.36),
        "front": Anchor(0, 0.3, 0.9, 0.36),
        "sides": Anchor(0, 0.3, 0.9),
        "base": Anchor(0, 0.88, 0.62, 0.24),
        "neck": Anchor(0, 0.6, 1.5),
        "hold": Anchor(0.74, 0.5, 0.6),
    }


def _cat(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    d = _dark(c)
    p.line(((0.4, 0.72), (0.72, 0.7), (0.86, 0.44), (0.76, 0.2 + 0.06 * j[0])), 0.17, d)
    p.oval(0, 0.56, 0.52, 0.4, c)
    p.oval(0, 0.64, 0.26, 0.3, _light(c, 0.5), False)
    for s in (-1, 1):
        p.poly(((s * 0.56, -0.78), (s * 0.58, -0.2), (s * 0.1, -0.56)), c)
        p.poly(((s * 0.49, -0.64), (s * 0.5, -0.36), (s * 0.26, -0.52)), (255, 178, 190), False)
    p.oval(0, -0.16, 0.62, 0.48, c)
    p.oval(0, 0.02, 0.27, 0.2, _light(c, 0.6), False)
    for s in (-1, 1):
        p.oval(s * 0.28, -0.2, 0.1, 0.13, (30, 30, 40), False)
        p.oval(s * 0.28 + 0.03, -0.25, 0.035, 0.04, _WHITE, False)
        p.oval(s * 0.24, 0.9, 0.2, 0.09, _light(c, 0.3))
    p.poly(((-0.08, -0.04), (0.08, -0.04), (0, 0.05)), (226, 84, 110), False)
    p.line(((-0.14, 0.09), (-0.06, 0.15), (0, 0.09), (0.06, 0.15), (0.14, 0.09)), 0.035, _INK, False)
    return {
        "neck": Anchor(0, 0.3, 0.96),
        "eyes": Anchor(0, -0.2, 1.06),
        "top": Anchor(0, -0.56, 0.84),
        "front": Anchor(0, 0.64, 0.96, 0.4),
        "sides": Anchor(0, 0.4, 0.5),
        "base": Anchor(0, 0.86, 0.44, 0.24),
        "hold": Anchor(-0.66, 0.62, 0.6),
    }


def _face(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    p.oval(-0.76, 0.16, 0.15, 0.18, _dark(c))
    p.oval(0.76, 0.16, 0.15, 0.18, _dark(c))
    p.oval(0, 0.14, 0.78, 0.76, _dark(c, 0.16))
    p.oval(-0.03, 0.11, 0.73, 0.71, c, False)
    p.oval(-0.3, -0.34, 0.2, 0.1, _light(c, 0.3), False)
    for s in (-1, 1):
        p.oval(s * 0.28, 0.02, 0.1, 0.14, (30, 30, 40), False)
        p.oval(s * 0.28 + 0.03, -0.04, 0.035, 0.04, _WHITE, False)
        p.oval(s * 0.46, 0.34, 0.12, 0.08, _mix(c, (255, 90, 110), 0.45), False)
    k = 0.5 + 0.04 * j[0]
    p.poly(
        ((-0.3, 0.42), (0.3, 0.42), (0.2, k + 0.12), (0.0, k + 0.17), (-0.2, k + 0.12)), (110, 24, 40), False
    )
    p.rect(-0.24, 0.42, 0.24, 0.5, _WHITE, 0.03, False)
    return {
        "eyes": Anchor(0, 0.02, 1.26),
        "top": Anchor(0, -0.5, 1.16),
        "front": Anchor(0, 0.1, 1.0, 0.6),
        "neck": Anchor(0, 0.84, 1.06),
        "sides": Anchor(0, 0.2, 0.78),
        "base": Anchor(0, 0.86, 0.42, 0.24),
        "hold": Anchor(0.78, 0.62, 0.6),
    }


def _flower(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    p.line(((0, 0.1), (0.03 * j[0], 0.5), (0, 0.9)), 0.13, (44, 116, 60))
    y = -0.2
    ring = ((0, -0.44), (0.42, -0.14), (0.26, 0.36), (-0.26, 0.36), (-0.42, -0.14))
    for dx, dy in ring:
        p.oval(dx, y + dy, 0.29, 0.28, _dark(c, 0.14))
    for dx, dy in ring:
        p.oval(dx * 1.02, y + dy * 1.02, 0.22, 0.21, c, False)
    p.oval(0, y, 0.29, 0.28, (255, 196, 52))
    p.oval(0, y + 0.03, 0.19, 0.17, (190, 110, 36), False)
    return {
        "stem": Anchor(0, 0.76, 0.04),
        "sides": Anchor(0, -0.1, 0.56),
        "top": Anchor(0, -0.8, 0.8),
        "front": Anchor(0, -0.18, 0.96, 0.6),
        "neck": Anchor(0, 0.4, 0.86),
        "base": Anchor(0, 0.8, 0.34, 0.26),
        "hold": Anchor(0.62, 0.64, 0.6),
    }


def _house(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    t = -0.62 - 0.05 * j[0]
    d = _dark(c, 0.42)
    p.rect(-0.76, 0.0, 0.76, 0.9, c)
    p.rect(-0.76, 0.0, 0.76, 0.12, _dark(c, 0.2), outline=False)
    p.poly(((-1.0, 0.06), (0, t), (1.0, 0.06)), d)
    p.poly(((-0.62, -0.06), (0, t + 0.16), (0.62, -0.06)), _light(d, 0.16), False)
    p.rect(-0.17, 0.46, 0.17, 0.9, (110, 70, 48), 0.03)
    p.oval(0.09, 0.7, 0.04, 0.04, (255, 210, 90), False)
    return {
        "roof": Anchor(0.56, -0.26, 0.4),
        "walls": Anchor(0, 0.34, 1.3, 0.36),
        "top": Anchor(0, t + 0.06, 0.8),
        "front": Anchor(0, -0.16, 0.9, 0.36),
        "sides": Anchor(0, 0.42, 0.78),
        "base": Anchor(0, 0.88, 0.5, 0.24),
        "neck": Anchor(0, 0.14, 1.56),
        "hold": Anchor(0.66, 0.76, 0.6),
    }


def _mountain(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    x = -0.06 + 0.06 * j[0]
    p.poly(((0.1, 0.88), (0.62, -0.04), (1.08, 0.88)), _dark(c, 0.3))
    p.poly(((-1.04, 0.88), (x, -0.74), (0.86, 0.88)), c)
    p.poly(((x, -0.74), (0.86, 0.88), (0.16, 0.88), (x + 0.1, 0.4), (x - 0.06, 0.0)), _dark(c), False)
    p.poly(((-0.62, 0.88), (-0.36, 0.5), (-0.2, 0.88)), _light(c, 0.18), False)
    return {
        "peak": Anchor(x, -0.74, 0.45, 0.74),
        "top": Anchor(x, -0.68, 0.8),
        "front": Anchor(x, 0.5, 0.9, 0.44),
        "sides": Anchor(x, 0.2, 0.56),
        "neck": Anchor(x, 0.34, 1.26),
        "base": Anchor(0, 0.86, 0.5, 0.25),
    }


def _mug(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    d = _dark(c)
    p.oval(0.56, 0.32, 0.34, 0.34, d)
    p.oval(0.56, 0.32, 0.18, 0.18, (232, 226, 224), False)
    w = 0.62 + 0.03 * j[0]
    p.rect(-w, -0.16, w - 0.06, 0.88, c, 0.14)
    p.rect(w - 0.34, -0.1, w - 0.06, 0.88, _dark(c, 0.14), 0.12, False)
    p.rect(-w + 0.08, 0.0, -w + 0.2, 0.72, _light(c, 0.35), 0.06, False)
    p.oval(-0.03, -0.16, w - 0.03, 0.14, _light(c, 0.35))
    p.oval(-0.03, -0.14, w - 0.13, 0.09, (84, 50, 36), False)
    return {
        "top": Anchor(-0.04, -0.14, 0.96),
        "front": Anchor(-0.04, 0.24, 0.96, 0.44),
        "sides": Anchor(-0.04, 0.4, 0.66),
        "neck": Anchor(-0.04, 0.68, 1.28),
        "base": Anchor(-0.04, 0.86, 0.42, 0.24),
        "hold": Anchor(-0.72, 0.66, 0.6),
    }


def _plane(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    d = _dark(c)
    p.poly(((-0.66, 0.0), (-1.0, -0.62 - 0.05 * j[0]), (-0.7, -0.62 - 0.05 * j[0]), (-0.3, -0.06)), d)
    p.oval(0.2, 0.08, 0.82, 0.33, c)
    p.poly(((0.2, -0.25), (-0.94, -0.1), (-0.94, 0.08), (0.2, 0.41)), c)
    p.poly(((-0.94, 0.08), (0.2, 0.41), (0.74, 0.31), (0.3, 0.28)), d, False)
    p.oval(0.82, 0.06, 0.14, 0.13, (60, 66, 88), False)
    p.poly(((-0.94, -0.02), (-0.66, 0.04), (-0.86, 0.18), (-1.06, 0.16)), _light(c, 0.25))
    return {
        "swept": Anchor(0.12, 0.1, 0.0, 1.0),
        "front": Anchor(0.1, 0.03, 1.08, 0.3),
        "top": Anchor(0.34, -0.2, 0.9),
        "neck": Anchor(0.6, 0.1, 0.6),
        "base": Anchor(0.2, 0.5, 0.36, 0.24),
        "hold": Anchor(0.5, 0.4, 0.6),
    }


def _robot(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    d = _dark(c)
    for s in (-1, 1):
        p.line(((s * 0.6, 0.14), (s * 0.84, 0.3), (s * 0.84, 0.5)), 0.14, (140, 148, 166))
        p.oval(s * 0.84, 0.54, 0.12, 0.12, d)
        p.rect(s * 0.28 - 0.12, 0.62, s * 0.28 + 0.12, 0.82, (140, 148, 166))
        p.rect(s * 0.3 - 0.2, 0.76, s * 0.3 + 0.2, 0.9, d, 0.06)
    p.rect(-0.14, -0.1, 0.14, 0.1, (140, 148, 166))
    w = 0.5 + 0.04 * j[0]
    p.rect(-w, -0.58, w, -0.04, c, 0.12)
    p.rect(-w + 0.1, -0.48, w - 0.1, -0.14, (46, 52, 72), 0.08, False)
    for s in (-1, 1):
        p.oval(s * 0.2, -0.34, 0.09, 0.09, (120, 240, 220), False)
    p.rect(-0.14, -0.21, 0.14, -0.16, (120, 240, 220), outline=False)
    p.rect(-0.62, 0.02, 0.62, 0.66, c, 0.1)
    p.rect(-0.62, 0.52, 0.62, 0.66, d, 0.08, False)
    p.rect(-0.54, 0.07, 0.5, 0.13, _light(c, 0.4), 0.03, False)
    return {
        "top": Anchor(0, -0.56, 0.86),
        "front": Anchor(0, 0.33, 1.16, 0.38),
        "eyes": Anchor(0, -0.33, 1.0),
        "neck": Anchor(0, -0.0, 0.9),
        "sides": Anchor(0, 0.02, 0.62),
        "base": Anchor(0, 0.82, 0.42, 0.25),
        "hold": Anchor(0.76, 0.58, 0.6),
    }


def _snowman(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    for s in (-1, 1):
        p.line(((s * 0.4, 0.3), (s * 0.84, 0.02 + 0.06 * j[0])), 0.08, (96, 66, 48))
        p.line(((s * 0.7, 0.1), (s * 0.9, 0.2)), 0.06, (96, 66, 48))
    for y, r in ((0.48, 0.5), (-0.16, 0.4)):
        p.oval(0, y, r, r * 0.94, _dark(c, 0.16))
        p.oval(-0.03, y - 0.03, r * 0.92, r * 0.86, c, False)
        p.oval(-r * 0.36, y - r * 0.42, r * 0.26, r * 0.2, _light(c, 0.5), False)
    for s in (-1, 1):
        p.oval(s * 0.16, -0.24, 0.065, 0.08, (30, 30, 40), False)
    p.poly(((-0.02, -0.14), (0.0, -0.02), (0.34, -0.05)), (255, 150, 40))
    return {
        "top": Anchor(0, -0.46, 0.94),
        "neck": Anchor(0, 0.14, 0.82),
        "eyes": Anchor(0, -0.24, 0.94),
        "front": Anchor(0, 0.54, 0.96, 0.44),
        "sides": Anchor(0, 0.3, 0.42),
        "base": Anchor(0, 0.84, 0.42, 0.25),
        "hold": Anchor(-0.68, 0.5, 0.6),
    }


def _table(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    d = _dark(c)
    for x, y in ((-0.56, 0.72), (0.46, 0.72)):
        p.rect(x, 0.3, x + 0.12, y, _dark(c, 0.4))
    for x in (-0.9, 0.72):
        p.rect(x, 0.3, x + 0.18, 0.92, d)
    p.poly(
        ((-0.76, 0.0 - 0.03 * j[0]), (0.76, 0.0 - 0.03 * j[0]), (1.02, 0.28), (-1.02, 0.28)), _light(c, 0.22)
    )
    p.rect(-1.02, 0.26, 1.02, 0.46, c, 0.03)
    p.rect(-1.02, 0.4, 1.02, 0.46, d, outline=False)
    return {
        "left": Anchor(-0.42, -0.12, 0.8, 0.6),
        "right": Anchor(0.44, 0.12, 0.76),
        "top": Anchor(0.44, 0.12, 0.76),
        "front": Anchor(0, 0.66, 1.0, 0.4),
        "base": Anchor(0, 0.86, 0.81, 0.27),
        "sides": Anchor(0, 0.3, 0.9),
        "hold": Anchor(0, 0.72, 0.6),
        "neck": Anchor(0.0, 0.36, 1.9),
    }


def _train(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    d = _dark(c)
    p.rect(0.44, -0.28, 0.72, 0.0, (60, 60, 76))
    p.rect(0.38, -0.36, 0.78, -0.22, (60, 60, 76), 0.04)
    p.rect(-0.3, -0.08, 0.92, 0.46, c, 0.2)
    p.rect(-0.2, 0.0, 0.8, 0.07, _light(c, 0.4), 0.03, False)
    for x in (0.1, 0.5):
        p.rect(x, -0.08, x + 0.08, 0.46, d, outline=False)
    t = -0.52 - 0.04 * j[0]
    p.rect(-0.9, t, -0.16, 0.46, c)
    p.rect(-0.9, 0.3, -0.16, 0.46, d, outline=False)
    p.rect(-0.98, t - 0.1, -0.08, t + 0.04, d, 0.04)
    p.rect(-0.94, 0.42, 0.94, 0.6, (74, 76, 94), 0.04)
    p.poly(((0.9, 0.46), (1.04, 0.74), (0.7, 0.74), (0.7, 0.46)), (150, 158, 174))
    p.oval(0.9, 0.16, 0.09, 0.1, (255, 238, 150))
    return {
        "base": Anchor(-0.06, 0.64, 0.62, 0.26),
        "stack": Anchor(0.58, -0.4, 0.5),
        "top": Anchor(-0.53, t - 0.06, 0.84),
        "front": Anchor(-0.53, -0.08, 0.72, 0.36),
        "sides": Anchor(-0.1, 0.1, 0.84),
        "hold": Anchor(-0.82, 0.36, 0.6),
    }


def _tree(p: _Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    p.poly(((-0.13, 0.2), (0.13, 0.2), (0.2, 0.92), (-0.2, 0.92)), (122, 84, 58))
    p.poly(((0.03, 0.2), (0.13, 0.2), (0.2, 0.92), (0.06, 0.92)), (96, 64, 46), False)
    d = _dark(c, 0.18)
    blobs = ((-0.42, 0.08, 0.4), (0.42, 0.08, 0.4), (0.0, -0.34 - 0.05 * j[0], 0.48))
    for x, y, r in blobs:
        p.oval(x, y, r, r * 0.92, d)
    for x, y, r in blobs:
        p.oval(x - 0.03, y - 0.05, r * 0.9, r * 0.82, c, False)
    p.oval(-0.16, -0.52, 0.16, 0.1, _light(c, 0.28), False)
    return {
        "front": Anchor(0, -0.12, 1.3, 0.8),
        "top": Anchor(0, -0.74, 0.9),
        "sides": Anchor(0, 0.0, 0.68),
        "neck": Anchor(0, 0.44, 0.92),
        "base": Anchor(0, 0.86, 0.4, 0.25),
        "hold": Anchor(0.5, 0.7, 0.6),
    }


_OBJECT: dict[str, Callable[[_Pen, RGB, Sequence[float]], dict[str, Anchor]]] = {
    "bike": _bike, "boat": _boat, "cake": _cake, "car": _car, "castle": _castle, "cat": _cat, "face": _face,
    "flower": _flower, "house": _house, "mountain": _mountain, "mug": _mug, "plane": _plane, "robot": _robot,
    "snowman": _snowman, "table": _table, "train": _train, "tree": _tree,
}  # fmt: skip
_ALONE = {
    "apples": Anchor(0, 0, 1.1, 0.8), "buttons": Anchor(0, 0, 1.2), "candles": Anchor(0, 0, 1.0),
    "glasses": Anchor(0, 0, 1.3), "hat": Anchor(0, 0, 1.0), "leaves": Anchor(0, 0, 0.04),
    "scarf": Anchor(0, 0, 1.0),
    "snow": Anchor(0, 0, 1.1), "steam": Anchor(0, 0, 0.9), "wheels": Anchor(0, 0, 0.46, 0.38),
    "windows": Anchor(0, 0, 1.0, 0.46), "wings": Anchor(0, 0, 0.2),
}  # fmt: skip


def _slot(name: str, part: str) -> str:
    return _OWN_SLOT.get((name, part), _SLOT[part])


# ----------------------------------------------------------------------------------------------------
# Backgrounds and rendering

_SKY_GROUND: dict[str, tuple[RGB, RGB, RGB, RGB]] = {  # sky top and bottom, ground top and bottom
    "grass": ((132, 200, 240), (206, 234, 248), (168, 214, 118), (132, 190, 92)),
    "sand": ((250, 204, 160), (254, 232, 204), (238, 214, 164), (222, 190, 134)),
    "night": ((32, 58, 100), (74, 112, 148), (58, 82, 110), (40, 62, 90)),
    "sea": ((150, 214, 236), (216, 240, 246), (64, 164, 196), (96, 190, 208)),
    "city": ((186, 190, 214), (226, 224, 236), (160, 162, 176), (138, 140, 156)),
    "room": ((206, 190, 210), (222, 208, 222), (196, 160, 128), (176, 138, 106)),
}
_HORIZONS = 4


def _ramp(top: RGB, bottom: RGB, count: int) -> np.ndarray:
    t = np.linspace(0.0, 1.0, max(count, 1))[:, None]
    return np.asarray(top) * (1 - t) + np.asarray(bottom) * t


@lru_cache(maxsize=64)
def _backdrop(background: str, n: int, variant: int) -> tuple[Image.Image, RGB]:
    """The background on an n x n canvas and the colour of a shadow on its ground."""
    sky0, sky1, ground0, ground1 = _SKY_GROUND[background]
    horizon = round(n * (0.58 + 0.05 * (variant % _HORIZONS)))
    rows = np.concatenate([_ramp(sky0, sky1, horizon), _ramp(ground0, ground1, n - horizon)])
    pixels = np.repeat(rows[:, None, :], n, axis=1).round().astype(np.uint8)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)

    def oval(x: float, y: float, rx: float, ry: float, color: RGB) -> None:
        draw.ellipse(((x - rx) * n, horizon + (y - ry) * n, (x + rx) * n, horizon + (y + ry) * n), fill=color)

    if background == "grass":
        oval(0.2, 0.1, 0.42, 0.2, _mix(ground0, sky1, 0.3))
        oval(0.88, 0.12, 0.4, 0.19, _mix(ground0, sky1, 0.45))
    elif background == "sand":
        oval(0.8, 0.12, 0.5, 0.19, _mix(ground0, (255, 236, 200), 0.5))
        oval(0.12, 0.12, 0.42, 0.16, _mix(ground0, (206, 166, 110), 0.25))
    elif background == "night":
        for i in range(22):
            x, y = (i * 0.381966 + 0.05) % 1.0, (i * 0.2360 + 0.03) % 0.58
            r = n * (0.006 + 0.004 * (i % 3))
            draw.ellipse((x * n - r, y * n - r, x * n + r, y * n + r), fill=(236, 236, 214))
        oval(0.82, 0.12, 0.44, 0.19, (64, 96, 128))
    elif background == "city":
        for i, height in enumerate((0.26, 0.4, 0.2, 0.34, 0.46, 0.24, 0.38)):
            box = (i * n / 7, horizon - height * n, (i + 1) * n / 7 - n * 0.008, horizon)
            draw.rectangle(box, fill=(176, 180, 204) if i % 2 else (194, 196, 216))
    elif background == "room":
        draw.rectangle((0, horizon - 0.045 * n, n, horizon), fill=(244, 238, 242))
    if background in ("grass", "sand", "night"):  # the ground covers the feet of the hills
        ground = Image.fromarray(pixels[horizon:])
        image.paste(ground, (0, horizon))
    if background == "sea":
        shore = n - round(0.16 * n)
        draw.rectangle((0, shore, n, n), fill=(240, 222, 180))
        for x in range(6):
            draw.ellipse(
                ((x * 0.2 - 0.12) * n, shore - 0.03 * n, (x * 0.2 + 0.12) * n, shore + 0.03 * n),
                fill=(236, 248, 250),
            )
        draw.rectangle((0, shore + 0.01 * n, n, n), fill=(240, 222, 180))
    if variant >= _HORIZONS:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image, _mix(ground1 if background != "sea" else (214, 190, 146), (20, 16, 50), 0.3)


def _record(scene: Scene, jitter: Sequence[float]) -> list[_Shape]:
    """The shapes of an object with its parts, back to front."""
    assert scene.object is not None
    body = _Pen()
    anchors = _OBJECT[scene.object](body, COLORS[scene.color], jitter)
    behind, front = _Pen(), _Pen()
    for part in scene.parts:
        slot = _slot(scene.object, part)
        anchor = anchors.get(slot) or anchors.get("front") or anchors["top"]
        pen = _Pen()
        _PART[part](pen, anchor)
        if part == "wings" and anchor.h:  # a plane's far wing lies behind its body
            half = len(pen.shapes) // 2
            behind.shapes += pen.shapes[:half]
            front.shapes += pen.shapes[half:]
        else:
            (behind if part in _BEHIND else front).shapes += pen.shapes
    return behind.shapes + body.shapes + front.shapes


def _bounds(shapes: Sequence[_Shape]) -> tuple[float, float, float, float]:
    xs = [x for shape in shapes for x, _ in shape.points]
    ys = [y for shape in shapes for _, y in shape.points]
    return min(xs), min(ys), max(xs), max(ys)


def render(scene: Scene, size: int = 64) -> np.ndarray:
    """Draw a scene, anti-aliased by 4x supersampling (2x above 256 pixels).

    Args:
        scene: what to draw.
        size: side of the picture in pixels, at least 16.

    Returns:
        uint8 array [size, size, 3].

    Raises:
        ValueError: if ``size`` is below 16.
    """
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    factor = 4 if size <= 256 else 2
    n = size * factor
    # Every number is drawn before the parts are looked at: pictures of one seed agree outside their parts.
    u = random.Random(scene.seed)
    scale = (0.34 + 0.05 * u.random()) * n
    aspect = 0.95 + 0.1 * u.random()
    cx = (0.5 + 0.07 * (u.random() - 0.5)) * n
    cy = (0.545 + 0.05 * (u.random() - 0.5)) * n
    flip = -1.0 if u.random() < 0.5 else 1.0
    variant = u.randrange(2 * _HORIZONS)
    jitter = [2 * u.random() - 1 for _ in range(3)]

    backdrop, shadow = _backdrop(scene.background, n, variant)
    image = backdrop.copy()
    draw = ImageDraw.Draw(image)
    jobs: list[tuple[_Frame, list[_Shape]]] = []
    if scene.object is not None:
        frame = _Frame(cx, cy, flip * scale * aspect, scale)
        base = 0.94
        half = 0.6 if scene.object in ("flower", "tree") else 0.96
        draw.ellipse(
            (cx - half * scale, cy + (base - 0.1) * scale, cx + half * scale, cy + (base + 0.1) * scale),
            fill=shadow,
        )
        jobs.append((frame, _record(scene, jitter)))
    else:
        cell = 1.0 / len(scene.parts)
        for i, part in enumerate(scene.parts):
            pen = _Pen()
            _PART[part](pen, _ALONE.get(part, Anchor(0, 0, 0.8)))
            x0, y0, x1, y1 = _bounds(pen.shapes)
            s = min(2 * scale * cell / (x1 - x0), 2 * scale / (y1 - y0), 1.6 * scale)
            x = cx + ((i + 0.5) * cell - 0.5) * n
            jobs.append(
                (_Frame(x - flip * s * (x0 + x1) / 2, cy - s * (y0 + y1) / 2, flip * s, s), pen.shapes)
            )
    for frame, shapes in jobs:
        if scene.style == "cutout":  # a white rim around the silhouette
            for shape in shapes:
                if shape.outline:
                    _draw(draw, shape, frame, (255, 255, 255), 0.03 * n)
        for shape in shapes:
            if scene.style == "outlined" and shape.outline:
                _draw(draw, shape, frame, _INK, 0.014 * n)
            _draw(draw, shape, frame, shape.color, 0.0)
    return np.asarray(image.reduce(factor))


def part_mask(scene: Scene, size: int = 64) -> np.ndarray:
    """Pixels that change when one of the object's typical parts, or one of the drawn parts, is toggled.

    Args:
        scene: what is drawn.
        size: side of the picture in pixels, at least 16.

    Returns:
        bool array [size, size].
    """
    picture = render(scene, size)
    if scene.object is None:
        # Parts alone are laid out together, so none can be taken away in place.
        others = [_background_only(scene, size)]
    else:
        toggled = [{part} ^ set(scene.parts) for part in {*TYPICAL[scene.object], *scene.parts}]
        # Where two parts overlap in one colour only taking away both shows: compare with no part, too.
        others = [render(replace(scene, parts=tuple(sorted(parts))), size) for parts in (*toggled, set())]
    mask = np.zeros((size, size), dtype=bool)
    for other in others:
        mask |= (picture != other).any(axis=2)
    return mask


def _background_only(scene: Scene, size: int) -> np.ndarray:
    u = random.Random(scene.seed)
    for _ in range(5):
        u.random()
    factor = 4 if size <= 256 else 2
    image, _ = _backdrop(scene.background, size * factor, u.randrange(2 * _HORIZONS))
    return np.asarray(image.reduce(factor))


# ----------------------------------------------------------------------------------------------------
# Captions and sampling


@lru_cache(maxsize=64)
def allowed_extras(object: str) -> tuple[str, ...]:
    """The parts that are not typical of ``object`` and can be drawn on it clear of its typical parts.

    Raises:
        ValueError: for an unknown object.
    """
    _check("object", object, OBJECTS)
    typical = TYPICAL[object]
    taken = {_slot(object, part) for part in typical}
    anchors = _OBJECT[object](_Pen(), (0, 0, 0), (0.0, 0.0, 0.0))
    return tuple(
        part
        for part in PARTS
        if part not in typical
        and part not in _CLASH.get(object, ())
        and _slot(object, part) not in taken
        and _slot(object, part) in anchors
    )


def split(object: str, color: str, background: str, part: str = "") -> str:
    """Which split a combination belongs to: about 70 % "train", 15 % "dev", 15 % "test".

    Whole (object, color, background) triples are held out, whatever the part: a held-out case was never seen
    in training in any form.  The hash is stable across processes and platforms.
    """
    _check("object", object, OBJECTS)
    _check("color", color, tuple(COLORS))
    _check("background", background, BACKGROUNDS)
    if part:
        _check("part", part, PARTS)
    share = hashlib.sha256(f"{object}|{color}|{background}".encode()).digest()[0] / 256
    return "test" if share < 0.15 else "dev" if share < 0.30 else "train"


def caption(scene: Scene, kind: str, rng: np.random.Generator, background: bool, style: bool) -> str:
    """A caption that is true of the scene.

    A mentioned part is drawn.  "plain" means that no typical part is drawn beyond the mentioned ones.

    Args:
        scene: the scene described.
        kind: "exact" names every drawn part, and says "plain" where a typical part is missing (sometimes also
            where none is); "bare" names no part; "mention" names every extra and at least one part if any is
            drawn, and leaves the other typical parts open; "part" is one drawn part's bare word; "empty" "".
            Scenes without an object give their part words, whatever the kind ("empty" excepted).
        rng: order of the parts and free choices.
        background: also name the background ("on grass").
        style: also name the style; "flat" has no word.

    Raises:
        ValueError: for an unknown kind, "bare" with an extra drawn, or "part" without any part.
    """
    _check("kind of caption", kind, CAPTION_KINDS)
    if kind == "empty":
        return ""
    where = " " + _BACKGROUND_PHRASE[scene.background] if background else ""
    adjective = [scene.style] if style and scene.style != "flat" else []
    order = [scene.parts[i] for i in rng.permutation(len(scene.parts))]
    if scene.object is None:
        return " ".join([*adjective, " and ".join(order)]) + where
    if kind == "part":
        if not order:
            raise ValueError("a caption of kind 'part' needs a scene with a part")
        return " ".join([*adjective, order[0]]) + where
    typical = TYPICAL[scene.object]
    plain = False
    if kind == "bare":
        if any(part not in typical for part in order):
            raise ValueError(f"a caption of kind 'bare' cannot leave out the extra parts of {scene.parts}")
        order = []
    elif kind == "mention":
        named = [part for part in order if part not in typical or rng.random() < 0.3]
        order = named or order[:1]
    else:
        plain = not set(typical) <= set(order) or rng.random() < 0.2
    words = [*(["plain"] if plain else []), *adjective, scene.color, scene.object]
    article = "an" if words[0][0] in "aeiou" else "a"
    parts = " with " + " and ".join(_PART_PHRASE[part] for part in order) if order else ""
    return f"{article} {' '.join(words)}{parts}{where}"


def _pick(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def sample_scene(
    rng: np.random.Generator,
    object: str | None = None,
    parts: Sequence[str] | None = None,
    split_name: str | None = "train",
) -> Scene:
    """A random scene of a split.

    Args:
        rng: source of every choice.
        object: the object; a random one if None.
        parts: the parts; if None each typical part is drawn with probability ``PRIOR`` and nothing else.
        split_name: "train", "dev" or "test", or None for any.

    Raises:
        ValueError: for an unknown object, part or split.
    """
    if split_name is not None:
        _check("split", split_name, SPLITS)
    if object is not None:
        _check("object", object, OBJECTS)
    while True:
        name, color, background = (
            object or _pick(rng, OBJECTS),
            _pick(rng, tuple(COLORS)),
            _pick(rng, BACKGROUNDS),
        )
        if split_name is None or split(name, color, background) == split_name:
            break
    if parts is None:
        parts = [part for part in TYPICAL[name] if rng.random() < PRIOR]
    style = STYLES[int(rng.choice(3, p=(0.5, 0.25, 0.25)))]
    return Scene(name, color, tuple(sorted(set(parts))), background, style, int(rng.integers(2**31)))


def training_pair(rng: np.random.Generator) -> list[tuple[Scene, str]]:
    """One or two (scene, caption) rows of the training split that share their seed.

    - 55 %: an antithetic pair, the same scene with a set A of its typical parts and with the rest of them;
      half of the time with one extra part on one row or on both, captions exact.
    - 27 %: a caption that leaves typical parts open (drawn with ``PRIOR``); a third of these name a part,
      half of those an extra.
    - 12 %: a whole object captioned with one part's bare word.
    - 6 %: one part alone.

    10 % of the rows get the empty caption.  Bare words apart, 40 % of the captions name the background and
    about 15 % the style.
    """
    u = rng.random()
    scene = sample_scene(rng)
    name = scene.object
    assert name is not None
    typical = TYPICAL[name]
    extras = allowed_extras(name)
    rows: list[tuple[Scene, str]]
    if u < 0.55:
        kept = {part for part in typical if rng.random() < 0.5}
        sets = [kept, set(typical) - kept]
        if rng.random() < 0.5:
            extra = _pick(rng, extras)
            which = int(rng.integers(4))  # 0, 1: on that row; 2, 3: on both
            for i in range(2):
                if which >= 2 or which == i:
                    sets[i] = sets[i] | {extra}
        rows = [(replace(scene, parts=tuple(sorted(s))), "exact") for s in sets]
    elif u < 0.82:
        v = rng.random()
        if v < 1 / 6:
            scene = replace(scene, parts=tuple(sorted({*scene.parts, _pick(rng, extras)})))
        elif v < 1 / 3:
            scene = replace(scene, parts=tuple(sorted({*scene.parts, _pick(rng, typical)})))
        rows = [(scene, "mention" if v < 1 / 3 else "bare")]
    elif u < 0.94:
        part = _pick(rng, typical) if rng.random() < 0.7 else _pick(rng, extras)
        rows = [(replace(scene, parts=tuple(sorted({*scene.parts, part}))), f"part:{part}")]
    else:
        rows = [(replace(scene, object=None, parts=(_pick(rng, PARTS),)), "exact")]
    background = rng.random() < 0.4
    style = rng.random() < 0.3  # half of the pictures have a style with a word
    result = []
    for row, kind in rows:
        if rng.random() < 0.1:
            text = ""
        elif kind.startswith("part:"):
            text = kind.removeprefix("part:")
        else:
            text = caption(row, kind, rng, background, style)
        result.append((row, text))
    return result
