"""The small grammars of what people type: names with the nearest one, numbers, and sizes. Torch-free.

One place, so that a command, the page and a benchmark read the same text alike. Negatives are in `vsf.prompt`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "first_line", "parse_numbers", "parse_size", "unknown"]


def did_you_mean(given: object, allowed: Iterable[str]) -> str:
    """`"; did you mean NAME?"` for the nearest of the allowed names; nothing where none is near."""
    near = difflib.get_close_matches(str(given)[:80].lower(), list(allowed), 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def unknown(what: str, given: object, allowed: Iterable[str]) -> str:
    """The sentence for a name that is not among the allowed ones."""
    allowed = list(allowed)
    return f"unknown {what} {repr(given)[:80]}; allowed: {', '.join(allowed)}{did_you_mean(given, allowed)}"


def first_line(error: BaseException) -> str:
    """What an error of somebody else's library says, as the end of a sentence of ours."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    # "... from one of:" says nothing without what follows.
    return " ".join(lines[:3] if lines[0].endswith(":") else lines[:1]).rstrip(".")


def parse_size(text: str, where: str = "the size") -> tuple[int, int]:
    """`(width, height)` in pixels from `"64"` or `"1024x768"`; whether a model takes it is for the model to say.

    Raises:
        ValueError: it is something else; the message calls it `where`.
    """
    sides = [side.strip() for side in text.lower().replace("×", "x").split("x")]
    if len(sides) > 2 or not all(side.isdecimal() and len(side) < 6 for side in sides):
        allowed = "a number of pixels such as 64, or WIDTHxHEIGHT such as 1024x768"
        raise ValueError(f"{where} is {text[:40]!r}; allowed: {allowed}")
    return int(sides[0]), int(sides[-1])


def parse_numbers(text: str, where: str, allowed: str) -> list[int]:
    """Whole numbers from "0-3" or "0,2,5-7", in the order given; a range has at most 10,000.

    "+" stands for "," where a comma would end the text: in a point of a benchmark.

    Raises:
        ValueError: it is something else; the message calls it `where`, and ends with the examples in `allowed`.
    """
    found: list[int] = []
    for part in text.replace("+", ",").split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        last = last if dash else first
        fit = first.isdecimal() and last.isdecimal() and max(len(first), len(last)) < 16
        if fit and int(last) < int(first):
            raise ValueError(f"{where} is {text[:80]!r}; the range {part.strip()} ends before it begins")
        if not fit or int(last) - int(first) >= 10_000:
            raise ValueError(f"{where} is {text[:80]!r}; allowed: numbers and ranges such as {allowed}")
        found += range(int(first), int(last) + 1)
    return found
