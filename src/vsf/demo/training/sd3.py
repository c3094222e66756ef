"""`demo`: the SD3 model of the picture world, from nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...files import json_bytes, write_whole
from ..model import DistillRecipe, Recipe, TrainRecipe, build_components, build_pipeline
from .autoencoder import train_decoder, train_vae
from .flow import Labelled, RowStore, key_bias, per_row, text_tokens
from .large import enlarged
from .loop import (
    Compiled,
    Optimisation,
    Schedule,
    TrainingRun,
    autocast,
    learnt,
    load_tensors,
    machine,
    ranks,
    save_tensors,
    say,
    share,
)
from .output import sample_sheet, save_pipeline
from .rows import encoded, rendered


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


class Velocity(Labelled):
    """The transformer with its text tables and the auxiliary heads of training."""

    def __init__(self, recipe: Recipe, components: dict[str, Any]) -> None:
        super().__init__(recipe.joint_dim, recipe.transformer.heads * recipe.transformer.head_dim)
        self.transformer = components["transformer"]
        for block in self.transformer.transformer_blocks:
            block.attn.set_processor(BiasedJointAttention())
        self.clip = nn.Parameter(_clip_table(components["text_encoder"]).detach().clone())
        self.clip_2 = nn.Parameter(_clip_table(components["text_encoder_2"]).detach().clone())
        self.t5 = nn.Parameter(components["text_encoder_3"].shared.weight.detach().clone())
        self.n_image = (recipe.latent_size // recipe.transformer.patch) ** 2

    @property
    def tables(self) -> tuple[Tensor, ...]:
        return self.clip, self.clip_2, self.t5

    def forward(self, x: Tensor, sigma: Tensor, words: Tensor, pads: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity [B, C, h, w] of latents `x` at noise level `sigma` [B], and the auxiliary logits [B, n]."""
        t = self.transformer
        text = t.context_embedder(text_tokens(self.clip, self.clip_2, self.t5, words))
        bias = {"attention_mask": key_bias(words, pads, self.n_image)}
        pooled = x.new_zeros(len(x), t.config.pooled_projection_dim)
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

    def word_tokens(self, words: Tensor) -> tuple[Tensor, Tensor]:
        tokens = text_tokens(self.clip, self.clip_2, self.t5, words)[:, :-1]
        return tokens, (words != 0).float().repeat(1, 2)[..., None]


def _clip_table(encoder: Any) -> Tensor:
    return encoder.get_input_embeddings().weight


class FlowRecipe(Protocol):
    """What the losses need of a recipe."""

    @property
    def seed(self) -> int: ...
    @property
    def train(self) -> TrainRecipe: ...
    @property
    def distill(self) -> DistillRecipe: ...


def flow_loss(
    model: Labelled, forward: Callable[..., tuple[Tensor, Tensor]], store: RowStore, recipe: FlowRecipe, step: int
) -> dict[str, Tensor]:
    """Rectified-flow loss (Liu et al. 2022; Esser et al. 2024) of one batch, and the weighted auxiliary loss.

    x = (1 - sigma) latent + sigma noise, target noise - latent, as FlowMatchEulerDiscreteScheduler integrates it.
    """
    row, x, s, pads, target = _batch(store, recipe, 3, step)
    with autocast(x.device):
        v, logits = forward(x, s, store.words[row], pads)
    labels = model.label_loss(logits, store.objects[row], store.colors[row], store.parts[row])
    return {"flow": _weighted(recipe, store, row, v, target), "labels": recipe.train.aux_weight * labels}


def distill_loss(
    student: Callable[..., tuple[Tensor, Tensor]],
    teacher: Callable[..., tuple[Tensor, Tensor]],
    store: RowStore,
    recipe: FlowRecipe,
    step: int,
) -> dict[str, Tensor]:
    """Guidance distillation (Meng et al. 2023, arXiv 2210.03142): one pass learns what guidance needs two for.

    The teacher is the trained model, the target `u + guidance (c - u)` of its predictions with the caption and with
    the empty one; rows with an empty caption keep their own prediction.
    """
    row, x, s, pads, _ = _batch(store, recipe, 5, step)
    words = store.words[row]
    with autocast(x.device):
        with torch.no_grad():
            both = teacher(*(torch.cat([a, b]) for a, b in ((x, x), (s, s), (words, 0 * words), (pads, pads))))[0]
            c, u = both.float().chunk(2)
            scale = torch.where((words != 0).any(1), recipe.distill.guidance, 1.0)
            target = u + per_row(scale, u) * (c - u)
        v, _ = student(x, s, words, pads)
    return {"distance": _weighted(recipe, store, row, v, target)}


def _weighted(recipe: FlowRecipe, store: RowStore, row: Tensor, v: Tensor, target: Tensor) -> Tensor:
    weight = 1 + recipe.train.mask_weight * store.mask[row].float()[:, None]
    return (weight * (v.float() - target).pow(2)).mean()


def _batch(
    store: RowStore, recipe: FlowRecipe, stream: int, step: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows [B], noisy latents, noise levels [B], pad counts [B] and velocity targets of one step."""
    rng = np.random.default_rng([recipe.seed, stream, step])
    drawn = store.draw(rng, recipe.train.batch, recipe.train)
    x, target = store.noised(rng, drawn)
    return drawn.row, x, drawn.sigma, drawn.pads, target


def pretrain_text(model: Labelled, store: RowStore, seed: int, steps: int) -> float:
    """Teach the text tables what captions are about; returns the last loss."""
    tables = [*model.tables, *model.text_head.parameters()]
    optimizer = torch.optim.AdamW(tables, 5e-3, weight_decay=0.0)
    captioned = torch.nonzero(store.words[:, 0] != 0)[:, 0]
    loss = torch.zeros(())
    for step in range(steps):
        rng = np.random.default_rng([seed, 4, step])
        row = captioned[torch.from_numpy(rng.integers(len(captioned), size=256)).to(captioned.device)]
        loss = model.label_loss(
            model.describe(store.words[row]), store.objects[row], store.colors[row], store.parts[row]
        )
        loss.backward()
        model.keep_pads()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def fill_components(components: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Put (averaged) `Velocity` weights into stock components, whose processors become the stock ones."""
    from diffusers.models.attention_processor import JointAttnProcessor2_0

    inner = {k.removeprefix("transformer."): v for k, v in weights.items() if k.startswith("transformer.")}
    components["transformer"].load_state_dict(components["transformer"].state_dict() | inner)
    components["transformer"].set_attn_processor(JointAttnProcessor2_0())
    with torch.no_grad():
        _clip_table(components["text_encoder"]).copy_(weights["clip"])
        _clip_table(components["text_encoder_2"]).copy_(weights["clip_2"])
        components["text_encoder_3"].shared.weight.copy_(weights["t5"])


def _structure(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that may not change within a run, as it comes back from json."""
    values = recipe.to_dict()
    del values["train"], values["distill"], values["large"]
    del values["data"]["workers"]
    return json.loads(json.dumps(values))


def train_sd3(
    recipe: Recipe,
    out_dir: str | Path,
    cache: str | Path | None = None,
    minutes: float | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    stop_after: int | None = None,
) -> Path:
    """Make the demo model from nothing and return its weights folder, `out_dir`/weights.

    Rows and latents are kept in `cache`, by default `out_dir`/cache. `minutes` replaces the recipe's sample count as
    the end of the transformer's training (and of its learning-rate schedule). An interrupted run (Ctrl-C, or
    `stop_after` steps) leaves a checkpoint; called again with `resume` it goes on. Raises ValueError when `out_dir`
    holds a run of another recipe; `resume=False` starts over.
    """
    out = Path(out_dir)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    run = TrainingRun.open(out, _structure(recipe), resume)
    torch.manual_seed(recipe.seed)
    components = build_components(recipe)
    cached = Path(cache) if cache is not None else out / "cache"
    with run.timed("render"):
        data, folder = rendered(recipe, cached)

    # Every phase goes on from its file, whether this run wrote it or an earlier one: the values are the same either
    # way, but the memory layout would not be, and it decides in which order convolutions and means are summed.
    vae, file = components["vae"].to(memory_format=torch.channels_last), out / "vae.safetensors"
    if not file.is_file():
        with run.timed("autoencoder"):
            run.note(psnr=round(train_vae(recipe, vae, data["image"], place), 2))
            save_tensors(file, vae.state_dict())
    vae.load_state_dict(load_tensors(file))
    with run.timed("encode"):
        latents = encoded(vae, data["image"], folder, len(data["image"]), place)
    file = out / "decoder.safetensors"
    if not file.is_file() and recipe.vae.decoder_samples:
        with run.timed("decoder"):
            run.note(psnr=round(train_decoder(recipe, vae, data["image"], data["mask"], latents, place), 2))
            save_tensors(file, vae.state_dict())
    if file.is_file():
        vae.load_state_dict(load_tensors(file))
    store = RowStore.build(data, latents, place)

    def finished(weights: dict[str, Tensor]) -> Any:
        parts = build_components(recipe) | {"vae": copy.deepcopy(vae).cpu()}
        fill_components(parts, weights)
        return build_pipeline(parts)

    def sheet(weights: dict[str, Tensor]) -> Any:
        return sample_sheet(finished(weights))

    model, hp = Velocity(recipe, components).to(place).train(), recipe.train
    if not (out / "transformer.safetensors").is_file():
        with run.timed("text"):
            pretrain_text(model, store, recipe.seed, recipe.text.pretrain_steps)
    schedule = Schedule(
        hp.samples, hp.batch, hp.lr, hp.warmup, "cosine", 1.0, hp.weight_decay, hp.ema, hp.compile, hp.report_minutes
    )
    training = Optimisation(model, schedule, out / "transformer.safetensors", _TABLES, minutes)
    forward = Compiled(model, hp.compile, place)
    mine = replace(recipe, train=share(hp))
    averaged = learnt(
        run, training, lambda step: flow_loss(model, forward, store, mine, step), sheet, stop_after, model.keep_pads
    )
    if averaged is not None and recipe.distill.samples:
        averaged = distilled(run, model, averaged, store, recipe, out, _TABLES, sheet, place, stop_after)
    if averaged is not None and recipe.large.samples:
        model.load_state_dict(averaged, strict=False)
        vae = enlarged(run, recipe, vae, model, out, cached, place, stop_after)
    if averaged is None or vae is None:
        return out / "weights"
    return leave_model(run, finished(averaged), recipe.to_dict(), out, place)


_TABLES = ("clip", "clip_2", "t5")


def distilled(
    run: TrainingRun,
    model: Labelled,
    weights: dict[str, Tensor],
    store: RowStore,
    recipe: FlowRecipe,
    out: Path,
    tables: tuple[str, ...],
    sheet: Callable[[dict[str, Tensor]], Any],
    place: torch.device,
    stop_after: int | None = None,
) -> dict[str, Tensor] | None:
    """Distil guidance into a model of these averaged weights, which is its own teacher; as `learnt`."""
    own, hp = recipe.distill, recipe.train
    model.load_state_dict(weights, strict=False)  # buffers are as they were built
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    schedule = Schedule(
        own.samples, hp.batch, own.lr, 30 * hp.batch, "cosine", 1.0, 0.0, own.ema, hp.compile, hp.report_minutes
    )
    part = Optimisation(model, schedule, out / "distillation.safetensors", tables)
    student, guide = Compiled(model, hp.compile, place), Compiled(teacher, hp.compile, place)
    mine: Any = replace(recipe, train=share(hp))  # pyright: ignore[reportArgumentType]  # a dataclass like the protocol
    return learnt(
        run, part, lambda step: distill_loss(student, guide, store, mine, step), sheet, stop_after, model.keep_pads
    )


def leave_model(run: TrainingRun, pipe: Any, recipe: dict[str, Any], out: Path, place: torch.device) -> Path:
    """Write the weights in `out`, and beside them how they were made; returns their folder."""
    if ranks()[0]:
        return out / "weights"
    save_pipeline(pipe, out / "weights")
    facts = {"machine": machine(place), "torch": torch.__version__, **run.notes, "recipe": recipe}
    write_whole(out / "weights" / "training.json", json_bytes(facts, 1))
    say(f"weights in {out / 'weights'}")
    return out / "weights"
