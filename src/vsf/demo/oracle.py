"""The judge of demo pictures: which object, which colour, which parts, and how far from the world a picture is.

A small convolutional network reads 64 px pictures. It is trained on renders of the demo world and on broken ones
(blurred, noisy, torn, half erased, blended), where what was destroyed is labelled as not there, so that debris is not
called a wheel and a smear is not called a bike. Quality is a distance to clean renders in the network's features.
The images a diffusion model draws are never used in training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import world

__all__ = [
    "DISTORTIONS",
    "NONE",
    "Oracle",
    "OracleError",
    "Reading",
    "distort",
    "load_oracle",
    "train_oracle",
]

SIZE = 64
NONE = "none"
_OBJECTS = (*world.OBJECTS, NONE)
_COLORS = tuple(world.COLORS)
_PARTS = world.PARTS
_HEADS = ("object", "color", "part")
_TILE = 8
_WEIGHTS, _CARD = "oracle.safetensors", "oracle.json"

#: Ways to break a picture, for :func:`distort`. The oracle never sees "pixelate" and "streak" in training.
DISTORTIONS = ("blur", "noise", "shuffle", "erase", "mix", "warp", "splice", "pixelate", "streak")
_TRAINED = DISTORTIONS[:7]


class OracleError(RuntimeError):
    """The oracle's weights are missing, corrupt, or made for another world."""


@dataclass(frozen=True)
class Reading:
    """What the oracle reads in N pictures.

    Attributes:
        object_probs: [N, K + 1], over ``world.OBJECTS`` and "none", in this order.
        color_probs: [N, C], over ``world.COLORS``; says nothing where the object is "none".
        part_probs: [N, P], one independent probability per part in ``world.PARTS``.
        quality: [N] in [0, 1]: 1 for a typical render, 0.5 at the edge of clean renders, falling with destruction.
    """

    object_probs: NDArray[np.float32]
    color_probs: NDArray[np.float32]
    part_probs: NDArray[np.float32]
    quality: NDArray[np.float32]

    @property
    def objects(self) -> list[str]:
        """The most probable object of each picture, or "none"."""
        return [_OBJECTS[i] for i in self.object_probs.argmax(1)]

    @property
    def colors(self) -> list[str]:
        """The most probable colour of each picture."""
        return [_COLORS[i] for i in self.color_probs.argmax(1)]

    def part(self, name: str) -> NDArray[np.float32]:
        """[N] probabilities of one part. Raises ValueError for an unknown part."""
        if name not in _PARTS:
            raise ValueError(f"unknown part {name!r}; known: {', '.join(_PARTS)}")
        return self.part_probs[:, _PARTS.index(name)]

    def has(self, name: str) -> NDArray[np.bool_]:
        """[N] whether a part is there: probability of at least one half."""
        return self.part(name) >= 0.5


# ---------------------------------------------------------------------------------------------------------------
# Network


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_a = nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_b = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))


def _down(a: int, b: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(a, b, kernel, stride=2, padding=kernel // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()
    )


class _Net(nn.Module):
    """[N, 3, 64, 64] in [0, 1] -> logits per head and the features that distances are measured in."""

    def __init__(self, widths: Sequence[int] = (24, 40, 72, 96), embedding: int = 64) -> None:
        super().__init__()
        w = list(widths)
        self.stages = nn.ModuleList(
            [
                _down(3, w[0], 5),
                nn.Sequential(_down(w[0], w[1]), _Residual(w[1])),
                nn.Sequential(_down(w[1], w[2]), _Residual(w[2])),
                nn.Sequential(_down(w[2], w[3]), _Residual(w[3])),
            ]
        )
        self.embed = nn.Linear(2 * w[3], embedding)
        self.norm = nn.BatchNorm1d(embedding)
        self.object = nn.Linear(embedding, len(_OBJECTS))
        self.color = nn.Linear(embedding, len(_COLORS))
        self.part = nn.Linear(2 * w[3] + w[2], len(_PARTS))  # past the bottleneck: parts are many and small
        self.damage = nn.Linear(embedding, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits "object", "color", "part", "damage" (strength of distortion), and "features" [N, D]."""
        local: list[Tensor] = [_band_energy(x)]
        fine = x = (x - 0.5) * 4
        for depth, stage in enumerate(self.stages):
            x = stage(x)
            if depth < 2:  # statistics of small patches: 5 and 13 pixels
                local += [x.mean((2, 3)), x.float().var((2, 3)).add(1e-4).sqrt()]
            if depth == 2:
                fine = x.amax((2, 3))
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        e = F.relu(self.norm(self.embed(pooled)))
        return {
            "object": self.object(e),
            "color": self.color(e),
            "part": self.part(torch.cat([pooled, fine], 1)),
            "damage": self.damage(e).squeeze(1),
            "features": torch.cat([e, *local], 1),
        }


def _band_energy(x: Tensor) -> Tensor:
    """Log mean |.| and log mean square of four octave bands of the grey picture, [N, 8]: how sharp it is."""
    grey, bands = x.float().mean(1, keepdim=True), []
    for _ in range(4):
        low = F.avg_pool2d(F.pad(grey, (1, 1, 1, 1), mode="reflect"), 3, 1)
        high = grey - low
        bands += [
            high.abs().mean((1, 2, 3)).clamp_min(1e-4).log(),
            high.square().mean((1, 2, 3)).clamp_min(1e-6).log(),
        ]
        grey = F.avg_pool2d(low, 2)
    return torch.stack(bands, 1)


# ---------------------------------------------------------------------------------------------------------------
# Distortions. All on x [B, 3, S, S] in [0, 1] with strength [B] in [0, 1]; the same generator state gives nested
# damage: a larger strength breaks what a smaller one broke, and more.


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
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


def _break(x: Tensor, kind: str, strength: Tensor, gen: torch.Generator, other: Tensor) -> tuple[Tensor, Tensor]:
    """A distorted copy of ``x`` and the pixels [B, S, S] whose content was replaced outright."""
    b, _, size, _ = x.shape
    s = strength.view(b, 1, 1, 1)
    touched = torch.zeros(b, size, size, dtype=torch.bool)
    n = size // _TILE

    def rand(*shape: int) -> Tensor:
        return torch.rand(b, *shape, generator=gen)

    if kind == "blur":
        y = _blur(x, 5 * strength)
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
    x = _to_tensor(images)
    gen = torch.Generator().manual_seed(seed)
    y, _ = _break(x, kind, torch.full((len(x),), float(strength)), gen, x.roll(1, 0))
    return y.permute(0, 2, 3, 1).contiguous().numpy()


def _to_tensor(images: NDArray[Any]) -> Tensor:
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


# ---------------------------------------------------------------------------------------------------------------
# Labelled data


@dataclass(frozen=True)
class _Bank:
    """Renders with everything that is needed to say what a broken version still shows.

    ``image``, ``empty`` (background alone) and ``without`` (one part less) are uint8 [N, 3, S, S]; ``body`` bool
    [N, S, S]; ``object`` and ``color`` are class numbers [N]; ``parts`` bool [N, P]; ``masks`` bool [N, M, S, S] are
    the pixels of the parts numbered ``index`` [N, M] (-1: unused); ``without`` lacks the first of them.
    """

    image: Tensor
    empty: Tensor
    without: Tensor
    body: Tensor
    object: Tensor
    color: Tensor
    parts: Tensor
    masks: Tensor
    index: Tensor


_MOST_PARTS = 4


def _oracle_scene(rng: np.random.Generator, split_name: str | None) -> world.Scene:
    """Scenes for judging: every part set of an object is as good as any other, with extras, sometimes parts alone."""
    scene = world.sample_scene(rng, split_name=split_name)
    assert scene.object is not None
    if rng.random() < 0.06:
        return replace(scene, object=None, parts=(str(rng.choice(_PARTS)),))
    parts = {part for part in world.TYPICAL[scene.object] if rng.random() < 0.55}
    extras = world.allowed_extras(scene.object)
    if rng.random() < 0.5:
        parts |= {str(e) for e in rng.choice(extras, size=1 + (rng.random() < 0.2), replace=False)}
    return replace(scene, parts=tuple(sorted(parts)))


def _make_bank(n: int, rng: np.random.Generator, split_name: str | None) -> _Bank:
    def chw(picture: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))

    image, empty, without = (torch.zeros(n, 3, SIZE, SIZE, dtype=torch.uint8) for _ in range(3))
    body = torch.zeros(n, SIZE, SIZE, dtype=torch.bool)
    masks = torch.zeros(n, _MOST_PARTS, SIZE, SIZE, dtype=torch.bool)
    index = torch.full((n, _MOST_PARTS), -1)
    obj, color = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long)
    parts = torch.zeros(n, len(_PARTS), dtype=torch.bool)
    for i in range(n):
        scene = _oracle_scene(rng, split_name)
        picture = chw(world.render(scene, SIZE))
        image[i] = without[i] = picture
        empty[i] = chw(world._background_only(scene, SIZE))  # pyright: ignore[reportPrivateUsage]
        obj[i] = _OBJECTS.index(scene.object or NONE)
        color[i] = _COLORS.index(scene.color)
        for name in scene.parts:
            parts[i, _PARTS.index(name)] = True
        if scene.object is not None:  # the coloured body is what another colour changes
            other = "blue" if scene.color != "blue" else "red"
            body[i] = (chw(world.render(replace(scene, color=other), SIZE)) != picture).any(0)
        names = [str(p) for p in rng.permutation(scene.parts)][:_MOST_PARTS] if scene.parts else []
        for k, name in enumerate(names):
            if scene.object is None:
                less = empty[i]
            else:
                less = chw(world.render(replace(scene, parts=tuple(p for p in scene.parts if p != name)), SIZE))
            masks[i, k] = (less != picture).any(0)
            index[i, k] = _PARTS.index(name)
            if k == 0:
                without[i] = less
    return _Bank(image, empty, without, body, obj, color, parts, masks, index)


@dataclass
class _Batch:
    """Pictures with labels; ``-100`` (classes) and NaN (parts) mean: open to dispute, not judged."""

    image: Tensor
    object: Tensor
    color: Tensor
    parts: Tensor
    damage: Tensor


# Strengths up to which what is drawn still counts as there, and from which on it counts as destroyed. Between the
# two, people would disagree, so nothing is learned or measured there.
_LIMITS = {
    "blur": (0.3, 0.75),
    "noise": (0.35, 0.85),
    "mix": (0.4, 0.8),
    "warp": (0.3, 0.75),
    "shuffle": (1.0, 0.75),
}
_SHARE_KEPT, _SHARE_GONE = (
    0.75,
    0.35,
)  # of the pixels of an object or a part, when pixels are replaced outright


def _soften(x: Tensor, gen: torch.Generator) -> Tensor:
    """What a decoder may do to a good picture: slight blur, noise, shift, gain. Labels stay."""
    b = len(x)

    def some(scale: float) -> Tensor:
        return (scale * torch.rand(b, generator=gen)) * (torch.rand(b, generator=gen) < 0.6)

    x = _blur(x, some(0.9))
    x = x + some(0.04).view(b, 1, 1, 1) * torch.randn(x.shape, generator=gen)
    gain = 1 + 0.08 * (torch.rand(b, 3, 1, 1, generator=gen) - 0.5)
    x = x * gain + 0.06 * (torch.rand(b, 1, 1, 1, generator=gen) - 0.5)
    dx, dy = (int(v) for v in torch.randint(-3, 4, (2,), generator=gen))
    if dx or dy:
        x = F.pad(x, (3,) * 4, mode="replicate")[:, :, 3 + dy : 3 + dy + SIZE, 3 + dx : 3 + dx + SIZE]
    return x.clamp(0, 1)


def _class_of(label: Tensor, gone: Tensor, open_: Tensor, none: int) -> Tensor:
    return torch.where(open_, -100, torch.where(gone, none, label))


def _labelled(bank: _Bank, rows: Tensor, kind: str, gen: torch.Generator, soften: bool = True) -> _Batch:
    """A batch of one kind: "clean", a distortion, "part" (one part spoiled or faded) or "bare" (object removed)."""
    x = bank.image[rows].float() / 255
    b, none = len(rows), _OBJECTS.index(NONE)
    obj, color, parts = bank.object[rows], bank.color[rows].clone(), bank.parts[rows].float()
    index, masks = bank.index[rows], bank.masks[rows]
    has_object = obj != none
    color[~has_object] = -100
    damage = torch.zeros(b)
    nan = torch.tensor(float("nan"))

    def rand(*shape: int) -> Tensor:
        return torch.rand(b, *shape, generator=gen)

    def set_part(k: int, gone: Tensor, open_: Tensor) -> None:
        used = index[:, k] >= 0
        at = index[:, k].clamp_min(0)[:, None]
        value = torch.where(open_, nan, torch.where(gone, 0.0, 1.0))
        parts.scatter_(1, at, torch.where(used, value, parts.gather(1, at).squeeze(1))[:, None])

    if kind == "bare":
        shown = rand()  # the object is gone, or a thin ghost of it is left
        ghost = torch.where(shown < 0.5, 0.0, (shown - 0.5) * 0.5).view(b, 1, 1, 1)
        empty = bank.empty[rows].float() / 255
        x = empty + ghost * (x - empty)
        obj, color = torch.full_like(obj, none), torch.full_like(color, -100)
        parts = torch.zeros_like(parts)
        damage = 0.5 * (ghost.view(b) > 0).float()
    elif kind == "part":
        x, gone, open_ = _spoil_part(x, bank.without[rows].float() / 255, masks[:, 0], gen)
        # With the object's part at issue nothing else changes; a spoiled lone part leaves no object either.
        set_part(0, gone, open_)
        damage = torch.where(gone & masks[:, 0].flatten(1).any(1), 0.3, 0.0)
    elif kind != "clean":
        strength = rand()
        partner = torch.randint(len(bank.image), (b,), generator=gen)
        x, touched = _break(x, kind, strength, gen, bank.image[partner].float() / 255)
        damage = touched.float().mean((1, 2)) if touched.any() else strength
        low, high = _LIMITS.get(kind, (1.0, 1.1))
        all_gone, all_open = strength >= high, (strength > low) & (strength < high)

        def verdict(mask: Tensor) -> tuple[Tensor, Tensor]:
            area = mask.float().sum((1, 2)).clamp_min(1)
            left = 1 - (mask & touched).float().sum((1, 2)) / area
            gone = all_gone | (left <= _SHARE_GONE)
            return gone, ~gone & (all_open | (left < _SHARE_KEPT))

        gone, open_ = verdict(bank.body[rows])
        obj = torch.where(has_object, _class_of(obj, gone, open_, none), obj)
        color = torch.where(obj == none, -100, torch.where(obj == -100, -100, color))
        for k in range(index.shape[1]):
            set_part(k, *verdict(masks[:, k]))
        if kind in ("mix", "splice"):  # the partner's parts come in: where it has a part, absence is open
            foreign = bank.parts[partner] & (parts == 0) & (strength > 0.2)[:, None]
            if kind == "splice":
                parts = torch.where(foreign, nan, parts)
            else:
                parts = torch.where(foreign & (strength < high)[:, None], nan, parts)
    if soften:
        x = _soften(x, gen)
    return _Batch(x, obj, color, parts, damage)


def _spoil_part(x: Tensor, without: Tensor, mask: Tensor, gen: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One part turned to debris, faded, or half cut off; returns the pictures, "gone" [B] and "open" [B]."""
    b = len(x)

    def rand(*shape: int) -> Tensor:
        return torch.rand(b, *shape, generator=gen)

    area = F.max_pool2d(mask.float()[:, None], 3, 1, 1)
    how = torch.randint(6, (b,), generator=gen).view(b, 1, 1, 1)
    tint = rand(3, 1, 1)
    grain = F.interpolate(rand(3, SIZE // 4, SIZE // 4), SIZE, mode="bilinear")
    # Debris: coloured clouds, torn tiles, heavy blur, or a plain tint over the part.
    shifts = torch.randint(6, 58, (b, 2), generator=gen).tolist()
    torn = torch.stack([one.roll((dy, dx), (1, 2)) for one, (dy, dx) in zip(x, shifts, strict=True)])
    debris = torch.where(
        how == 0,
        grain,
        torch.where(how == 1, torn, torch.where(how == 2, _blur(x, torch.full((b,), 5.0)), tint)),
    )
    solid = 0.85 + 0.15 * rand(1, 1, 1)
    spoiled = x + area * solid * (debris - x)
    fade = rand()
    faded = without + fade.view(b, 1, 1, 1) * (x - without)
    angle = rand(1, 1) * 2 * math.pi
    line = torch.linspace(-1, 1, SIZE)
    side = line[None, :, None] * angle.sin() + line[None, None, :] * angle.cos()
    side = torch.where(mask, side, torch.tensor(float("inf")))
    cut = (
        side.flatten(1).argsort(1).argsort(1).view_as(side) < fade.view(b, 1, 1) * mask.sum((1, 2)).view(b, 1, 1)
    ) & mask
    halved = torch.where(cut[:, None], without, x)
    y = torch.where(how <= 3, spoiled, torch.where(how == 4, faded, halved))
    h = how.view(b)
    gone = (h <= 3) | ((h == 4) & (fade <= 0.3)) | ((h == 5) & (fade >= 1 - _SHARE_GONE))
    kept = ((h == 4) & (fade >= 0.75)) | ((h == 5) & (fade <= 1 - _SHARE_KEPT))
    return y, gone, ~gone & ~kept


_MIXTURE = (("clean", 0.46), ("part", 0.16), ("bare", 0.03), *((k, 0.05) for k in _TRAINED))


def _mixed_batch(bank: _Bank, rows: Tensor, gen: torch.Generator) -> _Batch:
    """A batch in the proportions of the training mixture."""
    shares = np.cumsum([share for _, share in _MIXTURE])
    bounds = [0, *(round(float(s / shares[-1]) * len(rows)) for s in shares)]
    pieces = [
        _labelled(bank, rows[a:b], kind, gen)
        for (kind, _), a, b in zip(_MIXTURE, bounds[:-1], bounds[1:], strict=True)
        if b > a
    ]
    return _Batch(*(torch.cat([getattr(p, f) for p in pieces]) for f in _Batch.__dataclass_fields__))


# ---------------------------------------------------------------------------------------------------------------
# The oracle


def _world_key() -> str:
    """Changes when the world's names change, so that weights of another world are refused."""
    return sha256(json.dumps([_OBJECTS, _COLORS, _PARTS]).encode()).hexdigest()[:16]


class Oracle:
    """Reads pictures; made by :func:`load_oracle` or :func:`train_oracle`. ``card`` says how well it reads."""

    def __init__(self, net: _Net, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        self._net = net.eval()
        self._mean = tensors["distance.mean"].float()
        self._whiten = tensors["distance.whiten"].float()
        self.card = card

    @property
    def threshold(self) -> float:
        """Quality from which a picture counts as whole: 95 % of held-out clean, slightly softened renders pass."""
        return float(self.card["quality"]["threshold"])

    @property
    def fingerprint(self) -> str:
        """Hash of the weights, for records."""
        return str(self.card["sha256"])

    def read(self, images: NDArray[Any], batch: int = 256) -> Reading:
        """Read pictures [N, H, W, 3], uint8 or float in [0, 1]; other sizes than 64 px are resized.

        Raises:
            ValueError: for another shape, dtype or range, or non-finite values.
        """
        x = _to_tensor(images)
        if x.shape[2:] != (SIZE, SIZE):
            x = F.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        out = self._logits(x, batch)
        t = self.card["temperature"]
        probs = {
            "object": (out["object"] / t["object"]).softmax(1),
            "color": (out["color"] / t["color"]).softmax(1),
            "part": (out["part"] / t["part"]).sigmoid(),
        }
        quality = _quality(self._distance(out["features"], out["object"]), **self.card["quality"]["scale"])
        objects, colors, parts = (probs[h].numpy() for h in _HEADS)
        return Reading(objects, colors, parts, quality.numpy().astype(np.float32))

    @torch.no_grad()
    def _logits(self, x: Tensor, batch: int = 256) -> dict[str, Tensor]:
        pieces = [self._net(piece) for piece in x.split(batch)]
        return {name: torch.cat([p[name] for p in pieces]).float() for name in pieces[0]}

    def _distance(self, features: Tensor, logits: Tensor) -> Tensor:
        """Mahalanobis distance [N] to the clean renders of the object that is read, all objects sharing a covariance.

        Lee et al. 2018 (arXiv 1807.03888), here over the embedding together with statistics of small patches: octave
        band energies, and means and deviations of the first two stages. "none" is measured against part-only scenes.
        """
        z = (features - self._mean[logits.argmax(1)]) @ self._whiten
        return z.square().mean(1).sqrt()


def _quality(distance: Tensor, typical: float, edge: float) -> Tensor:
    """``2 ** -max(0, log(d / typical) / log(edge / typical))``: 1 up to the median clean render, 1/2 at its 99 %."""
    z = (distance.clamp_min(1e-6) / typical).log() / math.log(edge / typical)
    return torch.pow(2.0, -z.clamp_min(0))


def load_oracle(folder: str | Path | None = None) -> Oracle:
    """The shipped oracle, or one saved by :func:`train_oracle` in ``folder``.

    Raises:
        OracleError: the files are missing or corrupt, or belong to a world with other names.
    """
    path = Path(str(files("vsf.demo").joinpath("weights_oracle"))) if folder is None else Path(folder)
    if not (path / _WEIGHTS).is_file() or not (path / _CARD).is_file():
        raise OracleError(f"no oracle in {path}: {_WEIGHTS} and {_CARD} are needed")
    try:
        card = json.loads((path / _CARD).read_text("utf-8"))
        if card["world"] != _world_key():
            raise OracleError(f"the oracle in {path} was trained on a world with other objects, colours or parts")
        tensors = load_file(path / _WEIGHTS)
        net = _Net()
        net.load_state_dict({k[4:]: v.float() for k, v in tensors.items() if k.startswith("net.")})
        card["sha256"] = sha256((path / _WEIGHTS).read_bytes()).hexdigest()
        return Oracle(net, tensors, card)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
        if isinstance(error, OracleError):
            raise
        raise OracleError(f"the oracle in {path} cannot be read: {error}") from error


# ---------------------------------------------------------------------------------------------------------------
# Training and measuring


def _loss(out: dict[str, Tensor], batch: _Batch) -> Tensor:
    known = ~batch.parts.isnan()
    part = F.binary_cross_entropy_with_logits(out["part"].float(), batch.parts.nan_to_num(0), reduction="none")
    loss = F.cross_entropy(out["object"].float(), batch.object, label_smoothing=0.01)
    loss = loss + F.cross_entropy(out["color"].float(), batch.color, label_smoothing=0.01)
    loss = loss + 8 * (part * known).sum() / known.sum()
    return loss + 5 * F.mse_loss(out["damage"].float(), batch.damage)


def train_oracle(
    out: str | Path,
    samples: int = 220_000,
    seed: int = 0,
    *,
    renders: int = 14_000,
    held_out: int = 2_000,
    batch: int = 128,
    progress: bool = True,
) -> Oracle:
    """Train on the world's training split, measure on its dev and test splits, save to ``out``.

    ``samples`` pictures are seen, made on the fly from ``renders`` stored renders. The folder ``out`` gets the weights
    (fp16 safetensors) and ``oracle.json`` with the held-out figures. Deterministic for one machine and seed.
    """
    rng = np.random.default_rng(seed)
    gen = torch.Generator().manual_seed(seed)
    bank = _make_bank(renders, rng, "train")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = _Net()
    net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    steps = max(1, samples // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps + 1, pct_start=0.1)
    net.train()
    for step in range(steps):
        rows = torch.randint(renders, (batch,), generator=gen)
        data = _mixed_batch(bank, rows, gen)
        with torch.autocast("cpu", torch.bfloat16):
            output = net(data.image.contiguous(memory_format=torch.channels_last))
        loss = _loss(output, data)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        if progress and (step % 100 == 0 or step == steps - 1):
            print(f"oracle: step {step + 1}/{steps}, loss {float(loss.detach()):.4f}", flush=True)
    net = net.to(memory_format=torch.contiguous_format).eval()  # pyright: ignore[reportCallIssue]
    tensors = {f"net.{k}": v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    net.load_state_dict({k[4:]: v.float() for k, v in tensors.items()})  # what is measured is what is saved
    card: dict[str, Any] = {
        "world": _world_key(),
        "seed": seed,
        "samples": steps * batch,
        "renders": renders,
        "parameters": sum(p.numel() for p in net.parameters()),
        "temperature": dict.fromkeys(_HEADS, 1.0),
    }
    tensors |= _fit_distance(net, bank)
    oracle = Oracle(net, tensors, card)
    dev = _make_bank(held_out, np.random.default_rng([seed, 1]), "dev")
    test = _make_bank(held_out, np.random.default_rng([seed, 2]), "test")
    card["quality"] = _fit_quality(oracle, dev)
    card["temperature"] = _fit_temperature(oracle, dev, seed)
    card["held_out"] = _measure(oracle, test, seed)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / _WEIGHTS)
    (folder / _CARD).write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return load_oracle(folder)


def _clean(bank: _Bank, soften: bool, seed: int = 0) -> _Batch:
    return _labelled(bank, torch.arange(len(bank.image)), "clean", torch.Generator().manual_seed(seed), soften)


def _fit_distance(net: _Net, bank: _Bank) -> dict[str, Tensor]:
    """Means per object [K + 1, D] and the whitening matrix [D, D] of the features of clean renders."""
    n = min(len(bank.image), 6000)
    with torch.no_grad():
        f = torch.cat([net(piece.float() / 255)["features"] for piece in bank.image[:n].split(256)])
    label = bank.object[:n]
    mean = torch.stack([f[label == k].mean(0) if (label == k).any() else f.mean(0) for k in range(len(_OBJECTS))])
    centred = (f - mean[label]).double()
    cov = centred.T @ centred / len(f)
    scale = cov.diagonal().clamp_min(1e-8).sqrt()
    corr = cov / scale[:, None] / scale[None]
    values, vectors = torch.linalg.eigh(0.95 * corr + 0.05 * torch.eye(len(corr), dtype=corr.dtype))
    whiten = (vectors * values.rsqrt()) / scale[:, None]
    return {"distance.mean": mean.half(), "distance.whiten": whiten.float()}


def _fit_quality(oracle: Oracle, bank: _Bank) -> dict[str, Any]:
    def distance(soften: bool) -> Tensor:
        out = oracle._logits(_clean(bank, soften, 4).image)
        return oracle._distance(out["features"], out["object"])

    typical, edge = (float(v) for v in distance(False).quantile(torch.tensor([0.5, 0.99])))
    scale = {"typical": typical, "edge": edge}
    threshold = float(_quality(distance(True), **scale).quantile(0.05))
    return {"scale": scale, "threshold": threshold}


def _held_out_mixture(oracle: Oracle, bank: _Bank, seed: int) -> tuple[dict[str, Tensor], _Batch]:
    gen = torch.Generator().manual_seed(seed + 5)
    batch = _mixed_batch(bank, torch.randperm(len(bank.image), generator=gen), gen)
    return oracle._logits(batch.image), batch


def _judged(head: str, logits: Tensor, batch: _Batch, t: float) -> tuple[Tensor, Tensor]:
    """Confidence of the decision and whether it is right, for every judged label of a head (parts: each part)."""
    if head == "part":
        known = ~batch.parts.isnan()
        p = (logits / t).sigmoid()
        return torch.maximum(p, 1 - p)[known], ((p >= 0.5) == (batch.parts == 1))[known]
    label = getattr(batch, head)
    confidence, decided = (logits[label >= 0] / t).softmax(1).max(1)
    return confidence, decided == label[label >= 0]


def _fit_temperature(oracle: Oracle, bank: _Bank, seed: int) -> dict[str, float]:
    """One temperature per head (Guo et al. 2017) that minimises the log loss of the decisions on the dev mixture."""
    out, batch = _held_out_mixture(oracle, bank, seed)
    best: dict[str, float] = {}
    for head in _HEADS:
        scores: list[tuple[float, float]] = []
        for t in np.geomspace(0.25, 4, 49):
            if head == "part":
                known = ~batch.parts.isnan()
                loss = F.binary_cross_entropy_with_logits(out[head][known] / t, batch.parts[known])
            else:
                loss = F.cross_entropy(out[head] / t, getattr(batch, head))
            scores.append((float(loss), float(t)))
        best[head] = min(scores)[1]
    return best


def _ece(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean over bins of |accuracy - confidence|, weighted by the number in the bin."""
    which = (confidence * bins).long().clamp_max(bins - 1)
    total = 0.0
    for k in range(bins):
        inside = which == k
        if inside.any():
            total += abs(float(right[inside].float().mean() - confidence[inside].mean())) * int(inside.sum())
    return total / len(confidence)


def _measure(oracle: Oracle, bank: _Bank, seed: int) -> dict[str, Any]:
    """Held-out figures: accuracy per head on clean, softened and mixed pictures, ECE before and after scaling."""
    report: dict[str, Any] = {}
    sets = {name: _clean(bank, name == "softened", 6) for name in ("clean", "softened")}
    results = {name: (oracle._logits(batch.image), batch) for name, batch in sets.items()}
    results["mixture"] = _held_out_mixture(oracle, bank, seed + 1)
    for name, (out, batch) in results.items():
        row: dict[str, Any] = {"pictures": len(batch.image)}
        for head in _HEADS:
            confidence, right = _judged(head, out[head], batch, oracle.card["temperature"][head])
            before, _ = _judged(head, out[head], batch, 1.0)
            row[head] = {
                "accuracy": float(right.float().mean()),
                "judged": int(right.numel()),
                "ece": _ece(confidence, right),
                "ece_before_scaling": _ece(before, right),
            }
        known = ~batch.parts.isnan()
        wrong = ((out["part"] >= 0) != (batch.parts == 1)) & known
        row["part"]["wrong_by_part"] = {p: int(wrong[:, i].sum()) for i, p in enumerate(_PARTS) if wrong[:, i].any()}
        row["part"]["all_parts_of_a_picture"] = float((~wrong.any(1)).float().mean())
        report[name] = row
    # Destroyed pictures must not be called an object.
    gone = results["mixture"][1].object == _OBJECTS.index(NONE)
    report["destroyed"] = {
        "pictures": int(gone.sum()),
        "read_as_none": float(
            (results["mixture"][0]["object"][gone].argmax(1) == _OBJECTS.index(NONE)).float().mean()
        ),
    }
    n = min(256, len(bank.image))
    clean = bank.image[:n].permute(0, 2, 3, 1).numpy()
    report["quality"] = {
        kind: {
            f"{s:.2f}": float(oracle.read(distort(clean, kind, s)).quality.mean())
            for s in (0, 0.1, 0.25, 0.5, 0.75, 1.0)
        }
        for kind in DISTORTIONS
    }
    return report
