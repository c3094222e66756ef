"""Pictures for people: settings survive, files are whole, sheets hold what they were given."""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from vsf import NAG, NASA, VSF, Guidance, NoGuidance
from vsf.images import Card, guidance_from, overlay, read_settings, save_png, sheet, upscale


def picture(width: int = 8, height: int = 8, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "guidance",
    [
        VSF(2.5, 0.3, "upstream", 1.1, start=0.1, stop=0.9, blocks=(0, 3)),
        VSF((1.0, 2.0), (0.0, math.inf)),
        NAG(5.0, 3.0, 0.5),
        NASA(0.4),
        NoGuidance(),
    ],
    ids=repr,
)
def test_settings_come_back_as_they_were(guidance: Guidance, tmp_path: Path) -> None:
    settings = {
        "prompt": 'een fiets, 自転車 "quoted"\nline',
        "guidance": guidance.settings(),
        "seed": 2**60,
        "size": [8, 8],
    }
    save_png(picture(), tmp_path / "a.png", settings)
    back = read_settings(tmp_path / "a.png")
    assert guidance_from(back) == guidance
    assert {k: back[k] for k in ("prompt", "seed", "size")} == {k: settings[k] for k in ("prompt", "seed", "size")}
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(picture()))


def test_reading_what_has_no_settings(tmp_path: Path) -> None:
    plain, text, cut, other = (tmp_path / f"{n}.png" for n in ("plain", "text", "cut", "other"))
    save_png(picture(), plain)
    text.write_text("no picture")
    save_png(picture(64, 64), cut, {"seed": 1})
    cut.write_bytes(cut.read_bytes()[:-4000])
    info = PngImagePlugin.PngInfo()
    info.add_itxt("vsf", "[1, 2")
    picture().save(other, pnginfo=info)
    for path, message in ((plain, "holds no settings"), (text, "not a PNG"), (cut, "damaged"), (other, "damaged")):
        with pytest.raises(ValueError, match=message):
            read_settings(path)
    with pytest.raises(FileNotFoundError):
        read_settings(tmp_path / "missing.png")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(side: int, *texts: bytes, behind: bool = False) -> bytes:
    """A PNG of `side` x `side` zeros, with text chunks before or behind the pixels."""
    rows = zlib.compressobj(1)
    pixels = b"".join([*(rows.compress(bytes(1 + side)) for _ in range(side)), rows.flush()])
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    parts = [chunk(b"IDAT", pixels), *texts] if behind else [*texts, chunk(b"IDAT", pixels)]
    return start + b"".join(parts) + chunk(b"IEND", b"")


def itxt(text: bytes) -> bytes:
    return chunk(b"iTXt", b"vsf\0\0\0\0\0" + text)


def test_settings_are_read_without_decoding_a_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: Any) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    path = tmp_path / "a.png"
    path.write_bytes(png(13000))  # 0.7 MB as a file, 169 MB as pixels
    with pytest.raises(ValueError, match="holds no settings"):
        read_settings(path)
    text = json.dumps({"prompt": "ä"}).encode()
    packed = zlib.compress(text)
    for texts in (
        itxt(text), chunk(b"iTXt", b"vsf\0\1\0en\0key\0" + packed), chunk(b"tEXt", b"vsf\0" + text),
        chunk(b"zTXt", b"vsf\0\0" + packed),
    ):  # fmt: skip
        for behind in (False, True):
            path.write_bytes(png(8, chunk(b"tEXt", b"Author\0x"), texts, behind=behind))
            assert read_settings(path) == {"prompt": "ä"}
            with Image.open(path) as image:  # the test's own writer makes pictures that Pillow reads
                assert image.size == (8, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a":' * 900_000 + b"1" + b"}" * 900_000, "is 5400001 characters long"),
        (b'{"a":' * 90_000 + b"1" + b"}" * 90_000, "nested more than 32 levels"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested more than 32 levels"),
        (b'{"prompt": "a \\ud800"}', "half a character, U\\+D800, at place 3"),
        (b'{"\\udfff": 1}', "half a character"),
        (b'{"seed": NaN}', "no finite number"),
        (b'{"seed": 1e999}', "no finite number"),
        (b'{"seed": ' + b"9" * 400 + b"}", "more than 64 bits"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "no JSON"),
        (b'{"prompt": "\xff"}', "is damaged"),
        (b"[" * 10, "no JSON"),
    ],
    ids=lambda x: x[:20].decode("latin-1") if isinstance(x, bytes) else None,
)
def test_settings_that_would_break_who_reads_them_are_damaged(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(8, itxt(text) if len(text) < 2_000_000 else chunk(b"zTXt", b"vsf\0\0" + zlib.compress(text))))
    with pytest.raises(ValueError, match="damaged") as told:
        read_settings(path)
    if len(text) < 2_000_000:
        assert re.search(message, str(told.value)) and len(str(told.value)) < 400


def test_a_text_chunk_that_unpacks_to_gigabytes_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(8, chunk(b"zTXt", b"vsf\0\0" + zlib.compress(b" " * 2**28, 1))))
    with pytest.raises(ValueError, match="damaged"):
        read_settings(path)
    path.write_bytes(png(8, *[chunk(b"tEXt", b"a\0b")] * 70_000))
    with pytest.raises(ValueError, match="damaged"):
        read_settings(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "unknown method"),
        ({"method": "cgf"}, "unknown method"),
        ({"method": "nag", "offset": 0.1}, "offset"),
        ({"method": "vsf", "scale": "nan"}, "scale"),
        ({"method": "vsf", "start": 0.9, "stop": 0.1}, "start"),
        ({"method": "vsf", "scale": {}}, "scale"),
        ({"method": "vsf", "blocks": 5}, "blocks"),
        ({"method": "vsf", "blocks": [[1]]}, "blocks"),
    ],
)
def test_damaged_guidance_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guidance_from({"guidance": given})


def test_overlay_is_bright_where_the_negative_acted() -> None:
    share = np.zeros((4, 4), np.float32)
    share[0, 0] = 0.3
    shown = np.asarray(overlay(Image.new("RGB", (64, 64), "grey"), share).convert("L"), np.float32)
    assert shown.shape == (64, 64)
    assert shown[:12, :12].mean() > 2 * shown[32:, 32:].mean()
    # An empty map is flat, not a division by zero.
    flat = np.asarray(overlay(Image.new("RGB", (16, 16), "grey"), np.zeros((4, 4))))
    assert flat.std(axis=(0, 1)).max() == 0
    with pytest.raises(ValueError, match=r"\[h, w\]"):
        overlay(picture(), np.zeros((1, 4, 4)))


@pytest.mark.parametrize(
    ("size", "wanted"), [((64, 64), (256, 256)), ((100, 60), (500, 300)), ((1024, 512), (1024, 512))]
)
def test_upscale_by_a_whole_factor(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert upscale(picture(*size)).size == wanted


def test_sheet_holds_every_picture_where_it_can_be_seen() -> None:
    colors = ["red", "green", "blue", "yellow", "magenta", "cyan"]
    pictures = [Image.new("RGB", (64, 64), c) for c in colors]
    cards = [
        Card("a prompt", "negative", [("one", pictures[0]), ("two", pictures[1])]),
        Card("", None, [("three", pictures[2]), ("four", pictures[3])]),
        Card("far too long " * 40, "also too long " * 40, [("five " * 90, pictures[4]), ("", pictures[5])]),
    ]
    for columns in (1, 2, 9):
        page = sheet(cards, columns, "Title", "subtitle " * 60)
        found = dict((color, n) for n, color in page.getcolors(page.width * page.height) or [])
        for p in pictures:
            corners = 0.99 * 256 * 256
            assert found[p.getpixel((0, 0)) or 0] > corners
    with pytest.raises(ValueError, match="at least one card"):
        sheet([])
    with pytest.raises(ValueError, match="one picture"):
        sheet([Card("a", None, [])])
