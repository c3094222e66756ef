"""`demo-wan`: a Wan model of the moving world, from nothing: clip autoencoder, text table and transformer.

The transformer learns single frames first (the first latent frame of a clip is that of its first picture, and a third of the
tokens), then clips, then guidance, as the SD3 demo model does (`sd3.py`). Text comes from a T5 stand-in without a layer,
as there; in Wan's cross attention text has no positions, so n equal pads are one pad with log(n) added to its logit.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import DataRecipe, DistillRecipe, TrainRecipe, build_tokenizer
from ..worlds import world
from .flow import HIDDEN, Labelled, RowStore, pad_bias, rotated
from .loop import Compiled, Optimisation, Schedule, TrainingRun, learnt, share
from .rows import Rows, encoded, rendered
from .sd3 import distilled, flow_loss, leave_model, pretrain_text
from .wan_autoencoder import (
    ClipCoder,
    WanVaeRecipe,
    build_autoencoder,
    clip_loss,
    fidelity,
    filmstrip,
    reconstructions,
)

WORLD = "clips"
SHOWN = ("a red bike on grass", "a plain red bike on grass", "a blue boat by the sea", "a yellow train", "a pink cake",
         "a plain pink cake", "a red castle with a flag", "a green tree with apples")  # fmt: skip


@dataclass(frozen=True)
class WanTextRecipe:
    """The text table: width of a token, and steps of learning what captions are about."""

    width: int
    pretrain_steps: int


@dataclass(frozen=True)
class WanTransformerRecipe:
    """The transformer: width heads x head_dim, one token per latent."""

    heads: int
    head_dim: int
    ffn: int
    blocks: int


@dataclass(frozen=True)
class StillsRecipe:
    """Training on single frames: `rows` of other scenes, of which `samples` are seen; all else as on clips."""

    rows: int
    samples: int
    batch: int
    lr: float


@dataclass(frozen=True)
class WanRecipe:
    """Everything that decides `demo-wan`, as read from a recipe file."""

    seed: int
    size: int
    data: DataRecipe
    vae: WanVaeRecipe
    text: WanTextRecipe
    transformer: WanTransformerRecipe
    stills: StillsRecipe
    train: TrainRecipe
    distill: DistillRecipe

    @property
    def latent_size(self) -> int:
        """Side of the latent grid."""
        return self.size // self.vae.factor


class PlainWanAttention:
    """Training processor of self and cross attention, by plain products; `bias` [B, 1, 1, S] is added to keys of text.

    On a CPU the backward pass of the fused kernel is slower than that of plain products at these lengths, and text has few keys.
    """

    bias: Tensor | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        keys = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        def heads(x: Tensor) -> Tensor:  # [B, S, H D] -> [B, H, S, D]
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        # the norms have float32 weights
        q = heads(attn.norm_q(attn.to_q(hidden_states).float()))
        k = heads(attn.norm_k(attn.to_k(keys).float()))
        v = heads(attn.to_v(keys))
        if rotary_emb is not None:
            cos, sin = (table.transpose(1, 2) for table in rotary_emb)
            q, k = rotated(q, (cos, sin)), rotated(k, (cos, sin))
        if q.is_cuda and self.bias is None:
            z = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        else:
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            z = (logits if self.bias is None else logits + self.bias).softmax(-1).to(v.dtype) @ v
        return attn.to_out[0](z.transpose(1, 2).flatten(2))


class WanVelocity(Labelled):
    """The transformer with its text table and the auxiliary heads of training."""

    def __init__(self, transformer: Any, table: Tensor) -> None:
        """`table` [V, d] is the table of the text encoder."""
        config = transformer.config
        super().__init__(table.shape[1], config.num_attention_heads * config.attention_head_dim)
        self.transformer = transformer
        self.cross = PlainWanAttention()
        for block in transformer.blocks:
            block.attn1.set_processor(PlainWanAttention())
            block.attn2.set_processor(self.cross)
        self.table = nn.Parameter(table.detach().clone())

    @property
    def tables(self) -> tuple[Tensor, ...]:
        return (self.table,)

    def word_tokens(self, words: Tensor) -> tuple[Tensor, Tensor]:
        tokens = F.embedding(words, self.table)
        # T5's last norm, weight 1; a zero vector stays zero
        return tokens * torch.rsqrt(tokens.pow(2).mean(-1, keepdim=True) + 1e-6), (words != 0).float()[..., None]

    def forward(self, x: Tensor, sigma: Tensor, words: Tensor, pads: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity [B, C, T, h, w] of latents `x` at noise level `sigma` [B], and the auxiliary logits [B, n].

        `words` [B, W] are ids with 0 for none; `pads` [B] how many pad tokens stand behind them.
        """
        t = self.transformer
        text = F.pad(self.word_tokens(words)[0], (0, 0, 0, 1))
        self.cross.bias = torch.cat([(words == 0).float() * HIDDEN, pad_bias(pads)[:, None]], 1)[:, None, None, :]
        temb, modulation, text, _ = t.condition_embedder(sigma * 1000, text)
        modulation, rotary = modulation.unflatten(1, (6, -1)), t.rope(x)
        middle = image = t.patch_embedding(x).flatten(2).transpose(1, 2).float()
        for i, block in enumerate(t.blocks):
            image = block(image, text, modulation, rotary)
            if i + 1 == len(t.blocks) // 2:
                middle = image
        shift, scale = (t.scale_shift_table + temb[:, None]).chunk(2, dim=1)
        v = t.proj_out(t.norm_out(image) * (1 + scale) + shift)
        return v.transpose(1, 2).reshape(x.shape), self.image_head(middle.mean(dim=1))


def build_wan_components(recipe: WanRecipe) -> dict[str, Any]:
    """Untrained components of a `WanPipeline`, by the names its constructor uses."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    if recipe.size % recipe.vae.factor:
        raise ValueError(f"size {recipe.size} is not a multiple of {recipe.vae.factor}")
    text = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(world(WORLD).tokens), d_model=recipe.text.width, d_kv=16, d_ff=32, num_layers=0, num_heads=4,
            pad_token_id=0,
        )
    ).eval()  # fmt: skip
    transformer: Any = WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=recipe.transformer.heads,
        attention_head_dim=recipe.transformer.head_dim,
        in_channels=recipe.vae.channels,
        out_channels=recipe.vae.channels,
        text_dim=recipe.text.width,
        ffn_dim=recipe.transformer.ffn,
        num_layers=recipe.transformer.blocks,
        rope_max_seq_len=64,
    ).eval()
    with torch.no_grad():
        text.shared.weight.normal_()[0] = 0
        # Every block starts as the identity, as in the other demo models.
        for module in (transformer.condition_embedder.time_proj, transformer.proj_out):
            module.weight.zero_()
            module.bias.zero_()
        transformer.scale_shift_table.zero_()
        for block in transformer.blocks:
            block.scale_shift_table.zero_()
            block.attn2.to_out[0].weight.zero_()
            block.attn2.to_out[0].bias.zero_()
    return {
        "tokenizer": build_tokenizer(256, WORLD),
        "text_encoder": text,
        "vae": build_autoencoder(recipe.vae),
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def fill_wan(components: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Put (averaged) `WanVelocity` weights into stock components."""
    inner = {k.removeprefix("transformer."): v for k, v in weights.items() if k.startswith("transformer.")}
    components["transformer"].load_state_dict(inner)
    with torch.no_grad():
        components["text_encoder"].shared.weight.copy_(weights["table"])


def note_spread(vae: Any, latents: Tensor) -> None:
    """Note mean and spread of latents [N, C, T, h, w] per channel where the stock pipeline reads them."""
    over = (0, 2, 3, 4)
    mean, std = latents.float().mean(over), latents.float().std(over).clamp_min(1e-6)
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())


def whitened(vae: Any, latents: Tensor) -> Tensor:
    """Latents with what is noted as their mean taken off, over what is noted as their spread; float16."""
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return ((latents.float() - mean) / std).half()


def _structure(recipe: WanRecipe) -> dict[str, Any]:
    """The part of a recipe that may not change within a run, as it comes back from JSON."""
    values = asdict(recipe)
    for part in ("train", "distill"):
        del values[part]
    values["stills"], values["data"]["workers"] = values["stills"]["rows"], None
    return json.loads(json.dumps(values))


def train_wan(
    recipe: WanRecipe,
    out_dir: str | Path,
    cache: str | Path | None = None,
    minutes: float | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    stop_after: int | None = None,
) -> Path:
    """Make `demo-wan` from nothing in the folder `out_dir`, going on where a run in it stopped; returns `out_dir`/weights.

    The arguments and the errors are those of `train_sd3`; `stop_after` steps end whichever part is being made.
    """
    from diffusers import WanPipeline

    out = Path(out_dir)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    run = TrainingRun.open(out, _structure(recipe), resume)
    torch.manual_seed(recipe.seed)
    components = build_wan_components(recipe)
    # Before anything is drawn on the way, which takes of the same random numbers.
    model = WanVelocity(components["transformer"], components["text_encoder"].shared.weight).to(place).train()
    cached = Path(cache) if cache is not None else out / "cache"
    with run.timed("render"):
        data, folder = rendered(recipe, cached, WORLD)
    images = data["image"]

    def autoencoder(weights: dict[str, Tensor]) -> Any:
        vae = build_autoencoder(recipe.vae)
        vae.load_state_dict({k.removeprefix("vae."): v for k, v in weights.items()})
        return vae.to(place)

    vp = recipe.vae
    coder = ClipCoder(components["vae"].to(place).train())
    through = Compiled(coder, vp.compile, place)
    schedule = Schedule(
        vp.frames, vp.batch, vp.lr, vp.warmup, "linear", 0.5, 0.0, vp.ema, vp.compile, vp.save_minutes
    )  # fmt: skip
    made = learnt(
        run,
        Optimisation(coder, schedule, out / "vae.safetensors"),
        lambda step: clip_loss(through, share(vp), recipe.seed, images, data["mask"], place, step),
        lambda weights: reconstructions(autoencoder(weights), images[:6], place),
        stop_after,
    )
    if made is None:
        return out / "weights"
    vae = autoencoder(made)
    if "psnr" not in run.notes:
        run.note(psnr=fidelity(vae, images[:64], place))
    with run.timed("encode"):
        latents = encoded(vae, images, folder, len(images), place)
    note_spread(vae, latents)
    store = RowStore.build(data, whitened(vae, latents), place)

    def finished(weights: dict[str, Tensor]) -> Any:
        parts = build_wan_components(recipe) | {"vae": vae.cpu()}
        fill_wan(parts, weights)
        return WanPipeline(**parts)

    def sheet(weights: dict[str, Tensor]) -> Any:
        pipe = finished(weights)
        pipe.set_progress_bar_config(disable=True)
        drawn = pipe(
            list(SHOWN), height=recipe.size, width=recipe.size, num_frames=images.shape[1], num_inference_steps=8,
            guidance_scale=1.0, max_sequence_length=16, generator=torch.Generator().manual_seed(5),
        ).frames  # fmt: skip
        return filmstrip([(clip * 255).round().astype(np.uint8) for clip in drawn])

    hp = recipe.train
    forward = Compiled(model, hp.compile, place)
    if not any((out / f"{name}.safetensors").is_file() for name in ("stills", "transformer")):
        with run.timed("text"):
            pretrain_text(model, store, recipe.seed, recipe.text.pretrain_steps)

    def part(name: str, hp: TrainRecipe, rows: RowStore, over: float | None = None) -> dict[str, Tensor] | None:
        mine = replace(recipe, train=share(hp))
        plan = Schedule(
            hp.samples,
            hp.batch,
            hp.lr,
            hp.warmup,
            "cosine",
            1.0,
            hp.weight_decay,
            hp.ema,
            hp.compile,
            hp.report_minutes,
        )
        return learnt(
            run,
            Optimisation(model, plan, out / f"{name}.safetensors", ("table",), over),
            lambda step: flow_loss(model, forward, rows, mine, step),
            sheet,
            stop_after,
            model.keep_pads,
        )

    averaged: dict[str, Tensor] | None = None
    if (own := recipe.stills).samples:
        scenes = Rows(recipe.seed + 1, recipe.size, recipe.latent_size, replace(recipe.data, rows=own.rows))
        with run.timed("render"):
            data, folder = rendered(scenes, cached, WORLD, still=True)
        with run.timed("encode"):
            alone = encoded(vae, data["image"], folder, own.rows, place)
        alone = RowStore.build(data, whitened(vae, alone), place)
        averaged = part("stills", replace(hp, samples=own.samples, batch=own.batch, lr=own.lr), alone)
        if averaged is None:
            return out / "weights"
        model.load_state_dict(averaged, strict=False)
    averaged = part("transformer", hp, store, minutes)
    if averaged is not None and recipe.distill.samples:
        averaged = distilled(run, model, averaged, store, recipe, out, ("table",), sheet, place, stop_after)
    if averaged is None:
        return out / "weights"
    return leave_model(run, finished(averaged), asdict(recipe), out, place)
