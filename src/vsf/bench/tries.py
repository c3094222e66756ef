"""The tries of a sweep as Optuna stores them, and who is at which: one study per arm, shared by any number of workers.

Who is at a try is noted here and not by Optuna's heartbeat: only its databases have one, not the journal, and its retry
gives a try a new number, so that a sweep that was interrupted would end with other tries.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ..libraries import install
from .sweep import FORMAT, Sweep, SweepError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

__all__ = ["Tries", "Try"]


@dataclass(frozen=True)
class Try:
    """One try: its settings and, where it was finished, its mean scores on dev and its objective."""

    arm: str
    number: int
    state: str
    settings: Mapping[str, Any]
    value: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None


class Tries:
    """All tries of a sweep. Raises SweepError where Optuna is missing."""

    def __init__(self, sweep: Sweep) -> None:
        self._optuna = _optuna()
        self.sweep = sweep
        self._studies: dict[str, Study] = {}

    @cached_property
    def _storage(self) -> BaseStorage:
        if self.sweep.storage is not None:
            return self._optuna.storages.get_storage(self.sweep.storage)
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        path = str(self.sweep.folder / "study.journal")
        # A lock that the system lets go of when its holder is killed; Optuna's own one waits 30 s then.
        lock: Any = FileLock(f"{path}.lock", poll_interval=0.002)
        return JournalStorage(JournalFileBackend(path, lock_obj=lock))

    def study(self, arm: str) -> Study:
        """Optuna's study of an arm, made if it is not there, with the first settings in its queue."""
        if arm not in self._studies:
            optuna, sweep = self._optuna, self.sweep
            at: dict[str, Any] = {
                "study_name": f"{FORMAT}-{arm}",
                "storage": self._storage,
                "sampler": _sampler(sweep.seed, arm, sweep.startup),
            }
            try:
                study = optuna.load_study(**at)
            except KeyError:
                study = optuna.create_study(**at, direction="maximize", load_if_exists=True)
            first = sweep.first(arm)
            if len(study.get_trials(deepcopy=False)) < len(first):
                for chosen in first:
                    study.enqueue_trial(dict(chosen), skip_if_exists=True)
            self._studies[arm] = study
        return self._studies[arm]

    def forget(self) -> None:
        """Delete the studies from a storage of their own; those of a journal go with its folder."""
        if self.sweep.storage is not None:
            for arm in self.sweep.arms:
                self._optuna.delete_study(study_name=f"{FORMAT}-{arm}", storage=self._storage)

    def begun(self, arm: str) -> list[FrozenTrial]:
        """The tries of an arm that somebody began, in order; without those that two workers began beyond the budget."""
        trials = self.study(arm).get_trials(deepcopy=False)
        return [t for t in trials if t.state.name != "WAITING" and t.number < self.sweep.budget]

    def all(self) -> list[Try]:
        """All tries so far, in order of arm and number."""
        return [
            Try(
                arm,
                trial.number,
                trial.state.name.lower(),
                trial.user_attrs.get("settings", {}),
                trial.value if trial.state.name == "COMPLETE" else None,
                trial.user_attrs.get("scores", {}),
                trial.user_attrs.get("reason"),
            )
            for arm in self.sweep.arms
            for trial in self.begun(arm)
        ]

    # -- who is at which

    def left(self, arm: str) -> list[FrozenTrial]:
        """The tries of an arm whose workers died."""
        running = [t for t in self.begun(arm) if t.state.name == "RUNNING"]
        return [t for t in running if not _alive(t.user_attrs.get("worker"))]

    @property
    def open(self) -> bool:
        """Whether there is anything left to take."""
        return any(len(self.begun(arm)) < self.sweep.budget or self.left(arm) for arm in self.sweep.arms)

    def claim(self) -> tuple[str, int] | None:
        """Take a try: one whose worker died, else the next of the arm that is furthest behind. None: nothing is left."""
        from optuna.trial import TrialState

        waiting: list[tuple[bool, int, int, str]] = []
        for order, arm in enumerate(self.sweep.arms):
            begun = self.begun(arm)
            for trial in self.left(arm):
                if self._sign(arm, trial.number, _me()):
                    return arm, trial.number
            if len(begun) < self.sweep.budget:
                # An arm that nobody is at comes first: its tries then see all results of those before.
                waiting.append((any(t.state == TrialState.RUNNING for t in begun), len(begun), order, arm))
        for _, _, _, arm in sorted(waiting):
            trial = self.study(arm).ask()
            if trial.number < self.sweep.budget:
                return (arm, trial.number) if self._sign(arm, trial.number, _me()) else self.claim()
            self.study(arm).tell(trial, state=TrialState.FAIL)  # another worker took the last one meanwhile
        return None

    def let_go(self, arm: str, number: int) -> None:
        """Nobody is at a try any more; whoever claims next takes it up, also this very process."""
        self._sign(arm, number, None)

    def _sign(self, arm: str, number: int, worker: Sequence[Any] | None) -> bool:
        """Note who is at a try; False if another worker, who took it for left, has finished it meanwhile."""
        import optuna

        try:
            self._storage.set_trial_user_attr(self.trial(arm, number)._trial_id, "worker", worker)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        return True

    def trial(self, arm: str, number: int) -> FrozenTrial:
        """A try as Optuna has it."""
        return next(t for t in self.study(arm).get_trials(deepcopy=False) if t.number == number)


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


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise SweepError(f"a sweep needs Optuna: {install('bench')}") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


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
