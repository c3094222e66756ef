"""Training of the clip autoencoder: first on single frames, then on stretches of clips."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .autoencoder import edges
from .loop import autocast
from .rows import pictures_of


@dataclass(frozen=True)
class WanVaeRecipe:
    """The autoencoder and its training, `frames` in all and about `batch` per step, the first `stills` of them alone.

    After `even` frames clips are whole, and the loss weighs 1 + `mask_weight` x part mask. `squares` weighs the squared error, to
    which what is small and bright matters more than to the absolute one: apples. `noise` is the most that is added to latents, in
    their standard deviations: those of a sampler have errors.
    """

    base_dim: int
    decoder_base_dim: int
    dim_mult: tuple[int, ...]
    blocks: int
    patch: int
    channels: int
    frames: int
    stills: int
    even: int
    mask_weight: float
    batch: int
    stretches: tuple[int, ...]
    lr: float
    warmup: int
    ema: float
    kl: float
    squares: float
    edge: float
    noise: float
    compile: bool
    save_minutes: float

    @property
    def factor(self) -> int:
        """Pixels a side of a latent."""
        return self.patch * 2 ** (len(self.dim_mult) - 1)


def build_autoencoder(recipe: WanVaeRecipe) -> Any:
    """An untrained autoencoder that takes four frames together in time, after a first one alone.

    It has the shortcuts of Wan 2.2, without which it learnt more slowly, and begins as an autoencoder of single frames:
    convolutions over time look at the frame they are at, and a frame that is doubled in time is doubled as it is.
    """
    from diffusers import AutoencoderKLWan
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    if len(recipe.dim_mult) != 3:
        raise ValueError(f"dim_mult needs three entries, for two halvings of time, got {list(recipe.dim_mult)}")
    vae = AutoencoderKLWan(
        base_dim=recipe.base_dim,
        decoder_base_dim=recipe.decoder_base_dim,
        z_dim=recipe.channels,
        dim_mult=list(recipe.dim_mult),
        num_res_blocks=recipe.blocks,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * recipe.channels,
        latents_std=[1.0] * recipe.channels,
        in_channels=3 * recipe.patch**2,
        out_channels=3 * recipe.patch**2,
        patch_size=recipe.patch,
        scale_factor_temporal=4,
        scale_factor_spatial=recipe.factor,
        is_residual=True,
    ).eval()
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, WanCausalConv3d) and module.kernel_size[0] == 3:
                module.weight[:, :, :-1] = 0
                if module.kernel_size == (3, 1, 1):  # over time alone
                    out, inner = module.weight.shape[:2]
                    module.weight[:, :, -1, 0, 0] = torch.eye(inner).repeat(out // inner, 1)
                    torch.nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
    return vae


class ClipCoder(nn.Module):
    """The autoencoder for training: all frames after the first at once, the first by flat convolutions.

    `AutoencoderKLWan` takes four frames after four others and carries what its causal convolutions remember. What they
    remember does not depend on how many frames come at once, so the same numbers come of two calls. Before the first frame
    there is nothing, so of a kernel over time only its last slice counts there: a third of the work.
    """

    def __init__(self, vae: Any) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

        super().__init__()
        self.vae = vae
        for module in vae.modules():
            if isinstance(module, WanCausalConv3d) and module.kernel_size == (3, 3, 3):
                module.forward = _Flat(module)

    def forward(self, x: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What comes of clips through noisy latents, the latents' mean and their log variance, all float32.

        `noise` is standard normal, in the latents' shape; `level` [B, 1, 1, 1, 1] says how much is added to what the
        encoder's variance asks for, in standard deviations of the latents.
        """
        mean, logvar = (values.float() for values in self.encode(x))
        spread = (logvar.exp() + (level * mean.detach().std()) ** 2).sqrt()
        return self.decode(mean + noise * spread).float(), mean, logvar

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance [B, C, 1 + (T - 1) / 4, h, w] of clips [B, 3, T, H, W]."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

        vae, x = self.vae, patchify(x, self.vae.config.patch_size)
        memory, out = [None] * vae._cached_conv_counts["encoder"], []
        for piece in (x[:, :, :1], x[:, :, 1:]):
            if piece.shape[2]:
                out.append(vae.encoder(piece, feat_cache=memory, feat_idx=[0]))
        mean, logvar = vae.quant_conv(torch.cat(out, 2)).chunk(2, dim=1)
        return mean, logvar.clamp(-20, 10)

    def decode(self, z: Tensor) -> Tensor:
        """Clips [B, 3, T, H, W] of latents, not clamped."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        vae = self.vae
        z = vae.post_quant_conv(z)
        memory, out = [None] * vae._cached_conv_counts["decoder"], []
        for piece in (z[:, :, :1], z[:, :, 1:]):
            if piece.shape[2]:
                out.append(vae.decoder(piece, feat_cache=memory, feat_idx=[0], first_chunk=not out))
        return unpatchify(torch.cat(out, 2), vae.config.patch_size)


class _Flat:
    """Forward of a causal convolution over 3 frames that takes a first frame alone for what it is."""

    def __init__(self, conv: Any) -> None:
        self.conv, self.stock = conv, conv.forward

    def __call__(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        conv = self.conv
        if cache_x is not None or x.shape[2] != 1:
            return self.stock(x, cache_x)
        return F.conv2d(F.pad(x[:, :, 0], conv._padding[:4]), conv.weight[:, :, -1], conv.bias)[:, :, None]


def clip_loss(
    coder: Callable[..., tuple[Tensor, Tensor, Tensor]],
    recipe: WanVaeRecipe,
    seed: int,
    images: np.ndarray,
    masks: np.ndarray,
    place: torch.device,
    step: int,
) -> dict[str, Tensor]:
    """Losses of one step: L1 and squares of pixels, L1 of their differences in space and time, a small KL to a standard normal.

    `masks` [N, 1 + (T - 1) / 4, h, w] belong to the frames 0, 4, 8 ... of clips [N, T, H, W, 3]; one is taken for its frame
    and the three before it.
    """
    rng, seen = np.random.default_rng([seed, 2, step]), step * recipe.batch
    weighed = seen >= recipe.even
    length = 1 if seen < recipe.stills else recipe.stretches[int(rng.integers(len(recipe.stretches)))]
    length = images.shape[1] if weighed else length
    rows = np.sort(rng.integers(len(images), size=max(1, recipe.batch // length)))
    first = rng.integers(images.shape[1] - length + 1, size=len(rows))
    x = pictures_of(np.stack([images[r, t : t + length] for r, t in zip(rows, first, strict=True)]), place)
    weight = torch.ones_like(x[:, :1])
    if weighed:
        spans = [(np.arange(t, t + length) + 3) // 4 for t in first]
        mask = torch.from_numpy(np.stack([masks[r, span] for r, span in zip(rows, spans, strict=True)])).to(place)
        weight += recipe.mask_weight * F.interpolate(mask.float(), x.shape[-2:])[:, None]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    level = recipe.noise * torch.from_numpy(rng.random((len(rows), 1, 1, 1, 1), np.float32)).to(place)
    size = (len(rows), recipe.channels, 1 + (length - 1) // 4, *(side // recipe.factor for side in x.shape[-2:]))
    with autocast(place):
        y, mean, logvar = coder(x, torch.randn(size, generator=generator).to(place), level)
    around = (weight[..., :, 1:], weight[..., 1:, :])
    slopes = [(w * (a - b).abs()).mean() for a, b, w in zip(edges(y), edges(x), around, strict=True)]
    if length > 1:
        slopes.append((weight[:, :, 1:] * (y.diff(dim=2) - x.diff(dim=2)).abs()).mean())
    return {
        "pixels": (weight * (y - x).abs()).mean(),
        "squares": recipe.squares * (weight * (y - x).square()).mean(),
        "edges": recipe.edge * torch.stack(slopes).sum(),
        "kl": recipe.kl * 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean(),
    }


@torch.no_grad()
def fidelity(vae: Any, images: np.ndarray, place: torch.device) -> list[float]:
    """PSNR in dB of every frame of clips uint8 [N, T, H, W, 3] that went through the autoencoder as it is."""
    error = torch.zeros(images.shape[1])
    for i in range(0, len(images), 8):
        x = pictures_of(images[i : i + 8], place)
        y = vae.decode(vae.encode(x).latent_dist.mean).sample
        error += ((x - y) / 2).pow(2).mean(dim=(1, 3, 4)).sum(0).cpu()
    return [round(-10 * math.log10(max(float(e) / len(images), 1e-10)), 2) for e in error]


@torch.no_grad()
def reconstructions(vae: Any, images: np.ndarray, place: torch.device) -> Image.Image:
    """Clips, one a row, above what the autoencoder makes of them."""
    y = vae.decode(vae.encode(pictures_of(images, place)).latent_dist.mean).sample
    drawn = ((y.clamp(-1, 1).movedim(1, -1).cpu().numpy() + 1) * 127.5).round().astype(np.uint8)
    return filmstrip([clip for pair in zip(np.asarray(images), drawn, strict=True) for clip in pair])


def filmstrip(clips: Sequence[np.ndarray]) -> Image.Image:
    """Clips uint8 [T, H, W, 3] as one picture, a row each, twice as large."""
    rows = np.concatenate([np.concatenate(list(clip), axis=1) for clip in clips])
    return Image.fromarray(rows).resize((2 * rows.shape[1], 2 * rows.shape[0]), Image.Resampling.LANCZOS)
