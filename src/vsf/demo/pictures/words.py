"""The words of the picture world and what a scene is. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

RGB = tuple[int, int, int]

COLORS: dict[str, RGB] = {
    "red": (220, 40, 44),
    "orange": (248, 136, 24),
    "yellow": (252, 216, 48),
    "green": (38, 150, 72),
    "blue": (44, 98, 218),
    "purple": (132, 62, 188),
    "pink": (250, 146, 196),
    "brown": (124, 76, 44),
}
BACKGROUND_PHRASE = {
    "grass": "on grass",
    "sand": "on sand",
    "night": "at night",
    "sea": "by the sea",
    "city": "in the city",
    "room": "in a room",
}
BACKGROUNDS: tuple[str, ...] = tuple(BACKGROUND_PHRASE)
STYLES: tuple[str, ...] = ("flat", "outlined", "cutout")
TYPICAL: dict[str, tuple[str, ...]] = {
    "bike": ("basket", "wheels"),
    "boat": ("flag", "sail"),
    "cake": ("candles", "heart"),
    "car": ("wheels", "windows"),
    "castle": ("flag", "windows"),
    "cat": ("scarf",),
    "face": ("glasses", "hat"),
    "flower": ("leaves",),
    "house": ("chimney", "windows"),
    "mountain": ("snow",),
    "mug": ("heart", "steam"),
    "plane": ("windows", "wings"),
    "robot": ("antenna", "buttons"),
    "snowman": ("hat", "scarf"),
    "table": ("candles", "cards"),
    "train": ("smoke", "wheels"),
    "tree": ("apples",),
}
OBJECTS: tuple[str, ...] = tuple(TYPICAL)
PART_PHRASE = {
    "antenna": "an antenna",
    "apples": "apples",
    "basket": "a basket",
    "buttons": "buttons",
    "candles": "candles",
    "cards": "cards",
    "chimney": "a chimney",
    "flag": "a flag",
    "glasses": "glasses",
    "hat": "a hat",
    "heart": "a heart",
    "leaves": "leaves",
    "sail": "a sail",
    "scarf": "a scarf",
    "smoke": "smoke",
    "snow": "snow",
    "steam": "steam",
    "wheels": "wheels",
    "windows": "windows",
    "wings": "wings",
}
PARTS: tuple[str, ...] = tuple(PART_PHRASE)
PRIOR = 0.8
SPLITS: tuple[str, ...] = ("train", "dev", "test")
CAPTION_KINDS: tuple[str, ...] = ("exact", "bare", "mention", "part", "empty")
VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {"a", "an", "and", "plain", "with", *OBJECTS, *COLORS, *PARTS, *STYLES[1:]}
        | {word for phrase in BACKGROUND_PHRASE.values() for word in phrase.split()}
    )
)


@dataclass(frozen=True)
class Scene:
    """One picture of the demo world.

    Attributes:
        object: a name in ``OBJECTS``, or None to draw the parts alone, large.
        color: a name in ``COLORS``, the colour of the object's body.
        parts: the parts that are drawn, sorted, from ``PARTS``.
        background: a name in ``BACKGROUNDS``.
        style: a name in ``STYLES``.
        seed: decides placement, size, flip and small changes of shape, and nothing else.

    Raises:
        ValueError: for an unknown name, unsorted or repeated parts, or no object and no part.
    """

    object: str | None
    color: str
    parts: tuple[str, ...]
    background: str
    style: str
    seed: int

    def __post_init__(self) -> None:
        if self.object is not None:
            check("object", self.object, OBJECTS)
        check("color", self.color, tuple(COLORS))
        check("background", self.background, BACKGROUNDS)
        check("style", self.style, STYLES)
        for part in self.parts:
            check("part", part, PARTS)
        if tuple(sorted(set(self.parts))) != self.parts:
            raise ValueError(f"parts must be a sorted tuple without repeats, got {self.parts!r}")
        if self.object is None and not self.parts:
            raise ValueError("a scene without an object needs at least one part")


def check(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(allowed)}")
