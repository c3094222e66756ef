"""The picture world, moving: the same scenes, captions and splits, drawn as clips.

What moves is never said: a bike rolls, smoke rises, a flag waves, snow falls, a boat rocks. The scene's seed decides how far
and from which phase, so scenes that differ only in their parts give clips that differ, frame by frame, only where those
parts are. Every part that is drawn is there in every frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..pictures import WORLD as PICTURES
from ..pictures import Scene, allowed_extras, caption, sample_scene, split, training_pair
from ..pictures import part_mask as mask_of_moment
from ..pictures import render as moment_of
from .motion import FRAMES, Moment

__all__ = [
    "FRAMES", "WORLD", "Moment", "Scene", "allowed_extras", "caption", "part_mask", "render", "sample_scene", "split",
    "training_pair",
]  # fmt: skip

WORLD = replace(PICTURES, name="clips", module=__name__, frames=FRAMES)


def render(scene: Scene, size: int = 64, frames: Sequence[int] = range(FRAMES)) -> np.ndarray:
    """Draw some frames of a scene, uint8 [T, size, size, 3]. Raises ValueError if `size` is below 16."""
    return np.stack([moment_of(scene, size, Moment(scene, frame)) for frame in frames])


def part_mask(scene: Scene, size: int = 64, frames: Sequence[int] = range(FRAMES)) -> np.ndarray:
    """Pixels that change when a part is toggled, as in `vsf.demo.pictures.part_mask`; bool [T, size, size] for some frames."""
    return np.stack([mask_of_moment(scene, size, Moment(scene, frame)) for frame in frames])
