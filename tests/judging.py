"""A run with pictures, for judges: renders of the demo world in place of what methods would have drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from vsf.bench.cases import CaseSet, load_cases
from vsf.bench.run import Point, Run, RunPlan, Unit
from vsf.demo import pictures as world
from vsf.images import save_png

METHODS = ("none", "vsf", "nag")


def parts_of(unit: Unit, case: Any) -> tuple[str, ...]:
    """What a unit's picture shows: "vsf" leaves the part out, "nag" leaves every part out, "none" draws all."""
    typical = world.TYPICAL[case.object]
    if unit.kind == "unrelated" or unit.point == "none":
        return tuple(sorted(typical))
    return tuple(sorted(p for p in typical if p != case.part)) if unit.point == "vsf" else ()


def make_run(folder: Path, cases: int = 4, seeds=(0, 1), controls: bool = True, methods=METHODS, draw=None) -> Run:
    """A run in `folder`, drawn completely, or those units for which `draw(unit)` is true."""
    whole = load_cases("demo")
    some = tuple(c for c in whole.split("dev") if len(world.TYPICAL[c.object or ""]) > 1)[:cases]
    chosen = CaseSet("demo", whole.license, some)
    points = tuple(Point(name, {"method": name}) for name in methods)
    plan = RunPlan(
        "demo", points, tuple(c.id for c in some), chosen.name, chosen.hash, seeds=tuple(seeds), controls=controls
    )
    run = Run.create(folder, plan, chosen)
    for unit in plan.units:
        if draw is None or draw(unit):
            add_picture(run, unit)
    return run


def add_picture(run: Run, unit: Unit, image: Image.Image | None = None) -> None:
    case: Any = run.case[unit.case]  # of the demo world: it has them all
    scene = world.Scene(case.object, case.color, parts_of(unit, case), case.background, "flat", 100 + unit.seed)
    path = run.image(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    # As the real ones do, the file says how it was made.
    save_png(
        image or Image.fromarray(world.render(scene)), path, {"guidance": {"method": unit.point}, "unit": unit.id}
    )
    run.records.put(unit.id, {"unit": unit.id})


def drawn(run: Run) -> list[Unit]:
    there = run.records.keys()
    return [unit for unit in run.plan.units if unit.id in there]


def files_with(folder: Path, text: str) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]
