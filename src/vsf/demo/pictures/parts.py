"""Parts: one routine each, drawn at an anchor, so that a part word means the same thing on every object."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .pen import WHITE, Pen


class Anchor(NamedTuple):
    """A place on an object in object units; what w and h mean is said where a part is drawn."""

    x: float
    y: float
    w: float
    h: float = 0.0


def _wheels(p: Pen, a: Anchor) -> None:
    """Wheels of radius h at y, from x - w to x + w: two, or three where those are far apart."""
    for x in (a.x - a.w, a.x, a.x + a.w) if a.w > 2.2 * a.h else (a.x - a.w, a.x + a.w):
        p.oval(x, a.y, a.h, a.h, (34, 36, 44))
        p.oval(x, a.y, a.h * 0.54, a.h * 0.54, (222, 227, 234), False)
        p.oval(x, a.y, a.h * 0.2, a.h * 0.2, (96, 102, 116), False)


def _windows(p: Pen, a: Anchor) -> None:
    """A row of panes in a box w x h around (x, y): as many as fit at about square, at least two."""
    count = max(2, round(a.w / (a.h * 1.2)))
    pitch = a.w / count
    half = min(pitch * 0.43, a.h * 0.62)
    for i in range(count):
        x = a.x + (i - (count - 1) / 2) * pitch
        p.rect(x - half, a.y - a.h / 2, x + half, a.y + a.h / 2, WHITE, 0.06)
        e = 0.055
        x0, x1, y0, y1 = x - half + e, x + half - e, a.y - a.h / 2 + e, a.y + a.h / 2 - e
        p.rect(x0, y0, x1, y1, (112, 200, 244), 0.03, False)
        p.poly(((x0, y1), (x0, y0 + 0.1), (x0 + 0.1, y0), (x1 - 0.06, y0)), (186, 232, 252), False)


def _smoke(p: Pen, a: Anchor) -> None:
    """Grey puffs that rise from (x, y)."""
    for dx, dy, r in ((0.3, -0.58, 0.25), (0.13, -0.3, 0.2), (0.0, -0.08, 0.14)):
        p.oval(a.x + dx, a.y + dy, r, r * 0.92, (112, 116, 130))
        p.oval(a.x + dx - r * 0.16, a.y + dy - r * 0.18, r * 0.68, r * 0.6, (148, 152, 166), False)


def _steam(p: Pen, a: Anchor) -> None:
    """Three white wavy strokes that rise from (x, y), spread over w."""
    for i in (-1, 0, 1):
        x, top = a.x + i * 0.3, 0.66 + 0.1 * (i == 0)
        wave = [(x + 0.08 * s, a.y - 0.02 - top * t / 4) for t, s in enumerate((0.0, 1.0, 0.0, -1.0, 0.0))]
        p.line(wave, 0.17, (150, 172, 204))
        p.line(wave, 0.1, WHITE, False)


def _wings(p: Pen, a: Anchor) -> None:
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


def _sail(p: Pen, a: Anchor) -> None:
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


def _flag(p: Pen, a: Anchor) -> None:
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
        WHITE,
        False,
    )


def _chimney(p: Pen, a: Anchor) -> None:
    """A brick stack on (x, y)."""
    x, y = a.x, a.y
    p.rect(x - 0.18, y - 0.56, x + 0.18, y + 0.06, (176, 92, 76))
    for i, dy in enumerate((-0.36, -0.2, -0.04)):
        p.rect(x - 0.18, y + dy, x + 0.18, y + dy + 0.035, (226, 186, 168), outline=False)
        dx = -0.05 if i % 2 else 0.05
        p.rect(x + dx, y + dy - 0.13, x + dx + 0.035, y + dy, (226, 186, 168), outline=False)
    p.rect(x - 0.25, y - 0.64, x + 0.25, y - 0.48, (84, 66, 74), 0.03)


def _glasses(p: Pen, a: Anchor) -> None:
    """Black rims with bright lenses, w wide, around (x, y)."""
    r = a.w * 0.225
    p.line(((a.x - a.w / 2 - 0.04, a.y - 0.04), (a.x + a.w / 2 + 0.04, a.y - 0.04)), 0.08, (24, 22, 30), False)
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


def _hat(p: Pen, a: Anchor) -> None:
    """A black top hat with a golden band, brim w wide on (x, y)."""
    x, y, w = a.x, a.y, max(a.w, 0.8)
    p.rect(x - w * 0.31, y - 0.52, x + w * 0.31, y + 0.02, (40, 38, 52), 0.04)
    p.rect(x - w * 0.25, y - 0.48, x - w * 0.15, y - 0.2, (88, 86, 108), 0.03, False)
    p.rect(x - w * 0.31, y - 0.2, x + w * 0.31, y - 0.05, (255, 196, 40), outline=False)
    p.rect(x - w * 0.52, y - 0.06, x + w * 0.52, y + 0.08, (40, 38, 52), 0.06)


def _scarf(p: Pen, a: Anchor) -> None:
    """A teal scarf with white stripes, w wide around (x, y), one end hanging."""
    x, y, w = a.x, a.y, a.w
    teal, shade = (0, 156, 162), (0, 120, 132)
    p.rect(x + w * 0.24, y, x + w * 0.24 + 0.25, y + 0.46, shade, 0.05)
    p.rect(x + w * 0.24, y + 0.27, x + w * 0.24 + 0.25, y + 0.36, WHITE, outline=False)
    p.rect(x - w / 2, y - 0.13, x + w / 2, y + 0.13, teal, 0.12)
    for t in (-0.34, -0.06, 0.3):
        p.rect(x + t * w - 0.045, y - 0.13, x + t * w + 0.045, y + 0.13, WHITE, outline=False)


def _apples(p: Pen, a: Anchor) -> None:
    """Five red apples spread over a box w x h around (x, y)."""
    for dx, dy in ((-0.36, -0.08), (0.0, -0.36), (0.36, -0.06), (-0.17, 0.36), (0.22, 0.36)):
        x, y = a.x + dx * a.w, a.y + dy * a.h
        p.oval(x, y, 0.165, 0.16, (255, 226, 200))
        p.oval(x, y, 0.135, 0.13, (214, 22, 34), False)
        p.oval(x - 0.045, y - 0.05, 0.045, 0.04, (255, 180, 170), False)


def _leaves(p: Pen, a: Anchor) -> None:
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


def _candles(p: Pen, a: Anchor) -> None:
    """Pale candles with yellow flames on (x, y), four over the width w."""
    count = 4
    for i in range(count):
        x = a.x + (i / (count - 1) - 0.5) * (a.w - 0.14)
        p.rect(x - 0.07, a.y - 0.36, x + 0.07, a.y + 0.04, (255, 244, 214))
        p.rect(x - 0.07, a.y - 0.22, x + 0.07, a.y - 0.14, (255, 150, 170), outline=False)
        p.poly(((x, a.y - 0.68), (x + 0.1, a.y - 0.48), (x, a.y - 0.36), (x - 0.1, a.y - 0.48)), (255, 168, 32))
        p.oval(x, a.y - 0.47, 0.05, 0.09, (255, 240, 110), False)


def _snow(p: Pen, a: Anchor) -> None:
    """A white cap from the peak (x, y) down by h, of half-width w below; without h a heap w wide."""
    x, y, w, h = a if a.h else (a.x, a.y - 0.5, max(a.w, 0.9) / 2 + 0.04, 0.56)
    rim = ((1.0, 1.0), (0.62, 0.8), (0.3, 1.08), (-0.1, 0.78), (-0.45, 1.06), (-0.66, 0.82), (-1.0, 1.0))
    p.poly([(x, y - 0.03), *((x + u * w, y + v * h) for u, v in rim)], WHITE)
    p.poly([(x, y), *((x + u * w, y + v * h) for u, v in (*rim[:3], (0.1, 0.9)))], (200, 218, 244), False)


def _cards(p: Pen, a: Anchor) -> None:
    """A fan of three playing cards around (x, y)."""
    for tilt, mark in ((-0.32, (30, 30, 40)), (0.32, (30, 30, 40)), (0.0, (216, 30, 50))):
        x, y = a.x + tilt * 0.85, a.y + abs(tilt) * 0.2
        ux, uy, hw, hh = 1 - tilt * tilt / 2, tilt, 0.19, 0.3

        def at(s: float, t: float, x: float = x, y: float = y, ux: float = ux, uy: float = uy) -> tuple[float, float]:
            return x + s * ux - t * uy, y + s * uy + t * ux

        p.poly((at(-hw, -hh), at(hw, -hh), at(hw, hh), at(-hw, hh)), (150, 156, 172))
        e = 0.03
        p.poly((at(e - hw, e - hh), at(hw - e, e - hh), at(hw - e, hh - e), at(e - hw, hh - e)), WHITE, False)
        p.poly((at(0, -0.16), at(0.1, 0), at(0, 0.16), at(-0.1, 0)), mark, False)


def _antenna(p: Pen, a: Anchor) -> None:
    """A rod with a red ball on (x, y)."""
    x, y = a.x, a.y
    p.rect(x - 0.06, y - 0.4, x + 0.06, y, (110, 118, 134))
    p.rect(x - 0.2, y - 0.1, x + 0.2, y + 0.04, (150, 158, 174), 0.05)
    p.oval(x, y - 0.46, 0.24, 0.24, (255, 78, 52))
    p.oval(x - 0.08, y - 0.54, 0.08, 0.07, (255, 204, 190), False)


def _buttons(p: Pen, a: Anchor) -> None:
    """Three golden buttons in a row (w wide) around (x, y)."""
    for d in (-1, 0, 1):
        x = a.x + d * (a.w / 2 - 0.17)
        p.oval(x, a.y, 0.18, 0.18, (110, 66, 16))
        p.oval(x, a.y, 0.14, 0.14, (255, 206, 64), False)
        p.oval(x - 0.05, a.y, 0.035, 0.035, (110, 66, 16), False)
        p.oval(x + 0.05, a.y, 0.035, 0.035, (110, 66, 16), False)


def _heart(p: Pen, a: Anchor) -> None:
    """A crimson heart with a white rim around (x, y)."""
    for k, color in ((1.0, WHITE), (0.74, (226, 20, 62))):
        x, y = a.x, a.y + 0.03 * (1 - k)
        for d in (-1, 1):
            p.oval(x + d * 0.155 * k, y - 0.1 * k, 0.185 * k, 0.185 * k, color, k == 1.0)
        p.poly(((x - 0.315 * k, y + 0.0), (x + 0.315 * k, y + 0.0), (x, y + 0.36 * k)), color, k == 1.0)
    p.oval(a.x - 0.14, a.y - 0.12, 0.05, 0.045, (255, 170, 185), False)


def _basket(p: Pen, a: Anchor) -> None:
    """A wicker basket around (x, y)."""
    x, y = a.x, a.y
    rim, body = (112, 72, 34), (214, 164, 96)
    p.poly(((x - 0.32, y - 0.22), (x + 0.32, y - 0.22), (x + 0.24, y + 0.28), (x - 0.24, y + 0.28)), body)
    for dy in (-0.04, 0.12):
        p.line(((x - 0.27, y + dy), (x + 0.27, y + dy)), 0.04, rim, False)
    for dx in (-0.13, 0.0, 0.13):
        p.line(((x + dx, y - 0.2), (x + dx * 0.8, y + 0.26)), 0.04, rim, False)
    p.rect(x - 0.36, y - 0.29, x + 0.36, y - 0.17, rim, 0.05)


DRAW_PART: dict[str, Callable[[Pen, Anchor], None]] = {
    "antenna": _antenna, "apples": _apples, "basket": _basket, "buttons": _buttons, "candles": _candles,
    "cards": _cards, "chimney": _chimney, "flag": _flag, "glasses": _glasses, "hat": _hat, "heart": _heart,
    "leaves": _leaves, "sail": _sail, "scarf": _scarf, "smoke": _smoke, "snow": _snow, "steam": _steam,
    "wheels": _wheels, "windows": _windows, "wings": _wings,
}  # fmt: skip
BEHIND = frozenset({"antenna", "chimney", "flag", "sail", "smoke", "steam"})
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
CLASH: dict[str, set[str]] = {
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
ALONE = {
    "apples": Anchor(0, 0, 1.1, 0.8), "buttons": Anchor(0, 0, 1.2), "candles": Anchor(0, 0, 1.0),
    "glasses": Anchor(0, 0, 1.3), "hat": Anchor(0, 0, 1.0), "leaves": Anchor(0, 0, 0.04),
    "scarf": Anchor(0, 0, 1.0),
    "snow": Anchor(0, 0, 1.1), "steam": Anchor(0, 0, 0.9), "wheels": Anchor(0, 0, 0.46, 0.38),
    "windows": Anchor(0, 0, 1.0, 0.46), "wings": Anchor(0, 0, 0.2),
}  # fmt: skip


def slot_of(name: str, part: str) -> str:
    return _OWN_SLOT.get((name, part), _SLOT[part])
