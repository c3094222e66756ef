"""The Wan demo model: what trains is what the stock pipeline computes, and a tiny one goes all the way from nothing to a clip."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from PIL import Image
from safetensors.torch import load_file

from closeness import close, rounding, same
from vsf import CFG, NAG, NASA, VSF
from vsf.bench.demo import Scope, run_demo
from vsf.cli import main
from vsf.demo import clips
from vsf.demo.gate import run_gate, unguided
from vsf.demo.models import MODELS, DemoModel, Shown, model_of
from vsf.demo.training.recipes import read_recipe
from vsf.demo.training.rows import pictures_of, render_chunk
from vsf.demo.training.wan import (
    WanRecipe,
    WanTransformerRecipe,
    WanVelocity,
    build_wan_components,
    train_wan,
)
from vsf.demo.training.wan_autoencoder import ClipCoder, build_autoencoder

PROMPTS = ["a red bike with wheels", "wheels", "", "a plain blue house in the city"]


def tiny() -> WanRecipe:
    shipped = read_recipe(WanRecipe, "wan")
    return replace(
        shipped,
        data=replace(shipped.data, rows=24, workers=0),
        vae=replace(
            shipped.vae,
            base_dim=8,
            decoder_base_dim=16,
            dim_mult=(1, 2, 2),
            channels=4,
            frames=72,
            stills=36,
            even=54,
            batch=18,
            warmup=18,
            compile=False,
        ),
        text=replace(shipped.text, width=32, pretrain_steps=2),
        transformer=WanTransformerRecipe(heads=2, head_dim=16, ffn=32, blocks=2),
        stills=replace(shipped.stills, rows=24, samples=16, batch=8),
        train=replace(shipped.train, samples=24, batch=8, warmup=8, compile=False),
        distill=replace(shipped.distill, samples=16),
    )


def stir(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.25 if parameter.ndim > 1 else 0.1)
            if "norm_q" in name or "norm_k" in name:
                parameter.fill_(2.0)


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_the_coder_of_training_is_the_stock_autoencoder(frames: int) -> None:
    torch.manual_seed(0)
    vae = build_autoencoder(tiny().vae)
    x = torch.rand(2, 3, frames, 64, 64) * 2 - 1
    with torch.no_grad():
        parameters = vae.encode(x).latent_dist.parameters
        clip = vae.decode(parameters[:, :4]).sample
        coder = ClipCoder(vae)
        mean, logvar = coder.encode(x)
        same(torch.cat([mean, logvar], 1), parameters, rounding(vae.encoder))
        same(coder.decode(mean).clamp(-1, 1), clip, rounding(vae))
    assert clip.shape == x.shape and mean.shape == (2, 4, 1 + (frames - 1) // 4, 8, 8)


def test_the_autoencoder_begins_with_every_frame_by_itself() -> None:
    torch.manual_seed(0)
    vae = build_autoencoder(tiny().vae)
    picture = torch.rand(1, 3, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        one = vae.decode(vae.encode(picture).latent_dist.mean).sample
        nine = vae.decode(vae.encode(picture.expand(-1, -1, 9, -1, -1)).latent_dist.mean).sample
    for frame in nine.split(1, 2)[1:]:
        same(frame, nine[:, :, 1:2], rounding(vae))  # what stands still stays so
    assert (nine[:, :, :1] - one).abs().max() < 1e-6


@pytest.mark.parametrize("length", [64, 10])
def test_training_forward_is_what_the_stock_pipeline_computes(length: int) -> None:
    torch.manual_seed(0)
    components = build_wan_components(tiny())
    stir(components["transformer"])
    pipe = WanPipeline(**components)
    embeds, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False, max_sequence_length=length)
    x, sigma = torch.randn(4, 4, 3, 8, 8), torch.tensor([0.9, 0.5, 0.7, 0.2])
    with torch.no_grad():
        stock = pipe.transformer(x, sigma * 1000, embeds).sample
        words = pipe.tokenizer(PROMPTS, padding="max_length", max_length=9, return_tensors="pt").input_ids
        pads = length - (words != 0).sum(1).float()
        model = WanVelocity(pipe.transformer, pipe.text_encoder.shared.weight)
        ours, alone = model(x, sigma, words, pads)[0], model(x, sigma, words, 0 * pads + 1)[0]
    close(ours, stock, alone, rounding(model))  # the number of pads moves it by far more


def test_rows_of_clips_are_labelled_per_latent_frame() -> None:
    rows = render_chunk(3, 0, 6, 64, 8, 12, "clips")
    assert rows["image"].shape == (6, 9, 64, 64, 3) and rows["mask"].shape == (6, 3, 8, 8)
    assert rows["mask"].any((1, 2, 3)).all() and rows["parts"].any(1).sum() >= 3
    assert (rows["image"][:, 0] != rows["image"][:, -1]).any((1, 2, 3)).all()
    first = render_chunk(3, 0, 6, 64, 8, 12, "clips", still=True)
    assert rows.keys() == first.keys()
    assert all(np.array_equal(first[k], v[:, :1] if k in ("image", "mask") else v) for k, v in rows.items())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The weights of a run in one go, and of one that was interrupted in every part."""
    folder = tmp_path_factory.mktemp("wan")
    often = replace(tiny(), vae=replace(tiny().vae, save_minutes=0.0))  # how often it is saved changes nothing
    whole = train_wan(often, folder / "whole", folder / "cache")
    for steps in (2, 1, 1, 1, 1):  # of each part that is not done
        train_wan(tiny(), folder / "parts", folder / "cache", stop_after=steps)
        assert not (folder / "parts" / "weights").exists()
    return whole, train_wan(tiny(), folder / "parts", folder / "cache")


def test_interrupted_and_resumed_equals_uninterrupted(trained: tuple[Path, Path]) -> None:
    for name in ("transformer", "vae"):
        a, b = (load_file(f / name / "diffusion_pytorch_model.safetensors") for f in trained)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        assert name == "vae" or a["proj_out.weight"].abs().max() > 0  # zero before training
    report = json.loads((trained[1] / "training.json").read_text())
    assert report["samples"] == 24 and len(report["psnr"]) == 9
    assert {"render", "vae", "encode", "stills", "transformer", "distillation"} <= set(report["seconds"])
    with pytest.raises(ValueError, match="another recipe"):
        train_wan(replace(tiny(), seed=1), trained[1].parent)


def test_latents_are_what_the_pipeline_takes_them_for(trained: tuple[Path, Path]) -> None:
    """It decodes x std + mean: so the model's latents, (z - mean) / std, have mean 0 and variance 1."""
    vae = WanPipeline.from_pretrained(trained[0], dtype=torch.float32).vae
    data = render_chunk(tiny().seed, 0, 24, 64, 8, 12, "clips")["image"]
    with torch.no_grad():
        z = torch.cat(
            [vae.encode(pictures_of(data[i : i + 8], torch.device("cpu"))).latent_dist.mean for i in (0, 8, 16)]
        )
    mean, std = (torch.tensor(getattr(vae.config, f"latents_{name}")) for name in ("mean", "std"))
    x = (z - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)
    assert x.mean((0, 2, 3, 4)).abs().max() < 0.05 and (x.std((0, 2, 3, 4)) - 1).abs().max() < 0.05


@pytest.fixture
def record(trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> DemoModel:
    record = DemoModel(
        name="tiny-wan", title="Tiny", world="clips", pipeline="WanPipeline", network="WanTransformer3DModel",
        folder=str(trained[0]), steps=2, size=(64, 64), guidance_scale=1.0, text_length=16,
        call={"width": 64, "height": 64, "num_frames": clips.FRAMES}, recommended=VSF(scale=1.5, offset=1.0),
        strong=VSF(scale=4.0), tuned={"nag": NAG(), "nasa": NASA(), "cfg": CFG()}, sizes=("64x64",), multiple=16,
        largest=128, shown=(Shown("a red bike", "wheels", 3),), fps=8,
    )  # fmt: skip
    monkeypatch.setitem(MODELS, record.name, record)
    return record


def test_a_record_of_it_draws_clips(record: DemoModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record.is_there and record.of_world() is clips.WORLD
    pipe: Any = record.load()
    assert model_of(pipe) is record
    pipe.set_progress_bar_config(disable=True)
    drawn = unguided(pipe, record)(["a red bike", "a blue boat by the sea"], [1, 2])
    assert drawn.shape == (2, clips.FRAMES, 64, 64, 3) and np.isfinite(drawn).all()
    report = run_gate(unguided(pipe, record), record.of_world(), record.of_world().load_oracle(), n=1)
    assert all(len(p["quality"]) == clips.FRAMES for p in report.pictures)
    out = tmp_path / "bike.gif"
    assert main(["generate", "a red bike", "-N", "wheels", "--model", "tiny-wan", "-o", str(out)]) == 0
    with Image.open(out) as image:
        assert image.size == (64, 64) and image.n_frames > 1  # type: ignore[attr-defined]
    for name in ("sheet.webp", "sheet.png"):
        assert main(["demo", "show", "--model", "tiny-wan", "-o", str(tmp_path / name)]) == 0
    with Image.open(tmp_path / "sheet.webp") as moving, Image.open(tmp_path / "sheet.png") as middle:
        assert moving.n_frames > 1 and moving.size == middle.size  # type: ignore[attr-defined]
    assert main(["demo", "show", "-o", str(tmp_path / "still.webp")]) == 2
    assert "must end with .png" in capsys.readouterr().err


def test_the_benchmark_judges_its_clips(record: DemoModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("vsf.bench.demo.DEFAULT_ARMS", ("vsf",))
    scope = Scope(budget=1, dev_cases=1, more=0, cases=1, seeds=1, ablation_seeds=1)
    _, table = run_demo(tmp_path / "bench", scope, model=record.name, workers=1)
    assert "| flicker | motion kept |" in table.read_text("utf-8")


def test_the_shipped_recipe_is_small_enough_and_spans_the_world() -> None:
    recipe = read_recipe(WanRecipe, "wan")
    components = build_wan_components(recipe)
    count = {k: sum(p.numel() for p in components[k].parameters()) for k in ("vae", "text_encoder", "transformer")}
    assert 2 * sum(count.values()) <= 21e6 and 3.5e6 <= count["transformer"] <= 6e6
    assert recipe.latent_size == 8 and recipe.stills.samples % recipe.stills.batch == 0
    vae = components["vae"]
    assert vae.config.scale_factor_temporal == 4 and (clips.FRAMES - 1) % vae.config.scale_factor_temporal == 0
    assert set(recipe.vae.stretches) <= {1, 5, 9}
    with pytest.raises(ValueError, match="three entries"):
        build_autoencoder(replace(recipe.vae, dim_mult=(1, 2)))
