"""The nodes on ComfyUI's own model classes: equal to the definition, to the stock model, and to nothing when off."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from comfy_server import NUMBERS, Z_IMAGE
from torch import Tensor

import closeness
from closeness import close, differs, same
from vsf.core import reference
from vsf.guidance import NAG, NASA, VSF, Guidance
from vsf.guidance.variants import ReferencedVSF, TextVSF

#: What 0.3.64 does not have; of these, the joint ones.
NEWER_JOINT = ("flux2", "longcat", "ovis", "radiance_numbered", "krea2", "hunyuan15", "ernie") if NUMBERS else ()
NEWER = (*NEWER_JOINT, "ltx2", "ltx23", "anima", "wan_s2v") if NUMBERS else ()
#: These mix the tokens of a text before it meets the image, so that it cannot be lengthened by hand, or have it behind.
MIXED = ("lumina2", "zimage", "omnigen2", "krea2", "hunyuan", "hunyuan15", "ernie", "hidream")
FAMILIES = (
    "sd15",
    "sdxl",
    "sd3",
    "flux",
    "chroma",
    "qwen",
    "lumina2",
    "zimage",
    "wan",
    "wan_i2v",
    "vace",
    "wan_camera",
    "wan_animate",
    "ltx",
    "radiance",
    "omnigen2",
    "hidream",
    "hunyuan",
    *NEWER,
)
JOINT = (
    "sd3",
    "flux",
    "chroma",
    "qwen",
    "lumina2",
    "zimage",
    "radiance",
    "omnigen2",
    "hidream",
    "hunyuan",
    *NEWER_JOINT,
)
#: Wan models with a picture of which a vision encoder tells.
PICTURES = ("wan_i2v", "wan_camera", "wan_animate")
#: A UNet sums so many terms that more steps would hide an error.
STEPS = {"sd15": 1, "sdxl": 1}

pytestmark = [
    pytest.mark.usefixtures("comfy"),
    pytest.mark.filterwarnings("ignore"),  # ComfyUI's own
]


Pair = tuple[Tensor, Tensor]  # keys and values


@dataclass(frozen=True)
class Swap(Guidance):
    """The negative branch in the place of the positive one: draws what the stock model draws for the negative."""

    label = "swap"
    negative = "padded"

    def combine(self, at: Any, knob: Any) -> Tensor:
        return at.branch.out


class Vision:
    """What a CLIP vision encoder returns."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.penultimate_hidden_states = torch.randn(1, 9, 1280, generator=generator)
        self.last_hidden_state = torch.randn(1, 9, 12, generator=generator)  # of HunyuanVideo 1.5


def sample(model: Any, name: str, positive: Any, cfg: float = 1.0, batch: int = 1, negative: Any = None, **more: Any):
    import comfy.sample
    import comfy_tiny as tiny

    given = {"sampler": "euler", "scheduler": "simple", "steps": STEPS.get(name, 2), "seed": 0} | more
    size = given.pop("size", None) or tiny.TINY[name].latent
    if name in PICTURES:
        positive = [[tokens, {**extra, "clip_vision_output": Vision()}] for tokens, extra in positive]
    noise = tiny.noise_of(name, batch, size=size)
    out = comfy.sample.sample(
        model, noise, given["steps"], cfg, given["sampler"], given["scheduler"], positive,
        negative if negative is not None else positive, noise * 0, disable_pbar=True, seed=given["seed"],
        **{k: v for k, v in given.items() if k in ("callback", "denoise")},
    )  # fmt: skip
    # Of a video with sound, both as one row.
    return torch.cat([part.flatten(1) for part in out.unbind()], 1) if tiny.TINY[name].audio else out


def bound(model: Any, steps: int = 2) -> float:
    """What results of a ComfyUI model may differ by after so many steps (a UNet: one), see `closeness`."""
    steps = 1 if hasattr(model.model.diffusion_model, "middle_block") else steps
    return closeness.rounding(model.model.diffusion_model, passes=steps)


def guided(pack: Any, model: Any, method: Guidance, negative: Any, record: bool = False) -> Any:
    return pack.guide.guide_model(model, method, negative, record)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {}


@pytest.fixture
def tiny_model(models: dict[str, Any]) -> Any:
    import comfy_tiny as tiny

    def get(name: str) -> Any:
        if name not in models:
            models[name] = tiny.model_of(name)
        return models[name]

    return get


# -- the definition: the same text, dense attention in float64 ------------------------------------------------------


class Dense:
    """An attention override that writes the definition out over `[negative, prompt, image]` or `[prompt, negative]`."""

    def __init__(self, n: int, p: int, method: Guidance, joint: bool, full: int | None) -> None:
        self.n, self.p, self.method, self.joint, self.full = n, p, method, joint, full
        self.calls, self.knob = 0, method.settings()
        self.is_text: Any = None

    def __call__(self, func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **kwargs: Any):
        split = kwargs.get("skip_reshape", False)
        length = k.shape[2] if split else k.shape[1]
        mine = length == self.full if self.joint else self.is_text(q, length)
        if not mine:
            return func(q, k, v, heads, mask=mask, **kwargs)
        self.calls += 1
        if not split:
            q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
        out = self.joint_rows(q, k, v) if self.joint else self.cross_rows(q, k, v)
        return out.to(q).transpose(1, 2).flatten(2)

    def joint_rows(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, p = self.n, self.p
        image = q.shape[2] - n - p
        q, k, v = q.double(), k.double(), v.double()
        seen = reference.visible(
            [("negative", n), ("prompt", p), ("image", image)],
            {"image": "image prompt", "prompt": "image prompt", "negative": "image negative"},
        )
        bias = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -math.inf)
        out = reference.softmax_attention(q, k, v, bias)
        text = slice(n, n + p)
        own, negative = (k[:, :, n:], v[:, :, n:]), (k[:, :, :n], v[:, :, :n])
        text_rows, q = q[:, :, text], q[:, :, n + p :]
        if isinstance(self.method, VSF):
            r = reference.softmax_attention(q, k[:, :, text], v[:, :, text])
            guided = self.flipped(q, own, negative, r)
            if self.method.label == "vsf-text":
                out[:, :, text] = self.flipped(text_rows, own, negative, r)
        else:
            k_branch, v_branch = (torch.cat([x[:, :, :n], x[:, :, n + p :]], 2) for x in (k, v))
            guided = self.baseline(out[:, :, n + p :], reference.softmax_attention(q, k_branch, v_branch))
        return torch.cat([out[:, :, : n + p], guided], 2)

    def cross_rows(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        p = self.p
        pos, neg = (k[:, :, :p], v[:, :, :p]), (k[:, :, p:], v[:, :, p:])
        if isinstance(self.method, VSF):
            return self.flipped(q, pos, neg, reference.softmax_attention(q, *pos))
        return self.baseline(reference.softmax_attention(q, *pos), reference.softmax_attention(q, *neg))

    def flipped(self, q: Tensor, own: Pair, negative: Pair, r: Tensor) -> Tensor:
        knobs: tuple[Any, Any] = self.knob["scale"], self.knob["offset"]
        if self.method.label == "vsf-referenced":
            return reference.vsf_referenced(q, *own, *negative, r, *knobs)
        return reference.vsf(q, *own, *negative, *knobs)

    def baseline(self, pos: Tensor, neg: Tensor) -> Tensor:
        if isinstance(self.method, NAG):
            return reference.nag(pos, neg, self.knob["scale"], self.knob["tau"], self.knob["alpha"])
        assert isinstance(self.method, NASA)
        return reference.nasa(pos, neg, self.knob["scale"])


def definition(
    model: Any, name: str, positive: Any, negative: Any, method: Guidance, batch: int
) -> tuple[Tensor, int]:
    """What sampling gives when the text is lengthened by hand and attention is the dense definition."""
    import comfy_tiny as tiny

    n, p = negative[0][0].shape[1], positive[0][0].shape[1]
    joint = name in JOINT
    parts = [negative[0][0], positive[0][0]] if joint else [positive[0][0], negative[0][0]]
    extra = dict(positive[0][1])
    if "attention_mask" in extra:
        extra["attention_mask"] = torch.ones(1, n + p, dtype=torch.long)
    *_, height, width = tiny.TINY[name].latent
    patch, numbered = tiny.TINY[name].patch, tiny.TINY[name].numbered
    full = n + p + height // patch * (width // patch) if joint else None
    dense = Dense(n, p, method, joint, full)
    dense.is_text = lambda q, length: length == n + p
    ours = model.clone()
    ours.model_options["transformer_options"]["optimized_attention_override"] = dense
    handle = None
    if numbered:  # the prompt at its own positions; the negative where it would be as the prompt

        def positions(module: Any, args: Any) -> Any:
            ids = args[0].clone()
            start, step = ids[:, :1].clone(), ids[:, 1:2] - ids[:, :1]
            first = p - n if numbered == "end" else 0
            ids[:, :n] = start + step * torch.arange(first, first + n)[None, :, None]
            ids[:, n : n + p] = start + step * torch.arange(p)[None, :, None]
            if numbered == "end":  # the image stands behind the text
                ids[:, n + p :] -= n * step
            return (ids,)

        handle = ours.model.diffusion_model.pe_embedder.register_forward_pre_hook(positions)
    try:
        return sample(ours, name, [[torch.cat(parts, 1), extra]], batch=batch), dense.calls
    finally:
        if handle is not None:
            handle.remove()


METHODS = (
    VSF(scale=2.0, offset=0.3),
    TextVSF(scale=2.0, offset=0.3),
    ReferencedVSF(scale=2.0, offset=0.3),
    NAG(scale=3.0, tau=1.5, alpha=0.5),
    NASA(scale=0.4),
)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
@pytest.mark.parametrize("name", [f for f in FAMILIES if f not in MIXED])
def test_equals_the_definition(pack: Any, tiny_model: Any, name: str, method: Guidance) -> None:
    import comfy_tiny as tiny

    model = tiny_model(name)
    whole = name == "flux2" and method.negative == "padded"  # by hand as much as the model would pad to
    positive, negative = tiny.conditioning(name, 0), tiny.conditioning(name, 1, 512 if whole else 5)
    expected, calls = definition(model, name, positive, negative, method, batch=2)
    assert calls
    ours = sample(guided(pack, model, method, negative), name, positive, batch=2)
    plain = sample(model, name, positive, batch=2)
    close(ours, expected, plain, bound(model))


@pytest.mark.parametrize("layout", ["paper", "upstream"])
@pytest.mark.parametrize("name", JOINT)
def test_each_attention_equals_the_definition(
    pack: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch, name: str, layout: Any
) -> None:
    import comfy_tiny as tiny

    method = VSF(scale=2.0, offset=0.3, layout=layout)
    seen: list[tuple[Tensor, Tensor]] = []
    original = pack.guide.joint_attention

    def watched(frame: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, *args: Any, **kwargs: Any) -> Tensor:
        assert mask is None
        dense = Dense(frame.n_neg, frame.n_pos, method, True, None)
        text_first = args[3]
        image = q.shape[2] - frame.n_pos - frame.n_neg
        order = torch.arange(q.shape[2])  # of the rows, to negative, prompt, image
        if not text_first:
            order = torch.cat([order[image + frame.n_pos :], order[image : image + frame.n_pos], order[:image]])
        expected = dense.joint_rows(*(x[:, :, order] for x in (q, k, v)))[:, :, order.argsort()]
        out = original(frame, q, k, v, mask, *args, **kwargs)
        seen.append((out, expected))
        return out

    monkeypatch.setattr(pack.guide, "joint_attention", watched)
    positive, negative = tiny.conditioning(name, 0), tiny.conditioning(name, 1, 5)
    sample(guided(pack, tiny_model(name), method, negative), name, positive, batch=2)
    assert seen
    for out, expected in seen:
        same(out, expected, bound(tiny_model(name), 1))


# -- against the stock model: code that is not ours -------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_negative_branch_is_the_stock_model_with_the_negative_as_its_prompt(
    pack: Any, tiny_model: Any, name: str
) -> None:
    import comfy_tiny as tiny

    model = tiny_model(name)
    # ERNIE-Image's positions are those of the prompt's length.
    positive, negative = tiny.conditioning(name, 0), tiny.conditioning(name, 1, 7 if name == "ernie" else 5)
    as_prompt = [[negative[0][0], {**negative[0][1], "pooled_output": positive[0][1].get("pooled_output")}]]
    if as_prompt[0][1]["pooled_output"] is None:
        del as_prompt[0][1]["pooled_output"]
    expected = sample(model, name, as_prompt)
    same(sample(guided(pack, model, Swap(), negative), name, positive), expected, bound(model))
    if name == "flux2":  # and with a prompt that the model pads in front
        short = tiny.conditioning(name, 0, 9)
        same(sample(guided(pack, model, Swap(), negative), name, short), expected, bound(model))
    if name == "zimage":  # and with an image whose tokens need no pads, for a negative of any length
        size = (16, 8, 8)
        as_prompt[0][0], negative = tiny.conditioning(name, 3, 11)[0][0], tiny.conditioning(name, 3, 11)
        as_prompt[0][1]["attention_mask"] = torch.ones(1, 11, dtype=torch.long)
        expected = sample(model, name, as_prompt, size=size)
        same(sample(guided(pack, model, Swap(), negative), name, positive, size=size), expected, bound(model))


@pytest.mark.parametrize("name", FAMILIES)
def test_off_is_bit_equal_and_nothing_is_left_behind(pack: Any, tiny_model: Any, name: str) -> None:
    import comfy_tiny as tiny

    model = tiny_model(name)
    positive, negative = tiny.conditioning(name, 0), tiny.conditioning(name, 1, 5)
    before = sample(model, name, positive)
    options = str(model.model_options)
    ours = guided(pack, model, VSF(scale=2.0), negative)
    first = sample(ours, name, positive)
    assert not torch.equal(first, before)
    assert torch.equal(sample(model, name, positive), before)  # bypassed or deleted
    assert torch.equal(sample(ours, name, positive), first)
    assert str(model.model_options) == options and not model.wrappers and not model.attachments
    assert torch.equal(sample(guided(pack, model, VSF(offset=math.inf), negative), name, positive), before)
    assert torch.equal(sample(guided(pack, model, NASA(scale=0.0), negative), name, positive), before)
    assert torch.equal(sample(guided(pack, model, VSF(start=1.0), negative), name, positive), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.diffusion_model.modules())


@pytest.mark.parametrize("name", ["sd15", "flux", "wan"])
def test_a_range_of_the_schedule(pack: Any, tiny_model: Any, name: str) -> None:
    """Until guidance begins, everything is bit-equal to no node."""
    import comfy_tiny as tiny

    model, steps = tiny_model(name), 4
    positive, negative = tiny.conditioning(name, 0), tiny.conditioning(name, 1, 5)

    def latents(model: Any) -> list[Tensor]:
        kept: list[Tensor] = []
        sample(model, name, positive, steps=steps, callback=lambda step, x0, x, total: kept.append(x.clone()))
        return kept

    plain, late = latents(model), latents(guided(pack, model, VSF(start=0.4), negative))
    equal = [torch.equal(a, b) for a, b in zip(plain, late, strict=True)]
    assert equal[0] and equal[1] and not equal[-1]


@pytest.mark.skipif(not NUMBERS, reason="this ComfyUI has no Flux2")
def test_a_prompt_padded_in_front_ends_where_its_negative_ends(pack: Any, tiny_model: Any) -> None:
    """Flux2 pads short prompts in front to 512, so the last tokens of all prompts have the same positions."""
    import comfy_tiny as tiny

    model = tiny_model("flux2")
    seen: list[Tensor] = []
    handle = model.model.diffusion_model.pe_embedder.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    for length in (9, 512):
        positive, negative = tiny.conditioning("flux2", 0, length), tiny.conditioning("flux2", 1, 5)
        sample(guided(pack, model, VSF(), negative), "flux2", positive, steps=1)
    handle.remove()
    short, whole = (ids[0, :, 3].tolist() for ids in seen)
    assert short[:5] == [507, 508, 509, 510, 511] and short[5:517] == list(range(512)) and not any(short[517:])
    assert whole[:5] == [0, 1, 2, 3, 4] and whole[5:517] == list(range(512))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_block_guided_is_the_plain_model(pack: Any, tiny_model: Any, name: str) -> None:
    """That the negative is there moves neither the prompt nor the image."""
    import comfy_tiny as tiny

    model = tiny_model(name)
    for length in (None, 11):
        positive, negative = tiny.conditioning(name, 0, length), tiny.conditioning(name, 1, 5)
        plain = sample(model, name, positive)
        same(sample(guided(pack, model, VSF(scale=2.0, blocks=()), negative), name, positive), plain, bound(model))


@pytest.mark.parametrize("name", ["sd15", "flux", "wan", "qwen"])
def test_blocks(pack: Any, tiny_model: Any, name: str) -> None:
    import comfy_tiny as tiny

    model = tiny_model(name)
    positive, negative = tiny.conditioning(name, 0), tiny.conditioning(name, 1, 5)
    plain = sample(model, name, positive)
    some = sample(guided(pack, model, VSF(scale=2.0, blocks=(0,)), negative), name, positive)
    same(sample(guided(pack, model, VSF(scale=2.0, blocks=()), negative), name, positive), plain, bound(model))
    every = sample(guided(pack, model, VSF(scale=2.0), negative), name, positive)
    differs(some, plain, bound(model))
    differs(some, every, bound(model))
    with pytest.raises(ValueError, match="has blocks 0 to"):
        guided(pack, model, VSF(blocks=(99,)), negative)


@pytest.mark.parametrize("name", FAMILIES)
def test_with_cfg_only_the_positive_pass_is_guided(pack: Any, tiny_model: Any, name: str) -> None:
    """At CFG 3, guided prediction c' and plain u combine to u + 3 (c' - u), whether batched together or not."""
    import comfy_tiny as tiny

    if name in PICTURES:
        pytest.skip("the sampler's own negative has no picture in this harness")
    model = tiny_model(name)
    positive, other, negative = (tiny.conditioning(name, seed) for seed in (0, 2, 1))
    ours = guided(pack, model, VSF(scale=2.0), negative)
    one = {"steps": 1}
    c = sample(ours, name, positive, **one)
    u = sample(model, name, other, **one)
    both = sample(ours, name, positive, 3.0, negative=other, **one)
    same(both, u + 3 * (c - u), 5 * bound(model, 1))  # 3 times the one and 2 times the other


@pytest.mark.parametrize("name", ["sd15", "flux", "wan"])
def test_a_long_negative_under_cfg(pack: Any, tiny_model: Any, name: str) -> None:
    import comfy_tiny as tiny

    model = tiny_model(name)
    size = (*tiny.TINY[name].latent[:-2], 24, 24)
    positive, other, negative = (tiny.conditioning(name, seed, 90) for seed in (0, 2, 1))
    ours = guided(pack, model, VSF(scale=2.0), negative)
    one: dict[str, Any] = {"steps": 1, "size": size}
    c, u = sample(ours, name, positive, **one), sample(model, name, other, **one)
    same(sample(ours, name, positive, 3.0, negative=other, **one), u + 3 * (c - u), 5 * bound(model, 1))


def test_prompts_of_different_length_under_cfg(pack: Any, tiny_model: Any) -> None:
    """ComfyUI repeats a prompt to batch it with a longer one; its share of attention must not grow by that."""
    import comfy_tiny as tiny

    model = tiny_model("sd15")
    positive, longer, negative = tiny.conditioning("sd15", 0, 77), tiny.conditioning("sd15", 2, 154), None
    negative = tiny.conditioning("sd15", 1, 5)
    ours = guided(pack, model, VSF(scale=2.0), negative)
    c = sample(ours, "sd15", positive, steps=1)
    u = sample(model, "sd15", longer, steps=1)
    same(sample(ours, "sd15", positive, 3.0, negative=longer, steps=1), u + 3 * (c - u), 5 * bound(model, 1))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_equals_single_samples(pack: Any, tiny_model: Any, name: str) -> None:
    import comfy_tiny as tiny

    positive, negative = tiny.conditioning(name, 0), tiny.conditioning(name, 1, 5)
    ours = guided(pack, tiny_model(name), VSF(scale=2.0), negative)
    batch = sample(ours, name, positive, batch=2)
    # the first sample of the noise is the same
    same(batch[:1], sample(ours, name, positive), bound(tiny_model(name)))


@pytest.mark.parametrize("name", ["wan", "ltx", "sd15", *(["ltx2", "anima"] if NUMBERS else [])])
def test_as_many_image_tokens_as_text_tokens(pack: Any, tiny_model: Any, name: str) -> None:
    """Self- and cross-attention then have the same shapes and must still be told apart, and that over the sound as well."""
    import comfy_tiny as tiny

    model = tiny_model(name)
    size = {
        "wan": (16, 1, 6, 6),
        "ltx": (128, 1, 3, 4),
        "sd15": (4, 4, 4),
        "ltx2": (128, 1, 1, 5),
        "anima": (16, 1, 6, 6),
    }[name]
    image = {"wan": 9, "ltx": 12, "sd15": 16, "ltx2": 5, "anima": 9}[name]
    positive, negative = tiny.conditioning(name, 0, image - 4), tiny.conditioning(name, 1, 4)
    expected = sample(model, name, negative, size=size)
    same(sample(guided(pack, model, Swap(), negative), name, positive, size=size), expected, bound(model))


@pytest.mark.parametrize("layout", ["paper", "upstream"])
@pytest.mark.parametrize("method", ["vsf", "nag", "nasa"])
def test_the_demo_model_is_guided_as_in_diffusers(pack: Any, comfy: Any, method: str, layout: Any) -> None:
    """The same trained weights in both, on the same tensors."""
    import comfy_demo

    from vsf import negative_guidance

    if method != "vsf" and layout == "upstream":
        pytest.skip("only VSF has layouts")
    guidance = {"vsf": VSF(3.0, 0.1, layout), "nag": NAG(scale=3.0, alpha=0.5), "nasa": NASA(0.5)}[method]
    pipe = comfy_demo.pipeline()
    pipe.transformer.float()
    [[text, extra]] = comfy_demo.DemoText().run(pipe, "a red bike", True)[0]
    negative = comfy_demo.DemoText().run(pipe, "wheels", method != "vsf")[0]
    generator = torch.Generator().manual_seed(0)
    x, sigma = torch.randn(1, 8, 16, 16, generator=generator), torch.tensor([0.7])

    def diffusers() -> Tensor:
        return pipe.transformer(
            hidden_states=x, encoder_hidden_states=text, pooled_projections=extra["pooled_output"],
            timestep=sigma * 1000, return_dict=False,
        )[0]  # fmt: skip

    with torch.no_grad():
        plain = diffusers()
        with negative_guidance(pipe.transformer, guidance, negative_prompt_embeds=negative[0][0][0]):
            expected = diffusers()
        ours = guided(pack, comfy_demo.demo_model(), guidance, negative)
        options = {"wrappers": ours.wrappers, "sigmas": sigma, "cond_or_uncond": [0]}
        clean = ours.model.apply_model(
            x, sigma, c_crossattn=text, y=extra["pooled_output"], transformer_options=options
        )  # fmt: skip
    # x - (x - sigma v) loses digits of the smaller x against sigma v: by x / (sigma v), below 1 / 0.7
    close((x - clean) / sigma, expected, plain, closeness.rounding(pipe.transformer) / 0.7)


# -- with other nodes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_chains_with_an_attention_that_is_there_already(pack: Any, tiny_model: Any, name: str) -> None:
    """Another node's override is called for the unguided part, and its effect is kept."""
    import comfy_tiny as tiny

    called: list[int] = []

    def theirs(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        called.append(1)
        return func(*args, **kwargs) * 0.5

    model = tiny_model(name).clone()
    positive, negative = tiny.conditioning(name, 0), tiny.conditioning(name, 1, 5)
    bare = sample(guided(pack, tiny_model(name), VSF(scale=2.0), negative), name, positive)
    model.model_options["transformer_options"]["optimized_attention_override"] = theirs
    plain = sample(model, name, positive)
    per_run = len(called)
    called.clear()
    ours = guided(pack, model, VSF(scale=2.0), negative)
    out = sample(ours, name, positive)
    assert len(called) >= per_run
    differs(out, plain, bound(model))
    differs(out, bare, bound(model))
    assert model.model_options["transformer_options"]["optimized_attention_override"] is theirs


def test_an_adapter_that_replaces_attention_keeps_its_part(pack: Any, tiny_model: Any) -> None:
    """IP-adapters replace `attn2` and add attention over a picture: guided text + the same picture."""
    import comfy_tiny as tiny

    positive, negative = tiny.conditioning("sd15", 0), tiny.conditioning("sd15", 1, 5)

    def adapter(strength: float) -> Any:
        def replace(q: Tensor, k: Tensor, v: Tensor, extra: Any) -> Tensor:
            assert k.shape[1] == positive[0][0].shape[1]  # it sees the prompt alone
            heads = extra["n_heads"]
            q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v) + strength * v.mean(2, keepdim=True)
            return out.transpose(1, 2).flatten(2)

        return replace

    def adapted(strength: float) -> Any:
        model = tiny_model("sd15").clone()
        for kind, number in [*(("input", i) for i in range(9)), ("middle", 0), *(("output", i) for i in range(9))]:
            model.set_model_attn2_replace(adapter(strength), kind, number)
        return model

    method = VSF(scale=2.0)
    bare = sample(guided(pack, tiny_model("sd15"), method, negative), "sd15", positive)
    rounding = bound(tiny_model("sd15"))
    same(sample(guided(pack, adapted(0.0), method, negative), "sd15", positive), bare, rounding)
    with_picture = sample(guided(pack, adapted(1.0), method, negative), "sd15", positive)
    differs(with_picture, bare, rounding)
    differs(with_picture, sample(adapted(1.0), "sd15", positive), rounding)


def test_a_node_that_replaces_attention_beyond_reach_is_an_error(pack: Any, tiny_model: Any) -> None:
    import comfy_tiny as tiny

    positive, negative = tiny.conditioning("wan", 0), tiny.conditioning("wan", 1, 5)
    ours = guided(pack, tiny_model("wan"), VSF(), negative)
    block = ours.model.diffusion_model.blocks[0].cross_attn
    ours.add_object_patch("diffusion_model.blocks.0.cross_attn.forward", lambda x, context, **kwargs: block.o(x))
    with pytest.raises(RuntimeError, match="1 of 2 attention blocks"):
        sample(ours, "wan", positive)


def test_fp8_weights(pack: Any, comfy: Any) -> None:
    """Quantised layers are called, not replaced."""
    import comfy_tiny as tiny

    positive, negative = tiny.conditioning("flux", 0), tiny.conditioning("flux", 1, 5)
    model = tiny.model_of("flux")
    model.model.manual_cast_dtype = torch.float32
    for module in model.model.diffusion_model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = module.weight.data.to(torch.float8_e4m3fn)
            setattr(module, "comfy_cast_weights", True)  # noqa: B010  # an attribute of ComfyUI's own layers
    plain = sample(model, "flux", positive)
    out = sample(guided(pack, model, VSF(scale=2.0), negative), "flux", positive)
    assert bool(out.isfinite().all())
    differs(out, plain, bound(model))
    stock = [[negative[0][0], positive[0][1]]]
    same(sample(guided(pack, model, Swap(), negative), "flux", positive), sample(model, "flux", stock), bound(model))


@pytest.mark.parametrize("kernel", ["pytorch", "sub_quad", "split"])
@pytest.mark.parametrize("name", ["flux", "sd15"])
def test_every_attention_function(
    pack: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch, kernel: str, name: str
) -> None:
    import comfy.ldm.flux.math
    import comfy.ldm.modules.attention as attention
    import comfy_tiny as tiny

    positive, negative = tiny.conditioning(name, 0), tiny.conditioning(name, 1, 5)
    ours = guided(pack, tiny_model(name), VSF(scale=2.0), negative)
    expected = sample(ours, name, positive)
    chosen = attention.get_attention_function(kernel)
    for module in (attention, comfy.ldm.flux.math):
        monkeypatch.setattr(module, "optimized_attention", chosen)
    same(sample(ours, name, positive), expected, bound(tiny_model(name)))


# -- interrupt, errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_an_interrupt_leaves_nothing_behind(pack: Any, tiny_model: Any, name: str) -> None:
    import comfy_tiny as tiny

    model = tiny_model(name)
    positive, negative = tiny.conditioning(name, 0), tiny.conditioning(name, 1, 5)
    before = sample(model, name, positive)
    ours = guided(pack, model, VSF(scale=2.0), negative)
    expected = sample(ours, name, positive)

    class Stop(Exception):
        pass

    def stop(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        raise Stop

    stopping = model.clone()
    stopping.model_options["transformer_options"]["optimized_attention_override"] = stop
    with pytest.raises(Stop):
        sample(guided(pack, stopping, VSF(scale=2.0), negative), name, positive)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.diffusion_model.modules())
    assert torch.equal(sample(model, name, positive), before)
    assert torch.equal(sample(ours, name, positive), expected)


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("pixart.pixartms.PixArtMS", ""),
        *[
            ("hidream_o1.model.HiDreamO1Transformer", "its text comes as token numbers"),
        ][:NUMBERS],
    ],
)  # fmt: skip
def test_an_unsupported_model_says_so(pack: Any, comfy: Any, where: str, why: str) -> None:
    module, _, name = where.rpartition(".")
    model = getattr(importlib.import_module(f"comfy.ldm.{module}"), name)
    with pytest.raises(
        ValueError, match=f"{name} cannot be guided{why and ': '}{why}.*; supported: SD 1.x.*Flux.*Wan"
    ):
        pack.families.family_of(model.__new__(model))


@pytest.mark.skipif(NUMBERS, reason="this ComfyUI runs it as it does other models")
def test_a_model_that_this_version_runs_beside_its_seams_is_an_error(pack: Any, tiny_model: Any) -> None:
    import comfy_tiny as tiny

    ours = guided(pack, tiny_model("wan_s2v"), VSF(), tiny.conditioning("wan_s2v", 1, 5))
    with pytest.raises(RuntimeError, match="0 of 2 attention blocks .* or update ComfyUI"):
        sample(ours, "wan_s2v", tiny.conditioning("wan_s2v", 0))


def test_hidream_s_lists_are_weighed_in_both_texts(pack: Any, tiny_model: Any) -> None:
    """An item of weight 2 is as one whose values are doubled: in all three texts, each with its own number of tokens."""
    import comfy_tiny as tiny

    model, positive = tiny_model("hidream"), tiny.conditioning("hidream", 0)
    one, two = tiny.conditioning("hidream", 1, 5), tiny.conditioning("hidream", 2, 4)
    original, seen = pack.guide.joint_attention, []

    def watched(frame: Any, q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append((frame.n_pos, frame.n_neg, frame.weight))
        return original(frame, q, *args, **kwargs)

    pack.guide.joint_attention = watched
    try:
        ours = guided(pack, model, VSF(scale=2.0), [*_with(one, vsf_weight=torch.full((5,), 2.0)), *two])
        heavy = sample(ours, "hidream", positive)
    finally:
        pack.guide.joint_attention = original
    [(p, n, weight)] = {(p, n, tuple(w.flatten().tolist())) for p, n, w in seen}
    assert (p, n) == (7 + 2 * 6, 9 + 2 * 7) and weight == tuple([2.0] * 5 + [1.0] * 4 + 2 * ([2.0] * 4 + [1.0] * 3))
    plain = guided(pack, model, VSF(scale=2.0), [*one, *two])
    differs(heavy, sample(plain, "hidream", positive), bound(model))
    with pytest.raises(ValueError, match="HiDream reads Llama's tokens as well"):
        sample(guided(pack, model, VSF(), _with(one, conditioning_llama3=None)), "hidream", positive)


@pytest.mark.skipif(not NUMBERS, reason="this ComfyUI has no ERNIE-Image")
def test_ernie_s_own_attention_is_back_after_each_pass(pack: Any, tiny_model: Any) -> None:
    import comfy_tiny as tiny

    model = tiny_model("ernie")
    attention = model.model.diffusion_model.layers[1].self_attention
    positive, negative = tiny.conditioning("ernie", 0), tiny.conditioning("ernie", 1, 5)
    inside: list[bool] = []
    handle = attention.register_forward_hook(lambda *_: inside.append("forward" in vars(attention)))
    sample(guided(pack, model, VSF(scale=2.0), negative), "ernie", positive)
    handle.remove()
    assert inside and all(inside) and attention.forward.__func__ is type(attention).forward
    ours = guided(pack, model, VSF(), negative)
    ours.add_object_patch("diffusion_model.layers.1.self_attention.forward", lambda x, **kwargs: x)
    with pytest.raises(RuntimeError, match="1 of 2 attention blocks"):
        sample(ours, "ernie", positive)
    assert not hasattr(attention.forward, "__func__")  # the other node's is still there


@pytest.mark.skipif(not NUMBERS, reason="this ComfyUI has no ERNIE-Image")
def test_ernie_s_attention_that_a_node_wraps_for_all_is_an_error(
    pack: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy_tiny as tiny

    model = tiny.model_of("ernie")
    kind = type(model.model.diffusion_model.layers[0].self_attention)
    theirs = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *args, **kwargs: theirs(self, *args, **kwargs))
    with pytest.raises(RuntimeError, match="0 of 2 attention blocks"):
        sample(guided(pack, model, VSF(), tiny.conditioning("ernie", 1, 5)), "ernie", tiny.conditioning("ernie", 0))


@pytest.mark.parametrize("name", JOINT)
def test_the_upstream_layout_is_a_longer_prompt(pack: Any, tiny_model: Any, name: str) -> None:
    """Where no block is guided: what the stock model draws of the prompt with the negative behind it."""
    import comfy_tiny as tiny

    if name == "flux2":
        pytest.skip("its prompts have 512 tokens")
    model, positive, negative = tiny_model(name), tiny.conditioning(name, 0), tiny.conditioning(name, 1, 5)
    longer = _with(positive)
    if "attention_mask" in positive[0][1]:
        longer = _with(positive, attention_mask=torch.ones(1, 12, dtype=torch.long))
    longer[0][0] = torch.cat([positive[0][0], negative[0][0]], 1)
    if name == "hidream":
        both = [part[0][1]["conditioning_llama3"] for part in (positive, negative)]
        longer = _with(longer, conditioning_llama3=torch.cat(both, 2))
    ours = guided(pack, model, VSF(layout="upstream", blocks=()), negative)
    expected, plain = sample(model, name, longer), sample(model, name, positive)
    close(sample(ours, name, positive), expected, plain, bound(model))


# -- what else stands beside the text ---------------------------------------------------------------------------------


def _with(conditioning: Any, **extra: Any) -> list[Any]:
    return [[tokens, {**own, **extra}] for tokens, own in conditioning]


def _as_the_prompt(negative: Any, positive: Any) -> list[Any]:
    """The negative's tokens with all else that the positive conditioning holds."""
    return [[negative[0][0], {**positive[0][1], "attention_mask": negative[0][1].get("attention_mask")}]]


REFERENCE = [torch.linspace(-1, 1, 16 * 16).cos().view(1, 16, 4, 4)]
BESIDE = {
    "omnigen2": {"reference_latents": REFERENCE},
    "hunyuan": {"guiding_frame_index": 0},
    "krea2": {"reference_latents": REFERENCE, "reference_latents_method": "index_timestep_zero"},
    "hunyuan15": {"clip_vision_output": Vision()},
}


@pytest.mark.parametrize("name", [name for name in BESIDE if name in FAMILIES])
def test_pictures_beside_the_text_belong_to_the_image(pack: Any, tiny_model: Any, name: str) -> None:
    """The negative branch is still the stock model with that prompt, and nothing moves where no block is guided."""
    import comfy_tiny as tiny

    model = tiny_model(name)
    length = 7 if name == "hunyuan" else 5  # in 0.33.0 how its start frame is modulated depends on the prompt's length
    positive, negative = _with(tiny.conditioning(name, 0), **BESIDE[name]), tiny.conditioning(name, 1, length)
    plain = sample(model, name, positive)
    differs(plain, sample(model, name, tiny.conditioning(name, 0)), bound(model))
    same(sample(guided(pack, model, VSF(blocks=()), negative), name, positive), plain, bound(model))
    expected = sample(model, name, _as_the_prompt(negative, positive))
    same(sample(guided(pack, model, Swap(), negative), name, positive), expected, bound(model))
    if name == "hunyuan15":
        ours = guided(pack, model, VSF(scale=2.0), negative, record=True)
        sample(ours, name, positive)
        assert pack.maps.suppression(ours.get_attachment("vsf").record, -1, -1).shape == (1, 3, 4, 3)


#: With a picture beside the image's own tokens: what says so, and which of the tokens are the picture's own.
OWN: dict[str, tuple[dict[str, Any], Any]] = {
    "flux": ({"reference_latents": REFERENCE}, slice(0, 12)),
    "flux2": ({"reference_latents": [REFERENCE[0].repeat(1, 8, 1, 1)]}, slice(0, 12)),
    "krea2": (BESIDE["krea2"], slice(0, 12)),
    "omnigen2": (BESIDE["omnigen2"], slice(4, 16)),  # in front
    "hunyuan": ({"ref_latent": REFERENCE[0][:, :, None]}, slice(4, 40)),
    "hidream": ({"concat_latent_image": torch.linspace(-1, 1, 16 * 48).cos().view(1, 16, 8, 6)}, [
        column + 6 * row for row in range(4) for column in range(3)
    ]),
    "wan": ({"reference_latents": [torch.linspace(-1, 1, 16 * 48).cos().view(1, 16, 1, 8, 6)]}, slice(12, 48)),
    "wan_s2v": ({}, slice(0, 36)),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in OWN if name in FAMILIES])
def test_the_map_is_of_the_picture_s_own_tokens(
    pack: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Where ComfyUI puts a reference picture in front of it, behind it, or (HiDream E1) in every row beside it."""
    import comfy_tiny as tiny

    extra, own = OWN[name]
    if name == "wan":  # Fun Control
        monkeypatch.setitem(tiny.TINY, name, replace(tiny.TINY[name], unet={**tiny.WAN, "in_dim_ref_conv": 16}))
    model = tiny.model_of("wan") if name == "wan" else tiny_model(name)
    every: list[Tensor] = []
    original = pack.guide.Pass._recorder

    def watched(self: Any, site: int) -> Any:
        record = original(self, site)
        return lambda w: (every.append(w), record(w))

    monkeypatch.setattr(pack.guide.Pass, "_recorder", watched)
    record = _recorded(pack, model, name, _with(tiny.conditioning(name, 0), **extra), tiny.TINY[name].latent)
    assert every and len(every) == len(record.share)
    for (_, w), whole in zip(sorted(record.share.items()), every, strict=True):
        assert whole.shape[1] > w.shape[1] and torch.equal(w, whole[:, own])
    size = tiny.TINY[name].latent[1:]
    frames, height, width = size if len(size) == 3 else (1, *size)
    assert pack.maps.suppression(record, -1, -1).shape == (
        1, frames, height // tiny.TINY[name].patch, width // tiny.TINY[name].patch
    )  # fmt: skip


@pytest.mark.parametrize("name", ["flux", "hunyuan", "wan", *(["ltx2"] if NUMBERS else [])])
def test_a_block_that_another_node_skips_later(pack: Any, tiny_model: Any, name: str) -> None:
    """As skip-layer guidance does, which draws once more without some blocks: the negative is no prompt there."""
    import comfy_tiny as tiny

    positive, negative = tiny.conditioning(name, 0), tiny.conditioning(name, 1, 5)

    def skipping(model: Any) -> Tensor:
        calls: list[int] = []

        def skip(args: Any, extra: Any) -> Any:
            calls.append(1)
            return args if len(calls) > 1 else extra["original_block"](args)

        model = model.clone()
        model.set_model_patch_replace(skip, "dit", "double_block", 0)
        out = sample(model, name, positive)
        assert len(calls) == 2
        return out

    model = tiny_model(name)
    plain = skipping(model)
    same(skipping(guided(pack, model, VSF(scale=2.0, blocks=()), negative)), plain, bound(model))
    differs(plain, sample(model, name, positive), bound(model))


@pytest.mark.parametrize("name", ["hunyuanimage", *(["hunyuan15"] if NUMBERS else [])])
def test_letters_of_quoted_words_belong_to_the_prompt(pack: Any, tiny_model: Any, name: str) -> None:
    import comfy_tiny as tiny

    model = tiny_model(name)
    letters = {"conditioning_byt5small": torch.linspace(-1, 1, 3 * 1472).cos().view(1, 3, 1472)}
    positive, negative = _with(tiny.conditioning(name, 0), **letters), tiny.conditioning(name, 1, 5)
    if name == "hunyuan15":
        positive = _with(positive, clip_vision_output=Vision())
    plain = sample(model, name, positive)
    same(sample(guided(pack, model, VSF(blocks=()), negative), name, positive), plain, bound(model))
    differs(sample(guided(pack, model, VSF(scale=2.0), negative), name, positive), plain, bound(model))
    # The branch of the negative has no letters, as a prompt without quotation marks has none.
    expected = sample(model, name, _with(_as_the_prompt(negative, positive), conditioning_byt5small=None))
    same(sample(guided(pack, model, Swap(), negative), name, positive), expected, bound(model))
    with pytest.raises(ValueError, match="write the words without the marks"):
        guided(pack, model, VSF(), _with(negative, **letters))


def test_a_masked_prompt_of_hunyuan_video(pack: Any, tiny_model: Any) -> None:
    import comfy_tiny as tiny

    model = tiny_model("hunyuan")
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
    positive, negative = (
        _with(tiny.conditioning("hunyuan", 0), attention_mask=mask),
        tiny.conditioning("hunyuan", 1, 5),
    )
    plain = sample(model, "hunyuan", positive)
    for layout in ("paper", "upstream"):
        ours = guided(pack, model, VSF(scale=2.0, layout=layout, blocks=()), negative)
        if layout == "paper":
            same(sample(ours, "hunyuan", positive), plain, bound(model))
        else:
            sample(ours, "hunyuan", positive)
    # What is masked out does not matter, as in the stock model.
    other = _with(positive, attention_mask=mask)
    other[0][0] = torch.cat([positive[0][0][:, :5], positive[0][0][:, 5:] + 1], 1)
    a, b = (sample(guided(pack, model, Swap(), negative), "hunyuan", c) for c in (positive, other))
    same(a, b, bound(model))


# -- texts that the model makes of what an encoder says ------------------------------------------------------------------


def _raw(name: str, seed: int, tokens: int) -> list[Any]:
    """What the text encoder of LTX-2 or Anima hands on, which the model itself has yet to make a text of."""
    width = {"ltx2": 24, "ltx23": 80, "anima": 16}[name]
    generator = torch.Generator().manual_seed(3000 + seed)
    notes: dict[str, Any] = {"unprocessed_ltxav_embeds": True}
    embeds = tokens
    if name == "anima":  # tokens of another tokenizer, whose number is not that of the embeddings
        notes = {
            "t5xxl_ids": torch.randint(0, 32128, (tokens,), generator=generator, dtype=torch.int),
            "t5xxl_weights": torch.ones(tokens),
        }
        embeds = tokens - 2
    return [[torch.randn(1, embeds, width, generator=generator), notes]]


def _made(model: Any, name: str, raw: Any) -> Tensor:
    inner = model.model.diffusion_model
    [[tokens, notes]] = raw
    if name == "anima":
        return inner.preprocess_text_embeds(tokens, notes["t5xxl_ids"][None])
    return inner.preprocess_text_embeds(tokens, unprocessed=True)


@pytest.mark.skipif(not NUMBERS, reason="this ComfyUI has none of these")
@pytest.mark.parametrize("name", ["ltx2", "ltx23", "anima"])
def test_the_negative_is_made_a_text_as_the_prompt_is(pack: Any, tiny_model: Any, name: str) -> None:
    model = tiny_model(name)
    with torch.inference_mode():
        positive, raw = _raw(name, 0, 9), _raw(name, 1, 5)
        whole = _made(model, name, raw)
        assert whole.shape[1] == (512 if name == "anima" else 1024)  # with zeros or registers behind the text
        expected = sample(model, name, raw)
        same(sample(guided(pack, model, Swap(), raw), name, positive), expected, bound(model))
        # VSF wants the text alone.
        method, real = VSF(scale=2.0), [[whole[:, :5], {}]]
        ours = sample(guided(pack, model, method, raw), name, positive)
        assert torch.equal(ours, sample(guided(pack, model, method, real), name, positive))
        if name != "anima":  # zeros behind a negative are left out in any case
            differs(ours, sample(guided(pack, model, method, [[whole, {}]]), name, positive), bound(model))
        # Items of a list are made texts each on its own, and keep their weights.
        heavy = _with(raw, vsf_weight=torch.full((raw[0][0].shape[1],), 2.0))
        real = [*_with(real, vsf_weight=torch.full((5,), 2.0)), [_made(model, name, _raw(name, 2, 4))[:, :4], {}]]
        ours = sample(guided(pack, model, method, [*heavy, *_raw(name, 2, 4)]), name, positive)
        assert torch.equal(ours, sample(guided(pack, model, method, real), name, positive))
        notes = raw[0][1]
        with pytest.raises(
            ValueError, match="no text of the negative conditioning, which is 11 wide .* the same CLIP"
        ):
            sample(guided(pack, model, method, [[torch.ones(1, 5, 11), notes]]), name, positive)
    if name == "anima":
        with pytest.raises(ValueError, match="while it is trained"):
            sample(guided(pack, model, method, raw), name, positive)


@pytest.mark.skipif(not NUMBERS, reason="this ComfyUI has no LTX-2")
@pytest.mark.parametrize("name", ["ltx2", "ltx23"])
def test_a_negative_for_the_sound(pack: Any, tiny_model: Any, name: str) -> None:
    import comfy_tiny as tiny

    model = tiny_model(name)
    positive, seen, heard = (tiny.conditioning(name, seed, n) for seed, n in ((0, 7), (1, 5), (2, 9)))

    def ours(method: Guidance, negative: Any, sound: Any = None) -> Tensor:
        return sample(pack.guide.guide_model(model, method, negative, sound=sound), name, positive)

    # The branches: each text with its own negative is the stock model with a text made of both.
    short = tiny.conditioning(name, 2, 5)
    video = 24 if name == "ltx2" else 48
    both = [[torch.cat([seen[0][0][..., :video], short[0][0][..., video:]], 2), {}]]
    same(ours(Swap(), seen, short), sample(model, name, both), bound(model))
    # The same for both is as to give none; and of other lengths, each acts in its own attentions alone.
    method, picture, sound = VSF(scale=2.0), (0, 1), (2, 3)
    same(ours(method, seen, seen), ours(method, seen), bound(model))
    only = [VSF(scale=2.0, blocks=blocks) for blocks in (picture, sound)]
    same(ours(only[0], seen, heard), ours(only[0], seen), bound(model))
    same(ours(only[1], seen, heard), ours(only[1], heard), bound(model))
    differs(ours(method, seen, heard), ours(method, seen), bound(model))
    with pytest.raises(ValueError, match="Wan .* reads no text for a sound; models that do: LTX-2"):
        pack.guide.guide_model(
            tiny_model("wan"), method, tiny.conditioning("wan", 1), sound=tiny.conditioning("wan", 1)
        )


@pytest.mark.skipif(not NUMBERS, reason="this ComfyUI has no LTX-2")
def test_a_video_without_sound(pack: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the attentions of the sound do not run."""
    import comfy_tiny as tiny

    monkeypatch.setitem(tiny.TINY, "ltx2", replace(tiny.TINY["ltx2"], audio=()))
    model, positive, negative = tiny_model("ltx2"), tiny.conditioning("ltx2", 0), tiny.conditioning("ltx2", 1, 5)
    expected = sample(model, "ltx2", negative)
    same(sample(guided(pack, model, Swap(), negative), "ltx2", positive), expected, bound(model))


@pytest.mark.skipif(not NUMBERS, reason="this ComfyUI has no LTX-2")
def test_a_sound_attention_that_is_replaced_is_an_error(pack: Any, tiny_model: Any) -> None:
    import comfy_tiny as tiny

    ours = guided(pack, tiny_model("ltx2"), VSF(), tiny.conditioning("ltx2", 1, 5))
    ours.add_object_patch("diffusion_model.transformer_blocks.1.audio_attn2.forward", lambda x, **kwargs: x)
    with pytest.raises(RuntimeError, match="3 of 4 attention blocks"):
        sample(ours, "ltx2", tiny.conditioning("ltx2", 0))
    ours = guided(pack, tiny_model("ltx2"), VSF(), tiny.conditioning("ltx2", 1, 5))
    ours.add_object_patch("diffusion_model.transformer_blocks.1.forward", lambda x, **kwargs: x)
    with pytest.raises(RuntimeError, match="2 of 4 attention blocks"):
        sample(ours, "ltx2", tiny.conditioning("ltx2", 0))


def test_devices_that_work_at_once_do_not_share_a_negative(pack: Any, tiny_model: Any) -> None:
    """As where ComfyUI draws regions on several: here two kinds of number stand for two devices."""
    import comfy_tiny as tiny

    guide = guided(pack, tiny_model("wan"), VSF(), tiny.conditioning("wan", 1, 5)).get_attachment("vsf")
    text = tiny.conditioning("wan", 0)[0][0]
    made = [guide._negatives(None, text.to(dtype), text) for dtype in (torch.float32, torch.float64)]
    assert [negative.tokens.dtype for [negative] in made] == [torch.float32, torch.float64]


def test_wan_image_to_video_without_a_picture(pack: Any, tiny_model: Any) -> None:
    import comfy.sample
    import comfy_tiny as tiny

    positive = tiny.conditioning("wan_i2v", 0)
    ours = guided(pack, tiny_model("wan_i2v"), VSF(), tiny.conditioning("wan_i2v", 1))
    noise = tiny.noise_of("wan_i2v")
    with pytest.raises(ValueError, match="connect a clip_vision_output"):
        comfy.sample.sample(ours, noise, 1, 1.0, "euler", "simple", positive, positive, noise * 0, disable_pbar=True)


def test_the_record_is_the_share(pack: Any, tiny_model: Any) -> None:
    import comfy_tiny as tiny

    positive, negative = tiny.conditioning("flux", 0), tiny.conditioning("flux", 1, 5)
    method = VSF(scale=2.0, offset=0.3)
    ours = guided(pack, tiny_model("flux"), method, negative, record=True)
    sample(ours, "flux", positive, batch=2)
    record = ours.get_attachment("vsf").record
    assert sorted(record.share) == [(step, block) for step in range(2) for block in range(4)]
    assert all(w.shape == (2, 12) and bool(((w > 0) & (w < 1)).all()) for w in record.share.values())
    share = pack.maps.suppression(record, -1, -1)
    assert share.shape == (2, 1, 4, 3)
    same(share.flatten(1), torch.stack(list(record.share.values())).mean(0), closeness.of_sums(len(record.share)))
    picture = pack.maps.draw(share, 0.0)
    assert picture.shape[0] == 2 and picture.shape[-1] == 3 and picture.min() >= 0 and picture.max() <= 1
    over = pack.maps.draw(share, 0.0, torch.rand(2, 64, 48, 3))
    assert over.shape == (2, 64, 48, 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_of_every_model(pack: Any, tiny_model: Any, name: str) -> None:
    import comfy_tiny as tiny

    positive, negative = tiny.conditioning(name, 0), tiny.conditioning(name, 1, 5)
    ours = guided(pack, tiny_model(name), VSF(scale=2.0), negative, record=True)
    sample(ours, name, positive)
    share = pack.maps.suppression(ours.get_attachment("vsf").record, -1, -1)
    frames = tiny.TINY[name].latent[1] if len(tiny.TINY[name].latent) == 4 else 1
    assert share.shape[:2] == (1, frames) and share.ndim == 4


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    import logging

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    yield
    logging.getLogger().setLevel(level)


@pytest.mark.parametrize(("kind", "real"), [("sdxl", 5), ("sd3", 9), ("flux", 4)])
def test_real_tokenizers_lose_their_padding(pack: Any, comfy: Any, kind: str, real: int) -> None:
    """Three words: begin, 3, end for CLIP; 3, end for T5."""
    import comfy.sdxl_clip
    import comfy.text_encoders.flux
    import comfy.text_encoders.sd3_clip

    tokenizers = {
        "sdxl": comfy.sdxl_clip.SDXLTokenizer,
        "sd3": comfy.text_encoders.sd3_clip.SD3Tokenizer,
        "flux": comfy.text_encoders.flux.FluxTokenizer,
    }
    options: dict[str, int] = {}
    tokenizer = tokenizers[kind]()
    clip = pack.prompt.unpadded(_Options(options, tokenizer))
    assert clip.options is not options
    tokens = tokenizer.tokenize_with_weights("red bicycle wheels", tokenizer_options=clip.options)
    encoded = {"sdxl": ["l"], "sd3": ["l", "t5xxl"], "flux": ["t5xxl"]}[kind]
    length = sum(len(chunk) for name in encoded for chunk in tokens[name])
    assert int(pack.prompt.real_tokens(tokens, length).sum()) == real


class _Options:
    """The part of a CLIP that holds the tokenizer and its options."""

    def __init__(self, options: dict[str, int], tokenizer: Any) -> None:
        self.options, self.tokenizer = options, tokenizer

    def clone(self) -> Any:
        return _Options(dict(self.options), self.tokenizer)

    def set_tokenizer_option(self, name: str, value: int) -> None:
        self.options[name] = value


# -- what other nodes do around it ------------------------------------------------------------------------------------


def _shifted(model: Any, shift: float) -> Any:
    """ComfyUI's own ModelSamplingSD3 node."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, shift)[0]


def test_the_schedule_may_be_set_before_or_behind(pack: Any, tiny_model: Any) -> None:
    """start_percent and end_percent go by the schedule in force, wherever in the graph it was set."""
    import comfy_tiny as tiny

    model = tiny_model("flux")
    positive, negative = tiny.conditioning("flux", 0), tiny.conditioning("flux", 1, 5)
    method = VSF(scale=2.0, start=0.2, stop=0.6)

    def latents(model: Any) -> list[Tensor]:
        kept: list[Tensor] = []
        sample(model, "flux", positive, steps=5, callback=lambda step, x0, x, total: kept.append(x0.clone()))
        return kept

    before = latents(guided(pack, _shifted(model, 6.0), method, negative))
    behind = latents(_shifted(guided(pack, model, method, negative), 6.0))
    assert all(torch.equal(a, b) for a, b in zip(before, behind, strict=True))
    plain, other = latents(_shifted(model, 6.0)), latents(guided(pack, model, method, negative))
    guided_steps = [not torch.equal(a, b) for a, b in zip(plain, before, strict=True)]
    assert not guided_steps[0] and any(guided_steps)
    assert not torch.equal(other[-1], before[-1])


@pytest.mark.parametrize("name", ["flux", "sd15", "wan"])
def test_the_sampler_s_own_negative(pack: Any, tiny_model: Any, name: str) -> None:
    """One node in a template that has a negative prompt already: the same as to connect it."""
    import comfy_tiny as tiny

    model = tiny_model(name)
    positive, negative = tiny.conditioning(name, 0), tiny.conditioning(name, 1, 5)
    method = VSF(scale=2.0)
    expected = sample(guided(pack, model, method, negative), name, positive)
    assert torch.equal(sample(guided(pack, model, method, None), name, positive, negative=negative), expected)
    assert not torch.equal(sample(model, name, positive), expected)


def test_a_sampler_without_a_negative_says_so(pack: Any, tiny_model: Any) -> None:
    import comfy.samplers
    import comfy_tiny as tiny
    from comfy_extras.nodes_custom_sampler import Guider_Basic

    guider = Guider_Basic(guided(pack, tiny_model("flux"), VSF(), None))
    guider.set_conds(tiny.conditioning("flux", 0))
    noise = tiny.noise_of("flux")
    with pytest.raises(ValueError, match=r"\(Guider_Basic\) has no negative of its own"):
        guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.0]))


def test_a_merge_with_a_guided_model_second_is_not_silent(
    pack: Any, tiny_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import comfy_tiny as tiny
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    other, model = tiny.model_of("flux", seed=1), tiny_model("flux")
    ours = guided(pack, model, VSF(scale=2.0), tiny.conditioning("flux", 1, 5))

    def warnings(one: Any, two: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level("WARNING"):
            ModelMergeSimple().merge(one, two, 0.5)
        return [r.message for r in caplog.records if r.message.startswith("VSF:")]

    for second in (ours, ours.clone(), ours.clone().clone()):  # a LoRA loader makes clones
        [sentence] = warnings(other, second)
        assert "its guidance is lost there. Put the guidance node behind the merge" in sentence
    assert not warnings(ours, other) and not warnings(other, model)
    ours.get_key_patches()
    merged = ModelMergeSimple().merge(ours, other, 0.5)[0]
    assert merged.get_attachment("vsf") is ours.get_attachment("vsf")


# -- the map where several conditionings make one picture ---------------------------------------------------------------


def _area(conditioning: Any, **limits: Any) -> list[Any]:
    return [[tokens, {**extra, **limits}] for tokens, extra in conditioning]


def _recorded(pack: Any, model: Any, name: str, positive: Any, size: tuple[int, ...]) -> Any:
    """What was recorded of one step, and the guided model's own part of it."""
    import comfy_tiny as tiny

    ours = guided(pack, model, VSF(scale=2.0), tiny.conditioning(name, 1, 5), record=True)
    sample(ours, name, positive, steps=1, size=size)
    return ours.get_attachment("vsf").record


@pytest.mark.parametrize("name", ["flux", "sd15", "wan", *(["ltx2"] if NUMBERS else [])])
def test_the_map_of_combined_conditionings_is_their_mean(pack: Any, tiny_model: Any, name: str) -> None:
    """As ComfyUI averages what is predicted for each, by strength: against two recordings of one each."""
    import comfy_tiny as tiny

    size = tiny.TINY[name].latent
    model = tiny_model(name)
    a, b = tiny.conditioning(name, 0), tiny.conditioning(name, 3)
    one, two = (_recorded(pack, model, name, c, size) for c in (a, b))
    both = _recorded(pack, model, name, [*_area(a, strength=3.0), *b], size)
    assert sorted(both.share) == sorted(one.share) and both.size == one.size
    for site in one.share:
        grid = pack.maps.at_each_point
        expected = (3 * grid(one.share[site], both.size[2:]) + grid(two.share[site], both.size[2:])) / 4
        same(both.share[site], expected.flatten(1), bound(model, 1))
    differs(pack.maps.suppression(one, -1, -1), pack.maps.suppression(two, -1, -1), bound(model, 1))


def test_the_map_of_regional_prompts(pack: Any, tiny_model: Any) -> None:
    """Each region shows the share of its own prompt: against a recording of that part of the latent alone."""
    import comfy.sample
    import comfy_tiny as tiny

    model, a, b = tiny_model("flux"), tiny.conditioning("flux", 0), tiny.conditioning("flux", 3)
    size, half = (16, 8, 12), (16, 8, 6)
    noise = tiny.noise_of("flux", size=size)
    left, right = _area(a, area=(8, 6, 0, 0)), _area(b, area=(8, 6, 0, 6))  # (height, width, top, left)

    def record_of(noise: Tensor, positive: Any) -> Any:
        ours = guided(pack, model, VSF(scale=2.0), tiny.conditioning("flux", 1, 5), record=True)
        comfy.sample.sample(
            ours, noise, 1, 1.0, "euler", "simple", positive, positive, noise * 0, disable_pbar=True, seed=0
        )  # fmt: skip
        return ours.get_attachment("vsf").record

    both = record_of(noise, [*left, *right])
    assert both.size == (1, *size)
    alone = [record_of(noise[..., :6].contiguous(), a), record_of(noise[..., 6:].contiguous(), b)]
    for site in both.share:
        parts = [pack.maps.at_each_point(record.share[site], half[1:]) for record in alone]
        same(both.share[site], torch.cat(parts, -1).flatten(1), bound(model, 1))
    # With one region alone nothing acted outside of it.
    single = pack.maps.suppression(record_of(noise, right), -1, -1)
    assert single.shape == (1, 1, 8, 12) and not single[..., :6].any() and bool((single[..., 6:] > 0).all())


def test_the_map_of_a_mask_and_of_what_it_leaves_over(pack: Any, tiny_model: Any) -> None:
    import comfy_tiny as tiny

    model, a, b = tiny_model("sd15"), tiny.conditioning("sd15", 0), tiny.conditioning("sd15", 3)
    mask = torch.zeros(1, 8, 8)
    mask[:, :, :4] = 1.0
    size = tiny.TINY["sd15"].latent
    one, two = (_recorded(pack, model, "sd15", c, size) for c in (a, b))
    both = _recorded(pack, model, "sd15", [*_area(a, mask=mask), *_area(b, default=True)], size)
    for site in one.share:
        left, right = (pack.maps.at_each_point(r.share[site], (8, 8)) for r in (one, two))
        same(both.share[site], torch.where(mask.bool(), left, right).flatten(1), bound(model, 1))


def test_an_area_that_is_no_multiple_of_the_patch(pack: Any, tiny_model: Any) -> None:
    import comfy_tiny as tiny

    a, b = tiny.conditioning("flux", 0), tiny.conditioning("flux", 3)
    positive = [*a, *_area(b, area=(5, 3, 3, 2))]
    share = pack.maps.suppression(_recorded(pack, tiny_model("flux"), "flux", positive, (16, 8, 6)), -1, -1)
    assert share.shape == (1, 1, 8, 6) and bool(((share > 0) & (share < 1)).all())


def test_nothing_is_wrapped_where_nothing_is_recorded(pack: Any, tiny_model: Any) -> None:
    import comfy_tiny as tiny

    for record, kinds in ((False, {"apply_model", "outer_sample"}), (True, {"calc_cond_batch"})):
        ours = guided(pack, tiny_model("flux"), VSF(), tiny.conditioning("flux", 1), record)
        wrapped = {kind for kind, keys in ours.wrappers.items() if keys.get("vsf")}
        assert kinds <= wrapped and ("calc_cond_batch" in wrapped) == record


def test_real_tokenizers_are_found_in_their_holder(pack: Any, comfy: Any) -> None:
    """Klein's prompts are padded to 512, Ovis' to 284; a negative for VSF is not."""
    if not NUMBERS:
        pytest.skip("this ComfyUI has no Flux2")
    import comfy.text_encoders.flux
    import comfy.text_encoders.ovis
    import comfy.text_encoders.z_image

    for kind in (comfy.text_encoders.flux.KleinTokenizer, comfy.text_encoders.ovis.OvisTokenizer):
        tokenizer = kind()
        clip = pack.prompt.unpadded(_Options({}, tokenizer))
        [[padded]], [[short]] = (
            tokenizer.tokenize_with_weights("red wheels", tokenizer_options=options).values()
            for options in ({}, clip.options)
        )
        assert len(padded) in (512, 284) and 2 < len(short) < 60


class _Encoder(_Options):
    """A CLIP with a real tokenizer; of each token it hands on its number, and not those before `left_out`."""

    left_out = 0

    def clone(self) -> Any:
        made = _Encoder(dict(self.options), self.tokenizer)
        made.left_out = self.left_out
        return made

    def tokenize(self, text: str) -> Any:
        return self.tokenizer.tokenize_with_weights(text, tokenizer_options=self.options)

    def encode_from_tokens_scheduled(self, tokens: Any) -> Any:
        [[row]] = tokens.values()
        numbers = torch.tensor([number for number, *_ in row], dtype=torch.float32).view(1, -1, 1)[:, self.left_out :]
        return [[numbers, {"attention_mask": torch.ones(numbers.shape[:2], dtype=torch.long)}]]


@pytest.mark.parametrize("kind", ["z_image", "klein", "qwen_image", "krea2", "hunyuan_video_15", "omnigen2"])
def test_the_chat_template_of_a_real_tokenizer_is_taken_once(pack: Any, comfy: Any, kind: str) -> None:
    import comfy.text_encoders.flux
    import comfy.text_encoders.qwen_image

    if kind not in ("qwen_image", "omnigen2") and not Z_IMAGE:
        pytest.skip("this ComfyUI has none of these models")
    if kind == "krea2":
        import comfy.text_encoders.krea2

        tokenizer = comfy.text_encoders.krea2.Krea2Tokenizer()
    elif kind == "hunyuan_video_15":
        import comfy.text_encoders.hunyuan_video

        tokenizer = comfy.text_encoders.hunyuan_video.HunyuanVideo15Tokenizer()
    elif kind == "omnigen2":
        import comfy.text_encoders.omnigen2

        tokenizer = comfy.text_encoders.omnigen2.Omnigen2Tokenizer()
    elif kind == "z_image":
        import comfy.text_encoders.z_image

        tokenizer = comfy.text_encoders.z_image.ZImageTokenizer()
    elif kind == "klein":
        tokenizer = comfy.text_encoders.flux.KleinTokenizer()
    else:
        tokenizer = comfy.text_encoders.qwen_image.QwenImageTokenizer()
    clip = _Encoder({}, tokenizer)
    clip.left_out = 34 if kind in ("qwen_image", "krea2") else 0  # as its encoder leaves out the system's part
    real = next(part for name, part in vars(tokenizer).items() if hasattr(part, "tokenizer"))

    def words(text: str) -> list[str]:
        return [
            real.tokenizer.decode([int(number) for number in tokens[0, :, 0]])
            for tokens, _ in pack.prompt.encode_negative(clip, text)
        ]

    [whole] = words("red wheels")
    before, after = whole.split("red wheels")
    assert after
    items = words("red wheels:2, an old chain, rope")
    assert items == ["red wheels", "an old chain", "rope", *filter(None, (before, after))]
