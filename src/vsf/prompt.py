r"""The grammar of negative prompts: several negatives with their own weights and times, and `(word:-1.2)` inside a prompt.

A negative prompt::

    negative = item *( "," item )
    item     = text [ ":" weight ]  /  "(" text ":" weight ")"  /  window
    weight   = a number, 0 or more: 2, 0.5, .5, 1e-1
    window   = "[" negative ":" start "," stop "]"     from start to stop
             / "[" negative ":" when "]"               from when on
             / "[" negative ":" [negative] ":" when "]"  the first up to when, the second from when on
             / "[" negative ":" negative ":" start "," stop "]"               ... and the second from stop on
             / "[" [negative] ":" negative ":" [negative] ":" start "," stop "]"   before, between and after

with times as fractions of all steps, 0 to 1, and items with a weight in parentheses in a window; and inside a positive
prompt::

    inline   = "(" text ":-" weight ")", also in a window, with nothing else beside it

`\,` `\:` `\(` `\)` `\[` `\]` `\\` stand for the character itself. A colon without a number behind it is ordinary text, so is one
directly between two digits (`12:30`, `16:9`; `route 66: 2` has a weight, by its space), and so are parentheses without a
weight and brackets without a time. A negative prompt in which no weight and no time is written is one single item, commas
and all: that is how it would have been encoded without this grammar. See `docs/prompts.md`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "Item",
    "PromptError",
    "as_typed",
    "describe_negative",
    "format_negative",
    "join_negatives",
    "parse_negative",
    "split_prompt",
]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
#: A time or a ratio has a digit on both sides of its colon, a weight has not.
_COLON = r"(?:(?<!\d):|:(?!\d))"
#: `(text:number)`; the text holds no bare parentheses, so groups do not nest.
_GROUP = rf"\((?P<text>(?:\\.|[^\\()])*?){_COLON}\s*(?P<number>{_NUMBER})\s*\)"
#: `[...:0.2,0.6]` or `[...:0.2]`; brackets do not nest either.
_WINDOW = rf"\[(?P<inside>(?:\\.|[^\\\[\]])*?){_COLON}\s*(?P<first>{_NUMBER})\s*(?:,\s*(?P<second>{_NUMBER})\s*)?\]"
_TOKEN = re.compile(rf"(?P<window>{_WINDOW})|(?P<group>{_GROUP})|\\.|(?P<comma>,)|.", re.DOTALL)
_PARTS = re.compile(rf"{_GROUP}|\\.|(?P<colon>{_COLON})|.", re.DOTALL)
_WEIGHTED = re.compile(rf"(?P<text>(?:\\.|[^\\])*){_COLON}\s*(?P<number>{_NUMBER})\s*", re.DOTALL)
_WHOLE_GROUP = re.compile(rf"\s*{_GROUP}\s*", re.DOTALL)
_WHOLE_WINDOW = re.compile(rf"\s*{_WINDOW}\s*", re.DOTALL)
#: What was probably meant as a weight: it starts like a number and the item ends behind it.
_NEARLY = re.compile(rf"(?:\\.|[^\\])*{_COLON}\s*(?P<number>[-+.]?\d[^\s:]*)\s*", re.DOTALL)
#: The same of a time: brackets around it that are not closed, or where it is no number.
_NEARLY_WINDOW = re.compile(rf"\s*\[(?:\\.|[^\\\[\]])*?{_COLON}\s*(?P<time>[-+.]?\d[^\s:\]]*)\s*\]?\s*", re.DOTALL)
#: The same behind an inline negative.
_TIMES = re.compile(r"\s*:[:\s]*[-+.]?\d")
_LEFT_OVER = re.compile(rf"(?:\\.|[^\\])*?(?P<colon>:\s*-(?:{_NUMBER})\s*\))", re.DOTALL)
_ESCAPE = re.compile(r"\\([,:()\[\]\\])")


class PromptError(ValueError):
    """A prompt that does not follow the grammar; the message names the place."""


class Item(NamedTuple):
    """One negative, the factor on its flipped values (0 leaves it out), and its window: it acts from `start` to `stop`, as
    fractions of all steps."""

    text: str
    weight: float = 1.0
    start: float = 0.0
    stop: float = 1.0

    @property
    def timed(self) -> bool:
        """Whether its window leaves steps out."""
        return (self.start, self.stop) != (0.0, 1.0)


def _plain(text: str) -> str:
    return _ESCAPE.sub(r"\1", text)


def _escaped(text: str) -> str:
    return re.sub(r"[,:()\[\]\\]", r"\\\g<0>", text)


def _weight(number: str, at: int) -> float:
    value = float(number)
    if not math.isfinite(value) or value < 0:
        raise PromptError(
            f"the weight {number} at character {at + 1} of the negative prompt is not allowed; allowed: 0 or more"
        )
    return value


def parse_negative(text: str) -> list[Item]:
    r"""The items of a negative prompt.

    >>> [(item.text, item.weight) for item in parse_negative("wheels:2, chain")]
    [('wheels', 2.0), ('chain', 1.0)]
    >>> [(item.text, item.weight) for item in parse_negative("blurry, ugly")]
    [('blurry, ugly', 1.0)]
    >>> parse_negative("[(snow:2):0.2,0.6]")
    [Item(text='snow', weight=2.0, start=0.2, stop=0.6)]

    Items without text between two commas are left out. Nothing in the text: no items.

    Raises:
        PromptError: a weight that is no number or below 0, a weight or a time without text, a time that is no fraction, a
            window without any time in it, or a weight in parentheses or a time in brackets that is only a part of an
            item. The message gives the place, counted in characters from 1.
    """
    return list(_parsed(text))


@functools.lru_cache(maxsize=1024)
def _parsed(text: str, at: int = 0) -> tuple[Item, ...]:
    """Once per text: a negative is looked at by the command, the page, the method and the encoder. `at`: its place."""
    segments: list[tuple[int, str]] = []
    begin, inner = 0, list[tuple[int, str]]()
    for token in _TOKEN.finditer(text):
        if token["group"] or token["window"]:
            inner.append((token.start(), "group" if token["group"] else "window"))
        elif token["comma"]:
            segments.append((begin, text[begin : token.start()]))
            begin = token.end()
    segments.append((begin, text[begin:]))
    items: list[Item] = []
    several, before = False, False
    for start, segment in segments:
        here = at + start
        window = _WHOLE_WINDOW.fullmatch(segment)
        match = None if window else _WHOLE_GROUP.fullmatch(segment) or _WEIGHTED.fullmatch(segment)
        inside = next((found for found in inner if start <= found[0] < start + len(segment)), None)
        if inside is not None and not window and (match is None or match.re is not _WHOLE_GROUP):
            group = inside[1] == "group"
            what = "weight in parentheses" if group else "time in brackets"
            marks = r"\( and \) for parentheses that are text" if group else r"\: for a colon that is text"
            nest = "" if group else " (brackets do not nest)"
            raise PromptError(
                f"the {what} at character {at + inside[0] + 1} of the negative prompt is only a part of an item; put commas "
                rf"around it{nest}, or write {marks}"
            )
        if window:
            items += _windowed(window, here)
            several, before = True, False
            continue
        if (nearly := _NEARLY_WINDOW.fullmatch(segment)) is not None:
            raise PromptError(
                f"the time {nearly['time']!r} at character {here + nearly.start('time') + 1} of the negative prompt is not "
                r"read; write [text:0.2,0.6], [text:0.2] or [text::0.6], or \: for a colon that is text"
            )
        if match is None:
            nearly = _NEARLY.fullmatch(segment)
            if nearly is not None:
                raise PromptError(
                    f"the weight {nearly['number']!r} at character {here + nearly.start('number') + 1} of the negative "
                    r"prompt is not a number; write \: for a colon that is text"
                )
            if before and segment.isdigit():
                raise PromptError(
                    f"the number {segment} at character {here + 1} of the negative prompt stands directly behind a "
                    "weight and a comma; write a point in decimal numbers, or a space behind the comma"
                )
            before = False
            if segment.strip():
                items.append(Item(_plain(segment.strip())))
            continue
        content = match["text"].strip()
        if not content:
            raise PromptError(
                f"the weight at character {here + match.start('number') + 1} of the negative prompt has no text"
            )
        items.append(Item(_plain(content), _weight(match["number"], here + match.start("number"))))
        several = before = True
    if several:
        return tuple(items)
    return (Item(_plain(text)),) if text.strip() else ()


def _windowed(window: re.Match[str], at: int) -> list[Item]:
    """The items of a window that begins at character `at`, with their times."""
    place = f"at character {at + window.start('first') + 1} of the negative prompt"
    times = [float(window[name]) for name in ("first", "second") if window[name] is not None]
    if not all(0 <= time <= 1 for time in times):
        given = next(window[name] for name in ("first", "second") if not 0 <= float(window[name] or 0) <= 1)
        raise PromptError(
            f"the time {given} {place} is not allowed; allowed: fractions of all steps from 0 to 1, not numbers of steps "
            r"(\: is a colon that is text)"
        )
    parts = list[tuple[int, str]]()
    begin = window.start("inside")
    for token in _PARTS.finditer(window.string, begin, window.end("inside")):
        if token["colon"]:
            parts.append((begin, window.string[begin : token.start()]))
            begin = token.end()
    parts.append((begin, window.string[begin : window.end("inside")]))
    # One time: before it, from it on. Two: before, between, after. A single part is the one that they are about.
    bounds = [0.0, *times, 1.0]
    spans = list(zip(bounds, bounds[1:], strict=False))
    spans = spans if len(parts) == len(spans) else spans[1:]
    if len(parts) > len(spans):
        raise PromptError(
            f"the brackets at character {at + window.end() - len(window[0].lstrip()) + 1} of the negative prompt have "
            f"{len(parts)} parts and {len(times)} time{'s' * (len(times) > 1)}; allowed: one more than there are times "
            r"(\: is a colon that is text)"
        )
    items = list[Item]()
    for (begin, part), (start, stop) in zip(parts, spans, strict=False):
        if re.fullmatch(_NUMBER, part.strip()):
            raise PromptError(
                f"the number {part.strip()} at character {at + begin + 1} of the negative prompt is not a text; write a weight "
                "within brackets in parentheses, as in [(text:2):0.2,0.6]"
            )
        found = _parsed(part.strip(), at + begin + len(part) - len(part.lstrip()))
        if found and start >= stop:
            raise PromptError(f"no step lies between the times {start:g} and {stop:g} {place}")
        items += [item._replace(start=start, stop=stop) for item in found]
    if not items:
        raise PromptError(f"the time {place} has no text")
    return items


def _number(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


def format_negative(items: Sequence[Item]) -> str:
    r"""The text that `parse_negative` reads as these items (texts are stripped; an empty text is an error).

    >>> format_negative([Item("wheels", 2.0), Item("a clock, 10:30"), Item("snow", 1.0, 0.2, 0.6)])
    'wheels:2, a clock\\, 10\\:30, [snow:0.2,0.6]'

    Raises:
        PromptError: an item without text, with a weight that is not a number from 0 up, or with times that are not
            0 <= start < stop <= 1.
    """
    words: list[str] = []
    # Without any weight it would be read as one item.
    explicit = len(items) > 1 and all(item.weight == 1 and not item.timed for item in items)
    for item in items:
        if not item.text.strip():
            raise PromptError("an item of a negative prompt has no text")
        if not math.isfinite(item.weight) or item.weight < 0:
            raise PromptError(f"the weight of {item.text!r} is {item.weight}; allowed: 0 or more")
        if not 0 <= item.start < item.stop <= 1:
            raise PromptError(
                f"the times of {item.text!r} are {item.start:g} and {item.stop:g}; allowed: fractions of all steps, the first "
                "below the second"
            )
        text = item.text.strip()
        colon = ": " if text[-1].isdecimal() else ":"
        # A number alone in brackets would be read as a weight at the wrong place.
        weighed = item.weight != 1 or (item.timed and re.fullmatch(_NUMBER, text) is not None)
        word = _escaped(text) + (f"{colon}{_number(item.weight)}" if weighed or explicit else "")
        if item.timed:
            word = f"({word}):" if weighed else word + colon
            word = f"[{word}{_number(item.start)},{_number(item.stop)}]"
        words.append(word)
        explicit = False
    return ", ".join(words)


def describe_negative(text: str | None) -> str | None:
    """What a negative prompt is read as, for people; None where that is the text as it stands.

    >>> describe_negative("wheels:2, [chain:0.5], rust:0")
    "'wheels' with weight 2, 'chain' with weight 1 from 0.5 to 1 of the steps, without 'rust' (weight 0)"

    Raises:
        PromptError: as `parse_negative`.
    """
    items = parse_negative(text or "")
    if not items or items == [Item(text or "")]:
        return None

    def read(item: Item) -> str:
        if not item.weight:
            return f"without {item.text!r} (weight 0)"
        when = f" from {item.start:g} to {item.stop:g} of the steps" if item.timed else ""
        return f"{item.text!r} with weight {item.weight:g}{when}"

    return ", ".join(map(read, items))


def join_negatives(negative: str | None, items: Sequence[Item]) -> str | None:
    """A negative prompt with more items behind it, as one text; the negative as it is if there are none."""
    return format_negative([*parse_negative(negative or ""), *items]) if items else negative


def split_prompt(text: str) -> tuple[str, list[Item]]:
    r"""Take the inline negatives `(text:-weight)`, and such in a window `[(text:-weight):0.2,0.6]`, out of a prompt.

    >>> split_prompt("a bicycle (wheels:-1.2) in the park")
    ('a bicycle in the park', [Item(text='wheels', weight=1.2, start=0.0, stop=1.0)])

    Gives the prompt without them (and without the comma or the space that is then too much), and the items with their
    weights made positive. `(text:1.3)` and `[text:0.5]` are no business of this grammar and stay in the prompt as they
    are. Escapes are resolved in both; a prompt with neither comes back unchanged.

    Raises:
        PromptError: an inline negative without text, with an infinite weight, with parentheses inside, or beside other text
            in the brackets of a window; or times that `parse_negative` refuses, or in brackets that are not closed.
    """
    pieces: list[str] = []
    items: list[Item] = []
    begin, bracket = 0, None
    for token in _TOKEN.finditer(text):
        if token[0] in ("[", "]"):
            bracket = token.start() if token[0] == "[" else None
        if token["window"]:
            found = _inline_window(token)
        elif token["group"] and token["number"].startswith("-"):
            found = [_inline(token, token.start(), token.start("number"))]
            if bracket is not None and _TIMES.match(text, token.end()):
                raise PromptError(
                    f"the times in the brackets at character {bracket + 1} of the prompt are not read; write "
                    r"[(text:-1):0.2,0.6], [(text:-1):0.2] or [(text:-1)::0.6], or \[ for a bracket that is text"
                )
        else:
            continue
        if not found:
            continue
        items += found
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


def _inline(group: re.Match[str], at: int, number: int) -> Item:
    """`(text:-weight)` at character `at` of a prompt, whose weight is at character `number`."""
    content = group["text"].strip()
    if not content:
        raise PromptError(f"the inline negative at character {at + 1} of the prompt has no text")
    weight = -float(group["number"])
    if not math.isfinite(weight):
        raise PromptError(f"the weight {group['number']} at character {number + 1} of the prompt is infinite")
    return Item(_plain(content), abs(weight))


def _inline_window(window: re.Match[str]) -> list[Item]:
    """The inline negatives of a window in a prompt; none: it is somebody else's."""
    at, inside = window.start("inside"), window["inside"]
    groups = [found for found in _PARTS.finditer(inside) if found["number"] is not None]
    if not any(found["number"].startswith("-") for found in groups):
        return []
    # The same window with weights from 0 up is a negative prompt; what is left of it without them is nothing.
    begin, rest, same = 0, "", ""
    for found in groups:
        if found["number"].startswith("-"):
            item = _inline(found, at + found.start(), at + found.start("number"))
            rest += inside[begin : found.start()]
            same += inside[begin : found.start()] + f"({_escaped(item.text)}: {_number(item.weight)})"
            begin = found.end()
    rest, same = rest + inside[begin:], same + inside[begin:]
    if rest.strip(" ,:"):
        raise PromptError(
            f"the brackets at character {window.start() + 1} of the prompt hold negatives beside other text; write "
            "[(text:-1):0.2,0.6] for a negative alone"
        )
    times = window.string[window.end("inside") : window.end()]
    try:
        return parse_negative(f"[{same}{times}")
    except PromptError as error:
        why = re.sub(r" at character \d+ of the negative prompt", "", str(error))
        raise PromptError(f"in the brackets at character {window.start() + 1} of the prompt, {why}") from None


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


def as_typed(prompt: str) -> str:
    """`prompt` so that `split_prompt` gives it back unchanged: with escapes where it would read it as grammar."""
    try:
        if split_prompt(prompt) == (prompt, []):
            return prompt
    except PromptError:
        pass
    return _escaped(prompt)
