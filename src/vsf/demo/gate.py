"""The gate: does the demo model understand part words at all? Without that, no method can be compared on it.

A model that ignores part words inside a caption loses a part only when it loses the picture. So before any method is
measured, the unguided model must draw what captions say, also in unusual combinations, and must draw a typical part
that is not mentioned nearly always, but not certainly.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import stats
from . import world
from .evaluate import Draw, draw, provenance
from .oracle import Oracle
from .settings import STEPS

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["GateLine", "GateReport", "gate_table", "run_gate"]


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
    steps: int
    pictures: list[dict[str, Any]]
    provenance: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every line passed."""
        return all(line.passed for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        lines = [{**asdict(line), "value": line.value.to_dict(), "passed": line.passed} for line in self.lines]
        return {
            "passed": self.passed,
            "n": self.n,
            "seed": self.seed,
            "steps": self.steps,
            "lines": lines,
            "quality": self.quality.to_dict(),
            "provenance": self.provenance,
            "pictures": self.pictures,
        }

    def to_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict` to a file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", "utf-8")


def _prompts(n: int, seed: int) -> list[dict[str, Any]]:
    """Four captions for each of n held-out combinations, every second one naming the background."""
    rng = np.random.default_rng([seed, 77])
    by_object = {
        name: [
            (color, where)
            for color, where in itertools.product(world.COLORS, world.BACKGROUNDS)
            if world.split(name, color, where) != "train"
        ]
        for name in world.OBJECTS
    }
    for pairs in by_object.values():
        rng.shuffle(pairs)
    rows: list[dict[str, Any]] = []
    for i in range(n):
        name = world.OBJECTS[i % len(world.OBJECTS)]
        turn = i // len(world.OBJECTS)
        color, where = by_object[name][turn % len(by_object[name])]  # each once before any comes again
        typical = world.TYPICAL[name]
        part = typical[turn % len(typical)]
        extras = world.allowed_extras(name)
        extra = extras[int(rng.integers(len(extras)))]
        named = i % 2 == 0
        for kind, how, drawn in (
            ("typical", "mention", (part,)),
            ("atypical", "mention", (extra,)),
            ("unmentioned", "bare", ()),
            ("plain", "exact", ()),
        ):
            scene = world.Scene(name, color, drawn, where, "flat", 0)
            prompt = world.caption(scene, how, rng, named, False)
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
    pipe: Any,
    oracle: Oracle,
    n: int = 200,
    seed: int = 0,
    *,
    steps: int = STEPS,
    batch: int = 32,
    draw: Draw = draw,
    progress: Callable[[int, int], None] | None = None,
) -> GateReport:
    """Measure the six figures on ``n`` held-out (object, colour, background) combinations, four captions each.

    The combinations are spread evenly over the objects and come from the dev and test splits; intervals are clustered
    by combination. ``progress`` is called with (pictures done, pictures in all).

    Raises:
        ValueError: n, steps or batch below 1.
    """
    if min(n, steps, batch) < 1:
        raise ValueError(f"n, steps and batch must be at least 1, got {n}, {steps} and {batch}")
    from ..guidance import NoGuidance

    rows = _prompts(n, seed)
    pictures: list[dict[str, Any]] = []
    for start in range(0, len(rows), batch):
        piece = rows[start : start + batch]
        images = draw(
            pipe,
            NoGuidance(),
            [r["prompt"] for r in piece],
            [None] * len(piece),
            [r["noise"] for r in piece],
            steps,
        )
        reading = oracle.read(np.clip(np.nan_to_num(np.asarray(images, dtype=np.float32)), 0, 1))
        for i, row in enumerate(piece):
            probs = {p: round(float(reading.part(p)[i]), 4) for p in row["parts"]}
            seen = {"object": reading.objects[i], "color": reading.colors[i], "parts": probs}
            pictures.append({**row, "parts": list(row["parts"]), "read": seen, "quality": float(reading.quality[i])})
        if progress:
            progress(len(pictures), len(rows))
    return GateReport(
        lines=tuple(_line(name, pictures) for name in _LINES),
        quality=stats.cluster_mean([p["quality"] for p in pictures], [p["case"] for p in pictures], bounds=(0.0, 1.0)),
        n=n,
        seed=seed,
        steps=steps,
        pictures=pictures,
        provenance=provenance(pipe, oracle),
    )


def _line(name: str, pictures: list[dict[str, Any]]) -> GateLine:
    values: list[float] = []
    cases: list[int] = []
    objects: list[str] = []
    for p in pictures:
        found: list[bool] = []
        if name == "object":
            found = [p["read"]["object"] == p["object"]]
        elif name == "color":
            found = [p["read"]["color"] == p["color"]]
        elif p["kind"] == name:
            found = [(prob >= 0.5) != (name == "plain") for prob in p["read"]["parts"].values()]
        values += map(float, found)
        cases += [p["case"]] * len(found)
        objects += [p["object"]] * len(found)
    text, low, high = _LINES[name]
    by_object = {
        o: round(float(np.mean([v for v, at in zip(values, objects, strict=True) if at == o])), 4)
        for o in sorted(set(objects))
    }
    return GateLine(name, text, low, high, stats.cluster_proportion(values, cases), by_object)


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
