"""The picture world: small procedural pictures with exact labels.

A :class:`Scene` names an object, its colour, the parts that are drawn on it, a background, a style and a seed.
:func:`render` draws it. The seed alone decides placement, size, flip and small changes of shape, so scenes that differ
only in their parts give pictures that differ only where those parts are.

Objects and parts are drawn in object units: the object fills about [-1, 1] x [-1, 1], y points down. Objects offer
anchors (top, base, front, sides), and every part has one routine that draws it at an anchor: a part word means the same
thing on every object, typical or not.
"""

from ..worlds import World
from .render import background_only, part_mask, render
from .scenes import allowed_extras, caption, sample_scene, split, training_pair
from .strange import Strange, strange
from .words import (
    BACKGROUND_PHRASE,
    BACKGROUNDS,
    CAPTION_KINDS,
    COLORS,
    OBJECTS,
    PARTS,
    PRIOR,
    SPLITS,
    STYLES,
    TYPICAL,
    VOCABULARY,
    Scene,
)

WORLD = World(
    name="pictures",
    module=__name__,
    size=64,
    frames=None,
    typical=TYPICAL,
    parts=PARTS,
    colors=tuple(COLORS),
    backgrounds=BACKGROUNDS,
    styles=STYLES,
    words={
        "Parts": PARTS,
        "Things": OBJECTS,
        "Colours": tuple(COLORS),
        "Places": tuple(BACKGROUND_PHRASE.values()),
        "Looks": ("plain", *STYLES[1:]),
    },
    vocabulary=VOCABULARY,
    alike=(frozenset(("smoke", "steam")),),
    oracle="vsf.demo.oracle:load_oracle",
    cases="demo",
)

__all__ = [
    "WORLD", "BACKGROUNDS", "BACKGROUND_PHRASE", "CAPTION_KINDS", "COLORS", "OBJECTS", "PARTS", "PRIOR", "SPLITS", "STYLES",
    "TYPICAL", "VOCABULARY", "Scene", "Strange", "allowed_extras", "background_only", "caption", "part_mask", "render",
    "sample_scene", "split", "strange", "training_pair",
]  # fmt: skip
