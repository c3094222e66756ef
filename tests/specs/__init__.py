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


def _same(embeds: Tensor) -> Tensor:
    return embeds


def _replace(call: Call, embeds: Tensor) -> Call:
    return call | {"encoder_hidden_states": embeds}


def ready(model: nn.Module, dtype: torch.dtype) -> Any:
    """`model` in this dtype, in eval mode, without gradients."""
    return model.to(dtype).eval().requires_grad_(False)


def grid_ids(height: int, width: int, axes: int) -> Tensor:
    """Position ids `[height * width, axes]` of an image: row and column in the second and third column."""
    ids = torch.zeros(height, width, axes)
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)
    return ids.flatten(0, 1)


@dataclass(frozen=True)
class Spec:
    """A tiny model.

    `build(dtype)` gives the model with fixed seed in eval mode; `inputs(batch, tokens, dtype)` its forward arguments,
    `return_dict=False` included; `replace(call, embeds [B, n, W])` the call with another text in the place of the
    positive prompt, as a pipeline would make it.
    """

    name: str
    build: Callable[[torch.dtype], Any]
    inputs: Callable[[int, int, torch.dtype], Call]
    width: int
    replace: Callable[[Call, Tensor], Call] = _replace
    #: A whole-model float64 definition (model, call, negative [n, W], rule) for a batch of one, where there is one.
    definition: Callable[..., Tensor] | None = None
    joint: bool = True
    #: Real tokens `[n, W]` as the pipeline encodes them padded, where the model takes them only so.
    padded: Callable[[Tensor], Tensor] = _same
    #: In what a float64 model turns queries and keys by their positions.
    rotary: torch.dtype = torch.float64
    #: In what a float64 model sums an attention without text, by its own code: another batch is another order there.
    sums: torch.dtype = torch.float64


def shorten(model: Any, blocks: int = 2) -> Any:
    """The same model with its last blocks only, for what takes long and does not depend on how many there are."""
    for name in ("transformer_blocks", "blocks"):
        if isinstance(found := getattr(model, name, None), nn.ModuleList):
            setattr(model, name, found[-blocks:])
    return model


def load() -> dict[str, Spec]:
    """All specs by name."""
    found: dict[str, Spec] = {}
    for module in pkgutil.iter_modules(__path__):
        for spec in getattr(importlib.import_module(f"{__name__}.{module.name}"), "SPECS", []):
            found[spec.name] = spec
    return found
