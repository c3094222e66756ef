"""The gate: does a demo model understand part words at all? Without that, no method can be compared on it.

A model that ignores part words inside a caption loses a part only when it loses the picture. So before any method is
measured, the unguided model must draw what captions say, also in unusual combinations, and must draw a typical part
that is not mentioned nearly always, but not certainly.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import stats
from ..provenance import versions, weights_hash
from .models import DemoModel
from .worlds import World

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Draw", "GateLine", "GateReport", "about", "gate_table", "run_gate", "unguided"]

Draw = Callable[[Sequence[str], Sequence[int]], NDArray[np.floating[Any]]]
"""(prompts, noise seeds) -> pictures [N, H, W, 3] or clips [N, T, H, W, 3] in [0, 1]."""


def unguided(pipe: Any, model: DemoModel, steps: int | None = None, scale: float | None = None) -> Draw:
    """What a demo model draws by itself, each prompt from its own noise; `scale` is the pipeline's guidance_scale."""
    import torch

    call = model.completed(
        {
            "num_inference_steps": steps or model.steps,
            "guidance_scale": model.guidance_scale if scale is None else scale,
            "output_type": "np",
        }
    )

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.float32]:
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        with torch.no_grad():
            out = pipe(prompt=list(prompts), generator=noise, **call)
        return np.asarray(out.frames if hasattr(out, "frames") else out.images, dtype=np.float32)

    return draw


@dataclass(frozen=True)
class GateLine:
    """One figure of the gate; it passes when its mean lies in [low, high]."""

    name: str
    text: str
    low: float
    high: float
    value: stats.Interval
    by_object: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether the mean lies within the limits."""
        return self.low <= self.value.mean <= self.high


_LINES = {
    "typical": ("typical part there when asked for", 0.98, 1.0),
    "atypical": ("atypical part there when asked for", 0.90, 1.0),
    "unmentioned": ("typical parts there in a caption that says nothing of them", 0.85, 0.97),
    "plain": ("typical parts absent when the caption says 'plain'", 0.90, 1.0),
    "object": ("object recognised, all captions", 0.97, 1.0),
    "color": ("colour recognised, all captions", 0.95, 1.0),
}


@dataclass(frozen=True)
class GateReport:
    """The six figures, and the prompts they were measured on with what was read."""

    lines: tuple[GateLine, ...]
    quality: stats.Interval
    n: int
    seed: int
    splits: tuple[str, ...]
    pictures: list[dict[str, Any]]
    about: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every line passed."""
        return all(line.passed for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        lines = [{**asdict(line), "passed": line.passed} for line in self.lines]
        return {
            "passed": self.passed,
            "n": self.n,
            "seed": self.seed,
            "splits": list(self.splits),
            "lines": lines,
            "quality": asdict(self.quality),
            "about": self.about,
            "pictures": self.pictures,
        }


def about(pipe: Any, oracle: Any) -> dict[str, Any]:
    """What the figures of a pipeline and a judge depend on besides the settings."""
    return {
        "versions": versions("torch", "diffusers", "transformers", "numpy"),
        "machine": platform.machine(),
        "pipeline": type(pipe).__name__,
        "model_sha256": weights_hash(pipe),
        "oracle_sha256": oracle.fingerprint,
        "quality_threshold": oracle.threshold,
    }


def _prompts(world: World, n: int, seed: int, splits: Sequence[str]) -> list[dict[str, Any]]:
    """Four captions for each of n held-out combinations, every second one naming the background."""
    rng, code = np.random.default_rng([seed, 77]), world.code
    by_object = {
        name: [
            (color, where)
            for color, where in itertools.product(world.colors, world.backgrounds)
            if code.split(name, color, where) in splits
        ]
        for name in world.objects
    }
    for pairs in by_object.values():
        rng.shuffle(pairs)
    rows: list[dict[str, Any]] = []
    for i in range(n):
        name = world.objects[i % len(world.objects)]
        turn = i // len(world.objects)
        color, where = by_object[name][turn % len(by_object[name])]  # each once before any comes again
        typical = world.typical[name]
        part = typical[turn % len(typical)]
        extras = code.allowed_extras(name)
        extra = extras[int(rng.integers(len(extras)))]
        named = i % 2 == 0
        for kind, how, drawn in (
            ("typical", "mention", (part,)),
            ("atypical", "mention", (extra,)),
            ("unmentioned", "bare", ()),
            ("plain", "exact", ()),
        ):
            scene = code.Scene(name, color, drawn, where, "flat", 0)
            prompt = code.caption(scene, how, rng, named, False)
            noise = int.from_bytes(sha256(f"gate|{seed}|{i}|{kind}".encode()).digest()[:7], "big")
            asked = drawn if drawn else typical
            rows.append(
                {
                    "case": i,
                    "kind": kind,
                    "prompt": prompt,
                    "object": name,
                    "color": color,
                    "parts": asked,
                    "noise": noise,
                }
            )
    return rows


def run_gate(
    draw: Draw,
    world: World,
    oracle: Any,
    n: int = 200,
    seed: int = 0,
    *,
    splits: Sequence[str] = ("dev", "test"),
    batch: int = 32,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GateReport:
    """Measure the six figures on ``n`` held-out (object, colour, background) combinations, four captions each.

    The combinations are spread evenly over the objects and come from ``splits``; intervals are clustered by
    object. Of a clip every frame counts, with a weight of one over their number. ``about`` says what drew and
    judged; ``progress`` is called with (pictures done, pictures in all).

    Raises:
        ValueError: n or batch below 1, or no held-out split.
    """
    if min(n, batch) < 1:
        raise ValueError(f"n and batch must be at least 1, got {n} and {batch}")
    if not splits or not set(splits) <= {"dev", "test"}:
        raise ValueError(f"splits are dev, test or both, got {', '.join(splits) or 'none'}")
    rows = _prompts(world, n, seed, splits)
    pictures: list[dict[str, Any]] = []
    for start in range(0, len(rows), batch):
        piece = rows[start : start + batch]
        images = draw([r["prompt"] for r in piece], [r["noise"] for r in piece])
        images = np.clip(np.nan_to_num(np.asarray(images, dtype=np.float32)), 0, 1)
        frames = 1 if images.ndim == 4 else images.shape[1]
        reading = oracle.read(images.reshape(-1, *images.shape[-3:]))
        for i, row in enumerate(piece):
            of = slice(i * frames, (i + 1) * frames)
            pictures.append({**row, "parts": list(row["parts"]), **_seen(reading, of, row["parts"])})
        if progress:
            progress(len(pictures), len(rows))
    return GateReport(
        lines=tuple(_line(name, pictures) for name in _LINES),
        quality=stats.cluster_share([float(np.mean(p["quality"])) for p in pictures], [p["object"] for p in pictures]),
        n=n,
        seed=seed,
        splits=tuple(splits),
        pictures=pictures,
        about=dict(about or {}),
    )


def _seen(reading: Any, of: slice, parts: Sequence[str]) -> dict[str, Any]:
    """What was read in one picture, as plain values; in a clip, as lists over its frames."""

    def of_frames(values: Sequence[Any]) -> Any:
        some = list(values[of])
        return some[0] if len(some) == 1 else some

    probs = {p: of_frames([round(float(v), 4) for v in reading.part(p)]) for p in parts}
    read = {"object": of_frames(reading.objects), "color": of_frames(reading.colors), "parts": probs}
    return {"read": read, "quality": of_frames([float(v) for v in reading.quality])}


def _line(name: str, pictures: list[dict[str, Any]]) -> GateLine:
    values: list[float] = []
    objects: list[str] = []
    for p in pictures:
        found: list[float] = []
        if name in ("object", "color"):
            found = [float(np.mean(np.asarray(p["read"][name]) == p[name]))]
        elif p["kind"] == name:
            found = [
                float(np.mean((np.asarray(prob) >= 0.5) != (name == "plain"))) for prob in p["read"]["parts"].values()
            ]
        values += found
        objects += [p["object"]] * len(found)
    text, low, high = _LINES[name]
    by_object = {
        o: round(float(np.mean([v for v, at in zip(values, objects, strict=True) if at == o])), 4)
        for o in sorted(set(objects))
    }
    return GateLine(name, text, low, high, stats.cluster_share(values, objects), by_object)


def gate_table(report: GateReport) -> Table:
    """A rich table of the report."""
    from rich.table import Table

    table = Table(title=f"Gate: {'passed' if report.passed else 'NOT passed'} ({report.n} held-out combinations)")
    for name, side in (
        ("figure", "left"),
        ("wanted", "right"),
        ("measured", "right"),
        ("95 %", "right"),
        ("", "left"),
    ):
        table.add_column(name, justify=side)  # pyright: ignore[reportArgumentType]
    for line in report.lines:
        wanted = f">= {line.low:.2f}" if line.high == 1.0 else f"{line.low:.2f} to {line.high:.2f}"
        verdict = "[green]pass[/green]" if line.passed else "[red]FAIL[/red]"
        v = line.value
        table.add_row(line.text, wanted, f"{v.mean:.3f}", f"{v.low:.3f} to {v.high:.3f}", verdict)
    q = report.quality
    table.add_row("quality, for information", "", f"{q.mean:.3f}", f"{q.low:.3f} to {q.high:.3f}", "")
    return table
