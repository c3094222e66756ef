"""The suppression map: where and how strongly the negative acted, from w of every recorded step and block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Suppression", "on_grid"]


@dataclass(frozen=True)
class Suppression:
    """w, the share of attention that went to the negative, averaged over heads.

    `share[(step, block)]` is `[B, S]`, S image tokens; `grid` is `(height, width)`, or `(frames, height, width)`, of the
    image tokens or of a multiple of them (a latent).
    """

    share: Mapping[tuple[int, int], Tensor]
    grid: tuple[int, ...] | None

    @property
    def steps(self) -> list[int]:
        """The recorded steps."""
        return sorted({step for step, _ in self.share})

    @property
    def blocks(self) -> list[int]:
        """The recorded blocks."""
        return sorted({block for _, block in self.share})

    def stack(self) -> Tensor:
        """`[steps, blocks, B, S]`, where all blocks have the same number of image tokens."""
        return torch.stack([torch.stack([self.share[s, b] for b in self.blocks]) for s in self.steps])

    def map(self, step: int | None = None, block: int | None = None) -> Tensor:
        """The map as a picture `[B, h, w]`, or a video's `[B, frames, h, w]`, averaged over the steps and blocks not
        named, on the finest grid.

        Raises:
            ValueError: nothing was recorded for this step and block, or the tokens of this model lie on no grid.
        """
        chosen = [x for (s, b), x in self.share.items() if step in (None, s) and block in (None, b)]
        if not chosen:
            raise ValueError(
                f"nothing was recorded for {'all steps' if step is None else f'step {step}'}, "
                f"{'all blocks' if block is None else f'block {block}'}; recorded: steps {_span(self.steps)}, blocks "
                f"{_span(self.blocks)}"
            )
        if self.grid is None:
            raise ValueError("the image tokens of this model have no grid; use .share or .stack()")
        pictures = [on_grid(w, self.grid)[:, None].float() for w in chosen]  # [B, 1, frames, h, w]
        size = max((tuple(p.shape[2:]) for p in pictures), key=lambda s: s[1])
        mean = torch.stack([p if p.shape[2:] == size else F.interpolate(p, size, mode="trilinear") for p in pictures])
        mean = mean.mean(0)[:, 0]
        return mean[:, 0] if len(self.grid) == 2 else mean


def _span(numbers: list[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}" if numbers else "none"


def on_grid(w: Tensor, grid: tuple[int, ...]) -> Tensor:
    """`[B, S]` -> `[B, frames, h, w]`: the patch size is the one that fits, the edges of an odd latent are padded.

    Raises:
        ValueError: none fits.
    """
    frames, height, width = grid if len(grid) == 3 else (1, *grid)
    for f in (frames, 1):
        for patch in range(1, max(height, width) + 1):
            h, wide = math.ceil(height / patch), math.ceil(width / patch)
            if f * h * wide == w.shape[-1]:
                return w.unflatten(-1, (f, h, wide))
            if f * h * wide < w.shape[-1]:
                break
    # Reference pictures (Kontext, Edit) follow the picture's own tokens.
    for patch in (2, 1):
        h, wide = math.ceil(height / patch), math.ceil(width / patch)
        if h * wide < w.shape[-1]:
            return w[:, : h * wide].unflatten(-1, (1, h, wide))
    raise ValueError(f"{w.shape[-1]} image tokens do not lie on a grid of {' x '.join(map(str, grid))}")
