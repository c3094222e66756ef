"""Training of the picture autoencoder, and of its decoder alone on noisy latents."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import Recipe
from .loop import autocast, progress_bar, say, set_rate
from .rows import pictures_of


class _VaeStep(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.vae.quant_conv(self.vae.encoder(x)).chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        z = mean + noise * (0.5 * logvar).exp()
        return self.vae.decoder(self.vae.post_quant_conv(z)), mean, logvar


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def train_vae(recipe: Recipe, vae: Any, images: np.ndarray, device: torch.device) -> float:
    """Train the autoencoder in place and whiten its latents; returns the PSNR in dB on 512 of the pictures.

    L1 + L1 of horizontal and vertical differences + a small KL to a standard normal.
    """
    hp = recipe.vae
    vae.to(device=device, memory_format=torch.channels_last).train()
    step_of = _VaeStep(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), hp.lr, weight_decay=0.0, fused=True)
    steps = max(1, hp.samples // hp.batch)
    latent = (hp.batch, hp.latent_channels, recipe.latent_size, recipe.latent_size)
    with progress_bar() as progress:
        bar = progress.add_task("autoencoder", total=steps)
        for step in range(steps):
            rng = np.random.default_rng([recipe.seed, 2, step])
            x = pictures_of(images[np.sort(rng.integers(len(images), size=hp.batch))], device)
            noise = torch.randn(latent, generator=torch.Generator().manual_seed(step)).to(device)
            set_rate(optimizer, hp.lr * min(1.0, step / 50 + 0.02, 2 * (1 - step / steps) + 0.01))
            with autocast(device):
                y, mean, logvar = step_of(x, noise)
            y, mean, logvar = y.float(), mean.float(), logvar.float()
            loss = (y - x).abs().mean()
            for a, b in zip(edges(y), edges(x), strict=True):
                loss = loss + hp.edge * (a - b).abs().mean()
            loss = loss + hp.kl * 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            progress.update(bar, advance=1)
            if step % 50 == 0:
                say(f"autoencoder step {step}/{steps} loss {float(loss.detach()):.4f}")
    vae.eval()
    _whiten(vae, images[: min(len(images), 2048)], device)
    return _psnr(vae, images, device)


@torch.no_grad()
def _whiten(vae: Any, images: np.ndarray, device: torch.device) -> None:
    """Give every latent channel mean 0 and variance 1 by folding it into the 1x1 convolutions around the latents.

    This is exact, and replaces the single scaling_factor and shift_factor, which stay 1 and 0.
    """
    means = torch.cat(
        [vae.encode(pictures_of(images[i : i + 128], device)).latent_dist.mean for i in range(0, len(images), 128)]
    )
    mu, sigma = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3)).clamp_min(1e-6)
    c = len(mu)
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += (post.weight[:, :, 0, 0] * mu).sum(dim=1)
    post.weight *= sigma[None, :, None, None]
    quant.bias[:c] = (quant.bias[:c] - mu) / sigma
    quant.weight[:c] /= sigma[:, None, None, None]
    quant.bias[c:] -= 2 * sigma.log()


def train_decoder(
    recipe: Recipe, vae: Any, images: np.ndarray, masks: np.ndarray, latents: Tensor, device: torch.device
) -> float:
    """Go on with the decoder alone, the latents fixed; returns the PSNR in dB on 512 of the pictures.

    The latents get a little noise, as those of a sampler have errors; part pixels weigh more (small parts are what
    the demo is about). The loss is that of `train_vae` without the KL.
    """
    hp = recipe.vae
    vae.to(device=device, memory_format=torch.channels_last).train()
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimizer = torch.optim.AdamW(parameters, hp.lr, weight_decay=0.0, fused=True)
    steps = hp.decoder_samples // hp.batch
    with progress_bar() as progress:
        bar = progress.add_task("decoder", total=steps)
        for step in range(steps):
            rng = np.random.default_rng([recipe.seed, 5, step])
            rows = np.sort(rng.integers(len(images), size=hp.batch))
            x = pictures_of(images[rows], device)
            mask = torch.from_numpy(masks[rows]).to(device).float()[:, None]
            weight = 1 + hp.decoder_mask_weight * F.interpolate(mask, size=recipe.size)
            level = torch.from_numpy(rng.random((hp.batch, 1, 1, 1), np.float32)) * hp.decoder_noise
            noise = torch.randn((hp.batch, *latents.shape[1:]), generator=torch.Generator().manual_seed(step))
            z = (latents[torch.from_numpy(rows)].float() + level * noise).to(device)
            z = z.contiguous(memory_format=torch.channels_last)
            set_rate(optimizer, hp.lr * min(1.0, step / 30 + 0.03) * 0.5 * (1 + math.cos(math.pi * step / steps)))
            with autocast(device):
                y = vae.decoder(vae.post_quant_conv(z))
            y = y.float()
            loss = (weight * (y - x).abs()).mean()
            for a, b, w in zip(edges(y), edges(x), (weight[..., :, 1:], weight[..., 1:, :]), strict=True):
                loss = loss + hp.edge * (w * (a - b).abs()).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            progress.update(bar, advance=1)
            if step % 50 == 0:
                say(f"decoder step {step}/{steps} loss {float(loss.detach()):.4f}")
    vae.eval()
    return _psnr(vae, images, device)


@torch.no_grad()
def _psnr(vae: Any, images: np.ndarray, device: torch.device) -> float:
    sample, error = images[: min(len(images), 512)], 0.0
    for i in range(0, len(sample), 64):
        x = pictures_of(sample[i : i + 64], device)
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        error += float(((x - y) / 2).pow(2).mean(dim=(1, 2, 3)).sum())
    return -10 * math.log10(error / len(sample))
