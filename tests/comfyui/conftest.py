"""Tests of the ComfyUI node pack. With `COMFYUI=/path/to/ComfyUI` they use the real one, else only the seams' contract."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1] / "comfyui"
sys.path.insert(0, str(HERE))

from comfy_server import COMFYUI, write_stand_ins  # noqa: E402

if not COMFYUI:  # test_comfyui_contract.py says that they were left out
    collect_ignore = ["test_comfyui_models.py", "test_comfyui_server.py"]


def load_pack() -> ModuleType:
    """The node pack, imported as ComfyUI imports it: by its path."""
    name = "vsf_comfyui_pack"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        for part in ("guide", "maps", "prompt"):
            importlib.import_module(f"{name}.{part}")
    return sys.modules[name]


@pytest.fixture(scope="session")
def pack() -> ModuleType:
    return load_pack()


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """ComfyUI in this process, on the CPU."""
    folder = write_stand_ins(tmp_path_factory.mktemp("comfyui"))
    exec((folder / "sitecustomize.py").read_text())
    sys.path.insert(0, COMFYUI)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.sample
    import comfy.samplers
    import comfy.sd

    return comfy
