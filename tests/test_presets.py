"""Presets: every number says where it comes from, and they run through the command line on tiny models."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline, UniPCMultistepScheduler
from PIL import Image

from closeness import differs, rounding, same
from pipelines.test_wan import stock as wan
from tiny import save_tiny
from vsf.arch import supported
from vsf.cli import main
from vsf.images import read_settings
from vsf.presets import PRESETS, LoRA, Preset, SchedulerChange
from vsf.video import can_write, save_video


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "sd3")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pipe = wan()
    pipe.scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    folder = tmp_path_factory.mktemp("model") / "wan"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda p: p.name)
def test_every_number_has_a_source(preset: Preset) -> None:
    names = {"steps", "guidance_scale", "scale", "offset", *preset.call}
    names |= {"lora"} if preset.loras else set()
    names |= {"fps"} if preset.video else set()
    if preset.scheduler is not None:
        names.add("flow_shift" if "flow_shift" in preset.scheduler.config else "scheduler")
    assert set(preset.source) == names and all(preset.source.values())
    for name in ("scale", "offset"):  # nobody but the authors of VSF has published these
        assert preset.source[name].startswith(("published: ", "not measured: "))
        assert preset.source[name].startswith("not measured") or "weathon/VSF" in preset.source[name]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda p: p.name)
def test_a_preset_fits_its_pipeline(preset: Preset) -> None:
    cls = getattr(diffusers, preset.pipeline)
    accepted = inspect.signature(cls.__call__).parameters
    assert {"num_inference_steps", "guidance_scale", *preset.call} <= set(accepted)
    assert preset.video == ("num_frames" in accepted)
    made_of = inspect.signature(cls.__init__).parameters
    model = made_of.get("transformer") or made_of["unet"]
    assert any(name in str(model.annotation) for name in supported())
    if preset.guidance_scale > 1:  # an embedded guidance, not classifier-free: nothing is refused
        assert "embedded" in preset.source["guidance_scale"]
        assert preset.pipeline.startswith(("Flux", "HunyuanVideo", "SanaSprint"))
    if preset.needs_image:
        assert "image" in accepted
    assert preset.guidance().settings()["scale"] == preset.scale
    if preset.scheduler is not None:
        kind = getattr(diffusers, preset.scheduler.name)
        assert set(preset.scheduler.config) <= set(inspect.signature(kind.__init__).parameters)
    for lora in preset.loras:
        assert lora.file.endswith(".safetensors") and lora.repo.count("/") == 1
        assert hasattr(cls, "load_lora_weights")
    assert "timesteps" not in preset.call or len(preset.call["timesteps"]) == preset.steps
    assert "sigmas" not in preset.call or len(preset.call["sigmas"]) == preset.steps


def test_names_are_what_they_are_found_by() -> None:
    assert all(name == preset.name for name, preset in PRESETS.items())


def test_scheduler_and_lora(sd3: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model_state_dict

    trained = StableDiffusion3Pipeline.from_pretrained(sd3)
    trained.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    layers: Any = get_peft_model_state_dict(trained.transformer)
    StableDiffusion3Pipeline.save_lora_weights(tmp_path / "lora", layers, weight_name="own.safetensors")
    preset = replace(
        PRESETS["sd3.5-large-turbo"],
        loras=(LoRA(str(tmp_path / "lora"), "own.safetensors", 0.5),),
        scheduler=SchedulerChange("FlowMatchEulerDiscreteScheduler", {"shift": 5.0}),
    )

    def draw(pipe: Any) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        call: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "max_sequence_length": 16}
        return pipe("a red bike", generator=torch.Generator().manual_seed(0), guidance_scale=0.0, **call).images

    pipe = StableDiffusion3Pipeline.from_pretrained(sd3)
    plain = draw(pipe)
    preset.prepare(pipe, loras=False)
    assert pipe.scheduler.config.shift == 5.0 and not torch.equal(draw(pipe), plain)
    without = draw(pipe)
    preset.prepare(pipe)
    half = draw(pipe)
    pipe.transformer.set_adapters(["preset_0"], [0.0])
    bound = rounding(pipe, passes=2)
    same(draw(pipe), without, bound)
    pipe.transformer.set_adapters(["preset_0"], [1.0])
    differs(half, without, bound)
    differs(half, draw(pipe), bound)
    missing = replace(preset, loras=(LoRA(str(tmp_path / "lora"), "other.safetensors"),))
    with pytest.raises(ValueError, match="other.safetensors of the preset cannot be read"):
        missing.prepare(StableDiffusion3Pipeline.from_pretrained(sd3))


# -- vsf models -------------------------------------------------------------------------------------------------------


def test_models_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(f"{p.checkpoint}  {p.pipeline}" in out and name in out for name, p in PRESETS.items())


def test_models_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    listed = {p["name"]: p for p in json.loads(capsys.readouterr().out)}
    assert set(listed) == set(PRESETS)
    assert listed["wan2.1-1.3b-causvid"]["loras"][0]["strength"] == 0.5
    assert listed["sd3.5-large-turbo"]["source"]["scale"].startswith("published")


def test_one_model_shows_its_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "qwen-image-lightning"]) == 0
    out = capsys.readouterr().out
    assert "8steps-V1.0.safetensors" in out and "not measured" in out and "model card" in out
    assert main(["models", "sd3.5-large-tubro"]) == 2
    assert "did you mean sd3.5-large-turbo?" in capsys.readouterr().err


# -- vsf generate -----------------------------------------------------------------------------------------------------

BIKE = ["generate", "a red bike", "-N", "wheels"]


def test_a_preset_sets_what_is_not_given(sd3: Path) -> None:
    assert main([*BIKE, "--model", "sd3.5-large-turbo", "--model-path", str(sd3)]) == 0
    settings = read_settings("vsf.png")
    assert settings["steps"] == 8 and settings["guidance_scale"] == 0.0 and settings["model"] == "sd3.5-large-turbo"
    guidance = settings["guidance"]
    assert (guidance["scale"], guidance["offset"], guidance["layout"]) == (3.5, 0.1, "upstream")
    given = ["--steps", "2", "--scale", "2", "--layout", "paper", "--guidance-scale", "1"]
    assert main([*BIKE, "--model", "sd3.5-large-turbo", "--model-path", str(sd3), *given]) == 0
    settings = read_settings("vsf.png")
    assert settings["steps"] == 2 and settings["guidance_scale"] == 1.0
    assert settings["guidance"]["scale"] == 2.0 and settings["guidance"]["layout"] == "paper"


WAN = ["--model", "wan2.1-1.3b-causvid", "--no-lora", "--steps", "2", "--frames", "5", "--size", "32"]


def frames(path: str) -> list[np.ndarray]:
    with Image.open(path, formats=("GIF",)) as image:
        assert image.info["duration"] == 70 and image.info["loop"] == 0
        found: list[np.ndarray] = []
        for i in range(image.n_frames):  # pyright: ignore
            image.seek(i)
            found.append(np.asarray(image.convert("RGB")))
        return found


def test_a_video_model_writes_a_gif(video: Path) -> None:
    bike = ["generate", "a red bicycle", "-N", "wheels:2, chain"]
    assert main([*bike, *WAN, "--model-path", str(video)]) == 0
    shown = frames("vsf.gif")
    height, width, _ = shown[0].shape  # the tiny autoencoder enlarges less than a real one
    assert 1 < len(shown) <= 5  # equal frames are merged
    assert main([*bike, *WAN, "--model-path", str(video), "-o", "both.gif", "--compare"]) == 0
    both = frames("both.gif")
    assert both[0].shape == (height, 2 * width, 3)
    assert (both[0][:, :width] != both[0][:, width:]).any()
    assert main([*bike, *WAN, "--model-path", str(video), "-o", "many.gif", "--n", "2", "--seed", "4"]) == 0
    assert sorted(p.name for p in Path().iterdir()) == ["both.gif", "many-4.gif", "many-5.gif", "vsf.gif"]
    with Image.open("vsf.gif") as image:
        settings = json.loads(image.info["comment"])
    assert settings["guidance"]["scale"] == 1.7 and settings["extra"]["num_frames"] == 5


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--model", "demo", "--model-path", "."], "--model-path goes with a preset"),
        (["--model", "demo", "--no-lora"], "--no-lora goes with a preset"),
        (["--model", "flux-kontext"], "flux-kontext starts from a picture; give it with --image FILE"),
        (["--model", "flux-kontext", "--image", "none.png"], "cannot read the picture none.png: no such file"),
        (["--model", "flux-kontext", "--image", __file__], "it is no picture"),
        (["--model", "sd3.5-large-turbo", "--model-path", "nowhere"], "is no folder"),
        (["--model", "sd3.5-large-turbo"], "--download"),
        (["--model", "wan2.1-1.3b-causvid", "-o", "x.png"], "must end with .gif or .webp or .mp4"),
        (["--frames", "5"], "--frames is for video models"),
        (["-o", "x.gif"], "makes pictures; --out must end with .png, not x.gif"),
    ],
)
def test_bad_input(arguments: list[str], why: str, sd3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = [] if "--model" in arguments else ["--model", str(sd3)]
    assert main([*BIKE, *model, *arguments]) == 2
    assert why in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_bad_input_for_videos(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = [a for a in WAN if a != "--no-lora"]
    assert main([*BIKE, *lora, "--model-path", str(video)]) == 2
    assert "the LoRA Kijai/WanVideo_comfy/" in capsys.readouterr().err
    assert main([*BIKE, *WAN, "--model-path", str(video), "--map"]) == 2
    assert "--map is for pictures" in capsys.readouterr().err
    assert main([*BIKE, *WAN, "--model-path", str(video), "-o", "x.png"]) == 2
    if not can_write(".mp4"):
        assert main([*BIKE, *WAN, "--model-path", str(video), "-o", "x.mp4"]) == 2
        assert "value-sign-flip[video]" in capsys.readouterr().err


# -- video files ------------------------------------------------------------------------------------------------------


def test_save_video(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (16, 8), (60 * i, 0, 0)) for i in range(4)]
    save_video(pictures, tmp_path / "a.gif", 10, {"seed": 3, "offset": math.inf})
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 4 and image.info["duration"] == 100  # pyright: ignore
        assert json.loads(image.info["comment"]) == {"seed": 3, "offset": "inf"}
    save_video(pictures, tmp_path / "a.webp", 10)
    with Image.open(tmp_path / "a.webp") as image:
        assert image.format == "WEBP" and image.n_frames == 4 and image.size == (16, 8)  # pyright: ignore
    for name, given, why in (("a.avi", pictures, ".gif or .webp or .mp4"), ("a.gif", [], "at least one frame")):
        with pytest.raises(ValueError, match=why):
            save_video(given, tmp_path / name, 10)
    with pytest.raises(OSError):
        save_video(pictures, tmp_path / "nowhere" / "a.gif", 10)


@pytest.mark.skipif(not can_write(".mp4"), reason="imageio-ffmpeg is not installed")
def test_save_mp4(tmp_path: Path) -> None:
    save_video([Image.new("RGB", (32, 16), (60 * i, 0, 0)) for i in range(4)], tmp_path / "a.mp4", 10)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data[4:8] == b"ftyp" and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
