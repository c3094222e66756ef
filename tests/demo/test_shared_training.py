"""Processes that train together do what one does with the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from closeness import same
from vsf.demo.training.loop import Optimisation, Schedule, share

STEPS = 5
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Part:
    batch: int


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def loss_of(net: nn.Module, batch: int, step: int) -> dict[str, Tensor]:
    x = torch.randn(batch, 3, generator=torch.Generator().manual_seed(step))
    return {"error": (net(x) - x.sum(1, keepdim=True)).pow(2).mean()}


def schedule() -> Schedule:
    return Schedule(8 * STEPS, 8, 0.1, 16, "linear", 0.5, 0.01, 0.5, False, 60.0)


def work(folder: Path) -> None:
    """What each of the processes does."""
    from vsf.bench.cluster import launched

    with launched("cpu"):
        net, own = model(), share(Part(8)).batch
        part = Optimisation(net, schedule(), folder / "together.safetensors")
        assert own == 4 and part.run(lambda step: loss_of(net, own, step))
        rank = os.environ["RANK"]
        (folder / f"rank-{rank}.json").write_text(json.dumps([part.at.step, part.averaged()["0.weight"].tolist()]))
        with pytest.raises(ValueError, match="7 cannot be parted among 2"):
            share(Part(7))


def test_two_processes_make_the_steps_of_one(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launch, __file__, str(tmp_path)]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    net = model()
    alone = Optimisation(net, schedule(), tmp_path / "alone.safetensors")

    def whole(step: int) -> dict[str, Tensor]:
        halves = [loss_of(net, 4, 2 * step + rank)["error"] for rank in range(2)]
        return {"error": torch.stack(halves).mean()}

    assert alone.run(whole)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second and first[0] == STEPS
    ours, theirs = load_file(tmp_path / "together.safetensors"), load_file(tmp_path / "alone.safetensors")
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        same(ours[key], value, 64 * torch.finfo(torch.float32).eps)  # sums of four numbers and of eight, five times


if __name__ == "__main__":
    work(Path(sys.argv[1]))
