"""Which sizes a model draws: known before anything is drawn, from its own configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["Sizes", "sizes_of"]

#: How the pipelines name the pixels per latent along a side.
_SCALES = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_scale_factor")


@dataclass(frozen=True)
class Sizes:
    """The sides of a picture that a model takes, in pixels: multiples of `multiple` up to `longest`."""

    multiple: int = 1
    longest: int = 8192

    def __str__(self) -> str:
        return f"multiples of {self.multiple} up to {self.longest} pixels a side"

    def takes(self, size: tuple[int, int]) -> bool:
        """Whether a (width, height) is taken."""
        return all(0 < side <= self.longest and side % self.multiple == 0 for side in size)

    def check(self, size: tuple[int, int] | None, who: str = "this model") -> None:
        """Refuse a (width, height) that is not taken; None is the model's own size.

        Raises:
            ValueError: it is not; the message names what is allowed.
        """
        if size is not None and not self.takes(size):
            raise ValueError(f"size is {size[0]}x{size[1]}; {who} takes {self}")


def sizes_of(pipe: Any) -> Sizes:
    """The sizes a loaded pipeline takes; any size for one whose model has no family here."""
    from .arch import UnsupportedModel, find_models, unwrap

    try:
        model, family = find_models(pipe)[0]
    except UnsupportedModel:
        return Sizes()
    scale = next((int(value) for name in _SCALES if (value := getattr(pipe, name, None))), 1)
    model = unwrap(model)
    multiple = math.lcm(scale * family.stride(model), family.pixels)
    longest = family.longest(model)
    side = Sizes().longest if longest is None else longest * scale * family.stride(model)
    return Sizes(multiple, side // multiple * multiple)
