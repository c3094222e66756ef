"""Make the `vsf` package importable: installed, bundled with this folder, or in the clone this folder lies in."""

from __future__ import annotations

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
    try:
        import vsf.guidance  # noqa: F401
    except ImportError:
        raise ImportError(
            "the VSF nodes need a part of the package value-sign-flip (the one called vsf on the index is another project): "
            "run 'python -m pip install --no-deps value-sign-flip' with ComfyUI's own Python, or clone the whole project "
            f"instead of copying this folder (looked in {', '.join(map(str, places))})"
        ) from None
