"""The suppression map as pictures: where and how strongly the negative acted."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .guide import Record

__all__ = ["draw", "suppression"]

#: A colour scale that is dark at 0 and reads the same in grey, as rows of RGB.
SCALE = (
    (0.0, 0.0, 0.02),
    (0.24, 0.06, 0.44),
    (0.55, 0.16, 0.5),
    (0.87, 0.29, 0.41),
    (0.99, 0.6, 0.43),
    (0.99, 0.99, 0.75),
)


def suppression(record: Record, step: int, block: int) -> Tensor:
    """w averaged over the recorded steps and blocks (or one of them, -1 = all), `[B, frames, h, w]` in 0..1.

    Raises:
        ValueError: nothing was recorded, or not for this step or block, or the tokens do not lie on a grid.
    """
    if not record.on:
        raise ValueError("nothing was recorded: switch on 'record' in the VSF Guidance node")
    if not record.share:
        raise ValueError(
            "nothing was recorded yet: connect the latent that the sampler made with the guided model, so that this "
            "node runs after it"
        )
    chosen = [w for (s, b), w in record.share.items() if step in (-1, s) and block in (-1, b)]
    if not chosen:
        steps, blocks = ({key[i] for key in record.share} for i in (0, 1))
        raise ValueError(
            f"nothing was recorded for step {step}, block {block}; recorded: steps {_span(steps)}, blocks {_span(blocks)}"
        )
    pictures = [_grid(w, record.size) for w in chosen]
    size = max((tuple(p.shape[1:]) for p in pictures), key=lambda s: s[1])
    resized = [F.interpolate(p[:, None].float(), size, mode="trilinear")[:, 0] for p in pictures]
    return torch.stack(resized).mean(0)


def _span(numbers: set[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}"


def _grid(w: Tensor, size: tuple[int, ...]) -> Tensor:
    """`[B, S]` on the grid of the latent `[..., (T,) H, W]` -> `[B, frames, h, w]`."""
    height, width = size[-2:]
    frames = size[2] if len(size) == 5 else 1
    for f in (frames, 1):  # the edges of an odd latent are padded
        tokens = w.shape[-1] // f
        for patch in range(1, max(height, width) + 1):
            h, wide = math.ceil(height / patch), math.ceil(width / patch)
            if f * h * wide == w.shape[-1]:
                return w.unflatten(-1, (f, h, wide))
            if h * wide < tokens:
                break
    # Reference pictures (Kontext, Edit) follow the picture's own tokens.
    for patch in (2, 1):
        own = math.ceil(height / patch) * math.ceil(width / patch)
        if own < w.shape[-1]:
            return w[:, :own].unflatten(-1, (1, math.ceil(height / patch), math.ceil(width / patch)))
    raise ValueError(f"{w.shape[-1]} image tokens do not lie on the grid of a latent of {height} x {width}")


def draw(share: Tensor, brightest: float, image: Tensor | None = None, strength: float = 0.6) -> Tensor:
    """The map as IMAGE `[B F, H, W, 3]`, in colours; over `image` `[B F, H, W, 3]` where one is given.

    `brightest` is the share drawn brightest; 0 = the largest that occurs.
    """
    flat = share.flatten(0, 1)
    top = brightest if brightest > 0 else float(flat.max())
    flat = (flat / max(top, 1e-12)).clamp(0, 1)
    if image is None:
        factor = max(1, 512 // max(flat.shape[-2:]))
        size = (flat.shape[-2] * factor, flat.shape[-1] * factor)
    else:
        size = (image.shape[1], image.shape[2])
    flat = F.interpolate(flat[:, None], size, mode="bilinear")[:, 0]
    table = torch.tensor(SCALE)
    place = flat * (len(table) - 1)
    low = place.floor().long().clamp(max=len(table) - 2)
    colours = torch.lerp(table[low], table[low + 1], (place - low)[..., None])
    if image is None:
        return colours
    image = image[..., :3].float().cpu()
    if len(colours) != len(image):  # a video's latent has fewer frames than its pictures
        colours = colours[torch.arange(len(image)) * len(colours) // len(image)]
        flat = flat[torch.arange(len(image)) * len(flat) // len(image)]
    return torch.lerp(image, colours, strength * flat[..., None].sqrt())
