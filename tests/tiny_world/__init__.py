"""A world as small as one can be, as a package of somebody else's would bring it: words, scenes, cases and an oracle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsf.demo.worlds import World

FOLDER = Path(__file__).parent
COLORS = {"teal": (0, 120, 120), "beige": (230, 220, 180)}
TYPICAL = {"kite": ("tail", "bow"), "lamp": ("shade", "cord"), "well": ("bucket",)}
PARTS = tuple(sorted(part for parts in TYPICAL.values() for part in parts))
BACKGROUNDS = ("shed", "loft")


@dataclass(frozen=True)
class Scene:
    """One picture."""

    object: str
    color: str
    parts: tuple[str, ...]
    background: str
    style: str
    seed: int


def render(scene: Scene, size: int = 16) -> NDArray[np.uint8]:
    """A patch of the object's colour, and a bright column for every part."""
    picture = np.full((size, size, 3), 40, np.uint8)
    picture[size // 4 :, size // 4 :] = COLORS[scene.color]
    for part in scene.parts:
        picture[:, PARTS.index(part) * size // len(PARTS)] = 255
    return picture


def split(object: str, color: str, background: str, part: str = "") -> str:
    """All of beige is held out."""
    return "train" if color == "teal" else "dev" if object == "kite" else "test"


def allowed_extras(object: str) -> tuple[str, ...]:
    """Every part of another object."""
    return tuple(part for part in PARTS if part not in TYPICAL[object])


def caption(scene: Scene, kind: str, rng: np.random.Generator, background: bool, style: bool) -> str:
    """What is drawn, in the order that a caption says it."""
    parts = "" if kind == "bare" or not scene.parts else " with " + " and ".join(scene.parts)
    plain = "plain " if kind == "exact" and not scene.parts else ""
    return f"a {plain}{scene.color} {scene.object}{parts}" + (f" in a {scene.background}" if background else "")


def training_pair(rng: np.random.Generator) -> list[tuple[Scene, str]]:
    """A scene with its parts, and without them."""
    name = str(rng.choice(list(TYPICAL)))
    some = [Scene(name, "teal", parts, "shed", "flat", 0) for parts in (tuple(sorted(TYPICAL[name])), ())]
    return [(scene, caption(scene, "exact", rng, True, False)) for scene in some]


class Oracle:
    """It always sees a beige lamp; a part is there where its column is bright."""

    threshold, fingerprint = 0.25, "lamp"

    def read(self, images: NDArray[Any], batch: int = 256) -> Any:
        bright = np.asarray(images).astype(float).mean((1, 3)) / 255
        at = {part: i * bright.shape[1] // len(PARTS) for i, part in enumerate(PARTS)}
        n = len(bright)
        return SimpleNamespace(
            objects=["lamp"] * n,
            colors=["beige"] * n,
            quality=np.full(n, 0.75, np.float32),
            part=lambda name: bright[:, at[name]],
            has=lambda name: bright[:, at[name]] >= 0.5,
        )


def load_oracle(folder: str | Path | None = None) -> Oracle:
    """The only one."""
    return Oracle()


WORLD = World(
    name="attic",
    module=__name__,
    size=16,
    frames=None,
    typical=TYPICAL,
    parts=PARTS,
    colors=tuple(COLORS),
    backgrounds=BACKGROUNDS,
    styles=("flat",),
    words={
        "Parts": PARTS,
        "Things": tuple(TYPICAL),
        "Colours": tuple(COLORS),
        "Places": tuple(f"in a {where}" for where in BACKGROUNDS),
        "Looks": ("plain",),
    },
    vocabulary=tuple(sorted({"a", "an", "and", "in", "plain", "with", *PARTS, *TYPICAL, *COLORS, *BACKGROUNDS})),
    alike=(frozenset(("cord", "tail")),),
    oracle=f"{__name__}:load_oracle",
    cases=str(FOLDER / "attic.jsonl"),
)
