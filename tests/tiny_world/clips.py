"""The same world, moving."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from . import FOLDER, Scene, allowed_extras, caption, split, training_pair
from . import WORLD as STILL
from . import render as still

__all__ = ["WORLD", "Scene", "allowed_extras", "caption", "render", "split", "training_pair"]


def render(scene: Scene, size: int = 16) -> NDArray[np.uint8]:
    """Its picture, moving to the right by a pixel a frame."""
    return np.stack([np.roll(still(scene, size), t, 1) for t in range(5)])


WORLD = replace(
    STILL,
    name="kites",
    module=__name__,
    frames=5,
    vocabulary=tuple(sorted({*STILL.vocabulary, "moving"})),
    words={**STILL.words, "Looks": ("plain", "moving")},
    cases=str(FOLDER / "kites.jsonl"),
)
