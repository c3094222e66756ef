"""Where and how strongly the negative acted: what is recorded while a sampler runs, and the map drawn of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vsf.core.suppression import Suppression, on_grid

__all__ = ["POSITIVE", "Record", "at_each_point", "draw", "grid_of", "of_picture", "suppression"]

#: ComfyUI's number for the positive prompt in `cond_or_uncond`.
POSITIVE = 0

#: A colour scale that is dark at 0 and reads the same in grey, as rows of RGB.
SCALE = (
    (0.0, 0.0, 0.02),
    (0.24, 0.06, 0.44),
    (0.55, 0.16, 0.5),
    (0.87, 0.29, 0.41),
    (0.99, 0.6, 0.43),
    (0.99, 0.99, 0.75),
)


@dataclass
class Record:
    """w, the share of attention that goes to the negative, of the last sampling: `share[step, block]` is `[B, S]`.

    Where several positive conditionings make one picture (regional prompts, Conditioning Combine), w is averaged as
    ComfyUI averages what the model predicts for each: `sum mult w / sum mult`, at each point of the latent, so that S is
    the number of its points there. `parts` says by its id which area of the latent a conditioning is for (None: all), and
    `mult`, its weight there; it is empty where there is one for the whole picture.
    """

    on: bool = False
    size: tuple[int, ...] = ()  # of the latent: B, C, (frames,) height, width
    share: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    parts: dict[Any, tuple[list[int] | None, Tensor]] = field(default_factory=dict)
    sums: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def begin(self, model: Any, positive: Any, x: Tensor, sigma: Tensor, options: Any) -> None:
        """Read, as ComfyUI is about to, which conditionings are for which part of the latent `x`."""
        from comfy import samplers  # pyright: ignore[reportMissingImports]

        self.size = tuple(of_picture(model, x).shape)
        self.parts.clear()
        self.sums.clear()
        if len(positive or ()) == 1 and not {"area", "mask"} & set(positive[0]):
            return
        here: dict[Any, list[Any]] = {}
        for cond in positive or ():
            part = None if "default" in cond else samplers.get_area_and_mult(cond, x, sigma)
            if part is not None:
                here.setdefault(part.hooks, []).append((part, POSITIVE))
        rest = [cond for cond in positive or () if "default" in cond]
        if rest:  # these are for what the others leave over
            samplers.finalize_default_conds(model, here, [rest], x, sigma, options)
        for group in here.values():
            self.parts |= {
                part.uuid: (part.area, of_picture(model, part.mult)[:, 0].float().cpu()) for part, _ in group
            }

    def add(self, step: int, site: int, w: Tensor, ids: list[Any]) -> None:
        """Take in w `[conditionings B, S]` of one attention; `ids` says whose."""
        if not self.parts:
            self.share[step, site] = w
            return
        space = self.size[2:]
        if (step, site) not in self.sums:
            self.sums[step, site] = torch.zeros(self.size[0], *space), torch.zeros(self.size[0], *space)
        for own, name in zip(w.chunk(len(ids)), ids, strict=True):
            area, mult = self.parts[name]
            where = (
                tuple(slice(a, a + n) for n, a in zip(area[: len(space)], area[len(space) :], strict=True))
                if area
                else ()
            )
            total, weight = (x[(slice(None), *where)] for x in self.sums[step, site])
            total += mult * at_each_point(own, tuple(total.shape[1:]))
            weight += mult
        total, weight = self.sums[step, site]
        self.share[step, site] = (total / weight.clamp_min(1e-37)).flatten(1)


def of_picture(model: Any, x: Tensor) -> Tensor:
    """The picture's part of a latent, or of weights of one, which ComfyUI packs with the sound's into one row."""
    shapes = getattr(model, "latent_shapes", None) or ()
    if len(shapes) < 2:
        return x
    shape = shapes[0][1:]
    return x.flatten(1)[:, : math.prod(shape)].unflatten(1, shape)


def grid_of(model: Any, size: tuple[int, ...]) -> tuple[int, ...] | None:
    """How many tokens a latent of this size has along each axis; None if the model has no patch size, or one of another
    number of axes."""
    patch = getattr(model, "patch_size", getattr(model, "patch", None))
    if patch is None:
        return None
    each = (patch, patch) if isinstance(patch, int) else tuple(patch)
    if len(each) > len(size):
        return None
    each = (1,) * (len(size) - len(each)) + each
    return tuple(-(-n // p) for n, p in zip(size, each, strict=True))


def at_each_point(w: Tensor, size: tuple[int, ...]) -> Tensor:
    """w of image tokens `[B, S]` at the points of the latent that they stand for, `[B, *size]`."""
    w = on_grid(w, size)  # [B, frames, h, w]
    frames, *plane = size if len(size) == 3 else (1, *size)
    for dim, points in enumerate((frames, *plane), 1):
        w = w.repeat_interleave(-(-points // w.shape[dim]), dim).narrow(dim, 0, points)
    return w if len(size) == 3 else w[:, 0]


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
    size = record.size[2:]  # of the latent: (frames,) height, width
    return Suppression(record.share, size if len(size) == 3 else (1, *size)).map(
        None if step < 0 else step, None if block < 0 else block
    )


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
