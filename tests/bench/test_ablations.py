"""VSF with an ingredient taken away: who sees whom, on tensors and on the demo model."""

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

import specs
import vsf
from vsf.bench.ablations import ABLATIONS, Ablation, Dense, EmbeddingFlip, guided, make_method
from vsf.bench.dense import dense_attention
from vsf.guidance import CFG, METHODS, NAG, VSF, Guidance, NoGuidance

KNOBS: dict[str, Any] = {"scale": 1.5, "offset": 1.0}
EVERY = [Dense, *ABLATIONS.values()]
TEXT = 16


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = vsf.load_demo_pipeline()
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


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# --- The attention


def pieces(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 3, 5 + 4 + 3, 8, generator=g, dtype=torch.float64) for _ in range(3))  # type: ignore


def dense(method: Ablation, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
    one = torch.ones(2, 1, 1, 1, dtype=torch.float64)
    keep = torch.ones(2, 3, dtype=torch.bool) if keep is None else keep
    assert not isinstance(method.scale, tuple) and not isinstance(method.offset, tuple)
    return dense_attention(method, q, k, v, 4, keep, method.scale * one, method.offset * one)


#: Which rows an ablation lets depend on the tokens of which group.
DEPENDS = {
    "vsf-dense": {"image": "image positive negative", "positive": "image positive", "negative": "image negative"},
    "vsf-no-isolation": dict.fromkeys(("image", "positive", "negative"), "image positive negative"),
    "vsf-no-duplication": {
        "image": "image positive negative",
        "positive": "image positive",
        "negative": "image negative",
    },
    "vsf-no-isolation-no-duplication": dict.fromkeys(("image", "positive", "negative"), "image positive negative"),
    "vsf-embedding-flip": {
        "image": "image positive negative",
        "positive": "image positive",
        "negative": "image negative",
    },
}
GROUPS = {"image": slice(0, 5), "positive": slice(5, 9), "negative": slice(9, 12)}


@pytest.mark.parametrize("kind", EVERY)
def test_rows_depend_on_the_tokens_they_may_see_and_on_no_other(kind: type[Ablation]) -> None:
    q, k, v = pieces()
    before = dense(kind(**KNOBS), q, k, v)
    for group, columns in GROUPS.items():
        k2, v2 = k.clone(), v.clone()
        k2[:, :, columns] += 1.0
        v2[:, :, columns] *= -2.0
        after = dense(kind(**KNOBS), q, k2, v2)
        for row, at in GROUPS.items():
            moved = not torch.equal(before[:, :, at], after[:, :, at])
            assert moved == (group in DEPENDS[kind.label][row].split()), (row, group)


def test_nothing_left_out_is_the_definition_of_vsf() -> None:
    from vsf.core import reference

    q, k, v = pieces()
    out = dense(Dense(**KNOBS), q, k, v)
    image = reference.vsf(q[:, :, :5], k[:, :, :9], v[:, :, :9], k[:, :, 9:], v[:, :, 9:], 1.5, 1.0)
    assert far(out[:, :, :5], image) < 1e-14
    assert far(out[:, :, 5:9], reference.softmax_attention(q[:, :, 5:9], k[:, :, :9], v[:, :, :9])) < 1e-14
    index = [*range(5), *range(9, 12)]
    assert far(out[:, :, 9:], reference.softmax_attention(q[:, :, 9:], k[:, :, index], v[:, :, index])) < 1e-14


def test_what_is_left_out_acts_where_it_should() -> None:
    q, k, v = pieces()
    full = dense(Dense(**KNOBS), q, k, v)
    image, positive, negative = (slice(0, 5), slice(5, 9), slice(9, 12))
    out = {label: dense(kind(**KNOBS), q, k, v) for label, kind in ABLATIONS.items()}
    for label in ("vsf-no-isolation", "vsf-no-duplication", "vsf-no-isolation-no-duplication"):
        assert torch.equal(out[label][:, :, image], full[:, :, image])  # within a layer the image sees the same
    assert torch.equal(out["vsf-no-duplication"][:, :, positive], full[:, :, positive])
    # The flipped copy is one set of keys and values, whoever looks at it.
    flipped = v.clone()
    flipped[:, :, negative] *= -1.5
    bias = torch.zeros(12, dtype=torch.float64)
    bias[negative] = -1.0
    everything = (q @ k.transpose(-1, -2) / 8**0.5 + bias).softmax(-1) @ flipped
    assert far(out["vsf-no-isolation-no-duplication"], everything) < 1e-14
    assert far(out["vsf-no-isolation"][:, :, positive], everything[:, :, positive]) < 1e-14
    straight = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
    assert far(out["vsf-no-isolation"][:, :, negative], straight[:, :, negative]) < 1e-14


@pytest.mark.parametrize("kind", EVERY)
def test_tokens_that_are_not_there_are_seen_by_nobody(kind: type[Ablation]) -> None:
    q, k, v = pieces()
    keep = torch.tensor([[True, True, False], [False, False, False]])
    before = dense(kind(**KNOBS), q, k, v, keep)
    k, v = k.clone(), v.clone()
    k[0, :, 11] = k[1, :, 9:] = 50.0
    v[0, :, 11] = v[1, :, 9:] = 1e6
    assert torch.equal(dense(kind(**KNOBS), q, k, v, keep), before) and bool(before.isfinite().all())


# --- The demo model


@pytest.mark.parametrize(
    "knobs",
    [KNOBS, {"scale": 3.0, "offset": 0.0}, {**KNOBS, "start": 0.25, "stop": 0.75}, {**KNOBS, "blocks": (0, 3)}],
    ids=["recommended", "no offset", "part of the steps", "some blocks"],
)
def test_nothing_left_out_draws_what_vsf_draws(pipe: Any, knobs: dict[str, Any]) -> None:
    fast = latents(pipe, VSF(**knobs))
    assert far(latents(pipe, Dense(**knobs)), fast) < 1e-4 < 0.05 < far(fast, plain(pipe))


def test_every_ablation_draws_something_else_and_leaves_nothing_behind(pipe: Any) -> None:
    before, hooks = plain(pipe), [len(m._forward_pre_hooks) for m in pipe.transformer.modules()]
    processors = {n: id(p) for n, p in pipe.transformer.attn_processors.items()}
    drawn = [before, latents(pipe, VSF(**KNOBS))]
    for kind in ABLATIONS.values():
        drawn.append(latents(pipe, kind(**KNOBS)))
        assert torch.equal(plain(pipe), before)
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            assert far(a, b) > 0.02
    with pytest.raises(KeyboardInterrupt), guided(pipe, EmbeddingFlip(**KNOBS), ["wheels"]):
        raise KeyboardInterrupt
    assert torch.equal(plain(pipe), before)
    assert {n: id(p) for n, p in pipe.transformer.attn_processors.items()} == processors
    assert [len(m._forward_pre_hooks) for m in pipe.transformer.modules()] == hooks


@pytest.mark.parametrize("kind", EVERY)
def test_a_batch_of_different_negatives_is_its_single_runs(pipe: Any, kind: type[Ablation]) -> None:
    prompts = ["a red bike on grass", "a pink cake in a room", "a blue house on grass"]
    negatives = ["wheels", "candles and a heart", None]
    seeds, scales, offsets = [2, 8, 10], (1.5, 3.0, 2.0), (1.0, 0.0, 0.5)
    batch = latents(pipe, kind(scale=scales, offset=offsets), negatives, prompts, seeds)
    for i in range(3):
        one = latents(
            pipe, kind(scale=scales[i], offset=offsets[i]), negatives[i : i + 1], prompts[i : i + 1], [seeds[i]]
        )
        assert far(batch[i : i + 1], one) < 1e-4
    assert far(batch[2:], plain(pipe, prompts[2:], seeds[2:])) < 1e-4  # a sample without a negative


@pytest.mark.parametrize("kind", EVERY)
def test_steps_outside_start_and_stop_are_the_models_own(pipe: Any, kind: type[Ablation]) -> None:
    part, whole = latents(pipe, kind(**KNOBS, stop=0.5)), latents(pipe, kind(**KNOBS))
    assert far(part, whole) > 1e-3 < far(part, plain(pipe))
    assert torch.equal(latents(pipe, kind(scale=1.5, offset=math.inf)), plain(pipe))


def test_embedding_flip_multiplies_the_embedding_by_minus_scale(pipe: Any) -> None:
    g = torch.Generator().manual_seed(0)
    embeds = torch.randn(3, pipe.transformer.config.joint_attention_dim, generator=g)

    def draw(scale: float, factor: float) -> Tensor:
        given = [embeds * factor]
        with guided(pipe, EmbeddingFlip(scale=scale, offset=0.5), None, negative_prompt_embeds=given):
            return plain(pipe)

    assert far(draw(2.0, 1.0), draw(1.0, 2.0)) < 1e-4
    assert far(draw(2.0, 1.0), draw(2.0, -1.0)) > 1e-3


def test_an_ordinary_method_is_guided_as_ever(pipe: Any) -> None:
    for method in (VSF(**KNOBS, stop=0.75), NAG(4.0, 2.5, 0.5), NoGuidance()):
        with torch.no_grad(), vsf.negative_guidance(pipe, method, ["wheels"], max_sequence_length=TEXT):
            wanted = plain(pipe)
        assert torch.equal(latents(pipe, method), wanted)


# --- Refusals and records


def test_another_family_is_refused_by_name() -> None:
    spec = specs.load()["unet"]
    model = spec.build(torch.float32)
    with (
        pytest.raises(vsf.UnsupportedModel, match="vsf-no-isolation runs on Stable Diffusion 3 only"),
        guided(model, ABLATIONS["vsf-no-isolation"](), None, negative_prompt_embeds=[torch.zeros(2, spec.width)]),
    ):
        pass


def test_an_ablation_is_no_method_of_its_own(pipe: Any) -> None:
    with (
        pytest.raises(TypeError, match="use vsf.bench.ablations.guided"),
        vsf.negative_guidance(pipe, Dense(**KNOBS), "wheels", max_sequence_length=TEXT),
    ):
        plain(pipe)
    with pytest.raises(ValueError, match="has .*blocks 0 to 5"):
        latents(pipe, Dense(**KNOBS, blocks=(9,)))
    with pytest.raises(ValueError, match="needs negative_prompt"), guided(pipe, Dense(**KNOBS), None):
        pass
    with pytest.raises(ValueError, match="layout"):
        make_method({"method": "vsf-no-isolation", "layout": "upstream"})


SOME = [
    *(kind() for kind in METHODS.values()),
    *(kind(scale=2.0, offset=0.0, start=0.1, stop=0.6, blocks=(1, 2)) for kind in ABLATIONS.values()),
    VSF(scale=(1.0, 2.0), offset=math.inf, layout="upstream", normalize=1.5),
    Dense(),
    CFG(3.0),
]


@pytest.mark.parametrize("method", SOME, ids=lambda m: m.label)
def test_settings_make_the_method_again_also_after_json(method: Guidance) -> None:
    from vsf.images import _plain

    assert make_method(method.settings()) == method
    again = make_method(json.loads(json.dumps(_plain(method.settings()), allow_nan=False)))
    assert again == method and type(again) is type(method)
    assert make_method({"method": method.label}) == type(method)()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "vsf-no-isolatoin"}, "unknown method .*did you mean vsf-no-isolation?"),
        ({}, "unknown method None; allowed: none, vsf,"),
        ({"method": "vsf", "scal": 1}, "has no setting 'scal'; it has .*did you mean scale"),
        ({"method": "vsf", "scale": "nan"}, "scale is nan"),
        ({"method": "vsf", "scale": -1}, "scale is -1"),
    ],
)
def test_unknown_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(settings)


def test_labels_and_knobs_are_those_of_vsf() -> None:
    for label, kind in ABLATIONS.items():
        assert kind.label == label and label not in METHODS
        assert kind().settings() == {"method": label} | {
            n: v for n, v in VSF().settings().items() if n in ("scale", "offset", "start", "stop", "blocks")
        }
        with pytest.raises(ValueError, match="scale"):
            replace(kind(), scale=-1.0)


def test_naming_the_ablations_needs_no_torch() -> None:
    code = (
        "import sys\nfrom vsf.bench.ablations import make_method\n"
        "make_method({'method': 'vsf-no-isolation', 'scale': 2})\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))})
