"""Drawing: shapes are recorded in object units and rasterised at the end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from PIL import ImageDraw

from .words import RGB

Points = Sequence[tuple[float, float]]


class Shape(NamedTuple):
    kind: str  # "polygon", "ellipse", "round" (rectangle with round corners) or "line"
    points: Points
    color: RGB
    outline: bool  # takes part in the outline of the "outlined" and "cutout" styles
    extra: float  # corner radius or line width


class Pen:
    """Records shapes; all lengths in object units."""

    def __init__(self) -> None:
        self.shapes: list[Shape] = []

    def poly(self, points: Points, color: RGB, outline: bool = True) -> None:
        self.shapes.append(Shape("polygon", points, color, outline, 0.0))

    def oval(self, x: float, y: float, rx: float, ry: float, color: RGB, outline: bool = True) -> None:
        self.shapes.append(Shape("ellipse", ((x - rx, y - ry), (x + rx, y + ry)), color, outline, 0.0))

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
        self.shapes.append(Shape("round", ((x0, y0), (x1, y1)), color, outline, radius))

    def line(self, points: Points, width: float, color: RGB, outline: bool = True) -> None:
        self.shapes.append(Shape("line", points, color, outline, width))


class Placement(NamedTuple):
    """Maps object units to canvas pixels: x -> cx + sx x, y -> cy + sy y (sx < 0 flips)."""

    cx: float
    cy: float
    sx: float
    sy: float


def draw_shape(draw: ImageDraw.ImageDraw, shape: Shape, frame: Placement, color: RGB, grow: float) -> None:
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
def mix(color: RGB, other: RGB, share: float) -> RGB:
    a, b, c = (round(p + (q - p) * share) for p, q in zip(color, other, strict=True))
    return a, b, c


def light(color: RGB, share: float = 0.3) -> RGB:
    return mix(color, (255, 255, 255), share)


def dark(color: RGB, share: float = 0.22) -> RGB:
    return mix(color, (20, 10, 40), share)


INK: RGB = (36, 34, 48)
WHITE: RGB = (252, 252, 255)
