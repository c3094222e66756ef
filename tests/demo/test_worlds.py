"""The records: what a world and a demo model say of themselves is true."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from vsf.demo.models import MODELS, demo_model, model_of
from vsf.demo.worlds import WORLDS, split_words, world


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_draws_what_it_says(name: str) -> None:
    record = world(name)
    code, rng = record.code, np.random.default_rng(0)
    assert record.name == name and list(record.vocabulary) == sorted(set(record.vocabulary))
    assert set(record.objects) <= set(record.vocabulary) >= set(record.parts)
    assert {word for group in record.words.values() for text in group for word in split_words(text)} | {
        "a", "an", "and", "with"
    } == set(record.vocabulary)  # fmt: skip
    for scene, caption in code.training_pair(rng):
        assert not record.unknown_words(caption)
        picture = code.render(scene, record.size)
        shape = (
            (record.size, record.size, 3) if record.frames is None else (record.frames, record.size, record.size, 3)
        )
        assert picture.shape == shape and picture.dtype == np.uint8


@pytest.mark.parametrize("name", WORLDS)
def test_held_out_cases_are_spread_and_of_their_split(name: str) -> None:
    record = world(name)
    cases = list(record.held_out())
    assert len(set(cases)) == len(cases)
    assert [c.split for c in cases] == sorted(c.split for c in cases)  # dev, then test
    pairs = [(o, p) for o, parts in record.typical.items() for p in parts]
    assert {(c.object, c.part) for c in cases[: len(pairs)]} == set(pairs)
    for case in cases[::7]:
        assert record.code.split(case.object, case.color, case.background, case.part) == case.split


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_found_again_by_what_it_is(name: str) -> None:
    model = demo_model(name)
    assert model.name == name and model.world in WORLDS
    known = set(model.of_world().vocabulary)
    for entry in model.shown:
        assert set(split_words(f"{entry.prompt} {entry.negative}")) <= known
    assert {model.recommended.label, *model.tuned} >= {"vsf", "nag", "nasa", "cfg"}
    # What is shipped does not say where it was made.
    assert not any("_name_or_path" in path.read_text("utf-8") for path in model.weights.rglob("*.json"))
    pipe = model.load()
    assert type(pipe).__name__ == model.pipeline
    assert model_of(pipe) is model
    assert model_of(object()) is None
    pipe.tokenizer.add_tokens(["zebra"])
    assert model_of(pipe) is None


def test_what_a_user_gives_goes_before_what_a_model_needs() -> None:
    model = demo_model("demo")
    assert model.completed({"width": 32, "max_sequence_length": 99}) == {"width": 32, "max_sequence_length": 16}
    wide = replace(model, call={"width": 96, "height": 64})
    assert wide.completed({"width": 32}) == {"width": 32, "height": 64, "max_sequence_length": 16}


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(KeyError, match="unknown demo model 'demmo'; allowed: demo.*did you mean demo"):
        demo_model("demmo")
    with pytest.raises(ValueError, match="unknown world 'picture'; allowed: pictures"):
        world("picture")


def test_the_records_of_the_models_cost_no_heavy_import() -> None:
    check = "import sys; import vsf.demo.models; print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
