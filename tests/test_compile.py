"""`torch.compile`: one graph, and neither another prompt of any length nor strength or offset makes a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

import specs
from closeness import rounding, same
from test_contract import negatives, run, run_guided
from vsf import NAG, NASA, VSF, Guidance, negative_guidance

SPECS = specs.load()


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def compiled(model: Any, in_place: bool = False) -> tuple[Any, list[int]]:
    """The model compiled to one graph each time, and a list that gets longer with every graph."""
    graphs: list[int] = []

    def backend(graph: Any, _: Any) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    if not in_place:
        return torch.compile(model, backend=backend, fullgraph=True), graphs
    model.compile(backend=backend, fullgraph=True)
    return model, graphs


@pytest.mark.parametrize(("name", "in_place"), [("sd3", False), ("flux", True), ("wan", True)])
def test_fullgraph_without_recompiles(name: str, in_place: bool) -> None:
    """Through AOT autograd too, whichever way the model was compiled."""
    spec = SPECS[name]
    model, call = specs.shorten(spec.build(torch.float32)), spec.inputs(1, 5, torch.float32)
    settings = [VSF(3.5, 0.1), VSF(1.5, 0.1), VSF(2.0, 0.7), VSF(0.3, 0.0)]
    prompts = [negatives(spec, n, seed=n) for n in (4, 9, 3, 16)]
    wanted = [run_guided(model, call, m, n) for m, n in zip(settings, prompts, strict=True)]
    plain = run(model, call)
    ours: Any = model
    if in_place:
        model.compile(backend="aot_eager", fullgraph=True)
    else:
        ours = torch.compile(model, backend="aot_eager", fullgraph=True)
    frames = torch._dynamo.utils.counters["stats"]
    counts = []
    for method, negative, truth in zip(settings, prompts, wanted, strict=True):
        same(run_guided(ours, call, method, negative), truth, rounding(model))
        counts.append(frames["unique_graphs"])
    assert counts[0] == 1 and counts == [1] * len(counts)
    same(run(ours, call), plain, rounding(model))


# Lumina2 is missing: its own forward branches on the lengths of its texts, so that it is not one graph unguided.
ONE_OF_EACH = [
    "flux-dev-kontext", "flux2", "chroma-mask", "cogview3plus", "cogview4", "bria", "longcat", "ovis", "qwen-mask",
    "hunyuan-video", "z-image", "unet", "sdxl", "wan-vace", "wan-i2v", "anyflow", "pixart", "allegro", "sana-sprint",
    "dreamlite-mask", "prx-mask", "ltx", "ltx2",
]  # fmt: skip


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_architecture_is_one_graph_for_all_prompts_and_settings(name: str) -> None:
    """Batches of two, negatives of different lengths in them."""
    spec = SPECS[name]
    model, ask = spec.build(torch.float32), lambda: spec.inputs(2, 5, torch.float32)
    given = [negatives(spec, *lengths, seed=lengths[0]) for lengths in ((4, 9), (16, 3))]
    methods = [VSF(3.5, 0.1), VSF((1.5, 0.4), (0.0, 0.7))]
    # Before compiling: some models (Z-Image) make tables in their first forward pass, which cannot be compiled.
    wanted = [run_guided(model, ask(), *setting) for setting in zip(methods, given, strict=True)]
    ours, graphs = compiled(model, in_place=True)
    for method, embeds, truth in zip(methods, given, wanted, strict=True):
        same(run_guided(ours, ask(), method, embeds), truth, rounding(model))
    assert len(graphs) == 1


Settings = list[tuple[Guidance, Sequence[Tensor | None], Sequence[Tensor | None] | None]]


def _variant(name: str, spec: Any) -> Settings:
    short, long = negatives(spec, 3, 12)
    pairs: dict[str, tuple[Guidance, Guidance]] = {
        "nag": (NAG(4.0, 2.5, 0.25), NAG((2.0, 6.0), 1.5, (0.5, 0.1))),
        "nasa": (NASA(0.25), NASA((0.5, 0.1))),
        "upstream": (VSF(3.3, 0.1, "upstream"), VSF((1.0, 4.0), 0.4, "upstream")),
        "normalize": (VSF(3.0, normalize=1.0), VSF(5.0, 0.3, normalize=(0.8, 1.5))),
    }
    if name == "weights":
        first = [torch.tensor([2.0, 1.0, 0.0]), None]
        second = [torch.linspace(0.5, 3.0, 12), torch.tensor([1.0, 0.1, 1.5])]
        return [(VSF(3.5), [short, long], first), (VSF(1.5, 0.4), [long, short], second)]
    if name == "with and without":  # a sample without a negative in it, and then none without
        return [(VSF(3.5), [short, None], None), (VSF(2.0, 0.3), [None, long], None), (VSF(2.0), [long, short], None)]
    one, other = pairs[name]
    return [(one, [short, long], None), (other, [long, short], None)]


VARIANTS = ["with and without", "weights", "nag", "nasa", "upstream", "normalize"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_every_method_is_one_graph(name: str, variant: str) -> None:
    spec = SPECS[name]
    model, call = specs.shorten(spec.build(torch.float32)), spec.inputs(2, 5, torch.float32)
    ours, graphs = compiled(model)

    def draw(net: Any, method: Guidance, embeds: Any, weights: Any) -> Tensor:
        with negative_guidance(net, method, negative_prompt_embeds=embeds, negative_weights=weights):
            return run(net, call)

    for setting in _variant(variant, spec):
        same(draw(ours, *setting), draw(model, *setting), rounding(model))
    assert len(graphs) == 1


def test_lengths_are_graphs_in_steps_of_16_tokens() -> None:
    spec = SPECS["wan"]
    model, call = specs.shorten(spec.build(torch.float32)), spec.inputs(1, 5, torch.float32)
    ours, graphs = compiled(model)
    counts = []
    for n in (5, 16, 20, 32, 33, 7):
        (given,) = negatives(spec, n, seed=n)
        same(run_guided(ours, call, VSF(), [given]), run_guided(model, call, VSF(), [given]), rounding(model))
        counts.append(len(graphs))
    assert counts == [1, 1, 2, 2, 3, 3]


def test_repeated_blocks_compiled_one_by_one() -> None:
    """`compile_repeated_blocks`: a guided block is a graph of its own, since it knows its number. More than 8 of a kind
    need a higher `recompile_limit`; nothing is compiled anew for another prompt or setting."""
    spec = SPECS["flux"]
    config = {k: v for k, v in spec.build(torch.float32).config.items() if not k.startswith("_")}
    torch.manual_seed(0)
    model: Any = FluxTransformer2DModel(**{**config, "num_layers": 1, "num_single_layers": 9})
    model.eval().requires_grad_(False)
    call, graphs = spec.inputs(1, 5, torch.float32), []
    settings = [(VSF(3.5, 0.1), negatives(spec, 4)), (VSF(1.5, 0.7), negatives(spec, 9))]
    wanted = [run_guided(model, call, *setting) for setting in settings]

    def backend(graph: Any, _: Any) -> Callable[..., Any]:
        graphs.append(1)
        return graph.forward

    model.compile_repeated_blocks(backend=backend, fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=64):
        for setting, truth in zip(settings, wanted, strict=True):
            same(run_guided(model, call, *setting), truth, rounding(model))
            assert len(graphs) == 10
