"""An autoencoder of larger pictures for latents that are as they were: what draws them need not change.

The encoder learns what the first one says of the scaled-down picture, the decoder to draw the large picture of such latents.
A sampler's latents are not an encoder's, so the decoder sees two kinds: an encoder's with a little noise, and what the
finished model predicts of noisy ones, which has that model's own faults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..model import DataRecipe, LargeRecipe, Recipe, build_autoencoder
from .autoencoder import edges
from .flow import Labelled, per_row
from .loop import Optimisation, Schedule, TrainingRun, autocast, learnt, share
from .rows import Arrays, Rows, pictures_of, rendered


def large_rows(recipe: Recipe) -> Rows:
    """What is rendered: pictures of the large size, with masks of the same latents."""
    large = recipe.large
    data = DataRecipe(large.rows, recipe.data.words, recipe.data.workers)
    return Rows(large.seed, large.size, recipe.latent_size, data)


def build_large_autoencoder(recipe: Recipe, like: Any) -> Any:
    """The larger autoencoder, whose decoder starts from that of `like` wherever a matrix fits."""
    large = recipe.large
    if large.size // 2 ** (len(large.channels) - 1) != recipe.latent_size:
        raise ValueError(
            f"{len(large.channels)} channels and {large.size} pixels do not make {recipe.latent_size} latents a side"
        )
    made = build_autoencoder(large.channels, recipe.vae.latent_channels, large.size)
    own = made.state_dict()
    alike = {k: v for k, v in like.state_dict().items() if k.startswith(("decoder.", "post_")) and k in own}
    made.load_state_dict(own | {k: v for k, v in alike.items() if v.shape == own[k].shape})
    return made


class Pair(nn.Module):
    """The larger autoencoder, with the first one and the model whose latents both read."""

    def __init__(self, vae: Any, old: Any, model: Labelled) -> None:
        super().__init__()
        self.vae, self.old, self.model = vae, old.requires_grad_(False), model.requires_grad_(False)

    def latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance that the first encoder gives of scaled-down pictures."""
        small = F.interpolate(x, self.old.config.sample_size, mode="area")
        mean, logvar = self.old.quant_conv(self.old.encoder(small)).float().chunk(2, dim=1)
        return mean, logvar.clamp(-20, 10)


def large_loss(pair: Pair, hp: LargeRecipe, data: Arrays, place: torch.device, step: int) -> dict[str, Tensor]:
    """L1 of the pixels and of their differences, and how far the encoder is off the first one's latents."""
    rng = np.random.default_rng([hp.seed, 2, step])
    row = np.sort(rng.integers(len(data["image"]), size=hp.batch))
    x = pictures_of(data["image"][row], place)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    order = rng.permutation(hp.batch)[: round(hp.predicted * hp.batch)]
    words = torch.tensor(data["words"][row[order]], dtype=torch.long, device=place)
    level, guessed = torch.from_numpy(rng.random(hp.batch).astype(np.float32)).to(place), torch.from_numpy(order)
    with autocast(place):
        with torch.no_grad():
            mean, logvar = pair.latents(x)
            noise = torch.randn(mean.shape, generator=generator).to(place)
            z = mean + hp.noise * per_row(level, mean) * noise
            if len(order):
                s = hp.sigma * level[guessed.to(place)]
                sigma = per_row(s, mean)
                noisy = (1 - sigma) * mean[guessed] + sigma * noise[guessed]
                z[guessed] = noisy - sigma * pair.model(noisy, s, words, torch.full_like(s, 16.0))[0].float()
        y = pair.vae.decoder(pair.vae.post_quant_conv(z)).float()
        own, spread = pair.vae.quant_conv(pair.vae.encoder(x)).float().chunk(2, dim=1)
    mask = torch.from_numpy(np.asarray(data["mask"][row])).to(place).float()[:, None]
    weight = 1 + hp.mask_weight * F.interpolate(mask, size=hp.size)
    around = (weight[..., :, 1:], weight[..., 1:, :])
    slopes = [(w * (a - b).abs()).mean() for a, b, w in zip(edges(y), edges(x), around, strict=True)]
    return {
        "pixels": (weight * (y - x).abs()).mean(),
        "edges": hp.edge * torch.stack(slopes).sum(),
        "latents": (own - mean).pow(2).mean(),
        "spread": 0.01 * (spread - logvar).pow(2).mean(),
    }


@torch.no_grad()
def beside(vae: Any, old: Any, images: np.ndarray, place: torch.device) -> Image.Image:
    """Pictures; what the larger autoencoder makes of them; what both decoders make of the first encoder's latents."""
    x = pictures_of(images, place)
    z = old.encode(F.interpolate(x, old.config.sample_size, mode="area")).latent_dist.mean
    small = F.interpolate(old.decode(z).sample, x.shape[-1], mode="bicubic")
    rows = (x, vae.decode(vae.encode(x).latent_dist.mean).sample, vae.decode(z).sample, small)
    drawn = [((y.clamp(-1, 1).movedim(1, -1).cpu().numpy() + 1) * 127.5).round().astype(np.uint8) for y in rows]
    return Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in drawn]))


def enlarged(
    run: TrainingRun,
    recipe: Recipe,
    old: Any,
    model: Labelled,
    out: Path,
    cache: Path,
    place: torch.device,
    stop_after: int | None = None,
) -> Any:
    """Train the larger autoencoder for the autoencoder `old` and a finished `model`, or go on; None if it was interrupted."""
    hp = recipe.large
    torch.manual_seed(hp.seed)
    pair = Pair(build_large_autoencoder(recipe, old), old, model).to(place)
    pair.vae.to(memory_format=torch.channels_last)
    with run.timed("render"):
        data, _ = rendered(large_rows(recipe), cache)
    schedule = Schedule(hp.samples, hp.batch, hp.lr, hp.warmup, "cosine", 1.0, 0.0, hp.ema, False, hp.save_minutes)

    def autoencoder(weights: dict[str, Tensor]) -> Any:
        made = build_large_autoencoder(recipe, old)
        made.load_state_dict({k.removeprefix("vae."): v for k, v in weights.items()})
        return made.to(place).eval()

    averaged = learnt(
        run,
        Optimisation(pair, schedule, out / "large.safetensors"),
        lambda step: large_loss(pair, share(hp), data, place, step),
        lambda weights: beside(autoencoder(weights), pair.old, data["image"][:8], place),
        stop_after,
    )
    return None if averaged is None else autoencoder(averaged)
