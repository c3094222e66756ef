"""What every flow-matching training of the picture world shares: its rows, noise levels, and text with its pads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rows import Arrays

HIDDEN = -1e4  # added to the logit of a key that must not be seen; exp underflows to 0 in every dtype used here
MOST_PADS = 256  # pad tokens of a prompt in a stock pipeline: 16 CLIP + up to 256 T5 places, less the words


def text_tokens(clip: Tensor, clip_2: Tensor, t5: Tensor, words: Tensor) -> Tensor:
    """What a stock pipeline encodes, with all its pads as one token.

    `clip`, `clip_2` [V, d] and `t5` [V, 2d] are the embedding tables, `words` [B, W] ids with 0 for none.
    Returns [B, 2W + 1, 2d]: CLIP words, T5 words, the pad (a zero vector).
    """
    first = torch.cat([F.embedding(words, clip), F.embedding(words, clip_2)], dim=-1)
    second = F.embedding(words, t5)
    # The RMS norm of the T5 stand-in (weight 1, eps 1e-6); a zero vector stays zero.
    second = second * torch.rsqrt(second.pow(2).mean(-1, keepdim=True) + 1e-6)
    return F.pad(torch.cat([first, second], dim=1), (0, 0, 0, 1))


def key_bias(words: Tensor, pads: Tensor, n_image: int) -> Tensor:
    """Bias of every key, [B, 1, 1, n_image + 2W + 1]: words not there are hidden, the pad counts `pads` times.

    `pads` [B] is the number of pad tokens the one pad stands for; 0 hides it.
    """
    absent = (words == 0).float() * HIDDEN
    image = torch.zeros(len(words), n_image, device=words.device)
    return torch.cat([image, absent, absent, pad_bias(pads)[:, None]], dim=1)[:, None, None, :]


def pad_bias(pads: Tensor) -> Tensor:
    """What is added to the logit of one pad that stands for `pads` [B] of them; 0 hides it."""
    return torch.where(pads > 0, pads.clamp_min(1).log(), torch.full_like(pads, HIDDEN))


def rotated(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of [B, H, S, D] by neighbouring pairs, as diffusers' `apply_rotary_emb`."""
    cos, sin = cos_sin
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack([-imaginary, real], -1).flatten(-2) * sin


class Labelled(nn.Module):
    """A velocity model that learns words as well: heads that say object, colour and parts, of text and of the picture."""

    def __init__(self, text: int, width: int) -> None:
        """`text` and `width` are the widths of a text token and of a picture's."""
        from ..pictures import COLORS, OBJECTS, PARTS

        super().__init__()
        self.counts = (len(OBJECTS), len(COLORS), len(PARTS))
        self.text_head = nn.Linear(text, sum(self.counts))
        self.image_head = nn.Linear(width, sum(self.counts))

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """The tables of word embeddings; row 0 is the pad, and stays zero."""
        raise NotImplementedError

    def word_tokens(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, S, d] of the words, and [B, S, 1] 1 where there is one."""
        raise NotImplementedError

    def describe(self, words: Tensor) -> Tensor:
        """Logits of object, colour and parts from the mean of the word tokens, [B, n]; pre-trains the tables."""
        tokens, there = self.word_tokens(words)
        return self.text_head((tokens * there).sum(dim=1) / there.sum(dim=1).clamp_min(1))

    def label_loss(self, logits: Tensor, objects: Tensor, colors: Tensor, parts: Tensor) -> Tensor:
        """Cross entropy of object and colour (-1: not asked) plus the mean binary cross entropy of the parts."""
        o, c, p = logits.float().split(self.counts, dim=1)
        loss = F.binary_cross_entropy_with_logits(p, parts.float())
        for guess, label in ((o, objects), (c, colors)):
            known = label >= 0
            each = F.cross_entropy(guess, label.clamp_min(0), reduction="none")
            loss = loss + (each * known).sum() / known.sum().clamp_min(1)
        return loss

    def keep_pads(self) -> None:
        """Take the gradient of the pads away."""
        for table in self.tables:
            if table.grad is not None:
                table.grad[0] = 0


class Noising(Protocol):
    """How rows are made noisy: `sigmoid(N(time_mean, time_std))`, or uniform, and how many see no pads."""

    @property
    def time_mean(self) -> float: ...
    @property
    def time_std(self) -> float: ...
    @property
    def time_uniform(self) -> float: ...
    @property
    def pad_free(self) -> float: ...


@dataclass(frozen=True)
class RowDraw:
    """Rows [B] of a batch, noise levels [B], numbers of pads [B], and the place [B] in it whose noise each shares."""

    row: Tensor
    sigma: Tensor
    pads: Tensor
    source: Tensor


@dataclass
class RowStore:
    """The training rows in memory; tensors over rows on the device, index arrays on the host."""

    latents: Tensor
    mask: Tensor
    words: Tensor
    objects: Tensor
    colors: Tensor
    parts: Tensor
    first: np.ndarray
    count: np.ndarray

    @classmethod
    def build(cls, data: Arrays, latents: Tensor, device: torch.device) -> RowStore:
        """From the rendered arrays and the latents of their pictures."""

        def tensor(name: str, dtype: torch.dtype) -> Tensor:
            return torch.tensor(np.asarray(data[name]), dtype=dtype, device=device)  # NumPy aligns to 16 bytes only

        first = np.flatnonzero(~np.asarray(data["second"]))
        count = np.diff(np.append(first, len(data["second"])))
        return cls(
            latents.to(device),
            tensor("mask", torch.float16),
            tensor("words", torch.long),
            tensor("object", torch.long),
            tensor("color", torch.long),
            tensor("parts", torch.bool),
            first,
            count,
        )

    def draw(self, rng: np.random.Generator, rows: int, how: Noising) -> RowDraw:
        """`rows` rows, pairs kept together, with noise levels and numbers of pads that a pair shares."""
        picked: list[int] = []
        source: list[int] = []
        while len(picked) < rows:
            g = int(rng.integers(len(self.first)))
            if len(picked) + self.count[g] > rows:
                continue
            at = len(picked)
            for i in range(int(self.count[g])):
                picked.append(int(self.first[g]) + i)
                source.append(at)
        sigma = noise_levels(rng, rows, how.time_mean, how.time_std, how.time_uniform)[source]
        pads = pad_counts(rng, rows, how.pad_free)[source]
        device = self.latents.device
        return RowDraw(
            torch.tensor(picked, device=device),
            torch.tensor(sigma, device=device),
            torch.tensor(pads, device=device),
            torch.tensor(source),
        )

    def noised(self, rng: np.random.Generator, drawn: RowDraw) -> tuple[Tensor, Tensor]:
        """Latents `(1 - sigma) latent + sigma noise` of drawn rows, and `noise - latent`; a pair shares its noise."""
        device = self.latents.device
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        noise = torch.randn((len(drawn.row), *self.latents.shape[1:]), generator=generator, device=device)
        noise = noise[drawn.source.to(device)]
        latent = self.latents[drawn.row].float()
        blend = per_row(drawn.sigma, latent)
        return (1 - blend) * latent + blend * noise, noise - latent


def per_row(values: Tensor, x: Tensor) -> Tensor:
    """Values [B] in the shape that multiplies rows of x [B, ...]."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def noise_levels(rng: np.random.Generator, n: int, mean: float, std: float, uniform: float) -> np.ndarray:
    """Noise levels in (0, 1): sigmoid(N(mean, std)), or uniform with probability `uniform`."""
    levels = 1 / (1 + np.exp(-rng.normal(mean, std, n)))
    return np.where(rng.random(n) < uniform, rng.random(n), levels).astype(np.float32)


def pad_counts(rng: np.random.Generator, n: int, pad_free: float) -> np.ndarray:
    """How many pads each row sees: none, or with 1 - pad_free, log-uniform in 1 .. MOST_PADS or just MOST_PADS."""
    some = np.exp(rng.random(n) * math.log(MOST_PADS))
    some = np.where(rng.random(n) < 0.5, some, MOST_PADS)
    return np.where(rng.random(n) < pad_free, 0, some).astype(np.float32)
