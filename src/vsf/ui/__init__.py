"""The web page (`vsf ui`): type what should not be in the picture, and see what happened.

Needs gradio: `pip install "value-sign-flip[ui]"`. `build` makes the page, `serve` starts a server for it; see `docs/ui.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import Options
    from .page import build, build_labels
    from .server import serve

__all__ = ["Options", "build", "build_labels", "serve"]


def __getattr__(name: str) -> Any:
    where = {"Options": "model", "build": "page", "build_labels": "page", "serve": "server"}.get(name)
    if where is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{where}", __name__), name)
