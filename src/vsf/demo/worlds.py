"""The worlds: what can be said in one, what is drawn of it, and who can tell what is in a picture.

A world knows no model: several may draw it (`vsf.demo.models`).
"""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..registry import Table

__all__ = ["FIRST", "PAD", "UNKNOWN", "WORLDS", "HeldOut", "OracleError", "World", "split_words", "world"]

PAD, UNKNOWN = "<pad>", "<unk>"

#: The records of the worlds, by name.
WORLDS: Table[World] = Table("world", {"pictures": "vsf.demo.pictures:WORLD", "clips": "vsf.demo.clips:WORLD"})
#: The world where none is named.
FIRST = "pictures"


class OracleError(RuntimeError):
    """An oracle's weights are missing, corrupt, or made for another world."""


def split_words(prompt: str) -> list[str]:
    """The words of a prompt as the tokenizers see them: lower case, punctuation dropped."""
    return re.sub(r"[^\w\s]", " ", prompt.lower()).split()


@dataclass(frozen=True)
class HeldOut:
    """A combination that no model was trained on: an object, one of its typical parts, a colour, a background."""

    object: str
    part: str
    color: str
    background: str
    split: str


@dataclass(frozen=True)
class World:
    """A world as data, and the module that draws it.

    Attributes:
        name: as in `WORLDS`.
        module: has `Scene`, `render(scene, size)` (uint8 [H, W, 3], or [T, H, W, 3] where `frames` is given),
            `part_mask`, `caption`, `sample_scene`, `training_pair`, `allowed_extras` and `split`; also `strange`, where a judge
            is trained from nothing on it.
        size: pixels a side that its judge reads.
        frames: of a clip; None where it is drawn as pictures.
        typical: the parts that belong to each object, drawn mostly without being mentioned.
        parts, colors, backgrounds, styles: names in captions.
        words: all words by what they are, for people to choose from.
        vocabulary: every word of its captions, sorted.
        alike: parts that look alike: one is no control for the other.
        oracle: "module:function", called with a folder or None, gives what judges its pictures.
        cases: what the benchmark draws in it: a set's name, or the path of a file of cases.
    """

    name: str
    module: str
    size: int
    frames: int | None
    typical: Mapping[str, tuple[str, ...]]
    parts: tuple[str, ...]
    colors: tuple[str, ...]
    backgrounds: tuple[str, ...]
    styles: tuple[str, ...]
    words: Mapping[str, tuple[str, ...]]
    vocabulary: tuple[str, ...]
    alike: tuple[frozenset[str], ...]
    oracle: str
    cases: str

    @property
    def objects(self) -> tuple[str, ...]:
        """The names of its objects."""
        return tuple(self.typical)

    @property
    def code(self) -> Any:
        """The module that draws it; needs numpy and Pillow."""
        return importlib.import_module(self.module)

    @property
    def tokens(self) -> tuple[str, ...]:
        """What its tokenizers know, in the order of their ids: the pad, any unknown word, then the vocabulary."""
        return (PAD, UNKNOWN, *self.vocabulary)

    def unknown_words(self, prompt: str | Sequence[str]) -> list[str]:
        """Words of one or several prompts that are not of this world, each once, in order of appearance."""
        prompts = [prompt] if isinstance(prompt, str) else prompt
        known = set(self.vocabulary)
        return list(dict.fromkeys(word for one in prompts for word in split_words(one) if word not in known))

    def load_oracle(self, folder: str | Path | None = None) -> Any:
        """The shipped judge of its pictures, or another one of `folder`. Raises OracleError."""
        module, _, name = self.oracle.partition(":")
        return getattr(importlib.import_module(module), name)(folder)

    def held_out(self, splits: Sequence[str] = ("dev", "test")) -> Iterator[HeldOut]:
        """Every held-out combination, split by split, round by round: each (object, typical part) once per round.

        So the first k of a split are spread evenly, whatever k. Shuffled by hash: the same on every machine.
        """
        pairs = [(name, part) for name, parts in self.typical.items() for part in parts]
        for split in splits:
            queues: list[list[HeldOut]] = []
            for name, part in pairs:
                free = [
                    (color, background)
                    for color, background in itertools.product(self.colors, self.backgrounds)
                    if self.code.split(name, color, background, part) == split
                ]
                free.sort(key=lambda pair, a=name, b=part: sha256(f"{a}|{b}|{pair[0]}|{pair[1]}".encode()).digest())
                queues.append([HeldOut(name, part, color, background, split) for color, background in free])
            for turn in itertools.zip_longest(*queues):
                yield from (case for case in turn if case is not None)


def world(name: str) -> World:
    """The record of a world. Raises ValueError for an unknown name."""
    return WORLDS[name]
