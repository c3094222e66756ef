"""From what was typed to a request, and from a picture's settings back to the form.

The names of the form's fields are "prompt", "negative", ..., and for the knobs of a method "vsf.scale" and so on, made
from the guidance dataclasses. A knob that may be off has a second field, "vsf.normalize?".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..draw import Request
from ..guidance import METHODS, Guidance, Knob, NoGuidance, knobs
from ..images import guidance_from
from ..prompt import join_negatives, parse_negative, split_prompt
from .model import PageModel
from .reproduce import as_typed

__all__ = [
    "OWN_SIZE", "RANGE", "block_numbers", "blocks_text", "fields_of", "first_values", "guidance_of", "knob_fields", "numeric",
    "parse_size", "request_of", "restore",
]  # fmt: skip

#: The entry of the size list that leaves it to the model.
OWN_SIZE = "Model's own"
#: The knobs that every method has: which steps are guided.
RANGE = ("start", "stop")


def knob_fields(model: PageModel) -> Iterator[tuple[str, str, Knob]]:
    """(field, method, knob) of every knob of every method the page has, in order; the range of steps comes last."""
    for label in model.methods:
        own = knobs(METHODS[label]) if METHODS[label].negative != "none" else {}
        if METHODS[label].negative == "pipeline":  # runs in the pipeline, which has no range of steps
            own = {k: v for k, v in own.items() if k not in RANGE}
        for name in sorted(own, key=RANGE.__contains__):
            yield f"{label}.{name}", label, own[name]


def numeric(method: str) -> dict[str, Knob]:
    """The knobs of a method that a sweep can run over."""
    own = knobs(METHODS[method])
    skip = RANGE if METHODS[method].negative in ("pipeline", "none") else ("start",)
    return {k: own[k] for k in sorted(own, key=RANGE.__contains__) if not own[k].choices and k not in skip}


def block_numbers(text: str) -> tuple[int, ...] | None:
    """Block numbers from "0-18,24"; None for all. Raises ValueError."""
    from ..cli.common import Problem, _block_numbers

    try:
        return _block_numbers(text.strip() or "all")
    except Problem as error:
        raise ValueError(str(error).replace("--blocks", "Blocks")) from error


def blocks_text(blocks: tuple[int, ...] | None) -> str:
    """The text that `block_numbers` reads as these blocks."""
    if blocks is None:
        return "all"
    runs: list[list[int]] = []
    for block in sorted(set(blocks)):
        if runs and block == runs[-1][1] + 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def guidance_of(values: Mapping[str, Any], method: str, model: PageModel) -> Guidance:
    """The method with the knobs of the form. Raises ValueError for values it does not allow."""
    given: dict[str, Any] = {}
    for name, label, knob in knob_fields(model):
        if label == method:
            off = knob.optional and not values.get(f"{name}?")
            given[knob.name] = None if off else values[name]
    if f"{method}.blocks" in values:
        given["blocks"] = block_numbers(str(values[f"{method}.blocks"]))
    try:
        return METHODS[method](**given)
    except TypeError as error:
        raise ValueError(str(error)) from error


def parse_size(text: Any, model: PageModel) -> tuple[int, int] | None:
    """(width, height) from "64x64" or "64"; None for the model's own. Raises ValueError."""
    words = str(text or OWN_SIZE).strip()
    if words == OWN_SIZE:
        return None
    sides = words.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and len(side.strip()) < 6 for side in sides):
        raise ValueError(f"the size is {words[:40]!r}; allowed: a number of pixels such as 64, or WIDTHxHEIGHT")
    width, height = int(sides[0]), int(sides[-1])
    if not all(16 <= side <= model.limits.side for side in (width, height)) or width % 8 or height % 8:
        raise ValueError(f"the size is {width}x{height}; allowed: multiples of 8 from 16 to {model.limits.side}")
    return width, height


def _whole(values: Mapping[str, Any], name: str, what: str, low: int, high: int) -> int:
    value = values.get(name)
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or value != int(value)
        or not low <= value <= high
    ):
        raise ValueError(
            f"{what} is {'empty' if value is None else value}; allowed: a whole number from {low} to {high}"
        )
    return int(value)


def request_of(values: Mapping[str, Any], model: PageModel, method: str | None = None) -> Request:
    """What the form asks for, by the rules of the command line; `method` instead of the chosen one.

    Raises:
        ValueError: something in it is not allowed; the message is one sentence for the visitor.
    """
    limits = model.limits
    prompt, negative = str(values.get("prompt") or ""), str(values.get("negative") or "")
    for what, text in (("prompt", prompt), ("negative prompt", negative)):
        if len(text) > limits.characters:
            raise ValueError(f"the {what} has {len(text)} characters; allowed: up to {limits.characters}")
    prompt, inline = split_prompt(" ".join(prompt.split()))
    negative = join_negatives(" ".join(negative.split()), inline) or ""
    parse_negative(negative)
    label = method or str(values.get("method"))
    if label not in model.methods:
        raise ValueError(f"unknown method {label[:40]!r}; allowed: {', '.join(model.methods)}")
    steps = _whole(values, "steps", "the number of steps", 1, limits.steps)
    n = _whole(values, "n", "the number of pictures", 1, limits.pictures)
    seed = _whole(values, "seed", "the seed", 0, 2**53 - 1 - limits.pictures)
    extra = model.extra_for(steps)
    if model.video:
        extra["num_frames"] = _whole(values, "frames", "the number of frames", 1, limits.frames)
    size = parse_size(values.get("size"), model)
    if size is None and not model.demo and {"width", "height"} <= set(extra):
        size = (extra["width"], extra["height"])
    guidance = guidance_of(values, label, model)
    return Request(prompt, negative, guidance, steps, seed, n, size, model.guidance_scale, extra)


def fields_of(guidance: Guidance, model: PageModel) -> dict[str, Any]:
    """The values of the form's fields that give this guidance back.

    Raises:
        ValueError: it holds something that the page has no field for.
    """
    if guidance.blocks == ():
        raise ValueError("the settings guide no block of the model, which the page has no field for")
    found: dict[str, Any] = {"method": guidance.label}
    if METHODS[guidance.label].negative in ("keys", "branch"):
        found[f"{guidance.label}.blocks"] = blocks_text(guidance.blocks)
    for name, label, knob in knob_fields(model):
        if label != guidance.label:
            continue
        value = getattr(guidance, knob.name)
        if isinstance(value, tuple) or (isinstance(value, float) and not math.isfinite(value)):
            shown = "one value per picture" if isinstance(value, tuple) else str(value)
            raise ValueError(f"the settings have {shown} for {knob.name}, which the page has no field for")
        if knob.optional:
            found[f"{name}?"] = value is not None
        if value is not None:
            found[name] = value
    return found


def restore(settings: Mapping[str, Any], model: PageModel) -> tuple[dict[str, Any], list[str]]:
    """The values of the form's fields from the settings of a picture, and what should be said about them.

    Raises:
        ValueError: the settings are not those of a picture, or hold what the page has no field for.
    """
    notes: list[str] = []
    try:
        guidance = guidance_from(settings)
        size = settings.get("size")
        values: dict[str, Any] = {
            "prompt": as_typed(str(settings["prompt"])),
            "negative": str(settings.get("negative", "")),
            "steps": settings["steps"],
            "seed": settings["seed"],
            "n": settings.get("n", 1),
            "size": f"{size[0]}x{size[1]}" if isinstance(size, list) and len(size) == 2 else OWN_SIZE,
        }
        extra = settings.get("extra")
        if model.video and isinstance(extra, Mapping):
            values["frames"] = extra.get("num_frames", 1)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ValueError):
            raise
        raise ValueError("the settings in this picture are incomplete, so they were not restored") from error
    values |= {"method": "none"} if isinstance(guidance, NoGuidance) else fields_of(guidance, model)
    if values["method"] not in model.methods:
        raise ValueError(f"the settings are for {values['method']}, which this page does not have")
    # The whole form must be able to draw it, or nothing is restored.
    filled = dict(_filled(model)) | values
    request_of(filled, model)
    if settings.get("guidance_scale", model.guidance_scale) != model.guidance_scale:
        notes.append(
            f"It was drawn with guidance_scale {settings['guidance_scale']}; this page runs {model.guidance_scale:g}"
        )
    drawn_by = settings.get("pipeline"), settings.get("model")
    if (drawn_by[1] == "demo") != model.demo:
        notes.append(
            f"It was drawn by {str(drawn_by[1])[:60]}; this page runs {model.name}, so it will look different"
        )
    return values, notes


def _filled(model: PageModel) -> Iterator[tuple[str, Any]]:
    """Every field with what it shows at first."""
    for label, guidance in model.defaults.items():
        if label in model.methods:
            yield from fields_of(guidance, model).items()
    for name, _, knob in knob_fields(model):
        if knob.optional:
            yield name, getattr(model.defaults[name.split(".")[0]], knob.name) or 1.0


def first_values(model: PageModel) -> dict[str, Any]:
    """Every field of the form with what it shows at first."""
    values = dict(_filled(model))
    values |= {
        "method": "vsf",
        "steps": model.steps,
        "n": 1,
        "seed": 0,
        "size": OWN_SIZE,
        "prompt": "",
        "negative": "",
    }
    if model.demo:
        from ..demo.settings import SHOWN

        values["prompt"], values["negative"], values["seed"] = SHOWN[0]
    if model.video:
        values["frames"] = int(model.extra.get("num_frames", 17))
    return values
