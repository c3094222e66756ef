"""Ways to break a picture.

All on x [B, 3, S, S] in [0, 1] with strength [B] in [0, 1]; the same generator state gives nested damage: a larger
strength breaks what a smaller one broke, and more.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

#: Ways to break a picture, for :func:`distort`. The oracle never sees "pixelate" and "streak" in training.
DISTORTIONS = ("blur", "noise", "shuffle", "erase", "mix", "warp", "splice", "pixelate", "streak")
TRAINED = DISTORTIONS[:7]
_TILE = 8


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with one sigma in pixels per sample [B]."""
    b, c, h, w = x.shape
    radius = max(1, min(h - 1, math.ceil(2.5 * float(sigma.max()))))
    t = torch.arange(-radius, radius + 1, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (t / sigma.clamp_min(1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)[:, None]
    x = F.pad(x.reshape(1, b * c, h, w), (radius,) * 4, mode="reflect")
    x = F.conv2d(x, kernel[:, :, :, None], groups=b * c)
    return F.conv2d(x, kernel[:, :, None, :], groups=b * c).reshape(b, c, h, w)


def _tiles_to_pixels(tiles: Tensor, size: int) -> Tensor:
    n = math.isqrt(tiles.shape[1])
    return tiles.view(-1, n, n).repeat_interleave(size // n, 1).repeat_interleave(size // n, 2)


def break_up(x: Tensor, kind: str, strength: Tensor, gen: torch.Generator, other: Tensor) -> tuple[Tensor, Tensor]:
    """A distorted copy of ``x`` and the pixels [B, S, S] whose content was replaced outright."""
    b, _, size, _ = x.shape
    s = strength.view(b, 1, 1, 1)
    touched = torch.zeros(b, size, size, dtype=torch.bool)
    n = size // _TILE

    def rand(*shape: int) -> Tensor:
        return torch.rand(b, *shape, generator=gen)

    if kind == "blur":
        y = blur(x, 5 * strength)
    elif kind == "noise":
        y = x + 0.7 * s * torch.randn(x.shape, generator=gen)
    elif kind == "mix":
        y = x + 0.5 * s * (other - x)
    elif kind == "warp":
        field = torch.randn(b, 2, 6, 6, generator=gen)
        field = F.interpolate(field, (size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        line = torch.linspace(-1, 1, size)
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
        y = F.grid_sample(x, grid + 0.22 * s * field, padding_mode="reflection", align_corners=True)
    elif kind == "shuffle":
        rank = rand(n * n).argsort(1).argsort(1)
        chosen = rank < (strength[:, None] * n * n).round()
        # Each chosen tile takes the content of the next chosen one, in random order.
        order = rank.argsort(1)
        count = chosen.sum(1, keepdim=True).clamp_min(1)
        source = torch.where(chosen, order.gather(1, (rank + 1) % count), torch.arange(n * n).expand(b, -1))
        tiles = x.unfold(2, _TILE, _TILE).unfold(3, _TILE, _TILE).reshape(b, 3, n * n, _TILE * _TILE)
        tiles = tiles.gather(2, source[:, None, :, None].expand_as(tiles))
        y = tiles.view(b, 3, n, n, _TILE, _TILE).transpose(3, 4).reshape(x.shape)
        touched = _tiles_to_pixels(chosen, size)
    elif kind == "erase":
        centre, jitter = rand(1, 2) * n, rand(n * n)
        at = torch.stack(torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"), -1).view(1, n * n, 2) + 0.5
        rank = ((at - centre).norm(dim=2) + 2 * jitter).argsort(1).argsort(1)
        touched = _tiles_to_pixels(rank < (strength[:, None] * n * n).round(), size)
        flat = torch.where(rand(1, 1, 1) < 0.5, rand(3, 1, 1), x.mean((2, 3), keepdim=True))
        y = torch.where(touched[:, None], flat, x)
    elif kind == "splice":
        angle = rand(1, 1) * 2 * math.pi
        line = torch.linspace(-1, 1, size)
        side = (line[None, :, None] * angle.sin() + line[None, None, :] * angle.cos()).flatten(1)
        rank = side.argsort(1).argsort(1).view(b, size, size)
        touched = rank < (0.5 * strength * size * size)[:, None, None]
        y = torch.where(touched[:, None], other, x)
    elif kind == "pixelate":
        y = torch.stack(
            [
                F.interpolate(F.adaptive_avg_pool2d(one[None], max(4, round(size * 8 ** -float(v)))), size)[0]
                for one, v in zip(x, strength, strict=True)
            ]
        )
    elif kind == "streak":  # rows slide sideways
        shift = (torch.randn(b, size, generator=gen) * strength[:, None] * size / 4).round().long()
        index = (torch.arange(size)[None, None, :] + shift[:, :, None]) % size
        y = x.gather(3, index[:, None].expand_as(x))
    else:
        raise ValueError(f"unknown distortion {kind!r}; known: {', '.join(DISTORTIONS)}")
    return y.clamp(0, 1), touched


def distort(images: NDArray[Any], kind: str, strength: float, seed: int = 0) -> NDArray[np.float32]:
    """Break pictures: ``images`` [N, S, S, 3] (uint8, or float in [0, 1]) -> float32 of the same shape.

    ``strength`` runs from 0 (unchanged) to 1 (destroyed). "mix" and "splice" bring in the next picture of the batch.
    Equal seeds give nested damage. Raises ValueError for an unknown kind or a strength outside [0, 1].
    """
    if kind not in DISTORTIONS:
        raise ValueError(f"unknown distortion {kind!r}; known: {', '.join(DISTORTIONS)}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    x = to_tensor(images)
    gen = torch.Generator().manual_seed(seed)
    y, _ = break_up(x, kind, torch.full((len(x),), float(strength)), gen, x.roll(1, 0))
    return y.permute(0, 2, 3, 1).contiguous().numpy()


def to_tensor(images: NDArray[Any]) -> Tensor:
    a = np.asarray(images)
    if a.ndim != 4 or a.shape[3] != 3 or 0 in a.shape:
        raise ValueError(f"images must be [N, H, W, 3] with N, H, W >= 1, got shape {a.shape}")
    if a.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(a)).permute(0, 3, 1, 2).float() / 255
    if not np.issubdtype(a.dtype, np.floating):
        raise ValueError(f"images must be uint8 or float in [0, 1], got dtype {a.dtype}")
    x = torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)).permute(0, 3, 1, 2)
    if not bool(torch.isfinite(x).all()):
        raise ValueError("images holds NaN or infinity")
    if float(x.min()) < -1e-3 or float(x.max()) > 1 + 1e-3:
        raise ValueError(f"float images must lie in [0, 1], got {float(x.min()):.3g} to {float(x.max()):.3g}")
    return x.clamp(0, 1)
