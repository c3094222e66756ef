"""A model that two processes share (gloo, on the CPU): guided as one alone, or refused in a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from closeness import close, rounding
from patience import PATIENCE
from test_contract import F64, SPECS

TESTS = Path(__file__).resolve().parents[1]


class Ran(NamedTuple):
    """What one process drew, and what was refused there."""

    drawn: dict[str, torch.Tensor]
    said: dict[str, str]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> list[Ran]:
    folder = tmp_path_factory.mktemp("parallel")
    path = os.pathsep.join([str(TESTS), *sys.path])
    workers = [
        subprocess.Popen(
            [sys.executable, TESTS / "parallel" / "worker.py", str(rank), str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONPATH": path},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        for worker in workers:
            log, _ = worker.communicate(timeout=PATIENCE)
            assert worker.returncode == 0, log
    finally:
        for worker in workers:
            worker.kill()
    return [
        Ran(load_file(folder / f"{i}.safetensors"), json.loads((folder / f"{i}.json").read_text())) for i in (0, 1)
    ]


CROSS = [("wan", label) for label in ("vsf", "normalized", "upstream", "nasa", "nag")]
CROSS += [("wan-i2v", label) for label in ("vsf", "nag")]
JOINT = [
    (f"tensor, {name}", label) for name in ("flux", "qwen") for label in ("vsf", "normalized", "upstream", "nasa")
]


@pytest.mark.parametrize(("name", "label"), CROSS + JOINT)
def test_two_processes_draw_what_one_draws(ran: list[Ran], name: str, label: str) -> None:
    bound = rounding(SPECS[name.split()[-1]].build(F64), F64)
    for process in ran:
        alone, shared, plain = (
            process.drawn[f"{name}/{key}"] for key in (f"{label}/alone", f"{label}/shared", "None/alone")
        )
        close(shared, alone, plain, bound)
    assert torch.equal(ran[0].drawn[f"{name}/{label}/shared"], ran[1].drawn[f"{name}/{label}/shared"])


def test_the_work_is_shared_out(ran: list[Ran]) -> None:
    """Half of the tokens of the picture in each, or half of the heads."""
    for process in ran:
        shapes: dict[str, Any] = {name: process.drawn[f"{name}/queries"].tolist() for name, _ in CROSS + JOINT}
        assert shapes["wan"] == shapes["wan-i2v"] == [2, 4, 32]
        assert [shape[-1] for name, shape in shapes.items() if name.startswith("tensor")] == [16, 16]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        *((f"context, {name}", "context parallelism on, which shares out its text") for name in ("ltx", "ltx2", "qwen")),
        ("context, record", "each process sees a part of the picture; a suppression map cannot be recorded"),
        *((f"tensor, {name}, nag", "some of the heads; it cannot be used with NAG") for name in ("flux", "qwen")),
        *((f"tensor, {name}, record", "a suppression map, which is a mean over the heads") for name in ("flux", "qwen")),
    ],
)  # fmt: skip
def test_what_would_be_wrong_is_refused(ran: list[Ran], name: str, says: str) -> None:
    assert all(says in process.said[name] for process in ran)
