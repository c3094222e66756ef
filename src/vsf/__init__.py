"""Negative prompts for few-step image and video generators, inside attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arch import UnsupportedModel, supported
    from .demo.model import load_demo_pipeline
    from .guidance import METHODS, NAG, NASA, VSF, Guidance, NoGuidance, knobs
    from .guide import Guided, Suppression, negative_guidance
    from .pipelines import VSFStableDiffusion3Pipeline

__version__ = "0.1.0"

# Name -> module; imported at first use, so that `import vsf` costs nothing.
_WHERE = {
    **dict.fromkeys(("VSF", "NAG", "NASA", "NoGuidance", "Guidance", "METHODS", "knobs"), "guidance"),
    **dict.fromkeys(("negative_guidance", "Guided", "Suppression"), "guide"),
    **dict.fromkeys(("UnsupportedModel", "supported"), "arch"),
    **dict.fromkeys(("VSFStableDiffusion3Pipeline",), "pipelines"),
    "load_demo_pipeline": "demo.model",
}

__all__ = [
    "METHODS",
    "NAG",
    "NASA",
    "VSF",
    "Guidance",
    "Guided",
    "NoGuidance",
    "Suppression",
    "UnsupportedModel",
    "VSFStableDiffusion3Pipeline",
    "knobs",
    "load_demo_pipeline",
    "negative_guidance",
    "supported",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
