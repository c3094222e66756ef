"""Training of the demo model from nothing: render, autoencoder, text tables, flow-matching transformer.

Every step draws its batch and noise from (seed, step) alone, so a run that was interrupted and resumed does the same
arithmetic as one that was not.
"""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vsf.demo.model import Recipe, build_components, build_pipeline, split_words

HIDDEN = -1e4  # added to the logit of a key that must not be seen; exp underflows to 0 in every dtype used here
MOST_PADS = 256  # pad tokens of a prompt in a stock pipeline: 16 CLIP + up to 256 T5 places, less the words
SHEET = (
    "a red bike", "a red bike with wheels", "a plain red bike", "a plain red bike with a basket",
    "a blue house", "a blue house with windows", "a plain blue house", "a plain blue house with a flag",
    "a green face", "a green face with glasses", "a plain green face", "a yellow face with a scarf",
    "a pink cake", "a pink cake with candles", "a plain pink cake", "an orange cake with apples",
    "a brown tree", "a brown tree with apples on grass", "a plain brown tree", "a purple cat with a hat",
    "a blue plane with wings", "a plain blue plane", "wheels", "",
)  # fmt: skip

PHASE_FILES = ("vae.safetensors", "latents.safetensors", "decoder.safetensors", "run.json", "recipe.json")

_console = Console()
Arrays = dict[str, np.ndarray]


# ---------------------------------------------------------------------------------------------------------------
# Data


def _word_ids() -> dict[str, int]:
    from vsf.demo.model import known_words

    return {word: i + 2 for i, word in enumerate(known_words())}


def render_chunk(seed: int, chunk: int, rows: int, size: int, latent: int, words: int) -> Arrays:
    """Render `rows` training rows; the same arguments give the same rows in every process.

    Returns arrays over rows: image uint8 [N, size, size, 3]; mask bool [N, latent, latent], where any pixel of the
    part mask falls in the cell; words int16 [N, words], 0 where there is none; object, color int16 (-1 for none);
    parts bool [N, P]; second bool, true for the second row of an antithetic pair, which follows its first.
    """
    from vsf.demo import world

    rng = np.random.default_rng([seed, 1, chunk])
    ids, colors = _word_ids(), tuple(world.COLORS)
    out: Arrays = {
        "image": np.zeros((rows, size, size, 3), np.uint8),
        "mask": np.zeros((rows, latent, latent), np.bool_),
        "words": np.zeros((rows, words), np.int16),
        "object": np.full(rows, -1, np.int16),
        "color": np.full(rows, -1, np.int16),
        "parts": np.zeros((rows, len(world.PARTS)), np.bool_),
        "second": np.zeros(rows, np.bool_),
    }
    n, cell = 0, size // latent
    while n < rows:
        group = [(scene, split_words(text)) for scene, text in world.training_pair(rng)]
        if n + len(group) > rows or max(len(text) for _, text in group) > words:
            continue
        for i, (scene, text) in enumerate(group):
            out["image"][n] = world.render(scene, size)
            mask = world.part_mask(scene, size)
            out["mask"][n] = mask.reshape(latent, cell, latent, cell).any(axis=(1, 3))
            out["words"][n, : len(text)] = [ids[word] for word in text]
            if scene.object is not None:
                out["object"][n] = world.OBJECTS.index(scene.object)
                out["color"][n] = colors.index(scene.color)
            out["parts"][n, [world.PARTS.index(part) for part in scene.parts]] = True
            out["second"][n] = i == 1
            n += 1
    return out


def _render_job(job: tuple[int, int, int, int, int, int]) -> Arrays:
    return render_chunk(*job)


def render_data(recipe: Recipe, folder: Path) -> Arrays:
    """Render the recipe's rows into `folder` (one .npy per array) and return them memory-mapped."""
    chunk = min(1000, recipe.data.rows)
    jobs = [
        (recipe.seed, i, min(chunk, recipe.data.rows - i * chunk), recipe.size, recipe.latent_size, recipe.data.words)
        for i in range(math.ceil(recipe.data.rows / chunk))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    files: Arrays = {}

    def collect(done: Any) -> None:
        at = 0
        with _progress() as progress:
            bar = progress.add_task("render", total=recipe.data.rows)
            for part in done:
                for name, values in part.items():
                    if name not in files:
                        shape = (recipe.data.rows, *values.shape[1:])
                        files[name] = np.lib.format.open_memmap(
                            folder / f"{name}.npy", "w+", dtype=values.dtype, shape=shape
                        )
                    files[name][at : at + len(values)] = values
                at += len(part["words"])
                progress.update(bar, completed=at)

    if recipe.data.workers > 1:
        with get_context("spawn").Pool(recipe.data.workers) as pool:
            collect(pool.imap(_render_job, jobs))
    else:
        collect(map(_render_job, jobs))
    return files


def _load_arrays(folder: Path) -> Arrays:
    return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}


def _pictures(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [N, H, W, 3] -> float [N, 3, H, W] in [-1, 1], channels last."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1)


# ---------------------------------------------------------------------------------------------------------------
# Autoencoder


class _VaeStep(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.vae.quant_conv(self.vae.encoder(x)).chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        z = mean + noise * (0.5 * logvar).exp()
        return self.vae.decoder(self.vae.post_quant_conv(z)), mean, logvar


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
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
    with _progress() as progress:
        bar = progress.add_task("autoencoder", total=steps)
        for step in range(steps):
            rng = np.random.default_rng([recipe.seed, 2, step])
            x = _pictures(images[np.sort(rng.integers(len(images), size=hp.batch))], device)
            noise = torch.randn(latent, generator=torch.Generator().manual_seed(step)).to(device)
            _set_lr(optimizer, hp.lr * min(1.0, step / 50 + 0.02, 2 * (1 - step / steps) + 0.01))
            with _autocast(device):
                y, mean, logvar = step_of(x, noise)
            y, mean, logvar = y.float(), mean.float(), logvar.float()
            loss = (y - x).abs().mean()
            for a, b in zip(_edges(y), _edges(x), strict=True):
                loss = loss + hp.edge * (a - b).abs().mean()
            loss = loss + hp.kl * 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            progress.update(bar, advance=1)
            if step % 50 == 0:
                _say(f"autoencoder step {step}/{steps} loss {float(loss.detach()):.4f}")
    vae.eval()
    _whiten(vae, images[: min(len(images), 2048)], device)
    return _psnr(vae, images, device)


@torch.no_grad()
def _whiten(vae: Any, images: np.ndarray, device: torch.device) -> None:
    """Give every latent channel mean 0 and variance 1 by folding it into the 1x1 convolutions around the latents.

    This is exact, and replaces the single scaling_factor and shift_factor, which stay 1 and 0.
    """
    means = torch.cat(
        [vae.encode(_pictures(images[i : i + 128], device)).latent_dist.mean for i in range(0, len(images), 128)]
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
    with _progress() as progress:
        bar = progress.add_task("decoder", total=steps)
        for step in range(steps):
            rng = np.random.default_rng([recipe.seed, 5, step])
            rows = np.sort(rng.integers(len(images), size=hp.batch))
            x = _pictures(images[rows], device)
            mask = torch.from_numpy(masks[rows]).to(device).float()[:, None]
            weight = 1 + hp.decoder_mask_weight * F.interpolate(mask, size=recipe.size)
            level = torch.from_numpy(rng.random((hp.batch, 1, 1, 1), np.float32)) * hp.decoder_noise
            noise = torch.randn((hp.batch, *latents.shape[1:]), generator=torch.Generator().manual_seed(step))
            z = (latents[torch.from_numpy(rows)].float() + level * noise).to(device)
            z = z.contiguous(memory_format=torch.channels_last)
            _set_lr(optimizer, hp.lr * min(1.0, step / 30 + 0.03) * 0.5 * (1 + math.cos(math.pi * step / steps)))
            with _autocast(device):
                y = vae.decoder(vae.post_quant_conv(z))
            y = y.float()
            loss = (weight * (y - x).abs()).mean()
            for a, b, w in zip(_edges(y), _edges(x), (weight[..., :, 1:], weight[..., 1:, :]), strict=True):
                loss = loss + hp.edge * (w * (a - b).abs()).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            progress.update(bar, advance=1)
            if step % 50 == 0:
                _say(f"decoder step {step}/{steps} loss {float(loss.detach()):.4f}")
    vae.eval()
    return _psnr(vae, images, device)


@torch.no_grad()
def _psnr(vae: Any, images: np.ndarray, device: torch.device) -> float:
    sample, error = images[: min(len(images), 512)], 0.0
    for i in range(0, len(sample), 64):
        x = _pictures(sample[i : i + 64], device)
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        error += float(((x - y) / 2).pow(2).mean(dim=(1, 2, 3)).sum())
    return -10 * math.log10(error / len(sample))


@torch.no_grad()
def encode(vae: Any, images: np.ndarray, device: torch.device) -> Tensor:
    """Latent means of all pictures, float16 on the CPU [N, C, h, w]."""
    vae.to(device).eval()
    out: list[Tensor] = []
    with _progress() as progress, _autocast(device):
        bar = progress.add_task("encode", total=len(images))
        for i in range(0, len(images), 128):
            out.append(vae.encode(_pictures(images[i : i + 128], device)).latent_dist.mean.half().cpu())
            progress.update(bar, advance=128)
    return torch.cat(out)


# ---------------------------------------------------------------------------------------------------------------
# Transformer


class BiasedJointAttention:
    """Training processor of a joint attention block: one additive bias per key, by plain products.

    On a CPU the bf16 backward of the fused kernel was a third of a step; plain products are 1.5x faster there.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        batch, n_image, _ = hidden_states.shape

        def heads(x: Tensor) -> Tensor:
            return x.view(batch, -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)

        text = encoder_hidden_states
        q = torch.cat(
            [attn.norm_q(heads(attn.to_q(hidden_states))), attn.norm_added_q(heads(attn.add_q_proj(text)))], 2
        )
        k = torch.cat(
            [attn.norm_k(heads(attn.to_k(hidden_states))), attn.norm_added_k(heads(attn.add_k_proj(text)))], 2
        )
        v = torch.cat([heads(attn.to_v(hidden_states)), heads(attn.add_v_proj(text))], 2)
        if q.is_cuda:
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask.to(q.dtype))
        else:
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + attention_mask
            z = logits.softmax(-1).to(v.dtype) @ v
        z = z.transpose(1, 2).reshape(batch, -1, attn.heads * v.shape[-1])
        image, text = z[:, :n_image], z[:, n_image:]
        if not attn.context_pre_only:
            text = attn.to_add_out(text)
        return attn.to_out[0](image), text


def text_tokens(clip: Tensor, clip_2: Tensor, t5: Tensor, words: Tensor) -> Tensor:
    """What a stock pipeline encodes, with all its pads as one token.

    `clip`, `clip_2` [V, d] and `t5` [V, 2d] are the embedding tables, `words` [B, W] ids with 0 for none.
    Returns [B, 2W + 1, 2d]: CLIP words, T5 words, the pad (a zero vector).
    """
    first = torch.cat([F.embedding(words, clip), F.embedding(words, clip_2)], dim=-1)
    second = F.embedding(words, t5)
    # The RMS norm of the T5 stand-in (weight 1, eps 1e-6); a zero vector stays zero.
    second = second * torch.rsqrt(second.pow(2).mean(-1, keepdim=True) + 1e-6)
    return torch.cat([first, second, torch.zeros_like(second[:, :1])], dim=1)


def key_bias(words: Tensor, pads: Tensor, n_image: int) -> Tensor:
    """Bias of every key, [B, 1, 1, n_image + 2W + 1]: words not there are hidden, the pad counts `pads` times.

    `pads` [B] is the number of pad tokens the one pad stands for; 0 hides it.
    """
    absent = (words == 0).float() * HIDDEN
    pad = torch.where(pads > 0, pads.clamp_min(1).log(), torch.full_like(pads, HIDDEN))
    image = torch.zeros(len(words), n_image, device=words.device)
    return torch.cat([image, absent, absent, pad[:, None]], dim=1)[:, None, None, :]


class Velocity(nn.Module):
    """The transformer with its text tables and the auxiliary heads of training."""

    def __init__(self, recipe: Recipe, components: dict[str, Any]) -> None:
        from vsf.demo.world import COLORS, OBJECTS, PARTS

        super().__init__()
        self.transformer = components["transformer"]
        for block in self.transformer.transformer_blocks:
            block.attn.set_processor(BiasedJointAttention())
        self.clip = nn.Parameter(_clip_table(components["text_encoder"]).detach().clone())
        self.clip_2 = nn.Parameter(_clip_table(components["text_encoder_2"]).detach().clone())
        self.t5 = nn.Parameter(components["text_encoder_3"].shared.weight.detach().clone())
        self.n_image = (recipe.latent_size // recipe.transformer.patch) ** 2
        self.counts = (len(OBJECTS), len(COLORS), len(PARTS))
        width = recipe.transformer.heads * recipe.transformer.head_dim
        self.text_head = nn.Linear(recipe.joint_dim, sum(self.counts))
        self.image_head = nn.Linear(width, sum(self.counts))

    def forward(self, x: Tensor, sigma: Tensor, words: Tensor, pads: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity [B, C, h, w] of latents `x` at noise level `sigma` [B], and the auxiliary logits [B, n]."""
        t = self.transformer
        text = t.context_embedder(text_tokens(self.clip, self.clip_2, self.t5, words))
        bias = {"attention_mask": key_bias(words, pads, self.n_image)}
        pooled = torch.zeros(len(x), t.config.pooled_projection_dim, device=x.device)
        temb = t.time_text_embed(sigma * 1000, pooled)
        image = t.pos_embed(x).contiguous()
        middle = image
        for i, block in enumerate(t.transformer_blocks):
            text, image = block(
                hidden_states=image, encoder_hidden_states=text, temb=temb, joint_attention_kwargs=bias
            )
            if i + 1 == len(t.transformer_blocks) // 2:
                middle = image
        logits = self.image_head(middle.mean(dim=1))
        patches = t.proj_out(t.norm_out(image, temb))
        p, c = t.config.patch_size, t.out_channels
        side = x.shape[-1] // p
        v = patches.view(len(x), side, side, p, p, c).permute(0, 5, 1, 3, 2, 4)
        return v.reshape(x.shape), logits

    def describe(self, words: Tensor) -> Tensor:
        """Logits of object, colour and parts from the mean of the word tokens, [B, n]; pre-trains the tables."""
        tokens = text_tokens(self.clip, self.clip_2, self.t5, words)[:, :-1]
        there = (words != 0).float().repeat(1, 2)[..., None]
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


def _clip_table(encoder: Any) -> Tensor:
    return encoder.get_input_embeddings().weight


@dataclass
class Store:
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
    def build(cls, data: Arrays, latents: Tensor, device: torch.device) -> Store:
        """From the rendered arrays and the latents of their pictures."""

        def tensor(name: str, dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(np.array(data[name])).to(device, dtype)

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

    def draw(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """`rows` row numbers, pairs kept together, and for each the batch place whose noise it shares."""
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
        return np.array(picked), np.array(source)


def noise_levels(rng: np.random.Generator, n: int, mean: float, std: float, uniform: float) -> np.ndarray:
    """Noise levels in (0, 1): sigmoid(N(mean, std)), or uniform with probability `uniform`."""
    levels = 1 / (1 + np.exp(-rng.normal(mean, std, n)))
    return np.where(rng.random(n) < uniform, rng.random(n), levels).astype(np.float32)


def pad_counts(rng: np.random.Generator, n: int, pad_free: float) -> np.ndarray:
    """How many pads each row sees: none, or with 1 - pad_free, log-uniform in 1 .. MOST_PADS or just MOST_PADS."""
    some = np.exp(rng.random(n) * math.log(MOST_PADS))
    some = np.where(rng.random(n) < 0.5, some, MOST_PADS)
    return np.where(rng.random(n) < pad_free, 0, some).astype(np.float32)


def flow_loss(
    model: Velocity, forward: Callable[..., tuple[Tensor, Tensor]], store: Store, recipe: Recipe, step: int
) -> tuple[Tensor, Tensor]:
    """Rectified-flow loss (Liu et al. 2022; Esser et al. 2024) of one batch, and the auxiliary loss.

    x = (1 - sigma) latent + sigma noise, target noise - latent, as FlowMatchEulerDiscreteScheduler integrates it.
    """
    row, x, s, pads, target = _batch(store, recipe, 3, step)
    with _autocast(x.device):
        v, logits = forward(x, s, store.words[row], pads)
    return _weighted(recipe, store, row, v, target), model.label_loss(
        logits, store.objects[row], store.colors[row], store.parts[row]
    )


def _weighted(recipe: Recipe, store: Store, row: Tensor, v: Tensor, target: Tensor) -> Tensor:
    weight = 1 + recipe.train.mask_weight * store.mask[row].float()[:, None]
    return (weight * (v.float() - target).pow(2)).mean()


def _batch(store: Store, recipe: Recipe, stream: int, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows [B], noisy latents, noise levels [B], pad counts [B] and velocity targets of one step."""
    hp, device = recipe.train, store.latents.device
    rng = np.random.default_rng([recipe.seed, stream, step])
    rows, source = store.draw(rng, hp.batch)
    sigma = noise_levels(rng, hp.batch, hp.time_mean, hp.time_std, hp.time_uniform)[source]
    pads = pad_counts(rng, hp.batch, hp.pad_free)[source]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = torch.randn((hp.batch, *store.latents.shape[1:]), generator=generator)[source].to(device)
    row = torch.from_numpy(rows).to(device)
    s = torch.from_numpy(sigma).to(device)
    latent = store.latents[row].float()
    blend = s[:, None, None, None]
    x = (1 - blend) * latent + blend * noise
    return row, x, s, torch.from_numpy(pads).to(device), noise - latent


def distill(recipe: Recipe, model: Velocity, store: Store, folder: Path) -> dict[str, Tensor]:
    """Guidance distillation (Meng et al. 2023, arXiv 2210.03142): one pass learns what guidance needs two for.

    The teacher is the trained model, the target `u + guidance (c - u)` of its predictions with the caption and with
    the empty one; rows with an empty caption keep their own prediction. Returns the averaged weights.
    """
    hp, batch = recipe.distill, recipe.train.batch
    trained = load_file(folder / "checkpoint" / "ema.safetensors")
    model.load_state_dict(trained)
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    student = _Compiled(model, recipe.train.compile)
    guide = torch.compile(teacher, dynamic=False) if recipe.train.compile else teacher
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    live = dict(model.state_dict())
    names = [k for k, v in live.items() if v.is_floating_point()]
    optimizer = torch.optim.AdamW(model.parameters(), hp.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    steps, said = max(1, hp.samples // batch), time.monotonic()
    for step in range(steps):
        row, x, s, pads, _ = _batch(store, recipe, 5, step)
        words = store.words[row]
        with _autocast(x.device):
            with torch.no_grad():
                both = guide(*(torch.cat([a, b]) for a, b in ((x, x), (s, s), (words, 0 * words), (pads, pads))))[0]
                c, u = both.float().chunk(2)
                scale = torch.where((words != 0).any(1), hp.guidance, 1.0).view(-1, 1, 1, 1)
                target = u + scale * (c - u)
            v, _ = student(x, s, words, pads)
        loss = _weighted(recipe, store, row, v, target)
        loss.backward()
        _zero_pad_grad(model)
        _set_lr(optimizer, hp.lr * min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / steps)))
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            keep = min(hp.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_([ema[k] for k in names], [live[k] for k in names], 1 - keep)
        if time.monotonic() - said > 20:
            _say(f"distill step {step}/{steps} loss {float(loss.detach()):.4f}")
            said = time.monotonic()
    return ema


def pretrain_text(model: Velocity, store: Store, recipe: Recipe) -> float:
    """Teach the text tables what captions are about; returns the last loss."""
    tables = [model.clip, model.clip_2, model.t5, *model.text_head.parameters()]
    optimizer = torch.optim.AdamW(tables, 5e-3, weight_decay=0.0)
    captioned = torch.nonzero(store.words[:, 0] != 0)[:, 0]
    loss = torch.zeros(())
    for step in range(recipe.text.pretrain_steps):
        rng = np.random.default_rng([recipe.seed, 4, step])
        row = captioned[torch.from_numpy(rng.integers(len(captioned), size=256)).to(captioned.device)]
        loss = model.label_loss(
            model.describe(store.words[row]), store.objects[row], store.colors[row], store.parts[row]
        )
        loss.backward()
        _zero_pad_grad(model)
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def _zero_pad_grad(model: Velocity) -> None:
    for table in (model.clip, model.clip_2, model.t5):
        if table.grad is not None:
            table.grad[0] = 0


# ---------------------------------------------------------------------------------------------------------------
# The run


class _Compiled:
    """A module under torch.compile, or as it is where compiling fails (no compiler, unsupported platform)."""

    def __init__(self, module: nn.Module, enabled: bool) -> None:
        self.module = module
        self.call: Callable[..., Any] = torch.compile(module, dynamic=False) if enabled else module
        self.proven = not enabled

    def __call__(self, *args: Tensor) -> Any:
        if self.proven:
            return self.call(*args)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                out = self.call(*args)
                # The backward graph is compiled on its first use, so try it before any real step depends on it.
                torch.stack([o.float().sum() for o in out]).sum().backward()
            self.module.zero_grad()
        except Exception as error:  # inductor raises many types: compiler missing, compile error, unsupported op
            _say(f"torch.compile does not work here ({type(error).__name__}); training goes on without it")
            self.module.zero_grad()
            self.call = self.module
        self.proven = True
        return self.call(*args)


def _autocast(device: torch.device) -> torch.autocast:
    # bf16 without hardware support is slower than fp32 on a CPU
    fast = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=_console, disable=not _console.is_terminal,
    )  # fmt: skip


def _say(text: str) -> None:
    _console.print(f"[{time.strftime('%H:%M:%S')}] {text}", markup=False, highlight=False)


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def learning_rate(recipe: Recipe, samples: int, progress: float) -> float:
    """Linear warm-up over `warmup` rows, then a cosine to 1 % of the peak at progress 1."""
    hp = recipe.train
    warm = min(1.0, (samples + hp.batch) / max(1, hp.warmup))
    return hp.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


@dataclass
class _Clock:
    """Seconds per phase, kept across interruptions."""

    path: Path
    state: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> _Clock:
        return cls(path, json.loads(path.read_text("utf-8")) if path.is_file() else {"seconds": {}})

    def add(self, phase: str, seconds: float) -> None:
        self.state["seconds"][phase] = round(self.state["seconds"].get(phase, 0.0) + seconds, 1)
        _write_text(self.path, json.dumps(self.state, indent=1))


def _write_text(path: Path, text: str) -> None:
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text, "utf-8")
    os.replace(part, path)


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    part = path.with_suffix(".part")
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, part)
    os.replace(part, path)


def fill_components(components: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Put (averaged) `Velocity` weights into stock components, whose processors become the stock ones."""
    from diffusers.models.attention_processor import JointAttnProcessor2_0

    inner = {k.removeprefix("transformer."): v for k, v in weights.items() if k.startswith("transformer.")}
    components["transformer"].load_state_dict(inner)
    components["transformer"].set_attn_processor(JointAttnProcessor2_0())
    with torch.no_grad():
        _clip_table(components["text_encoder"]).copy_(weights["clip"])
        _clip_table(components["text_encoder_2"]).copy_(weights["clip_2"])
        components["text_encoder_3"].shared.weight.copy_(weights["t5"])


def sample_sheet(pipe: Any, prompts: tuple[str, ...] = SHEET, columns: int = 8, seed: int = 5) -> Image.Image:
    """One picture per prompt (8 steps, guidance 0), each labelled; the rows of a column block share their noise."""
    generators = [torch.Generator().manual_seed(seed + i // 4) for i in range(len(prompts))]
    pipe.set_progress_bar_config(disable=True)
    pictures = pipe(list(prompts), num_inference_steps=8, guidance_scale=0.0, generator=generators).images
    side = 2 * pictures[0].width
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + 30)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        x, y = i % columns * (side + 4), i // columns * (side + 30)
        sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, y + 28))
        words = prompt.split() or ["(empty)"]
        draw.text((x + 2, y + 1), " ".join(words[:4]), "black")
        draw.text((x + 2, y + 13), " ".join(words[4:]), "black")
    return sheet


def loss_curve(log: list[tuple[int, float, float]]) -> Image.Image:
    """The logged (samples, loss, auxiliary loss), loss on a log scale against samples."""
    width, height = 640, 320
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    if len(log) > 1:
        samples, loss = np.array([r[0] for r in log]), np.log([r[1] for r in log])
        x = 40 + (width - 50) * samples / samples.max()
        low, high = loss.min(), loss.max() + 1e-9
        y = height - 20 - (height - 40) * (loss - low) / (high - low)
        draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=(30, 80, 200), width=2)
        draw.text((2, 12), f"{math.exp(high):.3f}", "black")
        draw.text((2, height - 26), f"{math.exp(low):.3f}", "black")
        draw.text((width - 150, height - 14), f"{samples.max()} samples", "black")
    return picture


def _structure(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that may not change within a run, as it comes back from json."""
    values = recipe.to_dict()
    del values["train"], values["distill"]
    del values["data"]["workers"]
    return json.loads(json.dumps(values))


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [row.split(":", 1)[1].strip() for row in info.read_text().splitlines() if row.startswith("model name")]
        name = lines[0] if lines else name
    return f"{name}, {torch.get_num_threads()} threads"


def train(
    recipe: Recipe,
    out_dir: str | Path,
    minutes: float | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    stop_after: int | None = None,
) -> Path:
    """Make the demo model from nothing and return its weights folder, `out_dir`/weights.

    `minutes` replaces the recipe's sample count as the end of the transformer's training (and of its learning-rate
    schedule). An interrupted run (Ctrl-C, or `stop_after` steps) leaves a checkpoint; called again with `resume` it
    goes on. Raises ValueError when `out_dir` holds a run of another recipe; `resume=False` starts over.
    """
    out = Path(out_dir)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if not resume:
        for name in (
            "data",
            "checkpoint",
            "vae.safetensors",
            "latents.safetensors",
            "decoder.safetensors",
            "run.json",
            "recipe.json",
        ):
            target = out / name
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    known = out / "recipe.json"
    if known.is_file() and json.loads(known.read_text("utf-8")) != _structure(recipe):
        raise ValueError(f"{out} holds a run of another recipe: choose another folder, or resume=False to start over")
    _write_text(known, json.dumps(_structure(recipe), indent=1))
    clock = _Clock.open(out / "run.json")
    torch.manual_seed(recipe.seed)
    components = build_components(recipe)

    start = time.monotonic()
    data = _load_arrays(out / "data") if "data" in clock.state else render_data(recipe, out / "data")
    if "data" not in clock.state:
        clock.state["data"] = recipe.data.rows
        clock.add("render", time.monotonic() - start)
        _say(f"rendered {recipe.data.rows} pictures in {time.monotonic() - start:.0f} s")

    start, vae = time.monotonic(), components["vae"]
    if (out / "vae.safetensors").is_file():
        vae.load_state_dict(load_file(out / "vae.safetensors"))
    else:
        clock.state["psnr"] = round(train_vae(recipe, vae, data["image"], place), 2)
        _save_tensors(out / "vae.safetensors", vae.state_dict())
        clock.add("autoencoder", time.monotonic() - start)
        _say(f"autoencoder: {clock.state['psnr']} dB after {time.monotonic() - start:.0f} s")
    start = time.monotonic()
    if (out / "latents.safetensors").is_file():
        latents = load_file(out / "latents.safetensors")["latents"]
    else:
        latents = encode(vae, data["image"], place)
        _save_tensors(out / "latents.safetensors", {"latents": latents})
        clock.add("encode", time.monotonic() - start)
    start = time.monotonic()
    if (out / "decoder.safetensors").is_file():
        vae.load_state_dict(load_file(out / "decoder.safetensors"))
    elif recipe.vae.decoder_samples:
        clock.state["psnr"] = round(train_decoder(recipe, vae, data["image"], data["mask"], latents, place), 2)
        _save_tensors(out / "decoder.safetensors", vae.state_dict())
        clock.add("decoder", time.monotonic() - start)
        _say(f"decoder: {clock.state['psnr']} dB after {time.monotonic() - start:.0f} s")
    store = Store.build(data, latents, place)

    model = Velocity(recipe, components).to(place).train()
    finished = _train_transformer(recipe, model, store, vae, clock, out, minutes, stop_after)
    weights = out / "weights"
    if not finished:
        return weights
    averaged = load_file(out / "checkpoint" / "ema.safetensors")
    if recipe.distill.samples:
        start = time.monotonic()
        averaged = {k: v.cpu() for k, v in distill(recipe, model, store, out).items()}
        clock.add("distillation", time.monotonic() - start)
    final = build_components(recipe)
    final["vae"].load_state_dict({k: v.cpu() for k, v in vae.state_dict().items()})
    fill_components(final, averaged)
    _save_pipeline(final, weights, half=True)
    report = {
        "machine": _machine(place),
        "torch": torch.__version__,
        "samples": clock.state["samples"],
        "seconds": clock.state["seconds"],
        "psnr": clock.state["psnr"],
        "recipe": recipe.to_dict(),
    }
    _write_text(weights / "training.json", json.dumps(report, indent=1) + "\n")
    _say(f"weights in {weights}")
    return weights


def _save_pipeline(components: dict[str, Any], folder: Path, half: bool) -> None:
    """Write a stock pipeline folder, whole or not at all."""
    pipe = build_pipeline(components)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    pipe.to(torch.float16 if half else torch.float32).save_pretrained(part, safe_serialization=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def _save_snapshot(components: dict[str, Any], out: Path, samples: int) -> None:
    """out/snapshot is a link that is switched at once, so a reader finds a whole folder at any moment."""
    folder = out / "snapshots" / str(samples)
    folder.parent.mkdir(exist_ok=True)
    _save_pipeline(components, folder, half=False)
    link = out / "snapshot.part"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.relative_to(out), target_is_directory=True)
    os.replace(link, out / "snapshot")
    for old in sorted(folder.parent.iterdir(), key=lambda p: p.stat().st_mtime)[:-3]:
        shutil.rmtree(old, ignore_errors=True)


def _train_transformer(
    recipe: Recipe,
    model: Velocity,
    store: Store,
    vae: Any,
    clock: _Clock,
    out: Path,
    minutes: float | None,
    stop_after: int | None,
) -> bool:
    """The main loop; returns whether it came to its end."""
    hp, device = recipe.train, store.latents.device
    decay = [p for n, p in model.named_parameters() if p.ndim > 1 and n not in ("clip", "clip_2", "t5")]
    rest = [p for n, p in model.named_parameters() if not (p.ndim > 1 and n not in ("clip", "clip_2", "t5"))]
    groups = [{"params": decay, "weight_decay": hp.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, hp.lr, betas=(0.9, 0.98), fused=True)
    folder = out / "checkpoint"
    folder.mkdir(exist_ok=True)
    step, spent = 0, 0.0
    log: list[tuple[int, float, float]] = []
    if (folder / "state.json").is_file():
        state = json.loads((folder / "state.json").read_text("utf-8"))
        step, spent, log = state["step"], state["spent"], [(a, b, c) for a, b, c in state["log"]]
        model.load_state_dict(load_file(folder / "model.safetensors"))
        ema = {k: v.to(device) for k, v in load_file(folder / "ema.safetensors").items()}
        _load_optimizer(optimizer, load_file(folder / "optimizer.safetensors"))
        _say(f"resumed at step {step}")
    else:
        start = time.monotonic()
        loss = pretrain_text(model, store, recipe)
        clock.add("text", time.monotonic() - start)
        _say(f"text tables: loss {loss:.3f} after {time.monotonic() - start:.0f} s")
        ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    live = dict(model.state_dict())
    names = [k for k, v in live.items() if v.is_floating_point()]
    ema_list, live_list = [ema[k] for k in names], [live[k] for k in names]
    forward = _Compiled(model, hp.compile)
    steps = max(1, hp.samples // hp.batch)
    begun, first_step = time.monotonic(), step
    since_report, since_line = begun, begun
    window: list[tuple[float, float]] = []

    def progress_now() -> float:
        return (spent + time.monotonic() - begun) / (60 * minutes) if minutes is not None else step / steps

    def save() -> None:
        seconds = spent + time.monotonic() - begun
        _save_tensors(folder / "model.safetensors", model.state_dict())
        _save_tensors(folder / "ema.safetensors", ema)
        _save_tensors(folder / "optimizer.safetensors", _optimizer_tensors(optimizer))
        _write_text(folder / "state.json", json.dumps({"step": step, "spent": seconds, "log": log}))
        clock.state["samples"] = step * hp.batch
        clock.state["seconds"]["transformer"] = 0.0
        clock.add("transformer", seconds)

    def report(snapshot: bool) -> None:
        parts = build_components(recipe)
        parts["vae"].load_state_dict({k: v.cpu() for k, v in vae.state_dict().items()})
        fill_components(parts, {k: v.cpu() for k, v in ema.items()})
        samples = step * hp.batch
        sample_sheet(build_pipeline(parts)).save(out / f"sheet-{samples:08d}.png")
        loss_curve(log).save(out / "loss.png")
        if snapshot:
            _save_snapshot(parts, out, samples)

    reports = 0
    try:
        with _progress() as shown:
            bar = shown.add_task("transformer", total=steps, completed=step)
            while (progress := progress_now()) < 1:
                if stop_after is not None and step - first_step >= stop_after:
                    save()
                    return False
                _set_lr(optimizer, learning_rate(recipe, step * hp.batch, progress))
                loss, aux = flow_loss(model, forward, store, recipe, step)
                (loss + hp.aux_weight * aux).backward()
                _zero_pad_grad(model)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                with torch.no_grad():
                    torch._foreach_lerp_(ema_list, live_list, 1 - min(hp.ema, (1 + step) / (10 + step)))
                window.append((float(loss.detach()), float(aux.detach())))
                total = steps if minutes is None else max(step + 1, round(step / max(progress, 1e-3)))
                shown.update(bar, completed=step, total=total)
                if step % 50 == 0:
                    mean = np.mean(window, axis=0)
                    log.append((step * hp.batch, float(mean[0]), float(mean[1])))
                    window.clear()
                    if time.monotonic() - since_line > 30:
                        rate = (step - first_step) * hp.batch / (time.monotonic() - begun)
                        _say(
                            f"step {step} samples {step * hp.batch} loss {mean[0]:.4f} aux {mean[1]:.3f} "
                            f"{rate:.0f}/s {100 * progress:.1f} %"
                        )
                        since_line = time.monotonic()
                if time.monotonic() - since_report > 60 * hp.report_minutes:
                    save()
                    report(snapshot=reports % 2 == 0)
                    reports += 1
                    since_report = time.monotonic()
    except KeyboardInterrupt:
        save()
        _say(f"stopped at step {step}; run again to go on")
        raise
    save()
    report(snapshot=True)
    return True


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, values in state.items() for name, value in values.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
