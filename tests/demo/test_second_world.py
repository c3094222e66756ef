"""A world and a model of somebody else's: a package, a row in each table, a folder of weights, and every command has them.

The weights are random, so what is drawn is noise; that it is drawn, judged and shown by the world's own records is not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, FluxPipeline, WanPipeline
from PIL import Image
from test_worlds import (
    test_a_model_is_found_again_by_what_it_is as model_is_what_it_says,
)
from test_worlds import (
    test_a_world_draws_what_it_says as world_is_what_it_says,
)

import tiny_pipelines as tiny
from specs import flux, wan
from tiny_world import Oracle
from vsf import CFG, NAG, NASA, VSF
from vsf.bench.cases import load_cases
from vsf.bench.controls import kept, unrelated
from vsf.bench.demo import Scope, run_demo
from vsf.bench.judges import JUDGES, JudgeError
from vsf.bench.run import Run, RunError
from vsf.cli import main
from vsf.demo.model import build_tokenizer
from vsf.demo.models import MODELS, DemoModel, Shown, demo_model, model_of
from vsf.demo.worlds import WORLDS
from vsf.images import read_settings
from vsf.loading import load_model
from vsf.ui import form, gallery
from vsf.ui.model import Options, describe_model, load
from vsf.ui.reproduce import command_line, python_code


def _flux() -> Any:
    words = build_tokenizer(8, "attic")
    return FluxPipeline(
        scheduler=tiny.scheduler(), vae=tiny.vae(), text_encoder=tiny.clip(), tokenizer=words,
        text_encoder_2=tiny.t5(), tokenizer_2=words, transformer=flux.build(torch.float32, guidance=True),
    )  # fmt: skip


def _wan() -> Any:
    words: Any = build_tokenizer(8, "kites")
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        dim_mult=[1, 1], temperal_downsample=[False],
    )  # fmt: skip
    return WanPipeline(words, tiny.t5(), vae.eval(), tiny.scheduler(shift=3.0), transformer=wan.build(torch.float32))


ATTIC = DemoModel(
    name="attic-flux",
    title="Attic",
    world="attic",
    pipeline="FluxPipeline",
    network="FluxTransformer2DModel",
    folder="weights",
    steps=2,
    size=(16, 16),
    guidance_scale=3.5,
    text_length=8,
    call={"width": 16, "height": 16},
    recommended=VSF(scale=1.25, offset=0.5),
    strong=VSF(scale=4.0),
    tuned={"nag": NAG(scale=3.0), "nasa": NASA(scale=0.3), "cfg": CFG(scale=2.0)},
    sizes=("16x16", "24x16"),
    multiple=2,
    largest=64,
    shown=(Shown("a beige kite", "tail", 3), Shown("a teal lamp in a loft", "cord", 4)),
    batch=3,
)
KITES = replace(
    ATTIC,
    name="kites-wan",
    world="kites",
    pipeline="WanPipeline",
    network="WanTransformer3DModel",
    guidance_scale=1.0,
    call={"width": 32, "height": 32, "num_frames": 5},
    shown=(Shown("a moving beige kite", "tail", 3),),
    fps=7,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[DemoModel], DemoModel]:
    """Where the weights of each are, made once."""
    made: dict[str, DemoModel] = {}

    def saved(model: DemoModel) -> DemoModel:
        if model.name not in made:
            folder = tmp_path_factory.mktemp(model.name)
            torch.manual_seed(0)
            (_wan if model.video else _flux)().save_pretrained(folder)
            made[model.name] = replace(model, folder=str(folder))
        return made[model.name]

    return saved


@pytest.fixture(params=[ATTIC, KITES], ids=lambda model: model.name)
def model(request: Any, folders: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DemoModel:
    """A model of a world, both plugged in: a row each, and nothing else."""
    rows: Any = WORLDS.rows
    monkeypatch.setitem(rows, "attic", "tiny_world:WORLD")
    monkeypatch.setitem(rows, "kites", "tiny_world.clips:WORLD")
    made = folders(request.param)
    monkeypatch.setitem(MODELS, made.name, made)
    monkeypatch.chdir(tmp_path)
    return made


def run(*words: str) -> int:
    return main(list(words))


def test_the_records_say_what_is_true(model: DemoModel) -> None:
    world_is_what_it_says(model.world)
    model_is_what_it_says(model.name)


def test_generate_draws_with_what_the_model_needs(model: DemoModel, capsys: pytest.CaptureFixture[str]) -> None:
    out = "one.gif" if model.video else "one.png"
    args = ("generate", "a beige kite with a zebra", "--negative", "tail", "--seed", "3", "-o", out)
    assert run(*args, "--model", model.name) == 0
    err = capsys.readouterr().err
    assert "does not know 'zebra'" in err and "bucket" in err
    with Image.open(out) as image:
        if model.video:
            assert image.n_frames > 1 and image.info["duration"] == pytest.approx(1000 / 7, abs=10)  # type: ignore[attr-defined]
        else:
            settings = read_settings(out)
            assert image.size == (16, 16) and settings["guidance_scale"] == 3.5 and settings["steps"] == 2
            assert settings["guidance"]["scale"] == 1.25 and settings["model"] == "attic-flux"
        drawn = np.asarray(image)
    # The folder of one is the same model.
    again = out.replace("one", "two")
    assert run(*args[:-1], again, "--model", str(model.weights)) == 0
    with Image.open(again) as image:
        assert np.array_equal(np.asarray(image), drawn)


def test_a_clear_mistake_is_said_before_anything_is_loaded(
    model: DemoModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "a kite", "-N", "tail", "--scale", "far", "--model", model.name) == 2
    assert run("generate", "a kite", "--model", "attic-flax") == 2
    assert "attic-flax" in capsys.readouterr().err


def test_the_sheets_of_the_world_and_of_the_model(model: DemoModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", "render", "--world", model.world, "--n", "4", "--size", "16", "-o", "scenes.png") == 0
    assert run("demo", "show", "--model", model.name, "-o", "show.png") == 0
    shown, first = read_settings("show.png"), model.shown[0]
    assert shown["model"] == model.name and shown["guidance"] == model.recommended.settings()
    assert shown["shown"][0] == [first.prompt, "tail", 3]
    assert run("demo", "gate", "--model", model.name, "--n", "2", "--json", "gate.json") == 1  # noise passes no gate
    report = json.loads(Path("gate.json").read_text())
    assert report["about"]["oracle_sha256"] == "lamp" and report["about"]["model"] == model.name
    capsys.readouterr()


def test_a_benchmark_of_its_own_cases_and_judge(model: DemoModel, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jinja2")
    cases = load_cases(model.world)
    assert cases.name == cases.world == model.world and len(cases) == 5
    for case in cases:
        assert case.object is not None and case.part is not None
        own = model.of_world().typical[case.object]
        assert set(kept(case)) == set(own) - {case.part}
        assert unrelated(case, cases) in set(model.of_world().parts) - set(own)
        assert {unrelated(case, cases), case.part} != {"cord", "tail"}  # alike
    assert run("bench", "generate", "out", "--model", model.name, "-p", "none", "-p", "vsf", "--seeds", "0") == 0
    made = Run.open("out")
    assert (made.plan.steps, made.plan.guidance_scale, made.plan.batch) == (2, model.guidance_scale, 3)
    assert dict(made.plan.point("vsf").settings) == model.recommended.settings()
    assert list(made.plan.cases) == [case.id for case in cases.split("test")]
    record = made.records.get(next(iter(made.plan.units)).id)
    assert record["extra"]["max_sequence_length"] == 8 and (record["video"] is not None) is model.video
    assert run("bench", "judge", "out") == 0
    assert run("bench", "judge", "out", "--judge", "metrics") == 0
    assert made.judge("oracle")["oracle_sha256"] == "lamp"
    units = list(made.plan.units)
    answers = {answer.unit: answer for answer in made.judged("oracle")}
    assert {made.case[unit.case].object for unit in units if answers[unit.id].identity} == {"lamp"}
    assert set(answers) == {unit.id for unit in units} and {a.quality for a in answers.values()} == {0.75}
    assert {a.quality for a in made.judged("metrics")} == {0.75}
    assert run("bench", "report", "out", "--judge", "oracle", "-o", "report.html") == 0
    assert "beige lamp in a shed" in Path("report.html").read_text("utf-8")
    capsys.readouterr()


def test_the_judge_of_one_world_refuses_the_cases_of_another(model: DemoModel) -> None:
    ours, pictures = load_cases(model.world).cases[0], load_cases("demo").cases[0]
    judge, first = JUDGES.make("oracle", {}, world=model.world), JUDGES.make("oracle", {})
    assert isinstance(judge.oracle, Oracle)
    assert judge.refuses(ours) is None and first.refuses(pictures) is None
    assert judge.refuses(pictures) and first.refuses(ours)
    with pytest.raises(JudgeError, match="unknown world 'atic'.*did you mean attic"):
        JUDGES.make("oracle", {"world": "atic"})


def test_two_models_of_one_kind_are_told_apart_by_where_they_were_read(
    model: DemoModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model.load().save_pretrained(tmp_path / "twin")
    twin = replace(model, name="twin", steps=9, folder=str(tmp_path / "twin"))
    monkeypatch.setitem(MODELS, "twin", twin)
    assert model_of(twin.load()) is twin and model_of(model.load()) is model


def test_the_whole_benchmark_runs_on_it(model: DemoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("vsf.bench.demo.DEFAULT_ARMS", ("vsf",))
    scope = Scope(budget=1, dev_cases=1, more=0, cases=1, seeds=1, ablation_seeds=1)
    page, table = run_demo("whole", scope, model=model.name, workers=1)
    with pytest.raises(RunError, match=f"no frozen settings come with the model {model.name}"):
        run_demo("frozen", scope, model=model.name, frozen=True)
    assert page.is_file() and f"the model {model.name}" in table.read_text("utf-8")


def test_the_page_knows_it(model: DemoModel) -> None:
    options = Options(model.name)
    seen = describe_model(options)
    assert (seen.name, seen.video, seen.steps, seen.guidance_scale) == ("Attic", model.video, 2, model.guidance_scale)
    assert seen.choices[0].guidance == model.recommended and seen.defaults["nag"] == model.tuned["nag"]
    assert [(e.prompt, e.seed) for e in gallery.groups(seen)[0].entries][0] == (model.shown[0].prompt, 3)
    first = form.first_values(seen)
    assert (first["prompt"], first["negative"], first["seed"]) == (model.shown[0].prompt, "tail", 3)
    asked = form.request_of(first, seen)
    pipe = load(options)
    assert type(pipe).__name__ == model.pipeline and type(load_model(model.name)) is type(pipe)
    assert f"--model {model.name}" in command_line(asked, options, seen)
    if model.video:
        assert asked.extra["num_frames"] == 5 and seen.fps == 7
    else:
        settings = {"prompt": "a kite", "negative": "tail", "guidance": asked.guidance.settings(), "steps": 2, "seed": 1,
                    "guidance_scale": 3.5, "model": model.name}  # fmt: skip
        assert form.restore(settings, seen)[1] == []
        assert "this page runs Attic" in form.restore(settings | {"model": "demo"}, seen)[1][0]
    exec(compile(python_code(asked, options, seen), "shown", "exec"), {})
    assert list(Path().glob("vsf*"))


def test_unplugged_it_is_gone() -> None:
    assert set(MODELS) >= {"demo"} and not {"attic", "kites"} & set(WORLDS)
    with pytest.raises(KeyError, match="attic-flux"):
        demo_model("attic-flux")
