"""Write a folder that can be copied into ComfyUI's `custom_nodes` as it is: `python bundle.py DESTINATION [REPOSITORY]`.

The nodes need the part of the vsf package that is plain torch. Installing the whole package would bring diffusers and a
newer transformers into ComfyUI's environment; this puts that part into the folder instead.

With the address of the public repository, what the registry of nodes wants to know of it is written into the folder's
pyproject.toml, and into its README where that names it or points out of the folder.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent
SOURCE = PACK.parent / "src" / "vsf"
#: What the nodes import, and what that imports.
PARTS = ("__init__.py", "grammar.py", "prompt.py", "core", "guidance")
SKIPPED = shutil.ignore_patterns("__pycache__", "vendor")


#: What stands in README.md for the address of the repository, which only who publishes it knows.
ADDRESS = "URL-OF-THE-PROJECT"
#: Appended to pyproject.toml, whose last table is [tool.comfy].
REGISTRY = """Icon = "{raw}/icon.png"
Banner = "{raw}/banner.png"

[project.urls]
Repository = "{repository}"
Documentation = "{repository}/blob/HEAD/docs/comfyui.md"
Issues = "{repository}/issues"
"""


def bundle(destination: Path, repository: str = "") -> Path:
    """Copy the pack to `destination`, which must not exist yet, and the parts of vsf to `destination/vendor/vsf`.

    `repository` is the address of the public repository on GitHub, for the registry; nothing is written without it.
    """
    shutil.copytree(PACK, destination, ignore=SKIPPED)
    target = destination / "vendor" / "vsf"
    for part in PARTS:
        source = SOURCE / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=SKIPPED)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / part)
    if repository:
        raw = repository.replace("https://github.com/", "https://raw.githubusercontent.com/") + "/HEAD/comfyui/images"
        with (destination / "pyproject.toml").open("a") as file:
            file.write(REGISTRY.format(raw=raw, repository=repository))
        readme = destination / "README.md"
        text = readme.read_text().replace(ADDRESS, repository).replace("](../", f"]({repository}/blob/HEAD/")
        readme.write_text(text)
    return destination


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or Path(sys.argv[1]).exists() or not SOURCE.is_dir():
        sys.exit(
            "usage, in a clone of the project: python comfyui/bundle.py DESTINATION [REPOSITORY] (a folder that is not "
            "there yet; the address of the public repository, for the registry)"
        )
    print(bundle(Path(sys.argv[1]), *sys.argv[2:]))
