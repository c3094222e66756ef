"""Text that comes from outside, from a picture's settings or a request to the page, is checked here and nowhere else."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["checked", "parse_json"]

#: Levels of lists and objects; the settings of a picture have 3.
DEEPEST = 32
_INT64 = 2**63


def checked(value: Any, what: str) -> Any:
    """`value` as JSON gives it, if all of it can be handled: written out again, computed with, walked through.

    Raises:
        ValueError: it is nested too deep, holds half a character (a surrogate without its partner, which cannot be
            written as UTF-8), a number that is not finite or a whole number of more than 64 bits.
    """
    todo = [(value, 0)]
    while todo:  # no recursion: that is what deep nesting attacks
        one, depth = todo.pop()
        if isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{what} holds half a character, U+{ord(one[error.start]):04X}, at place {error.start + 1}"
                ) from None
        elif isinstance(one, int) and not -_INT64 <= one < _INT64:
            raise ValueError(f"{what} holds a whole number of more than 64 bits")
        elif isinstance(one, float) and not abs(one) < float("inf"):
            raise ValueError(f"{what} holds {one}, which is no finite number")
        elif isinstance(one, (dict, list)):
            if depth == DEEPEST:
                raise ValueError(f"{what} is nested more than {DEEPEST} levels deep")
            parts = [*one, *one.values()] if isinstance(one, dict) else one
            todo += [(part, depth + 1) for part in parts]
    return value


def parse_json(text: str | bytes, what: str, longest: int) -> Any:
    """The value of a JSON text of at most `longest` characters (or bytes), `checked`.

    Raises:
        ValueError: too long, no JSON, or what `checked` refuses; the message begins with `what`.
    """
    if len(text) > longest:
        raise ValueError(f"{what} is {len(text)} characters long; allowed: up to {longest}")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"{what} is nested more than {DEEPEST} levels deep") from None
    except ValueError:  # also: no UTF-8, and whole numbers of thousands of digits
        raise ValueError(f"{what} is no JSON") from None
    return checked(value, what)
