"""Draw the pack's icon and banner for the registry: `PYTHONPATH=src:tests python tests/comfyui/comfy_icon.py`.

Two arrows: a value, and the same value with its sign flipped, in the colours of the suppression map. The banner shows a row
of result.jpg, which comfy_pictures.py draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

IMAGES = Path(__file__).resolve().parents[2] / "comfyui" / "images"
NIGHT, PALE, EMBER, GREY = (21, 15, 48), (252, 252, 191), (222, 73, 104), (170, 165, 190)
#: Everything is drawn this many times larger, and then made smaller.
FINE = 4
SIDE = 256


def _arrow(pen: Any, x: float, start: float, end: float, colour: tuple[int, ...], unit: float) -> None:
    """From height `start` to `end` (both of 0..1 from the top)."""
    up = -1 if end < start else 1
    x, start, end, shaft, head, length = (unit * v for v in (x, start, end, 0.045, 0.13, 0.17))
    neck = end - up * length
    pen.rectangle((x - shaft, min(start, neck), x + shaft, max(start, neck)), colour)
    pen.polygon([(x - head, neck), (x + head, neck), (x, end)], colour)


def icon(side: int = SIDE) -> Image.Image:
    unit = side * FINE
    picture = Image.new("RGBA", (unit, unit), (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    pen.rounded_rectangle((0, 0, unit - 1, unit - 1), unit * 0.2, NIGHT)
    pen.line([(unit * 0.12, unit * 0.5), (unit * 0.88, unit * 0.5)], GREY, round(unit * 0.015))
    _arrow(pen, 0.33, 0.5, 0.14, PALE, unit)
    _arrow(pen, 0.67, 0.5, 0.86, EMBER, unit)
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def banner(width: int = 1260, height: int = 540) -> Image.Image:
    picture = Image.new("RGB", (width, height), NIGHT)
    pen = ImageDraw.Draw(picture)
    mark = icon(150)
    picture.paste(mark, (50, 105), mark)
    pen.text((215, 117), "VSF", PALE, ImageFont.load_default(88))
    pen.text((62, 273), "Negative prompts inside attention", PALE, ImageFont.load_default(31))
    pen.text((62, 317), "for few-step image and video models,", GREY, ImageFont.load_default(27))
    pen.text((62, 353), "at CFG 1, in one node", GREY, ImageFont.load_default(27))
    shown = Image.open(IMAGES / "result.jpg")
    for i, title in enumerate(("a blue car", "negative: wheels", "where it acts")):
        left, top = 8 + i * 216, 34 + 242
        part = shown.crop((left, top, left + 208, top + 208)).resize((196, 196), Image.Resampling.LANCZOS)
        x, y = (612 + i * 210, 150)
        picture.paste(part, (x, y))
        pen.text((x, y + 206), title, GREY, ImageFont.load_default(22))
    return picture


if __name__ == "__main__":
    icon().save(IMAGES / "icon.png", optimize=True)
    banner().save(IMAGES / "banner.png", optimize=True)
