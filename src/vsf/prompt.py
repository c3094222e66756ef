r"""The grammar of negative prompts: several negatives with their own weights, and `(word:-1.2)` inside a prompt.

A negative prompt::

    negative = item *( "," item )
    item     = text [ ":" weight ]  /  "(" text ":" weight ")"
    weight   = a number, 0 or more: 2, 0.5, .5, 1e-1

and inside a positive prompt::

    inline   = "(" text ":-" weight ")"

`\,` `\:` `\(` `\)` `\\` stand for the character itself. A colon without a number behind it is ordinary text, and so are
parentheses without a weight. A negative prompt in which no weight is written is one single item, commas and all: that
is how it would have been encoded without this grammar. See `docs/prompts.md`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Item", "PromptError", "format_negative", "join_negatives", "parse_negative", "split_prompt"]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
#: `(text:number)`; the text holds no bare parentheses, so groups do not nest.
_GROUP = rf"\((?P<text>(?:\\.|[^\\()])*?):\s*(?P<number>{_NUMBER})\s*\)"
_TOKEN = re.compile(rf"(?P<group>{_GROUP})|\\.|(?P<comma>,)|.", re.DOTALL)
_WEIGHTED = re.compile(rf"(?P<text>(?:\\.|[^\\])*):\s*(?P<number>{_NUMBER})\s*", re.DOTALL)
_WHOLE_GROUP = re.compile(rf"\s*{_GROUP}\s*", re.DOTALL)
#: What was probably meant as a weight: it starts like a number and the item ends behind it.
_NEARLY = re.compile(r"(?:\\.|[^\\])*:\s*(?P<number>[-+.]?\d\S*)\s*", re.DOTALL)
_LEFT_OVER = re.compile(rf"(?:\\.|[^\\])*?(?P<colon>:\s*-(?:{_NUMBER})\s*\))", re.DOTALL)
_ESCAPE = re.compile(r"\\([,:()\\])")


class PromptError(ValueError):
    """A prompt that does not follow the grammar; the message names the place."""


class Item(NamedTuple):
    """One negative and the factor on its flipped values; 0 leaves it out."""

    text: str
    weight: float = 1.0


def _plain(text: str) -> str:
    return _ESCAPE.sub(r"\1", text)


def _escaped(text: str) -> str:
    return re.sub(r"[,:()\\]", r"\\\g<0>", text)


def _weight(number: str, at: int) -> float:
    value = float(number)
    if not math.isfinite(value) or value < 0:
        raise PromptError(
            f"the weight {number} at character {at + 1} of the negative prompt is not allowed; allowed: 0 or more"
        )
    return value


def parse_negative(text: str) -> list[Item]:
    r"""The items of a negative prompt.

    >>> parse_negative("wheels:2, chain")
    [Item(text='wheels', weight=2.0), Item(text='chain', weight=1.0)]
    >>> parse_negative("blurry, ugly")
    [Item(text='blurry, ugly', weight=1.0)]

    Items without text between two commas are left out. Nothing in the text: no items.

    Raises:
        PromptError: a weight that is no number or below 0, a weight without text, or a weight in parentheses that is
            only a part of an item. The message gives the place, counted in characters from 1.
    """
    segments: list[tuple[int, str]] = []
    begin, groups = 0, list[int]()
    for token in _TOKEN.finditer(text):
        if token["group"]:
            groups.append(token.start())
        elif token["comma"]:
            segments.append((begin, text[begin : token.start()]))
            begin = token.end()
    segments.append((begin, text[begin:]))
    items: list[Item] = []
    weighted, before = False, False
    for start, segment in segments:
        match = _WHOLE_GROUP.fullmatch(segment) or _WEIGHTED.fullmatch(segment)
        inside = next((g for g in groups if start <= g < start + len(segment)), None)
        if inside is not None and (match is None or match.re is not _WHOLE_GROUP):
            raise PromptError(
                f"the weight in parentheses at character {inside + 1} of the negative prompt is only a part of an item; "
                r"put commas around it, or write \( and \) for parentheses that are text"
            )
        if match is None:
            nearly = _NEARLY.fullmatch(segment)
            if nearly is not None:
                raise PromptError(
                    f"the weight {nearly['number']!r} at character {start + nearly.start('number') + 1} of the negative "
                    r"prompt is not a number; write \: for a colon that is text"
                )
            if before and segment.isdigit():
                raise PromptError(
                    f"the number {segment} at character {start + 1} of the negative prompt stands directly behind a "
                    "weight and a comma; write a point in decimal numbers, or a space behind the comma"
                )
            before = False
            if segment.strip():
                items.append(Item(_plain(segment.strip())))
            continue
        content = match["text"].strip()
        if not content:
            raise PromptError(f"the weight at character {start + match.start('number') + 1} of the negative prompt has no text")
        items.append(Item(_plain(content), _weight(match["number"], start + match.start("number"))))
        weighted = before = True
    if weighted:
        return items
    return [Item(_plain(text))] if text.strip() else []


def format_negative(items: Sequence[Item]) -> str:
    r"""The text that `parse_negative` reads as these items (texts are stripped; an empty text is an error).

    >>> format_negative([Item("wheels", 2.0), Item("a clock, 10:30")])
    'wheels:2, a clock\\, 10\\:30'

    Raises:
        PromptError: an item without text, or with a weight that is not a number from 0 up.
    """
    words: list[str] = []
    # Without any weight it would be read as one item.
    explicit = len(items) > 1 and all(item.weight == 1 for item in items)
    for item in items:
        if not item.text.strip():
            raise PromptError("an item of a negative prompt has no text")
        if not math.isfinite(item.weight) or item.weight < 0:
            raise PromptError(f"the weight of {item.text!r} is {item.weight}; allowed: 0 or more")
        number = f"{item.weight:g}" if float(f"{item.weight:g}") == item.weight else repr(float(item.weight))
        words.append(_escaped(item.text.strip()) + (f":{number}" if item.weight != 1 or explicit else ""))
        explicit = False
    return ", ".join(words)


def join_negatives(negative: str | None, items: Sequence[Item]) -> str | None:
    """A negative prompt with more items behind it, as one text; the negative as it is if there are none."""
    return format_negative([*parse_negative(negative or ""), *items]) if items else negative


def split_prompt(text: str) -> tuple[str, list[Item]]:
    r"""Take the inline negatives `(text:-weight)` out of a prompt.

    >>> split_prompt("a bicycle (wheels:-1.2) in the park")
    ('a bicycle in the park', [Item(text='wheels', weight=1.2)])

    Gives the prompt without them (and without the comma or the space that is then too much), and the items with their
    weights made positive. `(text:1.3)` is no business of this grammar and stays in the prompt as it is. Escapes are
    resolved in both; a prompt with neither comes back unchanged.

    Raises:
        PromptError: an inline negative without text, with an infinite weight, or with parentheses inside.
    """
    pieces: list[str] = []
    items: list[Item] = []
    begin = 0
    for token in _TOKEN.finditer(text):
        if not token["group"] or not token["number"].startswith("-"):
            continue
        content = token["text"].strip()
        if not content:
            raise PromptError(f"the inline negative at character {token.start() + 1} of the prompt has no text")
        weight = -float(token["number"])
        if not math.isfinite(weight):
            raise PromptError(f"the weight {token['number']} at character {token.start('number') + 1} of the prompt is infinite")
        items.append(Item(_plain(content), abs(weight)))
        pieces.append(text[begin : token.start()])
        begin = token.end()
    pieces.append(text[begin:])
    at = 0
    for piece in pieces:
        left = _LEFT_OVER.match(piece)
        if left is not None:
            raise PromptError(
                f"the negative weight at character {text.index(piece, at) + left.start('colon') + 1} of the prompt belongs to no "
                r"(text:-weight); parentheses do not nest, write \( and \) for those that are text"
            )
        at += len(piece)
    prompt = pieces[0]
    for piece in pieces[1:]:
        prompt = _seam(prompt, piece)
    return _plain(prompt), items


def _seam(left: str, right: str) -> str:
    """Join what stood on both sides of an inline negative."""
    a, b = left.rstrip(), right.lstrip()
    comma = a.endswith(",") and not a.endswith("\\,")
    if b.startswith(",") and (not a or comma):
        b = b[1:].lstrip()
    elif comma and not b:
        a = a[:-1].rstrip()
    if not a or not b:
        return a + b
    spaced = a != left or b != right
    return a + (" " if spaced and b[0] not in ",.;:!?" else "") + b
