"""The birth certificate of a picture or a figure: versions, the code's commit, and hashes of the weights."""

from __future__ import annotations

import platform
import re
import subprocess
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import __version__

__all__ = ["environment", "hub_commit", "versions", "weights_hash"]


def versions(*names: str) -> dict[str, str]:
    """The versions of this package, Python and the named distributions that are installed (by default, what draws)."""
    found = {"vsf": __version__, "python": platform.python_version()}
    for name in names or ("torch", "diffusers", "transformers", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Versions and commit, which are constant in a process."""
    return {"versions": versions(), "git": _git()}


def _git() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from, and whether the package differs from it; None elsewhere."""
    package = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, check=True, text=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an environment inside of another checkout is not ours
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None


def hub_commit(pipe: Any) -> str | None:
    """The hub's commit of a pipeline that was loaded from its cache."""
    for part in getattr(pipe, "components", {}).values():
        name = getattr(getattr(part, "config", None), "_name_or_path", None)
        if found := re.search(r"[\\/]snapshots[\\/]([0-9a-f]{40})(?:[\\/]|$)", str(name)):
            return found[1]
    return None


def weights_hash(pipe: Any) -> str | None:
    """SHA-256 over names and bytes of all tensors of all components; None for something without components."""
    import torch

    components = getattr(pipe, "components", None)
    if not components:
        return None
    digest = sha256()
    for name in sorted(components):
        if isinstance(components[name], torch.nn.Module):
            for key, tensor in sorted(components[name].state_dict().items()):
                digest.update(f"{name}.{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
