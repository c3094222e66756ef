"""Models with a feature of diffusers switched on, and what guidance has to fulfil on each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import specs
from closeness import close, rounding, same
from definition import dense
from test_contract import fingerprint, negatives, run
from vsf import VSF, Guidance, negative_guidance
from vsf.arch import family_of

SPECS = specs.load()
METHOD = VSF(3.5, 0.1)
#: Makes the forward arguments anew: some models change the dictionaries they are given.
Make = Callable[[], dict[str, Any]]


def make(name: str, batch: int = 2, tokens: int = 5, dtype: torch.dtype = torch.float64) -> Make:
    return lambda: SPECS[name].inputs(batch, tokens, dtype)


def guided(model: Any, call: Make, given: Sequence[Tensor | None], method: Guidance = METHOD) -> Tensor:
    with negative_guidance(model, method, negative_prompt_embeds=given):
        return run(model, call())


def holds(name: str, model: Any, call: Make) -> Tensor:
    """What every feature has to leave true of a float64 model; returns the guided output for two negatives."""
    given: list[Tensor | None] = list(negatives(SPECS[name], 3, 4))
    before, plain = fingerprint(model), run(model, call())
    out = guided(model, call, given)
    with dense() as count:
        wanted = guided(model, call, given)
    family: Any = family_of(model)
    assert count["calls"] == len(family.sites(model)), "some attention was guided twice, or not at all"
    bound = rounding(model, torch.float64)
    close(out, wanted, plain, bound)
    mixed = guided(model, call, [given[0], None])
    same(mixed[:1], out[:1], bound)
    same(mixed[1:], plain[1:], bound)
    assert torch.equal(guided(model, call, [None]), plain)
    assert torch.equal(guided(model, call, [torch.zeros(0, SPECS[name].width)]), plain)
    assert fingerprint(model) == before
    assert torch.equal(run(model, call()), plain)
    return out
