"""Objects: each draws its body and returns its anchors; j holds three numbers in [-1, 1] that vary the shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .parts import Anchor
from .pen import INK, WHITE, Pen, dark, light, mix
from .words import RGB


def _bike(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    seat, head, crank = (-0.26, -0.12 - 0.04 * j[0]), (0.4, -0.1), (-0.06, 0.48)
    back, front = (-0.58, 0.46), (0.58, 0.46)
    d = dark(c)
    for q in ((back, seat), (back, crank)):
        p.line(q, 0.13, d)
    for q in ((crank, seat), (seat, head), (crank, head), (head, front)):
        p.line(q, 0.15, c)
    p.line((seat, head), 0.05, light(c, 0.45), False)
    p.line((head, (0.34, -0.36)), 0.1, (120, 126, 140))
    p.line(((0.2, -0.4), (0.34, -0.38), (0.5, -0.3)), 0.12, INK)
    p.line((seat, (-0.3, -0.3)), 0.09, (120, 126, 140))
    p.rect(-0.52, -0.42, -0.08, -0.28, INK, 0.07)
    p.oval(*crank, 0.13, 0.13, (120, 126, 140))
    p.line((crank, (0.06, 0.66)), 0.07, INK)
    for x, y in (back, front):
        p.oval(x, y, 0.1, 0.1, (120, 126, 140))
    return {
        "base": Anchor(0.0, 0.48, 0.58, 0.4),
        "hold": Anchor(0.72, -0.22, 0.6),
        "top": Anchor(-0.3, -0.4, 0.8),
        "sides": Anchor(-0.28, -0.1, 0.3),
        "front": Anchor(0.06, 0.1, 0.8, 0.4),
    }


def _boat(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    w = 0.6 + 0.06 * j[0]
    p.rect(-0.5, 0.0, 0.3, 0.4, light(c, 0.5), 0.05)
    p.poly(((-0.98, 0.3), (0.98, 0.24), (w, 0.84), (-w, 0.84)), c)
    p.poly(((-0.82, 0.56), (0.8, 0.56), (w, 0.84), (-w, 0.84)), dark(c), False)
    p.rect(-0.94, 0.26, 0.96, 0.36, light(c, 0.75), 0.04)
    return {
        "top": Anchor(-0.08, 0.26, 0.8, 1.2),
        "stern": Anchor(0.52, 0.28, 0.6),
        "front": Anchor(0.0, 0.58, 1.0, 0.34),
        "neck": Anchor(0.0, 0.52, 1.5),
        "base": Anchor(0.0, 0.76, 0.42, 0.24),
        "sides": Anchor(0.0, 0.5, 0.8),
        "hold": Anchor(-0.62, 0.2, 0.6),
    }


def _cake(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    w = 0.58 + 0.04 * j[0]
    cream = (255, 246, 236)
    p.oval(0, 0.82, 0.98, 0.13, (214, 222, 234))
    p.rect(-0.82, 0.26, 0.82, 0.84, c, 0.1)
    p.rect(0.52, 0.3, 0.82, 0.84, dark(c, 0.14), 0.1, False)
    p.rect(-w, -0.16, w, 0.34, c, 0.08)
    p.rect(w - 0.2, -0.12, w, 0.3, dark(c, 0.14), 0.06, False)
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


def _car(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    top = -0.42 - 0.05 * j[0]
    p.poly(((-0.7, 0.2), (-0.5, top), (0.36, top), (0.66, 0.2)), c)
    p.rect(-0.52, top - 0.03, 0.38, top + 0.07, light(c), 0.05)
    p.rect(-0.97, 0.12, 0.97, 0.68, c, 0.16)
    p.rect(-0.95, 0.48, 0.95, 0.68, dark(c), 0.1, False)
    p.rect(-0.86, 0.16, 0.8, 0.23, light(c, 0.4), 0.03, False)
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


def _castle(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    d, t = dark(c), -0.22 - 0.05 * j[0]
    p.rect(-0.34, -0.42, 0.34, 0.3, d)
    for x in (-0.34, -0.1, 0.14):
        p.rect(x, -0.56, x + 0.2, -0.4, d)
    p.rect(-0.6, 0.1, 0.6, 0.9, c)
    for x in (-0.5, -0.22, 0.06, 0.34):
        p.rect(x, -0.02, x + 0.16, 0.14, c)
    for x in (-0.96, 0.5):
        p.rect(x, t, x + 0.46, 0.9, light(c, 0.16))
        p.rect(x + 0.3, t, x + 0.46, 0.9, dark(c, 0.1), outline=False)
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


def _cat(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    d = dark(c)
    p.line(((0.4, 0.72), (0.72, 0.7), (0.86, 0.44), (0.76, 0.2 + 0.06 * j[0])), 0.17, d)
    p.oval(0, 0.56, 0.52, 0.4, c)
    p.oval(0, 0.64, 0.26, 0.3, light(c, 0.5), False)
    for s in (-1, 1):
        p.poly(((s * 0.56, -0.78), (s * 0.58, -0.2), (s * 0.1, -0.56)), c)
        p.poly(((s * 0.49, -0.64), (s * 0.5, -0.36), (s * 0.26, -0.52)), (255, 178, 190), False)
    p.oval(0, -0.16, 0.62, 0.48, c)
    p.oval(0, 0.02, 0.27, 0.2, light(c, 0.6), False)
    for s in (-1, 1):
        p.oval(s * 0.28, -0.2, 0.1, 0.13, (30, 30, 40), False)
        p.oval(s * 0.28 + 0.03, -0.25, 0.035, 0.04, WHITE, False)
        p.oval(s * 0.24, 0.9, 0.2, 0.09, light(c, 0.3))
    p.poly(((-0.08, -0.04), (0.08, -0.04), (0, 0.05)), (226, 84, 110), False)
    p.line(((-0.14, 0.09), (-0.06, 0.15), (0, 0.09), (0.06, 0.15), (0.14, 0.09)), 0.035, INK, False)
    return {
        "neck": Anchor(0, 0.3, 0.96),
        "eyes": Anchor(0, -0.2, 1.06),
        "top": Anchor(0, -0.56, 0.84),
        "front": Anchor(0, 0.64, 0.96, 0.4),
        "sides": Anchor(0, 0.4, 0.5),
        "base": Anchor(0, 0.86, 0.44, 0.24),
        "hold": Anchor(-0.66, 0.62, 0.6),
    }


def _face(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    p.oval(-0.76, 0.16, 0.15, 0.18, dark(c))
    p.oval(0.76, 0.16, 0.15, 0.18, dark(c))
    p.oval(0, 0.14, 0.78, 0.76, dark(c, 0.16))
    p.oval(-0.03, 0.11, 0.73, 0.71, c, False)
    p.oval(-0.3, -0.34, 0.2, 0.1, light(c, 0.3), False)
    for s in (-1, 1):
        p.oval(s * 0.28, 0.02, 0.1, 0.14, (30, 30, 40), False)
        p.oval(s * 0.28 + 0.03, -0.04, 0.035, 0.04, WHITE, False)
        p.oval(s * 0.46, 0.34, 0.12, 0.08, mix(c, (255, 90, 110), 0.45), False)
    k = 0.5 + 0.04 * j[0]
    p.poly(((-0.3, 0.42), (0.3, 0.42), (0.2, k + 0.12), (0.0, k + 0.17), (-0.2, k + 0.12)), (110, 24, 40), False)
    p.rect(-0.24, 0.42, 0.24, 0.5, WHITE, 0.03, False)
    return {
        "eyes": Anchor(0, 0.02, 1.26),
        "top": Anchor(0, -0.5, 1.16),
        "front": Anchor(0, 0.1, 1.0, 0.6),
        "neck": Anchor(0, 0.84, 1.06),
        "sides": Anchor(0, 0.2, 0.78),
        "base": Anchor(0, 0.86, 0.42, 0.24),
        "hold": Anchor(0.78, 0.62, 0.6),
    }


def _flower(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    p.line(((0, 0.1), (0.03 * j[0], 0.5), (0, 0.9)), 0.13, (44, 116, 60))
    y = -0.2
    ring = ((0, -0.44), (0.42, -0.14), (0.26, 0.36), (-0.26, 0.36), (-0.42, -0.14))
    for dx, dy in ring:
        p.oval(dx, y + dy, 0.29, 0.28, dark(c, 0.14))
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


def _house(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    t = -0.62 - 0.05 * j[0]
    d = dark(c, 0.42)
    p.rect(-0.76, 0.0, 0.76, 0.9, c)
    p.rect(-0.76, 0.0, 0.76, 0.12, dark(c, 0.2), outline=False)
    p.poly(((-1.0, 0.06), (0, t), (1.0, 0.06)), d)
    p.poly(((-0.62, -0.06), (0, t + 0.16), (0.62, -0.06)), light(d, 0.16), False)
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


def _mountain(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    x = -0.06 + 0.06 * j[0]
    p.poly(((0.1, 0.88), (0.62, -0.04), (1.08, 0.88)), dark(c, 0.3))
    p.poly(((-1.04, 0.88), (x, -0.74), (0.86, 0.88)), c)
    p.poly(((x, -0.74), (0.86, 0.88), (0.16, 0.88), (x + 0.1, 0.4), (x - 0.06, 0.0)), dark(c), False)
    p.poly(((-0.62, 0.88), (-0.36, 0.5), (-0.2, 0.88)), light(c, 0.18), False)
    return {
        "peak": Anchor(x, -0.74, 0.45, 0.74),
        "top": Anchor(x, -0.68, 0.8),
        "front": Anchor(x, 0.5, 0.9, 0.44),
        "sides": Anchor(x, 0.2, 0.56),
        "neck": Anchor(x, 0.34, 1.26),
        "base": Anchor(0, 0.86, 0.5, 0.25),
    }


def _mug(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    d = dark(c)
    p.oval(0.56, 0.32, 0.34, 0.34, d)
    p.oval(0.56, 0.32, 0.18, 0.18, (232, 226, 224), False)
    w = 0.62 + 0.03 * j[0]
    p.rect(-w, -0.16, w - 0.06, 0.88, c, 0.14)
    p.rect(w - 0.34, -0.1, w - 0.06, 0.88, dark(c, 0.14), 0.12, False)
    p.rect(-w + 0.08, 0.0, -w + 0.2, 0.72, light(c, 0.35), 0.06, False)
    p.oval(-0.03, -0.16, w - 0.03, 0.14, light(c, 0.35))
    p.oval(-0.03, -0.14, w - 0.13, 0.09, (84, 50, 36), False)
    return {
        "top": Anchor(-0.04, -0.14, 0.96),
        "front": Anchor(-0.04, 0.24, 0.96, 0.44),
        "sides": Anchor(-0.04, 0.4, 0.66),
        "neck": Anchor(-0.04, 0.68, 1.28),
        "base": Anchor(-0.04, 0.86, 0.42, 0.24),
        "hold": Anchor(-0.72, 0.66, 0.6),
    }


def _plane(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    d = dark(c)
    p.poly(((-0.66, 0.0), (-1.0, -0.62 - 0.05 * j[0]), (-0.7, -0.62 - 0.05 * j[0]), (-0.3, -0.06)), d)
    p.oval(0.2, 0.08, 0.82, 0.33, c)
    p.poly(((0.2, -0.25), (-0.94, -0.1), (-0.94, 0.08), (0.2, 0.41)), c)
    p.poly(((-0.94, 0.08), (0.2, 0.41), (0.74, 0.31), (0.3, 0.28)), d, False)
    p.oval(0.82, 0.06, 0.14, 0.13, (60, 66, 88), False)
    p.poly(((-0.94, -0.02), (-0.66, 0.04), (-0.86, 0.18), (-1.06, 0.16)), light(c, 0.25))
    return {
        "swept": Anchor(0.12, 0.1, 0.0, 1.0),
        "front": Anchor(0.1, 0.03, 1.08, 0.3),
        "top": Anchor(0.34, -0.2, 0.9),
        "neck": Anchor(0.6, 0.1, 0.6),
        "base": Anchor(0.2, 0.5, 0.36, 0.24),
        "hold": Anchor(0.5, 0.4, 0.6),
    }


def _robot(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    d = dark(c)
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
    p.rect(-0.54, 0.07, 0.5, 0.13, light(c, 0.4), 0.03, False)
    return {
        "top": Anchor(0, -0.56, 0.86),
        "front": Anchor(0, 0.33, 1.16, 0.38),
        "eyes": Anchor(0, -0.33, 1.0),
        "neck": Anchor(0, -0.0, 0.9),
        "sides": Anchor(0, 0.02, 0.62),
        "base": Anchor(0, 0.82, 0.42, 0.25),
        "hold": Anchor(0.76, 0.58, 0.6),
    }


def _snowman(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    for s in (-1, 1):
        p.line(((s * 0.4, 0.3), (s * 0.84, 0.02 + 0.06 * j[0])), 0.08, (96, 66, 48))
        p.line(((s * 0.7, 0.1), (s * 0.9, 0.2)), 0.06, (96, 66, 48))
    for y, r in ((0.48, 0.5), (-0.16, 0.4)):
        p.oval(0, y, r, r * 0.94, dark(c, 0.16))
        p.oval(-0.03, y - 0.03, r * 0.92, r * 0.86, c, False)
        p.oval(-r * 0.36, y - r * 0.42, r * 0.26, r * 0.2, light(c, 0.5), False)
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


def _table(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    d = dark(c)
    for x, y in ((-0.56, 0.72), (0.46, 0.72)):
        p.rect(x, 0.3, x + 0.12, y, dark(c, 0.4))
    for x in (-0.9, 0.72):
        p.rect(x, 0.3, x + 0.18, 0.92, d)
    p.poly(((-0.76, 0.0 - 0.03 * j[0]), (0.76, 0.0 - 0.03 * j[0]), (1.02, 0.28), (-1.02, 0.28)), light(c, 0.22))
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


def _train(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    d = dark(c)
    p.rect(0.44, -0.28, 0.72, 0.0, (60, 60, 76))
    p.rect(0.38, -0.36, 0.78, -0.22, (60, 60, 76), 0.04)
    p.rect(-0.3, -0.08, 0.92, 0.46, c, 0.2)
    p.rect(-0.2, 0.0, 0.8, 0.07, light(c, 0.4), 0.03, False)
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


def _tree(p: Pen, c: RGB, j: Sequence[float]) -> dict[str, Anchor]:
    p.poly(((-0.13, 0.2), (0.13, 0.2), (0.2, 0.92), (-0.2, 0.92)), (122, 84, 58))
    p.poly(((0.03, 0.2), (0.13, 0.2), (0.2, 0.92), (0.06, 0.92)), (96, 64, 46), False)
    d = dark(c, 0.18)
    blobs = ((-0.42, 0.08, 0.4), (0.42, 0.08, 0.4), (0.0, -0.34 - 0.05 * j[0], 0.48))
    for x, y, r in blobs:
        p.oval(x, y, r, r * 0.92, d)
    for x, y, r in blobs:
        p.oval(x - 0.03, y - 0.05, r * 0.9, r * 0.82, c, False)
    p.oval(-0.16, -0.52, 0.16, 0.1, light(c, 0.28), False)
    return {
        "front": Anchor(0, -0.12, 1.3, 0.8),
        "top": Anchor(0, -0.74, 0.9),
        "sides": Anchor(0, 0.0, 0.68),
        "neck": Anchor(0, 0.44, 0.92),
        "base": Anchor(0, 0.86, 0.4, 0.25),
        "hold": Anchor(0.5, 0.7, 0.6),
    }


DRAW_OBJECT: dict[str, Callable[[Pen, RGB, Sequence[float]], dict[str, Anchor]]] = {
    "bike": _bike, "boat": _boat, "cake": _cake, "car": _car, "castle": _castle, "cat": _cat, "face": _face,
    "flower": _flower, "house": _house, "mountain": _mountain, "mug": _mug, "plane": _plane, "robot": _robot,
    "snowman": _snowman, "table": _table, "train": _train, "tree": _tree,
}  # fmt: skip
