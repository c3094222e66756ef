"""The nodes on small stand-ins of ComfyUI's seams: what must hold can be checked without it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_server import COMFYUI, PACK
from torch import Tensor, nn

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

    def forward(self, x: Tensor, context: Tensor, transformer_options: Any, **kwargs: Any) -> Tensor:
        stream = torch.cat([context, x.flatten(2).mT], 1)
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

    @property
    def diffusion_model(self) -> Any:
        return self.inner

    def apply(self, x: Tensor, text: Tensor, sigma: float = 0.5, kinds: list[int] | None = None) -> Tensor:
        options = {"sigmas": torch.tensor([sigma]), "cond_or_uncond": kinds or [0], **self.options}

        def run(x: Tensor, t: Any, concat: Any, text: Any, control: Any, options: Any, **kwargs: Any) -> Tensor:
            return self.inner(x, text, options)

        owner = type("BaseModel", (), {"diffusion_model": self.inner})()
        with torch.no_grad():
            t = torch.tensor([sigma])
            return Executor(run, owner, self.wrappers.get("apply_model", []))(x, t, None, text, None, options)

    def sample(self, x: Tensor, text: Tensor, sigmas: tuple[float, ...] = (0.9, 0.6, 0.3)) -> list[Tensor]:
        """The predictions of one sampling."""

        def run() -> list[Tensor]:
            return [self.apply(x, text, sigma) for sigma in sigmas]

        return Executor(run, None, self.wrappers.get("outer_sample", []))()


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


def definition(model: Model, x: Tensor, text: Tensor, negative: list[Any], method: VSF) -> Tensor:
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
                q, k[:, :, :p], v[:, :, :p], k[:, :, p:], v[:, :, p:], float(method.scale), float(method.offset)
            )  # fmt: skip
        else:
            rules = {"i": "i p", "p": "i p", "n": "i n"}
            seen = reference.visible([("n", n), ("p", p), ("i", image)], rules)
            bias = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -math.inf)
            rows = reference.softmax_attention(q, k, v, bias)
            guided = reference.vsf(
                q[:, :, n + p :], k[:, :, n:], v[:, :, n:], k[:, :, :n], v[:, :, :n], float(method.scale),
                float(method.offset),
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
    assert torch.allclose(ours, definition(model, x, text, negative, method), atol=1e-9)
    assert not torch.allclose(ours, model.apply(x, text), atol=1e-3)


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
    assert torch.allclose(both[:1], model.apply(x, other), atol=1e-9)
    assert torch.allclose(both[1:], ours.apply(x, text), atol=1e-9)
    assert torch.equal(ours.apply(x, other, kinds=[1]), model.apply(x, other))


def test_a_long_negative_under_cfg(pack: Any, model: Model, x: Tensor, text: Tensor) -> None:
    """Above 64 tokens the negative's side takes the fused kernel too."""
    long = [[torch.randn(1, 80, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), {}]]
    ours = pack.guide.guide_model(model, VSF(scale=2.0), long)
    big = x.repeat(1, 1, 3, 3)
    both = ours.apply(torch.cat([big, big]), torch.cat([text, text]), kinds=[0, 1])
    assert torch.allclose(both[1:], model.apply(big, text), atol=1e-9)
    assert torch.allclose(both[:1], ours.apply(big, text), atol=1e-9)


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
    assert torch.allclose(ours.apply(x, text), bare, atol=1e-9)
    assert calls and ours.options["optimized_attention_override"] is theirs


def test_a_sampling_records_the_share(pack: Any, model: Model, x: Tensor, text: Tensor, negative: list[Any]) -> None:
    ours = pack.guide.guide_model(model, VSF(scale=2.0, stop=0.5), negative, record=True)
    ours.options["sample_sigmas"] = torch.tensor([0.9, 0.6, 0.3, 0.0])
    for _ in range(2):
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
    with pytest.raises(ValueError, match="this model has blocks 0 to 2"):
        guide(model, VSF(blocks=(3,)), negative)
    with pytest.raises(ValueError, match="7 wide and the positive one 16"):
        guide(model, VSF(), [[torch.ones(1, 2, 7), {}]]).apply(x, text)
    with pytest.raises(ValueError, match="all zeros"):
        guide(model, VSF(), [[torch.zeros(1, 2, 16), {}]])
    with pytest.raises(ValueError, match="limited by mask, start_percent"):
        guide(model, VSF(), [[torch.ones(1, 2, 16), {"mask": torch.ones(1), "start_percent": 0.1}]])
    model.inner.double_blocks[0] = nn.Identity()
    model.inner.double_blocks[0].forward = lambda x, context, options: x  # an attention that comes by no seam
    with pytest.raises(RuntimeError, match="2 of 3 attention blocks"):
        guide(model, VSF(), negative).apply(x, text)


def test_what_of_a_conditioning_is_the_negative(pack: Any) -> None:
    tokens = torch.arange(1.0, 6.0).view(1, 5, 1).repeat(1, 1, 2)
    tokens[:, 3:] = 0  # Wan's padding
    assert pack.guide.negative_of([[tokens, {}]], VSF()).tokens.shape[1] == 3
    assert pack.guide.negative_of([[tokens, {}]], NAG()).tokens.shape[1] == 5  # padded, as the model was trained
    masked = [[tokens, {"attention_mask": torch.tensor([[1, 1, 0, 0, 0]])}]]
    assert pack.guide.negative_of(masked, NAG()).tokens.shape[1] == 2
    two = pack.guide.negative_of([[tokens, {}], [tokens, {"vsf_weight": torch.full((5,), 2.0)}]], VSF())
    assert two.tokens.shape[1] == 6 and two.weight.tolist() == [1, 1, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="NAG takes one negative prompt without weights"):
        pack.guide.negative_of([[tokens, {}], [tokens, {}]], NAG())


def test_a_repeated_prompt_is_found(pack: Any) -> None:
    prompt = torch.randn(77, 4)
    assert pack.guide._repeats(prompt) == 1
    assert pack.guide._repeats(prompt.repeat(3, 1)) == 3
    assert pack.guide._repeats(torch.randn(154, 4)) == 1


class Clip:
    """A CLIP whose tokenizer pads as ComfyUI's do: CLIP always, T5 unless told otherwise."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self.kinds, self.options = kinds, {}

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
        """The token numbers as embeddings: SD3 has CLIP's and then T5's tokens, Flux T5's alone."""
        used = [k for k in tokens if k not in ("l", "g")] if set(tokens) == {"l", "t5xxl"} else [*tokens]
        used = [k for k in used if not (k == "g" and "l" in used)]
        row = [number for kind in used for chunk in tokens[kind] for number, _ in chunk]
        return [[torch.tensor(row, dtype=torch.float32).view(1, -1, 1) + 1, {"pooled_output": None}]]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("l",), [49406, 3, 5, 49407]),
        (("l", "g"), [49406, 3, 5, 49407]),
        (("l", "g", "t5xxl"), [49406, 3, 5, 49407, 3, 5, 1]),
        (("l", "t5xxl"), [3, 5, 1]),
        (("umt5xxl",), [3, 5, 1]),
    ],
    ids=["SD1.5", "SDXL", "SD3", "Flux", "Wan"],
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
    with pytest.raises(ValueError, match="the negative prompt is empty"):
        pack.prompt.encode_negative(clip, " ")


def test_inputs_are_the_knobs(pack: Any) -> None:
    for cls in (VSF, NAG, NASA):
        node = next(n for n in pack.nodes.NODES if n.id == f"{cls.__name__}Guidance")
        inputs = {i.name: i for i in node.inputs}
        for name, spec in knobs(cls).items():
            shown = inputs[pack.nodes.NAMES.get(name, name)]
            assert shown.help.startswith(spec.help)
            assert shown.default == (0.0 if spec.default is None else spec.default)
            if not spec.choices:
                assert shown.minimum is not None and shown.minimum >= spec.minimum
                assert shown.maximum is not None and shown.maximum <= spec.maximum
                assert shown.step == spec.step
            else:
                assert shown.choices == spec.choices
        assert set(inputs) - {"model", "negative", "blocks", "record"} == {
            pack.nodes.NAMES.get(name, name) for name in knobs(cls)
        }


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
    defaults = {k: spec[1]["default"] for k, spec in required.items() if k not in ("model", "negative")}
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
    with pytest.raises(ValueError, match="this model is not guided"):
        classes["VSFSuppressionMap"]().run(model=model, latent=None, step=0, block=0, brightest=0.0, strength=0.5)


def test_block_numbers(pack: Any) -> None:
    parse = pack.nodes.parse_blocks
    assert parse("") is None and parse(" 3 ") == (3,) and parse("0-2, 5") == (0, 1, 2, 5)
    for wrong in ("a", "3-", "3-1", "1,,2", "-1", "1-2-3"):
        with pytest.raises(ValueError, match="allowed: numbers and ranges"):
            parse(wrong)


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
