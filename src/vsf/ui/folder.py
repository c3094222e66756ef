"""The one folder the page reads and writes: new for each process, for its owner alone, gone when it ends."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["private_folder", "remove_folder"]

_PREFIX, _LOCK = "vsf-ui-", "lock"
_held: list[FileLock] = []


@cache
def private_folder() -> Path:
    """The folder, made at the first call; what servers left that were killed is removed then."""
    _remove_dead()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))  # mode 0700
        lock = FileLock(folder / _LOCK, timeout=0, thread_local=False)
        try:
            lock.acquire()
            break
        except (Timeout, OSError):  # another server that started just now took it for a dead one's
            shutil.rmtree(folder, ignore_errors=True)
    _held.append(lock)
    # Where gradio keeps its files; it serves this folder and nothing else.
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    atexit.register(remove_folder)
    return folder


def remove_folder() -> None:
    """Remove the folder with everything in it; the process writes no more."""
    private_folder.cache_clear()
    while _held:
        lock = _held.pop()
        lock.release()
        shutil.rmtree(Path(lock.lock_file).parent, ignore_errors=True)


def _remove_dead() -> None:
    """Remove the folders of servers that are not running any more: the system lets go of their locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        lock = folder / _LOCK
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid() or not lock.is_file():
                continue
            with FileLock(lock, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError, AttributeError):  # alive, gone, or a system without owners
            continue
