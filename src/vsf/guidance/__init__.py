"""Methods of negative guidance: frozen dataclasses with one equation each. None of them knows any model."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ..grammar import unknown
from .base import Guidance, Knob, blocks_text, describe, knobs, parse_blocks, read_settings, settable
from .baselines import CFG, NAG, NASA, NoGuidance
from .variants import VARIANTS
from .vsf import VSF

__all__ = [
    "CFG", "EVERY", "METHODS", "NAG", "NASA", "VARIANTS", "VSF", "Guidance", "Knob", "NoGuidance", "blocks_text", "describe",
    "knobs", "make_method", "parse_blocks", "read_settings", "settable",
]  # fmt: skip

#: The methods that are offered and compared, by their names in command lines and records. The classes themselves, and no
#: `vsf.registry.Table`: they are light, and ComfyUI's nodes take this folder and not the registry.
METHODS: dict[str, type[Guidance]] = {m.label: m for m in (NoGuidance, VSF, NAG, NASA, CFG)}
#: These and the variants of VSF: all that a command line, a point and a record may name.
EVERY: dict[str, type[Guidance]] = {**METHODS, **VARIANTS}


def make_method(settings: Mapping[str, Any], base: Guidance | None = None) -> Guidance:
    """The method that `Guidance.settings()` describes, variants included.

    What is not given is as in `base`, where that is the same method, else the default; an end of the range of steps in
    `base` that the given other end rules out is let go. What JSON made of a value is undone: lists become tuples, the words
    "inf" and "-inf" numbers.

    Raises:
        ValueError: no such method or setting (the nearest name is said), or a value out of its range.
        TypeError: a value of the wrong type.
    """
    label = settings.get("method")
    if not isinstance(label, str) or label not in EVERY:
        raise ValueError(unknown("method", label, EVERY))
    method = EVERY[label]
    given = {name: _plain(value) for name, value in settings.items() if name != "method"}
    allowed = [f.name for f in fields(method)]
    if more := [name for name in given if name not in allowed]:
        raise ValueError(unknown(f"setting of method {label}:", more[0], allowed))
    if base is None or base.label != label:
        return method(**given)
    range: dict[str, Any] = {"start": base.start, "stop": base.stop} | given
    if len({"start", "stop"} & given.keys()) == 1 and range["start"] >= range["stop"]:
        given = {"start": 0.0, "stop": 1.0} | given
    return replace(base, **given)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_plain(v) for v in value)
    return float(value) if isinstance(value, str) and value in ("inf", "-inf", "nan") else value
