"""VSF with something exchanged, on the demo model. (Who sees what is held to the definition in `test_contract`.)"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import vsf
from closeness import differs, rounding, same
from vsf import negative_guidance as guided
from vsf.guidance import CFG, METHODS, VARIANTS, VSF, Guidance, make_method
from vsf.guidance.variants import EmbeddingFlip

KNOBS: dict[str, Any] = {"scale": 1.5, "offset": 1.0}
EVERY = list(VARIANTS.values())
TEXT = 16


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = vsf.load_demo_pipeline().to(torch.float64)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(
    pipe: Any,
    method: Guidance,
    negatives: Sequence[str | None] = ("wheels",),
    prompts: Sequence[str] = ("a red bike on grass",),
    seeds: Sequence[int] = (2,),
    steps: int = 4,
) -> Tensor:
    with torch.no_grad(), guided(pipe, method, list(negatives), max_sequence_length=TEXT):
        return plain(pipe, prompts, seeds, steps)


def plain(pipe: Any, prompts: Sequence[str] = ("a red bike on grass",), seeds: Sequence[int] = (2,), steps: int = 4):
    with torch.no_grad():
        return pipe(
            list(prompts),
            guidance_scale=0.0,
            num_inference_steps=steps,
            max_sequence_length=TEXT,
            output_type="latent",
            generator=[torch.Generator().manual_seed(s) for s in seeds],
        ).images


def bound(pipe: Any) -> float:
    return rounding(pipe, torch.float64, passes=4)


# --- The demo model


def test_every_ablation_draws_something_else_and_leaves_nothing_behind(pipe: Any) -> None:
    before, hooks = plain(pipe), [len(m._forward_pre_hooks) for m in pipe.transformer.modules()]
    processors = {n: id(p) for n, p in pipe.transformer.attn_processors.items()}
    drawn = [before, latents(pipe, VSF(**KNOBS))]
    for kind in VARIANTS.values():
        drawn.append(latents(pipe, kind(**KNOBS)))
        assert torch.equal(plain(pipe), before)
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            differs(a, b, bound(pipe))
    with pytest.raises(KeyboardInterrupt), guided(pipe, EmbeddingFlip(**KNOBS), ["wheels"]):
        raise KeyboardInterrupt
    assert torch.equal(plain(pipe), before)
    assert {n: id(p) for n, p in pipe.transformer.attn_processors.items()} == processors
    assert [len(m._forward_pre_hooks) for m in pipe.transformer.modules()] == hooks


@pytest.mark.parametrize("kind", EVERY)
def test_a_batch_of_different_negatives_is_its_single_runs(pipe: Any, kind: type[VSF]) -> None:
    prompts = ["a red bike on grass", "a pink cake in a room", "a blue house on grass"]
    negatives = ["wheels", "candles and a heart", None]
    seeds, scales, offsets = [2, 8, 10], (1.5, 3.0, 2.0), (1.0, 0.0, 0.5)
    batch = latents(pipe, kind(scale=scales, offset=offsets), negatives, prompts, seeds)
    for i in range(3):
        one = latents(
            pipe, kind(scale=scales[i], offset=offsets[i]), negatives[i : i + 1], prompts[i : i + 1], [seeds[i]]
        )
        same(batch[i : i + 1], one, bound(pipe))
    same(batch[2:], plain(pipe, prompts[2:], seeds[2:]), bound(pipe))  # a sample without a negative


@pytest.mark.parametrize("kind", EVERY)
def test_steps_outside_start_and_stop_are_the_models_own(pipe: Any, kind: type[VSF]) -> None:
    part, whole = latents(pipe, kind(**KNOBS, stop=0.5)), latents(pipe, kind(**KNOBS))
    differs(part, whole, bound(pipe))
    differs(part, plain(pipe), bound(pipe))
    assert torch.equal(latents(pipe, kind(scale=1.5, offset=math.inf)), plain(pipe))


def test_embedding_flip_multiplies_the_embedding_by_minus_scale(pipe: Any) -> None:
    g = torch.Generator().manual_seed(0)
    embeds = torch.randn(3, pipe.transformer.config.joint_attention_dim, generator=g)

    def draw(scale: float, factor: float) -> Tensor:
        given = [embeds * factor]
        with guided(pipe, EmbeddingFlip(scale=scale, offset=0.5), None, negative_prompt_embeds=given):
            return plain(pipe)

    same(draw(2.0, 1.0), draw(1.0, 2.0), bound(pipe))
    differs(draw(2.0, 1.0), draw(2.0, -1.0), bound(pipe))


# --- Refusals and records


SOME = [
    *(kind() for kind in METHODS.values()),
    *(kind(scale=2.0, offset=0.0, start=0.1, stop=0.6, blocks=(1, 2)) for kind in VARIANTS.values()),
    VSF(scale=(1.0, 2.0), offset=math.inf, layout="upstream", normalize=1.5),
    CFG(3.0),
]


@pytest.mark.parametrize("method", SOME, ids=lambda m: m.label)
def test_settings_make_the_method_again_also_after_json(method: Guidance) -> None:
    from vsf.files import plain

    assert make_method(method.settings()) == method
    again = make_method(json.loads(json.dumps(plain(method.settings()), allow_nan=False)))
    assert again == method and type(again) is type(method)
    assert make_method({"method": method.label}) == type(method)()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "vsf-no-isolatoin"}, "unknown method .*did you mean vsf-no-isolation?"),
        ({}, "unknown method None; allowed: none, vsf,"),
        ({"method": "vsf", "scal": 1}, "unknown setting of method vsf: 'scal'; allowed: .*did you mean scale"),
        ({"method": "vsf", "scale": "nan"}, "scale is nan"),
        ({"method": "vsf", "scale": -1}, "scale is -1"),
    ],
)
def test_unknown_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(settings)


def test_labels_and_knobs_are_those_of_vsf() -> None:
    for label, kind in VARIANTS.items():
        assert kind.label == label and label not in METHODS
        assert kind().settings() == VSF().settings() | {"method": label}
        with pytest.raises(ValueError, match="scale"):
            replace(kind(), scale=-1.0)


def test_naming_the_ablations_needs_no_torch() -> None:
    code = (
        "import sys\nfrom vsf.guidance import make_method\n"
        "make_method({'method': 'vsf-no-isolation', 'scale': 2})\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))})
