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
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import stats
from ..images import _plain, write_whole
from .cases import CaseSet, load_cases, save_cases
from .points import write_points
from .run import Plan, Point, Run
from .tables import METRICS, Results

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from .judges import Judge

__all__ = [
    "ARMS", "DEFAULT_ARMS", "OBJECTIVES", "Arm", "Objective", "Range", "Row", "Sweep", "SweepError", "area", "make_judge",
    "run_sweep", "work",
]  # fmt: skip

FORMAT = "vsf-sweep"
VERSION = 1
JUDGE = "judge"
"""Under which name the answers to a try are kept."""


class SweepError(ValueError):
    """A sweep cannot be made, read or continued."""


# ---------------------------------------------------------------------------------------------------------------
# What is tried


@dataclass(frozen=True)
class Range:
    """Values of one knob: from `low` to `high`, in steps of `step` where given, evenly in its logarithm with `log`."""

    low: float
    high: float
    step: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Arm:
    """One method with the ranges of its knobs: it gets one budget.

    Attributes:
        fixed: the method's label and what is not searched.
        space: knob -> range.
        published: settings tried first, on every model.
        demo: settings tried next on the demo model: the best that was known when this was written.
    """

    name: str
    fixed: Mapping[str, Any]
    space: Mapping[str, Range]
    published: tuple[Mapping[str, float], ...]
    demo: tuple[Mapping[str, float], ...] = ()

    def settings(self, chosen: Mapping[str, float]) -> dict[str, Any]:
        """All settings of the method, every knob in them. Raises ValueError for what the method does not allow."""
        from .ablations import make_method

        return make_method({**self.fixed, **{k: round(float(v), 3) for k, v in chosen.items()}}).settings()


def _when() -> dict[str, Range]:
    return {"start": Range(0.0, 0.25, 0.125), "stop": Range(0.375, 1.0, 0.125)}


_ALWAYS = {"start": 0.0, "stop": 1.0}
_VSF, _UPSTREAM = {"method": "vsf", "layout": "paper"}, {"method": "vsf", "layout": "upstream"}
_NAG, _NASA, _CFG = {"method": "nag"}, {"method": "nasa"}, {"method": "cfg"}

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        # Our own ranges: wide, and when guidance acts is searched, too.
        Arm("vsf", _VSF, {"scale": Range(0, 5), "offset": Range(0, 2), **_when()},
            ({"scale": 3.5, "offset": 0.1, **_ALWAYS},), ({"scale": 1.5, "offset": 1.0, "start": 0.0, "stop": 0.75},)),
        Arm("vsf-norm", _VSF, {"scale": Range(0, 5), "offset": Range(0, 2), "normalize": Range(0.7, 1.3), **_when()},
            ({"scale": 3.5, "offset": 0.1, "normalize": 1.0, **_ALWAYS},),
            ({"scale": 2.0, "offset": 0.0, "normalize": 1.0, **_ALWAYS},)),
        Arm("vsf-upstream", _UPSTREAM, {"scale": Range(0, 8), "offset": Range(0, 2), **_when()},
            ({"scale": 3.5, "offset": 0.1, **_ALWAYS},), ({"scale": 3.8, "offset": 0.2, **_ALWAYS},)),
        # The paper's range of NAG; the wider one of the next arm holds the settings it calls NAG++.
        Arm("nag", _NAG, {"scale": Range(4, 8), "tau": Range(1, 8), "alpha": Range(0, 1)},
            ({"scale": 4.0, "tau": 2.5, "alpha": 0.125},), ({"scale": 4.0, "tau": 2.5, "alpha": 0.25},)),
        Arm("nag-wide", _NAG, {"scale": Range(1, 12), "tau": Range(1, 8), "alpha": Range(0, 1), **_when()},
            ({"scale": 9.0, "tau": 5.0, "alpha": 0.5, **_ALWAYS},),
            ({"scale": 2.0, "tau": 1.5, "alpha": 0.5, "start": 0.0, "stop": 0.75},)),
        Arm("nasa", _NASA, {"scale": Range(0, 1), **_when()},
            ({"scale": 0.25, **_ALWAYS},), ({"scale": 0.4, **_ALWAYS},)),
        Arm("cfg", _CFG, {"scale": Range(1, 15, log=True)}, ({"scale": 5.0},), ({"scale": 1.5},)),
        # As published (arXiv 2508.10931): all steps guided.
        Arm("vsf-published", _VSF, {"scale": Range(0, 5), "offset": Range(0, 0.5)}, ({"scale": 3.5, "offset": 0.1},)),
        Arm("vsf-upstream-published", _UPSTREAM, {"scale": Range(0, 5), "offset": Range(0, 0.5)},
            ({"scale": 3.5, "offset": 0.1},)),
        Arm("nasa-published", _NASA, {"scale": Range(0, 0.5)}, ({"scale": 0.25},)),
        Arm("cfg-published", _CFG, {"scale": Range(10, 15)}, ({"scale": 10.0},)),
    )
}  # fmt: skip
"""What a sweep can try, by name."""

DEFAULT_ARMS = ("vsf", "vsf-norm", "vsf-upstream", "nag", "nag-wide", "nasa", "cfg")


@dataclass(frozen=True)
class Objective:
    """What is maximised: a function of a point's mean scores on dev (`vsf.bench.tables.METRICS`)."""

    name: str
    help: str
    needs: tuple[str, ...]
    controls: bool
    score: Callable[[Mapping[str, float]], float]


OBJECTIVES: dict[str, Objective] = {
    o.name: o
    for o in (
        Objective(
            "balanced",
            "half of joint (true negative: object there, part gone, picture whole) plus half of intact (unrelated "
            "negative, same noise: object there, part there, picture whole)",
            ("balanced",), True, lambda s: s["balanced"],
        ),
        Objective(
            "paper", "0.4 positive + 0.6 negative (arXiv 2508.10931)",
            ("positive", "negative"), False, lambda s: 0.4 * s["positive"] + 0.6 * s["negative"],
        ),
    )
}  # fmt: skip
"""What a sweep can maximise, by name."""


# ---------------------------------------------------------------------------------------------------------------
# The sweep


@dataclass(frozen=True)
class Row:
    """One try: its settings and, where it was finished, its mean scores on dev and its objective."""

    arm: str
    number: int
    state: str
    settings: Mapping[str, Any]
    value: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Sweep:
    """What a sweep tries; written once, read by every worker. Make it with `create`, read it with `open`.

    Attributes:
        folder: where it is.
        arms: names in ARMS, each with `budget` tries.
        cases: the set, `chosen` the ids of its dev cases that are drawn, each from every seed in `seeds`.
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
    model: str = "demo"
    revision: str | None = None
    dtype: str | None = None
    steps: int = 8
    guidance_scale: float = 0.0
    size: tuple[int, int] | None = None
    batch: int = 32
    extra: Mapping[str, Any] = field(default_factory=dict)
    judge: Mapping[str, Any] = field(default_factory=lambda: {"kind": "oracle"})
    storage: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for what, given, allowed in (("arm", self.arms, ARMS), ("objective", (self.objective,), OBJECTIVES)):
            for name in given:
                if name not in allowed:
                    raise SweepError(f"unknown {what} {name!r}; allowed: {', '.join(allowed)}")
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise SweepError(f"a sweep needs arms without repeats, got {', '.join(self.arms) or 'none'}")
        if self.budget < 1:
            raise SweepError(f"budget must be at least 1 try per arm, got {self.budget}")
        by_id = {case.id: case for case in self.cases}
        if unknown := [id for id in self.chosen if id not in by_id]:
            raise SweepError(f"no case {unknown[0]!r} in {self.cases.name}")
        if wrong := [id for id in self.chosen if by_id[id].split != "dev"]:
            raise SweepError(
                f"settings are chosen on dev cases only; {len(wrong)} of {len(self.chosen)} are not, the first is {wrong[0]}"
            )
        if not self.chosen or not self.seeds:
            raise SweepError(f"a sweep needs dev cases and seeds, got {len(self.chosen)} and {len(self.seeds)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: everything that a result depends on."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("folder", "cases")}
        objective = OBJECTIVES[self.objective]
        return _plain(
            {
                "format": FORMAT,
                "version": VERSION,
                **given,
                "cases_name": self.cases.name,
                "cases_hash": self.cases.hash,
                "objective_text": objective.help,
                "sampler": {"name": "tpe", "multivariate": True, "startup": self._startup},
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
    def _startup(self) -> int:
        return max(4, self.budget // 3)

    def first(self, arm: str) -> list[Mapping[str, float]]:
        """The settings that an arm tries first: the published ones, then on the demo model the best that was known."""
        known = ARMS[arm].demo if self.model == "demo" else ()
        return [*ARMS[arm].published, *known][: self.budget]

    @property
    def images(self) -> int:
        """Pictures drawn in all."""
        kinds = 2 if OBJECTIVES[self.objective].controls else 1
        return len(self.arms) * self.budget * len(self.chosen) * len(self.seeds) * kinds

    def plan(self, arm: str, settings: Mapping[str, Any]) -> Plan:
        """What one try draws."""
        return Plan(
            model=self.model, points=(Point(arm, settings),), cases=self.chosen, cases_name=self.cases.name,
            cases_hash=self.cases.hash, seeds=self.seeds, controls=OBJECTIVES[self.objective].controls,
            steps=self.steps, guidance_scale=self.guidance_scale, size=self.size, dtype=self.dtype,
            revision=self.revision, batch=self.batch, extra=self.extra,
        )  # fmt: skip

    @cached_property
    def _storage(self) -> BaseStorage:
        optuna = _optuna()
        if self.storage is not None:
            return optuna.storages.get_storage(self.storage)
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        path = str(self.folder / "study.journal")
        return JournalStorage(JournalFileBackend(path, lock_obj=_lock(path)))

    @cached_property
    def _studies(self) -> dict[str, Study]:
        return {}

    def study(self, arm: str) -> Study:
        """Optuna's study of an arm, made if it is not there, with the first settings in its queue."""
        if arm not in self._studies:
            optuna = _optuna()
            at: dict[str, Any] = {
                "study_name": f"{FORMAT}-{arm}",
                "storage": self._storage,
                "sampler": _sampler(self.seed, arm, self._startup),
            }
            try:
                study = optuna.load_study(**at)
            except KeyError:
                study = optuna.create_study(**at, direction="maximize", load_if_exists=True)
            first = self.first(arm)
            if len(study.get_trials(deepcopy=False)) < len(first):
                for chosen in first:
                    study.enqueue_trial(dict(chosen), skip_if_exists=True)
            self._studies[arm] = study
        return self._studies[arm]

    def rows(self) -> list[Row]:
        """All tries so far, in order of arm and number."""
        found: list[Row] = []
        for arm in self.arms:
            for trial in _taken(self.study(arm)):
                attrs = trial.user_attrs
                found.append(
                    Row(
                        arm,
                        trial.number,
                        trial.state.name.lower(),
                        attrs.get("settings", {}),
                        trial.value if trial.state.name == "COMPLETE" else None,
                        attrs.get("scores", {}),
                        attrs.get("reason"),
                    )  # fmt: skip
                )
        return found

    # -- what came out

    def best(self, rows: Sequence[Row] | None = None) -> dict[str, Row]:
        """The best try of every arm that has one; of equals the first."""
        found: dict[str, Row] = {}
        for row in self.rows() if rows is None else rows:
            if row.value is not None and (row.arm not in found or row.value > (found[row.arm].value or 0.0)):
                found[row.arm] = row
        return found

    def front(self, arm: str | None = None, rows: Sequence[Row] | None = None) -> list[Row]:
        """The tries of an arm (or of all) that no other beats in positive and negative, ascending in negative."""
        done = [
            r for r in (self.rows() if rows is None else rows) if r.value is not None and (arm is None or r.arm == arm)
        ]
        if not done:
            return []
        at = stats.pareto_front([[r.scores["negative"], r.scores["positive"]] for r in done])
        return [done[i] for i in at]

    def freeze(self, more: int = 0, path: str | Path | None = None) -> tuple[Point, ...]:
        """Write the chosen settings to points.json: the best try of every arm, under the arm's name, and `more` others
        of its Pareto front (`ARM+2`, `ARM+3`, ...), each the one that adds most area to the trade-off on dev.

        Raises:
            SweepError: tries are still missing, or an arm has none that was finished.
        """
        rows = self.rows()
        open_ = len(self.arms) * self.budget - sum(r.state in ("complete", "fail") for r in rows)
        if open_:
            raise SweepError(f"{open_} tries of the sweep in {self.folder} are not finished; run it again to go on")
        best = self.best(rows)
        points: list[Point] = []
        for arm in self.arms:
            if arm not in best:
                reason = next((r.reason for r in rows if r.arm == arm and r.reason), "no reason given")
                raise SweepError(f"every try of {arm} failed: {reason}")
            chosen = [best[arm]]
            rest = [r for r in self.front(arm, rows) if r.settings != best[arm].settings]
            for _ in range(min(more, len(rest))):
                gains = [_area([*chosen, r]) for r in rest]
                chosen.append(rest.pop(gains.index(max(gains))))
            points += [Point(arm if i == 0 else f"{arm}+{i + 1}", dict(r.settings)) for i, r in enumerate(chosen)]
        about = {
            "sweep": self.to_dict(),
            "dev": {arm: {"objective": r.value, "scores": dict(r.scores), "try": r.number} for arm, r in best.items()},
        }
        write_points(path or self.folder / "points.json", points, about)
        return tuple(points)


def _area(rows: Sequence[Row]) -> float:
    return stats.tradeoff_area([r.scores["negative"] for r in rows], [r.scores["positive"] for r in rows])


def area(rows: Sequence[Row]) -> float:
    """Area under the trade-off (positive against negative) of finished tries on dev."""
    return _area([r for r in rows if r.value is not None])


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise SweepError('a sweep needs Optuna: pip install "vsf[bench]"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _lock(path: str) -> Any:
    """A lock for the journal that the system lets go of when its holder is killed; Optuna's own one waits 30 s then."""
    try:
        import fcntl
    except ImportError:  # Windows
        from optuna.storages.journal import JournalFileOpenLock

        return JournalFileOpenLock(path)

    class Lock:
        handle: Any = None

        def acquire(self) -> bool:
            self.handle = open(f"{path}.lock", "ab")  # noqa: SIM115
            fcntl.flock(self.handle, fcntl.LOCK_EX)
            return True

        def release(self) -> None:
            self.handle.close()

    return Lock()


def _sampler(seed: int, arm: str, startup: int) -> BaseSampler:
    """TPE whose randomness depends on seed, arm and the number of the try alone: also after an interruption."""
    _optuna()
    from optuna.samplers import BaseSampler, TPESampler

    def tpe(*key: object) -> TPESampler:
        number = int.from_bytes(sha256("|".join(map(str, (seed, arm, *key))).encode()).digest()[:4], "big")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # options that older releases call experimental
            return TPESampler(seed=number, n_startup_trials=startup, multivariate=True, constant_liar=True)

    class Seeded(BaseSampler):
        def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
            return tpe().infer_relative_search_space(study, trial)

        def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
            return tpe(trial.number).sample_relative(study, trial, search_space)

        def sample_independent(
            self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
        ) -> Any:
            return tpe(trial.number, param_name).sample_independent(study, trial, param_name, param_distribution)

    return Seeded()


def _taken(study: Study) -> list[FrozenTrial]:
    """The tries that were begun, in order."""
    return [t for t in study.get_trials(deepcopy=False) if t.state.name != "WAITING"]


# ---------------------------------------------------------------------------------------------------------------
# Workers


Evaluate = Callable[[Run], None]
"""Draws and judges what is missing in the run of a try, under the judge's name JUDGE."""


def _me() -> list[Any]:
    import psutil

    return [socket.gethostname(), os.getpid(), psutil.Process().create_time()]


def _alive(worker: Sequence[Any] | None) -> bool:
    """Whether a worker may still be at its try: yes if it is on another machine, since that cannot be seen from here."""
    import psutil

    if not worker:
        return False  # killed between taking the try and signing it
    host, pid, born = worker
    if host != socket.gethostname():
        return True
    try:
        return psutil.Process(pid).create_time() == born
    except psutil.Error:
        return False


def _claim(sweep: Sweep, studies: Mapping[str, Study]) -> tuple[str, int] | None:
    """Take a try: one whose worker died, else the next of the arm that is furthest behind. None: nothing is left."""
    from optuna.trial import TrialState

    waiting: list[tuple[bool, int, int, str]] = []
    for order, (arm, study) in enumerate(studies.items()):
        taken = _taken(study)
        running = [t for t in taken if t.state == TrialState.RUNNING]
        for trial in running:
            if trial.number < sweep.budget and not _alive(trial.user_attrs.get("worker")):
                study._storage.set_trial_user_attr(trial._trial_id, "worker", _me())
                return arm, trial.number
        if len(taken) < sweep.budget:
            # An arm that nobody is at comes first: its tries then see all results of those before.
            waiting.append((bool(running), len(taken), order, arm))
    for _, _, _, arm in sorted(waiting):
        trial = studies[arm].ask()
        if trial.number < sweep.budget:
            trial.set_user_attr("worker", _me())
            return arm, trial.number
        studies[arm].tell(trial, state=TrialState.FAIL)  # another worker took the last one meanwhile
    return None


def _try(sweep: Sweep, arm: str, study: Study, number: int, evaluate: Evaluate) -> None:
    import optuna
    from optuna.trial import Trial, TrialState

    frozen = next(t for t in study.get_trials(deepcopy=False) if t.number == number)
    trial = Trial(study, frozen._trial_id)
    space = ARMS[arm].space
    chosen = {k: trial.suggest_float(k, r.low, r.high, step=r.step, log=r.log) for k, r in space.items()}

    def tell(value: float | None, reason: str | None = None) -> None:
        try:
            if value is None:
                trial.set_user_attr("reason", reason)
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, value)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            pass  # a second worker took it for dead and was faster; it found the same

    try:
        settings = ARMS[arm].settings(chosen)
        trial.set_user_attr("settings", _plain(settings))
        plan = sweep.plan(arm, settings)
        run = Run.create(sweep.folder / "trials" / arm / f"{number:04d}", plan, sweep.cases)
        evaluate(run)
        found = Results([run], JUDGE).scores(arm)
    except Exception as error:  # one broken setting must not end the sweep
        if type(error).__name__ == "JudgeError" or isinstance(error.__cause__ or error, OSError):
            raise  # the next try would meet it, too: a refused key, a full disk
        tell(None, f"{type(error).__name__}: {error}"[:300])
        return
    objective = OBJECTIVES[sweep.objective]
    if lacking := [name for name in objective.needs if name not in found]:
        tell(None, f"nothing was judged that gives {', '.join(METRICS[m].label for m in lacking)}")
        return
    scores = {name: interval.mean for name, interval in found.items()}
    with suppress(optuna.exceptions.UpdateFinishedTrialError):  # as in `tell`
        trial.set_user_attr("scores", scores)
    tell(objective.score(scores))


def work(
    sweep: Sweep,
    *,
    evaluate: Evaluate | None = None,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Be one worker: take tries until none is left. `progress` is called with (tries begun by anybody, tries in all)."""
    studies = {arm: sweep.study(arm) for arm in sweep.arms}
    total = len(sweep.arms) * sweep.budget
    while True:
        if progress:
            progress(sum(min(sweep.budget, len(_taken(s))) for s in studies.values()), total)
        claimed = _claim(sweep, studies)
        if claimed is None:
            return
        evaluate = evaluate or _evaluator(sweep, device)
        _try(sweep, claimed[0], studies[claimed[0]], claimed[1], evaluate)


def _evaluator(sweep: Sweep, device: str | None) -> Evaluate:
    """Draw with the sweep's model, loaded once, and judge as the sweep says."""
    from ..cli.common import quiet_libraries
    from .generate import generate, load
    from .judges import judge_run

    quiet_libraries()
    pipe = load(sweep.plan(sweep.arms[0], ARMS[sweep.arms[0]].settings({})), device)
    judge = make_judge(sweep.judge)

    def evaluate(run: Run) -> None:
        generate(run, pipe)
        judge_run(run, judge, JUDGE)

    return evaluate


def make_judge(about: Mapping[str, Any]) -> Judge:
    """The judge of a sweep: ``{"kind": "oracle" | "api" | "local", ...}`` with the arguments of its class.

    Raises:
        SweepError: no such kind, or arguments that it does not take.
    """
    from .judges import ApiJudge, LocalJudge, OracleJudge

    kinds: dict[str, Callable[..., Judge]] = {"oracle": OracleJudge, "api": ApiJudge, "local": LocalJudge}
    given = dict(about)
    kind = given.pop("kind", None)
    if kind not in kinds:
        raise SweepError(f"unknown judge {kind!r}; allowed: {', '.join(kinds)}")
    try:
        return kinds[kind](**given)
    except TypeError as error:
        raise SweepError(f"judge {kind}: {error}") from error


def run_sweep(
    sweep: Sweep,
    *,
    workers: int = 1,
    devices: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Work on a sweep until it is finished, with `workers` processes of this machine; what one that dies leaves is
    done here in the end. Worker i uses ``devices[i % len(devices)]``; on the CPU the cores are shared out among them.

    Raises:
        SweepError: workers below 1.
    """
    if workers < 1:
        raise SweepError(f"workers must be at least 1, got {workers}")
    if workers > 1:
        total = len(sweep.arms) * sweep.budget
        with _children(sweep, workers, devices) as children:
            while any(child.poll() is None for child in children):
                if progress:
                    progress(sum(row.state != "running" for row in sweep.rows()), total)
                time.sleep(0.5)
    work(sweep, device=devices[0] if devices else None, progress=progress)


@contextmanager
def _children(sweep: Sweep, count: int, devices: Sequence[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    children: list[subprocess.Popen[bytes]] = []
    threads = str(max(1, (os.cpu_count() or 1) // count))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for arm in sweep.arms:
        sweep.study(arm)  # before two of them make it at once
    try:
        for i in range(count):
            device = devices[i % len(devices)] if devices else ""
            command = [sys.executable, "-m", "vsf.bench.sweep", str(sweep.folder.resolve()), device]
            with open(sweep.folder / f"worker-{i}.log", "ab") as log:
                children.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        yield children
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
            child.wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        work(Sweep.open(sys.argv[1]), device=sys.argv[2] or None)
