"""Files are there whole or not at all, with the rights that any other new file has."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vsf.bench.cases import load_cases, save_cases
from vsf.files import json_bytes, plain, whole, write_whole


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_whole(path, b"old")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "a.png", b"new")


def test_an_error_of_the_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole(tmp_path / "a.mp4") as part:
        part.write_bytes(b"half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such rights")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize(
    "write", [lambda p: write_whole(p, b""), lambda p: save_cases(load_cases("neggen"), p)], ids=["file", "cases"]
)
def test_a_new_file_has_the_rights_the_umask_leaves(
    write: Callable[[Path], None], umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, asked = os.umask(umask), []
    try:
        monkeypatch.setattr("os.umask", asked.append)  # it is the whole process's: another thread would see it change
        write(tmp_path / "a")
    finally:
        monkeypatch.undo()
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask and not asked


def test_json_has_no_infinity() -> None:
    data = {"range": (0.0, math.inf), 3: [-math.inf, None, "x"]}
    assert plain(data) == {"range": [0.0, "inf"], "3": ["-inf", None, "x"]}
    assert json.loads(json_bytes(data)) == plain(data) and json_bytes(data).endswith(b"}\n")
