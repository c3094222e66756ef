"""Tuning a judge: LoRA on labels learns, stops early, resumes to the same weights, and refuses in one sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from closeness import rounding, same
from tiny_vlm import save_tiny_vlm
from vsf.bench.judges import JudgeError, LocalJudge
from vsf.demo.training.loop import Schedule
from vsf.judging import Label, Labels, LabelsError, collected, world_labels
from vsf.judging.train import Tune, log_odds, parted, tune

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

SCHEDULE = Schedule(
    rows=256,
    batch=8,
    lr=1e-2,
    warmup=32,
    fall="cosine",
    decay=0.3,
    weight_decay=0.0,
    ema=0.0,
    compile=False,
    save_minutes=60,
)
RECIPE = Tune(
    seed=1, rank=4, alpha=8, dropout=0.1, targets="all-linear", dev=("boat",), test=("cat",), evaluate=8, patience=9,
    checkpointing=False, train=SCHEDULE,
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(save_tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny"))


@pytest.fixture(scope="module")
def labels() -> Labels:
    """Whether a picture is there at all: what a judge of 60 thousand parameters can learn in seconds."""
    drawn = collected(world_labels(60, 3, objects=("boat", "cat", "car", "tree")))
    return drawn.only(label for label in drawn if label.asks == "missing")


@pytest.fixture(scope="module")
def tuned(base, labels, tmp_path_factory):
    return tune(RECIPE, base, labels, tmp_path_factory.mktemp("tuned") / "run", device="cpu")


def test_it_learns_and_the_best_is_kept(tuned, base, labels):
    assert tuned.best < 0.5 * tuned.before
    record = json.loads((tuned.folder / "judge.json").read_text())
    assert min(loss for _, loss in record["dev"]) == tuned.best and record["groups"]["test"] == ["cat"]
    assert record["calibration"]["missing"]["temperature"] > 0
    judge = LocalJudge(base, adapter=tuned.folder, device="cpu", mass=0.0)
    assert judge.about()["calibration"]["missing"] == list(record["calibration"]["missing"].values())
    pairs = list(log_odds(judge, tuned.parts["dev"]))
    # What is written down of dev is what the written adapter does: -log P(right word), from its own logits.
    assert len(pairs) == len(tuned.parts["dev"])
    own = LocalJudge(base, device="cpu", mass=0.0)
    label, x = pairs[0]
    p, mass = judge.probability(labels.picture(label), f"{label.question} Answer yes or no.")
    same(torch.tensor(p), torch.tensor(x).sigmoid(), 10 * rounding(own.net))
    assert mass > 10 * own.probability(labels.picture(label), f"{label.question} Answer yes or no.")[1]
    assert (tuned.folder.parent / "judge-loss.png").is_file()


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tuned, base, labels, tmp_path):
    out = tmp_path / "run"
    pieces = 0
    while tune(RECIPE, base, labels, out, device="cpu", stop_after=11) is None:
        pieces += 1
    assert pieces == 2
    wanted, got = (load_file(folder / "adapter_model.safetensors") for folder in (tuned.folder, out / "adapter"))
    assert wanted.keys() == got.keys()
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor), name
    again = tune(RECIPE, base, labels, out, device="cpu")  # nothing is left to do
    assert again is not None and again.best == pytest.approx(tuned.best, rel=1e-4)


def test_a_killed_run_goes_on(base, labels, tuned, tmp_path):
    labels.save(tmp_path / "labels")
    code = (
        "import sys; sys.path[:0] = sys.argv[3:]\n"
        "from test_tune import RECIPE; from dataclasses import replace; from pathlib import Path\n"
        "from vsf.judging import Labels; from vsf.judging.train import tune\n"
        "recipe = replace(RECIPE, train=replace(RECIPE.train, save_minutes=0.0))\n"
        "tune(recipe, sys.argv[1], Labels.open(sys.argv[2] + '/labels'), Path(sys.argv[2]) / 'run', device='cpu')\n"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]
    child = subprocess.Popen(
        [sys.executable, "-c", code, base, str(tmp_path), *paths], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if "at step 8" in line:
            os.kill(child.pid, signal.SIGKILL)
            break
    assert child.wait() == -signal.SIGKILL
    assert (tmp_path / "run" / "judge.safetensors").is_file() and not (tmp_path / "run/adapter/judge.json").is_file()
    recipe = replace(RECIPE, train=replace(RECIPE.train, save_minutes=0.0))
    done = tune(recipe, base, Labels.open(tmp_path / "labels"), tmp_path / "run", device="cpu")
    assert done is not None and done.best == pytest.approx(tuned.best, rel=1e-4)


def test_activations_computed_again_are_the_same(base, labels, tuned, tmp_path):
    done = tune(replace(RECIPE, checkpointing=True), base, labels, tmp_path / "run", device="cpu")
    assert done is not None
    wanted, got = (json.loads((one.folder / "judge.json").read_text())["dev"] for one in (tuned, done))
    assert [loss for _, loss in got] == pytest.approx([loss for _, loss in wanted], rel=1e-4)


def test_it_stops_when_dev_gets_no_better(base, labels, tmp_path):
    wild = replace(RECIPE, patience=2, evaluate=1, train=replace(SCHEDULE, lr=3.0, warmup=0))
    done = tune(wild, base, labels, tmp_path / "run", device="cpu")
    assert done is not None
    seen = json.loads((done.folder / "judge.json").read_text())["dev"]
    best = min(range(len(seen)), key=lambda i: seen[i][1])
    assert len(seen) - 1 - best == 2 and len(seen) < wild.train.steps


def test_another_recipe_or_other_labels_need_another_folder(tuned, base, labels):
    for recipe, some in ((replace(RECIPE, rank=2), labels), (RECIPE, labels.only(list(labels)[:-1]))):
        with pytest.raises(ValueError, match="another recipe"):
            tune(recipe, base, some, tuned.folder.parent, device="cpu")


def test_parts_share_no_object_and_have_both_answers(labels):
    parts = parted(labels, RECIPE)
    assert {label.group for label in parts["train"]} == {"car", "tree"}
    drawn = {
        name: {label.group for label in part}
        for name, part in parted(labels, replace(RECIPE, dev=(), test=())).items()
    }
    assert sorted(group for part in drawn.values() for group in part) == ["boat", "car", "cat", "tree"]
    yes = labels.only(label for label in labels if label.answer or label.group != "boat")
    for recipe, some, why in (
        (replace(RECIPE, test=("boat",)), labels, "must not share an object: boat"),
        (replace(RECIPE, test=("dog",)), labels, "no label is about dog"),
        (RECIPE, yes, "dev has no question of the kind 'missing' that is answered by no"),
        (
            RECIPE,
            labels.merge(Labels([replace(one, annotator="me") for one in labels], labels._images)),
            "several|labels of",
        ),
    ):
        with pytest.raises(LabelsError, match=why):
            parted(some, recipe)


def test_a_picture_of_held_out_objects_is_on_one_side(labels):
    """As where the recipe names none: a background from which the object is gone looks alike whatever it was."""
    one = next(label for label in labels if label.group == "car")
    parts = parted(labels.only([*labels, replace(one, question=f"{one.question}?", group="boat")]), RECIPE)
    assert [name for name, part in parts.items() if one.image in part.images] == ["dev"]


def test_what_cannot_be_tuned_is_one_sentence(base, labels, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9)).save_pretrained(tmp_path / "text")
    with pytest.raises(JudgeError, match="text cannot be loaded") as caught:
        tune(RECIPE, str(tmp_path / "text"), labels, tmp_path / "a", device="cpu")
    assert "\n" not in str(caught.value)
    with pytest.raises(JudgeError, match="no layer"):
        tune(replace(RECIPE, targets=("nowhere",)), base, labels, tmp_path / "b", device="cpu")
    one = list(labels)[0]
    broken = Labels(list(labels), {**labels._images, one.image: b"\x89PNG"})
    with pytest.raises(LabelsError, match="damaged"):
        tune(RECIPE, base, broken, tmp_path / "c", device="cpu")
    assert not [name for name in "abc" if (tmp_path / name).exists()]  # so the folder takes what is right


def test_a_full_disk_leaves_the_last_checkpoint(base, labels, tmp_path, monkeypatch):
    import vsf.demo.training.loop as loop

    out = tmp_path / "run"
    assert tune(RECIPE, base, labels, out, device="cpu", stop_after=11) is None
    before = (out / "judge.safetensors").read_bytes()

    def full(tensors, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        tune(RECIPE, base, labels, out, device="cpu", stop_after=3)
    assert (out / "judge.safetensors").read_bytes() == before and not list(out.glob(".*.part"))


def test_labels_of_several_people_are_not_mixed(labels):
    two = Labels(
        [*labels, *(Label(one.image, one.question, "missing", one.answer, "me") for one in labels)], labels._images
    )
    with pytest.raises(LabelsError, match="one answer to a question is needed"):
        parted(two, RECIPE)
