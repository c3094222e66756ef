"""Which scenes there are, and what is said of them: splits, captions, training rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from .objects import DRAW_OBJECT
from .parts import CLASH, slot_of
from .pen import Pen
from .words import (
    BACKGROUND_PHRASE,
    BACKGROUNDS,
    CAPTION_KINDS,
    COLORS,
    OBJECTS,
    PART_PHRASE,
    PARTS,
    PRIOR,
    SPLITS,
    STYLES,
    TYPICAL,
    Scene,
    check,
)  # fmt: skip


@lru_cache(maxsize=64)
def allowed_extras(object: str) -> tuple[str, ...]:
    """The parts that are not typical of ``object`` and can be drawn on it clear of its typical parts.

    Raises:
        ValueError: for an unknown object.
    """
    check("object", object, OBJECTS)
    typical = TYPICAL[object]
    taken = {slot_of(object, part) for part in typical}
    anchors = DRAW_OBJECT[object](Pen(), (0, 0, 0), (0.0, 0.0, 0.0))
    return tuple(
        part
        for part in PARTS
        if part not in typical
        and part not in CLASH.get(object, ())
        and slot_of(object, part) not in taken
        and slot_of(object, part) in anchors
    )


def split(object: str, color: str, background: str, part: str = "") -> str:
    """Which split a combination belongs to: about 70 % "train", 15 % "dev", 15 % "test".

    Whole (object, color, background) triples are held out, whatever the part: a held-out case was never seen
    in training in any form.  The hash is stable across processes and platforms.
    """
    check("object", object, OBJECTS)
    check("color", color, tuple(COLORS))
    check("background", background, BACKGROUNDS)
    if part:
        check("part", part, PARTS)
    share = hashlib.sha256(f"{object}|{color}|{background}".encode()).digest()[0] / 256
    return "test" if share < 0.15 else "dev" if share < 0.30 else "train"


def caption(scene: Scene, kind: str, rng: np.random.Generator, background: bool, style: bool) -> str:
    """A caption that is true of the scene.

    A mentioned part is drawn.  "plain" means that no typical part is drawn beyond the mentioned ones.

    Args:
        scene: the scene described.
        kind: "exact" names every drawn part, and says "plain" where a typical part is missing (sometimes also
            where none is); "bare" names no part; "mention" names every extra and at least one part if any is
            drawn, and leaves the other typical parts open; "part" is one drawn part's bare word; "empty" "".
            Scenes without an object give their part words, whatever the kind ("empty" excepted).
        rng: order of the parts and free choices.
        background: also name the background ("on grass").
        style: also name the style; "flat" has no word.

    Raises:
        ValueError: for an unknown kind, "bare" with an extra drawn, or "part" without any part.
    """
    check("kind of caption", kind, CAPTION_KINDS)
    if kind == "empty":
        return ""
    where = " " + BACKGROUND_PHRASE[scene.background] if background else ""
    adjective = [scene.style] if style and scene.style != "flat" else []
    order = [scene.parts[i] for i in rng.permutation(len(scene.parts))]
    if scene.object is None:
        return " ".join([*adjective, " and ".join(order)]) + where
    if kind == "part":
        if not order:
            raise ValueError("a caption of kind 'part' needs a scene with a part")
        return " ".join([*adjective, order[0]]) + where
    typical = TYPICAL[scene.object]
    plain = False
    if kind == "bare":
        if any(part not in typical for part in order):
            raise ValueError(f"a caption of kind 'bare' cannot leave out the extra parts of {scene.parts}")
        order = []
    elif kind == "mention":
        named = [part for part in order if part not in typical or rng.random() < 0.3]
        order = named or order[:1]
    else:
        plain = not set(typical) <= set(order) or rng.random() < 0.2
    words = [*(["plain"] if plain else []), *adjective, scene.color, scene.object]
    article = "an" if words[0][0] in "aeiou" else "a"
    parts = " with " + " and ".join(PART_PHRASE[part] for part in order) if order else ""
    return f"{article} {' '.join(words)}{parts}{where}"


def _pick(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def sample_scene(
    rng: np.random.Generator,
    object: str | None = None,
    parts: Sequence[str] | None = None,
    split_name: str | None = "train",
) -> Scene:
    """A random scene of a split.

    Args:
        rng: source of every choice.
        object: the object; a random one if None.
        parts: the parts; if None each typical part is drawn with probability ``PRIOR`` and nothing else.
        split_name: "train", "dev" or "test", or None for any.

    Raises:
        ValueError: for an unknown object, part or split.
    """
    if split_name is not None:
        check("split", split_name, SPLITS)
    if object is not None:
        check("object", object, OBJECTS)
    while True:
        name, color, background = (
            object or _pick(rng, OBJECTS),
            _pick(rng, tuple(COLORS)),
            _pick(rng, BACKGROUNDS),
        )
        if split_name is None or split(name, color, background) == split_name:
            break
    if parts is None:
        parts = [part for part in TYPICAL[name] if rng.random() < PRIOR]
    style = STYLES[int(rng.choice(3, p=(0.5, 0.25, 0.25)))]
    return Scene(name, color, tuple(sorted(set(parts))), background, style, int(rng.integers(2**31)))


def training_pair(rng: np.random.Generator) -> list[tuple[Scene, str]]:
    """One or two (scene, caption) rows of the training split that share their seed.

    - 55 %: an antithetic pair, the same scene with a set A of its typical parts and with the rest of them;
      half of the time with one extra part on one row or on both, captions exact.
    - 27 %: a caption that leaves typical parts open (drawn with ``PRIOR``); a third of these name a part,
      half of those an extra.
    - 12 %: a whole object captioned with one part's bare word.
    - 6 %: one part alone.

    10 % of the rows get the empty caption.  Bare words apart, 40 % of the captions name the background and
    about 15 % the style.
    """
    u = rng.random()
    scene = sample_scene(rng)
    name = scene.object
    assert name is not None
    typical = TYPICAL[name]
    extras = allowed_extras(name)
    rows: list[tuple[Scene, str]]
    if u < 0.55:
        kept = {part for part in typical if rng.random() < 0.5}
        sets = [kept, set(typical) - kept]
        if rng.random() < 0.5:
            extra = _pick(rng, extras)
            which = int(rng.integers(4))  # 0, 1: on that row; 2, 3: on both
            for i in range(2):
                if which >= 2 or which == i:
                    sets[i] = sets[i] | {extra}
        rows = [(replace(scene, parts=tuple(sorted(s))), "exact") for s in sets]
    elif u < 0.82:
        v = rng.random()
        if v < 1 / 6:
            scene = replace(scene, parts=tuple(sorted({*scene.parts, _pick(rng, extras)})))
        elif v < 1 / 3:
            scene = replace(scene, parts=tuple(sorted({*scene.parts, _pick(rng, typical)})))
        rows = [(scene, "mention" if v < 1 / 3 else "bare")]
    elif u < 0.94:
        part = _pick(rng, typical) if rng.random() < 0.7 else _pick(rng, extras)
        rows = [(replace(scene, parts=tuple(sorted({*scene.parts, part}))), f"part:{part}")]
    else:
        rows = [(replace(scene, object=None, parts=(_pick(rng, PARTS),)), "exact")]
    background = rng.random() < 0.4
    style = rng.random() < 0.3  # half of the pictures have a style with a word
    result = []
    for row, kind in rows:
        if rng.random() < 0.1:
            text = ""
        elif kind.startswith("part:"):
            text = kind.removeprefix("part:")
        else:
            text = caption(row, kind, rng, background, style)
        result.append((row, text))
    return result
