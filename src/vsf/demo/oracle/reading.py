"""The oracle and what it reads."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..worlds import OracleError
from .distort import to_tensor
from .network import CARD, CLASSES, COLORS, HEADS, PARTS, SIZE, WEIGHTS, Net


@dataclass(frozen=True)
class Reading:
    """What the oracle reads in N pictures.

    Attributes:
        object_probs: [N, K + 1], over ``pictures.OBJECTS`` and "none", in this order.
        color_probs: [N, C], over ``pictures.COLORS``; says nothing where the object is "none".
        part_probs: [N, P], one independent probability per part in ``pictures.PARTS``.
        quality: [N] in [0, 1]: 1 for a typical render, 0.5 at the edge of clean renders, falling with destruction.
    """

    object_probs: NDArray[np.float32]
    color_probs: NDArray[np.float32]
    part_probs: NDArray[np.float32]
    quality: NDArray[np.float32]

    @property
    def objects(self) -> list[str]:
        """The most probable object of each picture, or "none"."""
        return [CLASSES[i] for i in self.object_probs.argmax(1)]

    @property
    def colors(self) -> list[str]:
        """The most probable colour of each picture."""
        return [COLORS[i] for i in self.color_probs.argmax(1)]

    def part(self, name: str) -> NDArray[np.float32]:
        """[N] probabilities of one part. Raises ValueError for an unknown part."""
        if name not in PARTS:
            raise ValueError(f"unknown part {name!r}; known: {', '.join(PARTS)}")
        return self.part_probs[:, PARTS.index(name)]

    def has(self, name: str) -> NDArray[np.bool_]:
        """[N] whether a part is there: probability of at least one half."""
        return self.part(name) >= 0.5


def world_key() -> str:
    """Changes when the world's names change, so that weights of another world are refused."""
    return sha256(json.dumps([CLASSES, COLORS, PARTS]).encode()).hexdigest()[:16]


class Oracle:
    """Reads pictures; made by :func:`load_oracle` or :func:`train_oracle`. ``card`` says how well it reads."""

    def __init__(self, net: Net, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        self._net = net.eval()
        self._mean = tensors["distance.mean"].float()
        self._whiten = tensors["distance.whiten"].float()
        self.card = card

    @property
    def threshold(self) -> float:
        """Quality from which a picture counts as whole: 95 % of held-out clean, slightly softened renders pass."""
        return float(self.card["quality"]["threshold"])

    @property
    def fingerprint(self) -> str:
        """Hash of the weights, for records."""
        return str(self.card["sha256"])

    def read(self, images: NDArray[Any], batch: int = 256) -> Reading:
        """Read pictures [N, H, W, 3], uint8 or float in [0, 1]; other sizes than 64 px are resized.

        Raises:
            ValueError: for another shape, dtype or range, or non-finite values.
        """
        x = to_tensor(images)
        if x.shape[2:] != (SIZE, SIZE):
            x = F.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        out = self.logits(x, batch)
        t = self.card["temperature"]
        probs = {
            "object": (out["object"] / t["object"]).softmax(1),
            "color": (out["color"] / t["color"]).softmax(1),
            "part": (out["part"] / t["part"]).sigmoid(),
        }
        quality = quality_of(self.distance(out["features"], out["object"]), **self.card["quality"]["scale"])
        objects, colors, parts = (probs[h].numpy() for h in HEADS)
        return Reading(objects, colors, parts, quality.numpy().astype(np.float32))

    @torch.no_grad()
    def logits(self, x: Tensor, batch: int = 256) -> dict[str, Tensor]:
        pieces = [self._net(piece) for piece in x.split(batch)]
        return {name: torch.cat([p[name] for p in pieces]).float() for name in pieces[0]}

    def distance(self, features: Tensor, logits: Tensor) -> Tensor:
        """Mahalanobis distance [N] to the clean renders of the object that is read, all objects sharing a covariance.

        Lee et al. 2018 (arXiv 1807.03888), here over the embedding together with statistics of small patches: octave
        band energies, and means and deviations of the first two stages. "none" is measured against part-only scenes.
        """
        z = (features - self._mean[logits.argmax(1)]) @ self._whiten
        return z.square().mean(1).sqrt()


def quality_of(distance: Tensor, typical: float, edge: float) -> Tensor:
    """``2 ** -max(0, log(d / typical) / log(edge / typical))``: 1 up to the median clean render, 1/2 at its 99 %."""
    z = (distance.clamp_min(1e-6) / typical).log() / math.log(edge / typical)
    return torch.pow(2.0, -z.clamp_min(0))


def load_oracle(folder: str | Path | None = None) -> Oracle:
    """The shipped oracle, or one saved by :func:`train_oracle` in ``folder``.

    Raises:
        OracleError: the files are missing or corrupt, or belong to a world with other names.
    """
    path = Path(str(files("vsf.demo").joinpath("weights_oracle"))) if folder is None else Path(folder)
    if not (path / WEIGHTS).is_file() or not (path / CARD).is_file():
        raise OracleError(f"no oracle in {path}: {WEIGHTS} and {CARD} are needed")
    try:
        card = json.loads((path / CARD).read_text("utf-8"))
        if card["world"] != world_key():
            raise OracleError(f"the oracle in {path} was trained on a world with other objects, colours or parts")
        tensors = load_file(path / WEIGHTS)
        net = Net()
        net.load_state_dict({k[4:]: v.float() for k, v in tensors.items() if k.startswith("net.")})
        card["sha256"] = sha256((path / WEIGHTS).read_bytes()).hexdigest()
        return Oracle(net, tensors, card)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
        if isinstance(error, OracleError):
            raise
        raise OracleError(f"the oracle in {path} cannot be read: {error}") from error
