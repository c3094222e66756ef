"""The demo model: what its stock pipeline promises, and that its training can be trusted."""

import copy
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from closeness import close, rounding, same
from vsf.cli import main
from vsf.demo.model import (
    DemoModelError,
    Recipe,
    build_components,
    build_pipeline,
    load_demo_pipeline,
)
from vsf.demo.models import demo_model
from vsf.demo.training import rows as rendering
from vsf.demo.training import sd3 as training
from vsf.demo.training.flow import RowStore, key_bias, noise_levels, pad_counts, text_tokens
from vsf.demo.training.loop import load_tensors, save_tensors
from vsf.demo.training.rows import render_chunk
from vsf.demo.training.sd3 import Velocity, fill_components
from vsf.demo.training.sd3 import train_sd3 as train
from vsf.demo.worlds import world

PROMPTS = ["a red bike with wheels", "wheels", "", "a plain blue house in the city"]


def tiny_recipe(**train_values: Any) -> Recipe:
    values = Recipe.load().to_dict()
    values["size"] = 32
    values["data"].update(rows=60, workers=0)
    values["vae"].update(channels=(8, 16, 16), latent_channels=4, samples=16, batch=4, decoder_samples=8)
    values["text"].update(clip_dim=16, pretrain_steps=3)
    values["transformer"].update(heads=2, head_dim=16, blocks=2)
    values["train"].update(samples=48, batch=8, warmup=16, compile=False)
    values["train"].update(train_values)
    values["distill"].update(samples=16)
    values["large"].update(size=64, rows=24, channels=(8, 8, 16, 16), samples=16, batch=8, warmup=8)
    return Recipe.from_dict(values)


@pytest.fixture
def stirred() -> tuple[Recipe, dict[str, Any], Velocity]:
    """Tiny components with every weight random (adaLN-zero would hide the text), pads left at zero."""
    torch.manual_seed(0)
    recipe = tiny_recipe()
    components = build_components(recipe)
    model = Velocity(recipe, components).eval()
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            parameter.normal_(std=0.25 if parameter.ndim > 1 else 0.1)
            if "norm_q" in name or "norm_k" in name or "norm_added" in name:
                parameter.fill_(2.0)
    return recipe, components, model


def word_ids(components: dict[str, Any], prompts: list[str], words: int = 8) -> torch.Tensor:
    out = components["tokenizer"](prompts, padding="max_length", max_length=words, return_tensors="pt")
    return out.input_ids


@pytest.mark.parametrize("max_length", [256, 64, 10])
def test_one_weighted_pad_equals_the_pads_of_the_stock_pipeline(
    stirred: Any, max_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: a key that stands for 256 has log(256) added to its score, whose rounding the order of sums is not."""
    recipe, components, model = stirred
    model = copy.deepcopy(model).double()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # training computes attention in float32
    words = word_ids(components, PROMPTS)
    n_words = (words != 0).sum(dim=1)
    x = torch.randn(len(PROMPTS), 4, recipe.latent_size, recipe.latent_size, dtype=torch.float64)
    sigma = torch.tensor([0.9, 0.5, 0.7, 0.2], dtype=torch.float64)
    pads = (16 + max_length - 2 * n_words).double()
    with torch.no_grad():
        ours, _ = model(x, sigma, words, pads)
        alone, _ = model(x, sigma, words, torch.zeros_like(pads))
        components = copy.deepcopy(components)
        fill_components(components, stirred[2].state_dict())
        pipe = build_pipeline(components)
        pipe.to(torch.float64)
        embeds, _, pooled, _ = pipe.encode_prompt(
            PROMPTS, PROMPTS, PROMPTS, do_classifier_free_guidance=False, max_sequence_length=max_length
        )
        stock = pipe.transformer(x, embeds, pooled, sigma * 1000, return_dict=False)[0]
    assert pooled.abs().max() == 0
    assert embeds.shape[1] == 16 + max_length
    norm = torch.finfo(torch.float32).eps / 2  # T5 takes the mean of its norm in float32
    # The pads themselves move the output by far more.
    close(ours, stock, alone, norm + rounding(model, torch.float64))


def test_masked_words_and_pads_cannot_be_seen(stirred: Any) -> None:
    recipe, components, model = stirred
    short = word_ids(components, PROMPTS[:2], 6)
    long = torch.nn.functional.pad(short, (0, 5))
    x = torch.randn(2, 4, recipe.latent_size, recipe.latent_size)
    sigma, none = torch.tensor([0.9, 0.3]), torch.zeros(2)
    with torch.no_grad():
        a, b = model(x, sigma, short, none)[0], model(x, sigma, long, none)[0]
    same(a, b, rounding(model))


def test_text_is_the_stock_text(stirred: Any) -> None:
    _, components, model = stirred
    words = word_ids(components, PROMPTS[:1], 5)
    fill_components(components, {k: v.clone() for k, v in model.state_dict().items()})
    embeds = build_pipeline(components).encode_prompt(
        PROMPTS[:1], PROMPTS[:1], PROMPTS[:1], do_classifier_free_guidance=False, max_sequence_length=7
    )[0]
    ours = text_tokens(model.clip, model.clip_2, model.t5, words)[0].detach()
    stock = torch.cat([embeds[0, :5], embeds[0, 16:21], embeds[0, -1:]]).detach()
    same(ours, stock, rounding(model))
    assert embeds[0, 5:16].abs().max() == 0 and embeds[0, 21:].abs().max() == 0


def test_new_transformer_ignores_everything_but_predicts_zero() -> None:
    recipe = tiny_recipe()
    model = Velocity(recipe, build_components(recipe))
    x = torch.randn(2, 4, recipe.latent_size, recipe.latent_size)
    words = torch.randint(2, 9, (2, 4))
    assert model(x, torch.rand(2), words, torch.ones(2))[0].abs().max() == 0


def test_key_bias_counts_pads_and_hides_absent_words() -> None:
    bias = key_bias(torch.tensor([[5, 0], [3, 4]]), torch.tensor([0.0, 7.0]), n_image=3)[:, 0, 0]
    assert bias.shape == (2, 3 + 4 + 1)
    weights = bias.exp()
    assert torch.equal(weights[0], torch.tensor([1.0, 1, 1, 1, 0, 1, 0, 0]))
    # exp(log 7): half a unit of log 7 = 1.9 and of the result, each twice as much in a vectorised function
    same(weights[1], torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 7]), 3 * torch.finfo(torch.float32).eps)


def test_stock_pipeline_survives_a_round_trip(tmp_path: Path) -> None:
    pipe: Any = build_pipeline(build_components(tiny_recipe()))
    pipe.save_pretrained(tmp_path / "w")
    again: Any = load_demo_pipeline(folder=tmp_path / "w")
    index = json.loads((tmp_path / "w" / "model_index.json").read_text())
    libraries = {value[0] for value in index.values() if isinstance(value, list)}
    assert libraries <= {"diffusers", "transformers", None}
    ids = [p.tokenizer(PROMPTS, padding="max_length").input_ids for p in (pipe, again)]
    assert ids[0] == ids[1] and len(ids[0][0]) == 16
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        before, after = getattr(pipe, name).state_dict(), getattr(again, name).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before)
    pictures = [
        p(PROMPTS, num_inference_steps=2, guidance_scale=0.0, output_type="np",
          generator=torch.Generator().manual_seed(3)).images
        for p in (pipe, again)
    ]  # fmt: skip
    assert pictures[0].shape == (4, 32, 32, 3)
    np.testing.assert_array_equal(pictures[0], pictures[1])


def test_tokenizer_knows_the_vocabulary_and_nothing_else() -> None:
    tokenizer = build_components(tiny_recipe())["tokenizer"]
    assert tokenizer("A RED  bike, with wheels!").input_ids == tokenizer("a red bike with wheels").input_ids
    ids = tokenizer(" ".join(world("pictures").vocabulary[:10])).input_ids
    assert len(set(ids)) == 10 and min(ids) >= 2
    assert tokenizer("zeppelin").input_ids == [1]
    assert tokenizer("").input_ids == []


def test_unknown_words() -> None:
    unknown_words = world("pictures").unknown_words
    assert unknown_words("A red bike, with Zeppelin and zeppelin wheels") == ["zeppelin"]
    assert unknown_words(["a red bike", "some wheels!"]) == ["some"]
    assert unknown_words("") == []


def test_missing_and_corrupt_weights(tmp_path: Path) -> None:
    with pytest.raises(DemoModelError, match="model_index"):
        load_demo_pipeline(folder=tmp_path)
    build_pipeline(build_components(tiny_recipe())).save_pretrained(tmp_path / "w")
    target = next((tmp_path / "w" / "transformer").glob("*.safetensors"))
    target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
    with pytest.raises(DemoModelError, match="cannot be read"):
        load_demo_pipeline(folder=tmp_path / "w")


def test_recipe_names_wrong_keys() -> None:
    values = Recipe.load().to_dict()
    values["vae"]["colour"] = 1
    del values["train"]["lr"]
    with pytest.raises(ValueError, match="colour"):
        Recipe.from_dict({**values, "train": Recipe.load().to_dict()["train"]})
    with pytest.raises(ValueError, match="lr"):
        Recipe.from_dict({**values, "vae": Recipe.load().to_dict()["vae"]})


def test_rows_are_reproducible_and_pairs_differ_only_in_their_parts() -> None:
    a, b = (render_chunk(1, 2, 40, 32, 8, 12) for _ in range(2))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    second = np.flatnonzero(a["second"])
    assert len(second) > 5
    for i in second:
        assert a["object"][i] == a["object"][i - 1] and a["color"][i] == a["color"][i - 1]
        assert not np.array_equal(a["parts"][i], a["parts"][i - 1])


def test_batches_keep_pairs_together_and_share_noise() -> None:
    data = render_chunk(1, 0, 60, 32, 8, 12)
    store = RowStore.build(data, torch.zeros(60, 4, 8, 8, dtype=torch.float16), torch.device("cpu"))
    drawn = store.draw(np.random.default_rng(0), 16, tiny_recipe().train)
    rows, source = drawn.row.tolist(), drawn.source.tolist()
    assert len(rows) == 16
    for i, row in enumerate(rows):
        if data["second"][row]:
            assert rows[i - 1] == row - 1 and source[i] == source[i - 1]
            assert drawn.sigma[i] == drawn.sigma[i - 1] and drawn.pads[i] == drawn.pads[i - 1]
        else:
            assert source[i] == i


def test_noise_and_pads_follow_the_recipe() -> None:
    rng = np.random.default_rng(0)
    levels = noise_levels(rng, 20000, 0.8, 1.0, 0.1)
    assert levels.min() > 0 and levels.max() < 1
    assert abs(np.median(levels) - 1 / (1 + np.exp(-0.76))) < 0.02
    pads = pad_counts(rng, 20000, 0.5)
    assert abs((pads == 0).mean() - 0.5) < 0.02
    assert pads.max() <= 256 and pads[pads > 0].min() >= 1


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    whole = train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", stop_after=2)
    assert not (tmp_path / "parts" / "weights").exists()
    parts = tmp_path / "parts" / "weights"
    while not parts.exists():
        assert train(recipe, tmp_path / "parts", stop_after=1) == parts
    for name in ("vae", "transformer"):
        a, b = (load_file(f / name / "diffusion_pytorch_model.safetensors") for f in (whole, parts))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a), name
    assert any(v.abs().max() > 0 for k, v in a.items() if k.startswith("proj_out"))
    report = json.loads((parts / "training.json").read_text())
    assert report["samples"] == 48 and report["torch"] == torch.__version__
    assert {"render", "autoencoder", "encode", "decoder", "text", "transformer", "large"} <= set(report["seconds"])
    other = replace(recipe, seed=recipe.seed + 1)
    with pytest.raises(ValueError, match="another recipe"):
        train(other, tmp_path / "parts")


def test_the_command_trains_by_a_recipe_file_and_keeps_rows_in_the_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = tiny_recipe().to_dict()
    tables = {name: table for name, table in values.items() if isinstance(table, dict)}
    lines = [f"{name} = {value}" for name, value in values.items() if name not in tables]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    (tmp_path / "tiny.toml").write_text("\n".join(lines))
    folders = ["--out", str(tmp_path / "run"), "--cache", str(tmp_path / "rows")]
    assert main(["demo", "train", "--recipe", str(tmp_path / "tiny.toml"), "--device", "cpu", *folders]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "run" / "weights")
    pipe: Any = load_demo_pipeline(folder=tmp_path / "run" / "weights")
    assert pipe.transformer.config.num_layers == 2 and pipe.vae.config.sample_size == 64  # twice what it learnt from
    assert pipe("a red bike", num_inference_steps=1, guidance_scale=0.0).images[0].size == (64, 64)
    assert {path.suffix for path in (tmp_path / "rows").rglob("*.*")} == {".npy", ".safetensors"}
    checkpoints = {path.name for path in (tmp_path / "run").glob("*.safetensors")}
    assert checkpoints == {
        f"{phase}.safetensors" for phase in ("vae", "decoder", "transformer", "distillation", "large")
    }


def test_two_trainings_that_begin_together_render_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, real = tiny_recipe(), rendering.render_data
    begun: list[Path] = []
    both = threading.Event()

    def slow(recipe: Recipe, folder: Path, *which: Any) -> Any:
        begun.append(folder)
        both.wait(0.5)  # for the other one, if it did not wait
        return real(recipe, folder, *which)

    monkeypatch.setattr(rendering, "render_data", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: rendering.rendered(recipe, tmp_path / "cache")[1], range(2))
    assert first == second and first.is_dir() and len(begun) == 1


def test_starting_over_removes_what_the_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    recipe = tiny_recipe(report_minutes=0.0)  # checkpoint, sheet and curve after every step
    train(recipe, tmp_path, stop_after=2)
    written = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert {"vae.safetensors", "transformer.safetensors", "transformer-00000016.png", "run.json"} <= written
    foreign = ["holiday.png", "notes.json", "lora.safetensors", "transformer-sketch.png"]
    for name in foreign:
        (tmp_path / name).write_text("mine")
    train(replace(recipe, seed=recipe.seed + 1), tmp_path, resume=False, stop_after=0)
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert left == {
        *foreign,
        "recipe.json",
        "run.json",
        "vae.safetensors",
        "decoder.safetensors",
        "transformer.safetensors",
    }


@pytest.mark.parametrize("phase", ["encoded", "train_decoder", "Optimisation"])
def test_a_resumed_run_computes_on_the_same_memory_layout(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal values in another layout are summed in another order, on some processors: so the layout is looked at."""
    recipe, seen = tiny_recipe(), []
    real = getattr(training, phase)

    def look(*args: Any) -> Any:
        tensors = dict(enumerate(a for a in args if isinstance(a, torch.Tensor)))
        for module in (a for a in args if isinstance(a, torch.nn.Module)):
            tensors |= module.state_dict()
        for store in (a for a in args if isinstance(a, RowStore)):
            tensors |= {k: v for k, v in vars(store).items() if isinstance(v, torch.Tensor)}
        seen.append({k: (v.detach().clone(), v.stride(), v.data_ptr() % 64) for k, v in tensors.items()})
        if len(seen) == 1:
            raise KeyboardInterrupt  # as if stopped where the phase begins
        return real(*args)

    monkeypatch.setattr(training, phase, look)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path)
    train(recipe, tmp_path)
    (first, resumed), names = seen[:2], sorted(map(str, seen[0]))  # "Optimisation" comes once more, to distil
    assert names == sorted(map(str, resumed)) and len(names) > 2
    for key, (value, stride, offset) in first.items():
        assert torch.equal(value, resumed[key][0]), key
        assert (stride, offset) == resumed[key][1:], key


def test_what_a_checkpoint_held_is_put_into_fresh_storage(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.arange(5).byte(), "c": torch.randn(7, 3)}
    save_tensors(tmp_path / "x.safetensors", tensors)
    loaded = load_tensors(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, value in loaded.items():
        assert torch.equal(value, tensors[name])
        assert value.data_ptr() % 64 == torch.empty(3).data_ptr() % 64, name


def test_shipped_model_is_stock_small_and_of_this_world() -> None:
    folder = demo_model("demo").weights
    assert sum(f.stat().st_size for f in folder.rglob("*.safetensors")) < 20e6
    assert not [f for f in folder.rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".py")]
    assert json.loads((folder / "training.json").read_text())["recipe"] == json.loads(
        json.dumps(Recipe.load().to_dict())
    )
    pipe: Any = load_demo_pipeline()
    words = pipe.tokenizer.get_vocab()
    assert sorted(words, key=words.__getitem__)[2:] == list(world("pictures").vocabulary)
    embeds, _, pooled, _ = pipe.encode_prompt("wheels", "wheels", "wheels", do_classifier_free_guidance=False)
    assert pooled.abs().max() == 0
    assert embeds[0, 1:16].abs().max() == 0 and embeds[0, 17:].abs().max() == 0
    pipe.set_progress_bar_config(disable=True)
    bare, plain = pipe(
        ["a red bike", "a plain red bike"], num_inference_steps=4, guidance_scale=0.0, output_type="np",
        generator=[torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)],
    ).images  # fmt: skip
    assert bare.shape == (128, 128, 3) and np.isfinite(bare).all() and bare.std() > 0.05
    assert np.abs(bare - plain).max() > 0.2
