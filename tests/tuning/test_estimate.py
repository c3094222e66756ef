"""What tuning would take, against the model that is really built and an adapter that is really made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_tune import RECIPE

from tiny_vlm import save_tiny_vlm
from vsf.bench.judges import JudgeError, LocalJudge
from vsf.demo.training.recipes import read_recipe
from vsf.judging.estimate import estimate
from vsf.judging.train import Tune, adapter

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def test_parameters_and_tokens_are_those_of_the_real_thing(tmp_path):
    base = str(save_tiny_vlm(tmp_path / "tiny"))
    judge = LocalJudge(base, device="cpu", mass=0.0)
    count = sum(p.numel() for p in judge.net.parameters())
    trained = sum(p.numel() for p in adapter(judge.net, RECIPE, base).parameters() if p.requires_grad)
    (tmp_path / "tiny" / "model.safetensors").unlink()
    found = estimate(RECIPE, base, pixels=56, questions=2, words=10)
    assert (found.vision + found.text, found.trained) == (count, trained)
    assert (found.patches, found.tokens) == (16, 4 + 2 * 10)
    assert found.weights == 2 * count / 2**30 and found.memory > found.weights + found.state > found.weights
    again = estimate(replace(RECIPE, checkpointing=True), base, pixels=56, questions=2, words=10)
    assert again.flops == 1.5 * found.flops and again.activations < found.activations
    assert found.hours(1.0) == pytest.approx(found.flops / 3.6e15)


def test_a_model_of_words_alone_is_refused(tmp_path):
    from transformers import GPT2Config

    GPT2Config().save_pretrained(tmp_path / "text")
    with pytest.raises(JudgeError, match="text cannot be loaded"):
        estimate(RECIPE, str(tmp_path / "text"))
    with pytest.raises(JudgeError, match="no folder"):
        estimate(RECIPE, str(tmp_path / "gone"))


def test_the_real_config_has_as_many_parameters_as_its_published_files_hold(tmp_path):
    """Qwen2.5-VL-3B-Instruct: 7,509,245,952 bytes of bf16."""
    text = (Path(__file__).parents[2] / "docs/bench/judge-training.md").read_text("utf-8")
    (tmp_path / "config.json").write_text(text.split("```json\n")[1].split("```")[0])
    recipe = read_recipe(Tune, "tune", Path(__file__).parents[2] / "src/vsf/judging/recipes/tune.toml")
    found = estimate(recipe, str(tmp_path))
    assert 2 * (found.vision + found.text) == 7_509_245_952
    # LoRA of rank 16 by hand: 16 (in + out) for seven matrices of 36 layers, and three of the vision tower's 32 blocks.
    sizes = ((2048, 2048), (2048, 256), (2048, 256), (2048, 2048), (2048, 11008), (2048, 11008), (11008, 2048))
    language = 36 * sum(16 * (a + b) for a, b in sizes)
    assert found.trained == language + 32 * 3 * 16 * (1280 + 3420) and found.tokens == 28 * 28 + 3 * 40
