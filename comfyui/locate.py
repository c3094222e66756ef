"""Make the `vsf` package importable: installed, bundled with this folder, or in the clone this folder lies in."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

__all__ = ["locate"]


def locate() -> None:
    """Put the first place that has `vsf` on the path.

    Raises:
        ImportError: it is nowhere; the message says how to get it.
    """
    here = Path(__file__).resolve().parent
    places = [here / "vendor", here.parent / "src"]
    for place in places:
        if (place / "vsf" / "guidance").is_dir():
            sys.path.insert(0, str(place))  # the version this folder was made with, before any other
            return
    if importlib.util.find_spec("vsf") is None:
        raise ImportError(
            "the VSF nodes need the vsf package: run 'python -m pip install vsf' with ComfyUI's own Python, or link this "
            f"folder from a clone of the project instead of copying it (looked in {', '.join(map(str, places))})"
        )
