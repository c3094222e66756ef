"""Choosing settings, on dev cases only, with the same number of tries for every method.

A sweep is a folder that any number of workers may work on at once::

    SWEEP/
      sweep.json            what is tried: arms and their ranges, budget, dev cases, seeds, model, objective
      study.journal         Optuna's studies, one per arm (or any storage that Optuna knows by URL)
      trials/ARM/0007/      the run of one try (`vsf.bench.run`): its pictures, records and answers
      worker-0.log          what a worker process said
      points.json           the chosen settings, frozen: what is drawn, once, on test

Nothing is lost: a try whose worker was killed is taken up again with its settings and its pictures, one that fails is
noted as failed with its reason and counts as a try.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..files import plain, write_whole
from ..grammar import unknown
from ..loading import DEMO
from .arms import ARMS
from .cases import CaseSet, load_cases, save_cases
from .judges import JUDGES
from .objectives import OBJECTIVES
from .run import Point, RunPlan

__all__ = ["Sweep", "SweepError"]

FORMAT = "vsf-sweep"
VERSION = 1


class SweepError(ValueError):
    """A sweep cannot be made, read or continued."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep tries; written once, read by every worker. Make it with `create`, read it with `open`.

    Attributes:
        folder: where it is.
        arms: names in ARMS, each with `budget` tries.
        cases: the set, `chosen` the ids of its dev cases that are drawn, each from every seed in `seeds`.
        judge: its record: the name in `JUDGES`, and its options ("args").
        storage: URL of Optuna's storage, or None for a journal file in the folder.
        seed: of the sampler.
    """

    folder: Path
    arms: tuple[str, ...]
    budget: int
    cases: CaseSet
    chosen: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    objective: str = "balanced"
    model: str = DEMO
    revision: str | None = None
    dtype: str | None = None
    steps: int = 8
    guidance_scale: float = 0.0
    size: tuple[int, int] | None = None
    batch: int = 32
    extra: Mapping[str, Any] = field(default_factory=dict)
    judge: Mapping[str, Any] = field(default_factory=lambda: {"name": "oracle", "args": {}})
    storage: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for what, given, allowed in (("arm", self.arms, ARMS), ("objective", (self.objective,), OBJECTIVES)):
            for name in given:
                if name not in allowed:
                    raise SweepError(unknown(what, name, allowed))
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise SweepError(f"a sweep needs arms without repeats, got {', '.join(self.arms) or 'none'}")
        if self.budget < 1:
            raise SweepError(f"budget must be at least 1 try per arm, got {self.budget}")
        by_id = {case.id: case for case in self.cases}
        if strange := [id for id in self.chosen if id not in by_id]:
            raise SweepError(f"no case {strange[0]!r} in {self.cases.name}")
        if wrong := [id for id in self.chosen if by_id[id].split != "dev"]:
            raise SweepError(
                f"settings are chosen on dev cases only; {len(wrong)} of {len(self.chosen)} are not, the first is {wrong[0]}"
            )
        try:
            gives = JUDGES[self.judge["name"]].gives
        except ValueError as error:
            raise SweepError(str(error)) from error
        if lacking := [name for name in OBJECTIVES[self.objective].answers if name not in gives]:
            raise SweepError(
                f"the judge {self.judge['name']} gives no {' and no '.join(lacking)}, which the objective {self.objective} "
                "needs"
            )
        if not self.chosen or not self.seeds:
            raise SweepError(f"a sweep needs dev cases and seeds, got {len(self.chosen)} and {len(self.seeds)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: everything that a result depends on."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("folder", "cases")}
        objective = OBJECTIVES[self.objective]
        return plain(
            {
                "format": FORMAT,
                "version": VERSION,
                **given,
                "cases_name": self.cases.name,
                "cases_hash": self.cases.hash,
                "objective_text": objective.help,
                "sampler": {"name": "tpe", "multivariate": True, "startup": self.startup},
                "spaces": {name: {k: asdict(r) for k, r in ARMS[name].space.items()} for name in self.arms},
                "fixed": {name: dict(ARMS[name].fixed) for name in self.arms},
                "first": {name: [dict(s) for s in self.first(name)] for name in self.arms},
            }
        )

    def create(self) -> Sweep:
        """Write it to its folder, or continue the same one.

        Raises:
            SweepError: the folder holds another sweep, or something else.
            OSError: it cannot be written to.
        """
        path = self.folder / "sweep.json"
        if path.is_file():
            try:
                old, new = json.loads(path.read_bytes()), json.loads(json.dumps(self.to_dict()))
            except ValueError as error:
                raise SweepError(f"{path} is damaged: {error}") from error
            old["judge"] = _judge_record(old.get("judge"))
            if differ := [k for k in new if old.get(k) != new[k]]:
                raise SweepError(f"{self.folder} holds a sweep with other {', '.join(differ)}; give another folder")
            return self
        if self.folder.exists() and any(p.name != "cases.jsonl" for p in self.folder.iterdir()):
            raise SweepError(f"{self.folder} is not empty and holds no sweep; give another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        save_cases(self.cases, self.folder / "cases.jsonl")
        write_whole(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())
        return self

    @classmethod
    def open(cls, folder: str | Path) -> Sweep:
        """Read a sweep. Raises SweepError."""
        folder = Path(folder)
        try:
            data = json.loads((folder / "sweep.json").read_bytes())
            if data.get("format") != FORMAT or data.get("version") != VERSION:
                raise SweepError(f"{folder} holds no sweep of {FORMAT} version {VERSION}")
            given = {f.name: data[f.name] for f in fields(cls) if f.name in data}
            for name in ("arms", "chosen", "seeds", "size"):
                given[name] = None if given[name] is None else tuple(given[name])
            given["judge"] = _judge_record(given.get("judge"))
            sweep = cls(folder=folder, **{**given, "cases": load_cases(folder / "cases.jsonl")})
        except FileNotFoundError:
            raise SweepError(f"{folder} holds no sweep (no sweep.json and cases.jsonl)") from None
        except SweepError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SweepError(f"the sweep in {folder} cannot be read: {error}") from error
        if sweep.cases.hash != data["cases_hash"]:
            raise SweepError(f"the cases in {folder} are not those of its sweep: the hash differs")
        return sweep

    # -- tries

    @property
    def startup(self) -> int:
        """Tries of an arm at random, the first settings included, before the sampler learns from them."""
        return max(4, self.budget // 3)

    def first(self, arm: str) -> list[Mapping[str, float]]:
        """The settings that an arm tries first: the published ones. What is recommended for an embedded model is no such start:
        it was chosen when no object was held out."""
        return list(ARMS[arm].published[: self.budget])

    @property
    def images(self) -> int:
        """Pictures drawn in all."""
        kinds = 2 if OBJECTIVES[self.objective].controls else 1
        return len(self.arms) * self.budget * len(self.chosen) * len(self.seeds) * kinds

    def plan(self, arm: str, settings: Mapping[str, Any]) -> RunPlan:
        """What one try draws."""
        return RunPlan(
            model=self.model, points=(Point(arm, settings),), cases=self.chosen, cases_name=self.cases.name,
            cases_hash=self.cases.hash, seeds=self.seeds, controls=OBJECTIVES[self.objective].controls,
            steps=self.steps, guidance_scale=self.guidance_scale, size=self.size, dtype=self.dtype,
            revision=self.revision, batch=self.batch, extra=self.extra,
        )  # fmt: skip


def _judge_record(data: Any) -> Any:
    """A judge's record, also of a sweep that was begun when its kind and options stood side by side."""
    if not isinstance(data, Mapping) or "kind" not in data:
        return data
    return {"name": data["kind"], "args": {k: v for k, v in data.items() if k != "kind"}}
