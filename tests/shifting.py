"""VSF_TEST_SHIFT=16, 32 or 48: every CPU tensor's storage starts that many bytes after a multiple of 64; see `shifted.cpp`.

Alignment decides which kernel computes and so in which order it sums; PyTorch's own allocator shows one alignment only.
Not less than 16 bytes: that is what a complex128 may count on, and kernels that did count on it crashed at 28.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("shifted.cpp")


def build() -> Path:
    """The compiled allocator, kept beside the temporary files for the next run; needs a C++ compiler."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError("VSF_TEST_SHIFT needs a C++ compiler (g++, clang++, or the one named by CXX)")
    key = hashlib.sha256(SOURCE.read_bytes() + f"{torch.__version__} {compiler}".encode()).hexdigest()[:12]
    library = Path(tempfile.gettempdir()) / f"vsf-shifted-{os.getuid()}-{key}.so"
    if not library.is_file():
        root = Path(torch.__file__).parent
        part = library.with_suffix(f".{os.getpid()}")
        options = ["-O1", "-shared", "-fPIC", "-std=c++20", f"-I{root / 'include'}", f"-L{root / 'lib'}", "-lc10"]
        subprocess.run([compiler, str(SOURCE), "-o", str(part), *options], check=True)
        os.replace(part, library)
    return library


def install(value: str) -> int:
    """Shift all storages made from here on by `value` bytes: 16, 32 or 48."""
    if value not in ("16", "32", "48"):
        raise ValueError(f"VSF_TEST_SHIFT={value}; allowed: 16, 32, 48")
    ctypes.CDLL(str(build())).shift_storages(ctypes.c_size_t(int(value)))
    seen = torch.empty(3).data_ptr() % 64
    if seen != int(value):
        raise RuntimeError(f"VSF_TEST_SHIFT={value}, but storages start at {seen} of 64")
    return seen
