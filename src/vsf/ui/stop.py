"""Ending when told to, whatever is going on: by the keyboard, the system, or a terminal that is closed."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["until_told"]

#: What does not end by itself within so many seconds (a step of a large model, a file being written) is ended.
GRACE = 7.0
_inside = False


class _Told(KeyboardInterrupt):
    pass


@contextmanager
def until_told(last: Callable[[], None], leave: bool = False) -> Iterator[None]:
    """Run the block until SIGINT, SIGTERM or SIGHUP; the signal ends the block, not its caller.

    A signal that was ignored before counts, too: a shell without job control starts what ends in `&` with SIGINT
    ignored. But for SIGHUP, which `nohup` has ignored on purpose. Further signals are ignored, the first one suffices.
    Inside another such block it does nothing: that one ends.

    Args:
        last: done if the block does not end within `GRACE` seconds, before the process is ended.
        leave: the process ends with the block: so it does, at once, when nothing of it is left to do.
    """
    global _inside
    if _inside or threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    watch: threading.Timer | None = None

    def end() -> None:
        last()
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(0)

    def told(number: int, frame: FrameType | None) -> None:
        nonlocal watch
        if watch is None:
            watch = threading.Timer(GRACE, end)
            watch.daemon = True
            watch.start()
            raise _Told

    before: dict[int, object] = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # SIGHUP is not everywhere
        if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
            before[number] = signal.signal(number, told)
    _inside = True
    try:
        yield
    except _Told:
        pass
    finally:
        _inside = False
        if leave and watch is not None:
            # An interpreter takes seconds to take itself apart, and crashes if a thread is inside a library's own code.
            atexit.register(end)
        if not leave:
            if watch is not None:
                watch.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
