"""The small judge from nothing: what it is asked is true, objects are held out, and a run resumes to the same weights."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from closeness import rounding, same
from vsf.bench.judges import LocalJudge
from vsf.demo.training.loop import Schedule
from vsf.demo.training.recipes import read_recipe
from vsf.judging.scratch import Data, Recipe, Scratch, held_out, make, words_of
from vsf.judging.small import Shape, build, save
from vsf.judging.train import Tune, log_odds

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

RECIPE = Recipe(
    seed=2,
    head=0.5,
    data=Data("pictures", 24, 12, dev=("robot",), test=("face", "bike"), questions=5, unnamed=0.3, place=80, calibrate=20),
    shape=Shape(64, 16, 32, 2, 1, 32, 2, 1),
    train=Schedule(
        rows=48, batch=6, lr=1e-3, warmup=6, fall="cosine", decay=0.5, weight_decay=0.01, ema=0.9, compile=False, save_minutes=60
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def scratch(pictures, tmp_path_factory) -> Scratch:
    return Scratch(RECIPE, tmp_path_factory.mktemp("scratch") / "run", pictures)


def shipped() -> Recipe:
    folder = Path(__file__).parents[2] / "src/vsf/judging/recipes"
    return read_recipe(Recipe, "scratch", folder / "scratch.toml")


def test_the_recipes_that_come_with_it_hold_out_the_same_objects():
    folder = Path(__file__).parents[2] / "src/vsf/judging/recipes"
    small, shift = shipped(), read_recipe(Tune, "shift", folder / "shift.toml")
    assert (shift.dev, shift.test) == (small.data.dev, small.data.test)
    assert not {*shift.dev} & {*shift.test} and len(small.objects) == len(small.world.objects) - 6
    assert read_recipe(Tune, "tune", folder / "tune.toml").dev == ()
    net, _ = build(small.shape, words_of(small))
    count = sum(p.numel() for p in net.parameters())
    assert 1_900_000 < count < 3_000_000  # fp16: 4 to 6 MB


def test_what_it_is_asked_is_true_of_the_scene(scratch):
    of, data, kinds = scratch.of, scratch.data, Counter()
    for row in range(len(data["gone"])):
        there = {p for p, is_there in zip(of.parts, data["there"][row], strict=True) if is_there}
        known = data["object"][row] >= 0
        name, color = of.objects[data["object"][row]] if known else "something", of.colors[data["color"][row]]
        assert not (data["gone"][row] and there)
        for seed in range(20):
            for text, word in scratch.asked(row, np.random.default_rng(seed)):
                part = next((p for p in of.parts if f" {p} " in text.replace("?", " ")), "")
                if "missing" in text:
                    assert (word == "yes") == (part not in there), (text, there)
                    assert name in text or "something" in text
                elif "Can you see" in text:
                    assert (word == "yes") == (part in there)
                elif "with or without" in text:
                    assert known and (word == "yes") == (not data["gone"][row] and f" {color} {name} " in text)
                elif text.startswith("What "):
                    assert word == (color if "colour" in text else name) and known and not data["gone"][row]
                else:
                    assert word in ("good", "poor")
                kinds[text.split()[0], word if word in ("yes", "no", "good", "poor") else "word"] += 1
                assert not [o for o in (*RECIPE.data.dev, *RECIPE.data.test) if f" {o}" in text or o == word]
    assert {
        ("Can", "yes"),
        ("Can", "no"),
        ("Are", "yes"),
        ("Are", "no"),
        ("Is", "yes"),
        ("Is", "no"),
        ("What", "word"),
    } <= {*kinds}


def test_held_out_objects_have_no_word_and_yes_is_not_the_unknown_one(scratch):
    number = scratch.processor.tokenizer.convert_tokens_to_ids
    unknown = scratch.processor.tokenizer.unk_token_id
    assert {number(o) for o in (*RECIPE.data.dev, *RECIPE.data.test)} == {unknown}
    every = [number(word) for word in ("yes", "no", "good", "poor", "missing", *RECIPE.objects)]
    assert len({*every, unknown}) == len(every) + 1
    read = scratch.processor.tokenizer("Is the Wheels missing from the FACE? Answer yes or no.").input_ids
    assert scratch.processor.tokenizer.decode(read) == "is the wheels missing from the <unk>"
    assert {*scratch.data["object"].tolist()} <= {-1, *(scratch.of.objects.index(o) for o in RECIPE.objects)}
    assert (scratch.data["object"] < 0).sum() == RECIPE.data.strange


def test_rows_are_of_one_length_and_a_step_depends_on_its_number_alone(scratch):
    first, answers, _ = scratch.batch(3)
    again, same_answers, _ = scratch.batch(3)
    other, _, _ = scratch.batch(4)
    assert {first["input_ids"].shape[1], other["input_ids"].shape[1]} == {RECIPE.data.place}
    assert all(torch.equal(first[name], again[name]) for name in first) and torch.equal(answers, same_answers)
    assert not torch.equal(first["pixel_values"], other["pixel_values"])


def test_interrupted_and_resumed_it_ends_the_same_and_judges(pictures, tmp_path):
    whole = Scratch(RECIPE, tmp_path / "whole", pictures)
    assert whole.train()
    parts = Scratch(RECIPE, tmp_path / "parts", pictures)
    assert not parts.train(stop_after=3)
    parts = Scratch(RECIPE, tmp_path / "parts", pictures)
    assert parts.optimisation.at.step == 3 and parts.train()
    wanted, got = (load_file(one.finish() / "model.safetensors") for one in (whole, parts))
    bound = 2**-11  # the files are fp16
    for name, tensor in wanted.items():
        same(got[name].float(), tensor.float(), bound, name)
    done = make(RECIPE, tmp_path / "whole")
    judge = LocalJudge(done, device="cpu", mass=0.0)
    assert judge.about()["architecture"] == "Qwen2_5_VLForConditionalGeneration"
    assert {*judge.calibration.scales} == {"missing", "kept"}
    assert judge.calibration.record["recipe"]["data"]["test"] == ["face", "bike"]
    # What the packed rows read of a picture is what the judge reads of it.
    labels = held_out(RECIPE, "test", 3)
    for label, x in log_odds(judge, labels):
        p, _ = judge.probability(labels.picture(label), f"{label.question} Answer yes or no.")
        same(torch.tensor(p), torch.tensor(x).sigmoid(), rounding(judge.net) * 10)


def test_pictures_of_another_recipe_are_refused(scratch, pictures, tmp_path):
    other = replace(RECIPE, data=replace(RECIPE.data, test=("face",)))
    with pytest.raises(ValueError, match="pictures of another recipe"):
        Scratch(other, tmp_path / "run", pictures)
    with pytest.raises(ValueError, match="another recipe"):
        Scratch(RECIPE, tmp_path / "run", pictures)
    note = json.loads((pictures / "pictures.json").read_text())
    assert note["data"]["test"] == ["face", "bike"]


def test_a_word_that_no_tokenizer_can_have_is_named():
    with pytest.raises(ValueError, match="lower case, got 'Wheels'"):
        build(RECIPE.shape, ["Wheels"])


def test_it_is_saved_and_loaded_as_any_other(tmp_path):
    from transformers import AutoModelForImageTextToText

    net, processor = build(RECIPE.shape, ["bike"], seed=4)
    save(net, processor, tmp_path / "judge")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "judge")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), loaded.parameters(), strict=True))
    judge = LocalJudge(tmp_path / "judge", device="cpu", mass=0.0)
    assert judge.words[("yes", "no")] != judge.words[("good", "poor")]
