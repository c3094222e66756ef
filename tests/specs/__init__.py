"""One file per family: tiny random-weight models of the real classes, and inputs for them.

Every module here with a `SPECS` list takes part in `test_contract.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Call = dict[str, Any]


def _replace(call: Call, embeds: Tensor) -> Call:
    return call | {"encoder_hidden_states": embeds}


@dataclass(frozen=True)
class Spec:
    """A tiny model.

    `build(dtype)` gives the model with fixed seed in eval mode; `inputs(batch, tokens, dtype)` its forward arguments,
    `return_dict=False` included; `replace(call, embeds [B, n, W])` the call with another text in the place of the
    positive prompt, as a pipeline would make it.
    """

    name: str
    build: Callable[[torch.dtype], nn.Module]
    inputs: Callable[[int, int, torch.dtype], Call]
    width: int
    replace: Callable[[Call, Tensor], Call] = _replace
    #: A whole-model float64 definition (model, call, negative [n, W], rule) for a batch of one, where there is one.
    definition: Callable[..., Tensor] | None = None
    joint: bool = True


def load() -> dict[str, Spec]:
    """All specs by name."""
    found: dict[str, Spec] = {}
    for module in pkgutil.iter_modules(__path__):
        for spec in getattr(importlib.import_module(f"{__name__}.{module.name}"), "SPECS", []):
            found[spec.name] = spec
    return found
