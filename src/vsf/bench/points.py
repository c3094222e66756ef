"""Points, what a run compares, as text (`vsf:scale=1.5,offset=1`) and as a file.

A file of points is JSON, with every knob in it, so that what a sweep froze is what is drawn::

    {"format": "vsf-points", "version": 1, "points": [{"name": "vsf", "settings": {"method": "vsf", ...}}], "about": {}}

Neither torch nor diffusers is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import json_bytes, write_whole
from ..grammar import unknown
from ..guidance import EVERY, make_method, read_settings
from ..loading import recommended
from .run import Point, RunError

__all__ = ["parse_point", "parse_points", "read_points", "write_points"]

FORMAT = "vsf-points"
VERSION = 1


def parse_point(text: str, model: str | None = None) -> Point:
    """One point from its text: `LABEL`, `LABEL:KNOB=VALUE,...` or `NAME=LABEL:KNOB=VALUE,...`.

    Beside the settings of the method (of `blocks`, "+" for ","), `steps` and `guidance_scale` (the pipeline's own) can be
    given. Without a name the point is called by what was given. What is not given has its default; VSF starts from what is
    recommended for `model` ("demo" or a preset), as in `vsf generate`.

    Raises:
        RunError: an unknown method or setting, or a value that is not allowed.
    """
    text = text.strip()
    head, _, tail = text.partition(":")
    given_name, equals, label = head.rpartition("=")
    where = f"point {text!r}"
    label = label.strip()
    if label not in EVERY:
        form = "a point is METHOD:KNOB=VALUE,... or NAME=METHOD:KNOB=VALUE,..."
        raise RunError(f"{where}: {unknown('method', label, EVERY)} ({form})")
    values: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in tail.split(","))):
        name, is_pair, value = (part.strip() for part in item.partition("="))
        if not is_pair or name in values:
            raise RunError(f"{where}: {f'{name} is given twice' if is_pair else f'{item!r} is not NAME=VALUE'}")
        values[name] = value
    steps = _number(values, "steps", int, 1, "a whole number from 1 to 1000", where)
    guidance_scale = _number(values, "guidance_scale", float, 0, "a number from 0 to 1000", where)
    try:
        given = {"method": label, **read_settings(EVERY[label], values)}
        settings = make_method(given, None if model is None else recommended(model)).settings()
    except (ValueError, TypeError) as error:
        raise RunError(f"{where}: {error}") from error
    given = ",".join(filter(None, (part.replace(" ", "") for part in tail.split(","))))
    name = given_name.strip() if equals else ",".join(filter(None, (label, given)))
    try:
        return Point(name, settings, steps, guidance_scale)
    except RunError as error:
        raise RunError(f"{where}: {error}; name it with NAME=") from error


def _number(values: dict[str, str], name: str, kind: Callable[[str], Any], low: int, allowed: str, where: str) -> Any:
    """A setting of the pipeline, taken out of what was given; None where it was not."""
    if (text := values.pop(name, None)) is None:
        return None
    with suppress(ValueError):
        if low <= (value := kind(text)) <= 1000:
            return value
    raise RunError(f"{where}: {name} is {text!r}; allowed: {allowed}")


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
    write_whole(path, json_bytes(data, 1))


def read_points(path: str | Path) -> tuple[Point, ...]:
    """The points of a file written by `write_points`, every setting checked.

    Raises:
        RunError: the file is missing, damaged, or holds what the methods do not allow.
    """
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
