"""From what was typed to a request, and from a picture's settings back to the form.

The names of the form's fields are "prompt", "negative", ..., and for the knobs of a method "vsf.scale" and so on, made
from the guidance dataclasses. A knob that may be off has a second field, "vsf.normalize?".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..demo.models import MODELS
from ..draw import Request
from ..grammar import parse_size
from ..guidance import METHODS, Guidance, Knob, blocks_text, knobs, parse_blocks
from ..images import guidance_from
from ..prompt import as_typed, join_negatives, parse_negative, split_prompt
from .model import PageModel

__all__ = [
    "OWN_SIZE", "RANGE", "fields_of", "first_values", "guidance_of", "knob_fields", "numeric",
    "request_of", "restore",
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
    """The knobs of a method that a grid can run over."""
    own = knobs(METHODS[method])
    skip = RANGE if METHODS[method].negative in ("pipeline", "none") else ("start",)
    return {k: own[k] for k in sorted(own, key=RANGE.__contains__) if not own[k].choices and k not in skip}


def guidance_of(values: Mapping[str, Any], method: str, model: PageModel) -> Guidance:
    """The method with the knobs of the form. Raises ValueError for values it does not allow."""
    given: dict[str, Any] = {}
    for name, label, knob in knob_fields(model):
        if label == method:
            off = knob.optional and not values.get(f"{name}?")
            given[knob.name] = None if off else values[name]
    if f"{method}.blocks" in values:
        given["blocks"] = parse_blocks(str(values[f"{method}.blocks"]), "Blocks")
    try:
        return METHODS[method](**given)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _whole(values: Mapping[str, Any], name: str, what: str, low: int, high: int) -> int:
    value = values.get(name)
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and low <= value <= high
        and value == int(value)
    ):
        return int(value)
    given = "empty" if value is None else str(value)[:40]
    raise ValueError(f"{what} is {given}; allowed: a whole number from {low} to {high}")


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
    typed = str(values.get("size") or OWN_SIZE).strip()
    size = None if typed == OWN_SIZE else parse_size(typed, "the size")
    model.allowed.check(size, "this model")
    if size is None and {"width", "height"} <= set(extra):
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
    if guidance.negative in ("tokens", "padded"):
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
    values |= fields_of(guidance, model)
    if values["method"] not in model.methods:
        raise ValueError(f"the settings are for {values['method']}, which this page does not have")
    # The whole form must be able to draw it, or nothing is restored.
    filled = dict(_filled(model)) | values
    request_of(filled, model)
    if settings.get("guidance_scale", model.guidance_scale) != model.guidance_scale:
        notes.append(
            f"It was drawn with guidance_scale {settings['guidance_scale']}; this page runs {model.guidance_scale:g}"
        )
    drawn_by = str(settings.get("model"))
    embedded = MODELS.get(drawn_by)
    if embedded is not model.record or (embedded is None and Path(drawn_by).name != model.name):
        notes.append(f"It was drawn by {drawn_by[:60]}; this page runs {model.name}, so it will look different")
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
    if model.record is not None:
        first = model.record.shown[0]
        values |= {"prompt": first.prompt, "negative": first.negative, "seed": first.seed}
    if model.video:
        values["frames"] = int(model.extra.get("num_frames", 17))
    return values
