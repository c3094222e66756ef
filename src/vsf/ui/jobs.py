"""One worker per device: jobs run one at a time, small ones sooner, say how far they are, and stop when asked to."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["Busy", "Cancelled", "Device", "Job"]

log = logging.getLogger("vsf.ui")

#: How many seconds a job lets others go first for each step of a picture that it takes.
_PATIENCE = 0.05


class Cancelled(Exception):
    """The visitor asked to stop; raised inside the diffusion loop, which thereby ends."""


class Busy(RuntimeError):
    """More jobs are waiting than the queue takes."""


class Job:
    """Something to do with the model, in a worker's hands.

    `work(pipe, job)` runs in the worker's thread, calls `step` after every denoising step, and may `publish` parts of
    its result as they come. `size` is how many steps of how many pictures it takes.
    """

    def __init__(self, work: Callable[[Any, Job], Any], size: int = 0) -> None:
        self._work = work
        # Its place in the queue: as if it had come so much later. So one picture does not wait for a hundred, and a
        # hundred wait for those that come within some seconds only.
        self.due = time.monotonic() + _PATIENCE * size
        self._stop = threading.Event()
        self._parts: deque[Any] = deque()
        self._value: Any = None
        self._error: BaseException | None = None
        self.finished = threading.Event()
        self.started: float | None = None
        self.done, self.total, self.text = 0, 0, ""

    def cancel(self) -> None:
        """Ask the job to stop; it does so before its next step, or never begins."""
        self._stop.set()

    def step(self, done: int, total: int, text: str = "") -> None:
        """Say how far the work is. Raises Cancelled if it should stop."""
        self.done, self.total, self.text = done, total, text or self.text
        if self._stop.is_set():
            raise Cancelled

    def publish(self, part: Any) -> None:
        """Hand out a part of the result."""
        self._parts.append(part)

    def parts(self) -> list[Any]:
        """The parts published since the last call."""
        found: list[Any] = []
        while self._parts:
            found.append(self._parts.popleft())
        return found

    def result(self) -> Any:
        """The value of a finished job. Raises what the work raised."""
        if self._error is not None:
            raise self._error
        return self._value

    def _run(self, get_pipe: Callable[[], Any]) -> None:
        try:
            if self._stop.is_set():
                raise Cancelled
            pipe = get_pipe()
            self.started = time.perf_counter()
            self._value = self._work(pipe, self)
        except BaseException as error:  # whatever it is, the page shows it and the worker lives on
            self._error = error
        finally:
            self.finished.set()


class Device:
    """A model on a device, loaded in the background from `start` on, and the queue in front of it.

    Args:
        load: gives the pipeline; runs once, in the worker's thread.
        most: how many jobs may wait.
    """

    def __init__(self, load: Callable[[], Any], most: int = 32) -> None:
        self._load, self._most = load, most
        self._queue: list[Job] = []
        self._running: Job | None = None
        self._wake = threading.Condition()
        self._closed = False
        self._pipe: Any = None
        self._failure: Exception | None = None
        self.loaded = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to load the model, if that was not begun."""
        with self._wake:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, name="vsf-device", daemon=True)
                self._thread.start()

    def submit(self, job: Job) -> Job:
        """Put a job into the queue. Raises Busy if it is full."""
        with self._wake:
            if self._closed or len(self._queue) >= self._most:
                raise Busy(f"{len(self._queue)} pictures are waiting for this model already; try again in a moment")
            self._queue.append(job)
            self._queue.sort(key=lambda one: one.due)
            self._wake.notify()
        return job

    def ahead(self, job: Job) -> int:
        """How many jobs come before this one."""
        with self._wake:
            if job not in self._queue:
                return 0
            return self._queue.index(job) + (self._running is not None)

    @property
    def failure(self) -> str | None:
        """Why the model could not be loaded."""
        return None if self._failure is None else str(self._failure)

    def close(self, timeout: float = 30.0) -> None:
        """Stop the running job and the worker; waits so many seconds for it."""
        with self._wake:
            self._closed = True
            for job in (*self._queue, *([self._running] if self._running else [])):
                job.cancel()
            self._wake.notify()
        if self._thread is not None and self.loaded.is_set():  # loading cannot be stopped, and nobody waits for it
            self._thread.join(timeout)

    @property
    def pipe(self) -> Any:
        """The loaded model. Raises what loading raised."""
        if self._failure is not None:
            raise self._failure
        return self._pipe

    def _work(self) -> None:
        try:
            self._pipe = self._load()
        except Exception as error:  # told to every visitor as a sentence
            log.warning("the model cannot be loaded: %s", error)
            self._failure = error
        self.loaded.set()
        while True:
            with self._wake:
                while not self._queue and not self._closed:
                    self._wake.wait()
                if not self._queue:
                    return
                job = self._running = self._queue.pop(0)
            job._run(lambda: self.pipe)
            with self._wake:
                self._running = None
