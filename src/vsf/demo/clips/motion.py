"""What moves, and how: a few numbers per object, one map of the plane per part."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..pictures.parts import Anchor
from ..pictures.pen import Placement, Points, Shape
from ..pictures.render import BASE, Still
from ..pictures.words import Scene

FRAMES = 9
_FINE = 0.14  # longest straight piece of a bent edge, in object units

Map = Callable[[float, float], tuple[float, float]]


class Move(NamedTuple):
    """How an object moves, in object units and radians: from side to side of a middle unless something else is said.

    Attributes:
        travel: the way that it goes in the direction it faces, in all.
        bob, hop: up and down; only up.
        rock: turning about its base.
        sway: to the side, the more the higher.
        near: share by which it comes nearer, or goes, in all.
    """

    travel: float = 0.0
    bob: float = 0.0
    hop: float = 0.0
    rock: float = 0.0
    sway: float = 0.0
    near: float = 0.0


_MOVES = {
    "bike": Move(travel=0.32), "boat": Move(travel=0.16, rock=0.1), "cake": Move(near=0.14), "car": Move(travel=0.36),
    "castle": Move(near=0.14), "cat": Move(sway=0.06), "face": Move(rock=0.09), "flower": Move(sway=0.11),
    "house": Move(near=0.14), "mountain": Move(near=0.14), "mug": Move(near=0.14), "plane": Move(travel=0.34, bob=0.06),
    "robot": Move(hop=0.14), "snowman": Move(rock=0.08), "table": Move(near=0.14), "train": Move(travel=0.36),
    "tree": Move(sway=0.07),
}  # fmt: skip


class Moment(Still):
    """One frame of a scene.

    Attributes:
        way: how much of the way is behind, -0.5 to 0.5.
        turn: angle of everything that comes and goes, once around in `FRAMES` frames.
        size: of its movements, 0.8 to 1.2.
    """

    def __init__(self, scene: Scene, frame: int) -> None:
        u = random.Random(f"motion of {scene.seed}")
        self.way = frame / (FRAMES - 1) - 0.5
        self.turn = 2 * math.pi * (frame / FRAMES + u.random())
        self.size = 0.8 + 0.4 * u.random()
        self.nearer = 1 if u.random() < 0.5 else -1
        self.rolled = 0.0 if scene.object is None else self.size * self.way * _MOVES[scene.object].travel

    def wave(self, delay: float = 0.0) -> float:
        """-1 to 1 and back, `delay` radians behind."""
        return self.size * math.sin(self.turn - delay)

    def place(self, name: str, frame: Placement) -> Placement:
        move = _MOVES[name]
        near = 1 + self.size * self.way * self.nearer * move.near
        up = move.bob * self.wave() - move.hop * abs(self.wave())
        cx = frame.cx + frame.sx * self.rolled
        return Placement(cx, frame.cy + frame.sy * (up + (1 - near) * BASE), frame.sx * near, frame.sy * near)

    def part(self, name: str, shapes: list[Shape], anchor: Anchor) -> list[Shape]:
        if name in _REDRAWN:
            return list(_REDRAWN[name](self, shapes, anchor))
        bend = _BENT.get(name)
        return shapes if bend is None else [_warped(shape, bend(self, anchor)) for shape in shapes]

    def whole(self, name: str, shapes: list[Shape]) -> list[Shape]:
        move = _MOVES[name]
        if move.rock:
            turned = _turned(move.rock * self.wave(), 0.0, BASE)
            return [_warped(shape, turned) for shape in shapes]
        if move.sway:
            side = move.sway * self.wave()
            return [_warped(shape, lambda x, y: (x + side * (BASE - y), y)) for shape in shapes]
        return shapes


# ---------------------------------------------------------------------------------------------------------------
# Parts that are bent or moved


def _turned(angle: float, x0: float, y0: float) -> Map:
    c, s = math.cos(angle), math.sin(angle)
    return lambda x, y: (x0 + c * (x - x0) - s * (y - y0), y0 + s * (x - x0) + c * (y - y0))


def _antenna(m: Moment, a: Anchor) -> Map:
    return lambda x, y: (x + 0.3 * m.wave() * max(0.0, a.y - y), y)


def _apples(m: Moment, a: Anchor) -> Map:
    return lambda x, y: (x + 0.06 * m.wave(3 * (x - a.x)), y)


def _basket(m: Moment, a: Anchor) -> Map:
    return _turned(0.16 * m.wave(), a.x, a.y - 0.25)


def _candles(m: Moment, a: Anchor) -> Map:
    def flicker(x: float, y: float) -> tuple[float, float]:
        up = max(0.0, a.y - 0.36 - y)
        return x + 0.35 * up * m.wave(5 * (x - a.x)), y - 0.2 * up * m.wave(1 + 5 * (x - a.x))

    return flicker


def _cards(m: Moment, a: Anchor) -> Map:
    return _turned(0.14 * m.wave(), a.x, a.y + 0.3)


def _flag(m: Moment, a: Anchor) -> Map:
    def wave(x: float, y: float) -> tuple[float, float]:
        out = max(0.0, x - a.x - 0.045) / 0.55
        return x, y + 0.1 * min(out, 1.0) * m.wave(4.5 * out)

    return wave


def _glasses(m: Moment, a: Anchor) -> Map:
    return lambda x, y: (x, y + 0.04 * m.wave())


def _hat(m: Moment, a: Anchor) -> Map:
    return lambda x, y: (x, y - 0.1 * max(0.0, m.wave()))


def _heart(m: Moment, a: Anchor) -> Map:
    k = 1 + 0.14 * m.wave()
    return lambda x, y: (a.x + k * (x - a.x), a.y + k * (y - a.y))


def _leaves(m: Moment, a: Anchor) -> Map:
    return lambda x, y: (x, y + 0.16 * m.wave() * abs(x - a.x))


def _sail(m: Moment, a: Anchor) -> Map:
    k = 1 - 0.1 * (1 + m.wave())
    return lambda x, y: (a.x + k * (x - a.x) if abs(x - a.x) > 0.05 else x, y)


def _scarf(m: Moment, a: Anchor) -> Map:
    return lambda x, y: (x + 0.35 * m.wave() * max(0.0, y - a.y - 0.13), y)


def _steam(m: Moment, a: Anchor) -> Map:
    return lambda x, y: (x + 0.07 * m.wave(-9 * (y - a.y)), y)


def _wings(m: Moment, a: Anchor) -> Map:
    if a.h:  # swept: seen from the side, a plane banks
        return lambda x, y: (x, a.y + (y - a.y) * (1 + 0.16 * m.wave()))
    return lambda x, y: (x, y + 0.4 * m.wave() * max(0.0, abs(x - a.x) - a.w))


_BENT: dict[str, Callable[[Moment, Anchor], Map]] = {
    "antenna": _antenna, "apples": _apples, "basket": _basket, "candles": _candles, "cards": _cards, "flag": _flag,
    "glasses": _glasses, "hat": _hat, "heart": _heart, "leaves": _leaves, "sail": _sail, "scarf": _scarf,
    "steam": _steam, "wings": _wings,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------
# Parts whose shapes change


def _smoke(m: Moment, shapes: list[Shape], a: Anchor) -> Iterator[Shape]:
    """Puffs rise one after the other, grow, and are gone; each is two ovals, the highest comes first."""
    begun = m.turn / (2 * math.pi) % 1
    for i in (2, 1, 0):
        s = (i + begun) / 3
        k = 1.12 * s**0.4 * min(1.0, 6 * (1 - s))
        dark = shapes[0].points
        x0, y0 = (dark[0][0] + dark[1][0]) / 2, (dark[0][1] + dark[1][1]) / 2
        x1, y1 = a.x + 0.36 * s, a.y - 0.02 - 0.64 * s

        def risen(x: float, y: float, x0: float = x0, y0: float = y0, x1: float = x1, y1: float = y1, k: float = k):
            return x1 + k * (x - x0), y1 + k * (y - y0)

        yield from (shape._replace(points=[risen(*at) for at in shape.points]) for shape in shapes[:2])


def _snow(m: Moment, shapes: list[Shape], a: Anchor) -> Iterator[Shape]:
    """The cap lies, and flakes fall past it."""
    yield from shapes
    (x0, x1), y0 = _sides(shapes[0].points), min(y for _, y in shapes[0].points) - 0.2
    for i in range(7):
        x = x0 + (x1 - x0) * (0.08 + 0.84 * (0.618 * i % 1))
        y = y0 + 1.0 * ((m.turn / (2 * math.pi) + 0.755 * i) % 1)
        yield Shape("ellipse", ((x - 0.055, y - 0.055), (x + 0.055, y + 0.055)), (240, 246, 255), False, 0.0)


def _wheels(m: Moment, shapes: list[Shape], a: Anchor) -> Iterator[Shape]:
    """Spokes that turn by the way gone, or, where nothing goes, slowly; each wheel is tyre, disc and hub."""
    angle = m.rolled / a.h if m.rolled or m.way == 0 else m.way
    for i in range(0, len(shapes), 3):
        tyre, disc, hub = shapes[i : i + 3]
        yield from (tyre, disc)
        (x0, y0), (x1, y1) = disc.points
        x, y, r = (x0 + x1) / 2, (y0 + y1) / 2, 0.92 * (x1 - x0) / 2
        for k in (0.0, math.pi / 2):
            dx, dy = r * math.cos(angle + k), r * math.sin(angle + k)
            yield Shape("line", ((x - dx, y - dy), (x + dx, y + dy)), (110, 116, 130), False, 0.34 * r)
        yield hub


_REDRAWN: dict[str, Callable[[Moment, list[Shape], Anchor], Iterator[Shape]]] = {
    "smoke": _smoke, "snow": _snow, "wheels": _wheels,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------
# Shapes under a map


def _sides(points: Points) -> tuple[float, float]:
    xs = [x for x, _ in points]
    return min(xs), max(xs)


def _warped(shape: Shape, by: Map) -> Shape:
    """A shape under a map of the plane: a line stays one, all others become polygons."""
    kind = "line" if shape.kind == "line" else "polygon"
    return shape._replace(
        kind=kind, points=[by(x, y) for x, y in _traced(shape)], extra=shape.extra * (kind == "line")
    )


def _traced(shape: Shape) -> list[tuple[float, float]]:
    """The points of a line or a polygon, its edges cut in short pieces; of an oval or a rectangle, those of its rim."""
    if shape.kind in ("line", "polygon"):
        points = list(shape.points)
        ends = points[1:] if shape.kind == "line" else [*points[1:], points[0]]
        cut: list[tuple[float, float]] = []
        for (x0, y0), (x1, y1) in zip(points, ends, strict=False):
            n = max(1, math.ceil(math.hypot(x1 - x0, y1 - y0) / _FINE))
            cut += [(x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n) for i in range(n)]
        return cut + points[-1:] if shape.kind == "line" else cut
    (x0, y0), (x1, y1) = shape.points
    rx, ry = (x1 - x0) / 2, (y1 - y0) / 2
    if shape.kind == "round":
        rx, ry = min(shape.extra, rx), min(shape.extra, ry)
    n = 1 if min(rx, ry) == 0 else 5
    corners = ((x1 - rx, y1 - ry), (x0 + rx, y1 - ry), (x0 + rx, y0 + ry), (x1 - rx, y0 + ry))
    rim = [
        (x + rx * math.cos(angle), y + ry * math.sin(angle))
        for k, (x, y) in enumerate(corners)
        for angle in (math.pi / 2 * (k + (i / (n - 1) if n > 1 else 0.0)) for i in range(n))
    ]
    return _traced(Shape("polygon", rim, shape.color, shape.outline, 0.0))
