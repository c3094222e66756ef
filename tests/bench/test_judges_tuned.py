"""The judge that comes with the package, and any that `vsf judge train` made: where it is judged by, and behind a server."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from judging import drawn, make_run
from patience import PATIENCE
from tiny_vlm import save_tiny_vlm
from vsf.bench.judges import JUDGES, ApiJudge, JudgeError, LocalJudge, TunedJudge, exhibits
from vsf.bench.judges.tuned import shipped
from vsf.cli import main
from vsf.judging import collected, world_labels

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

RECORD = json.loads((shipped() / "judge.json").read_text("utf-8"))
UNSEEN = RECORD["recipe"]["data"]["test"]


@pytest.fixture(scope="module")
def small() -> TunedJudge:
    return TunedJudge(device="cpu")


def test_what_comes_with_the_package_is_small_and_safe():
    folder = shipped()
    every = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in every) < 16 * 2**20
    assert {path.suffix for path in every} <= {".json", ".safetensors", ".jinja"}
    assert all("_name_or_path" not in path.read_text("utf-8") for path in every if path.suffix == ".json")


def test_it_tells_missing_from_there_on_objects_it_never_saw(small):
    labels = collected(world_labels(60, 4321, objects=UNSEEN))
    right = [
        (p >= 0.5) == label.answer
        for label in labels
        if label.asks == "missing"
        and (p := small.answer(labels.picture(label), label.question, asks="missing")) is not None
    ]
    assert len(right) == 60 and np.mean(right) > 0.85
    assert {*UNSEEN}.isdisjoint((shipped() / "tokenizer.json").read_text("utf-8").split('"'))


def test_it_says_what_it_is_and_not_where_it_lies(small):
    about = small.about()
    assert about == JUDGES.make("tuned", {"device": "cpu"}).about()
    assert (about["kind"], about["model"], about["base"], about["adapter"]) == ("tuned", "vsf-small-judge", None, None)
    assert {*about["calibration"]} == {"missing", "kept"} and len(about["weights_sha256"]) == 64
    assert about["architecture"] == "Qwen2_5_VLForConditionalGeneration"
    assert str(shipped()) not in json.dumps(about)


def test_it_plugs_into_a_run_like_any_other(small, tmp_path, capsys):
    run = make_run(tmp_path / "run", cases=1, seeds=(0,), methods=("none",))
    assert main(["bench", "judge", str(run.folder), "--judge", "tuned", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("tuned: 1 judged, 0 not judged")
    answer = next(iter(run.judged("tuned")))
    assert 0 <= answer.details["probabilities"]["answer_2"] <= 1 and answer.quality is not None
    item = exhibits(run, drawn(run))[0]
    assert next(iter(small.read([item]))).unit == item.unit


def test_a_folder_that_training_made_is_one_too_and_others_are_not(tmp_path):
    from transformers import AutoModelForImageTextToText

    peft = pytest.importorskip("peft")
    whole, adapter = tmp_path / "whole", tmp_path / "adapter"
    shutil.copytree(shipped(), whole)
    made = TunedJudge(whole, device="cpu")
    assert made.about()["model"] == str(whole) and made.calibration == TunedJudge(device="cpu").calibration
    net = peft.get_peft_model(
        AutoModelForImageTextToText.from_pretrained(whole), peft.LoraConfig(r=2, target_modules=["q_proj"])
    )
    for name, parameter in net.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    net.save_pretrained(adapter)
    (adapter / "judge.json").write_text('{"format": "vsf-judge", "version": 1, "calibration": {}}')
    labels = collected(world_labels(1, 5))
    picture = labels.picture(next(iter(labels)))
    asked = "Is the hat missing from the mug?"
    wanted = LocalJudge(whole, adapter=adapter, device="cpu").answer(picture, asked, asks="missing")
    tuned = TunedJudge(adapter, device="cpu")
    assert tuned.answer(picture, asked, asks="missing") == wanted != made.answer(picture, asked, asks="missing")
    assert tuned.about()["base"] == str(whole) and len(tuned.about()["adapter_sha256"]) == 64
    assert TunedJudge(adapter, base=shipped(), device="cpu").answer(picture, asked, asks="missing") == wanted
    plain = save_tiny_vlm(tmp_path / "plain")
    (tmp_path / "broken").mkdir()
    for name in ("judge.json", "adapter_config.json"):
        (tmp_path / "broken" / name).write_text("{}")
    for given, why in (
        ({"model": tmp_path / "gone"}, "there is no folder"),
        ({"model": plain}, "no judge that vsf judge train made"),
        ({"model": whole, "base": plain}, "no other base"),
        ({"model": adapter, "base": tmp_path / "gone"}, "there is no folder"),
        ({"model": tmp_path / "broken"}, "does not say which model"),
    ):
        with pytest.raises(JudgeError, match=why) as caught:
            TunedJudge(**given, device="cpu")
        assert "\n" not in str(caught.value)


@pytest.mark.more
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn", "openai")),
    reason="needs fastapi and uvicorn",
)
def test_behind_transformers_serve_it_says_the_same_words(tmp_path, monkeypatch):
    """A real server on this machine, which gives no log-probabilities: words."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = str(shipped())
    command = [sys.executable, str(Path(__file__).with_name("serve_judge.py")), "serve", folder]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"], stdout=log, stderr=log
        )
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert server.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.2)
        api = ApiJudge(
            folder,
            base_url=f"http://127.0.0.1:{port}/v1",
            words=True,
            logprobs=True,
            max_tokens=1,
            temperature=0.0,
            timeout=PATIENCE,
        )
        local = LocalJudge(folder, device="cpu", mass=0.0)
        labels = collected(world_labels(6, 77))
        said = []
        for label in labels:
            p, _ = local.probability(labels.picture(label), f"{label.question} Answer yes or no.")
            answer = api.answer(labels.picture(label), label.question, asks=label.asks)
            assert answer == float(p >= 0.5), label.question
            said.append(answer)
        assert {*said} == {0.0, 1.0}
    finally:
        server.terminate()
        server.wait()
