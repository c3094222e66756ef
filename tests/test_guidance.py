"""The methods as plain equations, without any model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from closeness import same
from vsf import NAG
from vsf.core import reference
from vsf.core.attention import Attended
from vsf.core.geometry import Pieces


def attended(*shape: int, size: float, dtype: torch.dtype, seed: int) -> Attended:
    out = size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return Attended(out.to(dtype), torch.zeros(shape[:-1]))


def knobs(method: NAG) -> dict[str, Tensor]:
    return {n: torch.tensor(getattr(method, n)).view(1, 1, 1, 1) for n in ("scale", "tau", "alpha")}


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 30.0), (torch.bfloat16, 1.0)])
def test_the_norm_of_nag_does_not_overflow(dtype: torch.dtype, size: float) -> None:
    """24 heads of 128 channels: an L1 norm beyond the largest number of fp16."""
    method = NAG(6.0, 1.5, 1.0)
    pos, neg = (attended(2, 24, 8, 128, size=size, dtype=dtype, seed=s) for s in (0, 1))
    assert dtype != torch.float16 or not bool(pos.out.abs().sum((1, 3)).isfinite().all())
    got = method.combine(Pieces(pos, branch=lambda: neg), knobs(method))
    wanted = reference.nag(pos.out.double(), neg.out.double(), 6.0, 1.5, 1.0)
    assert got.dtype == dtype
    same(got, wanted, 4 * torch.finfo(dtype).eps / 2)  # rounded as: the extrapolation, its norm, the blend, the result
    # The length itself, up to the rounding of one factor per query.
    length = got.double().abs().sum((1, 3)) / pos.out.double().abs().sum((1, 3))
    assert float((length - 1.5).abs().max()) < 1.5 * 2**-8
