"""Writing short videos: GIF and WebP with Pillow, MP4 where `imageio-ffmpeg` is installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import plain, whole, write_whole
from .libraries import install

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["SUFFIXES", "can_write", "save_video", "side_by_side"]

SUFFIXES = (".gif", ".webp", ".mp4")


def can_write(suffix: str) -> bool:
    """Whether videos of this kind can be written here."""
    return suffix in SUFFIXES and (suffix != ".mp4" or importlib.util.find_spec("imageio_ffmpeg") is not None)


def save_video(
    frames: Sequence[Image.Image],
    path: str | Path,
    fps: int,
    settings: Mapping[str, Any] | None = None,
    *,
    one_palette: bool = False,
) -> None:
    """Write frames (all of one size) as `.gif` (with its settings in the comment), `.webp` or `.mp4`, whole or not at all.

    WebP has all colours, where GIF has 256, and is smaller; not every programme shows it. GIF counts time in hundredths of
    a second, so its frame rate is the nearest it knows; `one_palette` gives all its frames the same 255 colours, which is
    many times faster.

    Raises:
        ValueError: another suffix, no frames, or no `imageio-ffmpeg` for `.mp4`.
        OSError: the folder is missing or cannot be written to.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} is no video file; allowed: {' or '.join(SUFFIXES)}")
    if not can_write(suffix):
        raise ValueError(f"writing .mp4 needs imageio-ffmpeg: {install('video')}, or use .gif or .webp")
    if not frames:
        raise ValueError("a video needs at least one frame")
    comment = b"" if settings is None else json.dumps(plain(settings), allow_nan=False, default=str).encode()
    pictures = [frame.convert("RGB") for frame in frames]
    if suffix != ".mp4":
        buffer, duration = BytesIO(), max(2, round(100 / fps)) * 10
        how: dict[str, Any] = {"comment": comment} if suffix == ".gif" else {"quality": 85, "method": 0}
        if one_palette and suffix == ".gif":
            pictures = _quantized(pictures)
            how |= {"optimize": False, "disposal": 1}
        pictures[0].save(
            buffer, suffix[1:].upper(), save_all=True, append_images=pictures[1:], duration=duration, loop=0, **how
        )
        write_whole(path, buffer.getvalue())
        return
    import imageio_ffmpeg  # pyright: ignore[reportMissingImports]

    with whole(path) as part:
        size, options = pictures[0].size, ["-f", "mp4"]  # the name of a part says nothing of its format
        writer = imageio_ffmpeg.write_frames(part, size, fps=fps, macro_block_size=2, output_params=options)
        writer.send(None)
        for picture in pictures:
            writer.send(picture.tobytes())
        writer.close()


def _quantized(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures in the colours of the first, the middle and the last."""
    from PIL import Image

    some = [pictures[i].resize((128, 128)) for i in sorted({0, len(pictures) // 2, len(pictures) - 1})]
    strip = Image.new("RGB", (128 * len(some), 128))
    for i, picture in enumerate(some):
        strip.paste(picture, (128 * i, 0))
    palette = strip.quantize(255, Image.Quantize.MEDIANCUT)
    return [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]


def side_by_side(left: Sequence[Image.Image], right: Sequence[Image.Image]) -> list[Image.Image]:
    """Two videos of one size as one."""
    from PIL import Image

    joined: list[Image.Image] = []
    for a, b in zip(left, right, strict=True):
        both = Image.new("RGB", (a.width + b.width, a.height))
        both.paste(a, (0, 0))
        both.paste(b, (a.width, 0))
        joined.append(both)
    return joined
