"""Which model classes can be guided, and how: one small file per family and this table."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Family
from .bria import Bria
from .chroma import Chroma
from .cogview4 import CogView4
from .flux import Flux
from .flux2 import Flux2
from .hunyuan_video import HunyuanVideo
from .longcat_image import LongCatImage
from .ltx import LTX
from .ltx2 import LTX2
from .lumina2 import Lumina2
from .ovis_image import OvisImage
from .pixart import PixArt
from .qwen_image import QwenImage
from .sana import Sana
from .sd3 import SD3
from .unet import UNet
from .wan import Wan
from .z_image import ZImage

__all__ = ["FAMILIES", "Family", "UnsupportedModel", "family_of", "find_models", "supported", "unwrap"]

FAMILIES: tuple[Family, ...] = (
    SD3(),
    UNet(),
    Wan(),
    Bria(),
    Chroma(),
    CogView4(),
    Flux(),
    Flux2(),
    LongCatImage(),
    OvisImage(),
    QwenImage(),
    LTX(),
    LTX2(),
    PixArt(),
    Sana(),
    HunyuanVideo(),
    ZImage(),
    Lumina2(),
)


class UnsupportedModel(TypeError):
    """The pipeline or model has no family here; the message names it and lists what is supported."""


def supported() -> dict[str, str]:
    """Supported model classes, class name -> family name."""
    return {model: family.name for family in FAMILIES for model in family.models}


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a `torch.compile` or data-parallel wrapper."""
    inner = getattr(model, "_orig_mod", None) or (
        model.module if type(model).__name__.endswith("DataParallel") else None
    )
    return model if inner is None else unwrap(inner)  # pyright: ignore


def family_of(model: nn.Module) -> Family | None:
    """The family that serves this model, by its class name or that of a base class; None if there is none."""
    names = [cls.__name__ for cls in type(unwrap(model)).__mro__]
    return next((f for name in names for f in FAMILIES if name in f.models), None)


def find_models(pipe_or_model: Any) -> list[tuple[nn.Module, Family]]:
    """The guidable models of a pipeline (Wan 2.2 has two), or the model itself, wrapped as they are (see `unwrap`).

    Raises:
        UnsupportedModel: nothing in it can be guided.
    """
    if isinstance(pipe_or_model, nn.Module):
        candidates = [pipe_or_model]
    else:
        components = getattr(pipe_or_model, "components", None)
        candidates = (
            [c for c in components.values() if isinstance(c, nn.Module)] if isinstance(components, dict) else []
        )
    found = [(m, f) for m in candidates if (f := family_of(m)) is not None]
    if not found:
        inside = (
            ", ".join(type(unwrap(m)).__name__ for m in candidates) if not isinstance(pipe_or_model, nn.Module) else ""
        )
        raise UnsupportedModel(
            f"{type(pipe_or_model).__name__}{f' (with {inside})' if inside else ''} cannot be guided; supported models: "
            + ", ".join(sorted(supported()))
        )
    return found
