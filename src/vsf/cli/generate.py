"""`vsf generate`."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..demo.models import MODELS
from ..grammar import parse_size
from ..guidance import EVERY, METHODS, VARIANTS, blocks_text
from ..libraries import install
from ..loading import DEMO, DTYPES
from ..prompt import describe_negative, join_negatives, parse_negative, split_prompt
from ..video import SUFFIXES as _VIDEOS
from .common import (
    Problem,
    choose,
    make_guidance,
    opt,
    progress_bar,
    read_flag,
    say,
    spelled,
    warn,
    with_knobs,
    writable,
)

if TYPE_CHECKING:
    from ..demo.worlds import World
    from ..draw import Drawn, Request

_MODEL = "Model"


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


@contextmanager
def as_problems() -> Iterator[None]:
    """What the library says about bad input, as one sentence, and about settings without effect as a warning."""
    import warnings

    import torch

    from ..guide import NothingGuided
    from ..loading import ModelError, OtherPipeline

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        warn(str(message)) if issubclass(category, (NothingGuided, OtherPipeline)) else shown(
            message, category, *where, **more
        )

    shown = warnings.showwarning
    try:
        with warnings.catch_warnings():
            for ours in (NothingGuided, OtherPipeline):
                warnings.simplefilter("always", ours)
            warnings.showwarning = show
            yield
    except (ValueError, TypeError, FloatingPointError, ModelError) as error:
        raise Problem(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise Problem("out of memory; try a smaller --size, a smaller --n, or --dtype bfloat16") from error


def load(model: str, *args: Any, **kwargs: Any) -> Any:
    """`vsf.loading.load_model` for a command, with a sign of life."""
    with progress_bar(f"loading {model}"), as_problems():
        from ..loading import load_model

        return load_model(model, *args, **kwargs)


def warn_of_unknown_words(world: World, *texts: str) -> None:
    """Say which words no model of a demo world has ever seen, and which it knows."""
    unknown = world.unknown_words(texts)
    if unknown:
        words = ", ".join(repr(w) for w in unknown)
        warn(f"the demo model does not know {words}; to it they are all one unknown word")
        warn(f"it knows these words: {' '.join(world.vocabulary)}")


@with_knobs
def generate(
    prompt: Annotated[str, typer.Argument(help="What should be in the picture.", show_default=False)],
    *,
    negative: Annotated[
        str | None,
        opt(
            'What should not be in it; with weights and times: "wheels:2, \\[chain:0.2,0.6]".',
            "--negative",
            "-N",
            metavar="TEXT",
        ),
    ] = None,
    method: Annotated[
        str | None,
        opt(f"One of {', '.join(METHODS)} (default vsf); of VSF also {', '.join(VARIANTS)}.", "--method", "-m"),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also draw without the negative, from the same noise, side by side.")
    ] = False,
    map: Annotated[
        bool, typer.Option("--map", help="Show where the negative acted beside the picture (vsf).")
    ] = False,
    steps: Annotated[int | None, opt("Denoising steps (default: the model's, else 8).", min=1, max=1000)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise; picture i has seed + i.", min=0)] = 0,
    n: Annotated[int, typer.Option("--n", help="Number of pictures.", min=1, max=256)] = 1,
    size: Annotated[str | None, opt("Size of a picture (default: the model's own).", metavar="PIXELS|WxH")] = None,
    frames: Annotated[int | None, opt("Frames of a video (default: the model's own).", min=1, max=10_000)] = None,
    image: Annotated[
        Path | None, opt("Picture to edit, to fill or to set in motion, where the model does that.")
    ] = None,
    mask: Annotated[Path | None, opt("Where to draw anew (white) in that picture, for models that fill.")] = None,
    out: Annotated[
        Path | None,
        opt(
            "PNG, for video models GIF, WebP or MP4 (default vsf.png, vsf.gif); with --n several, named by seed.",
            "--out",
            "-o",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(MODELS)}, a preset (see vsf models), a folder, or an id (owner/name).",
            metavar="MODEL",
            rich_help_panel=_MODEL,
        ),
    ] = DEMO,
    model_path: Annotated[Path | None, opt("The folder to load a preset's model from.", panel=_MODEL)] = None,
    no_lora: Annotated[
        bool,
        typer.Option("--no-lora", help="Leave a preset's LoRA out (it is in the weights).", rich_help_panel=_MODEL),
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch an id from its hub.", rich_help_panel=_MODEL)
    ] = False,
    device: Annotated[str | None, opt("cpu, cuda, ... (default: cuda if there).", panel=_MODEL)] = None,
    dtype: Annotated[
        str | None, opt(f"{', '.join(DTYPES)} (default: bfloat16 on cuda, else float32).", panel=_MODEL)
    ] = None,
    guidance_scale: Annotated[
        float | None,
        opt("The pipeline's own (default: the model's, else 0, which few-step models take).", panel=_MODEL),
    ] = None,
    **given: str | None,
) -> None:
    """Draw a picture, guided away from a negative prompt.

    [bold]Examples[/bold]

    vsf generate "a red bike" --negative wheels --compare --map

    vsf generate "a yellow face" -N glasses --scale 2 --normalize 1 -o face.png

    vsf generate "a blue house" -N "windows:2, \\[chimney:0.2,0.6]" --n 4

    vsf generate "a blue house" -N windows --method nag --tau 3

    vsf generate "an old man playing poker" -N cards --model sd3.5-large-turbo --download
    """
    from ..draw import Request, draw, schedule_of, settings_of
    from ..loading import named, recommended
    from ..presets import PRESETS

    known, preset = named(model), PRESETS.get(model)
    if preset is None and (model_path is not None or no_lora):
        name = "--no-lora" if model_path is None else "--model-path"
        raise Problem(f"{name} goes with a preset; --model is {model!r}; see vsf models")
    if preset is not None and preset.needs_image and image is None:
        raise Problem(f"{preset.name} starts from a picture; give it with --image FILE")
    if model_path is not None and not model_path.is_dir():
        raise Problem(f"--model-path is {model_path}, which is no folder")
    own_steps, own_scale = (8, 0.0) if known is None else (known.steps, known.guidance_scale)
    extra = {} if known is None else schedule_of(known.call, own_steps, steps or own_steps)
    if frames is not None:
        extra["num_frames"] = frames
    for argument, file, mode in (("image", image, "RGB"), ("mask_image", mask, "L")):
        if file is not None:
            extra[argument] = _picture(file, mode)

    try:
        prompt, inline = split_prompt(prompt)
        negative = join_negatives(negative, inline)
        understood = describe_negative(negative)
    except ValueError as error:
        raise Problem(str(error)) from error
    label = choose("method", method, list(EVERY)) if method else "vsf"
    make_guidance(label, given, recommended(model))  # complain before anything is loaded
    if not (negative and negative.strip()):
        wanted = "--compare" if compare else "--map" if map else "--method" if method not in (None, "none") else None
        wanted = wanted or next((spelled(name) for name, text in given.items() if text is not None), None)
        if wanted:
            raise Problem(f"{wanted} needs --negative TEXT: what should not be in the picture")
    elif map and not EVERY[label].has_map:
        raise Problem(f"--map shows where VSF acts; it is not defined for {label}")
    if out is not None:
        writable(out, *(_VIDEOS if known is not None and known.video else (".png", *_VIDEOS)))
    pixels = read_flag(parse_size, size, "--size")
    with as_problems():
        from ..demo.models import model_of

        scale = own_scale if guidance_scale is None else guidance_scale
        request = Request(
            prompt, negative, steps=steps or own_steps, seed=seed, n=n, size=pixels, guidance_scale=scale, extra=extra
        )
    if understood is not None:
        say(f"not wanted: {understood}")
    start = time.perf_counter()
    pipe = load(model, device, dtype, download, path=model_path, loras=not no_lora)
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
        makes = (
            f"videos; --out must end with {' or '.join(_VIDEOS)}" if video else "pictures; --out must end with .png"
        )
        raise Problem(f"{type(pipe).__name__} makes {makes}, not {out.name}")
    if video:
        _check_writer(out)
    loaded = time.perf_counter()
    base = recommended(model)
    if (record := model_of(pipe)) is not None:
        warn_of_unknown_words(record.of_world(), prompt, *(item.text for item in parse_negative(negative or "")))
        if known is None:  # a folder of one
            known, base = record, record.recommended
            scale = known.guidance_scale if guidance_scale is None else guidance_scale
            request = replace(request, steps=steps or known.steps, guidance_scale=scale)
    request = replace(request, guidance=make_guidance(label, given, base))
    with as_problems(), progress_bar("drawing", request.steps) as progress:
        drawn = draw(pipe, request, compare, map, progress)
    seconds = time.perf_counter() - loaded
    first = drawn.guided[0]
    settings = settings_of(request, model, pipe, (first[0] if video else first).size)
    fps = ((known and known.fps) or 16) if video else None
    files = _save(request, drawn, settings, out, compare, map, fps)
    say(
        f"{', '.join(map_str(files))}  ({_describe(request)}; {seconds:.2f} s after {loaded - start:.1f} s of loading)"
    )


def map_str(files: list[Path]) -> list[str]:
    """Paths as text; the middle ones of many are left out."""
    names = [str(f) for f in files]
    return names if len(names) < 4 else [names[0], "...", names[-1]]


def _describe(request: Request) -> str:
    from ..guidance import describe

    settings = request.guidance.settings()
    if settings["blocks"] is not None:
        settings["blocks"] = blocks_text(settings["blocks"])
    return describe(settings) if request.guided else "not guided"


def _save(
    request: Request, drawn: Drawn, settings: dict[str, Any], out: Path, compare: bool, map: bool, fps: int | None
) -> list[Path]:
    """Write what was drawn: one sheet, or a file for each; `fps` of videos."""
    from ..images import compare_sheet, save_png
    from ..video import save_video, side_by_side

    files: list[Path] = []
    try:
        if fps is None and (compare or map):
            save_png(compare_sheet(request, drawn), out, settings)
            return [out]
        for i, one in enumerate(drawn.guided):
            files.append(out if request.n == 1 else out.with_stem(f"{out.stem}-{request.seed + i}"))
            own = settings | {"seed": request.seed + i, "n": 1}
            if fps is None:
                save_png(one, files[-1], own)
            else:
                save_video(side_by_side(drawn.plain[i], one) if compare else one, files[-1], fps, own)
    except OSError as error:
        raise Problem(f"cannot write {out}: {error.strerror or error}") from error
    return files


def _check_writer(out: Path) -> None:
    from ..video import can_write

    if not can_write(out.suffix.lower()):
        raise Problem(f"writing .mp4 needs imageio-ffmpeg: {install('video')}, or use .gif or .webp")
