"""Backgrounds, and scenes as pixels."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from .objects import DRAW_OBJECT
from .parts import ALONE, BEHIND, DRAW_PART, Anchor, slot_of
from .pen import INK, Pen, Placement, Shape, draw_shape, mix
from .words import COLORS, RGB, TYPICAL, Scene

_SKY_GROUND: dict[str, tuple[RGB, RGB, RGB, RGB]] = {  # sky top and bottom, ground top and bottom
    "grass": ((132, 200, 240), (206, 234, 248), (168, 214, 118), (132, 190, 92)),
    "sand": ((250, 204, 160), (254, 232, 204), (238, 214, 164), (222, 190, 134)),
    "night": ((32, 58, 100), (74, 112, 148), (58, 82, 110), (40, 62, 90)),
    "sea": ((150, 214, 236), (216, 240, 246), (64, 164, 196), (96, 190, 208)),
    "city": ((186, 190, 214), (226, 224, 236), (160, 162, 176), (138, 140, 156)),
    "room": ((206, 190, 210), (222, 208, 222), (196, 160, 128), (176, 138, 106)),
}
HORIZONS = 4
BASE = 0.94  # where objects stand, in object units


def _ramp(top: RGB, bottom: RGB, count: int) -> np.ndarray:
    t = np.linspace(0.0, 1.0, max(count, 1))[:, None]
    return np.asarray(top) * (1 - t) + np.asarray(bottom) * t


@lru_cache(maxsize=64)
def backdrop(background: str, n: int, variant: int) -> tuple[Image.Image, RGB]:
    """The background on an n x n canvas and the colour of a shadow on its ground."""
    sky0, sky1, ground0, ground1 = _SKY_GROUND[background]
    horizon = round(n * (0.58 + 0.05 * (variant % HORIZONS)))
    rows = np.concatenate([_ramp(sky0, sky1, horizon), _ramp(ground0, ground1, n - horizon)])
    pixels = np.repeat(rows[:, None, :], n, axis=1).round().astype(np.uint8)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)

    def oval(x: float, y: float, rx: float, ry: float, color: RGB) -> None:
        draw.ellipse(((x - rx) * n, horizon + (y - ry) * n, (x + rx) * n, horizon + (y + ry) * n), fill=color)

    if background == "grass":
        oval(0.2, 0.1, 0.42, 0.2, mix(ground0, sky1, 0.3))
        oval(0.88, 0.12, 0.4, 0.19, mix(ground0, sky1, 0.45))
    elif background == "sand":
        oval(0.8, 0.12, 0.5, 0.19, mix(ground0, (255, 236, 200), 0.5))
        oval(0.12, 0.12, 0.42, 0.16, mix(ground0, (206, 166, 110), 0.25))
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
    if variant >= HORIZONS:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image, mix(ground1 if background != "sea" else (214, 190, 146), (20, 16, 50), 0.3)


class Still:
    """Where everything is at one moment of a scene. Here nothing moves; see `vsf.demo.clips`."""

    def place(self, name: str, frame: Placement) -> Placement:
        """Where the object stands."""
        return frame

    def part(self, name: str, shapes: list[Shape], anchor: Anchor) -> list[Shape]:
        """The shapes of a part that was drawn at an anchor."""
        return shapes

    def whole(self, name: str, shapes: list[Shape]) -> list[Shape]:
        """The shapes of an object with its parts."""
        return shapes


STILL = Still()


def _record(scene: Scene, jitter: Sequence[float], moment: Still) -> list[Shape]:
    """The shapes of an object with its parts, back to front."""
    assert scene.object is not None
    body = Pen()
    anchors = DRAW_OBJECT[scene.object](body, COLORS[scene.color], jitter)
    behind, front = Pen(), Pen()
    for part in scene.parts:
        slot = slot_of(scene.object, part)
        anchor = anchors.get(slot) or anchors.get("front") or anchors["top"]
        pen = Pen()
        DRAW_PART[part](pen, anchor)
        shapes = moment.part(part, pen.shapes, anchor)
        if part == "wings" and anchor.h:  # a plane's far wing lies behind its body
            half = len(shapes) // 2
            behind.shapes += shapes[:half]
            front.shapes += shapes[half:]
        else:
            (behind if part in BEHIND else front).shapes += shapes
    return moment.whole(scene.object, behind.shapes + body.shapes + front.shapes)


def _bounds(shapes: Sequence[Shape]) -> tuple[float, float, float, float]:
    xs = [x for shape in shapes for x, _ in shape.points]
    ys = [y for shape in shapes for _, y in shape.points]
    return min(xs), min(ys), max(xs), max(ys)


def render(scene: Scene, size: int = 64, moment: Still = STILL) -> np.ndarray:
    """Draw a scene, anti-aliased by 4x supersampling (2x above 256 pixels).

    Args:
        scene: what to draw.
        size: side of the picture in pixels, at least 16.
        moment: where everything is.

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
    variant = u.randrange(2 * HORIZONS)
    jitter = [2 * u.random() - 1 for _ in range(3)]

    image, shadow = backdrop(scene.background, n, variant)
    image = image.copy()
    draw = ImageDraw.Draw(image)
    jobs: list[tuple[Placement, list[Shape]]] = []
    if scene.object is not None:
        frame = moment.place(scene.object, Placement(cx, cy, flip * scale * aspect, scale))
        half = 0.6 if scene.object in ("flower", "tree") else 0.96
        x, dx, y, dy = frame.cx, half * frame.sy, cy + BASE * scale, 0.1 * scale
        draw.ellipse((x - dx, y - dy, x + dx, y + dy), fill=shadow)
        jobs.append((frame, _record(scene, jitter, moment)))
    else:
        cell = 1.0 / len(scene.parts)
        for i, part in enumerate(scene.parts):
            pen, anchor = Pen(), ALONE.get(part, Anchor(0, 0, 0.8))
            DRAW_PART[part](pen, anchor)
            x0, y0, x1, y1 = _bounds(pen.shapes)
            s = min(2 * scale * cell / (x1 - x0), 2 * scale / (y1 - y0), 1.6 * scale)
            x = cx + ((i + 0.5) * cell - 0.5) * n
            where = Placement(x - flip * s * (x0 + x1) / 2, cy - s * (y0 + y1) / 2, flip * s, s)
            jobs.append((where, moment.part(part, pen.shapes, anchor)))
    for frame, shapes in jobs:
        paint(draw, shapes, frame, scene.style, n)
    return np.asarray(image.reduce(factor))


def paint(draw: ImageDraw.ImageDraw, shapes: Sequence[Shape], frame: Placement, style: str, n: int) -> None:
    """Draw shapes on a canvas of n x n pixels, back to front."""
    if style == "cutout":  # a white rim around the silhouette
        for shape in shapes:
            if shape.outline:
                draw_shape(draw, shape, frame, (255, 255, 255), 0.03 * n)
    for shape in shapes:
        if style == "outlined" and shape.outline:
            draw_shape(draw, shape, frame, INK, 0.014 * n)
        draw_shape(draw, shape, frame, shape.color, 0.0)


def part_mask(scene: Scene, size: int = 64, moment: Still = STILL) -> np.ndarray:
    """Pixels that change when one of the object's typical parts, or one of the drawn parts, is toggled.

    Args:
        scene: what is drawn.
        size: side of the picture in pixels, at least 16.
        moment: where everything is.

    Returns:
        bool array [size, size].
    """
    picture = render(scene, size, moment)
    if scene.object is None:
        # Parts alone are laid out together, so none can be taken away in place.
        others = [background_only(scene, size)]
    else:
        toggled = [{part} ^ set(scene.parts) for part in {*TYPICAL[scene.object], *scene.parts}]
        # Where two parts overlap in one colour only taking away both shows: compare with no part, too.
        others = [render(replace(scene, parts=tuple(sorted(parts))), size, moment) for parts in (*toggled, set())]
    mask = np.zeros((size, size), dtype=bool)
    for other in others:
        mask |= (picture != other).any(axis=2)
    return mask


def background_only(scene: Scene, size: int) -> np.ndarray:
    u = random.Random(scene.seed)
    for _ in range(5):
        u.random()
    factor = 4 if size <= 256 else 2
    image, _ = backdrop(scene.background, size * factor, u.randrange(2 * HORIZONS))
    return np.asarray(image.reduce(factor))
