"""The gate on painters whose truth is known: a model of the world passes, the deaf, the certain and the broken fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from rich.console import Console

from closeness import differs, rounding, same
from vsf.demo.gate import Draw, gate_table, run_gate, unguided
from vsf.demo.models import demo_model
from vsf.demo.worlds import world as named
from vsf.libraries import quiet
from vsf.provenance import weights_hash

WORLD = named("pictures")
code = WORLD.code


@pytest.fixture(scope="module")
def oracle():
    return WORLD.load_oracle()


def scene_of(prompt: str, seed: int, prior: float):
    """The scene a caption asks for, with what it leaves open drawn at random."""
    rng = np.random.default_rng(seed)
    words = prompt.split()
    name = next(w for w in words if w in WORLD.objects)
    color = next(w for w in words if w in WORLD.colors)
    parts = {w for w in words if w in WORLD.parts}
    if "plain" not in words:
        parts |= {p for p in WORLD.typical[name] if rng.random() < prior}
    return code.Scene(name, color, tuple(sorted(parts)), "grass", "flat", seed % 2**31)


def painter(paint: Callable[[str, int], np.ndarray]) -> Draw:
    def draw(prompts, seeds):
        return np.stack([paint(*row) for row in zip(prompts, seeds, strict=True)]).astype(np.float32) / 255

    return draw


def with_prior(prior: float) -> Draw:
    return painter(lambda prompt, seed: code.render(scene_of(prompt, seed, prior)))


broken = painter(lambda _, seed: np.random.default_rng(seed).integers(0, 256, (64, 64, 3)))


def test_a_model_of_the_world_passes(oracle):
    report = run_gate(with_prior(0.91), WORLD, oracle, 120, about={"model": "painter"})
    assert report.passed, [(line.name, str(line.value)) for line in report.lines]
    data = json.loads(json.dumps(report.to_dict()))
    assert data["passed"] and len(data["lines"]) == 6 and len(data["pictures"]) == 480
    assert data["about"] == {"model": "painter"}


def test_models_that_ignore_part_words_are_stopped(oracle):
    def deaf(prompts, seeds):
        heard = [" ".join(w for w in p.split() if w not in WORLD.parts and w != "plain") for p in prompts]
        return with_prior(0.91)(heard, seeds)

    verdict = {line.name: line.passed for line in run_gate(deaf, WORLD, oracle, 68).lines}
    assert not verdict["typical"] and not verdict["atypical"] and not verdict["plain"]
    assert verdict["unmentioned"] and verdict["object"] and verdict["color"]


def test_certain_parts_and_broken_pictures_are_stopped(oracle):
    certain = {line.name: line.passed for line in run_gate(with_prior(1.0), WORLD, oracle, 34).lines}
    assert not certain["unmentioned"] and certain["typical"]
    assert not {line.name: line.passed for line in run_gate(broken, WORLD, oracle, 17).lines}["object"]


def test_prompts_are_held_out_and_say_what_they_mean(oracle):
    report = run_gate(broken, WORLD, oracle, 34)
    for p in report.pictures:
        words, typical = p["prompt"].split(), WORLD.typical[p["object"]]
        mentioned = set(words) & set(WORLD.parts)
        assert ("plain" in words) == (p["kind"] == "plain")
        if p["kind"] in ("typical", "atypical"):
            assert mentioned == set(p["parts"]) and (p["parts"][0] in typical) == (p["kind"] == "typical")
        else:
            assert not mentioned and set(p["parts"]) == set(typical)


def test_a_split_takes_its_own_combinations_only(oracle):
    for split in ("dev", "test"):
        for p in run_gate(broken, WORLD, oracle, 34, splits=(split,)).pictures:
            where = [b for b in WORLD.backgrounds if code.split(p["object"], p["color"], b) == split]
            assert where, p
            named_places = [b for b in WORLD.backgrounds if p["prompt"].endswith(code.BACKGROUND_PHRASE[b])]
            assert set(named_places) <= set(where)
    for splits in ((), ("train",), ("dev", "tset")):
        with pytest.raises(ValueError, match="splits are dev, test or both"):
            run_gate(broken, WORLD, oracle, 1, splits=splits)
    with pytest.raises(ValueError, match="at least 1"):
        run_gate(broken, WORLD, oracle, 0)


def test_every_frame_of_a_clip_counts(oracle):
    """A part that is there in three of four frames counts three quarters."""

    def clips(prompts, seeds):
        whole, bare = with_prior(1.0)(prompts, seeds), with_prior(0.0)(prompts, seeds)
        return np.stack([whole, whole, bare, whole], 1)

    lines = {line.name: line.value.mean for line in run_gate(clips, WORLD, oracle, 34).lines}
    assert lines["unmentioned"] == pytest.approx(0.75, abs=0.02)  # the oracle misreads under 1 % of each kind of frame
    assert lines["object"] > 0.97


def test_the_table_says_what_was_wanted(oracle):
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(gate_table(run_gate(with_prior(0.9), WORLD, oracle, 4)))
    assert "typical part there when asked for" in console.export_text()


# -- drawing with a stock pipeline


@pytest.fixture(scope="module")
def pipe():
    from vsf.demo.model import Recipe, build_components, build_pipeline

    torch.manual_seed(0)
    components = build_components(Recipe.load())
    torch.nn.init.normal_(components["transformer"].proj_out.weight, std=0.02)
    return build_pipeline(components)


def test_each_picture_depends_on_its_own_noise_only(pipe):
    pipe = deepcopy(pipe).to(torch.float64)
    prompts, seeds, draw = ["a red bike", "a blue cat", "a red bike"], [1, 2, 3], unguided(pipe, demo_model("demo"), 2)
    together, alone = draw(prompts, seeds), draw(prompts[1:2], seeds[1:2])
    assert together.shape == (3, 64, 64, 3) and together.min() >= 0 and together.max() <= 1
    bound = rounding(pipe, torch.float64, passes=2) + rounding(pipe.vae, torch.float64)
    bound += torch.finfo(torch.float32).eps / 2  # pictures are float32
    first, second, third = map(torch.from_numpy, together)
    same(torch.from_numpy(alone[0]), second, bound)
    differs(first, third, bound, 20.0)


def test_a_quiet_pipeline_is_left_as_it_was(pipe):
    pipe.set_progress_bar_config(desc="mine")
    with quiet(pipe):
        assert pipe._progress_bar_config == {"desc": "mine", "disable": True}
    assert pipe._progress_bar_config == {"desc": "mine"}
    del pipe._progress_bar_config
    with quiet(pipe):
        pass
    assert not hasattr(pipe, "_progress_bar_config")


def test_the_weights_hash_sees_every_weight(pipe):
    before = weights_hash(pipe)
    assert before is not None and before == weights_hash(pipe)
    bias = next(pipe.vae.parameters())
    with torch.no_grad():
        bias.view(-1)[0] += 1
    assert weights_hash(pipe) != before
