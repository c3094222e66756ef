"""The nodes on small stand-ins of ComfyUI's seams: what must hold can be checked without it."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import comfy_locales
import comfy_workflows
import pytest
import torch
from comfy_server import COMFYUI, PACK
from PIL import Image
from torch import Tensor, nn

import vsf
from closeness import close, rounding, same
from vsf.core import reference
from vsf.guidance import NAG, NASA, VSF, knobs

HEADS, SIZE = 2, 8
WIDTH = HEADS * SIZE


def test_the_real_comfyui() -> None:
    """Says in every run whether the tests on the real one ran as well."""
    if not COMFYUI:
        pytest.skip("only the seams' contract is tested; for the real one: make test-comfyui COMFYUI=/path/to/ComfyUI")


# -- the seams, as small as they go: see comfy/patcher_extension.py, model_patcher.py, ldm/modules/attention.py ---------


class Executor:
    def __init__(self, function: Any, owner: Any, wrappers: list[Any]) -> None:
        self.function, self.class_obj, self.wrappers = function, owner, wrappers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.wrappers:
            return self.function(*args, **kwargs)
        rest = Executor(self.function, self.class_obj, self.wrappers[1:])
        return self.wrappers[0](rest, *args, **kwargs)


def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, transformer_options: Any = None
) -> Tensor:
    override = (transformer_options or {}).get("optimized_attention_override")
    if override is not None:
        return override(dense, q, k, v, heads, mask=mask, transformer_options=transformer_options)
    return dense(q, k, v, heads, mask=mask)


def dense(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, attn_precision: Any = None,
    skip_reshape: bool = False, skip_output_reshape: bool = False, **kwargs: Any,
) -> Tensor:  # fmt: skip
    if not skip_reshape:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor, options: Any, value: Tensor | None = None) -> Tensor:
        value = context if value is None else value
        return attention(
            self.to_q(x), self.to_k(context), self.to_v(value), HEADS, transformer_options=options
        )  # fmt: skip


class Flux(nn.Module):
    """Joint attention over `[text, image]`."""

    def __init__(self) -> None:
        super().__init__()
        self.double_blocks = nn.ModuleList([Attend(), Attend()])
        self.single_blocks = nn.ModuleList([Attend()])
        self.pe_embedder = nn.Identity()  # all of the text at position 0

    def forward(self, x: Tensor, context: Tensor, transformer_options: Any, **kwargs: Any) -> Tensor:
        stream = torch.cat([context, x.flatten(2).mT], 1)
        self.pe_embedder(torch.zeros(*stream.shape[:2], 3))
        for block in [*self.double_blocks, *self.single_blocks]:
            stream = stream + block(stream, stream, transformer_options)
        return stream[:, context.shape[1] :].mT.reshape(x.shape)


class WanModel(nn.Module):
    """Self-attention, then cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleList([Attend(), Attend()]) for _ in range(2)])

    def forward(self, x: Tensor, context: Tensor, transformer_options: Any, **kwargs: Any) -> Tensor:
        stream = x.flatten(2).mT
        for own, cross in self.blocks:  # pyright: ignore
            stream = stream + own(stream, stream, transformer_options)
            stream = stream + cross(stream, context, transformer_options)
        return stream.mT.reshape(x.shape)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2 = Attend(), Attend()

    def forward(self, x: Tensor, context: Tensor, options: Any) -> Tensor:
        x = x + self.attn1(x, x, options)
        value = None
        for patch in options.get("patches", {}).get("attn2_patch", ()):
            n, context, value = patch(x, context, context if value is None else value, {})
        return x + self.attn2(x, context, options, value)


class UNetModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor, context: Tensor, transformer_options: Any, **kwargs: Any) -> Tensor:
        stream = x.flatten(2).mT
        for block in self.blocks:
            stream = block(stream, context, transformer_options)
        return stream.mT.reshape(x.shape)


class Unknown(Flux):
    pass


class Sampling:
    def percent_to_sigma(self, percent: float) -> float:
        return 1.0 - percent


class Model:
    """A MODEL."""

    def __init__(self, inner: nn.Module) -> None:
        self.inner, self.options = inner, {}
        self.wrappers: dict[str, list[Any]] = {}
        self.attachments: dict[str, Any] = {}

    def clone(self) -> Model:
        made = Model(self.inner)
        made.options = dict(self.options)
        made.wrappers = {k: list(v) for k, v in self.wrappers.items()}
        made.attachments = dict(self.attachments)
        return made

    def get_model_object(self, name: str) -> Any:
        return {"diffusion_model": self.inner, "model_sampling": Sampling()}[name]

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(kind, []).append(wrapper)

    def set_attachments(self, key: str, value: Any) -> None:
        self.attachments[key] = value

    def get_attachment(self, key: str) -> Any:
        return self.attachments.get(key)

    def add_callback_with_key(self, kind: str, key: str, callback: Any) -> None:
        pass

    @property
    def diffusion_model(self) -> Any:
        return self.inner

    def apply(self, x: Tensor, text: Tensor, sigma: float = 0.5, kinds: list[int] | None = None) -> Tensor:
        options = {"sigmas": torch.tensor([sigma]), "cond_or_uncond": kinds or [0], **self.options}

        def run(x: Tensor, t: Any, concat: Any, text: Any, control: Any, options: Any, **kwargs: Any) -> Tensor:
            return self.inner(x, text, options)

        owner = type("BaseModel", (), {"diffusion_model": self.inner, "model_sampling": Sampling()})()
        with torch.no_grad():
            t = torch.tensor([sigma])
            return Executor(run, owner, self.wrappers.get("apply_model", []))(x, t, None, text, None, options)

    def sample(
        self, x: Tensor, text: Tensor, sigmas: tuple[float, ...] = (0.9, 0.6, 0.3), conds: Any = None
    ) -> list[Tensor]:  # fmt: skip
        """The predictions of one sampling."""

        def run() -> list[Tensor]:
            return [self.apply(x, text, sigma) for sigma in sigmas]

        guider = type("CFGGuider", (), {"conds": conds or {}})()
        return Executor(run, guider, self.wrappers.get("outer_sample", []))()


@pytest.fixture(params=[Flux, WanModel, UNetModel], ids=lambda c: c.__name__)
def model(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(0)
    return Model(request.param().double())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(1, WIDTH, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def text() -> Tensor:
    return torch.randn(1, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def negative() -> list[Any]:
    return [[torch.randn(1, 3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), {}]]


def definition(model: Model, x: Tensor, text: Tensor, negative: list[Any], method: Any) -> Tensor:
    """The same model with its text lengthened by hand and the dense definition in the place of attention."""
    n, p = negative[0][0].shape[1], text.shape[1]
    image = x.shape[2] * x.shape[3]
    joint = isinstance(model.inner, Flux)

    def override(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any) -> Tensor:
        if k.shape[1] not in (n + p, n + p + image):
            return func(q, k, v, heads)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        if not joint:
            out = reference.vsf(
                q, k[:, :, :p], v[:, :, :p], k[:, :, p:], v[:, :, p:], method.scale, method.offset
            )  # fmt: skip
        else:
            rules = {"i": "i p", "p": "i p", "n": "i n"}
            seen = reference.visible([("n", n), ("p", p), ("i", image)], rules)
            bias = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -math.inf)
            rows = reference.softmax_attention(q, k, v, bias)
            guided = reference.vsf(
                q[:, :, n + p :], k[:, :, n:], v[:, :, n:], k[:, :, :n], v[:, :, :n], method.scale,
                method.offset,
            )  # fmt: skip
            out = torch.cat([rows[:, :, : n + p], guided], 2)
        return out.transpose(1, 2).flatten(2)

    whole = torch.cat([negative[0][0], text] if joint else [text, negative[0][0]], 1)
    by_hand = model.clone()
    by_hand.options["optimized_attention_override"] = override
    return by_hand.apply(x, whole)


def test_equals_the_definition(pack: Any, model: Model, x: Tensor, text: Tensor, negative: list[Any]) -> None:
    method = VSF(scale=2.0, offset=0.3)
    ours = pack.guide.guide_model(model, method, negative).apply(x, text)
    close(
        ours, definition(model, x, text, negative, method), model.apply(x, text), rounding(model.inner, torch.float64)
    )


def test_off_is_bit_equal_and_the_model_given_is_untouched(
    pack: Any, model: Model, x: Tensor, text: Tensor, negative: list[Any]
) -> None:
    before = model.apply(x, text)
    for method in (VSF(offset=math.inf), NASA(scale=0.0), NAG(alpha=0.0), VSF(start=0.6, stop=0.8)):
        assert torch.equal(pack.guide.guide_model(model, method, negative).apply(x, text), before)
    pack.guide.guide_model(model, VSF(), negative).apply(x, text)
    assert torch.equal(model.apply(x, text), before)
    assert not model.wrappers and not model.attachments and not model.options


def test_only_positive_rows_are_guided(pack: Any, model: Model, x: Tensor, text: Tensor, negative: list[Any]) -> None:
    """ComfyUI batches the sampler's positive (0) and negative (1) prompts, in any order."""
    ours = pack.guide.guide_model(model, VSF(scale=2.0), negative)
    other = text.flip(1)
    both = ours.apply(torch.cat([x, x]), torch.cat([other, text]), kinds=[1, 0])
    bound = rounding(model.inner, torch.float64)
    same(both[:1], model.apply(x, other), bound)
    same(both[1:], ours.apply(x, text), bound)
    assert torch.equal(ours.apply(x, other, kinds=[1]), model.apply(x, other))


def test_a_long_negative_under_cfg(pack: Any, model: Model, x: Tensor, text: Tensor) -> None:
    """Above 64 tokens the negative's side takes the fused kernel too."""
    long = [[torch.randn(1, 80, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), {}]]
    ours = pack.guide.guide_model(model, VSF(scale=2.0), long)
    big = x.repeat(1, 1, 3, 3)
    both = ours.apply(torch.cat([big, big]), torch.cat([text, text]), kinds=[0, 1])
    bound = rounding(model.inner, torch.float64)
    same(both[1:], model.apply(big, text), bound)
    same(both[:1], ours.apply(big, text), bound)


def test_the_override_that_is_there_is_chained(
    pack: Any, model: Model, x: Tensor, text: Tensor, negative: list[Any]
) -> None:
    calls: list[int] = []

    def theirs(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return func(*args, **kwargs)

    bare = pack.guide.guide_model(model, VSF(scale=2.0), negative).apply(x, text)
    patched = model.clone()
    patched.options["optimized_attention_override"] = theirs
    ours = pack.guide.guide_model(patched, VSF(scale=2.0), negative)
    same(ours.apply(x, text), bare, rounding(model.inner, torch.float64))
    assert calls and ours.options["optimized_attention_override"] is theirs


def test_a_sampling_records_the_share(pack: Any, model: Model, x: Tensor, text: Tensor, negative: list[Any]) -> None:
    ours = pack.guide.guide_model(model, VSF(scale=2.0, stop=0.5), negative, record=True)
    ours.options["sample_sigmas"] = torch.tensor([0.9, 0.6, 0.3, 0.0])
    ours.sample(x, text)
    predictions = ours.sample(x, text)
    record = ours.get_attachment("vsf").record
    sites = len({block for _, block in record.share})
    assert {step for step, _ in record.share} == {0, 1} and sites == {"Flux": 3}.get(type(model.inner).__name__, 2)
    assert torch.equal(predictions[2], model.apply(x, text, 0.3))
    share = pack.maps.suppression(record, -1, -1)
    assert share.shape == (1, 1, 4, 3) and share.min() > 0 and share.max() < 1
    with pytest.raises(ValueError, match="recorded: steps 0 to 1"):
        pack.maps.suppression(record, 7, -1)


def test_errors(pack: Any, x: Tensor, text: Tensor, negative: list[Any]) -> None:
    model = Model(Flux().double())
    guide = pack.guide.guide_model
    with pytest.raises(ValueError, match="Unknown cannot be guided; supported: SD 1.x.*LTX-Video"):
        guide(Model(Unknown()), VSF(), negative)
    with pytest.raises(ValueError, match="already comes from a guidance node"):
        guide(guide(model, VSF(), negative), NAG(), negative)
    with pytest.raises(ValueError, match="blocks is 1,3-99; this model has blocks 0 to 2"):
        guide(model, VSF(blocks=(1, *range(3, 100))), negative)
    with pytest.raises(ValueError, match="7 wide and the positive one 16"):
        guide(model, VSF(), [[torch.ones(1, 2, 7), {}]]).apply(x, text)
    with pytest.raises(ValueError, match="all zeros"):
        guide(model, VSF(), [[torch.zeros(1, 2, 16), {}]])
    with pytest.raises(ValueError, match="limited by mask, start_percent"):
        guide(model, VSF(), [[torch.ones(1, 2, 16), {"mask": torch.ones(1), "start_percent": 0.1}]])
    with pytest.raises(ValueError, match=r"has strength 0\.5, which .* VSF Negative Prompt"):
        guide(model, VSF(), [[torch.ones(1, 2, 16), {"strength": 0.5}]])
    guide(model, VSF(), [[torch.ones(1, 2, 16), {"start_percent": 0.0, "end_percent": 1.0, "strength": 1.0}]])
    with pytest.raises(ValueError, match="encoded by umt5xxl, but Flux.*takes t5xxl or l \\+ t5xxl"):
        guide(model, VSF(), [[torch.ones(1, 2, 16), {"vsf_encoder": "umt5xxl"}]])
    for encoder in ("t5xxl", "l t5xxl", "somebody_elses", None):
        guide(model, VSF(), [[torch.ones(1, 2, 16), {"vsf_encoder": encoder}]])
    blocks: Any = model.inner.double_blocks
    blocks[0] = nn.Identity()
    blocks[0].forward = lambda x, context, options: x  # an attention that comes by no seam
    with pytest.raises(RuntimeError, match="2 of 3 attention blocks"):
        guide(model, VSF(), negative).apply(x, text)


def test_what_of_a_conditioning_is_the_negative(pack: Any) -> None:
    tokens = torch.arange(1.0, 6.0).view(1, 5, 1).repeat(1, 1, 2)
    tokens[:, 3:] = 0  # Wan's padding
    wan = pack.families.family_of(WanModel())

    def negative_of(conditioning: Any, method: Any) -> Any:
        return pack.prompt.negative_of(conditioning, method, wan)

    assert negative_of([[tokens, {}]], VSF()).tokens.shape[1] == 3
    assert negative_of([[tokens, {}]], NAG()).tokens.shape[1] == 5  # padded, as the model was trained
    masked = [[tokens, {"attention_mask": torch.tensor([[1, 1, 0, 0, 0]])}]]
    assert negative_of(masked, NAG()).tokens.shape[1] == 2
    two = negative_of([[tokens, {}], [tokens, {"vsf_weight": torch.full((5,), 2.0)}]], VSF())
    assert two.tokens.shape[1] == 6 and two.weight.tolist() == [1, 1, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="NAG takes one negative prompt without weights"):
        negative_of([[tokens, {}], [tokens, {}]], NAG())


def test_the_negative_of_the_sampler(
    pack: Any, model: Model, x: Tensor, text: Tensor, negative: list[Any]
) -> None:  # fmt: skip
    """Not connected to the node, the negative is the one that the sampler was given."""
    conds = {"positive": [], "negative": [{"cross_attn": tokens, **extra} for tokens, extra in negative]}
    ours = pack.guide.guide_model(model, VSF(scale=2.0))
    connected = pack.guide.guide_model(model, VSF(scale=2.0), negative)
    for a, b in zip(ours.sample(x, text, conds=conds), connected.sample(x, text), strict=True):
        assert torch.equal(a, b)
    conds["negative"][0]["control"] = object()  # a ControlNet on both of the sampler's conditionings
    for a, b in zip(ours.sample(x, text, conds=conds), connected.sample(x, text), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="limited by control"):
        pack.guide.guide_model(model, VSF(), [[negative[0][0], {"control": object()}]])
    with pytest.raises(ValueError, match=r"this sampler \(CFGGuider\) has no negative of its own; connect one"):
        ours.sample(x, text, conds={"positive": []})
    with pytest.raises(ValueError, match="all zeros"):
        ours.sample(x, text, conds={"negative": [{"cross_attn": negative[0][0] * 0}]})
    with pytest.raises(RuntimeError, match="run without a sampler"):
        ours.apply(x, text)


def test_a_repeated_prompt_is_found(pack: Any) -> None:
    prompt = torch.randn(77, 4)
    assert pack.guide._repeats(prompt) == 1
    assert pack.guide._repeats(prompt.repeat(3, 1)) == 3
    assert pack.guide._repeats(torch.randn(154, 4)) == 1


class Tokenizer:
    """One, or the holder of several, as ComfyUI nests them."""

    def __init__(self, parts: dict[str, Any] | None = None, key: str = "") -> None:
        if key:
            self.embedding_key = key
        vars(self).update(parts or {})

    def tokenize_with_weights(self) -> None: ...


class Clip:
    """A CLIP whose tokenizer pads as ComfyUI's do: CLIP always, T5 unless told otherwise."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self.kinds, self.options = kinds, {}
        keys = {"l": "clip_l", "g": "clip_g"}
        self.tokenizer = Tokenizer({k: Tokenizer(key=keys.get(k, k)) for k in kinds})

    def clone(self) -> Clip:
        made = Clip(self.kinds)
        made.options = dict(self.options)
        return made

    def set_tokenizer_option(self, name: str, value: int) -> None:
        self.options[name] = value

    def tokenize(self, text: str) -> dict[str, Any]:
        words = [(len(word), 1.0) for word in text.split()]
        out: dict[str, Any] = {}
        for kind in self.kinds:
            if kind in ("l", "g"):
                row = [(49406, 1.0), *words, (49407, 1.0)]
                out[kind] = [row + [(49407 if kind == "l" else 0, 1.0)] * (77 - len(row))]
            else:
                row = [*words, (1, 1.0)]
                out[kind] = [row + [(0, 1.0)] * (self.options.get(f"{kind}_min_length", 256) - len(row))]
        return out

    def encode_from_tokens_scheduled(self, tokens: dict[str, Any]) -> list[Any]:
        """The token numbers as embeddings: SD3 has CLIP's and then T5's tokens, Flux and HiDream T5's alone."""
        used = [k for k in tokens if k not in ("l", "g")] if set(tokens) == {"l", "t5xxl"} else [*tokens]
        used = ["t5xxl"] if "llama" in tokens else [k for k in used if not (k == "g" and "l" in used)]
        row = [number for kind in used for chunk in tokens[kind] for number, _ in chunk]
        return [[torch.tensor(row, dtype=torch.float32).view(1, -1, 1) + 1, {"pooled_output": None}]]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("l",), [49406, 3, 5, 49407]),
        (("l", "g"), [49406, 3, 5, 49407]),
        (("l", "g", "t5xxl"), [49406, 3, 5, 49407, 3, 5, 1]),
        (("l", "t5xxl"), [3, 5, 1]),
        (("g", "l", "llama", "t5xxl"), [3, 5, 1]),
        (("umt5xxl",), [3, 5, 1]),
    ],
    ids=["SD1.5", "SDXL", "SD3", "Flux", "HiDream", "Wan"],
)
def test_negative_prompts_lose_their_padding(pack: Any, kinds: tuple[str, ...], expected: list[int]) -> None:
    clip = Clip(kinds)
    [[tokens, extra]] = pack.prompt.encode_negative(clip, "red wheel")
    assert (tokens[0, :, 0] - 1).tolist() == expected and "vsf_weight" not in extra
    assert not clip.options  # the one given is not changed
    items = pack.prompt.encode_negative(clip, "red wheel:2, rim:0, rope")
    assert [len(item[0][0]) for item in items] == [
        len(expected),
        len(expected) - (2 if kinds == ("l", "g", "t5xxl") else 1),
    ]
    assert items[0][1]["vsf_weight"].tolist() == [2.0] * len(expected)
    assert items[0][1]["vsf_encoder"] == " ".join(sorted(kinds))
    with pytest.raises(ValueError, match="the negative prompt is empty"):
        pack.prompt.encode_negative(clip, " ")
    with pytest.raises(ValueError, match="times of its own .* set start_percent and end_percent"):
        pack.prompt.encode_negative(clip, "rim, [red wheel:0.2,0.6]")


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("a clock at 12:30", "a clock at 12:30"),
        ("a screen (16:9), rust", r"a screen \(16:9\), rust"),
        ("((ugly)), a (red:1.3) bike:1", None),
        (r"a smile \:\):1", r"a smile :\)"),
    ],
)
def test_parentheses_reach_the_tokenizer_as_text(
    pack: Any, text: str, typed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI's own weights would scale what the text encoder gives; here a weight is one of the flipped values."""
    seen: list[str] = []
    tokenize = Clip.tokenize
    monkeypatch.setattr(Clip, "tokenize", lambda self, text: seen.append(text) or tokenize(self, text))
    if typed is None:
        with pytest.raises(ValueError, match="is only a part of an item"):
            pack.prompt.encode_negative(Clip(("l",)), text)
        return
    [[_, extra]] = pack.prompt.encode_negative(Clip(("l",)), text)
    assert seen == [typed] and "vsf_weight" not in extra


class Chat(Clip):
    """An encoder with a chat template, such as Z-Image's; `left_out` of its first tokens are not handed on."""

    FRONT, BEHIND = [100, 101, 102], [103, 104]

    def __init__(self, left_out: int = 0) -> None:
        super().__init__(("qwen3_4b",))
        self.left_out = left_out

    def clone(self) -> Chat:
        return Chat(self.left_out)

    def tokenize(self, text: str) -> dict[str, Any]:
        ids = [*self.FRONT, *(len(word) for word in text.replace(",", "").split()), *self.BEHIND]
        return {"qwen3_4b": [[(number, 1.0) for number in ids]]}

    def encode_from_tokens_scheduled(self, tokens: dict[str, Any]) -> list[Any]:
        [[whole, extra]] = super().encode_from_tokens_scheduled(tokens)
        kept = whole[:, self.left_out :]
        return [[kept, {**extra, "attention_mask": torch.ones(1, kept.shape[1])}]]


@pytest.mark.parametrize("left_out", [0, 2, 3], ids=["Z-Image", "part of the template", "Qwen-Image"])
def test_a_chat_template_is_taken_once(pack: Any, left_out: int) -> None:
    def encode(text: str) -> list[tuple[list[float], list[float]]]:
        out = pack.prompt.encode_negative(Chat(left_out), text)
        for tokens, extra in out:
            assert extra["attention_mask"].shape == tokens.shape[:2] and extra["vsf_encoder"] == "qwen3_4b"
        return [
            ((tokens[0, :, 0] - 1).tolist(), extra.get("vsf_weight", torch.ones(tokens.shape[1])).tolist())
            for tokens, extra in out
        ]

    front, behind = Chat.FRONT[left_out:], Chat.BEHIND
    assert encode("red wheel") == [([*front, 3, 5, *behind], [1] * (len(front) + 4))]
    items = encode("red wheel:2, rope, rim")
    ends = [(end, [1] * len(end)) for end in (front, behind) if end]
    assert items == [([3, 5], [2, 2]), ([4], [1]), ([3], [1]), *ends]


def test_every_tokenizer_is_told_not_to_pad(pack: Any) -> None:
    clip = Clip(("l", "t5xxl"))
    clip.tokenizer.deeper = Tokenizer({"inner": Tokenizer(key="mistral3_24b")})  # pyright: ignore
    options = pack.prompt.unpadded(_keep(clip)).options
    assert {name for name in options if name.endswith("_min_length")} == {
        "clip_l_min_length", "t5xxl_min_length", "mistral3_24b_min_length",
    }  # fmt: skip


def _keep(clip: Clip) -> Any:
    """A CLIP whose clone has the same tokenizers, as ComfyUI's."""
    clone = Clip.clone(clip)
    clone.tokenizer = clip.tokenizer
    clip.clone = lambda: clone  # pyright: ignore
    return clip


def test_inputs_are_the_knobs(pack: Any) -> None:
    for cls in (VSF, NAG, NASA):
        node = next(n for n in pack.nodes.NODES if n.id == f"VSF{cls.__name__.removeprefix('VSF')}Guidance")
        inputs = {i.name: i for i in node.inputs}
        for name, spec in knobs(cls).items():
            shown = inputs[pack.nodes.NAMES.get(name, name)]
            assert shown.help.startswith(pack.nodes.HELP.get(name, spec.help))
            assert shown.default == (0.0 if spec.default is None else spec.default)
            if not spec.choices:
                assert shown.minimum is not None and shown.minimum >= spec.minimum
                assert shown.maximum is not None and shown.maximum <= spec.maximum
                assert shown.step == spec.step
            else:
                assert shown.choices == spec.choices
        assert set(inputs) - {"model", "negative", "blocks", "audio_negative", "record"} == {
            pack.nodes.NAMES.get(name, name) for name in knobs(cls)
        }


def test_a_former_name_is_left_to_a_pack_that_has_it(pack: Any) -> None:
    ids = [node.id for node in pack.nodes._with_old_names({"NAGGuidance": object})]
    assert "NAGGuidance" not in ids and "NASAGuidance" in ids and "VSFNAGGuidance" in ids
    assert len(ids) == len(set(ids))


def test_the_older_schema(pack: Any, x: Tensor, text: Tensor, negative: list[Any]) -> None:
    """`NODE_CLASS_MAPPINGS` as older versions of ComfyUI read them, run as they run them."""
    classes, titles = pack.nodes.v1()
    assert set(classes) == set(titles) and titles["VSFGuidance"] == "VSF Guidance"
    for cls in classes.values():
        declared = cls.INPUT_TYPES()
        assert all(isinstance(spec, tuple) for group in declared.values() for spec in group.values())
        assert callable(getattr(cls, cls.FUNCTION)) and cls.RETURN_TYPES and cls.CATEGORY
    cls = classes["VSFGuidance"]
    required = cls.INPUT_TYPES()["required"]
    assert required["layout"][0] == ["paper", "upstream"] and required["scale"][1]["default"] == 3.5
    assert classes["NAGGuidance"].DEPRECATED and not classes["VSFNAGGuidance"].DEPRECATED
    defaults = {k: spec[1]["default"] for k, spec in required.items() if k != "model"}
    torch.manual_seed(0)
    model = Model(Flux().double())
    given = defaults | {"scale": 2.0, "record": True, "blocks": "0, 2"}
    (ours,) = getattr(cls(), cls.FUNCTION)(model=model, negative=negative, **given)
    same = pack.guide.guide_model(model, VSF(scale=2.0, blocks=(0, 2)), negative)
    assert torch.equal(ours.apply(x, text), same.apply(x, text))
    (picture,) = classes["VSFSuppressionMap"]().run(
        model=ours, latent={"samples": x}, step=-1, block=2, brightest=0.0, strength=0.5
    )
    assert picture.ndim == 4 and picture.shape[-1] == 3
    wan, text_node = Model(WanModel()), classes["VSFTextGuidance"]()
    (ours,) = text_node.run(model=wan, clip=Clip(("umt5xxl",)), text="red wheel:2", **defaults)
    written = ours.get_attachment("vsf").negative
    assert written.tokens.shape[1] == 3 and written.weight.tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="Wan.*reads no text for a sound"):
        text_node.run(model=wan, clip=Clip(("umt5xxl",)), text="red wheel", audio_text="music", **defaults)
    with pytest.raises(ValueError, match="encoded by t5xxl, but Wan.*takes umt5xxl"):
        text_node.run(model=wan, clip=Clip(("t5xxl",)), text="red wheel", **defaults)
    with pytest.raises(ValueError, match="this model is not guided"):
        classes["VSFSuppressionMap"]().run(model=model, latent=None, step=0, block=0, brightest=0.0, strength=0.5)


LANGUAGES = ("en", "zh", "ja", "ko", "de")


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_are_whole(pack: Any, language: str) -> None:
    """Every text of every node, and no other; a language of its own says something of its own."""
    english = comfy_locales.english(pack.nodes.NODES)
    path = comfy_locales.FOLDER / language / "nodeDefs.json"
    given = json.loads(path.read_text())

    def texts(tree: Any, at: str = "") -> dict[str, str]:
        if isinstance(tree, str):
            return {at: tree}
        return {name: text for key, part in tree.items() for name, text in texts(part, f"{at}/{key}").items()}

    wanted, found = texts(english), texts(given)
    assert wanted.keys() == found.keys()
    assert not any(set(text) & set("{}@|") for text in found.values())  # the front end's own syntax
    if language == "en":
        assert path.read_text() == comfy_locales.text(english), (
            "run: PYTHONPATH=src:tests python tests/comfyui/comfy_locales.py"
        )
    else:
        same = [name for name, text in found.items() if text == wanted[name]]
        assert all(name.endswith("/name") for name in same)


@pytest.mark.parametrize("name", comfy_workflows.WORKFLOWS)
def test_example_workflows_say_where_their_files_are(name: str) -> None:
    """The front end offers a download of what is missing; a note says it in words."""
    graph = json.loads((comfy_workflows.FOLDER / f"{name}.json").read_text())
    [note] = (node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote")
    wanted, offered = set(), set()
    for node in graph["nodes"]:
        files = {str(value) for value in node["widgets_values"] if str(value).endswith(".safetensors")}
        wanted |= files
        for model in node["properties"].get("models", []):
            assert model["name"] in files and model["url"].endswith("/" + model["name"]) and model["url"] in note
            offered.add(model["name"])
    assert wanted and wanted == offered


def test_the_blueprint_is_one_connected_graph() -> None:
    """Each link joins an output and an input of its type, and both of its ends know of it."""
    whole = json.loads(comfy_workflows.BLUEPRINT.read_text())
    [node], [inner] = whole["nodes"], whole["definitions"]["subgraphs"]
    assert node["type"] == inner["id"]
    nodes = {part["id"]: part for part in inner["nodes"]}
    for link in inner["links"]:
        origin = (
            inner["inputs"][link["origin_slot"]]
            if link["origin_id"] == inner["inputNode"]["id"]
            else nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
        )
        target = (
            inner["outputs"][link["target_slot"]]
            if link["target_id"] == inner["outputNode"]["id"]
            else nodes[link["target_id"]]["inputs"][link["target_slot"]]
        )
        assert origin["type"] == target["type"] == link["type"]
        assert link["id"] in origin.get("linkIds", origin.get("links"))
        assert link["id"] in target.get("linkIds", [target.get("link")])
    assert all(socket["link"] for part in nodes.values() for socket in part["inputs"])
    for side in ("inputs", "outputs"):
        assert [(x["name"], x["type"]) for x in inner[side]] == [(x["name"], x["type"]) for x in node[side]]
    for number, widget in node["properties"]["proxyWidgets"]:
        assert nodes[int(number)]["type"] in ("VSFTextGuidance", "KSampler") and widget in (
            "text",
            "scale",
            "seed",
            "steps",
        )


def test_every_node_has_a_help_page(pack: Any) -> None:
    pages = {path.stem: path.read_text() for path in (PACK / "web" / "docs").glob("*.md")}
    assert set(pages) == {node.id for node in pack.nodes.NODES}
    for node in pack.nodes.NODES:
        assert pages[node.id].startswith(f"# {node.title}\n")
        if node.id in ("VSFGuidance", "VSFSuppressionMap"):
            assert all(spec.name in pages[node.id] for spec in node.inputs)


def test_without_its_package_a_copy_says_which_to_install(tmp_path: Path) -> None:
    """The index's `vsf` is somebody else's, so the sentence must name ours."""
    shutil.copytree(PACK, tmp_path / "vsf_nodes", ignore=shutil.ignore_patterns("vendor"))
    program = "import sys; sys.modules['vsf'] = None; sys.path.insert(0, sys.argv[1]); import vsf_nodes"
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 1
    assert "ImportError: the VSF nodes need" in run.stderr and "--no-deps value-sign-flip" in run.stderr


def test_what_the_registry_wants_to_know(tmp_path: Path) -> None:
    """Its own command line was run on such a folder (`comfy node validate`); here, that the parts fit together."""
    repository = "https://github.com/somebody/something"
    made = tmp_path / "node"
    subprocess.run([sys.executable, str(PACK / "bundle.py"), str(made), repository], check=True, capture_output=True)
    told = tomllib.loads((made / "pyproject.toml").read_text())
    project, comfy = told["project"], told["tool"]["comfy"]
    assert project["version"] == vsf.__version__ and not project["dependencies"]
    assert project["urls"]["Repository"] == repository
    assert comfy["PublisherId"] and comfy["DisplayName"] and comfy["requires-comfyui"]
    for key, (width, height) in {"Icon": (256, 256), "Banner": (1260, 540)}.items():
        path = comfy[key].removeprefix("https://raw.githubusercontent.com/somebody/something/HEAD/comfyui/")
        with Image.open(made / path) as picture:
            assert picture.size == (width, height)
    readme = (made / "README.md").read_text()
    assert f"git clone {repository} " in readme and "](../" not in readme
    assert "urls" not in tomllib.loads((PACK / "pyproject.toml").read_text())["project"]


def test_a_copied_folder_needs_nothing_but_torch(tmp_path: Path) -> None:
    """What `bundle.py` writes works where neither vsf nor diffusers is installed."""
    made = subprocess.run(
        [sys.executable, str(PACK / "bundle.py"), str(tmp_path / "vsf_nodes")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout.strip() == str(tmp_path / "vsf_nodes")
    program = """
import importlib.util, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("diffusers", "transformers", "accelerate", "scipy", "rich", "typer"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
spec = importlib.util.spec_from_file_location("pack", sys.argv[1] + "/__init__.py")
sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import vsf
assert "vendor" in vsf.__file__, vsf.__file__
print(sorted(module.NODE_CLASS_MAPPINGS))
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "vsf_nodes")], capture_output=True, text=True, env=environment
    )
    assert "VSFGuidance" in run.stdout, run.stderr
    again = subprocess.run(
        [sys.executable, str(PACK / "bundle.py"), str(tmp_path / "vsf_nodes")], capture_output=True, text=True
    )
    assert again.returncode == 1 and "a folder that is not there yet" in again.stderr
