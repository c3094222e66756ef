"""Working on a sweep: take a try, draw and judge it, tell how good it was, until none is left; alone or with others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from ..files import plain
from ..libraries import quiet_libraries
from .arms import ARMS
from .judges import JUDGES, JudgeError
from .judges.base import able
from .objectives import OBJECTIVES
from .run import Run
from .sweep import Sweep, SweepError
from .tables import METRICS, Results
from .tries import Tries

__all__ = ["JUDGE", "begun", "run_sweep", "work"]

JUDGE = "judge"
"""Under which name the answers to a try are kept."""

Evaluate = Callable[[Run], None]
"""Draws and judges what is missing in the run of a try, under the judge's name JUDGE."""


@contextmanager
def begun(sweep: Sweep) -> Iterator[None]:
    """`Sweep.create` for the length of a block; if the block fails before the first try was begun, nothing is left of it.

    Raises:
        SweepError, OSError: as `create`.
    """
    folder, tries = sweep.folder, Tries(sweep)
    new = not (folder / "sweep.json").exists()
    there = set(folder.iterdir()) if folder.is_dir() else None
    sweep.create()
    try:
        yield
    except BaseException:
        if new and not tries.all():
            tries.forget()
            for path in set(folder.iterdir()) - (there or set()):
                path.unlink()
            if there is None:
                folder.rmdir()
        raise


def _try(tries: Tries, arm: str, number: int, evaluate: Evaluate) -> None:
    import optuna
    from optuna.trial import Trial, TrialState

    sweep, study = tries.sweep, tries.study(arm)
    trial = Trial(study, tries.trial(arm, number)._trial_id)
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
        trial.set_user_attr("settings", plain(settings))
        plan = sweep.plan(arm, settings)
        run = Run.create(sweep.folder / "trials" / arm / f"{number:04d}", plan, sweep.cases)
        evaluate(run)
        answers = list(run.judged(JUDGE))
        if not any(answer.status == "judged" for answer in answers):
            reasons = Counter(answer.reason or "no reason given" for answer in answers)
            why = next((f"; {reason}" for reason, _ in reasons.most_common(1)), "")
            raise JudgeError(f"the judge judged none of the {len(answers)} pictures of {run.folder}{why}")
        found = Results([run], JUDGE).scores(arm)
    except JudgeError as error:
        raise SweepError(str(error)) from error  # the next try would meet it, too: a refused key, the wrong judge
    except Exception as error:  # one broken setting must not end the sweep
        if isinstance(error.__cause__ or error, OSError):
            raise  # likewise: a full disk
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
    download: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Be one worker: take tries until none is left. `progress` is called with (tries begun by anybody, tries in all).

    Raises:
        SweepError: the judge cannot judge these cases, cannot go on, or judged nothing of a try; or the sweep was begun
            with other ranges.
        ModelError, ValueError: the model cannot be had (see `vsf.bench.drawer.load`).
        OSError: the folder cannot be written to.
    """
    tries = Tries(sweep)
    total = len(sweep.arms) * sweep.budget
    while True:
        if progress:
            progress(sum(len(tries.begun(arm)) for arm in sweep.arms), total)
        if tries.open:
            _same_ranges(sweep)
            if evaluate is None:
                # Before a try is taken: what cannot be loaded takes none.
                evaluate = _evaluator(sweep, device, download)
        claimed = tries.claim()
        if claimed is None:
            return
        assert evaluate is not None
        try:
            _try(tries, *claimed, evaluate)
        except BaseException:
            tries.let_go(*claimed)
            raise


def _same_ranges(sweep: Sweep) -> None:
    """A sweep goes on with the ranges that it began with: those of another version would be another search."""
    began = json.loads((sweep.folder / "sweep.json").read_bytes()).get("spaces", {})
    now = json.loads(json.dumps(sweep.to_dict()["spaces"]))
    if differ := [arm for arm in sweep.arms if began.get(arm) != now[arm]]:
        raise SweepError(
            f"the sweep in {sweep.folder} was begun with other ranges of {', '.join(differ)}; give another folder"
        )


def _evaluator(sweep: Sweep, device: str | None, download: bool) -> Evaluate:
    """Draw with the sweep's model, loaded once, and judge as the sweep says."""
    from .drawer import load
    from .generate import generate
    from .judges import judge_run

    quiet_libraries()
    # The judge first: it is smaller, and the wrong one would be found out when everything is drawn.
    try:
        judge = JUDGES.make(sweep.judge["name"], sweep.judge["args"], download=download, world=sweep.cases.world)
        able(judge, sweep.judge["name"], [case for case in sweep.cases if case.id in set(sweep.chosen)])
    except JudgeError as error:
        raise SweepError(str(error)) from error
    pipe = load(sweep.plan(sweep.arms[0], ARMS[sweep.arms[0]].settings({})), device, download)

    def evaluate(run: Run) -> None:
        generate(run, pipe)
        judge_run(run, judge, JUDGE, retry=True)  # of a try that is taken up again

    return evaluate


def run_sweep(
    sweep: Sweep,
    *,
    workers: int = 1,
    devices: Sequence[str] = (),
    download: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Work on a sweep until it is finished, with `workers` processes of this machine; what one that dies leaves is
    done here in the end. Worker i uses ``devices[i % len(devices)]``; on the CPU the cores are shared out among them.

    Raises:
        SweepError: workers below 1.
        SweepError, ModelError, ValueError, OSError: as `work`.
    """
    if workers < 1:
        raise SweepError(f"workers must be at least 1, got {workers}")
    if workers > 1:
        tries, total = Tries(sweep), len(sweep.arms) * sweep.budget
        for arm in sweep.arms:
            tries.study(arm)  # before two of them make it at once
        with _children(sweep, workers, devices, download) as children:
            while any(child.poll() is None for child in children):
                if progress:
                    progress(sum(t.state != "running" for t in tries.all()), total)
                time.sleep(0.5)
    work(sweep, device=devices[0] if devices else None, download=download, progress=progress)


@contextmanager
def _children(
    sweep: Sweep, count: int, devices: Sequence[str], download: bool
) -> Iterator[list[subprocess.Popen[bytes]]]:
    children: list[subprocess.Popen[bytes]] = []
    threads = str(max(1, (os.cpu_count() or 1) // count))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        for i in range(count):
            device = devices[i % len(devices)] if devices else ""
            command = [sys.executable, "-m", "vsf.bench.search", str(sweep.folder.resolve()), device]
            command += ["download"] if download else []
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
        work(Sweep.open(sys.argv[1]), device=sys.argv[2] or None, download="download" in sys.argv[3:])
