"""Negative prompts for few-step image and video generators, inside attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arch import UnsupportedModel, supported
    from .core.suppression import Suppression
    from .demo.model import load_demo_pipeline
    from .guidance import CFG, METHODS, NAG, NASA, VSF, Guidance, NoGuidance, knobs
    from .guide import Guided, NothingGuided, negative_guidance
    from .pipelines import (
        VSFFluxPipeline,
        VSFQwenImagePipeline,
        VSFStableDiffusion3Img2ImgPipeline,
        VSFStableDiffusion3InpaintPipeline,
        VSFStableDiffusion3Pipeline,
        VSFWanPipeline,
    )
    from .presets import PRESETS, Preset
    from .prompt import Item, PromptError, format_negative, parse_negative, split_prompt

__version__ = "0.1.0"

# Name -> module; imported at first use, so that `import vsf` costs nothing.
_WHERE = {
    **dict.fromkeys(("VSF", "NAG", "NASA", "CFG", "NoGuidance", "Guidance", "METHODS", "knobs"), "guidance"),
    **dict.fromkeys(("negative_guidance", "Guided", "NothingGuided"), "guide"),
    "Suppression": "core.suppression",
    **dict.fromkeys(("UnsupportedModel", "supported"), "arch"),
    **dict.fromkeys(
        (
            "VSFFluxPipeline",
            "VSFQwenImagePipeline",
            "VSFStableDiffusion3Img2ImgPipeline",
            "VSFStableDiffusion3InpaintPipeline",
            "VSFStableDiffusion3Pipeline",
            "VSFWanPipeline",
        ),
        "pipelines",
    ),
    **dict.fromkeys(("Item", "PromptError", "format_negative", "parse_negative", "split_prompt"), "prompt"),
    **dict.fromkeys(("PRESETS", "Preset"), "presets"),
    "load_demo_pipeline": "demo.model",
}

__all__ = [
    "CFG",
    "METHODS",
    "NAG",
    "NASA",
    "PRESETS",
    "VSF",
    "Guidance",
    "Guided",
    "Item",
    "NoGuidance",
    "NothingGuided",
    "Preset",
    "PromptError",
    "Suppression",
    "UnsupportedModel",
    "VSFFluxPipeline",
    "VSFQwenImagePipeline",
    "VSFStableDiffusion3Img2ImgPipeline",
    "VSFStableDiffusion3InpaintPipeline",
    "VSFStableDiffusion3Pipeline",
    "VSFWanPipeline",
    "format_negative",
    "knobs",
    "load_demo_pipeline",
    "negative_guidance",
    "parse_negative",
    "split_prompt",
    "supported",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
