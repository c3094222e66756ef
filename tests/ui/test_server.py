"""A real `vsf ui`, asked by raw requests: what it answers, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import API, ROOT, Asker, Form, Running, multipart, png

from patience import PATIENCE

if sys.platform == "win32":
    pytest.skip("signals and loopback as POSIX has them", allow_module_level=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("server"))
    yield running
    running.end()
    assert "Traceback" not in running.said and not running.left(), running.said


@pytest.fixture
def visitor(server: Running) -> Asker:
    return Asker(server.port)


@pytest.fixture(scope="module")
def form(server: Running) -> Form:
    return Form(Asker(server.port).config())


def draw(visitor: Asker, form: Form, **change: Any) -> str:
    handler = form.handler("draw", "click")
    return visitor.run(handler, form.values(handler, **{"steps": 1} | change))


# -- what it answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": -3}, "The seed is -3; allowed: a whole number from 0 to 9007199254740983."),
        ({"steps": 0}, "The number of steps is 0; allowed: a whole number from 1 to 50."),
        ({"n": 9}, "The number of pictures is 9; allowed: a whole number from 1 to 8."),
        ({"size": "512x512"}, "Size is 512x512; this model takes multiples of 16 up to 256 pixels a side."),
        ({"vsf_scale": -1}, "VSF.scale is -1.0"),
        ({"method": "magic"}, "Unknown method 'magic'"),
        ({"vsf_blocks": "0-99999"}, "Blocks is '0-99999'; allowed: numbers and ranges such as 0-18,24, or all."),
    ],
)
def test_a_wrong_value_is_one_sentence_in_the_line_and_in_the_note(
    visitor: Asker, form: Form, change: dict[str, Any], words: str
) -> None:
    said = [json.loads(m) for m in draw(visitor, form, **change).split("\n")][0]
    notes = [m["log"] for m in said if m["msg"] == "log"]
    lines = json.dumps([m["output"] for m in said if "output" in m], ensure_ascii=False)
    assert len(notes) == 1 and notes[0].startswith(words.replace("'", "&#x27;"))
    assert words.replace("'", "&#x27;") in lines and "status bad" in lines


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"name": "a.png", "text": '{"prompt": "\\ud800"}'}, "holds half a character, U+D800"),
        ({"name": "a.png", "text": '{"a":' * 6000 + "1" + "}" * 2000}, "nested more than 32 levels deep"),
        ({"name": "a.png", "text": "x" * 32_769}, None),
        ({"name": "a.png", "text": '{"guidance": {"method": "vsf"}}'}, "are incomplete"),
        ({"name": "a.png", "fault": "kind"}, "The file a.png is not a PNG picture."),
        ({"name": "<b>", "fault": "none"}, "The file &lt;b&gt; holds no settings of vsf"),
        ({}, "is not a PNG picture"),
        (None, "is not a PNG picture"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_settings_that_cannot_be_restored_are_one_sentence(
    visitor: Asker, form: Form, found: Any, words: str | None
) -> None:
    handler = form.handler("restore", "upload")
    if words is None:
        assert visitor.join(handler, [], found) == (400, "the request is no event of this page")
        return
    assert words in visitor.run(handler, [], found)


def test_half_a_character_breaks_no_stream(visitor: Asker, form: Form) -> None:
    handler = form.handler("draw", "click")
    for change in ({"prompt": "a \ud800"}, {"size": "\udfff"}, {"vsf_blocks": "\ud800"}):
        code, said = visitor.join(handler, form.values(handler, **change))
        assert code == 400 and "half a character" in said
    assert "Drawn in" in draw(visitor, form)


def test_an_answer_to_a_request_that_comes_while_the_stream_closes_is_not_lost(visitor: Asker, form: Form) -> None:
    handler = form.handler("method", "change")
    _, first = visitor.join(handler, ["nag"])
    with visitor.stream() as messages:
        next(m for m in messages if m.get("event_id") == first and m["msg"] == "process_completed")
        _, second = visitor.join(handler, ["vsf"])  # its page believes in this stream
        seen = [m for m in messages if m.get("event_id") == second or m["msg"] == "close_stream"]
    assert [m["msg"] for m in seen][-2:] == ["process_completed", "close_stream"]


def test_nothing_is_uploaded_or_kept(server: Running, visitor: Asker) -> None:
    for name, content in (("a.png", png(64)), ("a.svg", b"<svg/>"), ("a.html", b"<script>"), ("a", os.urandom(10**6))):
        code, _ = visitor.ask("POST", f"{API}upload?upload_id=x", *multipart(name, content))
        assert code in (0, 403)  # 0: it hung up while we were still talking
    code, _ = visitor.ask("POST", "/login", b"x" * 10**7, {"content-type": "application/x-www-form-urlencoded"})
    assert code in (0, 403)
    assert not [p for p in server.folder.rglob("*") if p.suffix in (".svg", ".html")]


def test_another_site_is_not_answered(visitor: Asker) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://localhost:3000"}):
        assert visitor.ask("GET", "/", headers=headers)[0] == 403
        assert visitor.ask("OPTIONS", f"{API}queue/join", headers=headers)[0] == 403
    assert visitor.ask("GET", f"{API}queue/data?session_hash=nobody")[0] == 404


def test_many_draws_leave_the_files_of_two(server: Running, form: Form) -> None:
    """Those of the last one and of the one before it, which the page may be fetching still."""
    visitor, scrub = Asker(server.port), form.handler("map-step", "input")
    counts = list[Counter[str]]()
    for i in range(5):
        draw(visitor, form, seed=i)
        visitor.run(scrub, form.values(scrub, map_step=1))
        counts.append(Counter(path.suffix for path in server.files()))
    assert any(path.name == "map.webp" for path in server.files())
    assert counts[1] == counts[2] == counts[3] == counts[4]


def test_who_leaves_while_drawing_leaves_nothing(server: Running, form: Form) -> None:
    """With a page that is closed, and with a connection that breaks off."""
    kept = len(server.files())
    handler = form.handler("draw", "click")
    for _ in range(4):
        visitor = Asker(server.port)
        alive = socket.create_connection(("127.0.0.1", server.port))
        alive.sendall(f"GET {API}heartbeat/{visitor.session} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        visitor.join(handler, form.values(handler, steps=50, n=8))
        with visitor.stream() as messages:
            next(m for m in messages if "Step" in json.dumps(m))
        alive.close()
    other = Asker(server.port)
    draw(other, form)  # the device is free again
    until = time.monotonic() + PATIENCE
    while len(server.files()) > kept + 10 and time.monotonic() < until:
        time.sleep(0.1)
    assert len(server.files()) <= kept + 10  # those of the last


# -- how it ends ------------------------------------------------------------------------------------------------------


def working(running: Running) -> None:
    """Something to interrupt."""
    form = Form(Asker(running.port).config())
    handler = form.handler("draw", "click")
    visitor = Asker(running.port)
    visitor.join(handler, form.values(handler, steps=50, n=8))
    with visitor.stream() as messages:
        next(m for m in messages if "Step" in json.dumps(m))
    visitor.join(handler, form.values(handler, steps=50, n=8))
    threading.Thread(target=_listen, args=(visitor,), daemon=True).start()
    time.sleep(0.5)


def _listen(visitor: Asker) -> None:
    try:
        with visitor.stream() as messages:
            list(messages)
    except (OSError, AssertionError, ValueError):  # the server is gone
        pass


@pytest.mark.parametrize(
    ("start", "number"),
    [
        ("in front", signal.SIGINT),
        ("behind", signal.SIGTERM),
        ("behind", signal.SIGINT),
        ("behind", signal.SIGHUP),
        ("ignored", signal.SIGINT),
    ],
)
def test_it_ends_when_told_to(start: str, number: int, tmp_path: Path) -> None:
    """In front of a shell, behind it (`vsf ui &` without job control), and with SIGINT ignored by whoever started it."""
    how = {
        "in front": {},
        "behind": {"suffix": "& echo $! >pid; wait"},
        "ignored": {"prefix": "trap '' INT;"},
    }[start]
    running = Running(tmp_path, **how)
    assert running.left()
    if start != "in front":
        working(running)
    took = running.end(number)
    assert took < 10 and not running.left(), (took, running.said)
    assert "Traceback" not in running.said and running.said.rstrip().endswith("stopped")


def test_nohup_keeps_it_going(tmp_path: Path) -> None:
    running = Running(tmp_path, prefix="trap '' HUP;")
    os.kill(running.pid, signal.SIGHUP)
    time.sleep(1)
    assert running.alive()
    assert running.end() < 10 and not running.left()


def test_a_killed_server_is_swept_by_the_next(tmp_path: Path) -> None:
    running = Running(tmp_path)
    assert running.left()
    running.end(signal.SIGKILL)
    (dead,) = running.left()
    again = Running(tmp_path)
    assert dead not in again.left() and len(again.left()) == 1
    again.end()
    assert not again.left()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--host 999.1.1.1", "the host is '999.1.1.1', which is no address of this machine"),
        ("--host 203.0.113.9", "the host is '203.0.113.9', which is no address of this machine"),
        ("--port {taken}", "cannot listen at 127.0.0.1, port {taken}: something else listens there already"),
        ("--allow-host http://x", "'http://x' is no host name; give one such as draw.example.org"),
    ],
)
def test_an_address_that_cannot_be_listened_at_is_one_sentence(options: str, words: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "vsf", "ui", *options.replace("{taken}", port).split()]
        environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: everyone")]
    assert done.returncode == 2 and len(errors) == 1
    assert errors[0].startswith("error: " + words.replace("{taken}", port))
    assert not list(tmp_path.glob("vsf-ui-*"))
