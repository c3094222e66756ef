"""People as judges, on a small page of this machine: two pictures of one case side by side, blind, by keyboard.

Which methods drew them, which is left and which comes when is hidden and differs between visitors. Every visitor is a
judge of their own, `NAME-VISITOR`, with answers like any other judge's; which of two pictures they prefer is kept
beside them, in `judges/NAME-VISITOR/pairs/`. Whoever comes back under the same name goes on where they stopped.

The server is the standard library's. It listens on this machine only unless told otherwise, answers only to its own
host name, takes changes only from its own page, and shows pictures under random ids, as pixels without metadata.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from ..run import Answer, Run, Store, Unit
from .base import Item, PictureError, enroll, items

__all__ = ["LabelSession", "Pair", "make_server"]

PAGE_VERSION = 1
PREFERENCES = ("left", "right", "same")
QUALITIES = (1.0, 0.5, 0.0)
"""Good, fair, poor."""

_VISITOR = re.compile(r"[a-z0-9]{1,24}")
_MOST_VISITORS = 200
_LONGEST_BODY = 4096


@dataclass(frozen=True)
class Pair:
    """What a visitor is shown next.

    Attributes:
        id: opaque; what `LabelSession.answer` is given back.
        left, right: the pictures; no right one where a case has one picture only. Their `id` is what a page may know.
        ask: for left and right, whether the questions about this picture are still open. With an odd number of
            methods one picture is shown twice, and asked about once.
        done, total: pairs.
    """

    id: str
    left: Item
    right: Item | None
    ask: tuple[bool, bool]
    done: int
    total: int

    def public(self) -> dict[str, Any]:
        """What the page gets: words of the case and opaque ids, nothing else."""
        case = self.left.case
        return {
            "id": self.id,
            "pictures": [item.id for item in (self.left, self.right) if item is not None],
            "ask": list(self.ask),
            "prompt": case.prompt,
            "negative": case.negative,
            "question_1": case.question_1,
            "question_2": case.question_2,
            "done": self.done,
            "total": self.total,
        }


class _Visitor:
    def __init__(self, session: LabelSession, name: str) -> None:
        self.session, self.name = session, name
        self.judge = f"{session.name}-{name}"
        self.folder = session.run.folder / "judges" / self.judge
        self.pairs = Store(self.folder / "pairs")
        self.refresh()

    def refresh(self) -> None:
        """Read what is drawn and answered; more may have been drawn since."""
        run, salt = self.session.run, f"{self.session.seed}|{self.name}"
        drawn = run.records.keys()
        groups: dict[tuple[str, int, str], list[Item]] = {}
        # `items` shuffles, so what stands left or first in a group says nothing about the method.
        for item in items(run, (unit for unit in run.plan.units if unit.id in drawn), self.session.seed_of(self.name)):
            unit = Unit.parse(item.unit)
            groups.setdefault((unit.case, unit.seed, unit.kind), []).append(item)
        two: list[tuple[str, Item, Item | None]] = []
        for (case, seed, kind), group in groups.items():
            for i in range(0, len(group), 2):
                left = group[i]
                right = group[i + 1] if i + 1 < len(group) else group[0] if i else None
                both = left.unit + "|" + (right.unit if right else "")
                two.append((f"{case}--{seed}--{kind}/{sha256(both.encode()).hexdigest()[:16]}", left, right))
        two.sort(key=lambda entry: sha256(f"{salt}|{entry[0]}".encode()).digest())
        self.all = {key: (left, right) for key, left, right in two}
        self.answered = run.answers(self.judge).keys()
        stored = {key: self.pairs.get(key) for key in self.pairs.keys()}  # noqa: SIM118
        self.count = max((entry["n"] for entry in stored.values()), default=-1) + 1
        self.history = sorted(stored, key=lambda key: stored[key]["n"])
        self.open = [
            key
            for key, left, right in two
            if key not in stored and {item.unit for item in (left, right) if item} - self.answered
        ]


class LabelSession:
    """The questions and answers of a page for people, without the page: any other page can use it.

    Safe to use from several threads.

    Args:
        run: whose pictures are shown; it may still be growing.
        name: judges are named NAME-VISITOR.
        seed: decides orders and sides, together with the visitor's name.
    """

    def __init__(self, run: Run, name: str = "human", seed: int = 0) -> None:
        self.run, self.name, self.seed = run, name, seed
        self._secret = secrets.token_bytes(32)
        self._lock = threading.RLock()
        self._visitors: dict[str, _Visitor] = {}
        self._shown: dict[str, Item] = {}

    def seed_of(self, visitor: str) -> int:
        """The seed of a visitor's order."""
        return int.from_bytes(sha256(f"{self.seed}|{visitor}".encode()).digest()[:6], "big")

    def next(self, visitor: str) -> Pair | None:
        """The next pair for a visitor, the same until it is answered; None when nothing is left.

        Raises:
            ValueError: not a name for a visitor, or too many visitors.
        """
        with self._lock:
            who = self._visitor(visitor)
            if not who.open:
                who.refresh()
            return self._pair(who, who.open[0]) if who.open else None

    def answer(
        self,
        visitor: str,
        pair: str,
        left: Mapping[str, Any] | None,
        right: Mapping[str, Any] | None,
        preference: str | None,
    ) -> None:
        """Store what a visitor says about the pair that `next` gave.

        Args:
            pair: its id.
            left, right: `answer_1` and `answer_2` (True, False, or None for "cannot tell") and `quality` (1, 0.5, 0)
                of the pictures that were asked about; None for the others.
            preference: "left", "right" or "same"; None where there is one picture only.

        Raises:
            KeyError: not the pair that is open for this visitor.
            ValueError: an answer is missing, too much or of the wrong kind.
        """
        with self._lock:
            who = self._visitor(visitor)
            key = who.open[0] if who.open else ""
            if not key or not hmac.compare_digest(self._id(who, key), pair):
                raise KeyError("this pair is not open")
            shown = self._pair(who, key)
            if (shown.right is None) != (preference is None) or (preference and preference not in PREFERENCES):
                raise ValueError(f"preference must be one of {', '.join(PREFERENCES)}, or none for a single picture")
            answers = [
                _answer(item, given)
                for item, given, ask in zip((shown.left, shown.right), (left, right), shown.ask, strict=True)
                if item is not None and _asked(given, ask)
            ]
            store = enroll(
                self.run,
                who.judge,
                {"kind": "human", "visitor": who.name, "page_version": PAGE_VERSION},
                seed=self.seed,
            )
            for answer in answers:
                store.put(answer.unit, asdict(answer))
            who.pairs.put(
                key,
                {
                    "n": who.count,
                    "left": shown.left.unit,
                    "right": shown.right.unit if shown.right else None,
                    "preference": preference,
                    "asked": [answer.unit for answer in answers],
                },
            )
            who.count += 1
            who.answered |= {answer.unit for answer in answers}
            who.open.pop(0)
            who.history.append(key)

    def undo(self, visitor: str) -> Pair | None:
        """Take back a visitor's last answered pair, which is then open again; None if there is none."""
        with self._lock:
            who = self._visitor(visitor)
            while who.history:
                key = who.history.pop()
                entry = who.pairs.get(key)
                who.pairs.path(key).unlink(missing_ok=True)
                store = self.run.answers(who.judge)
                for unit in entry["asked"]:
                    store.path(unit).unlink(missing_ok=True)
                who.answered -= set(entry["asked"])
                if key in who.all:  # pairs change while a run grows
                    who.open.insert(0, key)
                    return self._pair(who, key)
                who.refresh()
                return self._pair(who, who.open[0]) if who.open else None
            return None

    def picture(self, id: str) -> bytes:
        """PNG of a picture that was shown, by its opaque id. Raises KeyError, PictureError."""
        return self._shown[id].png()

    def _visitor(self, name: str) -> _Visitor:
        name = name.strip().lower() if isinstance(name, str) else ""
        if not _VISITOR.fullmatch(name):
            raise ValueError("a visitor's name has 1 to 24 letters or digits")
        if name not in self._visitors:
            if len(self._visitors) >= _MOST_VISITORS:
                raise ValueError("too many visitors")
            self._visitors[name] = _Visitor(self, name)
        return self._visitors[name]

    def _id(self, who: _Visitor, what: str) -> str:
        return hmac.new(self._secret, f"{who.name}|{what}".encode(), "sha256").hexdigest()[:32]

    def _pair(self, who: _Visitor, key: str) -> Pair:
        shown: list[Item | None] = []
        for item in who.all[key]:
            if item is not None:
                item = Item(self._id(who, item.unit), item.unit, item.image, item.case, item.kept)
                self._shown[item.id] = item
            shown.append(item)
        left, right = shown
        assert left is not None
        ask = (left.unit not in who.answered, right is not None and right.unit not in who.answered)
        done = len(who.all) - len(who.open)
        return Pair(self._id(who, key), left, right, ask, done, len(who.all))


def _asked(given: Mapping[str, Any] | None, ask: bool) -> bool:
    if ask != (given is not None):
        raise ValueError("answers are needed for the pictures that were asked about, and for no other")
    return ask


def _answer(item: Item, given: Mapping[str, Any] | None) -> Answer:
    if not isinstance(given, Mapping) or given.keys() != {"answer_1", "answer_2", "quality"}:
        raise ValueError("an answer has answer_1, answer_2 and quality")
    one, two, quality = given["answer_1"], given["answer_2"], given["quality"]
    if any(value is not None and not isinstance(value, bool) for value in (one, two)):
        raise ValueError("answer_1 and answer_2 must be true, false or null")
    if isinstance(quality, bool) or quality not in QUALITIES:
        raise ValueError(f"quality must be one of {', '.join(map(str, QUALITIES))}")
    if one is None or two is None:
        return item.not_judged("the visitor cannot tell", {"answer_1": one, "answer_2": two, "quality": quality})
    return item.judged(answer_1=one, answer_2=two, quality=float(quality))


# ---------------------------------------------------------------------------------------------------------------
# The page


def make_server(session: LabelSession, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """A server of the page, bound and not yet serving; port 0 takes a free one.

    Raises:
        OSError: the address or port cannot be had.
    """
    token = secrets.token_urlsafe(24)
    page = (files("vsf.bench.judges") / "label.html").read_text("utf-8").replace("@TOKEN@", token)
    names = {"127.0.0.1", "localhost", "::1", host.lower()} - {"0.0.0.0", "::", ""}

    class Handler(_Handler):
        pass

    Handler.session, Handler.token, Handler.page, Handler.names = session, token, page.encode(), names
    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    return server


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    session: LabelSession
    token: str
    page: bytes
    names: set[str]
    disable_nagle_algorithm = True
    timeout = 20  # seconds that a visitor's connection may stay silent

    def do_GET(self) -> None:
        self._serve(self._get)

    def do_POST(self) -> None:
        self._serve(self._post)

    def _serve(self, act: Any) -> None:
        try:
            self._check_host(self.headers.get("Host", ""))
            kind, body = act()
            self._send(200, kind, body)
        except _Refused as refused:
            self._send(refused.status, "application/json", json.dumps({"error": str(refused)}).encode())
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:  # no path and no traceback leaves the server
            print(f"warning: {type(error).__name__}: {error}", flush=True)
            self._send(500, "application/json", b'{"error": "something went wrong here; see the server\'s terminal"}')

    def _check_host(self, given: str) -> None:
        """Only names of this server: a page elsewhere whose name was made to point here gets nothing."""
        try:
            name = (urlsplit(f"//{given}").hostname or "").lower()
        except ValueError:
            name = ""
        if name not in self.names and name != self.connection.getsockname()[0]:
            raise _Refused(403, "this server does not answer to that host name")

    def _get(self) -> tuple[str, bytes]:
        path = urlsplit(self.path).path
        if path == "/":
            return "text/html; charset=utf-8", self.page
        found = re.fullmatch(r"/picture/([0-9a-f]{32})", path)
        if found is None:
            raise _Refused(404, "nothing here")
        try:
            return "image/png", self.session.picture(found[1])
        except (KeyError, PictureError):
            raise _Refused(404, "no such picture") from None

    def _post(self) -> tuple[str, bytes]:
        origin = self.headers.get("Origin")
        if origin is not None:
            self._check_host(urlsplit(origin).netloc)
        if not hmac.compare_digest(self.headers.get("X-Token", "").encode(), self.token.encode()):
            raise _Refused(403, "reload the page")
        if self.headers.get("Content-Type", "").split(";")[0].strip() != "application/json":
            raise _Refused(415, "JSON is needed")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _Refused(411, "a length is needed")
        if int(length) > _LONGEST_BODY:
            raise _Refused(413, "too long")
        try:
            data = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise _Refused(400, "not JSON") from None
        if not isinstance(data, dict) or not isinstance(data.get("visitor"), str):
            raise _Refused(400, "a visitor is needed")
        visitor = data["visitor"]
        try:
            if self.path == "/next":
                pair = self.session.next(visitor)
            elif self.path == "/answer":
                self.session.answer(
                    visitor, str(data.get("id")), data.get("left"), data.get("right"), data.get("preference")
                )
                pair = self.session.next(visitor)
            elif self.path == "/undo":
                pair = self.session.undo(visitor) or self.session.next(visitor)
            else:
                raise _Refused(404, "nothing here")
        except KeyError:
            raise _Refused(409, "this pair is not open any more") from None
        except ValueError as error:
            raise _Refused(400, str(error)) from None
        return "application/json", json.dumps({"pair": None if pair is None else pair.public()}).encode()

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header(
            "Content-Security-Policy",
            "default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'unsafe-inline'; "
            "script-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        )
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "vsf"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal shows the address, and errors."""
