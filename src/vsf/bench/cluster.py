"""Drawing a run with several workers: processes on this machine, or actors of a Ray cluster.

One loop for both (`hand_out`): every worker holds a model and at most `DEPTH` groups; what a lost worker held goes to
another one. Workers send files back and write nothing, so that no shared disk is needed and one process writes a run.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from .cases import CaseSet
from .generate import Drawer, Picture, load
from .run import Plan, RunError

__all__ = ["Ranks", "draw_on_processes", "draw_on_ray", "hand_out", "launched"]

#: Groups a worker holds: one that it draws, one that waits, so that it need not.
DEPTH = 2
#: Workers that may be lost in a row over the same group, or while they begin.
LOSSES = 3

Keep = Callable[[int, Sequence[Picture]], None]
Same = Callable[[Mapping[str, Any]], None]


class Worker:
    """One model that draws groups by their numbers. Lives in a process or an actor."""

    def __init__(self, plan: Plan, cases: CaseSet, device: str | None, download: bool, threads: int | None) -> None:
        self.plan, self.cases, self.device, self.download, self.threads = plan, cases, device, download, threads
        self.drawer: Drawer | None = None

    def begin(self, new: Sequence[str]) -> dict[str, Any]:
        """Load the model, see whether it takes the points `new`; what all pictures have in common."""
        if not self.download:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch

        from ..cli.common import quiet_libraries

        quiet_libraries()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        self.drawer = Drawer(self.plan, self.cases, load(self.plan, self.device, self.download))
        self.drawer.check(new)
        return self.drawer.about | {"pid": os.getpid()}

    def draw(self, number: int) -> list[Picture]:
        """Draw the group of that number."""
        assert self.drawer is not None
        return self.drawer.draw(self.plan.chunks[number])


@dataclass
class Seat:
    """A worker as the one who hands out sees it: `submit(method, argument)`, and what it holds."""

    submit: Callable[[str, Any], Future[Any]]
    close: Callable[[], None]
    ready: bool = False
    checks: bool = False
    held: deque[int] = field(default_factory=deque)


def hand_out(
    numbers: Sequence[int],
    count: int,
    hire: Callable[[int], Seat],
    new: Sequence[str],
    keep: Keep,
    same: Same,
    lost: tuple[type[BaseException], ...],
    warn: Callable[[str], None],
) -> None:
    """Have `count` workers draw the groups `numbers`.

    Nothing is drawn before one worker found that its model takes the points `new`. An error of the work itself ends
    everything; an error of type `lost` means that the worker is gone: a new one is hired, and what it held goes back.

    Args:
        hire: makes worker number i.
        keep: called with every group's number and pictures, in the order in which they come.
        same: called with what each worker's pictures have in common; may refuse by raising.

    Raises:
        RunError: a group lost `LOSSES` workers, no worker could begin, or two workers have different models.
    """
    queue = deque(numbers)
    losses: Counter[int | None] = Counter()
    seats: list[Seat] = []
    flying: dict[Future[Any], tuple[Seat, int | None]] = {}
    checked, weights, hired = False, None, 0

    def take_on() -> None:
        nonlocal hired
        seat = hire(hired)
        hired += 1
        seat.checks = not checked and not any(s.checks for s in seats)
        seats.append(seat)
        fly(seat, None)

    def fly(seat: Seat, number: int | None) -> None:
        try:
            if number is None:
                future = seat.submit("begin", list(new) if seat.checks else [])
            else:
                seat.held.append(number)
                future = seat.submit("draw", number)
        except lost:
            gone(seat)
        else:
            flying[future] = seat, number

    def gone(seat: Seat) -> None:
        if seat not in seats:
            return
        seats.remove(seat)
        seat.close()
        for future in [f for f, (s, _) in flying.items() if s is seat]:
            del flying[future]
        culprit = seat.held[0] if seat.held else None
        losses[culprit] += 1
        queue.extendleft(reversed(seat.held))
        if losses[culprit] >= LOSSES:
            what = "while loading the model" if culprit is None else f"over the same group of pictures ({culprit})"
            raise RunError(f"{LOSSES} workers died {what}, perhaps for lack of memory; what was drawn is kept")
        warn("a worker died; its pictures are drawn by another one")
        take_on()

    try:
        for _ in range(min(count, len(numbers))):
            take_on()
        while queue or any(number is not None for _, number in flying.values()):
            for seat in list(seats):
                while checked and seat.ready and seat in seats and queue and len(seat.held) < DEPTH:
                    fly(seat, queue.popleft())
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                if future not in flying:  # its worker was found to be gone a moment ago
                    continue
                seat, number = flying.pop(future)
                try:
                    result = future.result()
                except lost:
                    flying[future] = seat, number
                    gone(seat)
                    continue
                if number is not None:
                    seat.held.remove(number)
                    losses.pop(number, None)
                    keep(number, result)
                    continue
                if weights not in (None, result["weights"]):
                    raise RunError(f"two workers hold models with different weights ({weights}, {result['weights']})")
                same(result)
                weights, seat.ready = result["weights"], True
                checked = checked or seat.checks
                losses.pop(None, None)
    finally:
        for seat in seats:
            seat.close()


# ---------------------------------------------------------------------------------------------------------------
# Processes

_worker: Worker | None = None


def _die_with_parent(worker: Worker) -> None:
    """Set up a worker process: it ends with the process that started it, also when that one is killed."""
    import multiprocessing
    import signal
    import threading
    from multiprocessing.connection import wait as wait_for

    global _worker
    _worker = worker
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
    plan: Plan,
    cases: CaseSet,
    numbers: Sequence[int],
    new: Sequence[str],
    keep: Keep,
    same: Same,
    workers: int,
    device: str | None,
    download: bool,
    warn: Callable[[str], None],
) -> None:
    """Draw groups with several processes on this machine; on CUDA worker i uses GPU i, modulo their number."""
    from multiprocessing import get_context

    import torch

    gpus = torch.cuda.device_count() if device in (None, "cuda") else 0
    threads = None if gpus else max(1, torch.get_num_threads() // workers)

    def hire(number: int) -> Seat:
        place = f"cuda:{number % gpus}" if gpus else device
        worker = Worker(plan, cases, place, download, threads)
        pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_die_with_parent, initargs=(worker,))
        return Seat(lambda method, argument: pool.submit(_call, method, argument), lambda: _end(pool))

    hand_out(numbers, workers, hire, new, keep, same, (BrokenProcessPool,), warn)


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
        raise RunError('drawing on a cluster needs Ray: pip install "vsf[bench]"') from None
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
    plan: Plan,
    cases: CaseSet,
    numbers: Sequence[int],
    new: Sequence[str],
    keep: Keep,
    same: Same,
    address: str,
    workers: int,
    download: bool,
    warn: Callable[[str], None],
) -> None:
    """Draw groups with actors of a Ray cluster, `workers` of them, or (1) one per GPU; without GPUs one per node.

    The nodes need this package and the model; they need no shared disk.
    """
    with _ray(address, workers) as ray:
        from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

        gpus = int(ray.cluster_resources().get("GPU", 0))
        nodes = sum(1 for node in ray.nodes() if node["Alive"])
        count = workers if workers > 1 else gpus or nodes
        actor = ray.remote(num_gpus=1 if gpus else 0, num_cpus=0 if gpus else 1)(Worker)

        def hire(number: int) -> Seat:
            made = actor.remote(plan, cases, None, download, None)
            return Seat(
                lambda method, argument: getattr(made, method).remote(argument).future(),
                lambda: ray.kill(made),
            )

        try:
            hand_out(numbers, count, hire, new, keep, same, (RayActorError, ObjectLostError), warn)
        except RayTaskError as error:  # what the work itself raised, without Ray's own account of it
            raise (error.cause if isinstance(error.cause, Exception) else error) from None


# ---------------------------------------------------------------------------------------------------------------
# accelerate launch


@dataclass(frozen=True)
class Ranks:
    """This process among those that `accelerate launch` (or torchrun) started together."""

    rank: int
    count: int
    device: str | None
    wait: Callable[[], None]

    @property
    def share(self) -> tuple[int, int]:
        """For `generate`."""
        return self.rank, self.count


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
