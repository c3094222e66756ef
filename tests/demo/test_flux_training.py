"""The Flux demo model: its training forward is the stock one, and its warm start keeps what it copies."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, SD3Transformer2DModel
from safetensors.torch import load_file

from closeness import close, rounding, same
from vsf.demo.model import Recipe, load_demo_pipeline
from vsf.demo.training.flux import (
    FluxRecipe,
    FluxTransformerRecipe,
    FluxVelocity,
    build_transformer,
    flux_components,
    pack,
    train_flux,
    unpack,
    warm_start,
)
from vsf.demo.training.recipes import read_recipe
from vsf.demo.training.sd3 import Velocity

TINY = FluxTransformerRecipe(heads=2, head_dim=16, dual=1, single=2, axes=(4, 6, 6), warm_start=False)
PROMPTS = ["a red bike with wheels", "wheels", "", "a plain blue house in the city"]


def stir(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.25 if parameter.ndim > 1 else 0.1)
            if "norm_q" in name or "norm_k" in name or "norm_added" in name:
                parameter.fill_(2.0)


def test_packing_is_the_pipelines() -> None:
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(pack(x), FluxPipeline._pack_latents(x, 2, 8, 6, 6))
    assert torch.equal(unpack(pack(x), 3), x)


@pytest.mark.parametrize("length", [64, 10])
def test_training_forward_is_what_the_stock_pipeline_computes(length: int) -> None:
    torch.manual_seed(0)
    sd3 = load_demo_pipeline()
    transformer = build_transformer(TINY, channels=8, text=128, pooled=64)
    stir(transformer)
    pipe = FluxPipeline(**flux_components(sd3, transformer))
    embeds, pooled, text_ids = pipe.encode_prompt(PROMPTS, PROMPTS, max_sequence_length=length)
    assert pooled.abs().max() == 0
    x, sigma, scale = torch.randn(4, 8, 8, 8), torch.tensor([0.9, 0.5, 0.7, 0.2]), torch.tensor([1.0, 3.5, 6.0, 2.0])
    ids = pipe._prepare_latent_image_ids(4, 4, 4, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        stock = transformer(
            hidden_states=pack(x),
            timestep=sigma,
            guidance=scale,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=ids,
        ).sample
        words = pipe.tokenizer_2(PROMPTS, padding="max_length", max_length=9, return_tensors="pt").input_ids
        pads = length - (words != 0).sum(1).float()
        model = FluxVelocity(transformer, sd3.text_encoder_3.shared.weight.detach(), 9, 4)
        ours, alone = model(x, sigma, scale, words, pads), model(x, sigma, scale, words, 0 * pads)
    stock = unpack(stock, 4)
    close(ours, stock, alone, rounding(model))  # the pads move it by far more


def test_warm_start_is_the_same_function_of_the_picture_but_for_the_positions() -> None:
    """With no text to be seen and no positions, SD3's transformer and the Flux one made of it agree."""
    torch.manual_seed(1)
    sd3 = load_demo_pipeline()
    blocks, heads, width = 2, 2, 32
    sd3.components["transformer"] = sd3.transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=8, out_channels=8, num_layers=blocks, attention_head_dim=16,
        num_attention_heads=heads, joint_attention_dim=128, caption_projection_dim=width, pooled_projection_dim=128,
        pos_embed_max_size=8, qk_norm="rms_norm",
    )  # fmt: skip
    stir(sd3.transformer)
    sd3.transformer.pos_embed.pos_embed.zero_()  # pyright: ignore[reportAttributeAccessIssue]  # a buffer, or None
    transformer = build_transformer(TINY, channels=8, text=128, pooled=64)
    warm_start(transformer, sd3.transformer)
    base = read_sd3()
    old = Velocity(base, {**sd3.components, "transformer": sd3.transformer})
    old.n_image = 16
    new = FluxVelocity(transformer, sd3.text_encoder_3.shared.weight.detach(), 5, 4)
    new.cos.fill_(1)
    new.sin.zero_()
    x, sigma, none = torch.randn(3, 8, 8, 8), torch.rand(3), torch.zeros(3)
    words = torch.zeros(3, 5, dtype=torch.long)
    with torch.no_grad():
        # what SD3 adds for the pooled text, which is zero here, is a constant that the Flux model has no place for
        constant = sd3.transformer.time_text_embed.text_embedder(torch.zeros(1, 128))
        transformer.time_text_embed.timestep_embedder.linear_2.bias += constant[0]
        for layer in transformer.time_text_embed.text_embedder.children():
            for parameter in layer.parameters():
                parameter.zero_()
        a, b = old(x, sigma, words, none)[0], new(x, sigma, none + 3, words, none)
    assert a.abs().max() > 0.1
    same(b, a, rounding(transformer))


def read_sd3() -> Recipe:
    recipe = Recipe.load()
    return replace(recipe, transformer=replace(recipe.transformer, heads=2, head_dim=16, blocks=2))


def test_warm_start_says_which_numbers_of_blocks_fit() -> None:
    sd3 = load_demo_pipeline().transformer
    with pytest.raises(ValueError, match="two single-stream blocks for each of the 5 SD3 blocks"):
        warm_start(build_transformer(TINY, 8, 128, 64), sd3)


def tiny_training() -> FluxRecipe:
    shipped = read_recipe(FluxRecipe, "flux")
    return FluxRecipe(
        shipped.seed,
        TINY,
        replace(shipped.train, rows=40, batch=8, warmup=16, compile=False),
        replace(shipped.targets, rows=40),
    )


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, base = tiny_training(), Recipe.load()
    few = replace(base, data=replace(base.data, rows=48, workers=0))
    monkeypatch.setattr(Recipe, "load", classmethod(lambda _cls: few))
    cache = tmp_path / "cache"
    whole = train_flux(recipe, tmp_path / "whole", cache)
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*.*")}
    for steps in (2, 1):
        train_flux(recipe, tmp_path / "parts", cache, stop_after=steps)
        assert not (tmp_path / "parts" / "weights").exists()
    parts = train_flux(recipe, tmp_path / "parts", cache)
    assert kept and kept == {path: path.stat().st_mtime_ns for path in cache.rglob("*.*")}, "rendered again"
    a, b = (load_file(f / "transformer" / "diffusion_pytorch_model.safetensors") for f in (whole, parts))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert a["proj_out.weight"].abs().max() > 0  # zero before training
    report = json.loads((parts / "training.json").read_text())
    assert report["samples"] == 40 and {"render", "encode", "transformer"} <= set(report["seconds"])
    pipe: Any = FluxPipeline.from_pretrained(parts, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a red bike", width=128, height=128, num_inference_steps=2, max_sequence_length=16).images[0]
    assert picture.size == (128, 128)
    other = replace(recipe, seed=recipe.seed + 1)
    with pytest.raises(ValueError, match="another recipe"):
        train_flux(other, tmp_path / "parts", cache)


def test_the_shipped_recipe_has_the_real_proportions() -> None:
    recipe = read_recipe(FluxRecipe, "flux").transformer
    assert isinstance(build_transformer(recipe, 8, 128, 64), FluxTransformer2DModel)
    assert recipe.single == 2 * recipe.dual  # 19 and 38 in Flux.1
    assert sum(recipe.axes) == recipe.head_dim
