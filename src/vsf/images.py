"""Pictures for people: labelled sheets, the suppression overlay, and settings kept inside the PNG."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

if TYPE_CHECKING:
    from .guidance import Guidance

__all__ = [
    "Card", "guidance_from", "overlay", "png_bytes", "read_settings", "save_png", "sheet", "upscale", "write_whole",
]  # fmt: skip

#: The text chunk of a PNG that holds the settings, as JSON.
CHUNK = "vsf"
#: Longest settings text that is read back, in characters.
_LONGEST = 1_000_000

_PAPER, _CARD, _INK, _GREY, _RED = "#eef0f4", "#ffffff", "#1b1f27", "#6b7280", "#c81e3a"
# From transparent dark to bright: the anchors of the heat colours, evenly spaced.
_HEAT = np.array(
    [(16, 10, 48), (86, 18, 112), (176, 42, 96), (238, 98, 56), (252, 176, 40), (252, 246, 164)], np.float64
)


# ---------------------------------------------------------------------------------------------------------------
# Settings in a PNG


def _plain(value: Any) -> Any:
    """JSON has no infinity: non-finite numbers become words ("inf")."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all (a temporary file beside it, then a rename).

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes private files
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def png_bytes(image: Image.Image, settings: Mapping[str, Any] | None = None) -> bytes:
    """`image` as a PNG file with its settings in the text chunk "vsf"."""
    from io import BytesIO

    info = PngImagePlugin.PngInfo()
    if settings is not None:
        info.add_itxt(CHUNK, json.dumps(_plain(settings), allow_nan=False))
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
    """The settings that `save_png` put into a picture.

    Raises:
        OSError: no such file.
        ValueError: not a PNG, or one without our settings.
    """
    try:
        image = Image.open(path, formats=("PNG",))
    except (Image.UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(f"{path} is not a PNG picture") from error
    with image:
        try:
            image.load()  # text chunks may stand behind the pixels
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"the picture {path} is damaged") from error
        text = getattr(image, "text", {}).get(CHUNK)
    if text is None or len(text) > _LONGEST:
        raise ValueError(f"{path} holds no settings of vsf; its pictures carry them in the PNG text chunk {CHUNK!r}")
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the settings in {path} are damaged") from error
    if not isinstance(settings, dict):
        raise ValueError(f"the settings in {path} are damaged")
    return settings


def guidance_from(settings: Mapping[str, Any]) -> Guidance:
    """The method with its knobs from settings read from a picture (`settings["guidance"]`).

    Raises:
        ValueError: an unknown method or knob, or a value out of range.
    """
    from .guidance import METHODS, knobs

    given = settings.get("guidance")
    given = dict(given) if isinstance(given, Mapping) else {}
    method = METHODS.get(str(given.pop("method", None)))
    if method is None:
        raise ValueError(f"the settings name no known method; known: {', '.join(METHODS)}")
    blocks = given.pop("blocks", None)
    unknown = sorted(set(given) - set(knobs(method)))
    if unknown:
        raise ValueError(f"the settings hold {', '.join(unknown)}, which {method.label} does not have")
    values = {k: _number(v) for k, v in given.items()}
    return method(**values, blocks=None if blocks is None else tuple(blocks))


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_number(v) for v in value)
    return float(value) if value in ("inf", "-inf", "nan") else value


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
