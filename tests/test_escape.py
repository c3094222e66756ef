"""What leaves a block by any door is the model's own, and a later block finds nothing of an earlier one."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0, FusedJointAttnProcessor2_0
from torch import nn

import specs
from closeness import differs, rounding, same
from composition import adapters as ip
from composition import make, pipes
from test_contract import negatives, run, run_guided
from vsf import CFG, VSF, NothingGuided, load_demo_pipeline, negative_guidance
from vsf.arch import find_models

SPECS = specs.load()
F32 = torch.float32


def marks(model: Any) -> list[Any]:
    """Classes, hooks and attributes of every module, without what they are called by."""
    return [
        (
            name, type(m), type(getattr(m, "processor", None)), sorted(vars(m)), type(m._forward_pre_hooks),
            *(len(getattr(m, hooks)) for hooks in vars(m) if hooks.endswith(("_hooks", "_kwargs", "_called"))),
        )
        for name, m in model.named_modules()
    ]  # fmt: skip


def guidable(name: str, model: Any) -> torch.Tensor:
    return run_guided(model, make(name, dtype=F32)(), VSF(3.5), negatives(SPECS[name], 3))


def saved(model: Any) -> Any:
    stream = io.BytesIO()
    torch.save(model, stream)
    assert b"vsf" not in stream.getvalue()
    stream.seek(0)
    return torch.load(stream, weights_only=False)


DOORS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
}
NAMES = ["sd3", "flux", "unet", "wan", "wan-i2v", "qwen-mask", "hunyuan-video", "z-image", "lumina2"]


@pytest.mark.parametrize("door", list(DOORS))
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_made_inside_is_a_copy_of_the_model(name: str, door: str) -> None:
    model = SPECS[name].build(F32)
    call, before = make(name, dtype=F32), marks(model)
    plain, wanted = run(model, call()), guidable(name, model)
    with negative_guidance(model, VSF(3.5), negative_prompt_embeds=negatives(SPECS[name], 3)):
        assert torch.equal(run(model, call()), wanted)
        twin = DOORS[door](model)
        if door != "copy":  # a shallow one shares its parts, which are guided
            assert marks(twin) == before and torch.equal(run(twin, call()), plain)
            assert torch.equal(guidable(name, twin), wanted)
        assert torch.equal(run(model, call()), wanted)
    assert marks(twin) == before and marks(model) == before
    assert torch.equal(run(twin, call()), plain) and torch.equal(run(model, call()), plain)
    assert torch.equal(guidable(name, twin), wanted) and torch.equal(guidable(name, model), wanted)
    assert marks(twin) == before


@pytest.mark.parametrize("name", ["sd3", "unet"])
def test_a_copy_of_the_pipeline(name: str) -> None:
    pipe = pipes.make(name)
    plain = pipes.draw(pipe)
    with negative_guidance(pipe, VSF(3.5), "wheels"):
        wanted = pipes.draw(pipe)
        twin = copy.deepcopy(pipe)
        assert torch.equal(pipes.draw(twin), plain)
    assert torch.equal(pipes.draw(twin), plain)
    with negative_guidance(twin, VSF(3.5), "wheels"):
        assert torch.equal(pipes.draw(twin), wanted)


def test_a_copy_of_the_pipeline_under_its_own_guidance() -> None:
    pipe: Any = load_demo_pipeline()
    call: dict[str, Any] = {"num_inference_steps": 1, "max_sequence_length": 16, "output_type": "latent"}
    with negative_guidance(pipe, CFG(4.0), "wheels"):
        pipe("a red bike", **call)
        twin, shallow = copy.deepcopy(pipe), copy.copy(pipe)
    assert type(twin) is type(shallow) is type(pipe) and type(twin).__call__ is type(pipe).__call__


@pytest.mark.parametrize("name", ["sd3", "flux", "unet", "wan"])
def test_processors_saved_inside_and_set_again(name: str) -> None:
    """Inside and after the block, and one of them for all modules."""
    model: Any = SPECS[name].build(F32)
    call, before = make(name, dtype=F32), marks(model)
    plain, wanted = run(model, call()), guidable(name, model)
    with negative_guidance(model, VSF(3.5), negative_prompt_embeds=negatives(SPECS[name], 3)):
        mine = dict(model.attn_processors)
        one = next(iter(mine.values()))
        model.set_attn_processor(dict(mine))
        assert torch.equal(run(model, call()), wanted)
        if name != "flux":  # its blocks are of two kinds
            model.set_attn_processor(one)
            assert torch.equal(run(model, call()), wanted)
        model.set_attn_processor({k: type(p)() for k, p in mine.items()})
        assert torch.equal(run(model, call()), wanted)
        inner = dict(model.attn_processors)
    for processors in (mine, inner):
        model.set_attn_processor(dict(processors))
        assert marks(model) == before and torch.equal(run(model, call()), plain)
        assert torch.equal(guidable(name, model), wanted)
        assert not any("Guided" in type(p).__name__ for p in processors.values())


@pytest.mark.parametrize("name", ["sd3", "unet", "flux", "wan"])
def test_fused_inside_and_separated_after(name: str) -> None:
    model: Any = SPECS[name].build(F32)
    call = make(name, dtype=F32)
    plain, wanted = run(model, call()), guidable(name, model)
    with negative_guidance(model, VSF(3.5), negative_prompt_embeds=negatives(SPECS[name], 3)):
        run(model, call())
        model.fuse_qkv_projections()
        run(model, call())
    model.unfuse_qkv_projections()
    same(run(model, call()), plain, rounding(model))
    same(guidable(name, model), wanted, rounding(model))
    assert not any("Guided" in type(p).__name__ for p in model.attn_processors.values())


def test_an_adapter_taken_off_inside() -> None:
    """As `unload_ip_adapter` does: every other processor is made anew from its class."""
    pipe = pipes.make("unet")
    plain = pipes.draw(pipe)
    ip.load_unet(pipe.unet)
    pipe.unet.float()
    pipe.image_encoder = pipe.feature_extractor = None
    with negative_guidance(pipe, VSF(3.5), "wheels"):
        pipe.unload_ip_adapter()
        inside = pipes.draw(pipe)
    assert torch.equal(pipes.draw(pipe), plain)
    assert all(type(p) is AttnProcessor2_0 for p in pipe.unet.attn_processors.values())
    with negative_guidance(pipe, VSF(3.5), "wheels"):
        assert torch.equal(pipes.draw(pipe), inside)
    differs(inside, plain, rounding(pipe, passes=2))


def test_diffusers_finds_the_class_of_a_guided_processor() -> None:
    """Its registries go by the very class, and other code by `isinstance`."""
    model: Any = SPECS["sd3"].build(F32)
    kinds = {name: type(p) for name, p in model.attn_processors.items()}
    with negative_guidance(model, VSF(3.5), negative_prompt_embeds=negatives(SPECS["sd3"], 3)):
        guided = model.attn_processors
        assert {name: p.__class__ for name, p in guided.items()} == kinds
        assert all(isinstance(p, kinds[name]) for name, p in guided.items())
        run(model, make("sd3", dtype=F32)())


def test_a_processor_of_a_guided_model_on_another() -> None:
    a, b = SPECS["sd3"].build(F32), SPECS["sd3"].build(F32)
    call = make("sd3", dtype=F32)
    plain, wanted = run(a, call()), guidable("sd3", a)
    with negative_guidance(a, VSF(3.5), negative_prompt_embeds=negatives(SPECS["sd3"], 3)):
        b.set_attn_processor(dict(a.attn_processors))  # pyright: ignore
        assert torch.equal(run(a, call()), wanted) and torch.equal(run(b, call()), plain)
        assert torch.equal(guidable("sd3", b), wanted)
    assert torch.equal(run(b, call()), plain) and torch.equal(guidable("sd3", b), wanted)


@pytest.mark.parametrize("name", ["sd3", "unet", "wan-i2v"])
def test_a_model_compiled_inside_stays_compiled(name: str) -> None:
    torch._dynamo.reset()
    model: Any = SPECS[name].build(F32)
    call = make(name, dtype=F32)
    plain, wanted = run(model, call()), guidable(name, model)
    with negative_guidance(model, VSF(3.5), negative_prompt_embeds=negatives(SPECS[name], 3)):
        run(model, call())
        model.compile(backend="eager")
        mine = model._compiled_call_impl
        same(run(model, call()), wanted, rounding(model))
        wrapped = torch.compile(model, backend="eager")
        same(run(wrapped, call()), wanted, rounding(model))
    assert model._compiled_call_impl is mine
    same(run(model, call()), plain, rounding(model))
    same(run(wrapped, call()), plain, rounding(model))
    torch._dynamo.reset()


def test_a_model_compiled_anew_inside_is_told_of() -> None:
    torch._dynamo.reset()
    model: Any = SPECS["sd3"].build(F32)
    model.compile(backend="eager")
    with pytest.warns(NothingGuided, match="SD3Transformer2DModel was compiled anew inside the block"):  # noqa: SIM117
        with negative_guidance(model, VSF(3.5), negative_prompt_embeds=negatives(SPECS["sd3"], 3)):
            run(model, make("sd3", dtype=F32)())
            model.compile(backend="eager")
            mine = model._compiled_call_impl
            run(model, make("sd3", dtype=F32)())
    assert model._compiled_call_impl is mine
    torch._dynamo.reset()


def test_a_wrapper_put_on_or_taken_off_inside() -> None:
    torch._dynamo.reset()
    pipe = pipes.make("sd3")
    stock, plain, bound = pipe.transformer, pipes.draw(pipe), rounding(pipe, passes=2)
    compiled = torch.compile(stock, backend="eager")
    with negative_guidance(pipe, VSF(3.5), "wheels"):
        wanted = pipes.draw(pipe)
        pipe.transformer = compiled
        same(pipes.draw(pipe), wanted, bound)
    with pytest.warns(NothingGuided, match="transformer was exchanged inside the block"):  # noqa: SIM117
        with negative_guidance(pipe, VSF(3.5), "wheels"):
            same(pipes.draw(pipe), wanted, bound)
            pipe.transformer = stock
            same(pipes.draw(pipe), plain, bound)
    torch._dynamo.reset()


# -- image-to-video Wan, whose negative joins at the inputs of the projections ------------------------------------------


@pytest.mark.parametrize("act", ["load", "unload", "fuse", "unfuse"])
@pytest.mark.parametrize("name", ["wan-i2v", "skyreels-i2v", "chronoedit"])
def test_projections_exchanged_inside(name: str, act: str) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)

    def lora(model: Any) -> None:
        torch.manual_seed(3)
        model.add_adapter(config)
        model.requires_grad_(False)

    before: dict[str, Callable[[Any], None]] = {"unload": lora, "unfuse": lambda model: model.fuse_qkv_projections()}
    inside: dict[str, Callable[[Any], None]] = {
        "load": lora,
        "unload": lambda model: model.unload_lora(),
        "fuse": lambda model: model.fuse_qkv_projections(),
        "unfuse": lambda model: model.unfuse_qkv_projections(),
    }
    call, given = make(name, dtype=F32), negatives(SPECS[name], 3)
    model, other = SPECS[name].build(F32), SPECS[name].build(F32)
    for m in (model, other):
        before.get(act, lambda _: None)(m)
    inside[act](other)
    plain, wanted = run(other, call()), run_guided(other, call(), VSF(3.5), given)
    differs(plain, wanted, rounding(model))
    with negative_guidance(model, VSF(3.5), negative_prompt_embeds=given):
        run(model, call())
        inside[act](model)
        same(run(model, call()), wanted, rounding(model))
    same(run(model, call()), plain, rounding(model))
    assert marks(model) == marks(other)


def test_a_pass_whose_attention_is_not_guided_is_an_error() -> None:
    """Also after one that was."""
    spec = SPECS["sd3"]
    model: Any = spec.build(F32)
    with pytest.raises(RuntimeError, match="none of its attention was guided"):  # noqa: SIM117
        with negative_guidance(model, VSF(3.5), negative_prompt_embeds=negatives(spec, 3)):
            run(model, make("sd3", dtype=F32)())
            for block in model.transformer_blocks:
                attention = block.attn
                block.attn = Around(attention)
            run(model, make("sd3", dtype=F32)())


class Around(nn.Module):
    """Attention with a processor of its own, put into the place of another inside a block."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = copy.deepcopy(attention)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.attention(*args, **kwargs)


def test_fused_processors_are_told_by_their_class() -> None:
    model: Any = SPECS["sd3"].build(F32)
    with negative_guidance(model, VSF(3.5), negative_prompt_embeds=negatives(SPECS["sd3"], 3)):
        run(model, make("sd3", dtype=F32)())
        model.fuse_qkv_projections()
        run(model, make("sd3", dtype=F32)())
    assert all(type(p) is FusedJointAttnProcessor2_0 for p in model.attn_processors.values())
    assert find_models(model)
