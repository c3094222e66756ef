"""Pictures for people: labelled sheets, the suppression overlay, and settings kept inside the PNG."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from .files import plain, write_whole

if TYPE_CHECKING:
    from .draw import Drawn, Request
    from .guidance import Guidance

__all__ = [
    "Card", "compare_sheet", "guidance_from", "overlay", "parse_settings", "png_bytes", "read_settings", "save_png", "sheet",
    "upscale",
]  # fmt: skip

#: The text chunk of a PNG that holds the settings, as JSON.
CHUNK = "vsf"
#: Longest settings text that is read back, in characters.
_LONGEST = 1_000_000
#: A picture that has more is none of ours (the largest has about 10,000).
_MOST_CHUNKS = 65_536

_PAPER, _CARD, _INK, _GREY, _RED = "#eef0f4", "#ffffff", "#1b1f27", "#6b7280", "#c81e3a"
# From transparent dark to bright: the anchors of the heat colours, evenly spaced.
_HEAT = np.array(
    [(16, 10, 48), (86, 18, 112), (176, 42, 96), (238, 98, 56), (252, 176, 40), (252, 246, 164)], np.float64
)


# ---------------------------------------------------------------------------------------------------------------
# Settings in a PNG


def png_bytes(image: Image.Image, settings: Mapping[str, Any] | None = None) -> bytes:
    """`image` as a PNG file with its settings in the text chunk "vsf"."""
    from io import BytesIO

    info = PngImagePlugin.PngInfo()
    if settings is not None:
        info.add_itxt(CHUNK, json.dumps(plain(settings), allow_nan=False))
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(image: Image.Image, path: str | Path, settings: Mapping[str, Any] | None = None) -> None:
    """Write `image` with its settings in the text chunk "vsf", whole or not at all.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    write_whole(path, png_bytes(image, settings))


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that `save_png` put into a picture. Reads its text chunks only: no pixel is decoded.

    Raises:
        OSError: no such file.
        ValueError: not a PNG, or one without our settings.
    """
    with Path(path).open("rb") as file:
        text = _settings_text(file, str(path))
    if text is None:
        raise ValueError(f"{path} holds no settings of vsf; its pictures carry them in the PNG text chunk {CHUNK!r}")
    return parse_settings(text, f"the settings in {path}")


def parse_settings(text: str, what: str = "the settings", longest: int = _LONGEST) -> dict[str, Any]:
    """Settings from the text that a picture carries.

    Raises:
        ValueError: they are damaged, or longer than `longest` characters; the message begins with `what`.
    """
    from .outside import parse_json

    try:
        settings = parse_json(text, what, longest)
    except ValueError as error:
        raise ValueError(f"{what} are damaged: {str(error).removeprefix(what).strip()}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{what} are damaged")
    return settings


def _settings_text(file: BinaryIO, name: str) -> str | None:
    """The text of the chunk "vsf" of a PNG (tEXt, zTXt or iTXt, before or behind the pixels), None without one.

    PNG specification, third edition, sections 5 and 11.3.3. Written here because Pillow reaches the text behind the
    pixels only by decoding them: 0.6 GB for a 13000 x 13000 picture of zeros, which is 0.5 MB as a file.
    """
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{name} is not a PNG picture")
    found: str | None = None
    for number in range(_MOST_CHUNKS):
        head = file.read(8)
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or (number == 0) != (kind == b"IHDR"):
            break
        if found is None and kind in (b"tEXt", b"zTXt", b"iTXt") and size <= 2 * _LONGEST:
            data, check = file.read(size), file.read(4)
            if len(check) < 4 or zlib.crc32(kind + data) != int.from_bytes(check, "big"):
                break
            try:
                found = _chunk_text(kind, data)
            except (ValueError, zlib.error, IndexError):
                break
        else:
            file.seek(size + 4, os.SEEK_CUR)
        if kind == b"IEND":
            return found
    raise ValueError(f"the picture {name} is damaged")


def _chunk_text(kind: bytes, data: bytes) -> str | None:
    """The text of a text chunk if it is ours; longer than it may be, it is cut."""
    key, _, rest = data.partition(b"\0")
    if key != CHUNK.encode():
        return None
    packed = kind == b"zTXt"
    if packed:
        rest = rest[1:]  # the method: there is one
    elif kind == b"iTXt":
        packed, rest = bool(rest[0]), rest[2:]
        rest = rest.split(b"\0", 2)[2]  # the language, and the key in it
    if packed:
        rest = zlib.decompressobj().decompress(rest, 4 * _LONGEST)  # at most: a megabyte unpacks to a gigabyte
    return rest.decode("utf-8" if kind == b"iTXt" else "latin-1")


def guidance_from(settings: Mapping[str, Any]) -> Guidance:
    """The method with its knobs from settings read from a picture (`settings["guidance"]`).

    Raises:
        ValueError: an unknown method or knob, or a value out of range.
    """
    from .guidance import make_method

    given = settings.get("guidance")
    try:
        return make_method(given if isinstance(given, Mapping) else {})
    except TypeError as error:
        raise ValueError(str(error)) from error


# ---------------------------------------------------------------------------------------------------------------
# Pictures


def upscale(image: Image.Image, at_least: int = 256) -> Image.Image:
    """`image` enlarged by a whole factor until its shorter side has `at_least` pixels; never made smaller."""
    factor = max(1, math.ceil(at_least / min(image.size)))
    if factor == 1:
        return image.convert("RGB")
    return image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)


def overlay(image: Image.Image, share: NDArray[Any] | Any, top: float | None = None) -> Image.Image:
    """The suppression map over a greyed picture: the brighter, the more attention went to the negative.

    Args:
        image: the picture.
        share: `[h, w]`, attention shares in [0, 1]; a numpy array or a CPU tensor.
        top: the share that gets the brightest colour; the map's maximum by default.

    Raises:
        ValueError: `share` is not two-dimensional.
    """
    values = np.asarray(share, np.float64)
    if values.ndim != 2:
        raise ValueError(f"a suppression map has shape [h, w], got {list(values.shape)}")
    peak = float(values.max()) if top is None else top
    field = Image.fromarray((values / (peak or 1.0)).clip(0, 1).astype(np.float32))
    level = np.asarray(field.resize(image.size, Image.Resampling.BICUBIC), np.float64).clip(0, 1)
    at = level * (len(_HEAT) - 1)
    low = np.minimum(at.astype(int), len(_HEAT) - 2)
    heat = _HEAT[low] + (at - low)[..., None] * (_HEAT[low + 1] - _HEAT[low])
    base = np.asarray(image.convert("L").convert("RGB"), np.float64) * 0.55
    weight = (0.25 + 0.6 * level)[..., None]
    return Image.fromarray((base * (1 - weight) + heat * weight).round().astype(np.uint8))


@dataclass(frozen=True)
class Card:
    """One prompt of a sheet: its text, the negative (None where there is none), and pictures with their labels."""

    prompt: str
    negative: str | None
    pictures: Sequence[tuple[str, Image.Image]]


@lru_cache(maxsize=64)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _fit(draw: ImageDraw.ImageDraw, text: str, font: Any, width: float) -> str:
    """`text` cut to `width` pixels, with an ellipsis where something is missing."""
    if draw.textlength(text, font=font) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        fits = draw.textlength(text[:middle].rstrip() + "…", font=font) <= width
        low, high = (middle, high) if fits else (low, middle - 1)
    return text[:low].rstrip() + "…"


def _rounded(size: tuple[int, int], radius: int) -> Image.Image:
    """An anti-aliased mask of a rectangle with round corners."""
    mask = Image.new("L", (size[0] * 4, size[1] * 4))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] * 4 - 1, size[1] * 4 - 1), radius * 4, fill=255)
    return mask.resize(size, Image.Resampling.LANCZOS)


def sheet(cards: Sequence[Card], columns: int = 1, title: str = "", subtitle: str = "") -> Image.Image:
    """A labelled sheet: cards in `columns`, each with its prompt, its negative and its pictures side by side.

    Raises:
        ValueError: no cards, a card without pictures, or fewer than one column.
    """
    if not cards or not all(card.pictures for card in cards) or columns < 1:
        raise ValueError("a sheet needs at least one card, one picture in each, and one column")
    enlarged = [[(label, upscale(picture)) for label, picture in card.pictures] for card in cards]
    cell_w = max(p.width for row in enlarged for _, p in row)
    cell_h = max(p.height for row in enlarged for _, p in row)
    unit = max(8, round(min(cell_w, cell_h) / 32))  # every length below is in these
    columns = min(columns, len(cards))
    count = max(len(row) for row in enlarged)
    pad, gap = 2 * unit, unit
    head, foot = round(4.5 * unit), round(2.75 * unit)
    card_w = 2 * pad + count * cell_w + (count - 1) * gap
    card_h = head + cell_h + foot + gap
    rows = math.ceil(len(cards) / columns)
    top = (7 * unit if title else 0) + (3 * unit if subtitle else 0) + (0 if title or subtitle else pad)
    width = columns * card_w + (columns + 1) * pad
    page = Image.new("RGB", (width, top + rows * (card_h + pad)), _PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((pad, 5 * unit), _fit(draw, title, _font(4 * unit), width - 2 * pad), _INK, _font(4 * unit), "ls")
    if subtitle:
        font = _font(2 * unit)
        y = 5 * unit + (3 * unit if title else -2 * unit)
        draw.text((pad, y), _fit(draw, subtitle, font, width - 2 * pad), _GREY, font, "ls")
    for number, (card, row) in enumerate(zip(cards, enlarged, strict=True)):
        x = pad + number % columns * (card_w + pad)
        y = top + number // columns * (card_h + pad)
        page.paste(_CARD, (x, y), _rounded((card_w, card_h), 2 * unit))
        _heading(draw, card, x + pad, y + round(3.1 * unit), card_w - 2 * pad, unit)
        for i, (label, picture) in enumerate(row):
            at = (x + pad + i * (cell_w + gap), y + head)
            page.paste(picture, at, _rounded(picture.size, unit))
            font = _font(round(1.7 * unit))
            text = _fit(draw, label, font, cell_w)
            draw.text((at[0] + picture.width / 2, at[1] + cell_h + 2 * unit), text, _GREY, font, "ms")
    return page


def compare_sheet(request: Request, drawn: Drawn) -> Image.Image:
    """The labelled sheet of one request: per seed without, with, and where it acted, as far as there."""
    shares = drawn.suppression.map().numpy() if drawn.suppression else None
    cards: list[Card] = []
    for i, picture in enumerate(drawn.guided):
        seed = f" (seed {request.seed + i})" if request.n > 1 else ""
        pictures = [(f"without{seed}", drawn.plain[i])] if drawn.plain else []
        pictures.append(("with the negative", picture))
        if shares is not None:
            pictures.append((f"where it acted (up to {shares[i].max():.0%})", overlay(picture, shares[i])))
        cards.append(Card(request.prompt, request.negative, pictures))
    return sheet(cards, columns=1 if request.n == 1 else 2)


def _heading(draw: ImageDraw.ImageDraw, card: Card, x: int, y: int, width: int, unit: int) -> None:
    font = _font(round(2.3 * unit))
    negative = _fit(draw, card.negative or "", font, 0.45 * width)
    room = width - (draw.textlength(negative, font=font) + 6 * unit if negative else 0)
    prompt = _fit(draw, card.prompt or "(empty prompt)", font, room)
    draw.text((x, y), prompt, _INK, font, "ls")
    if negative:
        left = x + draw.textlength(prompt, font=font) + 2 * unit
        right = left + 1.8 * unit + draw.textlength(negative, font=font)
        draw.rounded_rectangle(
            (left - 0.8 * unit, y - 2.1 * unit, right + 0.8 * unit, y + 0.9 * unit), 1.2 * unit, fill="#fde8ec"
        )
        # The font has no minus sign.
        draw.rectangle((left, y - 0.85 * unit, left + 1.1 * unit, y - 0.6 * unit), fill=_RED)
        draw.text((left + 1.8 * unit, y), negative, _RED, font, "ls")
