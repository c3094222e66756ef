"""`demo-flux`: a Flux transformer on the pictures, autoencoder and text encoders of the SD3 demo model.

Its targets are the SD3 demo model's predictions. Guidance of scale g is distilled into that one (arXiv 2210.03142), so
with a caption it predicts `u + g (c - u)` and with the empty one `u`; between and beyond the two lie the predictions
at every other scale: `u + s/g (guided - u)`. The scale s is drawn per row and is what the Flux transformer is told, as
in Flux.1-dev. Text comes from T5 alone, as in Flux; the pooled CLIP embedding is zero.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import Recipe, load_demo_pipeline
from .flow import HIDDEN, RowStore, pad_bias, rotated
from .loop import Compiled, Optimisation, Schedule, TrainingRun, autocast, learnt, share
from .output import sample_sheet
from .rows import Rows, encoded, rendered
from .sd3 import Velocity, leave_model


@dataclass(frozen=True)
class FluxTransformerRecipe:
    """The transformer: width heads x head_dim, rotary dimensions per axis."""

    heads: int
    head_dim: int
    dual: int
    single: int
    axes: tuple[int, int, int]
    warm_start: bool


@dataclass(frozen=True)
class TargetRecipe:
    """What is learnt: from the first `rows` pictures, at scales in low .. high of a teacher that has its own."""

    rows: int
    teacher: float
    low: float
    high: float
    mask_weight: float
    pad_free: float
    time_mean: float
    time_std: float
    time_uniform: float


@dataclass(frozen=True)
class FluxRecipe:
    """Everything that decides `demo-flux`, as read from a recipe file."""

    seed: int
    transformer: FluxTransformerRecipe
    train: Schedule
    targets: TargetRecipe


class PlainFluxAttention:
    """Training processor of dual- and single-stream blocks: one additive bias per key, by plain products.

    On a CPU the backward pass of the fused kernel is slower than that of plain products at these lengths.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        assert attention_mask is not None and image_rotary_emb is not None

        def heads(x: Tensor) -> Tensor:  # [B, S, H D] -> [B, H, S, D]; the norms have float32 weights
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2).float()

        q = attn.norm_q(heads(attn.to_q(hidden_states)))
        k = attn.norm_k(heads(attn.to_k(hidden_states)))
        v = heads(attn.to_v(hidden_states))
        if encoder_hidden_states is not None:
            text = encoder_hidden_states
            q = torch.cat([attn.norm_added_q(heads(attn.add_q_proj(text))), q], 2)
            k = torch.cat([attn.norm_added_k(heads(attn.add_k_proj(text))), k], 2)
            v = torch.cat([heads(attn.add_v_proj(text)), v], 2)
        q, k = rotated(q, image_rotary_emb), rotated(k, image_rotary_emb)
        if q.is_cuda:
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask.to(q.dtype))
        else:
            z = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + attention_mask).softmax(-1) @ v
        z = z.transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return z
        n = encoder_hidden_states.shape[1]
        return attn.to_out[0](z[:, n:]), attn.to_add_out(z[:, :n])


class FluxVelocity(nn.Module):
    """The transformer over fixed text embeddings, for training."""

    def __init__(self, transformer: Any, t5: Tensor, words: int, side: int) -> None:
        """`t5` [V, d] is the embedding table, `words` the most words of a caption, `side` that of the token grid."""
        super().__init__()
        self.transformer = transformer
        for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
            block.attn.set_processor(PlainFluxAttention())
        self.side = side
        ids = torch.zeros(words + 1 + side * side, 3)
        ids[words + 1 :, 1] = torch.arange(side).repeat_interleave(side)
        ids[words + 1 :, 2] = torch.arange(side).repeat(side)
        cos, sin = transformer.pos_embed(ids)
        table = t5 * torch.rsqrt(t5.pow(2).mean(-1, keepdim=True) + 1e-6)  # T5's last norm, weight 1
        self.cos, self.sin = nn.Buffer(cos.float(), persistent=False), nn.Buffer(sin.float(), persistent=False)
        self.table = nn.Buffer(table.clone(), persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, scale: Tensor, words: Tensor, pads: Tensor) -> Tensor:
        """Velocity [B, C, h, w] of latents `x` at noise level `sigma` [B] and embedded guidance `scale` [B].

        `words` [B, W] are ids with 0 for none; `pads` [B] how many pad tokens stand behind them.
        """
        t = self.transformer
        text = t.context_embedder(F.pad(F.embedding(words, self.table), (0, 0, 0, 1)))
        image_keys = x.new_zeros(len(x), self.side**2)
        bias = torch.cat([(words == 0).float() * HIDDEN, pad_bias(pads)[:, None], image_keys], 1)[:, None, None, :]
        pooled = x.new_zeros(len(x), t.config.pooled_projection_dim)
        temb = t.time_text_embed(sigma * 1000, scale * 1000, pooled)
        image = t.x_embedder(pack(x))
        for block in (*t.transformer_blocks, *t.single_transformer_blocks):
            text, image = block(
                hidden_states=image,
                encoder_hidden_states=text,
                temb=temb,
                image_rotary_emb=(self.cos, self.sin),
                joint_attention_kwargs={"attention_mask": bias},
            )
        return unpack(t.proj_out(t.norm_out(image, temb)), self.side)


def pack(x: Tensor) -> Tensor:
    """Latents [B, C, 2s, 2s] as tokens [B, s^2, 4C] in the order of `FluxPipeline._pack_latents`."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 4 * c)


def unpack(x: Tensor, side: int) -> Tensor:
    """Tokens [B, s^2, 4C] as latents [B, C, 2s, 2s]."""
    b, _, c = x.shape
    x = x.view(b, side, side, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(b, c // 4, 2 * side, 2 * side)


def build_transformer(recipe: FluxTransformerRecipe, channels: int, text: int, pooled: int) -> Any:
    """An untrained transformer whose blocks start as the identity and which the guidance scale does not move.

    `channels` of the latents, widths `text` of a T5 token and `pooled` of the CLIP vector.
    """
    from diffusers import FluxTransformer2DModel

    model: Any = FluxTransformer2DModel(
        in_channels=4 * channels,
        num_layers=recipe.dual,
        num_single_layers=recipe.single,
        attention_head_dim=recipe.head_dim,
        num_attention_heads=recipe.heads,
        joint_attention_dim=text,
        pooled_projection_dim=pooled,
        guidance_embeds=True,
        axes_dims_rope=recipe.axes,
    )
    start = [model.time_text_embed.guidance_embedder.linear_2, model.norm_out.linear, model.proj_out]
    for block in model.transformer_blocks:
        start += [block.norm1.linear, block.norm1_context.linear]
    start += [block.norm.linear for block in model.single_transformer_blocks]
    for layer in start:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return model


@torch.no_grad()
def warm_start(model: Any, sd3: Any) -> None:
    """Copy from an SD3 transformer of the same width what means the same in a Flux transformer.

    Dual-stream blocks are SD3's joint blocks. A later SD3 block becomes two single-stream blocks, one with its
    attention and one with its feed-forward part, whose output's other half starts at zero: for image tokens that is
    the same function, but for the positions (rotary here, added there); text tokens get the image's matrices.

    Raises ValueError unless single = 2 x (SD3's blocks - dual).
    """
    dual, blocks = len(model.transformer_blocks), list(sd3.transformer_blocks)
    if len(model.single_transformer_blocks) != 2 * (len(blocks) - dual):
        raise ValueError(
            f"a warm start needs two single-stream blocks for each of the {len(blocks) - dual} SD3 blocks that are not "
            f"dual-stream, got {len(model.single_transformer_blocks)}"
        )
    width = model.inner_dim
    model.time_text_embed.timestep_embedder.load_state_dict(sd3.time_text_embed.timestep_embedder.state_dict())
    model.context_embedder.load_state_dict(sd3.context_embedder.state_dict())
    model.norm_out.load_state_dict(sd3.norm_out.state_dict())
    model.x_embedder.weight.copy_(sd3.pos_embed.proj.weight.flatten(1))  # both in the order channel, row, column
    model.x_embedder.bias.copy_(sd3.pos_embed.proj.bias)
    for new, old in ((model.proj_out.weight, sd3.proj_out.weight), (model.proj_out.bias, sd3.proj_out.bias)):
        new.copy_(old.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1))  # SD3: row, column, channel
    for new, old in zip(model.transformer_blocks, blocks[:dual], strict=True):
        new.load_state_dict(old.state_dict())
    for i, old in enumerate(blocks[dual:]):
        for half, new in enumerate(model.single_transformer_blocks[2 * i : 2 * i + 2]):
            shares = slice(0, 3 * width) if half == 0 else slice(3 * width, 6 * width)
            new.norm.linear.weight.copy_(old.norm1.linear.weight[shares])
            new.norm.linear.bias.copy_(old.norm1.linear.bias[shares])
            for name in ("to_q", "to_k", "to_v", "norm_q", "norm_k"):
                getattr(new.attn, name).load_state_dict(getattr(old.attn, name).state_dict())
            new.proj_mlp.load_state_dict(old.ff.net[0].proj.state_dict())
            new.proj_out.weight.zero_()
            out, columns = (old.attn.to_out[0], slice(0, width)) if half == 0 else (old.ff.net[2], slice(width, None))
            new.proj_out.weight[:, columns] = out.weight
            new.proj_out.bias.copy_(out.bias)


def flux_loss(
    student: Callable[..., Tensor], teacher: Callable[..., Any], store: RowStore, recipe: FluxRecipe, step: int
) -> dict[str, Tensor]:
    """Squared distance to the teacher's prediction at a drawn guidance scale, for the batch of one step."""
    hp, device = recipe.targets, store.latents.device
    rng = np.random.default_rng([recipe.seed, 3, step])
    drawn = store.draw(rng, recipe.train.batch, hp)
    g = torch.tensor(rng.uniform(hp.low, hp.high, recipe.train.batch).astype(np.float32), device=device)
    x, _ = store.noised(rng, drawn)
    row, s, p, words = drawn.row, drawn.sigma, drawn.pads, store.words[drawn.row]
    with torch.no_grad(), autocast(device):
        there = words[:, : int((words != 0).sum(1).max())]  # pads at the end cost time and are not seen
        guided, free = (teacher(x, s, known, p)[0].float() for known in (there, words[:, :0]))
        target = free + (g / hp.teacher)[:, None, None, None] * (guided - free)
    weight = 1 + hp.mask_weight * store.mask[row].float()[:, None]
    with autocast(device):
        velocity = student(x, s, g, words, p).float()
    return {"loss": (weight * (velocity - target).pow(2)).mean()}


def flux_components(sd3: Any, transformer: Any) -> dict[str, Any]:
    """Components of a `FluxPipeline`: the SD3 demo pipeline's own but for the transformer.

    The CLIP stand-in's last norm is set to zero, and with it the pooled embedding: it would reach the picture past
    attention, where no attention-level method could cancel it.
    """
    from transformers import CLIPTextModel

    clip = CLIPTextModel(sd3.text_encoder.config)
    # older transformers wrap this class in one more module
    getattr(clip, "text_model", clip).load_state_dict(sd3.text_encoder.text_model.state_dict())
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if "final_layer_norm" in name:
                parameter.zero_()
    return {
        "tokenizer": sd3.tokenizer,
        "tokenizer_2": sd3.tokenizer_3,
        "text_encoder": clip.eval(),
        "text_encoder_2": sd3.text_encoder_3,
        "vae": sd3.vae,
        "transformer": transformer,
        "scheduler": sd3.scheduler,
    }


def _structure(recipe: FluxRecipe) -> dict[str, Any]:
    """The part of a recipe that may not change within a run, as it comes back from JSON."""
    values = asdict(recipe)
    del values["train"]
    return json.loads(json.dumps(values))


def train_flux(
    recipe: FluxRecipe,
    out_dir: str | Path,
    cache: str | Path | None = None,
    minutes: float | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    stop_after: int | None = None,
) -> Path:
    """Train `demo-flux` in the folder `out_dir`, going on where a run in it stopped; returns `out_dir`/weights.

    The arguments and the errors are those of `train_sd3`; the SD3 demo model has to be there.
    """
    from diffusers import FluxPipeline

    out = Path(out_dir)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    run = TrainingRun.open(out, _structure(recipe), resume)
    base, sd3 = Recipe.load(), load_demo_pipeline()
    size = sd3.vae.config.sample_size
    rows = Rows(base.seed, size, base.latent_size, replace(base.data, rows=recipe.targets.rows))
    with run.timed("render"):
        data, folder = rendered(rows, Path(cache) if cache is not None else out / "cache")
    with run.timed("encode"):
        latents = encoded(sd3.vae, data["image"], folder, len(data["image"]), place)
    store = RowStore.build({k: v for k, v in data.items() if k != "image"}, latents, place)

    torch.manual_seed(recipe.seed)
    t5 = sd3.text_encoder_3.shared.weight.detach()
    channels, pooled = sd3.vae.config.latent_channels, sd3.text_encoder.config.hidden_size
    transformer = build_transformer(recipe.transformer, channels, t5.shape[1], pooled)
    if recipe.transformer.warm_start:
        warm_start(transformer, sd3.transformer)
    student = FluxVelocity(transformer, t5, base.data.words, base.latent_size // 2).to(place).train()
    teacher = Velocity(base, sd3.components).to(place).eval().requires_grad_(False)
    training = Optimisation(student, recipe.train, out / "transformer.safetensors", (), minutes)
    call = Compiled(student, recipe.train.compile, place)
    mine = replace(recipe, train=share(recipe.train))

    def finished(weights: dict[str, Tensor]) -> Any:
        """A stock pipeline with averaged weights, in float32."""
        made = build_transformer(recipe.transformer, channels, t5.shape[1], pooled)
        made.load_state_dict({k.removeprefix("transformer."): v for k, v in weights.items()})
        return FluxPipeline(**flux_components(load_demo_pipeline(), made.eval()))

    def sheet(weights: dict[str, Tensor]) -> Any:
        return sample_sheet(finished(weights), height=size, width=size, guidance_scale=recipe.targets.teacher)

    averaged = learnt(run, training, lambda step: flux_loss(call, teacher, store, mine, step), sheet, stop_after)
    if averaged is None:
        return out / "weights"
    return leave_model(run, finished(averaged), asdict(recipe), out, place)
