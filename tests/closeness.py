"""How near two results have to be, in one place.

Three cases, and no tolerance that somebody chose:

- *The same by construction*: nothing is installed, the negative is empty, the strength is neutral, the block has been
  left, or the very same tensors go the very same way again. `torch.equal`, in the test itself.
- *The same sums in another order*: another kernel, batch size, memory layout, compiled graph, or the float64
  definition. `same(got, wanted, rounding(model))`, or `close(...)` where it has to be small beside what guidance does.
- *A feature of the stock model or pipeline* (offloading, loading, a cache, an attention backend): guided with it may
  differ from guided without it by no more than the stock model with it differs from the stock model without it, plus
  that rounding if the stock model shows that it sums in another order: `follows_stock(...)`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def error(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, as norms over all elements."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def of_sums(terms: float, dtype: torch.dtype = torch.float32) -> float:
    """u sqrt(N), see `rounding`, for a result that no network makes."""
    return torch.finfo(dtype).eps / 2 * math.sqrt(terms)


def rounding(net: Any, dtype: torch.dtype = torch.float32, passes: int = 1) -> float:
    """How far apart, relative to their norm, two results of `net` may be that sum the same terms in another order.

    u sqrt(N) with the unit roundoff u and the number N of terms that are added up on the way: the fan-in of every layer.
    `net` is a module or a pipeline, of which the text encoders count once, what predicts noise `passes` times (steps)
    and the autoencoder not at all: latents are compared.

    Why: rounding the i-th partial sum of n random terms is an error of variance u^2/3 at most, times i/n of the sum's
    square; so a sum has u^2 n/6, the difference of two orders u^2 n/3, and the errors of layers are independent.
    u sqrt(N) is 1.7 times that root mean square (`test_closeness.py` measures it), and the bound of Higham and Mary
    2019 (SIAM J. Sci. Comput. 41) with lambda = 1. What guidance amplifies has to fit into the margin: kernels split
    long sums, and queries, keys and values do not stand in one row, though they are counted so.
    """
    nets: dict[str, Any] = net.components if hasattr(net, "components") else {"unet": net}
    terms = sum(
        math.prod(p.shape[1:]) * (passes if part.startswith(("transformer", "unet", "controlnet")) else 1)
        for part, module in nets.items() if isinstance(module, torch.nn.Module) and not part.startswith("vae")
        for p in module.parameters() if p.ndim > 1
    )  # fmt: skip
    bound = of_sums(terms, dtype)
    assert bound < 1e-5 or dtype not in (torch.float32, torch.float64), (
        f"so many sums in float32 would hide an error of {bound:.1e}: compare in float64"
    )
    return bound


def same(got: Tensor, wanted: Tensor, bound: float, what: str = "") -> None:
    """Equal up to the order of sums; `bound` from `rounding`."""
    off = error(got, wanted)
    assert off <= bound, f"{what or 'results'} differ by {off:.2e}, rounding allows {bound:.2e}"


def differs(a: Tensor, b: Tensor, bound: float, times: float = 2.0) -> None:
    """Not equal: further apart than results could be that are each off by `bound`."""
    off = error(a, b)
    assert off > times * bound, f"differ by {off:.2e} only, where rounding allows {bound:.2e}"


def close(got: Tensor, wanted: Tensor, plain: Tensor, bound: float) -> None:
    """`same`, where `wanted` is so far from the unguided `plain` that rounding is less than a twentieth of it.

    A model whose output hardly depends on its text cannot hide an error.
    """
    differs(wanted, plain, bound, 20.0)
    same(got, wanted, bound)


def follows_stock(
    got: Tensor, wanted: Tensor, stock: Tensor, stock_wanted: Tensor, bound: float, what: str = ""
) -> None:
    """Guided with a feature (`got`) and without (`wanted`), beside the stock model with and without it.

    Bit-equal where the stock model is; else no further apart than that, plus `bound` from `rounding`.
    """
    if torch.equal(stock, stock_wanted):
        assert torch.equal(got, wanted), (
            f"{what or 'guided'}: differ by {error(got, wanted):.2e}, though the stock model is bit-equal"
        )
        return
    same(got, wanted, error(stock, stock_wanted) + bound, what or "guided")
