"""Runs written by hand, with known answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vsf.bench.cases import Case, CaseSet
from vsf.bench.run import Answer, Point, Run, RunPlan, Unit
from vsf.guidance import METHODS
from vsf.images import png_bytes

Says = Callable[[Unit], Mapping[str, Any] | None]


def cases(n: int = 6, split: str = "test", **more: Any) -> CaseSet:
    return CaseSet(
        "made",
        "Apache-2.0",
        tuple(
            Case(
                f"case-{i}", f"a drawing of thing number {i}", f"part {i}", "Is it there?", "Is it missing?", split,
                f"kind-{i % 3}", "made for a test", **more,
            )
            for i in range(n)
        ),
    )  # fmt: skip


def point(name: str, method: str | None = None, **knobs: Any) -> Point:
    return Point(name, METHODS[method or name](**knobs).settings())


def make_run(
    folder: Path,
    points: Sequence[Point],
    answers: Mapping[str, Says],
    n: int = 6,
    seeds: Sequence[int] = (0, 1),
    controls: bool = True,
    threshold: float | None = None,
    case_set: CaseSet | None = None,
    model: str = "demo",
) -> Run:
    """A run that is drawn completely, with one judge per entry of `answers`: what it says of a unit, None = not asked."""
    chosen = case_set or cases(n)
    plan = RunPlan(model, tuple(points), tuple(c.id for c in chosen), chosen.name, chosen.hash, tuple(seeds), controls)
    run = Run.create(folder, plan, chosen)
    draw(run)
    for name, says in answers.items():
        store = run.set_judge(name, {"kind": "made", **({} if threshold is None else {"threshold": threshold})})
        for unit in plan.units:
            given = says(unit)
            if given is not None:
                store.put(unit.id, asdict(Answer(unit.id, **given)))
    return run


def draw(run: Run) -> None:
    """Pictures and records for every unit."""
    for number, unit in enumerate(run.plan.units):
        path = run.image(unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((16, 16, 3), (number * 37) % 256, np.uint8)
        path.write_bytes(png_bytes(Image.fromarray(pixels)))
        run.records.put(
            unit.id,
            {
                "unit": unit.id, "seconds": 0.5 if unit.point == "none" else 1.0, "peak_memory": 2**30,
                "peak_memory_is": "made up", "weights": "ab" * 32, "dtype": "float32", "device": "cpu",
                "pipeline": "Made", "hardware": "none", "versions": {"vsf": "0", "torch": "0"}, "broken": None,
                "git": {"commit": "c" * 40, "dirty": False}, "sha256": "00", "steps": run.plan.steps,
            },
        )  # fmt: skip


def says(a1: bool = True, a2: bool = True, quality: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"answer_1": a1, "answer_2": a2, "quality": quality, **more}
