"""What a careful author would change in a case, as far as words can tell: the rules of docs/cases.md.

The rules read English words only. They cannot see whether a picture can be judged: that takes a person, or a run
without guidance (`vsf bench cases --measure`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from .cases import Case

__all__ = ["check_rules", "stems", "stems_clash", "word_count"]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower().replace("'s", "").replace("’s", ""))


_GLUE = frozenset(_words("a an and at by for from in is it its of on or the their to with"))
_HINTS = frozenset(
    _words(
        "absent absence bald bare barren blank broken devoid empty except excluding incomplete lack lacking lacks "
        "minus missing naked never no none not nothing plain removed sans stripped torn undecorated unfinished without"
    )
)
_NOT_HINTS = frozenset(("bless", "endless", "restless", "stainless", "timeless", "unless"))
_LENGTH = {"prompt": (3, 60), "negative": (1, 12), "question_1": (5, 50), "question_2": (3, 50)}
_NARRATIVE = (15, 30)  # words of a prompt in the narrative style, as in the paper
_KEPT = (3, 4)  # at most so many parts, of so many words each
_LONGER = 1  # words by which the two negatives may differ


def _stem(word: str) -> str:
    """A crude English stem; enough to see that "leaves" and "leaf", or "glazed" and "glaze" are one word."""
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith("ves") and len(word) > 4:
        word = word[:-3] + "f"
    elif re.search(r"(s|x|z|ch|sh)es$", word):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        word = word[:-1]
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 2 and re.search("[aeiouy]", rest):
            word = re.sub(r"([bdgklmnprt])\1$", r"\1", rest)
            break
    return word.removesuffix("e") if len(word) > 2 else word


@lru_cache(maxsize=4096)
def stems(text: str) -> tuple[str, ...]:
    """The words of a text by their stems, without articles and the like."""
    return tuple(_stem(word) for word in _words(text) if word not in _GLUE)


def _same(a: str, b: str) -> bool:
    """Equal stems, or one is the beginning or end of the other: "sail" is named by "sailboat"."""
    short, long = sorted((a, b), key=len)
    return a == b or (len(short) >= 4 and (long.startswith(short) or long.endswith(short)))


def stems_clash(a: str, b: str) -> bool:
    """Whether the two texts share a word: equal stems, or one the beginning or end of the other ("sail", "sailboat")."""
    return _names(stems(a), b)


def word_count(text: str) -> int:
    """Words in a text, punctuation not counted."""
    return len(_words(text))


def _names(words: Iterable[str], text: str) -> bool:
    """Whether the text has any of the words, given by their stems."""
    return any(_same(a, b) for a in words for b in stems(text))


def _hints(text: str) -> list[str]:
    return [
        word
        for word in _words(text)
        if word in _HINTS or (len(word) > 5 and word.endswith("less") and word not in _NOT_HINTS)
    ] + re.findall(r"\w+-(?:free|less)\b", text.lower())


def _violations(case: Case) -> Iterator[str]:
    for name, (low, high) in _LENGTH.items():
        count = len(_words(getattr(case, name)))
        if not low <= count <= high:
            yield f"{name} has {count} words; {low} to {high} are allowed"
    low, high = _NARRATIVE
    if case.style == "narrative" and not low <= word_count(case.prompt) <= high:
        yield f"a narrative prompt has {word_count(case.prompt)} words; {low} to {high} are allowed"
    negative = stems(case.negative)
    prompt = stems(case.prompt)
    if named := sorted({a for a in negative for b in prompt if _same(a, b)}):
        yield f"the prompt names the negative's {', '.join(map(repr, named))}"
    if hints := _hints(case.prompt):
        yield f"the prompt hints at an absence: {', '.join(map(repr, hints))}"
    main, _, rest = case.question_1.lower().partition("with or without")
    if not rest:
        yield "question_1 does not say 'with or without'"
    elif not _names(negative, rest):
        yield f"question_1 does not name the negative {case.negative!r} after 'with or without'"
    if case.object is None:
        if not set(prompt) & set(stems(main)):
            yield "question_1 does not mention the prompt's main object"
    else:
        words = set(stems(case.object))
        if not words <= set(prompt):
            yield f"the prompt does not name the object {case.object!r}"
        if not words <= set(stems(main)):
            yield f"question_1 does not mention the object {case.object!r}"
        if any(prompt.count(word) > 1 for word in words):
            yield f"the prompt names the object {case.object!r} twice"
        if any(_same(a, b) for a in negative for b in words):
            yield f"the negative {case.negative!r} names the object {case.object!r}"
    if "missing" not in _words(case.question_2):
        yield "question_2 does not ask whether something is missing"
    if not _names(negative, case.question_2):
        yield f"question_2 does not name the negative {case.negative!r}"
    for name in ("question_1", "question_2"):
        if not getattr(case, name).endswith("?"):
            yield f"{name} does not end with a question mark"
    parts = [part.strip() for part in case.kept.split(",")] if case.kept is not None else []
    if len(parts) > _KEPT[0]:
        yield f"kept names {len(parts)} parts; 1 to {_KEPT[0]} are allowed"
    for i, part in enumerate(parts):
        if not 1 <= word_count(part) <= _KEPT[1]:
            yield f"kept names {part!r} of {word_count(part)} words; 1 to {_KEPT[1]} are allowed"
        if _names(negative, part):
            yield f"kept names the negative {case.negative!r}: {part!r}"
        if any(set(stems(part)) == set(stems(other)) for other in parts[:i]):
            yield f"kept names {part!r} twice"
        if case.object is not None and set(stems(part)) == set(stems(case.object)):
            yield f"kept names the object itself: {part!r}"
    if case.unrelated is not None:
        for what, text in (("prompt", case.prompt), ("negative", case.negative), ("kept parts", case.kept or "")):
            if stems_clash(case.unrelated, text):
                yield f"unrelated ({case.unrelated!r}) shares a word with the {what}"
        if abs(word_count(case.unrelated) - word_count(case.negative)) > _LONGER:
            yield f"unrelated ({case.unrelated!r}) and negative ({case.negative!r}) differ in length by more than a word"


def check_rules(cases: Iterable[Case]) -> list[str]:
    """What a careful author would change, one line "id: problem" each; an empty list if nothing.

    Per case: the prompt names none of the negative's words (compared by stem, compounds count: "sailboat" names
    "sail") and hints at no absence ("without", "no", "bare", "-less", ...); the main object is named once in the
    prompt and by question_1, which says "with or without" the negative; question_2 asks whether the negative is
    missing; kept parts, where given, do not name the negative, and an unrelated negative nothing of the case; lengths, 15 to
    30 words for a prompt in the narrative style.
    Over the set: no object twice (for cases of the demo world: no combination twice), no prompt with the same negative
    twice.

    The rules read English words only. They cannot see whether a picture can be judged: that takes a person.
    """
    problems: list[str] = []
    seen: dict[tuple[str, ...], str] = {}
    for case in cases:
        problems += [f"{case.id}: {text}" for text in _violations(case)]
        keys: list[tuple[str, ...]] = [("prompt with the same negative", case.prompt.lower(), case.negative.lower())]
        if case.object is not None:
            demo = (case.part or "", case.color or "", case.background or "")
            keys.append(("combination" if any(demo) else "object", case.object.lower(), *demo))
        for key in keys:
            if seen.setdefault(key, case.id) != case.id:
                problems.append(f"{case.id}: the same {key[0]} as in {seen[key]} ({', '.join(filter(None, key[1:]))})")
    return problems
