"""Features of diffusers together with each other, under guidance: the most that people switch on at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import specs
import test_composition as single
from closeness import close, differs, rounding, same
from composition import SPECS, adapters, guided
from definition import dense
from test_caches import CACHES, Cached
from test_contract import fingerprint, negatives, run

F32 = torch.float32
ao = pytest.importorskip("torchao.quantization")
peft = pytest.importorskip("peft")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def lora(model: Any, name: str) -> None:
    torch.manual_seed(3)
    targets = single.PROJECTIONS[name]
    model.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False))
    model.requires_grad_(False)


def ip_adapter(model: Any, name: str) -> None:
    if name == "unet":
        adapters.load_unet(model)
    else:
        (adapters.load_flux if name == "flux" else adapters.load_sd3)(model, 4)
    model.float()


def layerwise(model: Any, _: str) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=F32)


FEATURES: dict[str, Callable[[Any, str], Any]] = {
    "lora": lora,
    "ip-adapter": ip_adapter,
    "int8": lambda model, _: ao.quantize_(model, ao.Int8WeightOnlyConfig()),
    "fused": lambda model, _: model.fuse_qkv_projections(),
    "offload": lambda model, _: single.OFFLOAD["leaf"](model),
    "sequential": lambda model, _: single.OFFLOAD["sequential"](model),
    "backend": lambda model, _: model.set_attention_backend("_native_math"),
    "layerwise": layerwise,
    "compile": lambda model, _: model.compile(backend="eager"),  # Dynamo is what could go wrong
}


def build(name: str, features: list[str], short: bool = False) -> tuple[Any, Callable[[], dict[str, Any]]]:
    model: Any = SPECS[name].build(F32)
    if short:
        specs.shorten(model)
    for feature in features:
        FEATURES[feature](model, name)

    def call() -> dict[str, Any]:
        given = SPECS[name].inputs(2, 5, F32)
        if "ip-adapter" in features:
            g = torch.Generator().manual_seed(4)
            image = torch.randn(2, 3 if name == "sd3" else 1, adapters.IMAGE, generator=g)
            if name == "unet":
                given["added_cond_kwargs"] = {"image_embeds": [image]}
            else:
                kwargs = {"ip_adapter_image_embeds": image if name == "sd3" else [image]}
                given["joint_attention_kwargs"] = kwargs
        return given

    return model, call


TOGETHER = [
    ("sd3", "lora int8 offload"),
    ("sd3", "ip-adapter lora sequential"),
    ("flux", "lora int8 layerwise"),
    ("flux", "ip-adapter fused offload backend"),
    ("unet", "ip-adapter lora offload"),
    ("unet", "fused int8 sequential"),
    ("wan", "lora int8 offload"),
    ("wan", "fused layerwise backend"),
]
#: Compiled before what makes the graph break inside the attention processors, and after.
COMPILED = [
    ("sd3", "compile offload"),
    ("wan", "lora int8 offload compile"),
]


def holds(name: str, model: Any, call: Callable[[], dict[str, Any]], wanted: Callable[[Any], Tensor]) -> None:
    given: list[Tensor | None] = list(negatives(SPECS[name], 3, 4))
    before, plain, bound = fingerprint(model), run(model, call()), rounding(model)
    out = guided(model, call, given)
    close(out, wanted(given), plain, bound)
    mixed = guided(model, call, [given[0], None])
    same(mixed[:1], out[:1], bound)
    same(mixed[1:], plain[1:], bound)
    assert torch.equal(guided(model, call, [None]), plain)
    assert torch.equal(run(model, call()), plain) and fingerprint(model) == before


@pytest.mark.parametrize(("name", "features"), TOGETHER)
def test_features_together_equal_the_definition(name: str, features: str) -> None:
    model, call = build(name, features.split())

    def defined(given: Any) -> Tensor:
        with dense():
            return guided(model, call, given)

    holds(name, model, call, defined)


@pytest.mark.parametrize(("name", "features"), COMPILED)
def test_a_graph_that_breaks_in_the_middle_equals_the_model_not_compiled(name: str, features: str) -> None:
    """Offloading hooks break the graph inside the processors, which then are frames of their own to Dynamo."""
    model, call = build(name, features.split(), short=True)
    eager, _ = build(name, [f for f in features.split() if f != "compile"], short=True)
    holds(name, model, call, lambda given: guided(eager, call, given))


@pytest.mark.parametrize(("name", "cache"), [("flux", "first-block"), ("sd3", "pyramid"), ("wan", "magnitude")])
def test_a_cached_offloaded_model_with_an_adapter(name: str, cache: str) -> None:
    (negative,) = negatives(SPECS[name], 3)

    def built(cached: bool = True) -> Cached:
        made = Cached(name, None)
        lora(made.model, name)
        made.model.double()
        if cached:
            CACHES[cache](made.model, made.clock)
        FEATURES["offload"](made.model, name)
        return made

    used = built()
    out, plain = used.guided(negative), used.plain()
    bound = rounding(used.model, torch.float64, 2)
    differs(out[-1], built(False).guided(negative)[-1], bound)  # the cache was used
    with dense():
        for got, wanted, unguided in zip(out, built().guided(negative), plain, strict=True):
            close(got, wanted, unguided, bound)
    assert all(torch.equal(a, b) for a, b in zip(plain, built().plain(), strict=True))
