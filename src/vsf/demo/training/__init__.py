"""How the demo models are made, from nothing or from one another: one recipe file and one module per model."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["TRAININGS", "training"]

#: Name -> module, recipe class and function, imported when used; recipes/NAME.toml is what the function follows.
TRAININGS: Mapping[str, tuple[str, str, str]] = {
    "sd3": ("vsf.demo.training.sd3", "Recipe", "train_sd3"),
    "flux": ("vsf.demo.training.flux", "FluxRecipe", "train_flux"),
    "wan": ("vsf.demo.training.wan", "WanRecipe", "train_wan"),
}


def training(name: str) -> tuple[type, Callable[..., Any]]:
    """The recipe class and the function of a training. Raises KeyError for an unknown name."""
    module, recipe, function = TRAININGS[name]
    code = importlib.import_module(module)
    return getattr(code, recipe), getattr(code, function)
