"""Guidance beside everything else that diffusers can do with a model; see docs/composition.md."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, FluxPipeline
from diffusers.hooks import apply_first_block_cache, apply_group_offloading
from diffusers.models import attention_dispatch
from torch import Tensor

import tiny_pipelines as tiny
import vsf.current
import vsf.seam
from closeness import close, differs, follows_stock, rounding, same
from composition import METHOD, SPECS, Make, guided, holds, make, pipes
from composition import adapters as ip
from definition import dense
from test_contract import fingerprint, negatives, run, run_guided
from vsf import NAG, VSF, negative_guidance

F32, F64 = torch.float32, torch.float64
JOINT_AND_CROSS = ["sd3", "flux", "unet", "wan"]


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd3", "unet"])
def test_batches_and_images_per_prompt(name: str) -> None:
    pipe = pipes.make(name)
    prompts, seeds, given = ["a red bicycle", "a blue cup on the table"], (1, 2, 3, 4), ["wheels, chain", None]
    plain = pipes.draw(pipe, prompts, seeds, num_images_per_prompt=2)
    with negative_guidance(pipe, METHOD, given):
        together = pipes.draw(pipe, prompts, seeds, num_images_per_prompt=2)
    alone = []
    for i, seed in enumerate(seeds):
        with negative_guidance(pipe, METHOD, [given[i // 2]]):
            alone.append(pipes.draw(pipe, prompts[i // 2], (seed,)))
    bound = rounding(pipe, passes=2)
    close(together, torch.cat(alone), plain, bound)
    same(together[2:], plain[2:], bound)
    differs(together[:2], plain[:2], bound)
    with negative_guidance(pipe, METHOD, ["wheels", "chain", None, "cup"]):  # one per sample
        each = pipes.draw(pipe, prompts, seeds, num_images_per_prompt=2)
    for i, negative in enumerate(["wheels", "chain", None, "cup"]):
        with negative_guidance(pipe, METHOD, [negative]):
            same(each[i : i + 1], pipes.draw(pipe, prompts[i // 2], (seeds[i],)), bound)
    assert torch.equal(pipes.draw(pipe, prompts, seeds, num_images_per_prompt=2), plain)


@pytest.mark.parametrize("name", ["sd3", "unet"])
def test_prompt_embeds(name: str) -> None:
    pipe = pipes.make(name)
    plain = pipes.draw(pipe)
    with torch.no_grad():
        if name == "sd3":
            text = pipe.encode_prompt(
                "a red bicycle", None, None, do_classifier_free_guidance=False, max_sequence_length=16
            )
            given = {"prompt_embeds": text[0], "pooled_prompt_embeds": text[2]}
        else:
            given = {"prompt_embeds": pipe.encode_prompt("a red bicycle", "cpu", 1, False)[0]}
    with negative_guidance(pipe, METHOD, "wheels, chain"):
        by_text, by_embeds = pipes.draw(pipe), pipes.draw(pipe, None, **given)
    bound = rounding(pipe, passes=2)
    follows_stock(by_embeds, by_text, pipes.draw(pipe, None, **given), plain, bound)
    differs(by_text, plain, bound)


# -- adapters ---------------------------------------------------------------------------------------------------------

PROJECTIONS = {
    "sd3": ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_out.0", "ff.net.2"],
    "flux": ["to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "proj_mlp"],
    "unet": ["to_q", "to_k", "to_v", "to_out.0"],
    "wan": ["to_q", "to_k", "to_v", "to_out.0"],
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", JOINT_AND_CROSS)
def test_lora_equals_the_fused_weights(name: str, inside: bool) -> None:
    peft = pytest.importorskip("peft")
    model, call, given = SPECS[name].build(F64), make(name), negatives(SPECS[name], 3, 4)
    plain, without = run(model, call()), guided(model, call, given)
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=PROJECTIONS[name], init_lora_weights=False)

    def load() -> None:
        torch.manual_seed(3)
        model.add_adapter(config)
        model.double().requires_grad_(False)

    if inside:
        with negative_guidance(model, METHOD, negative_prompt_embeds=given):
            load()
            out = run(model, call())
    else:
        load()
        out = holds(name, model, call)
    bound = rounding(model, F64)
    differs(out, without, bound)
    model.fuse_lora()
    same(guided(model, call, given), out, bound)
    model.unfuse_lora()
    model.disable_adapters()
    same(run(model, call()), plain, bound)


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_unet_ip_adapter_equals_its_definition(tokens: int) -> None:
    """Also with as many text tokens, positive (1) and negative (3), as the adapter has image tokens (4)."""
    unet: Any = SPECS["unet"].build(F64)
    ip.load_unet(unet)
    g = torch.Generator().manual_seed(4)
    image = torch.randn(1, 1, ip.IMAGE, generator=g).double()
    call = lambda: make("unet", 1, tokens)() | {"added_cond_kwargs": {"image_embeds": [image]}}  # noqa: E731
    (negative,) = negatives(SPECS["unet"], 3)
    plain, before = run(unet, call()), fingerprint(unet)
    out = guided(unet, call, [negative])
    assert torch.equal(guided(unet, call, [None]), plain) and fingerprint(unet) == before
    assert torch.equal(run(unet, call()), plain)
    own = dict(unet.attn_processors)
    unet.set_attn_processor(
        {n: ip.IPDefinition(negative, METHOD.settings(), p) if ".attn2." in n else p for n, p in own.items()}
    )
    close(out, run(unet, call()), plain, rounding(unet, F64))


def test_ip_adapter_scale_set_inside_stays() -> None:
    unet: Any = SPECS["unet"].build(F64)
    ip.load_unet(unet)
    call = lambda: make("unet")() | {"added_cond_kwargs": {"image_embeds": [torch.ones(2, 1, ip.IMAGE).double()]}}  # noqa: E731
    with negative_guidance(unet, METHOD, negative_prompt_embeds=negatives(SPECS["unet"], 3)):
        strong = run(unet, call())
        for processor in unet.attn_processors.values():
            if hasattr(processor, "scale"):
                processor.scale = [0.0]
        weak = run(unet, call())
    differs(weak, strong, rounding(unet, F64))
    assert all(p.scale == [0.0] for p in unet.attn_processors.values() if hasattr(p, "scale"))


@pytest.mark.parametrize("tokens", [4, 16])
@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_joint_ip_adapter(name: str, tokens: int) -> None:
    """With Flux also as many image-prompt tokens as image tokens (16): equal keys and queries, as in joint attention."""
    torch.manual_seed(0)
    model: Any = SPECS[name].build(F64)
    without = guided(model, make(name), negatives(SPECS[name], 3, 4))
    (ip.load_flux if name == "flux" else ip.load_sd3)(model, tokens)
    image = torch.randn(2, 1, ip.IMAGE).double() if name == "flux" else torch.randn(2, 3, ip.IMAGE).double()
    given: Any = [image] if name == "flux" else image
    out = holds(name, model, lambda: make(name)() | {"joint_attention_kwargs": {"ip_adapter_image_embeds": given}})
    differs(out, without, rounding(model, F64))


@pytest.mark.parametrize("name", ["sd3", "unet"])
def test_controlnet_sees_the_prompt_alone(name: str) -> None:
    pipe = pipes.make(name, control=True)
    control = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    image = {"control_image": control} if name == "sd3" else {"image": control}
    seen: list[Tensor] = []
    residuals: list[Any] = []
    pipe.controlnet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    pipe.controlnet.register_forward_hook(lambda module, args, output: residuals.append(output))

    def draw(**kwargs: Any) -> Tensor:
        torch.manual_seed(0)  # the SD3 pipeline draws the control image's latents from here
        return pipes.draw(pipe, **image, **kwargs)

    plain = draw()
    n = len(seen)
    bound = rounding(pipe, passes=2)
    differs(plain, draw(controlnet_conditioning_scale=0.0), bound)
    del seen[n:], residuals[n:]
    with negative_guidance(pipe, METHOD, "wheels, chain"):
        out = draw()
    assert len(seen) == 2 * n and all(torch.equal(a, b) for a, b in zip(seen[:n], seen[n:], strict=True))
    # The first step's input is the same, so the control net's residuals are, bit for bit.
    first, again = (
        [t for part in residuals[i] for t in (part if isinstance(part, (list, tuple)) else [part])] for i in (0, n)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with dense(), negative_guidance(pipe, METHOD, "wheels, chain"):
        close(out, draw(), plain, bound)
    with negative_guidance(pipe, METHOD, ""):
        assert torch.equal(draw(), plain)
    assert torch.equal(draw(), plain)


def _residuals(name: str, batch: int = 2) -> dict[str, Any]:
    g = torch.Generator().manual_seed(6)

    def noise(*shapes: tuple[int, ...]) -> list[Tensor]:
        return [torch.randn(batch, *shape, generator=g).double() for shape in shapes]

    if name == "flux":
        image = (16, 32)
        return {
            "controlnet_block_samples": noise(image, image),
            "controlnet_single_block_samples": noise(image, image),
        }
    if name == "sd3":
        return {"block_controlnet_hidden_states": noise((16, 32), (16, 32))}
    down = noise((16, 8, 8), (16, 8, 8), (16, 4, 4), (32, 4, 4))
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": noise((32, 4, 4))[0]}


@pytest.mark.parametrize("name", ["flux", "sd3", "unet"])
def test_controlnet_residuals(name: str) -> None:
    model = SPECS[name].build(F64)
    without = guided(model, make(name), [*negatives(SPECS[name], 3, 4)])
    out = holds(name, model, lambda: make(name)() | _residuals(name))
    differs(out, without, rounding(model, F64))


# -- where and how the layers run -------------------------------------------------------------------------------------


def _sequential(model: Any) -> Any:
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device=torch.device("cpu"))


def _whole(model: Any) -> Any:
    from accelerate import cpu_offload_with_hook

    return cpu_offload_with_hook(model, "cpu")[0]


def _group(level: str) -> Callable[[Any], Any]:
    def install(model: Any) -> None:
        cpu = torch.device("cpu")
        blocks: dict[str, Any] = {"num_blocks_per_group": 1} if level == "block_level" else {}
        apply_group_offloading(model, onload_device=cpu, offload_device=cpu, offload_type=level, **blocks)

    return install


OFFLOAD = {"sequential": _sequential, "model": _whole, "leaf": _group("leaf_level"), "block": _group("block_level")}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("how", list(OFFLOAD))
@pytest.mark.parametrize("name", ["sd3", "unet", "wan-i2v"])
def test_offloading_changes_nothing(name: str, how: str, inside: bool) -> None:
    model, call, given = SPECS[name].build(F32), make(name, dtype=F32), negatives(SPECS[name], 3, 4)
    plain, wanted, got = run(model, call()), guided(model, call, given), []
    if inside:
        with negative_guidance(model, METHOD, negative_prompt_embeds=given):
            OFFLOAD[how](model)
            got.append(run(model, call()))
    else:
        OFFLOAD[how](model)
    got.append(guided(model, call, given))
    off = run(model, call())
    for out in got:
        follows_stock(out, wanted, off, plain, rounding(model))
    assert torch.equal(guided(model, call, [None]), off)


def test_the_knobs_follow_the_attention_to_its_device() -> None:
    model, call = SPECS["sd3"].build(F32), make("sd3", dtype=F32)
    frames: list[Any] = []
    model.register_forward_hook(lambda *_: frames.append(vsf.current.current_plan(id(model)).frame))
    guided(model, call, [*negatives(SPECS["sd3"], 3, 4)])
    there = frames[0].on(torch.device("meta"))
    assert frames[0].on(torch.device("cpu")) is frames[0]
    assert {t.device.type for t in (*there.knob.values(), there.neg_bias)} == {"meta"}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", JOINT_AND_CROSS)
def test_fused_projections_equal_separate_ones(name: str, inside: bool) -> None:
    model: Any = SPECS[name].build(F64)
    call, given = make(name), negatives(SPECS[name], 3, 4)
    if name == "sd3":  # diffusers' fused processor leaves out the norms of queries and keys, so compare without them
        for block in model.transformer_blocks:
            block.attn.norm_q = block.attn.norm_k = block.attn.norm_added_q = block.attn.norm_added_k = None
    plain, separate = run(model, call()), guided(model, call, given)
    if inside:
        with negative_guidance(model, METHOD, negative_prompt_embeds=given):
            model.fuse_qkv_projections()
            same(run(model, call()), separate, rounding(model, F64))
        kinds = {type(p).__name__ for p in model.attn_processors.values()}
        assert not any("Guided" in kind for kind in kinds)
        assert name not in ("sd3", "unet") or any("Fused" in kind for kind in kinds)  # what was set inside stays
    else:
        model.fuse_qkv_projections()
    same(holds(name, model, call), separate, rounding(model, F64))
    same(run(model, call()), plain, rounding(model, F64))


# -- step caches ------------------------------------------------------------------------------------------------------


def _with_cache(name: str) -> Any:
    model: Any = SPECS[name].build(F64)
    apply_first_block_cache(model, FirstBlockCacheConfig(threshold=1e9))  # skips whenever it may
    return model


def _steps(model: Any, name: str, *numbers: int) -> list[Tensor]:
    out = []
    for number in numbers:
        call = make(name)()
        call["hidden_states"] = call["hidden_states"] * (1 + 0.1 * number)
        with model.cache_context("cond") if hasattr(model, "cache_context") else nullcontext():
            out.append(run(model, call))
    return out


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_first_block_cache_is_used_and_does_not_outlive_its_guidance(name: str) -> None:
    one, other = negatives(SPECS[name], 3, 6)
    fresh = _steps(_with_cache(name), name, 0, 1)

    def steps(model: Any, negative: Tensor, *numbers: int) -> list[Tensor]:
        with negative_guidance(model, METHOD, negative_prompt_embeds=[negative]):
            return _steps(model, name, *numbers)

    wanted = {n: steps(_with_cache(name), n, 0, 1) for n in (one, other)}
    exact = [
        guided(
            SPECS[name].build(F64),
            lambda: make(name)() | {"hidden_states": make(name)()["hidden_states"] * 1.1},
            [one],
        )
    ]
    model = _with_cache(name)
    bound = rounding(model, F64)
    differs(wanted[one][1], exact[0], bound)  # or the cache was not used
    with dense():
        for a, b, c in zip(steps(_with_cache(name), one, 0, 1), wanted[one], fresh, strict=True):
            close(b, a, c, bound)
    for _ in range(2):  # no reset by hand anywhere: another negative, another length, none, and nested
        for negative in (one, other, negatives(SPECS[name], 3, seed=9)[0]):
            again = wanted.get(negative) or steps(_with_cache(name), negative, 0, 1)
            assert all(torch.equal(a, b) for a, b in zip(steps(model, negative, 0, 1), again, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(_steps(model, name, 0, 1), fresh, strict=True))
        with negative_guidance(model, METHOD, negative_prompt_embeds=[one]):
            assert torch.equal(_steps(model, name, 0)[0], wanted[one][0])
            assert all(torch.equal(a, b) for a, b in zip(steps(model, other, 0, 1), wanted[other], strict=True))
            assert all(torch.equal(a, b) for a, b in zip(_steps(model, name, 0, 1), wanted[one], strict=True))
        with negative_guidance(model, METHOD, negative_prompt_embeds=[None]):
            assert all(torch.equal(a, b) for a, b in zip(_steps(model, name, 0, 1), fresh, strict=True))


def test_first_block_cache_over_a_run_that_is_guided_in_part() -> None:
    """The text gets shorter where guidance stops: the cache starts anew there, in its own cache_context()."""
    pipe = FluxPipeline(
        tiny.scheduler(), tiny.vae(), tiny.clip(), tiny.tokenizer("clip"), tiny.t5(), tiny.tokenizer("t5"),
        SPECS["flux"].build(F32),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)

    def draw(**kwargs: Any) -> Tensor:
        return pipes.draw(pipe, num_inference_steps=6, **kwargs)

    single: list[int] = []
    pipe.transformer.single_transformer_blocks[0].attn.register_forward_pre_hook(lambda *_: single.append(1))
    exact = draw()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    del single[:]
    plain = draw()
    bound = rounding(pipe, passes=6)
    assert len(single) == 1  # the first step alone runs all blocks
    differs(plain, exact, bound)
    del single[:]
    with negative_guidance(pipe, VSF(3.5, start=0.3, stop=0.7), "wheels, chain"):
        out = draw()
    assert len(single) == 3 and bool(out.isfinite().all())
    differs(out, plain, bound)
    assert torch.equal(draw(), plain)


# -- quantised layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JOINT_AND_CROSS)
def test_int8_weights_equal_the_same_weights_dequantised(name: str) -> None:
    ao = pytest.importorskip("torchao.quantization")
    model, call, given = SPECS[name].build(F32), make(name, dtype=F32), negatives(SPECS[name], 3, 4)
    before = guided(model, call, given)
    ao.quantize_(model, ao.Int8WeightOnlyConfig())
    plain = run(model, call())
    quantised = guided(model, call, given)
    assert torch.equal(guided(model, call, [None]), plain) and torch.equal(run(model, call()), plain)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and hasattr(module.weight, "dequantize"):
            module.weight = torch.nn.Parameter(module.weight.dequantize(), requires_grad=False)
    close(quantised, guided(model, call, given), plain, rounding(model))
    differs(quantised, before, rounding(model))


# -- attention backends -----------------------------------------------------------------------------------------------

BACKENDED = ["flux", "wan", "qwen-mask"]


@pytest.mark.parametrize("by_context", [False, True])
@pytest.mark.parametrize("backend", ["native", "_native_math", "flex"])
@pytest.mark.parametrize("name", BACKENDED)
def test_chosen_backend_gives_the_same(name: str, backend: str, by_context: bool) -> None:
    model, call, given = SPECS[name].build(F32), make(name, dtype=F32), negatives(SPECS[name], 3, 4)
    plain = run(model, call())
    wanted = guided(model, call, given)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        if by_context:
            with attention_dispatch.attention_backend(backend):
                out, off = guided(model, call, given), run(model, call())
                assert torch.equal(guided(model, call, [None]), off)
        else:
            model.set_attention_backend(backend)
            out, off = guided(model, call, given), run(model, call())
            assert torch.equal(guided(model, call, [None]), off)
    close(out, wanted, plain, rounding(model))


class Recorder:
    """Stands for flash or sage attention: takes no mask, and writes down what it was asked."""

    def __init__(self, lse: str) -> None:
        self.lse, self.calls = lse, []

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, scale: Any = None,
        return_lse: bool = False, _parallel_config: Any = None,
    ) -> Any:  # fmt: skip
        assert attn_mask is None, "flash attention takes no mask"
        self.calls.append((query.shape[1], key.shape[1], return_lse))
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        scores = q.double() @ k.double().transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
        out = (scores.softmax(-1) @ v.double()).to(q.dtype).transpose(1, 2)
        if not return_lse:
            return out
        assert self.lse, "asked for a log-sum-exp that it has not"
        lse = scores.logsumexp(-1).float()
        return out, lse.transpose(1, 2) if self.lse == "bsh" else lse


@pytest.mark.parametrize(
    ("backend", "lse"), [("flash", "bhs"), ("sage", "bhs"), ("_flash_3", "bsh"), ("sage_varlen", ""), ("xformers", "")]
)
@pytest.mark.parametrize("method", [VSF(3.5, 0.1), VSF(3.0, layout="upstream"), NAG(4.0)], ids=repr)
@pytest.mark.parametrize("name", ["flux", "wan"])
def test_the_users_kernel_does_the_unguided_call(
    name: str, method: Any, backend: str, lse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, registry = Recorder(lse), attention_dispatch._AttentionBackendRegistry
    member = attention_dispatch.AttentionBackendName(backend)
    names = {"query", "key", "value", "attn_mask", "scale", "return_lse", "_parallel_config"}
    monkeypatch.setitem(registry._backends, member, kernel)
    monkeypatch.setitem(registry._supported_arg_names, member, names)
    model, call, given = SPECS[name].build(F32), make(name, dtype=F32), negatives(SPECS[name], 3)
    plain, wanted = run(model, call()), run_guided(model, call(), method, given)
    for processor in model.attn_processors.values():
        processor._attention_backend = member
    off = run(model, call())
    n = len(kernel.calls)
    out = run_guided(model, call(), method, given)
    close(out, wanted, plain, rounding(model))
    guided_calls = kernel.calls[n:]
    if isinstance(method, VSF) and method.layout == "paper":  # the very same calls, with the same queries and keys
        assert [c[:2] for c in guided_calls] == [c[:2] for c in kernel.calls[:n]]
    else:  # upstream's copy of the negative makes them longer, NAG has a second branch
        assert len(guided_calls) >= n
    assert any(c[2] for c in guided_calls) == bool(lse)
    assert torch.equal(run(model, call()), off)


def test_a_mask_of_ours_is_never_given_to_the_users_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ragged batch with the upstream layout needs a bias on the prompt's keys, which the model itself has not."""
    kernel, registry = Recorder("bhs"), attention_dispatch._AttentionBackendRegistry
    member = attention_dispatch.AttentionBackendName("flash")
    monkeypatch.setitem(registry._backends, member, kernel)
    monkeypatch.setitem(
        registry._supported_arg_names, member, {"query", "key", "value", "attn_mask", "scale", "return_lse"}
    )
    model, call, given = SPECS["flux"].build(F32), make("flux", dtype=F32), negatives(SPECS["flux"], 3, 4)
    wanted = run_guided(model, call(), VSF(3.0, layout="upstream"), given)
    registry.set_active_backend(member)
    same(run_guided(model, call(), VSF(3.0, layout="upstream"), given), wanted, rounding(model))


def test_backend_set_inside_stays() -> None:
    model, call, given = SPECS["flux"].build(F32), make("flux", dtype=F32), negatives(SPECS["flux"], 3, 4)
    wanted = guided(model, call, given)
    with negative_guidance(model, METHOD, negative_prompt_embeds=given):
        model.set_attention_backend("_native_math")
        same(run(model, call()), wanted, rounding(model))
    assert all(p._attention_backend.value == "_native_math" for p in model.attn_processors.values())


# -- threads and nesting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_threads_with_different_negatives_and_none(name: str) -> None:
    model, call = SPECS[name].build(F32), make(name, dtype=F32)
    given: list[Any] = [None, *negatives(SPECS[name], 3, 6)]
    wanted = [run(model, call()) if n is None else guided(model, call, [n]) for n in given]
    start, wrong = threading.Barrier(len(given)), []

    def work(i: int) -> None:
        start.wait()
        for _ in range(10):
            out = run(model, call()) if given[i] is None else guided(model, call, [given[i]])
            if not torch.equal(out, wanted[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(given))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert torch.equal(run(model, call()), wanted[0])


def test_contexts_on_a_joint_and_a_cross_model_nest_in_any_order() -> None:
    parts = [(n, SPECS[n].build(F32), make(n, dtype=F32), negatives(SPECS[n], 3)) for n in ("flux", "wan")]
    plain = [run(m, c()) for _, m, c, _ in parts]
    wanted = [guided(m, c, g) for _, m, c, g in parts]
    for order in ((0, 1), (1, 0)):
        (_, m0, c0, g0), (_, m1, c1, g1) = (parts[i] for i in order)
        with negative_guidance(m0, METHOD, negative_prompt_embeds=g0):
            assert torch.equal(run(m1, c1()), plain[order[1]])
            with negative_guidance(m1, METHOD, negative_prompt_embeds=g1):
                assert torch.equal(run(m0, c0()), wanted[order[0]]) and torch.equal(run(m1, c1()), wanted[order[1]])
            assert torch.equal(run(m1, c1()), plain[order[1]])
    for (_, model, call, _), before in zip(parts, plain, strict=True):
        assert torch.equal(run(model, call()), before)


# -- refused ----------------------------------------------------------------------------------------------------------


def _refused(
    model: Any, call: Make, name: str, says: str, spoil: Callable[[], Any], restore: Callable[[], Any]
) -> None:
    """Both when it is there before the context and when it comes inside; the model stays as it was."""
    given, plain = negatives(SPECS[name], 3), run(model, call())
    spoil()
    with pytest.raises(ValueError, match=says):
        guided(model, call, given)
    restore()
    before = fingerprint(model)  # not earlier: the feature itself may leave something behind
    with pytest.raises(ValueError, match=says), negative_guidance(model, METHOD, negative_prompt_embeds=given):
        spoil()
        run(model, call())
    restore()
    assert fingerprint(model) == before
    assert torch.equal(run(model, call()), plain)


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_context_parallel_is_refused_on_joint_models(name: str) -> None:
    from diffusers import ContextParallelConfig
    from diffusers.models._modeling_parallel import ParallelConfig

    model: Any = SPECS[name].build(F32)
    config = ParallelConfig(context_parallel_config=ContextParallelConfig(ring_degree=2))
    _refused(
        model, make(name, dtype=F32), name, "context parallelism is on|has context parallelism",
        lambda: setattr(model, "_parallel_config", config), lambda: delattr(model, "_parallel_config"),
    )  # fmt: skip


def test_context_parallel_attention_is_refused_where_it_is_called() -> None:
    model: Any = SPECS["flux"].build(F32)

    def set_all(value: Any) -> None:
        for processor in model.attn_processors.values():
            processor._parallel_config = value

    with negative_guidance(model, METHOD, negative_prompt_embeds=negatives(SPECS["flux"], 3)):
        set_all(object())
        with pytest.raises(ValueError, match="enable_parallelism"):
            run(model, make("flux", dtype=F32)())
        set_all(None)
        run(model, make("flux", dtype=F32)())


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_text_kv_cache_is_refused(name: str) -> None:
    from diffusers import TextKVCacheConfig
    from diffusers.hooks import HookRegistry, apply_text_kv_cache

    model: Any = SPECS[name].build(F32)
    HookRegistry.check_if_exists_or_initialize(model)
    _refused(
        model, make(name, dtype=F32), name, "TextKVCache",
        lambda: apply_text_kv_cache(model, TextKVCacheConfig()),
        lambda: model._diffusers_hook.remove_hook("text_kv_cache_transformer", recurse=False),
    )  # fmt: skip


@pytest.mark.parametrize("set_up", ["enable_attention_slicing", "set_default_attn_processor"])
def test_processors_that_cannot_be_guided_are_named(set_up: str) -> None:
    from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor

    model, call = SPECS["unet"].build(F32), make("unet", dtype=F32)
    model.set_attn_processor(SlicedAttnProcessor(1) if set_up == "enable_attention_slicing" else AttnProcessor())
    plain, before = run(model, call()), fingerprint(model)
    with pytest.raises(TypeError, match="AttnProcessor.*default attention processor"):
        guided(model, call, negatives(SPECS["unet"], 3))
    assert fingerprint(model) == before and torch.equal(run(model, call()), plain)


@pytest.mark.parametrize("name", ["sd3", "unet"])
def test_real_guidance_on_top_is_refused(name: str) -> None:
    pipe = pipes.make(name)
    plain = pipes.draw(pipe)
    with pytest.raises(ValueError, match="classifier-free"), negative_guidance(pipe, METHOD, "wheels"):
        pipes.draw(pipe, guidance_scale=4.0)
    assert torch.equal(pipes.draw(pipe), plain)


def test_the_page_names_tests_that_exist() -> None:
    here = Path(__file__).parent
    named = set(re.findall(r"`(test_\w+)`", (here.parent / "docs" / "composition.md").read_text("utf-8")))
    there = {name for path in here.rglob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))}
    assert len(named) > 20 and named <= there


@pytest.mark.parametrize("name", ["sd3", "flux", "unet", "wan"])
def test_inference_mode_changes_nothing(name: str) -> None:
    """As servers run models; also a block that sees it only in the middle."""
    model: Any = SPECS[name].build(F32)
    call, given = make(name, dtype=F32), negatives(SPECS[name], 3)
    wanted, plain = guided(model, call, given), run(model, call())
    with torch.inference_mode():
        assert torch.equal(guided(model, call, given), wanted)
    with negative_guidance(model, METHOD, negative_prompt_embeds=given):
        with torch.inference_mode():
            assert torch.equal(run(model, call()), wanted)
        assert torch.equal(run(model, call()), wanted)
    assert torch.equal(run(model, call()), plain) and not torch.equal(plain, wanted)
