"""Write a folder that can be copied into ComfyUI's `custom_nodes` as it is: `python bundle.py DESTINATION`.

The nodes need the part of the vsf package that is plain torch. Installing the whole package would bring diffusers and a
newer transformers into ComfyUI's environment; this puts that part into the folder instead.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent
SOURCE = PACK.parent / "src" / "vsf"
#: What the nodes import, and what that imports.
PARTS = ("__init__.py", "prompt.py", "core", "guidance", "arch")
SKIPPED = shutil.ignore_patterns("__pycache__", "vendor")


def bundle(destination: Path) -> Path:
    """Copy the pack to `destination`, which must not exist yet, and the parts of vsf to `destination/vendor/vsf`."""
    shutil.copytree(PACK, destination, ignore=SKIPPED)
    target = destination / "vendor" / "vsf"
    for part in PARTS:
        source = SOURCE / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=SKIPPED)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / part)
    return destination


if __name__ == "__main__":
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists() or not SOURCE.is_dir():
        sys.exit(
            "usage, in a clone of the project: python comfyui/bundle.py DESTINATION (a folder that is not there yet)"
        )
    print(bundle(Path(sys.argv[1])))
