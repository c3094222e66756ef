"""What the server keeps of each visitor: the job in work, the pictures last drawn, and a folder nobody can guess."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .jobs import Job

__all__ = ["Expired", "Session", "Sessions", "private_folder"]


class Expired(RuntimeError):
    """What the visitor asks about is not kept any more."""


@cache
def private_folder() -> Path:
    """The only folder the page reads and writes: new for each process, for its owner alone, gone when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="vsf-ui-"))  # mode 0700
    # Where gradio keeps uploads; it serves this folder and (with no allowed_paths) nothing else.
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@dataclass
class Session:
    """One visitor. `kept` holds the last result of each kind ("picture", "compare", ...)."""

    folder: Path
    used: float = 0.0
    job: Job | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    _shown: dict[str, Path] = field(default_factory=dict)

    def keep(self, kind: str, value: Any) -> None:
        """Keep a result in the place of the last one of its kind, whose files go."""
        self.drop(kind)
        self.kept[kind] = value

    def drop(self, kind: str) -> None:
        """Forget a result and its files."""
        self.kept.pop(kind, None)
        shutil.rmtree(self._shown.pop(kind, Path(os.devnull) / "none"), ignore_errors=True)

    def get(self, kind: str) -> Any:
        """The last result of a kind. Raises Expired."""
        if kind not in self.kept:
            raise Expired("this picture is not kept any more; draw it again")
        return self.kept[kind]

    def file(self, kind: str, name: str, write: Callable[[Path], Any]) -> str:
        """Write a file of a result, under a name nobody can guess; gives the address it is served at."""
        base = self._shown.get(kind)
        if base is None:
            base = self._shown[kind] = self.folder / secrets.token_urlsafe(16)
            base.mkdir(parents=True)
        path = base / secrets.token_urlsafe(12) / name
        path.parent.mkdir()
        write(path)
        return f"gradio_api/file={path}"


class Sessions:
    """All visitors by the random id of their page. Old ones go when there are more than `most`, or after `age` seconds."""

    def __init__(self, most: int = 64, age: float = 3600.0) -> None:
        self._most, self._age = most, age
        self._known: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, session_hash: str | None) -> Session:
        """The session of a visitor, made if new. Raises Expired for a request from no page."""
        if not session_hash:
            raise Expired("this page has lost its connection; reload it")
        now, gone = time.monotonic(), list[Session]()
        with self._lock:
            session = self._known.pop(session_hash, None)
            if session is None:
                session = Session(private_folder() / secrets.token_urlsafe(16))
            session.used = now
            self._known[session_hash] = session
            for key, old in list(self._known.items())[:-1]:
                idle = old.job is None or old.job.finished.is_set()
                if (len(self._known) > self._most or now - old.used > self._age) and idle:
                    gone.append(self._known.pop(key))
        for old in gone:
            self._end(old)
        return session

    def leave(self, session_hash: str | None) -> None:
        """The visitor is gone: their job stops, their files go."""
        with self._lock:
            session = self._known.pop(session_hash or "", None)
        if session is not None:
            self._end(session)

    @staticmethod
    def _end(session: Session) -> None:
        if session.job is not None:
            session.job.cancel()
        session.kept.clear()
        shutil.rmtree(session.folder, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._known)
