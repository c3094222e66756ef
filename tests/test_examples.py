"""Every example is short and runs."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tiny import save_tiny
from vsf.demo.models import MODELS

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(path.read_text("utf-8").splitlines()) < 30
    # Random weights of the same kind: what is drawn is noise, how it is called is the same.
    monkeypatch.setitem(MODELS, "demo", replace(MODELS["demo"], folder=str(tiny)))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    pictures = list(tmp_path.glob("*.png"))
    assert pictures
    for picture in pictures:
        with Image.open(picture) as image:
            assert min(image.size) >= 32
