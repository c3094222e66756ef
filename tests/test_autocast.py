"""Under `torch.autocast` the guided attention does what the stock one does; every family: `test_contract.py`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import specs
from closeness import same
from test_contract import negatives, run, run_guided
from vsf import VSF, load_demo_pipeline, negative_guidance
from vsf.core.attention import attend, attend_few, log_sum_exp

BF16, F16 = torch.bfloat16, torch.float16


def qkv(keys: int, *dtypes: torch.dtype) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, n, 16, generator=g).to(d) for n, d in zip((7, keys, keys), dtypes, strict=True)]


@pytest.mark.parametrize("to", [BF16, F16])
@pytest.mark.parametrize("given", [torch.float32, torch.float64, BF16])
@pytest.mark.parametrize("masked", [None, "bias", "bool"])
def test_attend_is_the_stock_attention_bit_by_bit(given: torch.dtype, to: torch.dtype, masked: str | None) -> None:
    q, k, v = qkv(9, given, given, given)
    mask = None if masked is None else torch.randn(2, 1, 1, 9, generator=torch.Generator().manual_seed(1)).to(given)
    mask = mask > 0 if mask is not None and masked == "bool" else mask
    with torch.autocast("cpu", to):
        ours, wanted = attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert ours.out.dtype == wanted.dtype and torch.equal(ours.out, wanted)


@pytest.mark.parametrize("to", [BF16, F16])
def test_scores_stay_wide(to: torch.dtype) -> None:
    for dtypes in ((torch.float32,) * 3, (torch.float64,) * 3, (torch.float32, torch.float32, to)):
        q, k, v = qkv(5, *dtypes)
        few, sliced = attend_few(q, k, v), log_sum_exp(q, k)
        with torch.autocast("cpu", to):
            assert torch.equal(attend_few(q, k, v).lse, few.lse) and torch.equal(log_sum_exp(q, k), sliced)
            assert torch.equal(attend_few(q, k, v).out, few.out)
        exact = (q.double() @ k.double().transpose(-1, -2) / 4).logsumexp(-1)
        same(few.lse, exact, math.sqrt(16 + 5) * torch.finfo(torch.float32).eps / 2)  # 16 channels, 5 keys


@pytest.mark.parametrize("to", [BF16, F16])
def test_the_demo_model(to: torch.dtype) -> None:
    """The same guided picture: what autocast changes is a small part of what guidance does (measured: .02 of it)."""
    pipe: Any = load_demo_pipeline()
    pipe.set_progress_bar_config(disable=True)

    def draw() -> np.ndarray:
        generator = torch.Generator().manual_seed(3)
        call: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 0.0, "max_sequence_length": 16}
        return pipe("a red bike", generator=generator, output_type="np", **call).images

    def guided() -> np.ndarray:
        with negative_guidance(pipe, VSF(3.5), "wheels"):
            return draw()

    plain, wanted = draw(), guided()
    with torch.autocast("cpu", to):
        low, out = draw(), guided()
        with negative_guidance(pipe, VSF(3.5), ""):
            assert np.array_equal(draw(), low)
    assert np.linalg.norm(out - wanted) < 0.1 * np.linalg.norm(wanted - plain)


def test_one_graph() -> None:
    torch._dynamo.reset()
    spec, graphs = specs.load()["sd3"], []
    model, call = spec.build(torch.float32), spec.inputs(1, 5, torch.float32)

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(1)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.autocast("cpu", BF16):
        for n in (4, 9):
            given = negatives(spec, n)
            assert torch.equal(run_guided(compiled, call, VSF(), given), run_guided(model, call, VSF(), given))
        assert run(compiled, call).dtype == BF16
    assert len(graphs) == 2  # guided, unguided
    torch._dynamo.reset()
