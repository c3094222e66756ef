"""A run of the benchmark on disk: what is to be drawn, what was drawn, and what judges said about it.

::

    RUN/
      plan.json                          what is drawn: cases and their hash, model, points, seeds, steps, size
      cases.jsonl                        the cases themselves, as they were
      images/POINT/UNIT.png              one picture per unit
      records/POINT/UNIT.json            how it was made
      judges/JUDGE/judge.json            who judged
      judges/JUDGE/answers/POINT/UNIT.json

Every file is written whole or not at all, and its name says what it is about: whoever is killed at any moment loses
at most what was in hand, several writers need no lock, and nothing can be there twice. A picture is there once its
record is. Files only: neither torch nor diffusers is needed to read a run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from ..files import json_bytes, plain, write_whole
from .cases import Case, CasesError, CaseSet, load_cases, save_cases

__all__ = ["KINDS", "Answer", "Point", "Run", "RunError", "RunPlan", "Store", "Unit"]

FORMAT = "vsf-run"
VERSION = 1
KINDS = ("true", "unrelated")
"""The negative of a picture: the case's own, or the control (see `vsf.bench.controls`)."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+=,-]{0,98}[A-Za-z0-9])?")


class RunError(ValueError):
    """A run directory cannot be made, read or continued."""


@dataclass(frozen=True)
class Point:
    """One method with its settings, under a name that is fit for a folder.

    `settings` are those of `Guidance.settings()` (``{"method": "vsf", "scale": 1.5, ...}``), every knob in them.
    `steps` and `guidance_scale` override the plan's, for a baseline that needs others (CFG on a model that is not
    distilled).

    Raises:
        RunError: the name is not fit for a folder.
    """

    name: str
    settings: Mapping[str, Any]
    steps: int | None = None
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise RunError(f"a point is named {self.name!r}; allowed: letters, digits and . _ + = , - (1 to 100)")

    @property
    def method(self) -> str:
        """The method's label."""
        return str(self.settings["method"])


@dataclass(frozen=True)
class Unit:
    """One picture of a plan: point x case x seed x kind of negative ("true" or "unrelated")."""

    point: str
    case: str
    seed: int
    kind: Literal["true", "unrelated"] = "true"

    @property
    def name(self) -> str:
        """Its file name within the point's folder, without suffix."""
        return f"{self.case}--{self.seed}--{self.kind}"

    @property
    def id(self) -> str:
        """Its name in the whole run, `POINT/CASE--SEED--KIND`."""
        return f"{self.point}/{self.name}"

    @property
    def noise_seed(self) -> int:
        """Seed of the initial noise: of case and seed only, so that all methods start from the same noise."""
        return int.from_bytes(sha256(f"{self.case}|{self.seed}".encode()).digest()[:7], "big")

    @classmethod
    def parse(cls, id: str) -> Unit:
        """The inverse of `id`. Raises RunError."""
        try:
            point, name = id.split("/")
            case, seed, kind = name.rsplit("--", 2)
            if kind not in KINDS:
                raise ValueError
            return cls(point, case, int(seed), kind)  # type: ignore[arg-type]
        except ValueError:
            raise RunError(f"{id!r} is not the name of a picture, POINT/CASE--SEED--KIND") from None


@dataclass(frozen=True)
class RunPlan:
    """What a run draws. Pictures depend on nothing but the plan, the cases and the model.

    `batch` is part of it: how samples are grouped changes the last bits of a picture, so that a continued run is the
    same as one that was never interrupted only if the groups are the same.

    Attributes:
        model: an embedded model, a preset, a folder or an id; `revision` of an id.
        points: what is compared, in the order of tables.
        cases: ids of the cases that are drawn; `cases_name`, `cases_hash`: the set they come from.
        seeds: one picture per case, point, kind and seed.
        controls: whether every case is drawn with its unrelated negative, too.
        size: (width, height), or None for the model's own.
        extra: further arguments of the pipeline.
    """

    model: str
    points: tuple[Point, ...]
    cases: tuple[str, ...]
    cases_name: str
    cases_hash: str
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    controls: bool = True
    steps: int = 8
    guidance_scale: float = 0.0
    size: tuple[int, int] | None = None
    dtype: str | None = None
    revision: str | None = None
    batch: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, given in (
            ("points", [p.name.lower() for p in self.points]),
            ("cases", list(self.cases)),
            ("seeds", list(self.seeds)),
        ):
            if not given or len(set(given)) < len(given):
                raise RunError(f"a plan needs {what} without repeats, got {given[:8] or 'none'}")
        if self.batch < 1 or self.steps < 1:
            raise RunError(f"batch and steps must be at least 1, got {self.batch} and {self.steps}")

    def kinds(self, point: Point) -> tuple[Literal["true", "unrelated"], ...]:
        """The kinds of negatives a point is drawn with: without guidance both would give the same picture."""
        return ("true", "unrelated") if self.controls and point.method != "none" else ("true",)

    @cached_property
    def chunks(self) -> tuple[tuple[Unit, ...], ...]:
        """All units in groups that are drawn together; a group belongs to one point."""
        groups: list[tuple[Unit, ...]] = []
        for point in self.points:
            units = [
                Unit(point.name, case, seed, kind)
                for kind in self.kinds(point)
                for case in self.cases
                for seed in self.seeds
            ]
            groups += [tuple(units[i : i + self.batch]) for i in range(0, len(units), self.batch)]
        return tuple(groups)

    @property
    def units(self) -> Iterator[Unit]:
        """All pictures, in the order in which they are drawn."""
        return (unit for chunk in self.chunks for unit in chunk)

    def point(self, name: str) -> Point:
        """The point of that name; KeyError."""
        return next(p for p in self.points if p.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"format": FORMAT, "version": VERSION, **plain(asdict(self))}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunPlan:
        """The inverse of `to_dict`. Raises RunError."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise RunError(f"not a plan of {FORMAT}")
        if data.get("version") != VERSION:
            raise RunError(f"it is of {FORMAT} version {data.get('version')}; this vsf reads version {VERSION}")
        try:
            given = {f.name: data[f.name] for f in fields(cls) if f.name in data}
            given["points"] = tuple(Point(**p) for p in given["points"])
            for name in ("cases", "seeds", "size"):
                given[name] = tuple(given[name]) if given.get(name) is not None else None
            return cls(**given)
        except (KeyError, TypeError) as error:
            raise RunError(f"a plan that cannot be read: {error}") from error


@dataclass(frozen=True)
class Answer:
    """What one judge said about one picture.

    Every judge is asked about the case's own negative, also where the picture was drawn with the unrelated one.

    Attributes:
        unit: the picture's id.
        status: "judged", or "not judged" with the `reason`. Such a picture counts as neither good nor bad.
        answer_1: is the main object there, with or without the negative?
        answer_2: is the negative missing?
        quality: 0 to 1.
        kept: share (0 to 1) of the object's other parts that are still there; None where a case names none.
        identity: is it still that object, whatever its colour or setting? None where the judge was not asked.
        flicker: of a clip, share of its changes of frame at which the verdict on the negative changes.
        motion: of a clip, mean change of a pixel from frame to frame, 0 to 1.
        ends: of a clip, quality of the first or the last frame, the worse, minus that of the middle one.
        details: whatever else is worth keeping: reasoning, probabilities, request ids, tokens.
    """

    unit: str
    status: Literal["judged", "not judged"] = "judged"
    answer_1: bool | None = None
    answer_2: bool | None = None
    quality: float | None = None
    kept: float | None = None
    identity: bool | None = None
    flicker: float | None = None
    motion: float | None = None
    ends: float | None = None
    reason: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Answer:
        """The inverse of `dataclasses.asdict`, unknown fields left out."""
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})


class Store:
    """A folder of JSON files, one per key (`POINT/NAME`), each written whole."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Where a key is kept."""
        return self.folder / f"{key}.json"

    def put(self, key: str, data: Mapping[str, Any]) -> None:
        """Write one entry, replacing what is there."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json_bytes(data))

    def get(self, key: str) -> dict[str, Any]:
        """One entry; KeyError."""
        try:
            return json.loads(self.path(key).read_bytes())
        except FileNotFoundError:
            raise KeyError(key) from None

    def __contains__(self, key: str) -> bool:
        return self.path(key).is_file()

    def keys(self) -> set[str]:
        """All keys; a folder listing per point, no file is opened."""
        found: set[str] = set()
        if self.folder.is_dir():
            for point in os.scandir(self.folder):
                if point.is_dir():
                    with os.scandir(point.path) as entries:
                        found |= {
                            f"{point.name}/{e.name.removesuffix('.json')}"
                            for e in entries
                            if e.name.endswith(".json") and not e.name.startswith(".")
                        }
        return found


class Run:
    """A run directory. Make one with `create`, read one with `open`."""

    def __init__(self, folder: Path, plan: RunPlan, cases: CaseSet) -> None:
        self.folder, self.plan, self.cases = folder, plan, cases
        self.records = Store(folder / "records")

    @classmethod
    def create(cls, folder: str | Path, plan: RunPlan, cases: CaseSet) -> Run:
        """Begin a run, or continue one: a folder that holds the same plan is opened, one with another is refused.

        Raises:
            RunError: the folder holds another plan, or something that is no run.
            OSError: it cannot be written to.
        """
        folder = Path(folder)
        if (folder / "plan.json").is_file():
            run = cls.open(folder)
            if run.plan.to_dict() != plan.to_dict():
                old, new = run.plan.to_dict(), plan.to_dict()
                differ = [k for k in new if new[k] != old.get(k)]
                raise RunError(f"{folder} holds a run with other {', '.join(differ)}; give another folder")
            return run
        # A name with a dot: a lock, or the unfinished file of someone who was killed right here.
        if folder.exists() and any(p.name != "cases.jsonl" and not p.name.startswith(".") for p in folder.iterdir()):
            raise RunError(f"{folder} is not empty and holds no run; give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        save_cases(cases, folder / "cases.jsonl")
        write_whole(folder / "plan.json", (json.dumps(plan.to_dict(), indent=1) + "\n").encode())
        return cls(folder, plan, cases)

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Read a run.

        Raises:
            RunError: no run there, or a damaged one.
        """
        folder = Path(folder)
        try:
            plan = RunPlan.from_dict(json.loads((folder / "plan.json").read_bytes()))
            cases = load_cases(folder / "cases.jsonl")
        except FileNotFoundError:
            raise RunError(f"{folder} holds no run (no plan.json and cases.jsonl)") from None
        except (OSError, CasesError, ValueError) as error:
            raise RunError(f"the run in {folder} cannot be read: {error}") from error
        if cases.hash != plan.cases_hash:
            raise RunError(f"the cases in {folder} are not those of its plan: the hash differs")
        return cls(folder, plan, cases)

    @cached_property
    def case(self) -> dict[str, Case]:
        """The cases by id."""
        return {case.id: case for case in self.cases}

    def image(self, unit: Unit | str) -> Path:
        """Where a unit's picture is."""
        return self.folder / "images" / f"{unit if isinstance(unit, str) else unit.id}.png"

    def judges(self) -> list[str]:
        """Names of those who were asked and answered something, be it that they could not judge, in order."""
        folder = self.folder / "judges"
        return sorted(p.parent.name for p in folder.glob("*/judge.json")) if folder.is_dir() else []

    def judge(self, name: str) -> dict[str, Any]:
        """Who a judge is: kind, model, version of its questions, cost; RunError."""
        try:
            return json.loads((self.folder / "judges" / name / "judge.json").read_bytes())
        except (FileNotFoundError, ValueError):
            have = ", ".join(self.judges()) or "none"
            raise RunError(f"no judge {name!r} in {self.folder}; there: {have}") from None

    def answers(self, judge: str) -> Store:
        """The answers of a judge by unit id; `Answer.from_dict` reads one."""
        return Store(self._of_judge(judge) / "answers")

    def _of_judge(self, name: str) -> Path:
        """The folder of a judge. Raises RunError for a name not fit for one."""
        if not _NAME.fullmatch(name):
            raise RunError(f"a judge is named {name!r}; allowed: letters, digits and . _ + = , - (1 to 100)")
        return self.folder / "judges" / name

    def judged(self, judge: str) -> Iterator[Answer]:
        """All answers of a judge to pictures of the plan, in the plan's order."""
        store = self.answers(judge)
        there = store.keys()
        return (Answer.from_dict(store.get(unit.id)) for unit in self.plan.units if unit.id in there)

    def has_judged(self, name: str) -> bool:
        """Whether a judge has judged any picture at all; one that never could is none."""
        return any(answer.status == "judged" for answer in self.judged(name))

    def set_judge(self, name: str, about: Mapping[str, Any]) -> Store:
        """Note who judges, and give the store for the answers. Raises RunError for a name not fit for a folder."""
        folder = self._of_judge(name)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "judge.json", json_bytes(about, 1))
        return self.answers(name)
