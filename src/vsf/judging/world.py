"""Labels without end that are true by construction: pictures of a demo world, whole, lacking a part, and damaged.

What a picture shows is known because it was drawn so. Two thirds are whole pictures with and without the part that is
asked about; the hard third is where a judge of absence goes wrong: the part half cut away, the object warped, blurred
or full of noise, and the object destroyed or gone. What is true of these:

- "half removed": 30 to 55 % of the part's pixels show what is behind it. The part is there: what was asked is whether it is
  missing, not whether it is whole.
- "distorted": up to where it can still be recognised. What is drawn is there and what is not is missing, as before.
- "object gone": the background alone, or the object destroyed beyond recognition. There is no object and no part; every
  part of it is missing.

Nothing that a model drew is among them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bench.judges.base import png_of
from ..bench.taken import questions
from ..demo.worlds import FIRST, World, world
from ..grammar import unknown
from .labels import DAMAGE, Label, Labels, seen

__all__ = ["KINDS", "Drawn", "collected", "world_labels"]

KINDS = DAMAGE[1:]
"""What can be the matter with a picture."""
_SHARES = {"intact": 1 / 3, "missing": 1 / 3, "half removed": 1 / 9, "distorted": 1 / 9, "object gone": 1 / 9}
#: Ways to distort, with strengths (see `vsf.demo.oracle.distort`) at which all is still there, and at which nothing is.
_DISTORTED = {"warp": (0.12, 0.3), "blur": (0.12, 0.26), "noise": (0.12, 0.32)}
#: One after the other: tiles in another order are still tiles of wheels, and a torn castle still has its flag.
_DESTROYED = (("shuffle", "blur"), ("shuffle", "warp", "noise"), ("blur", "warp"), ("blur", "shuffle"))
_DESTROYED_BY = {"shuffle": (1.0, 1.0), "blur": (0.7, 1.0), "warp": (0.8, 1.0), "noise": (0.3, 0.8)}
_CUT = (0.3, 0.55)
_LEAST = 8  # pixels of a part, at 64 pixels a side, by which it can be seen
_TRIES = 1000


@dataclass(frozen=True)
class Drawn:
    """One picture and all that is asked about it.

    Attributes:
        pixels: uint8 [H, W, 3].
        png: the same as a file; `Label.image` is its hash.
        labels: one of each kind: object, missing, kept.
        scene: what was drawn, before any damage.
        there: the parts that are there.
    """

    pixels: NDArray[np.uint8]
    png: bytes
    labels: tuple[Label, ...]
    scene: Any
    there: frozenset[str]


def world_labels(
    count: int | None = None,
    seed: int = 0,
    *,
    objects: Sequence[str] | None = None,
    kinds: Sequence[str] = KINDS,
    split: str | None = None,
    of: World | str = FIRST,
    size: int | None = None,
    start: int = 0,
    balanced: bool = False,
) -> Iterator[Drawn]:
    """Draw pictures and say what is true of them. Picture i depends on the seed and i alone.

    Every picture has three questions: for the object in its colour (as often for another one, which is not there), whether a
    part is missing from it, and whether a part can be seen. Yes and no are about as frequent.

    Args:
        count: of pictures; None goes on for ever.
        objects: which are drawn, and named in questions; all by default.
        kinds: what is the matter with pictures, some of `KINDS`.
        split: only combinations of object, colour and background of this split of the world ("train", "dev", "test").
        size: pixels a side; by default what the world's oracle reads.
        start: the first picture's number, to go on where one stopped.
        balanced: ask about every part of the world alike, typical or not; else mostly about parts that belong to the object.

    Raises:
        ValueError: an unknown object, kind, split or world, or a world that moves.
    """
    of = world(of) if isinstance(of, str) else of
    objects = of.objects if objects is None else tuple(objects)
    for what, given, allowed in (("object", objects, of.objects), ("kind of damage", kinds, KINDS)):
        if wrong := [name for name in given if name not in allowed]:
            raise ValueError(unknown(what, wrong[0], allowed))
        if not given:
            raise ValueError(f"at least one {what} is needed; allowed: {', '.join(allowed)}")
    if split not in (None, "train", "dev", "test"):
        raise ValueError(unknown("split", split, ("train", "dev", "test")))
    if of.frames is not None:
        raise ValueError(f"the world {of.name} moves; labels are of pictures")
    numbers = itertools.count(start) if count is None else range(start, start + count)
    return (
        _draw(of, np.random.default_rng([seed, i]), objects, kinds, split, size or of.size, balanced) for i in numbers
    )


def collected(drawn: Iterable[Drawn], source: str = "") -> Labels:
    """All of these as `Labels`."""
    every = list(drawn)
    images = {one.labels[0].image: one.png for one in every}
    return Labels([label for one in every for label in one.labels], images, [source] if source else [])


def _draw(
    of: World, rng: np.random.Generator, objects: Sequence[str], kinds: Sequence[str], split: str | None, size: int,
    balanced: bool,
) -> Drawn:  # fmt: skip
    shares = np.array([_SHARES[kind] for kind in kinds])
    kind = str(rng.choice(list(kinds), p=shares / shares.sum()))
    for _ in range(_TRIES):
        scene, part = _scene(of, rng, objects, split, kind, balanced)
        whole = of.code.render(scene, size)
        mask = _mask(of, scene, part, whole, size) if part in scene.parts else None
        if mask is None or mask.sum() * (64 / size) ** 2 >= _LEAST:
            break
    else:
        raise ValueError(f"no picture of {', '.join(objects)} in split {split} shows the part that it is asked about")
    pixels = _damaged(of, rng, scene, part, kind, whole, mask, size)
    png = png_of(_image(pixels))
    image, gone = sha256(png).hexdigest(), kind == "object gone"
    there = frozenset() if gone else frozenset(scene.parts)

    def label(question: str, asks: str, answer: bool, item: str) -> Label:
        return Label(
            image, question, asks, answer, "world", group=scene.object, category=f"{scene.object}/{part}", damage=kind,
            item=item,
        )  # fmt: skip

    # Asked for: what is drawn, or (as often) another colour or another object.
    name, color = scene.object, scene.color
    if rng.random() < 0.5 - 0.5 * gone / 2:
        others = [o for o in objects if o != name]
        if others and rng.random() < 0.5:
            name = str(rng.choice(others))
        else:
            color = str(rng.choice([c for c in of.colors if c != color]))
    ask_object, ask_part = questions(of, name, color, part)[0], questions(of, scene.object, scene.color, part)[1]
    right = not gone and (name, color) == (scene.object, scene.color)
    kept = _other(of, rng, scene, part)
    labels = (
        label(ask_object, "object", right, f"{color} {name}"),
        label(ask_part, "missing", part not in there, part),
        label(seen(kept), "kept", kept in there, kept),
    )
    return Drawn(pixels, png, labels, scene, there)


def _scene(
    of: World, rng: np.random.Generator, objects: Sequence[str], split: str | None, kind: str, balanced: bool
) -> tuple[Any, str]:
    """A scene, and the part that is asked about: mostly one that belongs to the object, or `balanced`."""
    wanted = None
    if balanced:
        able = {
            part: [o for o in objects if part in of.typical[o] or part in of.code.allowed_extras(o)]
            for part in of.parts
        }
        wanted = str(rng.choice([part for part in of.parts if able[part]]))
        objects = able[wanted]
    for _ in range(_TRIES):
        name, color, background = (str(rng.choice(list(some))) for some in (objects, of.colors, of.backgrounds))
        if split is None or of.code.split(name, color, background) == split:
            break
    else:
        raise ValueError(f"no combination of {', '.join(objects)} with colour and background is of split {split}")
    extras = of.code.allowed_extras(name)
    part = wanted or str(rng.choice(list(extras if extras and rng.random() < 0.25 else of.typical[name])))
    parts = {other for other in of.typical[name] if other != part and rng.random() < 0.6}
    if kind in ("intact", "half removed") or (kind in ("distorted", "object gone") and rng.random() < 0.5):
        parts.add(part)
    parts -= frozenset().union(*(group for group in of.alike if part in group)) - {part}
    style = str(rng.choice(list(of.styles)))
    return of.code.Scene(name, color, tuple(sorted(parts)), background, style, int(rng.integers(2**31))), part


def _other(of: World, rng: np.random.Generator, scene: Any, part: str) -> str:
    """The part of which is asked whether it can be seen: as often one that is drawn as one that is not."""
    typical = [name for name in of.typical[scene.object] if name != part]
    drawn = [name for name in (*typical, part) if name in scene.parts]
    if drawn and rng.random() < 0.65:
        return str(rng.choice(drawn))
    absent = [name for name in (*typical, part) if name not in scene.parts]
    if absent and rng.random() < 0.6:
        return str(rng.choice(absent))
    alike = frozenset().union(*(group for group in of.alike if group & set(scene.parts)))
    return str(rng.choice([name for name in of.parts if name not in scene.parts and name not in alike]))


def _mask(of: World, scene: Any, part: str, whole: NDArray[np.uint8], size: int) -> NDArray[np.bool_]:
    """Pixels [H, W] that show a part: those that change when it is taken away."""
    return (of.code.render(_without(scene, part), size) != whole).any(-1)


def _without(scene: Any, part: str) -> Any:
    return replace(scene, parts=tuple(name for name in scene.parts if name != part))


def _damaged(
    of: World, rng: np.random.Generator, scene: Any, part: str, kind: str, whole: NDArray[np.uint8],
    mask: NDArray[np.bool_] | None, size: int,
) -> NDArray[np.uint8]:  # fmt: skip
    if kind == "half removed":
        assert mask is not None
        behind = of.code.render(_without(scene, part), size)
        angle, share = rng.uniform(0, 2 * np.pi), rng.uniform(*_CUT)
        y, x = np.nonzero(mask)
        order = np.argsort(np.cos(angle) * x + np.sin(angle) * y, kind="stable")[: round(share * len(x))]
        halved = whole.copy()
        halved[y[order], x[order]] = behind[y[order], x[order]]
        return halved
    if kind not in ("distorted", "object gone"):
        return whole
    from ..demo.oracle import distort

    empty = of.code.background_only(scene, size) if hasattr(of.code, "background_only") else None
    if kind == "object gone" and empty is not None and rng.random() < 0.4:
        return empty
    if kind == "distorted":
        ways, between = (str(rng.choice(list(_DISTORTED))),), _DISTORTED
    else:
        ways, between = _DESTROYED[int(rng.integers(len(_DESTROYED)))], _DESTROYED_BY
    broken = whole[None].copy()
    for how in ways:
        broken = distort(broken, how, float(rng.uniform(*between[how])), int(rng.integers(2**31)))
    broken = np.round(broken[0] * 255).astype(np.uint8)
    if empty is None or kind == "object gone" or rng.random() < 0.4:
        return broken
    # The object alone: its pixels, and where they may have been moved or smeared to.
    region = (whole != empty).any(-1) | (np.abs(broken.astype(int) - empty).max(-1) > 60) * (ways == ("warp",))
    return np.where(_grown(region, max(1, round(size / 32)))[..., None], broken, whole)


def _grown(region: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """A region [H, W] and everything within `by` pixels of it, along the axes."""
    from scipy import ndimage

    return np.asarray(ndimage.binary_dilation(region, iterations=by), dtype=np.bool_)


def _image(pixels: NDArray[np.uint8]) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)
