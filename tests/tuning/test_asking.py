"""Many questions about many pictures in one pass: each is answered as it is alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from closeness import differs, rounding, same
from tiny_vlm import save_tiny_vlm
from vsf.bench.judges import LocalJudge
from vsf.judging.asking import Asker, by_length, fast_on_cpu

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
QUESTIONS = [
    ["Is it red?", "Are the wheels missing from the bike?", "Is it?"],
    ["Is there a cat?"],
    ["No?", "Is it red?"],
]


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


PICTURES = [picture(0, (64, 64)), picture(1, (56, 28)), picture(2, (64, 64))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny")


@pytest.fixture(scope="module")
def alone(folder) -> torch.Tensor:
    """The stock model's logits, one question of one picture at a time, in float64."""
    judge = LocalJudge(folder, device="cpu", mass=0.0)
    net = judge.net.double()
    found = []
    for one, texts in zip(PICTURES, QUESTIONS, strict=True):
        for text in texts:
            content = [{"type": "image", "image": one}, {"type": "text", "text": text}]
            inputs = judge.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
            with torch.no_grad():
                found.append(
                    net(**{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}).logits[0, -1]
                )
    return torch.stack(found)


@pytest.mark.parametrize("packs", [True, False])
def test_a_question_in_company_is_answered_as_alone(folder, alone, packs):
    judge = LocalJudge(folder, device="cpu", mass=0.0)
    asker = Asker(judge.net, judge.processor, packs)
    batch = asker.pack(PICTURES, QUESTIONS)
    assert len(batch["input_ids"]) == (3 if packs else 6)
    with torch.no_grad():
        same(asker.logits(batch), alone, rounding(judge.net))


def test_padding_and_looking_first_change_nothing(folder, alone):
    judge = LocalJudge(folder, device="cpu", mass=0.0)
    asker = Asker(judge.net, judge.processor)
    wide = asker.pack(PICTURES, QUESTIONS, 200)
    assert wide["input_ids"].shape[1] == 200
    with torch.no_grad():
        same(asker.logits(wide, asker.look(wide)), alone, rounding(judge.net))


def test_attention_as_two_products_is_the_same_attention(folder, alone):
    judge = LocalJudge(folder, device="cpu", mass=0.0)
    fast_on_cpu(judge.net, compile=False)
    asker = Asker(judge.net, judge.processor)
    batch = asker.pack(PICTURES, QUESTIONS)
    with torch.no_grad():
        same(asker.logits(batch), alone, rounding(judge.net))
        with torch.autocast("cpu", torch.bfloat16):
            near = asker.logits(batch)
    # bf16 has 8 bits: about as far off as a few dozen roundings, and nowhere near another question's answer.
    differs(near, alone, rounding(judge.net))
    same(near, alone, 0.1)
    differs(near, alone.roll(1, 0), 0.1)


def test_a_mask_that_mixes_questions_would_be_seen(folder, alone):
    judge = LocalJudge(folder, device="cpu", mass=0.0)
    asker = Asker(judge.net, judge.processor)
    batch = asker.pack(PICTURES, QUESTIONS)
    length = batch["input_ids"].shape[1]
    batch["attention_mask"] |= torch.ones(length, length, dtype=torch.bool).tril()
    with torch.no_grad():
        differs(asker.logits(batch), alone, rounding(judge.net), 20.0)


def test_a_template_with_the_question_first_cannot_be_packed(folder):
    judge = LocalJudge(folder, device="cpu", mass=0.0)
    judge.processor.chat_template = (
        "{% for m in messages %}{{ m.content[1].text }}<|vision_start|><|image_pad|><|vision_end|>?{% endfor %}"
    )
    with pytest.raises(ValueError, match="question before the picture"):
        Asker(judge.net, judge.processor).pack(PICTURES[:1], QUESTIONS[:1])


def test_the_vision_tower_keeps_its_pictures_apart(folder):
    """Pieces of three lengths: each as its own attention, by the stock implementation."""
    from transformers import AutoModelForImageTextToText

    stock = AutoModelForImageTextToText.from_pretrained(folder)
    ours = AutoModelForImageTextToText.from_pretrained(folder)
    by_length(ours)
    grid = torch.tensor([[1, 4, 4], [1, 4, 4], [1, 2, 6], [1, 8, 4]])
    pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, got = (
            torch.cat(net.model.get_image_features(pixels, grid, return_dict=True).pooler_output)
            for net in (stock, ours)
        )
    same(got, wanted, rounding(ours))
