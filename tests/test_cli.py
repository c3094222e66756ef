"""The command line: pictures with their settings, and one sentence for every mistake."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline
from PIL import Image

from tiny import save_tiny
from vsf import METHODS, knobs
from vsf.cli import main
from vsf.demo import pictures as world
from vsf.demo.models import MODELS
from vsf.draw import Request, draw
from vsf.guidance import VARIANTS
from vsf.images import guidance_from, read_settings
from vsf.loading import load_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


RED_BIKE = ["generate", "a red bike", "--negative", "wheels", "--steps", "3"]


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_a_picture_can_be_made_again_from_its_own_settings(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RED_BIKE, "--model", str(tiny), "--seed", "5", "--scale", "3", "--offset", "0.3"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("vsf.png") and "scale 3" in out and err == ""
    settings = read_settings("vsf.png")
    assert settings["guidance"]["scale"] == 3.0 and settings["seed"] == 5 and settings["size"] == [32, 32]
    request = Request(
        settings["prompt"], settings["negative"], guidance_from(settings), settings["steps"], settings["seed"]
    )
    again = draw(load_model(settings["model"]), request)
    assert np.array_equal(np.asarray(again.guided[0]), pixels("vsf.png"))


@pytest.mark.parametrize(("asked", "used"), [(None, 1), ("2", 2)])
def test_an_embedded_model_computes_in_one_thread(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, used: int
) -> None:
    """It is too small for more: a second thread makes every operation wait where the other core is busy."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    try:
        torch.set_num_threads(2)
        load_model("demo")
        assert torch.get_num_threads() == used
    finally:
        torch.set_num_threads(before)


def test_every_picture_of_several_has_its_own_seed(tiny: Path) -> None:
    assert main([*RED_BIKE, "--model", str(tiny), "--n", "3", "--seed", "7", "-o", "many.png"]) == 0
    files = ["many-7.png", "many-8.png", "many-9.png"]
    assert sorted(p.name for p in Path().iterdir()) == files
    assert [read_settings(f)["seed"] for f in files] == [7, 8, 9]
    assert main([*RED_BIKE, "--model", str(tiny), "--seed", "8"]) == 0
    # A batch of three and a single picture round differently; the noise is the same.
    assert np.abs(pixels("vsf.png").astype(int) - pixels("many-8.png")).max() <= 2
    assert np.abs(pixels("vsf.png").astype(int) - pixels("many-9.png")).max() > 20


def test_without_a_negative_the_model_draws_what_it_draws(tiny: Path) -> None:
    assert main(["generate", "a red bike", "--model", str(tiny), "--steps", "2"]) == 0
    pipe = load_model(str(tiny))
    noise = torch.Generator().manual_seed(0)
    stock = pipe("a red bike", num_inference_steps=2, guidance_scale=0.0, generator=noise, max_sequence_length=16)
    assert np.array_equal(np.asarray(stock.images[0]), pixels("vsf.png"))
    assert read_settings("vsf.png")["guidance"]["method"] == "none"


def test_compare_and_map_show_the_same_noise_side_by_side(tiny: Path) -> None:
    assert main([*RED_BIKE, "--model", str(tiny), "--compare", "--map"]) == 0
    page = pixels("vsf.png")
    assert page.shape[1] > 3 * 256 and page.shape[0] > 256
    pipe = load_model(str(tiny))
    from vsf import VSF

    drawn = draw(pipe, Request("a red bike", "wheels", VSF(3.0), 3), compare=True, record=True)
    assert np.array_equal(np.asarray(drawn.plain[0]), np.asarray(draw(pipe, Request("a red bike", steps=3)).guided[0]))
    assert not np.array_equal(np.asarray(drawn.plain[0]), np.asarray(drawn.guided[0]))
    assert drawn.suppression is not None and drawn.suppression.steps == [0, 1, 2]


@pytest.mark.parametrize("method", [m for m in METHODS if m != "none"])
def test_every_knob_of_every_method_is_an_option(method: str, tiny: Path) -> None:
    values: dict[str, Any] = {"start": 0.0, "stop": 1.0} if method == "cfg" else {"start": 0.1, "stop": 0.8}
    arguments: list[str] = []
    for name, knob in knobs(METHODS[method]).items():
        values.setdefault(name, knob.choices[-1] if knob.choices else 0.75 if name == "alpha" else 1.25)
        arguments += [f"--{name}", str(values[name])]
    assert main([*RED_BIKE, "--model", str(tiny), "--method", method, *arguments]) == 0
    guidance = read_settings("vsf.png")["guidance"]
    assert guidance == {"method": method, "blocks": None} | values


@pytest.mark.parametrize("method", ["vsf", "nag", "nasa"])
def test_blocks_are_numbers_and_ranges(method: str, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(tiny), "--method", method, "--scale", "3"]
    pictures: dict[str, Any] = {}
    for text, wanted in (("0", [0]), ("0-1", [0, 1]), (" 1 , 0 ", [0, 1]), ("1-1", [1]), ("all", None)):
        assert main([*RED_BIKE, *model, "--blocks", text]) == 0
        assert read_settings("vsf.png")["guidance"]["blocks"] == wanted
        pictures[text] = pixels("vsf.png")
    assert "blocks" in capsys.readouterr().out
    assert np.array_equal(pictures["all"], pictures["0-1"]) and not np.array_equal(pictures["0"], pictures["1-1"])
    again = draw(load_model(str(tiny)), Request("a red bike", "wheels", guidance_from(read_settings("vsf.png")), 3))
    assert np.array_equal(np.asarray(again.guided[0]), pictures["all"])


@pytest.mark.parametrize("method", VARIANTS)
def test_every_variant_can_be_drawn_with_and_drawn_again(method: str, tiny: Path) -> None:
    assert main([*RED_BIKE, "--model", str(tiny), "--method", method, "--scale", "3", "--map"]) == 0
    settings = read_settings("vsf.png")
    guidance = guidance_from(settings)
    assert type(guidance) is VARIANTS[method] and guidance == VARIANTS[method](3.0)
    assert main([*RED_BIKE, "--model", str(tiny), "--method", method, "--scale", "3"]) == 0
    again = draw(load_model(str(tiny)), Request("a red bike", "wheels", guidance, settings["steps"]))
    assert np.array_equal(np.asarray(again.guided[0]), pixels("vsf.png"))


@pytest.mark.parametrize(
    ("given", "start", "stop"), [("--start 0.8", 0.8, 1.0), ("--start 0.5", 0.5, 0.75), ("--stop 0.5", 0.0, 0.5)]
)
def test_an_end_of_the_range_alone_goes_with_any_default(given: str, start: float, stop: float, tiny: Path) -> None:
    """The demo's own range ends at 0.75; who asks for steps behind it gets them."""
    assert MODELS["demo"].recommended.stop == 0.75
    assert main([*RED_BIKE, "--model", str(tiny), *given.split()]) == 0
    guidance = read_settings("vsf.png")["guidance"]
    assert (guidance["start"], guidance["stop"]) == (start, stop)


def test_a_range_without_steps_is_a_warning(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RED_BIKE, "--model", str(tiny), "--start", "0.5", "--stop", "0.5"]) == 0
    err = capsys.readouterr().err
    assert err == "warning: start 0.5 to stop 0.5 held none of the steps that ran, so nothing was guided there\n"


def test_a_picture_to_start_from(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    StableDiffusion3Img2ImgPipeline(**load_model(str(tiny)).components).save_pretrained(tmp_path / "i2i")
    Image.new("RGB", (32, 32), "red").save("red.png")
    Image.new("RGB", (32, 32), "blue").save("blue.png")
    folder = ["--model", str(tmp_path / "i2i"), "--scale", "3"]
    capsys.readouterr()
    drawn = []
    for name in ("red.png", "blue.png"):
        assert main([*RED_BIKE, *folder, "--image", name, "-o", f"from-{name}"]) == 0
        assert read_settings(f"from-{name}")["extra"] == {"image": name}
        drawn.append(pixels(f"from-{name}"))
    assert capsys.readouterr().err == "" and not np.array_equal(*drawn)
    fails(capsys, [*RED_BIKE, *folder, "--image", "red.png", "--mask", "red.png"], "takes no --mask")
    fails(capsys, [*RED_BIKE, "--model", str(tiny), "--image", "red.png"], "StableDiffusion3Pipeline takes no --image")
    fails(capsys, [*RED_BIKE, *folder, "--image", "green.png"], "cannot read the picture green.png: no such file")


@pytest.mark.parametrize("where", ["guided", "plain"])
def test_a_picture_of_nan_is_an_error_and_no_file(
    where: str, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        pipe = load_model(*args, **kwargs)
        decode = pipe.vae.decode

        def decoded(*args: Any, **kwargs: Any) -> Any:
            (picture,) = decode(*args, **kwargs)
            picture[..., :3, :3] = float("nan")
            return (picture,)

        pipe.vae.decode = decoded
        return pipe

    monkeypatch.setattr("vsf.loading.load_model", broken)
    negative = ["-N", "wheels"] if where == "guided" else []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fails(
            capsys, ["generate", "a red bike", *negative, "--model", str(tiny), "--steps", "1", "--seed", "3"],
            "the picture of seed 3 holds values that are not numbers (NaN)",
        )  # fmt: skip


def test_words_the_demo_model_does_not_know_are_named(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a red spaceship", "-N", "lasers", "--model", str(tiny), "--steps", "1"]) == 0
    err = capsys.readouterr().err
    assert "'spaceship', 'lasers'" in err and all(word in err.split() for word in world.VOCABULARY)


def test_weights_in_the_negative_and_in_the_prompt(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a red bike (basket:-0.5)", "-N", "wheels", "--model", str(tiny), "--steps", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("not wanted: 'wheels' with weight 1, 'basket' with weight 0.5\n")
    settings = read_settings("vsf.png")
    assert settings["prompt"] == "a red bike" and settings["negative"] == "wheels, basket:0.5"


def test_an_item_with_times_of_its_own(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["generate", "a red bike", "--model", str(tiny), "--steps", "4"]
    assert main([*call, "-N", "wheels", "--start", "0.25", "--stop", "0.75", "-o", "range.png"]) == 0
    assert main([*call, "-N", "wheels", "-o", "whole.png"]) == 0
    capsys.readouterr()
    assert main([*call, "-N", "[wheels:0.25,0.75]"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("not wanted: 'wheels' with weight 1 from 0.25 to 0.75 of the steps\n")
    assert np.array_equal(pixels("vsf.png"), pixels("range.png"))
    assert not np.array_equal(pixels("vsf.png"), pixels("whole.png"))
    assert main(["generate", "a red bike [(wheels:-1):0.25,0.75]", *call[2:], "-o", "inline.png"]) == 0
    assert np.array_equal(pixels("inline.png"), pixels("range.png"))
    assert read_settings("inline.png")["negative"] == "[wheels:0.25,0.75]"
    assert main([*call, "-N", "[wheels:3]"]) == 2
    assert "the time 3 at character 9" in capsys.readouterr().err


def test_a_time_is_no_weight(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a red bike", "-N", "a bike at 12:30", "--model", str(tiny), "--steps", "1"]) == 0
    assert capsys.readouterr().out.startswith("vsf.png")
    assert read_settings("vsf.png")["negative"] == "a bike at 12:30"


# -- mistakes ---------------------------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown method": (["--method", "vfs"], "did you mean vsf?"),
    "unknown variant": (["--method", "vsf-txt"], "did you mean vsf-text?"),
    "setting without guidance": (
        ["--method", "none", "--scale", "2"],
        "method none has no setting --scale; it has none",
    ),
    "knob is no number": (["--scale", "strong"], "--scale is 'strong'"),
    "knob is NaN": (["--scale", "nan"], "VSF.scale is nan; allowed: 0 to 10000"),
    "knob is negative": (["--scale", "-1"], "VSF.scale is -1"),
    "start after stop": (["--start", "0.8", "--stop", "0.2"], "start (0.8) must not be greater than stop (0.2)"),
    "knob of another method": (["--tau", "3"], "method vsf has no setting --tau"),
    "layout": (["--layout", "papper"], "allowed: paper, upstream"),
    "blocks are no numbers": (["--blocks", "1,x"], "--blocks is '1,x'; allowed: numbers and ranges such as 0-18,24"),
    "block range backwards": (["--blocks", "4-1"], "the range 4-1 ends before it begins"),
    "a block too many": (["--blocks", "0-1,7-8"], "blocks names 7, 8; SD3Transformer2DModel has 2 blocks"),
    "blocks of CFG": (["--method", "cfg", "--blocks", "1"], "method cfg has no setting --blocks; it has --scale"),
    "guidance scale is NaN": (["--guidance-scale", "nan"], "guidance_scale is nan; allowed: a number from 0 up"),
    "guidance scale is negative": (["--guidance-scale", "-1"], "guidance_scale is -1"),
    "size between": (
        ["--size", "33"],
        "size is 33x33; StableDiffusion3Pipeline takes multiples of 8 up to 64 pixels a side",
    ),
    "size too large": (
        ["--size", "512"],
        "size is 512x512; StableDiffusion3Pipeline takes multiples of 8 up to 64 pixels",
    ),
    "negative too long": (["--negative", "wheels " * 20], "is 20 tokens long, counted with special tokens"),
    "picture for a model that takes none": (["--image", __file__], "it is no picture"),
    "no such option": (["--skale", "2"], "--skale"),
    "no such folder": (["--model", "/no/such/folder"], "no model folder /no/such/folder"),
    "not in the cache": (["--model", "nobody/nothing"], "--download"),
    "not a picture name": (["--out", "bike.jpg"], "must end with .png"),
    "no such out folder": (["--out", "missing/bike.png"], "cannot write missing/bike.png"),
    "out below a file": (["--out", "/dev/null/bike.png"], "cannot write /dev/null/bike.png"),
    "weight": (["--negative", "wheels:-2"], "weight"),
    "size": (["--size", "big"], "--size is 'big'"),
    "endless size": (["--size", "9" * 5000], "allowed: a number of pixels"),
    "tiny size": (["--size", "4"], "8 to 8192"),
    "steps": (["--steps", "0"], "--steps"),
    "device": (["--device", "abacus"], "device 'abacus' is not usable here"),
    "dtype": (["--dtype", "float31"], "did you mean float32?"),
    "map of another method": (["--method", "nag", "--map"], "not defined for nag"),
}


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """Exit code 2, one sentence on stderr, nothing on stdout, no file."""
    before = sorted(Path().rglob("*"))
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("error: ") and err.count("\n") == 1 and out == ""
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_one_sentence(name: str, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = MISTAKES[name]
    model = [] if "--model" in arguments else ["--model", str(tiny)]
    fails(capsys, [*RED_BIKE, *model, *arguments], message)


def test_mistakes_that_show_when_the_model_runs(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(tiny)]
    fails(capsys, [*RED_BIKE, *model, "--guidance-scale", "5"], "guidance_scale")
    fails(capsys, [*RED_BIKE, *model, "--size", "36"], "36")


@pytest.mark.parametrize("option", [["--compare"], ["--map"], ["--method", "vsf"], ["--scale", "2"]], ids=" ".join)
def test_guidance_without_a_negative_is_no_silent_no_op(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["generate", "a red bike", *option], f"{option[0]} needs --negative")
    fails(capsys, ["generate", "a red bike", "--negative", " ", *option], f"{option[0]} needs --negative")


def test_missing_and_corrupt_models(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    fails(capsys, [*RED_BIKE, "--model", "empty"], "no model_index.json")
    for damage in ("cut", "garbage", "gone"):
        folder = tmp_path / damage
        shutil.copytree(tiny, folder)
        weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
        if damage == "cut":
            weights.write_bytes(weights.read_bytes()[:-100])
        elif damage == "garbage":
            weights.write_bytes(b"\xff" * 4096)
        else:
            weights.unlink()
        why = (
            "is not whole: transformer (SD3Transformer2DModel) has no weights"
            if damage == "gone"
            else "cannot be read"
        )
        fails(capsys, [*RED_BIKE, "--model", str(folder)], f"the model in {folder} {why}")


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("tokenizer/tokenizer.json", "tokenizer (TokenizersBackend) has none of tokenizer.json, vocab.json"),
        ("tokenizer_2/tokenizer_config.json", "tokenizer_2/tokenizer_config.json is missing"),
        ("text_encoder/config.json", "text_encoder/config.json is missing"),
        ("scheduler/scheduler_config.json", "scheduler/scheduler_config.json is missing"),
        ("vae", "the folder vae (AutoencoderKL) is missing"),
    ],
)
def test_a_model_folder_that_is_not_whole(
    gone: str, says: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "part"
    shutil.copytree(tiny, folder)
    shutil.rmtree(folder / gone) if (folder / gone).is_dir() else (folder / gone).unlink()
    fails(capsys, [*RED_BIKE, "--model", str(folder)], f"the model in {folder} is not whole: {says}")
    (folder / "model_index.json").write_text("{")
    fails(capsys, [*RED_BIKE, "--model", str(folder)], "its model_index.json cannot be read")


def test_the_prompt_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["generate"], "prompt")
    fails(capsys, ["genrate"], "genrate")


def test_an_interrupt_leaves_nothing_behind(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    assert main([*RED_BIKE, "--model", str(tiny)]) == 130
    assert capsys.readouterr().err == "error: stopped\n" and list(Path().iterdir()) == []


# -- the other commands -----------------------------------------------------------------------------------------------


def test_info_says_what_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["supported"]["SD3Transformer2DModel"] == "Stable Diffusion 3"
    assert set(facts["kernels"]["cpu"]) == {"float32", "bfloat16", "float16"}
    assert main(["info"]) == 0
    assert "SD3Transformer2DModel" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["generate", "--help"], ["demo", "--help"]])
def test_help_teaches_by_example(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "vsf" in out and err == ""
    if "generate" in arguments:
        assert "vsf " + arguments[0] in out and "--scale" in out


def test_demo_show_and_render(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "show", "--model", str(tiny), "--out", "sheet.png"]) == 0
    assert main(["demo", "render", "--n", "5", "--columns", "3", "--out", "world.png"]) == 0
    assert capsys.readouterr().out.split() == ["sheet.png", "world.png"]
    assert pixels("sheet.png").shape[1] > 6 * 256 and pixels("world.png").shape[1] > 3 * 256
    assert len(read_settings("sheet.png")["shown"]) >= 6


class Judge:
    """Sees what it is told to see."""

    threshold, fingerprint = 0.5, "stub"

    def __init__(self, part: float) -> None:
        self.value = part

    def read(self, images: np.ndarray) -> Any:
        n = len(images)
        parts = np.full((n, len(world.PARTS)), self.value, np.float32)
        return SimpleNamespace(
            objects=["bike"] * n,
            colors=["red"] * n,
            part_probs=parts,
            quality=np.ones(n, np.float32),
            part=lambda name: parts[:, world.PARTS.index(name)],
        )


def test_demo_gate_measures_and_writes(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsf.demo.oracle.load_oracle", lambda folder: Judge(0.1))
    model = ["--model", str(tiny), "--steps", "1"]
    # Parts that are never there fail the gate.
    assert main(["demo", "gate", "--n", "2", *model, "--json", "gate.json"]) == 1
    assert "NOT passed" in capsys.readouterr().out
    assert json.loads(Path("gate.json").read_text())["passed"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gate", "--oracle", "missing"], "no oracle in missing"),
        (["show", "--model", "/no/such/folder"], "no model folder"),
        (["train", "--recipe", "missing.toml"], "cannot read the recipe missing.toml: no such file or directory"),
        (["train", "--model", "sd4"], "unknown model 'sd4'; allowed: sd3, flux, wan; did you mean sd3?"),
        (["train", "--device", "abacus"], "device 'abacus' is not usable here"),
        (["train", "--recipe", "/"], "cannot read the recipe /: is a directory"),
        (["render", "--out", "missing/world.png"], "cannot write"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_mistakes_with_the_demo(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["demo", *arguments], message)
