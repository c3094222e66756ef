"""The helper that says how near results have to be sees an error of 1e-5, and its bound is the one it claims to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import specs
import vsf.plan
from closeness import close, differs, error, follows_stock, rounding, same
from definition import DENSE, dense
from specs import Spec
from test_contract import negatives, run, run_guided
from vsf import VSF

SPECS = specs.load()
F32, F64 = torch.float32, torch.float64
PLANTED = 1e-5


def bigger(x: Tensor) -> Tensor:
    return x * (1 + PLANTED)


def noisy(x: Tensor, size: float = PLANTED) -> Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    return x + size * noise * x.norm() / noise.norm()


@pytest.mark.parametrize("plant", [bigger, noisy])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", list(SPECS))
def test_a_planted_error_is_seen(name: str, dtype: torch.dtype, plant: Callable[[Tensor], Tensor]) -> None:
    """For every model, beside what the stock model may already differ by (the 2.4e-7 of an offloaded Wan)."""
    spec = SPECS[name]
    model, call = spec.build(dtype), spec.inputs(1, 5, dtype)
    plain, guided = run(model, call), run_guided(model, call, VSF(3.5, 0.1), negatives(spec, 3))
    bound = rounding(model, dtype)
    close(guided, guided, plain, bound)
    stock = noisy(plain, 2.4e-7)
    follows_stock(guided, guided, stock, plain, bound)
    with pytest.raises(AssertionError, match="rounding allows"):
        same(plant(guided), guided, bound)
    with pytest.raises(AssertionError, match="rounding allows"):
        follows_stock(plant(guided), guided, stock, plain, bound)


@pytest.mark.parametrize("name", list(SPECS))
def test_an_error_planted_in_the_attention_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1e-5 in what every guided attention gives, by the comparison with the float64 definition."""
    spec: Spec = SPECS[name]
    model, call, given = spec.build(F64), spec.inputs(1, 5, F64), negatives(spec, 3)
    with dense():
        wanted = run_guided(model, call, VSF(3.5, 0.1), given)
    same(run_guided(model, call, VSF(3.5, 0.1), given), wanted, rounding(model, F64))
    for kind in DENSE:
        real: Any = getattr(vsf.plan, kind)
        monkeypatch.setattr(vsf.plan, kind, lambda *a, real=real, **k: bigger(real(*a, **k)))
    with pytest.raises(AssertionError, match="rounding allows"):
        same(run_guided(model, call, VSF(3.5, 0.1), given), wanted, rounding(model, F64))


def test_bit_equal_where_the_stock_model_is() -> None:
    x = torch.randn(50)
    off = torch.nextafter(x, x + 1)
    follows_stock(x, x, x, x, 1.0)
    with pytest.raises(AssertionError, match="though the stock model is bit-equal"):
        follows_stock(off, x, x, x, 1.0)
    follows_stock(off, x, off, x, 0.0)
    with pytest.raises(AssertionError, match="rounding allows"):
        follows_stock(noisy(x), x, off, x, 0.0)


def test_an_effect_that_rounding_could_be_is_none() -> None:
    x = torch.randn(50)
    differs(noisy(x, 1e-5), x, 1e-6)
    with pytest.raises(AssertionError, match="only, where rounding allows"):
        differs(noisy(x, 1.9e-6), x, 1e-6)
    with pytest.raises(AssertionError, match="only, where rounding allows"):
        close(x, x, noisy(x, 1e-5), 1e-6)


@pytest.mark.parametrize("n", [16, 64, 256])
def test_the_bound_is_what_sums_in_another_order_do(n: int) -> None:
    """Random terms one by one in two orders: up to the root mean square that `rounding` says, u sqrt(n/3).

    A little less, since u is the rounding of a number just above a power of two and others are rounded by less.
    """
    rng = np.random.default_rng(0)
    terms = rng.standard_normal((20_000, n)).astype(np.float32)
    one, other = (np.add.accumulate(t, axis=1)[:, -1] for t in (terms, terms[:, rng.permutation(n)]))
    off = error(torch.from_numpy(one), torch.from_numpy(other))
    layer = torch.nn.Linear(n, 1)
    assert 0.6 < off / (rounding(layer) / 3**0.5) < 1
    assert rounding(layer, passes=4) == pytest.approx(2 * rounding(layer))


def test_a_bound_that_would_hide_an_error_of_1e_5_is_refused() -> None:
    long = torch.nn.Linear(200_000, 1)
    with pytest.raises(AssertionError, match="compare in float64"):
        rounding(long)
    assert rounding(long, F64) < 1e-13
