"""`torch.compile`: one graph, and neither another prompt of any length nor strength or offset makes a new one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import specs
from test_contract import error, negatives, run
from vsf import VSF, Guidance, negative_guidance

SPECS = specs.load()


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def guided(model: Any, call: Any, method: Guidance, negative: Tensor) -> Tensor:
    with negative_guidance(model, method, negative_prompt_embeds=[negative]):
        return run(model, call)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", ["sd3", "flux", "unet", "wan"])
def test_fullgraph_without_recompiles(name: str, in_place: bool) -> None:
    spec = SPECS[name]
    model, call = spec.build(torch.float32), spec.inputs(1, 5, torch.float32)
    settings = [VSF(3.5, 0.1), VSF(1.5, 0.1), VSF(2.0, 0.7), VSF(0.3, 0.0)]
    prompts = [negatives(spec, n, seed=n)[0] for n in (4, 9, 3, 16)]
    wanted = [guided(model, call, m, n) for m, n in zip(settings, prompts, strict=True)]
    plain = run(model, call)
    compiled: Any = model
    if in_place:
        model.compile(backend="aot_eager", fullgraph=True)
    else:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    frames = torch._dynamo.utils.counters["stats"]
    counts = []
    for method, negative, truth in zip(settings, prompts, wanted, strict=True):
        assert error(guided(compiled, call, method, negative), truth) < 1e-5
        counts.append(frames["unique_graphs"])
    assert counts[0] == 1 and counts == [1] * len(counts)
    assert error(run(compiled, call), plain) < 1e-5
