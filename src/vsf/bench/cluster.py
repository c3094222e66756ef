"""Drawing a run with several workers: processes on this machine, or actors of a Ray cluster.

Workers send files back and write nothing, so that no shared disk is needed and one process writes a run. What a worker that
dies held is drawn by another one: on a cluster that is Ray's own doing, here all are started anew with what is left. (Not by
Ray on this machine too: that would take ports and a package, and leave its servers running where the command is killed.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ..libraries import install, offline_unless, quiet_libraries
from .cases import CaseSet
from .drawer import Drawer, UnitFiles, load
from .run import RunError, RunPlan

__all__ = ["Ranks", "draw_on_processes", "draw_on_ray", "launched"]

#: Workers that may die in a row without a picture in between, or over one group.
LOSSES = 3
_DIED = f"{LOSSES} workers died one after the other, perhaps for lack of memory; what was drawn is kept"

Keep = Callable[[int, Sequence[UnitFiles]], None]
"""Called with every group's number and pictures, in the order in which they come; may refuse by raising."""


class Worker:
    """One model that draws groups by their numbers, loaded when it is first needed. Lives in a process or an actor."""

    def __init__(self, plan: RunPlan, cases: CaseSet, device: str | None, download: bool, threads: int | None) -> None:
        self.plan, self.cases, self.device, self.download, self.threads = plan, cases, device, download, threads
        self._made: Drawer | None = None

    @property
    def drawer(self) -> Drawer:
        if self._made is None:
            offline_unless(self.download)
            import torch

            quiet_libraries()
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            self._made = Drawer(self.plan, self.cases, load(self.plan, self.device, self.download))
        return self._made

    def check(self, new: Sequence[str]) -> None:
        """See whether the model takes these points."""
        self.drawer.check(new)

    def draw(self, number: int) -> tuple[int, list[UnitFiles]]:
        """The number of a group and its pictures."""
        return number, self.drawer.draw(self.plan.chunks[number])


# ---------------------------------------------------------------------------------------------------------------
# Processes: not Ray, whose own start on one machine takes longer than loading a small model, and half a gigabyte

_worker: Worker | None = None


def _start(
    plan: RunPlan, cases: CaseSet, device: str | None, download: bool, threads: int | None, places: Any
) -> None:
    """Set up a worker process: it ends with the process that started it, also when that one is killed."""
    import multiprocessing
    import signal
    import threading
    from multiprocessing.connection import wait as wait_for

    global _worker
    _worker = Worker(plan, cases, device if places is None else f"cuda:{places.get()}", download, threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # tidily: what libraries made in the system is removed
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait_for([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _call(method: str, argument: Any) -> Any:
    return getattr(_worker, method)(argument)


def draw_on_processes(
    plan: RunPlan,
    cases: CaseSet,
    numbers: Sequence[int],
    new: Sequence[str],
    keep: Keep,
    workers: int,
    device: str | None,
    download: bool,
    warn: Callable[[str], None],
) -> None:
    """Draw groups with several processes on this machine; on CUDA worker i uses GPU i, modulo their number.

    Nothing is drawn before one worker found that its model takes the points `new`. When a worker dies, all are started
    anew, as if the command had been given again.

    Raises:
        RunError: the work's own error, or `LOSSES` workers died without a picture in between.
    """
    from multiprocessing import get_context

    import torch

    gpus = torch.cuda.device_count() if device in (None, "cuda") else 0
    threads = None if gpus else max(1, torch.get_num_threads() // workers)
    spawn = get_context("spawn")
    left, losses = dict.fromkeys(numbers), 0
    while left:
        places = spawn.Queue() if gpus else None
        for i in range(workers if places is not None else 0):
            places.put(i % gpus)  # pyright: ignore[reportOptionalMemberAccess]
        given = (plan, cases, device, download, threads, places)
        pool = ProcessPoolExecutor(min(workers, len(left)), spawn, _start, given)
        try:
            if new:
                pool.submit(_call, "check", list(new)).result()
            # Not in a list: pictures that were kept are let go of.
            broken = None
            for future in as_completed({pool.submit(_call, "draw", number) for number in left}):
                try:
                    number, pictures = future.result()
                except BrokenProcessPool as error:  # of those that are done by now, it need not be the last to come
                    broken = error
                    continue
                keep(number, pictures)
                del left[number]
                new, losses = (), 0
            if broken is not None:
                raise broken
        except BrokenProcessPool as error:
            losses += 1
            if losses >= LOSSES:
                raise RunError(_DIED) from error
            warn("a worker died; all are started again with what is left to draw")
        finally:
            _end(pool)


def _end(pool: ProcessPoolExecutor) -> None:
    """End a pool; what is being drawn is broken off."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


# ---------------------------------------------------------------------------------------------------------------
# Ray


@contextmanager
def _ray(address: str, workers: int) -> Iterator[Any]:
    """Ray, connected; what was connected before stays so."""
    # Read by Ray at import and start: no figures go out, and actors without a GPU see the environment as it is.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise RunError(f"drawing on a cluster needs Ray: {install('bench')}") from None
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address == "local":
            # Objects are a few pictures; the store would else take a third of the machine's memory.
            own = {"num_cpus": workers, "object_store_memory": 100 * 2**20}
            ray.init("local", include_dashboard=False, _node_ip_address="127.0.0.1", **own, **quiet)
        else:
            ray.init(address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise RunError(
            f"no Ray cluster at {address!r}: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def draw_on_ray(
    plan: RunPlan,
    cases: CaseSet,
    numbers: Sequence[int],
    new: Sequence[str],
    keep: Keep,
    address: str,
    workers: int,
    download: bool,
) -> None:
    """Draw groups with actors of a Ray cluster, `workers` of them, or (1) one per GPU; without GPUs one per node.

    The nodes need this package and the model; they need no shared disk. Ray starts an actor that died again, elsewhere if
    its node is gone, and gives it the same group, `LOSSES` times in all.
    """
    with _ray(address, workers) as ray:
        from ray.exceptions import RayActorError, RayTaskError
        from ray.util import ActorPool

        gpus = int(ray.cluster_resources().get("GPU", 0))
        nodes = sum(1 for node in ray.nodes() if node["Alive"])
        count = min(workers if workers > 1 else gpus or nodes, len(numbers))
        again = {"max_restarts": -1, "max_task_retries": LOSSES - 1}
        actor = ray.remote(num_gpus=1 if gpus else 0, num_cpus=0 if gpus else 1, **again)(Worker)
        actors = [actor.remote(plan, cases, None, download, None) for _ in range(count)]
        try:
            if new:
                ray.get(actors[0].check.remote(list(new)))
            pool = ActorPool(actors)
            for number, pictures in pool.map_unordered(lambda a, n: a.draw.remote(n), list(numbers)):
                keep(number, pictures)
        except RayActorError as error:
            raise RunError(_DIED) from error
        except RayTaskError as error:  # what the work itself raised, without Ray's own account of it
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        finally:
            for made in actors:
                ray.kill(made)


# ---------------------------------------------------------------------------------------------------------------
# accelerate launch


@dataclass(frozen=True)
class Ranks:
    """This process among those that `accelerate launch` (or torchrun) started together."""

    rank: int
    count: int
    device: str | None
    wait: Callable[[], None]


@contextmanager
def launched(device: str | None = None) -> Iterator[Ranks]:
    """The ranks of a launch; a single one where nobody launched. Without an accelerator they are ranks on the CPU.

    Raises:
        RunError: the processes that were started do not find together.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started < 2:
        yield Ranks(0, 1, device, lambda: None)
        return
    import torch
    from accelerate import PartialState

    cpu = device == "cpu" or not torch.accelerator.is_available()
    # Ranks wait for each other at the end only, and some may have much more to draw than others.
    state = PartialState(cpu=cpu, timeout=timedelta(days=30))
    if state.num_processes != started:
        raise RunError(f"{started} processes were launched, but {state.num_processes} found together")
    try:
        yield Ranks(state.process_index, state.num_processes, str(state.device), state.wait_for_everyone)
    finally:
        state.destroy_process_group()
