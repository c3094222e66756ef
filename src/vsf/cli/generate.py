"""`vsf generate`."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..guidance import METHODS
from ..prompt import join_negatives, parse_negative, split_prompt
from .common import (
    Problem,
    block_text,
    choose,
    given_knobs,
    make_guidance,
    progress_bar,
    quiet_libraries,
    say,
    warn,
    with_knobs,
    writable,
)

if TYPE_CHECKING:
    from ..draw import Drawn, Request
    from ..presets import Preset

DTYPES = ["float32", "bfloat16", "float16"]
_MODEL = "Model"
_VIDEOS = (".gif", ".mp4")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise Problem(f"--size is {text!r}; allowed: a number of pixels such as 64, or WIDTHxHEIGHT such as 1024x768")
    return int(sides[0]), int(sides[-1])


def _picture(file: Path, mode: str) -> Any:
    from PIL import Image

    try:
        with Image.open(file) as opened:
            picture = opened.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = getattr(error, "strerror", None) or "it is no picture"
        raise Problem(f"cannot read the picture {file}: {why.lower()}") from error
    picture.info = {"from": str(file)}  # for the settings
    return picture


def _dtype(text: str | None) -> Any:
    if text is None:
        return None
    import torch

    return getattr(torch, choose("dtype", text, DTYPES))


@contextmanager
def as_problems() -> Iterator[None]:
    """What the library says about bad input, as one sentence, and about settings without effect as a warning."""
    import warnings

    import torch

    from ..arch import UnsupportedModel
    from ..draw import ModelError
    from ..guide import NothingGuided

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        warn(str(message)) if issubclass(category, NothingGuided) else shown(message, category, *where, **more)

    shown = warnings.showwarning
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", NothingGuided)
            warnings.showwarning = show
            yield
    except (ValueError, TypeError, UnsupportedModel, ModelError) as error:
        raise Problem(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise Problem("out of memory; try a smaller --size, a smaller --n, or --dtype bfloat16") from error


def load(
    model: str,
    device: str | None,
    dtype: Any,
    download: bool = False,
    preset: Preset | None = None,
    model_path: Path | None = None,
    loras: bool = True,
) -> Any:
    """A pipeline for a command, with the libraries' own chatter off; of a preset with its scheduler and LoRA."""
    if not download:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub library is imported
    with progress_bar(f"loading {model}"), as_problems():
        from ..draw import load_model

        quiet_libraries()
        if preset is None:
            return load_model(model, device, dtype, download)
        pipe = load_model(preset.checkpoint if model_path is None else str(model_path), device, dtype, download)
        if type(pipe).__name__ != preset.pipeline:
            warn(f"the preset {preset.name} is for {preset.pipeline}; this is {type(pipe).__name__}")
        preset.prepare(pipe, loras, download)
        return pipe


def warn_of_unknown_words(*texts: str) -> None:
    """Say which words the demo model has never seen, and which it knows."""
    from ..demo.model import known_words, unknown_words

    unknown = unknown_words(list(texts))
    if unknown:
        words = ", ".join(repr(w) for w in unknown)
        warn(f"the demo model does not know {words}; to it they are all one unknown word")
        warn(f"it knows these words: {' '.join(known_words())}")


@with_knobs
def generate(
    prompt: Annotated[str, typer.Argument(help="What should be in the picture.", show_default=False)],
    *,
    negative: Annotated[
        str | None,
        typer.Option(
            "--negative",
            "-N",
            metavar="TEXT",
            help='What should not be in it; with weights: "wheels:2, chain".',
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help=f"One of {', '.join(METHODS)} (default vsf).", show_default=False)
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also draw without the negative, from the same noise, side by side.")
    ] = False,
    map: Annotated[bool, typer.Option("--map", help="Show where the negative acted beside the picture (vsf).")] = False,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Denoising steps (default: the preset's, else 8).", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise; picture i has seed + i.")] = 0,
    n: Annotated[int, typer.Option("--n", min=1, max=256, help="Number of pictures.")] = 1,
    size: Annotated[
        str | None,
        typer.Option(metavar="PIXELS|WxH", help="Size of a picture (default: the model's own).", show_default=False),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Frames of a video (default: the model's own).", show_default=False),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(help="Picture to edit, to fill or to set in motion, where the model does that.", show_default=False),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Where to draw anew (white) in that picture, for models that fill.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="PNG, for video models GIF or MP4 (default vsf.png, vsf.gif); with --n several, named by seed.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="demo, a preset (see vsf models), a folder, or an id (owner/name).",
            metavar="MODEL",
            rich_help_panel=_MODEL,
        ),
    ] = "demo",
    model_path: Annotated[
        Path | None,
        typer.Option(help="The folder to load a preset's model from.", show_default=False, rich_help_panel=_MODEL),
    ] = None,
    no_lora: Annotated[
        bool,
        typer.Option("--no-lora", help="Leave a preset's LoRA out (it is in the weights).", rich_help_panel=_MODEL),
    ] = False,
    download: Annotated[bool, typer.Option("--download", help="Fetch an id from its hub.", rich_help_panel=_MODEL)] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ... (default: cuda if there).", show_default=False, rich_help_panel=_MODEL)
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(DTYPES)} (default: bfloat16 on cuda, else float32).",
            show_default=False,
            rich_help_panel=_MODEL,
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            help="The pipeline's own (default: the preset's, else 0, which few-step models take).",
            show_default=False,
            rich_help_panel=_MODEL,
        ),
    ] = None,
    **given: str | None,
) -> None:
    """Draw a picture, guided away from a negative prompt.

    [bold]Examples[/bold]

    vsf generate "a red bike" --negative wheels --compare --map

    vsf generate "a yellow face" -N glasses --scale 2 --normalize 1 -o face.png

    vsf generate "a blue house" -N "windows:2, chimney:0.5" --n 4

    vsf generate "a blue house" -N windows --method nag --tau 3

    vsf generate "an old man playing poker" -N cards --model sd3.5-large-turbo --download
    """
    from ..draw import DEMO
    from ..presets import PRESETS

    preset = PRESETS.get(model)
    if preset is None and (model_path is not None or no_lora):
        name = "--no-lora" if model_path is None else "--model-path"
        raise Problem(f"{name} goes with a preset; --model is {model!r}; see vsf models")
    if preset is not None and preset.needs_image and image is None:
        raise Problem(f"{preset.name} starts from a picture; give it with --image FILE")
    if model_path is not None and not model_path.is_dir():
        raise Problem(f"--model-path is {model_path}, which is no folder")
    steps = steps or (8 if preset is None else preset.steps)
    extra: dict[str, Any] = {} if preset is None else dict(preset.call)
    if preset is not None and steps != preset.steps:
        extra = {k: v for k, v in extra.items() if k not in ("timesteps", "sigmas")}
    if frames is not None:
        extra["num_frames"] = frames
    for argument, file, mode in (("image", image, "RGB"), ("mask_image", mask, "L")):
        if file is not None:
            extra[argument] = _picture(file, mode)
    if guidance_scale is None:
        guidance_scale = 0.0 if preset is None else preset.guidance_scale

    try:
        prompt, inline = split_prompt(prompt)
        negative = join_negatives(negative, inline)
        parse_negative(negative or "")
    except ValueError as error:
        raise Problem(str(error)) from error
    label = choose("method", method, list(METHODS)) if method else "vsf"
    values = given_knobs(label, given)
    make_guidance(label, values, model == DEMO, preset)  # complain before anything is loaded
    if not (negative and negative.strip()):
        wanted = "--compare" if compare else "--map" if map else "--method" if method not in (None, "none") else None
        wanted = wanted or next((f"--{name}" for name in values), None)
        if wanted:
            raise Problem(f"{wanted} needs --negative TEXT: what should not be in the picture")
    elif map and label != "vsf":
        raise Problem(f"--map shows where VSF acts; it is not defined for {label}")
    if out is not None:
        writable(out, *(_VIDEOS if preset is not None and preset.video else (".png", *_VIDEOS)))
    pixels = _size(size)
    with as_problems():
        from ..draw import Request, draw, is_demo, settings_of

        request = Request(
            prompt, negative, steps=steps, seed=seed, n=n, size=pixels, guidance_scale=guidance_scale, extra=extra
        )
    start = time.perf_counter()
    pipe = load(model, device, _dtype(dtype), download, preset, model_path, not no_lora)
    video = "num_frames" in inspect.signature(type(pipe).__call__).parameters
    if frames is not None and not video:
        raise Problem(f"--frames is for video models; {type(pipe).__name__} makes pictures")
    for option, argument in (("--image", "image"), ("--mask", "mask_image")):
        parameter = inspect.signature(type(pipe).__call__).parameters.get(argument)
        if argument in extra and parameter is None:
            raise Problem(f"{type(pipe).__name__} takes no {option}")
        if argument not in extra and parameter is not None and parameter.default is inspect.Parameter.empty:
            raise Problem(f"{type(pipe).__name__} needs {option} FILE")
    if video and map:
        raise Problem(f"--map is for pictures; {type(pipe).__name__} makes videos")
    out = out or writable(Path("vsf.gif" if video else "vsf.png"), ".gif" if video else ".png")
    if video != (out.suffix.lower() in _VIDEOS):
        makes = f"videos; --out must end with {' or '.join(_VIDEOS)}" if video else "pictures; --out must end with .png"
        raise Problem(f"{type(pipe).__name__} makes {makes}, not {out.name}")
    if video:
        _check_writer(out)
    loaded = time.perf_counter()
    if is_demo(pipe):
        warn_of_unknown_words(prompt, *(item.text for item in parse_negative(negative or "")))
    request = replace(request, guidance=make_guidance(label, values, is_demo(pipe), preset))
    with as_problems(), progress_bar("drawing", steps) as progress:
        drawn = draw(pipe, request, compare, map, progress)
    seconds = time.perf_counter() - loaded
    first = drawn.guided[0]
    settings = settings_of(request, model, pipe, (first[0] if video else first).size)
    if video:
        files = _save_videos(request, drawn, settings, out, compare, 16 if preset is None else preset.fps)
    else:
        files = _save(request, drawn, settings, out, compare, map)
    say(f"{', '.join(map_str(files))}  ({_describe(request)}; {seconds:.2f} s after {loaded - start:.1f} s of loading)")


def map_str(files: list[Path]) -> list[str]:
    """Paths as text; the middle ones of many are left out."""
    names = [str(f) for f in files]
    return names if len(names) < 4 else [names[0], "...", names[-1]]


def _describe(request: Request) -> str:
    from ..demo.evaluate import describe

    settings = request.guidance.settings()
    if settings["blocks"] is not None:
        settings["blocks"] = block_text(settings["blocks"])
    return describe(settings) if request.guided else "not guided"


def _save(
    request: Request, drawn: Drawn, settings: dict[str, Any], out: Path, compare: bool, map: bool
) -> list[Path]:
    from ..images import save_png

    try:
        if compare or map:
            save_png(compare_sheet(request, drawn), out, settings)
            return [out]
        if request.n == 1:
            save_png(drawn.guided[0], out, settings)
            return [out]
        files: list[Path] = []
        for i, picture in enumerate(drawn.guided):
            files.append(out.with_stem(f"{out.stem}-{request.seed + i}"))
            save_png(picture, files[-1], settings | {"seed": request.seed + i, "n": 1})
        return files
    except OSError as error:
        raise Problem(f"cannot write {out}: {error.strerror or error}") from error


def _check_writer(out: Path) -> None:
    from ..video import can_write

    if not can_write(out.suffix.lower()):
        raise Problem('writing .mp4 needs imageio-ffmpeg: pip install "vsf[video]", or use .gif')


def _save_videos(
    request: Request, drawn: Drawn, settings: dict[str, Any], out: Path, compare: bool, fps: int
) -> list[Path]:
    from ..video import save_video, side_by_side

    files: list[Path] = []
    try:
        for i, frames in enumerate(drawn.guided):
            files.append(out if request.n == 1 else out.with_stem(f"{out.stem}-{request.seed + i}"))
            shown = side_by_side(drawn.plain[i], frames) if compare else frames
            save_video(shown, files[-1], fps, settings | {"seed": request.seed + i, "n": 1})
    except OSError as error:
        raise Problem(f"cannot write {out}: {error.strerror or error}") from error
    return files


def compare_sheet(request: Request, drawn: Drawn) -> Any:
    """The labelled sheet of one request: per seed without, with, and where it acted, as far as there."""
    from ..images import Card, overlay, sheet

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
