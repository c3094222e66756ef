"""Labelled pictures: renders and what is left to see in broken ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .. import pictures
from .distort import TRAINED, blur, break_up
from .network import CLASSES, COLORS, NONE, PARTS, SIZE


@dataclass(frozen=True)
class Bank:
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


def _oracle_scene(rng: np.random.Generator, split_name: str | None) -> pictures.Scene:
    """Scenes for judging: every part set of an object is as good as any other, with extras, sometimes parts alone."""
    scene = pictures.sample_scene(rng, split_name=split_name)
    assert scene.object is not None
    if rng.random() < 0.06:
        return replace(scene, object=None, parts=(str(rng.choice(PARTS)),))
    parts = {part for part in pictures.TYPICAL[scene.object] if rng.random() < 0.55}
    extras = pictures.allowed_extras(scene.object)
    if rng.random() < 0.5:
        parts |= {str(e) for e in rng.choice(extras, size=1 + (rng.random() < 0.2), replace=False)}
    return replace(scene, parts=tuple(sorted(parts)))


def make_bank(n: int, rng: np.random.Generator, split_name: str | None) -> Bank:
    def chw(picture: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))

    image, empty, without = (torch.zeros(n, 3, SIZE, SIZE, dtype=torch.uint8) for _ in range(3))
    body = torch.zeros(n, SIZE, SIZE, dtype=torch.bool)
    masks = torch.zeros(n, _MOST_PARTS, SIZE, SIZE, dtype=torch.bool)
    index = torch.full((n, _MOST_PARTS), -1)
    obj, color = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long)
    parts = torch.zeros(n, len(PARTS), dtype=torch.bool)
    for i in range(n):
        scene = _oracle_scene(rng, split_name)
        picture = chw(pictures.render(scene, SIZE))
        image[i] = without[i] = picture
        empty[i] = chw(pictures.background_only(scene, SIZE))
        obj[i] = CLASSES.index(scene.object or NONE)
        color[i] = COLORS.index(scene.color)
        for name in scene.parts:
            parts[i, PARTS.index(name)] = True
        if scene.object is not None:  # the coloured body is what another colour changes
            other = "blue" if scene.color != "blue" else "red"
            body[i] = (chw(pictures.render(replace(scene, color=other), SIZE)) != picture).any(0)
        names = [str(p) for p in rng.permutation(scene.parts)][:_MOST_PARTS] if scene.parts else []
        for k, name in enumerate(names):
            if scene.object is None:
                less = empty[i]
            else:
                less = chw(pictures.render(replace(scene, parts=tuple(p for p in scene.parts if p != name)), SIZE))
            masks[i, k] = (less != picture).any(0)
            index[i, k] = PARTS.index(name)
            if k == 0:
                without[i] = less
    return Bank(image, empty, without, body, obj, color, parts, masks, index)


@dataclass
class Labelled:
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

    x = blur(x, some(0.9))
    x = x + some(0.04).view(b, 1, 1, 1) * torch.randn(x.shape, generator=gen)
    gain = 1 + 0.08 * (torch.rand(b, 3, 1, 1, generator=gen) - 0.5)
    x = x * gain + 0.06 * (torch.rand(b, 1, 1, 1, generator=gen) - 0.5)
    dx, dy = (int(v) for v in torch.randint(-3, 4, (2,), generator=gen))
    if dx or dy:
        x = F.pad(x, (3,) * 4, mode="replicate")[:, :, 3 + dy : 3 + dy + SIZE, 3 + dx : 3 + dx + SIZE]
    return x.clamp(0, 1)


def _class_of(label: Tensor, gone: Tensor, open_: Tensor, none: int) -> Tensor:
    return torch.where(open_, -100, torch.where(gone, none, label))


def labelled(bank: Bank, rows: Tensor, kind: str, gen: torch.Generator, soften: bool = True) -> Labelled:
    """A batch of one kind: "clean", a distortion, "part" (one part spoiled or faded) or "bare" (object removed)."""
    x = bank.image[rows].float() / 255
    b, none = len(rows), CLASSES.index(NONE)
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
        x, touched = break_up(x, kind, strength, gen, bank.image[partner].float() / 255)
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
    return Labelled(x, obj, color, parts, damage)


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
        torch.where(how == 1, torn, torch.where(how == 2, blur(x, torch.full((b,), 5.0)), tint)),
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


_MIXTURE = (("clean", 0.46), ("part", 0.16), ("bare", 0.03), *((k, 0.05) for k in TRAINED))


def mixed_batch(bank: Bank, rows: Tensor, gen: torch.Generator) -> Labelled:
    """A batch in the proportions of the training mixture."""
    shares = np.cumsum([share for _, share in _MIXTURE])
    bounds = [0, *(round(float(s / shares[-1]) * len(rows)) for s in shares)]
    pieces = [
        labelled(bank, rows[a:b], kind, gen)
        for (kind, _), a, b in zip(_MIXTURE, bounds[:-1], bounds[1:], strict=True)
        if b > a
    ]
    return Labelled(*(torch.cat([getattr(p, f) for p in pieces]) for f in Labelled.__dataclass_fields__))
