"""Points, what a run compares, as text (`vsf:scale=1.5,offset=1`) and as a file.

A file of points is JSON, with every knob in it, so that what a sweep froze is what is drawn::

    {"format": "vsf-points", "version": 1, "points": [{"name": "vsf", "settings": {"method": "vsf", ...}}], "about": {}}

Neither torch nor diffusers is needed.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..guidance import METHODS, Guidance, knobs
from ..images import _plain, write_whole
from .run import Point, RunError

__all__ = ["labels", "parse_point", "parse_points", "read_points", "write_points"]

FORMAT = "vsf-points"
VERSION = 1


def labels() -> dict[str, type[Guidance]]:
    """What can be compared, by label: the methods and the ablations."""
    from .ablations import ABLATIONS

    return {**METHODS, **ABLATIONS}


def _defaults(label: str, model: str | None) -> dict[str, Any]:
    """What `vsf generate` starts from on this model, for VSF; nothing for anything else."""
    if label != "vsf" or model is None:
        return {}
    from ..demo.settings import RECOMMENDED
    from ..presets import PRESETS

    guidance = RECOMMENDED if model == "demo" else PRESETS[model].guidance() if model in PRESETS else None
    return {} if guidance is None else {k: v for k, v in guidance.settings().items() if k != "method"}


def _value(text: str, name: str, kind: type[Guidance], where: str) -> Any:
    if name == "blocks":
        if text.lower() == "none":
            return None
        try:
            return tuple(int(number) for number in text.split("+"))
        except ValueError:
            raise RunError(f"{where}: blocks is {text!r}; allowed: numbers joined by +, such as 0+1+4") from None
    spec = knobs(kind)[name]
    if spec.choices:
        return text  # the method itself says what is allowed
    if spec.optional and text.lower() in ("none", "off"):
        return None
    try:
        return float(text)
    except ValueError:
        also = ", or none" if spec.optional else ""
        raise RunError(f"{where}: {name} is {text!r}; allowed: a number{also}") from None


def parse_point(text: str, model: str | None = None) -> Point:
    """One point from its text: `LABEL`, `LABEL:KNOB=VALUE,...` or `NAME=LABEL:KNOB=VALUE,...`.

    Beside the knobs of the method, `blocks` (numbers joined by +), `steps` and `guidance_scale` (the pipeline's own)
    can be given. Without a name the point is called by what was given. Knobs that are not given have their defaults;
    those of VSF are what is recommended for `model` ("demo" or a preset), as in `vsf generate`.

    Raises:
        RunError: an unknown method or knob, or a value that is not allowed.
    """
    text = text.strip()
    head, _, tail = text.partition(":")
    given_name, equals, label = head.rpartition("=")
    where = f"point {text!r}"
    known = labels()
    label = label.strip()
    if label not in known:
        near = difflib.get_close_matches(label.lower(), known, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise RunError(
            f"{where}: unknown method {label!r}; allowed: {', '.join(known)}{hint} (a point is METHOD:KNOB=VALUE,... "
            "or NAME=METHOD:KNOB=VALUE,...)"
        )
    kind = known[label]
    settings_of = [*knobs(kind), "blocks", "steps", "guidance_scale"]
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in tail.split(","))):
        name, is_pair, value = (part.strip() for part in item.partition("="))
        if not is_pair or name not in settings_of:
            raise RunError(
                f"{where}: {item!r} is no setting of {label}; allowed: {', '.join(settings_of)}, as NAME=VALUE"
            )
        if name in values:
            raise RunError(f"{where}: {name} is given twice")
        if name in ("steps", "guidance_scale"):
            try:
                values[name] = int(value) if name == "steps" else float(value)
                if not (1 if name == "steps" else 0) <= values[name] <= 1000:
                    raise ValueError
            except ValueError:
                allowed = "a whole number from 1 to 1000" if name == "steps" else "a number from 0 to 1000"
                raise RunError(f"{where}: {name} is {value!r}; allowed: {allowed}") from None
        else:
            values[name] = _value(value, name, kind, where)
    steps, guidance_scale = values.pop("steps", None), values.pop("guidance_scale", None)
    try:
        settings = kind(**(_defaults(label, model) | values)).settings()
    except (ValueError, TypeError) as error:
        raise RunError(f"{where}: {error}") from error
    given = ",".join(filter(None, (part.replace(" ", "") for part in tail.split(","))))
    name = given_name.strip() if equals else ",".join(filter(None, (label, given)))
    try:
        return Point(name, settings, steps, guidance_scale)
    except RunError as error:
        raise RunError(f"{where}: {error}; name it with NAME=") from error


def parse_points(texts: Iterable[str], model: str | None = None) -> tuple[Point, ...]:
    """Points from their texts, in order; see `parse_point`. Raises RunError, also for a name that occurs twice."""
    return _distinct([parse_point(text, model) for text in texts])


def _distinct(points: Sequence[Point]) -> tuple[Point, ...]:
    seen: set[str] = set()
    for point in points:
        if point.name.lower() in seen:  # folders of some systems do not tell case
            raise RunError(f"two points are named {point.name!r}; give one of them another name with NAME=METHOD:...")
        seen.add(point.name.lower())
    return tuple(points)


def write_points(path: str | Path, points: Sequence[Point], about: Mapping[str, Any] | None = None) -> None:
    """Write points to a file; `about` says where they come from (a sweep's budget, seed, scores).

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    rows = [asdict(point) for point in points]
    data = {"format": FORMAT, "version": VERSION, "points": rows, "about": dict(about or {})}
    write_whole(path, (json.dumps(_plain(data), indent=1, allow_nan=False) + "\n").encode())


def read_points(path: str | Path) -> tuple[Point, ...]:
    """The points of a file written by `write_points`, every setting checked.

    Raises:
        RunError: the file is missing, damaged, or holds what the methods do not allow.
    """
    from .ablations import make_method

    try:
        data = json.loads(Path(path).read_bytes())
        if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
            raise RunError(f"{path} is no file of points ({FORMAT}, version {VERSION})")
        points = [Point(**row) for row in data["points"]]
        points = [Point(p.name, make_method(p.settings).settings(), p.steps, p.guidance_scale) for p in points]
    except OSError as error:
        raise RunError(f"cannot read the points in {path}: {error.strerror or error}") from error
    except RunError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"the points in {path} cannot be read: {error}") from error
    if not points:
        raise RunError(f"{path} holds no points")
    return _distinct(points)
