"""What the server keeps of each visitor: the job in work, the pictures last drawn, and a folder nobody can guess."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .folder import private_folder

if TYPE_CHECKING:
    from .jobs import Job

__all__ = ["Expired", "Session", "Sessions"]


class Expired(RuntimeError):
    """What the visitor asks about is not kept any more."""


@dataclass
class Session:
    """One visitor. `job` is what they asked for, `aside` what the page draws for them meanwhile; `kept` holds the last
    result of each kind ("picture", "compare", ...).

    The files of the result before it stay until the next one: the page may have asked for them a moment ago.
    """

    folder: Path
    used: float = 0.0
    job: Job | None = None
    aside: Job | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    _shown: dict[str, Path] = field(default_factory=dict)
    _replaced: dict[str, Path] = field(default_factory=dict)
    _closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, kind: str, value: Any) -> None:
        """Keep a result in the place of the last one of its kind, whose files go with the next."""
        self.drop(kind)
        self.kept[kind] = value

    def drop(self, kind: str) -> None:
        """Forget a result; the files of the one before it go."""
        with self._lock:
            self.kept.pop(kind, None)
            if (shown := self._shown.pop(kind, None)) is None:
                return
            gone = self._replaced.get(kind)
            self._replaced[kind] = shown
        if gone is not None:
            shutil.rmtree(gone, ignore_errors=True)

    def get(self, kind: str) -> Any:
        """The last result of a kind. Raises Expired."""
        if kind not in self.kept:
            raise Expired("this picture is not kept any more; draw it again")
        return self.kept[kind]

    def file(self, kind: str, name: str, write: Callable[[Path], Any]) -> str:
        """Write a file of a result, under a name nobody can guess; gives the address it is served at.

        Raises:
            Expired: the visitor left, or another result took this one's place, before the file was whole.
        """
        with self._lock:
            if self._closed:
                raise Expired("the visitor has left")
            base = self._shown.setdefault(kind, self.folder / secrets.token_urlsafe(16))
            path = base / secrets.token_urlsafe(12) / name
            path.parent.mkdir(parents=True)
        try:
            write(path)
        except OSError:
            if not self._gone(kind, base):
                raise
        if self._gone(kind, base):
            shutil.rmtree(self.folder if self._closed else base, ignore_errors=True)
            raise Expired("this picture is not kept any more; draw it again")
        return f"gradio_api/file={path}"

    def _gone(self, kind: str, base: Path) -> bool:
        with self._lock:
            return self._closed or self._shown.get(kind) is not base

    @property
    def idle(self) -> bool:
        """Whether nothing is at work for this visitor."""
        return all(job is None or job.finished.is_set() for job in (self.job, self.aside))

    def stop(self) -> None:
        """Ask what is at work to stop."""
        for job in (self.job, self.aside):
            if job is not None:
                job.cancel()

    def close(self) -> None:
        """The visitor is gone: the job stops, the files go, and no more are written."""
        with self._lock:
            self._closed = True
        self.stop()
        self.kept.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


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
            # Those who have nothing to lose go first, then the oldest.
            for key, old in sorted(self._known.items(), key=lambda item: bool(item[1].kept)):
                if (len(self._known) >= self._most or now - old.used > self._age) and old.idle:
                    gone.append(self._known.pop(key))
            self._known[session_hash] = session
        for old in gone:
            old.close()
        return session

    def leave(self, session_hash: str | None) -> None:
        """The visitor is gone: their job stops, their files go."""
        with self._lock:
            session = self._known.pop(session_hash or "", None)
        if session is not None:
            session.close()

    def __len__(self) -> int:
        return len(self._known)
