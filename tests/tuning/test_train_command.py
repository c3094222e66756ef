"""`vsf judge train`: one command tunes, one makes from nothing, and what is wrong is one sentence."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from test_tune import RECIPE

from tiny_vlm import save_tiny_vlm
from vsf.cli import main
from vsf.judging import Labels, collected, world_labels

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def toml(values: dict) -> str:
    plain = [f"{k} = {json.dumps(v)}" for k, v in values.items() if not isinstance(v, dict)]
    return "\n".join([*plain, *(f"[{k}]\n{toml(v)}" for k, v in values.items() if isinstance(v, dict))])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    save_tiny_vlm(folder / "base")
    collected(world_labels(60, 3, objects=("boat", "cat", "car", "tree"))).save(folder / "labels")
    short = replace(RECIPE, train=replace(RECIPE.train, rows=16))
    (folder / "recipe.toml").write_text(toml(json.loads(json.dumps(asdict(short)))))
    return folder


def train(place: Path, *more: str, data: str = "labels", base: str = "base") -> int:
    out = str(place / "out")
    return main(
        [
            "judge",
            "train",
            "--base",
            str(place / base),
            "--data",
            str(place / data),
            "-o",
            out,
            "--device",
            "cpu",
            *more,
        ]
    )


def test_it_tunes_and_the_judge_judges(place, capsys):
    assert train(place, "--recipe", str(place / "recipe.toml")) == 0
    out = capsys.readouterr().out
    assert "dev loss" in out and out.splitlines()[-1].startswith(f"{place / 'out' / 'adapter'}: loss on dev")
    assert {path.name for path in (place / "out" / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "judge.json",
    }  # fmt: skip


def test_a_dry_run_reads_the_config_alone(place, capsys, tmp_path):
    (tmp_path / "config.json").write_text((place / "base" / "config.json").read_text())
    assert main(["judge", "train", "--base", str(tmp_path), "--dry-run", "--pixels", "56"]) == 0
    out = capsys.readouterr().out
    assert "trained" in out and "GiB" in out and "hours at 150 TFLOP/s" in out


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], "--base MODEL and --data LABELS are needed"),
        (["--base", "x"], "--base MODEL and --data LABELS are needed"),
        (["--scratch", "--base", "x"], "--scratch starts from nothing"),
        (["--scratch", "--asks", "missing"], "--scratch starts from nothing"),
        (["--base", "x", "--data", "y", "--minutes", "3"], "--minutes is of --scratch"),
        (["--base", "x", "--data", "y"], "holds no labels"),
        (["--base", "x", "--data", "y", "--recipe", "nothing"], "a file, or one of tune, shift, scratch"),
        (["--base", "x", "--data", "y", "--recipe", "scratch"], "the recipe scratch cannot be used"),
        (["--base", "no-org/no-model", "--dry-run"], "cannot be loaded"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, monkeypatch, capsys, given, why):
    monkeypatch.chdir(tmp_path)
    assert main(["judge", "train", *given]) == 2
    err = capsys.readouterr().err
    assert why in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_bad_labels_are_one_sentence(place, tmp_path, capsys):
    labels = Labels.open(place / "labels")
    some = labels.only(
        label for label in labels if label.asks == "missing" and (label.answer or label.group != "boat")
    )
    some.save(tmp_path / "one")
    recipe = ("--recipe", str(place / "recipe.toml"))
    assert train(place, *recipe, data=str(tmp_path / "one")) == 2
    assert "dev has no question of the kind 'missing' that is answered by no" in capsys.readouterr().err
    labels.save(tmp_path / "broken")
    (tmp_path / "broken" / "images" / f"{labels.images[0]}.png").write_bytes(b"\x89PNG")
    assert train(place, *recipe, data=str(tmp_path / "broken")) == 2
    err = capsys.readouterr().err
    assert "damaged" in err and err.count("\n") == 1
    assert train(place, *recipe, "--annotator", "somebody") == 2
    assert "annotator" in capsys.readouterr().err
    assert train(place, *recipe, "--asks", "missing,mising") == 2
    assert "unknown kind of question 'mising'; allowed: " in capsys.readouterr().err


def test_only_some_kinds_of_question_are_learned(place, tmp_path):
    recipe = ("--recipe", str(place / "recipe.toml"))
    assert train(place, *recipe, "--asks", "missing", "-o", str(tmp_path / "some")) == 0
    record = json.loads((tmp_path / "some" / "adapter" / "judge.json").read_bytes())
    assert {*record["calibration"]} == {"missing"}
