"""Files that are there whole or not at all, and data as JSON has it. Torch-free."""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

__all__ = ["json_bytes", "plain", "read_toml", "whole", "write_whole"]


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside `path` to write a file under; it takes the place of `path` when the block ends without an error.

    After an error nothing is left of it. A killed process leaves `.NAME.*.part`.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    with whole(path) as part:
        part.write_bytes(data)


def plain(value: Any) -> Any:
    """JSON has no infinity: non-finite numbers become words ("inf"), tuples lists, keys text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def json_bytes(data: Any, indent: int | None = None) -> bytes:
    """Plain data as the bytes of a JSON file."""
    return (json.dumps(plain(data), indent=indent, allow_nan=False) + "\n").encode()


def read_toml(text: str) -> dict[str, Any]:
    """TOML as plain data, on every Python. Raises ValueError where it is none."""
    return tomllib.loads(text)
