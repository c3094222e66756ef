"""Which model classes can be guided, and how: one small file per family and this table."""

from __future__ import annotations

from typing import Any

from torch import nn

from .allegro import Allegro
from .base import Family
from .bria import Bria
from .chroma import Chroma
from .cogview3plus import CogView3Plus
from .cogview4 import CogView4
from .dreamlite import DreamLite
from .flux import Flux
from .flux2 import Flux2
from .hunyuan_video import HunyuanVideo
from .longcat_image import LongCatImage
from .ltx import LTX
from .ltx2 import LTX2
from .lumina2 import Lumina2
from .ovis_image import OvisImage
from .pixart import PixArt
from .prx import PRX
from .qwen_image import QwenImage
from .refused import REFUSED
from .sana import Sana
from .sd3 import SD3
from .unet import UNet
from .wan import AnyFlow, Wan
from .z_image import ZImage

__all__ = ["FAMILIES", "REFUSED", "Family", "UnsupportedModel", "family_of", "find_models", "supported", "unwrap"]

FAMILIES: tuple[Family, ...] = (
    SD3(),
    UNet(),
    Wan(),
    AnyFlow(),
    Allegro(),
    Bria(),
    Chroma(),
    CogView3Plus(),
    CogView4(),
    DreamLite(),
    Flux(),
    Flux2(),
    LongCatImage(),
    OvisImage(),
    QwenImage(),
    LTX(),
    LTX2(),
    PixArt(),
    PRX(),
    Sana(),
    HunyuanVideo(),
    ZImage(),
    Lumina2(),
)


class UnsupportedModel(TypeError):
    """The pipeline or model has no family here; the message names it, says why, and lists what is supported."""


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
    """The family that serves this model, by the nearest known name of its class and base classes, or None."""
    return next((f for f in FAMILIES if _known_as(model) in f.models), None)


def _known_as(model: nn.Module) -> str | None:
    """The first name among this model's class and base classes that is supported or refused."""
    known = supported().keys() | REFUSED.keys()
    return next((cls.__name__ for cls in type(unwrap(model)).__mro__ if cls.__name__ in known), None)


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
        why = "".join(f"; {name}: {REFUSED[name]}" for m in candidates if (name := _known_as(m)) is not None)
        raise UnsupportedModel(
            f"{type(pipe_or_model).__name__}{f' (with {inside})' if inside else ''} cannot be guided{why}; "
            f"supported models: {', '.join(sorted(supported()))}"
        )
    return found
