"""What stands between a visitor and the page: the guard, the hosts, the sessions and the private folder."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image

import vsf
from vsf.images import save_png
from vsf.outside import checked
from vsf.ui.folder import private_folder
from vsf.ui.guard import LONGEST_TEXT, Guard
from vsf.ui.hosts import Hosts
from vsf.ui.jobs import Cancelled, Job
from vsf.ui.sessions import Expired, Session, Sessions

# -- the guard --------------------------------------------------------------------------------------------------------


class Queue:
    """What the guard asks of gradio's."""

    def __init__(self) -> None:
        self.pending_messages_per_session: dict[str, Any] = {"listens": 1}
        self.pending_event_ids_session: dict[str, Any] = {"full": range(32)}
        self.cleaned: list[str] = []

    async def clean_events(self, session_hash: str) -> None:
        self.cleaned.append(session_hash)


def blocks() -> Any:
    fns = {0: SimpleNamespace(fn=print, inputs=[1, 2]), 1: SimpleNamespace(fn=None, inputs=[])}
    holder = SimpleNamespace(session_data={}, time_last_used={})
    return SimpleNamespace(fns=fns, _queue=Queue(), state_holder=holder)


class Asked:
    """One request to a guard: what came of it."""

    def __init__(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, **more: Any):
        self.seen: list[bytes] = []
        self.sent: list[dict[str, Any]] = []
        guard = more.pop("guard", None) or Guard(self.app, blocks(), Hosts("127.0.0.1", more.pop("hosts", ())))
        guard.app = self.app
        given = {"host": "127.0.0.1:7860"} | (headers or {})
        path, _, query = path.partition("?")
        self.scope = {
            "type": "http", "path": path, "method": method, "query_string": query.encode(),
            "headers": [(k.encode(), v.encode()) for k, v in given.items() if v],
        }  # fmt: skip
        self.chunks = [body[i : i + 100_000] for i in range(0, len(body), 100_000)] or [b""]
        self.read = 0
        asyncio.run(guard(self.scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        if not self.chunks:  # the connection stays open
            await asyncio.sleep(60)
        self.read += 1
        return {"type": "http.request", "body": self.chunks.pop(0), "more_body": bool(self.chunks)}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            self.seen.append((await receive())["body"])
        reflected = [(b"access-control-allow-origin", b"x"), (b"Access-Control-Allow-Credentials", b"true")]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"a"), *reflected]})

    @property
    def code(self) -> int:
        return self.sent[0]["status"]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode().lower(): v.decode() for k, v in self.sent[0]["headers"]}


JOIN = "/gradio_api/queue/join"


def join(**change: Any) -> bytes:
    return json.dumps(
        {"data": ["a red bike", 8], "event_data": None, "fn_index": 0, "session_hash": "abc"} | change
    ).encode()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, 200),
        ({"event_data": {"pick": "0,1"}, "trigger_id": 10**9, "event_id": "x", "batched": True}, 200),
        ({"data": ["a red bike"]}, 400),  # gradio would log a traceback
        ({"data": "ab"}, 400),
        ({"data": ["a", {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]}, 400),
        ({"data": ["a", ["b"]]}, 400),
        ({"event_data": {"file": {"path": "http://127.0.0.1/x"}}}, 400),
        ({"event_data": "text"}, 400),
        ({"fn_index": 1}, 400),
        ({"fn_index": 99}, 400),
        ({"fn_index": "0"}, 400),
        ({"fn_index": True}, 400),
        ({"session_hash": None}, 400),
        ({"session_hash": "../x"}, 400),
        ({"session_hash": "full"}, 429),
        ({"data": ["a", "\ud800"]}, 400),
        ({"data": ["a", float("nan")]}, 400),
        ({"data": ["a", 10**30]}, 400),
        ({"data": ["x" * (LONGEST_TEXT + 1), 1]}, 400),
        ({"data": ["x" * 300_000, 1]}, 413),
    ],
    ids=lambda x: str(x)[:50],
)
def test_only_events_of_the_page_reach_gradio(change: dict[str, Any], code: int) -> None:
    asked = Asked("POST", JOIN, join(**change))
    assert asked.code == code and bool(asked.seen) == (code == 200)
    if code == 200:
        assert set(json.loads(asked.seen[0])) == {"data", "event_data", "fn_index", "session_hash"}


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b'{"a":' * 40_000, b"\xff", b'"x"'])
def test_what_is_no_event_is_refused(body: bytes) -> None:
    assert Asked("POST", JOIN, body).code == 400


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/assets/x.js", 200),
        ("GET", "/gradio_api/app_id", 200),
        ("GET", "/gradio_api/heartbeat/abc", 200),
        ("GET", "/gradio_api/heartbeat/a/../b", 403),
        ("GET", "/gradio_api/queue/data?session_hash=listens", 200),
        ("GET", "/gradio_api/queue/data?session_hash=nobody", 404),  # gradio would log a traceback
        ("GET", "/gradio_api/file=HOME/session/kind/word/x.png", 404),  # gone; gradio would log a traceback
        ("GET", "/gradio_api/file=HOME/lock", 403),
        ("GET", "/gradio_api/file=HOME/../../../../../etc/passwd", 403),
        ("GET", "/gradio_api/file=HOME/a/b/c/../../../../../etc/passwd", 403),
        ("GET", "/gradio_api/file=/etc/passwd", 403),
        ("GET", "/gradio_api/file=https://example.org/x", 403),
        ("GET", "/gradio_api/file=HOME/session/kind/word/x\0.png", 403),
        ("GET", "/gradio_api/proxy=https://example.org", 403),
        ("GET", "/gradio_api/monitoring", 403),
        ("GET", "/monitoring/summary", 403),
        ("GET", "/config", 403),
        ("GET", "/gradio_api/info", 403),
        ("GET", "/logout", 403),
        ("OPTIONS", JOIN, 403),  # gradio would answer with the asker's origin
        ("PUT", "/", 403),
        ("POST", "/", 403),
        ("POST", "/login", 403),
        ("POST", "/gradio_api/upload", 403),
        ("POST", "/gradio_api/call/draw", 403),
        ("POST", "/gradio_api/run/predict", 403),
        ("POST", "/gradio_api/cancel", 403),
        ("POST", "/gradio_api/vibe-edit/", 403),
        ("POST", "/gradio_api/component_server", 403),
    ],
)
def test_the_guard_lets_through_what_the_page_needs(method: str, path: str, code: int) -> None:
    asked = Asked(method, path.replace("HOME", str(private_folder())), b"x" * 2_000_000)
    assert asked.code == code and asked.read == 0  # nothing is read of what is refused


def test_a_slow_request_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsf.ui.guard._PATIENCE", 0.05)

    async def never(self: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(Asked, "receive", never)
    assert Asked("POST", JOIN).code == 408


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 200),
        ({"host": "localhost:7860"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "localhost:9000", "origin": "http://localhost:9000"}, 200),  # through a forwarded port
        ({"host": "evil.example:7860"}, 403),
        ({"host": "evil.example:7860", "origin": "http://evil.example:7860"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "127.0.0.1:7860@evil.example"}, 403),
        ({"host": "10.0.0.7:7860"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "http://localhost:7860"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
    ids=str,
)
def test_only_the_page_itself_is_answered(headers: dict[str, str], code: int) -> None:
    for method, path, body in (("GET", "/", b""), ("POST", JOIN, join())):
        asked = Asked(method, path, body, headers)
        assert asked.code == code
        assert not [name for name in asked.headers if name.startswith("access-control-")]
        assert "frame-ancestors 'none'" in asked.headers["content-security-policy"]


def test_further_hosts_can_be_allowed_and_a_server_for_all_takes_addresses() -> None:
    proxied = Hosts("127.0.0.1", ["draw.example.org"])
    assert proxied.allows("draw.example.org:7860") and not proxied.allows("example.org")
    assert proxied.same("https://draw.example.org", "127.0.0.1:7860")  # a proxy that asks under its own name
    assert not proxied.same("https://draw.example.org:3000", "127.0.0.1:7860")
    every = Hosts("0.0.0.0")
    for name in ("192.168.1.5:7860", "[fe80::1]", "localhost"):
        assert every.allows(name)
    assert not every.allows("evil.example") and not every.allows("1.2.3.4.evil.example")
    assert Hosts("draw.lan").allows("draw.lan:80") and not Hosts("draw.lan").allows("localhost")
    for wrong in ("http://x", "a b", "", "x/y"):
        with pytest.raises(ValueError, match="is no host name"):
            Hosts("127.0.0.1", [wrong])


def test_gradio_keeps_something_of_so_many_visitors_only() -> None:
    page = blocks()
    guard = Guard(None, page, Hosts("127.0.0.1"))
    kept = page._queue.pending_messages_per_session
    for i in range(300):
        kept[f"v{i}"] = 1
        assert Asked("POST", JOIN, join(session_hash=f"v{i}"), guard=guard).code == 200
        guard._streams["v0"] = 1  # this one stays all the time
    assert len(guard._seen) == 256 and "v0" in kept and "v1" not in kept and "v299" in kept
    assert page._queue.cleaned == [f"v{i}" for i in range(1, 45)]
    guard._streams.update({f"v{i}": 1 for i in range(300)})
    assert Asked("POST", JOIN, join(session_hash="one-more"), guard=guard).code == 503
    assert Asked("POST", JOIN, join(session_hash="v299"), guard=guard).code == 200


def test_values_of_a_request_are_checked_whatever_they_are() -> None:
    fine = ["a", 1, 2.5, None, True, {"b": [1]}]
    assert checked(fine, "x") is fine
    for wrong in ("\udc00", ["\ud800"], {"\ud800": 1}, float("inf"), 2**63, [[[[[]]]] * 2] * 2 and _nested(40)):
        with pytest.raises(ValueError, match="^the request "):
            checked(wrong, "the request")


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# -- sessions ---------------------------------------------------------------------------------------------------------


def path_of(address: str) -> Path:
    return Path(address.removeprefix("gradio_api/file="))


def test_a_session_is_forgotten_with_its_files_and_its_job() -> None:
    sessions = Sessions(most=2)
    a = sessions.of("a")
    path = path_of(a.file("picture", "x.png", lambda path: save_png(Image.new("RGB", (4, 4)), path)))
    assert path.is_file() and path.is_relative_to(private_folder()) and private_folder().stat().st_mode & 0o077 == 0
    a.job = Job(lambda *_: None)
    b = sessions.of("b")
    sessions.of("c")
    assert path.is_file() and len(sessions) == 2  # b was older than c, and a still has something to do
    assert sessions.of("b") is not b
    sessions.leave("a")
    assert not path.exists()
    with pytest.raises(Cancelled):
        a.job.step(1, 2)
    with pytest.raises(Expired):
        sessions.of(None)
    with pytest.raises(Expired):
        b.get("picture")
    for name in ("b", "c"):
        sessions.leave(name)


def test_visitors_who_have_nothing_to_lose_go_first() -> None:
    sessions = Sessions(most=3)
    mine = sessions.of("mine")
    mine.keep("picture", 1)
    for i in range(20):
        sessions.of(f"flood{i}")
    assert sessions.of("mine") is mine


def test_a_new_result_takes_the_place_of_the_old_files() -> None:
    session = Sessions().of("x")

    def add() -> Path:
        session.keep("picture", 1)
        return path_of(session.file("picture", "x.txt", lambda path: path.write_text("x")))

    first, second = add(), add()
    # A browser that was told of the first one a moment ago may still fetch it.
    assert first.is_file() and second.is_file() and first.parent.parent != second.parent.parent
    third = add()
    assert not first.exists() and second.is_file() and third.is_file()
    session.drop("picture")
    session.drop("picture")
    assert not second.exists() and third.is_file()
    session.close()
    assert not session.folder.exists()


def test_a_file_that_goes_while_it_is_fetched_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(private_folder() / "two")
    address = session.file("picture", "x.webp", lambda path: path.write_bytes(b"123456"))
    whole, part = Asked("GET", f"/{address}"), Asked("GET", f"/{address}", headers={"range": "bytes=1-3"})
    assert (whole.code, whole.body, whole.headers["content-type"]) == (200, b"123456", "image/webp")
    assert whole.headers["cache-control"] == "private, no-store"
    assert (part.code, part.body) == (206, b"234")

    async def gone(path: Any, **_: Any) -> Any:
        raise FileNotFoundError(path)

    with monkeypatch.context() as patch:
        patch.setattr("anyio.open_file", gone)  # after its size was read
        assert Asked("GET", f"/{address}").code == 200
    session.close()
    assert Asked("GET", f"/{address}").code == 404


@pytest.mark.parametrize("when", ["before", "while", "after"])
@pytest.mark.parametrize("what", ["leave", "replace"])
def test_a_file_of_a_visitor_who_left_meanwhile_is_not_left_behind(when: str, what: str) -> None:
    session = Session(private_folder() / "one")
    session.keep("picture", 1)

    def go() -> None:
        session.close() if what == "leave" else session.keep("picture", 2)

    def write(path: Path) -> None:
        if when == "while":
            go()
        path.parent.mkdir(exist_ok=True, parents=True) if when == "after" else None
        path.write_text("x")
        if when == "after":
            go()

    if when == "before":
        go()
    if when == "before" and what == "replace":
        assert path_of(session.file("picture", "x", write)).is_file()
    else:
        with pytest.raises(Expired):
            session.file("picture", "x", write)
        assert not session.folder.exists() or not [p for p in session.folder.rglob("*") if p.is_file()]
    session.close()
    assert not session.folder.exists()


# -- the folder -------------------------------------------------------------------------------------------------------

TAKES = "from vsf.ui.folder import private_folder; print(private_folder(), flush=True); {}"


def take(folder: Path, then: str) -> subprocess.Popen[str]:
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(Path(vsf.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", TAKES.format(then)], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_folders_of_servers_that_were_killed_are_removed_and_no_others(tmp_path: Path) -> None:
    killed, alive = (take(tmp_path, "import time; time.sleep(600)") for _ in range(2))
    assert killed.stdout and alive.stdout
    dead, living = Path(killed.stdout.readline().strip()), Path(alive.stdout.readline().strip())
    (dead / "session").mkdir()
    (dead / "session" / "x.png").write_text("x")
    killed.kill()
    killed.wait()
    foreign = tmp_path / "vsf-ui-foreign"  # of something else: no lock in it
    foreign.mkdir()
    (tmp_path / "vsf-ui-link").symlink_to(living)
    assert dead.is_dir()
    third = take(tmp_path, "")
    assert third.stdout
    own = Path(third.stdout.readline().strip())
    assert third.wait() == 0
    assert not dead.exists() and not own.exists() and living.is_dir() and foreign.is_dir()
    alive.kill()
    alive.wait()
    for process in (killed, alive, third):
        if process.stdout is not None:
            process.stdout.close()


def test_the_lock_is_held_as_long_as_the_server_lives() -> None:
    with pytest.raises(TimeoutError), FileLock(private_folder() / "lock", timeout=0):
        pass
    assert re.fullmatch(r"vsf-ui-\w+", private_folder().name)
