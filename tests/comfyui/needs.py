"""Install what one version of ComfyUI pins beside the environment: `python needs.py /path/to/ComfyUI`.

Two versions want two front ends, so each gets a folder of its own in the environment, which conftest.py and the test
server put on the path. torchvision and torchaudio come along where this machine can load them; else the stand-ins do.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

#: Of ComfyUI's requirements, those that its server does not start without and that we do not need ourselves.
WANTED = re.compile(r"(comfyui-frontend-package|comfy-kitchen|comfy-aimdo|simpleeval|blake3)\b")
BINARY = ("torchvision", "torchaudio")


def version(comfyui: str | Path) -> str:
    """ComfyUI's version, such as "0.33.0"."""
    found = re.search(r'__version__ = "([\d.]+)"', (Path(comfyui) / "comfyui_version.py").read_text())
    return found[1] if found else "unknown"


def folder(comfyui: str | Path) -> Path:
    """Where the packages of this version are."""
    return Path(sys.prefix) / "comfyui" / version(comfyui)


def install(comfyui: Path) -> None:
    """Install them; nothing that is in the environment already is changed."""
    target = folder(comfyui)
    wanted = [line.strip() for line in (comfyui / "requirements.txt").read_text().splitlines() if WANTED.match(line)]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, *wanted], check=True)
    for package in BINARY:
        code = f"import sys; sys.path.append({str(target)!r}); import {package}"
        works = subprocess.run([*pip, package]).returncode == 0
        if not works or subprocess.run([sys.executable, "-c", code], capture_output=True).returncode:
            print(f"{package} cannot be loaded here: the tests use a stand-in")
            for part in target.glob(f"{package}*"):
                shutil.rmtree(part)


if __name__ == "__main__":
    install(Path(sys.argv[1]))
