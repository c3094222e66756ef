"""The network that reads pictures, and what it can read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import pictures

SIZE = 64
NONE = "none"
CLASSES = (*pictures.OBJECTS, NONE)
COLORS = tuple(pictures.COLORS)
PARTS = pictures.PARTS
HEADS = ("object", "color", "part")
WEIGHTS, CARD = "oracle.safetensors", "oracle.json"


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_a = nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_b = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))


def _down(a: int, b: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(a, b, kernel, stride=2, padding=kernel // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()
    )


class Net(nn.Module):
    """[N, 3, 64, 64] in [0, 1] -> logits per head and the features that distances are measured in."""

    def __init__(self, widths: Sequence[int] = (24, 40, 72, 96), embedding: int = 64) -> None:
        super().__init__()
        w = list(widths)
        self.stages = nn.ModuleList(
            [
                _down(3, w[0], 5),
                nn.Sequential(_down(w[0], w[1]), _Residual(w[1])),
                nn.Sequential(_down(w[1], w[2]), _Residual(w[2])),
                nn.Sequential(_down(w[2], w[3]), _Residual(w[3])),
            ]
        )
        self.embed = nn.Linear(2 * w[3], embedding)
        self.norm = nn.BatchNorm1d(embedding)
        self.object = nn.Linear(embedding, len(CLASSES))
        self.color = nn.Linear(embedding, len(COLORS))
        self.part = nn.Linear(2 * w[3] + w[2], len(PARTS))  # past the bottleneck: parts are many and small
        self.damage = nn.Linear(embedding, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits "object", "color", "part", "damage" (strength of distortion), and "features" [N, D]."""
        local: list[Tensor] = [_band_energy(x)]
        fine = x = (x - 0.5) * 4
        for depth, stage in enumerate(self.stages):
            x = stage(x)
            if depth < 2:  # statistics of small patches: 5 and 13 pixels
                local += [x.mean((2, 3)), x.float().var((2, 3)).add(1e-4).sqrt()]
            if depth == 2:
                fine = x.amax((2, 3))
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        e = F.relu(self.norm(self.embed(pooled)))
        return {
            "object": self.object(e),
            "color": self.color(e),
            "part": self.part(torch.cat([pooled, fine], 1)),
            "damage": self.damage(e).squeeze(1),
            "features": torch.cat([e, *local], 1),
        }


def _band_energy(x: Tensor) -> Tensor:
    """Log mean |.| and log mean square of four octave bands of the grey picture, [N, 8]: how sharp it is."""
    grey, bands = x.float().mean(1, keepdim=True), []
    for _ in range(4):
        low = F.avg_pool2d(F.pad(grey, (1, 1, 1, 1), mode="reflect"), 3, 1)
        high = grey - low
        bands += [
            high.abs().mean((1, 2, 3)).clamp_min(1e-4).log(),
            high.square().mean((1, 2, 3)).clamp_min(1e-6).log(),
        ]
        grey = F.avg_pool2d(low, 2)
    return torch.stack(bands, 1)
