"""What a server says of a word: its probability against another one, where the reply has log-probabilities, else the word."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..endpoint import BadReply

__all__ = ["booleans", "chosen"]


#: Marks of turns that some servers leave in front of what was written.
_MARKS = re.compile(r"^\s*(?:<\|[^|<>]*\|>\s*)+")


def _choice(reply: str) -> dict[str, Any]:
    try:
        choice = json.loads(reply)["choices"][0]
        return choice if isinstance(choice["message"], dict) else {}
    except (ValueError, RecursionError, AttributeError, IndexError, KeyError, TypeError):
        return {}


def _tokens(choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tokens of a reply with what else might have stood in the place of each; empty where the server does not say."""
    given = choice.get("logprobs")
    content = given.get("content") if isinstance(given, dict) else None
    right = isinstance(content, list) and all(isinstance(t, dict) and isinstance(t.get("token"), str) for t in content)
    return content if isinstance(content, list) and right else []


def _share(token: Mapping[str, Any], words: Sequence[str]) -> float | None:
    """P of the first word against the second among the alternatives of a token; None where neither is one of them.

    A token may be the beginning of its word ("f" of "false"), in any case, after a space.
    """
    p = [0.0, 0.0]
    alternatives = token.get("top_logprobs")
    for other in alternatives if isinstance(alternatives, list) else ():
        try:
            text, value = str(other["token"]).strip().lower(), math.exp(float(other["logprob"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        for i, word in enumerate(words):
            if text and word.startswith(text) and not words[1 - i].startswith(text) and value <= 1 + 1e-6:
                p[i] += value
    return p[0] / sum(p) if sum(p) > 0 else None


def chosen(reply: str, words: tuple[str, str]) -> tuple[float, bool]:
    """P of the first of two words as the answer of a reply, and whether the server gave it; else 1 or 0 by the word said.

    Raises:
        BadReply: the reply is no chat completion, or begins with neither word.
    """
    choice = _choice(reply)
    content = choice.get("message", {}).get("content")
    if not isinstance(content, str):
        raise BadReply("no answer: the reply has no message in it")
    first = next((t for t in _tokens(choice) if t["token"].strip()), None)
    if first is not None and (p := _share(first, words)) is not None:
        return p, True
    said = _MARKS.sub("", content).strip().lower()
    for word, p in zip(words, (1.0, 0.0), strict=True):
        if said.startswith(word) and not said[len(word) : len(word) + 1].isalpha():
            return p, False
    raise BadReply(f"no answer: the message is neither {words[0]} nor {words[1]}")


def booleans(reply: str, names: Sequence[str]) -> dict[str, float]:
    """P(true) of the fields of a JSON object that a reply writes, for those of which the server gave it."""
    written, found = "", {}
    for token in _tokens(_choice(reply)):
        # A field's value begins where the text so far ends in its name and a colon.
        text = written.rstrip()
        for name in names:
            if (
                name not in found
                and text.endswith(":")
                and text[:-1].rstrip().endswith(f'"{name}"')
                and token["token"].strip()
            ):
                p = _share(token, ("true", "false"))
                if p is not None:
                    found[name] = p
        written += token["token"]
    return found
