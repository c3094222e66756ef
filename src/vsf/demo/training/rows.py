"""Rendered rows and their latents, made once and shared by the models that learn from them."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor

from ..model import DataRecipe
from ..worlds import FIRST, split_words
from ..worlds import world as named
from .loop import autocast, progress_bar, save_tensors, say

Arrays = dict[str, np.ndarray]
PART = 4000  # rows per file of latents: what an interrupted run loses at most


class Rendering(Protocol):
    """What decides the rows: see `vsf.demo.model.Recipe`; `latent_size` is the side of the mask."""

    @property
    def seed(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def latent_size(self) -> int: ...
    @property
    def data(self) -> DataRecipe: ...


@dataclass(frozen=True)
class Rows:
    """Rows that another recipe's values decide."""

    seed: int
    size: int
    latent_size: int
    data: DataRecipe


def render_chunk(
    seed: int, chunk: int, rows: int, size: int, latent: int, words: int, of: str = FIRST, still: bool = False
) -> Arrays:
    """Render `rows` training rows of a world; the same arguments give the same rows in every process.

    Returns arrays over rows: image uint8 [N, size, size, 3], of clips [N, T, size, size, 3]; mask bool [N, latent,
    latent], where any pixel of the part mask falls in the cell, of clips [N, 1 + (T - 1) / 4, latent, latent], that of
    every fourth frame, the last that a latent frame stands for; words int16 [N, words], 0 where there is none; object,
    color int16 (-1 for none); parts bool [N, P]; second bool, true for the second row of an antithetic pair, which
    follows its first. Of clips, `still` rows have their first frame alone.
    """
    world = named(of)
    code, rng = world.code, np.random.default_rng([seed, 1, chunk])
    frames = () if world.frames is None else (range(1 if still else world.frames),)
    fourths = tuple(span[::4] for span in frames)
    clip, masked = (tuple(map(len, spans)) for spans in (frames, fourths))
    ids = {word: i for i, word in enumerate(world.tokens)}
    out: Arrays = {
        "image": np.zeros((rows, *clip, size, size, 3), np.uint8),
        "mask": np.zeros((rows, *masked, latent, latent), np.bool_),
        "words": np.zeros((rows, words), np.int16),
        "object": np.full(rows, -1, np.int16),
        "color": np.full(rows, -1, np.int16),
        "parts": np.zeros((rows, len(world.parts)), np.bool_),
        "second": np.zeros(rows, np.bool_),
    }
    n, cell = 0, size // latent
    while n < rows:
        group = [(scene, split_words(text)) for scene, text in code.training_pair(rng)]
        if n + len(group) > rows or max(len(text) for _, text in group) > words:
            continue
        for i, (scene, text) in enumerate(group):
            out["image"][n] = code.render(scene, size, *frames)
            mask = code.part_mask(scene, size, *fourths)
            out["mask"][n] = mask.reshape(*masked, latent, cell, latent, cell).any(axis=(-3, -1))
            out["words"][n, : len(text)] = [ids[word] for word in text]
            if scene.object is not None:
                out["object"][n] = world.objects.index(scene.object)
                out["color"][n] = world.colors.index(scene.color)
            out["parts"][n, [world.parts.index(part) for part in scene.parts]] = True
            out["second"][n] = i == 1
            n += 1
    return out


def _render_job(job: tuple[int, int, int, int, int, int, str, bool]) -> Arrays:
    return render_chunk(*job)


def render_data(recipe: Rendering, folder: Path, of: str = FIRST, still: bool = False) -> Arrays:
    """Render the recipe's rows of a world into `folder` (one .npy per array) and return them memory-mapped."""
    chunk = min(1000, recipe.data.rows)
    jobs = [
        (
            recipe.seed,
            i,
            min(chunk, recipe.data.rows - i * chunk),
            recipe.size,
            recipe.latent_size,
            recipe.data.words,
            of,
            still,
        )
        for i in range(math.ceil(recipe.data.rows / chunk))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    files: Arrays = {}

    def collect(done: Any) -> None:
        at = 0
        with progress_bar() as progress:
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


def load_arrays(folder: Path) -> Arrays:
    return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}


def pictures_of(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [N, ..., H, W, 3] -> float [N, 3, ..., H, W] in [-1, 1], channels last."""
    return torch.from_numpy(np.array(images)).to(device).movedim(-1, 1).float().div(127.5).sub(1)


@torch.no_grad()
def encode(vae: Any, images: np.ndarray, device: torch.device) -> Tensor:
    """Latent means of all pictures or clips, float16 on the CPU [N, C, ..., h, w]."""
    flat = images.ndim == 4
    vae.to(device=device, memory_format=torch.channels_last if flat else torch.preserve_format).eval()
    out: list[Tensor] = []
    batch = 128 if flat else 16
    with progress_bar() as progress, autocast(device):
        bar = progress.add_task("encode", total=len(images))
        for i in range(0, len(images), batch):
            out.append(vae.encode(pictures_of(images[i : i + batch], device)).latent_dist.mean.half().cpu())
            progress.update(bar, advance=batch)
    return torch.cat(out)


def _digest(*pieces: bytes) -> str:
    return hashlib.sha256(b"".join(pieces)).hexdigest()[:10]


def rendered(recipe: Rendering, cache: Path, of: str = FIRST, still: bool = False) -> tuple[Arrays, Path]:
    """The recipe's rows of a world, memory-mapped, and their folder in `cache`; rendered if they are not there.

    The folder's name carries a digest of the first rows, so a world that draws something else gets another folder.
    """
    first = render_chunk(recipe.seed, 0, 16, recipe.size, recipe.latent_size, recipe.data.words, of, still)
    digest = _digest(*(first[name].tobytes() for name in sorted(first)))
    kind = "rows" if of == FIRST else f"{of}-still" if still else of
    folder = cache / f"{kind}-{recipe.size}px-{recipe.data.rows}-seed{recipe.seed}-{digest}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "lock"):  # another training that began at the same time waits, and finds them
        if not folder.is_dir():
            part = folder.with_name(folder.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            render_data(recipe, part, of, still)
            os.replace(part, folder)
    return load_arrays(folder), folder


def encoded(vae: Any, images: Any, folder: Path, rows: int, device: torch.device) -> Tensor:
    """Latent means of the first `rows` pictures or clips, float16 on the CPU [N, C, ..., h, w]; kept in `folder` in parts."""
    weights = {k: v for k, v in vae.state_dict().items() if k.startswith(("encoder.", "quant_conv."))}
    digest = _digest(*(weights[k].float().cpu().numpy().tobytes() for k in sorted(weights)))
    kept = folder / f"latents-{digest}"
    kept.mkdir(exist_ok=True)
    parts: list[Tensor] = []
    for start in range(0, rows, PART):
        file = kept / f"{start:07d}.safetensors"
        with FileLock(kept / "lock"):  # of several processes that train together one encodes
            if not file.is_file():
                save_tensors(file, {"latents": encode(vae, images[start : start + PART], device)})
                say(f"encoded {min(start + PART, len(images))} of {rows} pictures")
        parts.append(load_file(file)["latents"])
    return torch.cat(parts)[:rows]
