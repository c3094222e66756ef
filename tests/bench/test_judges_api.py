"""The judge behind an endpoint, against a server on this machine that speaks HTTP and misbehaves on purpose."""

from __future__ import annotations

import base64
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from patience import PATIENCE

pytest.importorskip("openai", reason="needs the extra bench")

from judging import drawn, files_with, make_run
from vsf.bench.judges import ApiJudge, JudgeError, exhibits, judge_run, tally
from vsf.bench.report import _judges
from vsf.bench.run import Run, RunError
from vsf.bench.tables import Results
from vsf.cli import main

KEY = "sk-a-key-that-must-not-be-found"


def verdict(kept=(), **changed) -> dict:
    answer = {"reasoning": "I see it.", "answer_1": True, "answer_2": False, "quality": 0.75}
    if kept:
        answer["answer_3"] = list(kept[:1])
    return {**answer, **changed}


def reply(content, **choice) -> dict:
    text = content if isinstance(content, str) or content is None else json.dumps(content)
    message = {"role": "assistant", "content": text, "refusal": choice.pop("refusal", None)}
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }  # fmt: skip


def kept_of(body: dict) -> list[str]:
    properties = body["response_format"]["json_schema"]["schema"]["properties"]
    return properties["answer_3"]["items"]["enum"] if "answer_3" in properties else []


def picture_of(body: dict) -> bytes:
    return base64.b64decode(body["messages"][1]["content"][1]["image_url"]["url"].partition(",")[2])


class Server:
    """Answers as `behave(body, number of this picture's requests before)` says: a status with a body and headers, or
    the name of something worse."""

    url: str

    def __init__(self, behave) -> None:
        self.behave, self.bodies, self.headers = behave, [], []
        self.per_picture: Counter[bytes] = Counter()
        self.now = self.most = 0
        self.lock = threading.Lock()

    @property
    def count(self) -> int:
        return len(self.bodies)


@contextmanager
def serving(behave):
    state = Server(behave)
    gone = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        timeout = PATIENCE

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                before = state.per_picture[picture_of(body)]
                state.per_picture[picture_of(body)] += 1
                state.bodies.append(body)
                state.headers.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                state.now += 1
                state.most = max(state.most, state.now)
            try:
                self.act(state.behave(body, before), body)
            except OSError:
                self.close_connection = True
            finally:
                with state.lock:
                    state.now -= 1

        def act(self, what, body) -> None:
            good = json.dumps(reply(verdict(kept_of(body)))).encode()
            if what == "silence":
                gone.wait()
            elif what == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            elif what == "half":  # less than was announced
                self.head(200, len(good))
                self.wfile.write(good[: len(good) // 2])
                self.close_connection = True
            elif what == "drip":  # never silent for long, never done
                self.head(200, 10**6)
                while not gone.wait(0.02):
                    self.wfile.write(b" ")
            elif what == "flood":
                self.head(200, 10**9)
                while not gone.is_set():
                    self.wfile.write(b" " * 65536)
            else:
                status, content, *headers = what if isinstance(what, tuple) else (200, what)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.head(status, len(data), *headers)
                self.wfile.write(data)

        def head(self, status, length, headers=()) -> None:
            self.send_response(status)
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(length))
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Connections that the client gave up."""

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield state
    finally:
        gone.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run", cases=2, seeds=(0,))


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The key is set, proxies are not, and waits are noted instead of sat out."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    noted: list[float] = []
    monkeypatch.setattr("openai._base_client.time", SimpleNamespace(sleep=noted.append, time=time.time))
    return noted


def good(body, before):
    return reply(verdict(kept_of(body)))


def judge(server: Server, **given) -> ApiJudge:
    return ApiJudge("a-model", base_url=server.url, **{"timeout": PATIENCE, **given})


# -- what is asked ----------------------------------------------------------------------------------------------------


def test_every_picture_is_asked_about_once_and_nothing_tells_the_method(run, tmp_path):
    with serving(good) as server:
        done = judge_run(run, judge(server), "api")
    units = drawn(run)
    assert done.judged == server.count == len(units) and not done.not_judged
    assert done.spent == {"requests": len(units), "tokens_in": 100 * len(units), "tokens_out": 10 * len(units)}
    for answer in run.judged("api"):
        assert (answer.answer_1, answer.answer_2, answer.quality, answer.kept) == (True, False, 0.75, 1.0)
        assert answer.details["reasoning"] == "I see it." and answer.identity is None
    questions = {(case.question_1, case.question_2) for case in run.cases}
    for (path, headers), body in zip(server.headers, server.bodies, strict=True):
        assert path == "/v1/chat/completions" and headers["authorization"] == f"Bearer {KEY}"
        assert body["model"] == "a-model" and body["response_format"]["json_schema"]["strict"] is True
        text = body["messages"][1]["content"][0]["text"]
        assert any(one in text and two in text for one, two in questions)
        with Image.open(BytesIO(picture_of(body))) as image:
            assert image.size == (64, 64) and image.info == {}
        said = json.dumps(body) + json.dumps(headers)
        assert not any(word in said for word in ("vsf", "nag", "none", "unrelated", str(run.folder), units[0].case))


def test_a_case_without_kept_parts_is_not_asked_about_any(tmp_path):
    run = make_run(tmp_path / "run", cases=1, seeds=(0,), methods=("none",))
    item = exhibits(run, run.plan.units)[0]
    from dataclasses import replace

    with serving(good) as server:
        answer = next(iter(judge(server).read([replace(item, kept=())])))
    assert answer.kept is None and "answer_3" not in json.dumps(server.bodies)


def test_the_key_is_in_no_file_and_no_output(run, tmp_path, capsys):
    """Not even if the server sends it back in errors. What was paid for is kept as it came."""

    def tell(body, before):
        if before == 0:
            return 500, {"error": {"message": f"cannot use {KEY}"}}
        return reply(verdict(kept_of(body), reasoning="no key here"))

    arguments = ["bench", "judge", str(run.folder), "--judge", "api", "--model", "m", "--cache", str(tmp_path / "c")]
    with serving(tell) as server:
        assert main([*arguments, "--base-url", server.url, "--yes"]) == 0
    with serving(lambda body, before: (500, {"error": {"message": f"cannot use {KEY}"}})) as server:
        assert main([*arguments[:-1], str(tmp_path / "d"), "--base-url", server.url, "--yes", "--name", "b"]) == 0
    with serving(lambda body, before: (401, {"error": {"message": f"Incorrect key {KEY}"}})) as server:
        assert main([*arguments[:-1], str(tmp_path / "e"), "--base-url", server.url, "--yes", "--name", "c"]) == 2
    out, err = capsys.readouterr()
    assert KEY not in out + err and "[key]" in err and files_with(tmp_path, "no key here")
    assert files_with(tmp_path, "cannot use [key]") and not files_with(tmp_path, KEY)
    assert KEY not in json.dumps(judge(server).about()) and KEY not in repr(judge(server))


def test_a_key_is_needed_only_where_it_is(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(JudgeError, match="OPENAI_API_KEY"):
        ApiJudge("m")
    ApiJudge("m", base_url="http://127.0.0.1:1/v1")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:2/v1/")
    assert ApiJudge("m").about()["base_url"] == "http://127.0.0.1:2/v1"


@pytest.mark.parametrize(
    ("given", "say"),
    [
        ({"base_url": "ftp://x"}, "endpoint"),
        ({"base_url": "https://me:word@host/v1"}, "without a name"),
        ({"attempts": 0}, "attempts"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": float("nan")}, "timeout"),
    ],
)
def test_bad_settings_are_refused(given, say):
    with pytest.raises(ValueError, match=say):
        ApiJudge("m", **{"base_url": "http://127.0.0.1:1/v1", **given})


# -- servers that misbehave ---------------------------------------------------------------------------------------------

FAULTS = {
    "too many": ((429, {"error": {"message": "slow down"}}, {"Retry-After": "1"}), "status 429: slow down", 4),
    "error": ((500, b"<html>oops"), "status 500", 4),
    "long error": ((503, b"x" * 3_000_000), "status 503", 4),
    "silence": ("silence", "timeout", 4),
    "drip": ("drip", "timeout", 4),
    "early": ((425, b""), "status 425", 4),
    "reset": ("reset", "connection failed", 4),
    "half": ("half", "connection failed", 4),
    "flood": ("flood", "no answer: the reply is too long", 3),
    "empty": (b"", "no answer: the reply is not JSON", 3),
    "page": (b"<html>hello</html>", "no answer: the reply is not JSON", 3),
    "list": ([1, 2], "no answer: the reply has no message", 3),
    "no choice": ({"choices": []}, "no answer: the reply has no message", 3),
    "no content": (reply(None), "no answer: the message is empty", 3),
    "cut": (reply('{"reasoning": "it is', finish_reason="length"), "cut off", 3),
    "cut silently": (reply('{"reasoning": "it is'), "no answer: the message is not JSON", 3),
    "prose": (reply("Yes, I see a bike."), "no answer: the message is not JSON", 3),
    "words": (reply(verdict(answer_1="yes")), "wrong answer: answer_1", 3),
    "numbers": (reply(verdict(answer_2=1)), "wrong answer: answer_2", 3),
    "null": (reply(verdict(answer_1=None)), "wrong answer: answer_1", 3),
    "quality in words": (reply(verdict(quality="good")), "wrong answer: quality", 3),
    "quality in percent": (reply(verdict(quality=75)), "wrong answer: quality", 3),
    "nan": (reply(json.dumps(verdict()).replace("0.75", "NaN")), "wrong answer: quality", 3),
    "missing": (reply({"answer_1": True}), "wrong answer", 3),
    "no kept parts": (reply(verdict()), "wrong answer: answer_3", 3),
    "other parts": (reply(verdict(answer_3=["elephant"])), "wrong answer: answer_3", 3),
    "refusal": (reply(None, refusal="I cannot help with that."), "refused: I cannot help", 3),
    "filter": (reply("", finish_reason="content_filter"), "refused: content filter", 3),
    "bad request": ((400, {"error": {"message": "no images"}}), "status 400: no images", 1),
    "elsewhere": ((307, b"", {"Location": "http://127.0.0.1:9/"}), "status 307", 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_picture_that_is_never_answered_is_not_judged_after_a_bounded_number_of_requests(run, fault):
    what, reason, most = FAULTS[fault]
    slow = fault in ("silence", "drip")
    with serving(lambda body, before: what) as server:
        done = judge_run(run, judge(server, attempts=4, timeout=0.1 if slow else PATIENCE), "api")
    units = drawn(run)
    assert done.judged == 0 and done.waiting == 0 and sum(done.not_judged.values()) == len(units)
    for answer in run.judged("api"):
        assert answer.status == "not judged" and answer.reason and answer.reason.startswith(reason), answer
        assert answer.answer_1 is answer.answer_2 is answer.quality is answer.kept is None
        assert answer.details["usage"]["requests"] == most and len(answer.reason) <= 300
    # A request that is given up may never have reached the server.
    assert server.count <= most * len(units) and (slow or server.count == most * len(units))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_costs_nothing_but_requests(run, fault):
    what, _, most = FAULTS[fault]
    slow = fault in ("silence", "drip")
    with serving(lambda body, before: what if server.count == 1 and most > 1 else good(body, before)) as server:
        done = judge_run(run, judge(server, concurrency=1, timeout=2.0 if slow else PATIENCE), "api")
    assert done.judged == len(drawn(run)) and not done.not_judged
    assert slow or done.spent["requests"] == done.judged + (most > 1)


def test_whatever_a_server_does_every_picture_ends_judged_or_not_within_the_bound(tmp_path):
    run = make_run(tmp_path / "run", cases=6, seeds=(0, 1))
    quick = [what for name, (what, _, most) in FAULTS.items() if name not in ("flood", "long error") and most > 1]

    def chaos(body, before):
        return rng.choice(quick) if rng.random() < 0.6 else good(body, before)

    rng = random.Random(3)
    with serving(chaos) as server:
        done = judge_run(run, judge(server, attempts=3, timeout=0.3, concurrency=8, give_up=None), "api")
    units = drawn(run)
    assert done.judged + sum(done.not_judged.values()) == len(units) and done.waiting == done.undrawn == 0
    assert done.judged and done.not_judged
    assert all(1 <= a.details["usage"]["requests"] <= 3 for a in run.judged("api"))
    assert server.count <= done.spent["requests"] <= 3 * len(units)


def test_waits_grow_with_jitter_and_are_as_long_as_the_server_says(run, pauses):
    with serving(lambda body, before: (500, b"")) as server:
        list(judge(server, concurrency=1).read(exhibits(run, drawn(run))[:1]))
    assert len(pauses) == 4 and all(0.25 * 2**i <= wait <= 0.5 * 2**i for i, wait in enumerate(pauses))
    pauses.clear()
    when = formatdate(time.time() + 30, usegmt=True)
    with serving(lambda body, before: (429, b"", {"Retry-After": ["7", when, "soon"][before]})) as server:
        list(judge(server, attempts=3).read(exhibits(run, drawn(run))[:1]))
    assert pauses[0] == 7 and 25 < pauses[1] <= 30 and len(pauses) == 2
    pauses.clear()
    with serving(lambda body, before: (429, b"", {"Retry-After": "86400"})) as server:
        answer = next(iter(judge(server).read(exhibits(run, drawn(run))[:1])))
    assert "asks to wait 86400 s" in (answer.reason or "") and server.count == 1 and not pauses


# -- when to stop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "say"),
    [
        (401, {"message": "Incorrect API key provided"}, "refuses the key"),
        (403, {"message": "not for you"}, "refuses access"),
        (404, {"message": "The model does not exist"}, "knows no such model"),
        (402, {"message": "pay"}, "asks for payment"),
        (429, {"message": "You exceeded your quota", "code": "insufficient_quota"}, "quota is used up"),
    ],
)
def test_what_every_picture_would_meet_stops_the_judge_at_once(tmp_path, status, error, say):
    run = make_run(tmp_path / "run", cases=6, seeds=(0, 1))
    with serving(lambda body, before: (status, {"error": error})) as server, pytest.raises(JudgeError, match=say):
        judge_run(run, judge(server, concurrency=2), "api")
    assert server.count <= 2
    assert tally(run, "api").waiting == len(drawn(run))  # a later try with a right key goes on
    with serving(good) as server:
        assert ApiJudge("a-model", base_url=server.url).about()["model"] == "a-model"


def test_what_was_answered_before_a_stop_is_kept(run):
    with serving(lambda body, before: good(body, before) if server.count < 4 else (401, b"")) as server:
        with pytest.raises(JudgeError):
            judge_run(run, judge(server, concurrency=1), "api")
        assert tally(run, "api").judged == 3


def test_an_endpoint_that_fails_for_all_is_given_up(tmp_path, run):
    run = make_run(tmp_path / "many", cases=6, seeds=(0, 1))
    with serving(lambda body, before: (500, b"")) as server:
        with pytest.raises(JudgeError, match="5 pictures in a row .*status 500"):
            judge_run(run, judge(server, attempts=2, concurrency=1, give_up=5), "api")
        assert server.count == 10 and sum(tally(run, "api").not_judged.values()) == 5
    with serving(good) as server:
        free = server.url
    with pytest.raises(JudgeError, match="connection failed: Connect"):
        judge_run(run, ApiJudge("m", base_url=free, attempts=1, give_up=3), "nobody")


def test_no_more_requests_at_a_time_than_allowed(tmp_path):
    run = make_run(tmp_path / "run", cases=4, seeds=(0, 1))

    full = threading.Event()

    def slowly(body, before):
        if server.most == 3:
            full.set()
        full.wait(PATIENCE)
        time.sleep(0.02)  # for one too many, if there were one
        return good(body, before)

    with serving(slowly) as server:
        judge_run(run, judge(server, concurrency=3), "api")
    assert server.most == 3


def test_asking_again_adds_up_what_was_spent(run):
    n = len(drawn(run))
    well = threading.Event()
    with serving(lambda body, before: good(body, before) if well.is_set() else reply("no")) as server:
        assert judge_run(run, judge(server), "api").spent["requests"] == 3 * n
        well.set()
        done = judge_run(run, judge(server), "api", retry=True)
    assert done.judged == n and done.spent["requests"] == 4 * n and done.spent["tokens_in"] == 400 * n


# -- cost and cache -----------------------------------------------------------------------------------------------------


def test_an_answer_is_paid_for_once(run, tmp_path):
    cache = tmp_path / "cache"
    with serving(good) as server:
        judge_run(run, judge(server, cache=cache, concurrency=1), "first")
        different = len({(item.png(), item.case.id) for item in exhibits(run, drawn(run))})
        assert server.count == different < len(drawn(run))  # equal pixels are one picture
        done = judge_run(run, judge(server, cache=cache), "second")
        assert server.count == different and done.judged == len(drawn(run)) and not done.spent
        fields = ("answer_1", "answer_2", "quality", "kept")
        for a, b in zip(run.judged("first"), run.judged("second"), strict=True):
            assert all(getattr(a, f) == getattr(b, f) for f in fields)
            assert a.details["reasoning"] == b.details["reasoning"]
        judge_run(run, ApiJudge("another", base_url=server.url, cache=cache), "third")
        assert server.count > different
        before = server.count
        for path in cache.rglob("*.json"):
            path.write_text("{")
        judge_run(run, judge(server, cache=cache), "fourth")
        assert server.count > before  # a damaged entry is asked for again


def test_what_is_no_answer_is_not_cached(run, tmp_path):
    with serving(lambda body, before: reply("no")) as server:
        judge_run(run, judge(server, cache=tmp_path / "cache"), "first")
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_the_estimate_counts_what_would_be_asked(run, tmp_path):
    todo = exhibits(run, drawn(run))
    with serving(good) as server:
        asked = judge(server, price_in=2, price_out=10, image_tokens=1000, cache=tmp_path / "c")
        estimate = asked.estimate(todo)
        assert server.count == 0
        assert estimate.requests == len(todo) and estimate.cached == 0
        assert 1000 < estimate.tokens_in / len(todo) < 1800 and estimate.tokens_out == 120 * len(todo)
        assert estimate.cost == pytest.approx((estimate.tokens_in * 2 + estimate.tokens_out * 10) / 1e6)
        list(asked.read(todo))
        after = asked.estimate(todo)
    assert (after.requests, after.cached, after.tokens_in, after.cost) == (0, len(todo), 0, 0)
    assert judge(server).estimate(todo).cost is None


def test_the_command_asks_before_it_spends_and_says_what_it_spent(run, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    arguments = ["bench", "judge", str(run.folder), "--judge", "api", "--model", "org/some model"]
    with serving(good) as server:
        arguments += ["--base-url", server.url]
        assert main([*arguments, "--price-in", "1"]) == 2
        assert "together" in capsys.readouterr().err
        assert main(arguments) == 2  # nobody there to ask
        out, err = capsys.readouterr()
        assert "--yes" in err and f"{len(drawn(run))} requests to {server.url}" in out and "no price" in out
        assert server.count == 0 and run.judges() == []
        assert main([*arguments, "--price-in", "1000", "--price-out", "10000", "--yes"]) == 0
        out, _ = capsys.readouterr()
        n = server.count
        assert (
            f"api-some-model: {len(drawn(run))} judged, 0 not judged; spent {n} requests, {100 * n} tokens in" in out
        )
        assert out.rstrip().endswith(f"{n * 0.2:.4f}") and "about" in out
        spent = {"requests": n, "tokens_in": 100 * n, "tokens_out": 10 * n}
        assert run.judge("api-some-model")["spent"] == {**spent, "cost": pytest.approx(n * 0.2)}
        assert list((tmp_path / "home/vsf/judge").rglob("*.json"))
        assert main([*arguments, "--name", "again"]) == 0 and server.count == n  # all cached: nothing to ask
        assert main([*arguments, "--name", "third", "--no-cache", "--yes"]) == 0 and server.count > n


def test_a_refused_key_is_one_sentence(run, capsys, tmp_path):
    with serving(lambda body, before: (401, {"error": {"message": "bad\nkey"}})) as server:
        arguments = ["--judge", "api", "--model", "m", "--base-url", server.url, "--yes", "--no-cache"]
        assert main(["bench", "judge", str(run.folder), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "refuses the key (status 401: bad key)" in err


# -- keys, and judges that never answered ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["k", "true", "bike", "visible part"])
def test_a_key_that_is_a_word_changes_no_answer(run, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    reasoning = "A bike; its visible part is true to k: I like it."
    with serving(lambda body, before: reply(verdict(kept_of(body), reasoning=reasoning))) as server:
        done = judge_run(run, judge(server), "api")
    assert done.judged == len(drawn(run))
    assert {a.details["reasoning"] for a in run.judged("api")} == {reasoning}
    assert run.judge("api")["base_url"] == server.url


def test_errors_lose_the_whole_key_and_nothing_else(run):
    text = f"cannot use {KEY}; cannot use {KEY}s; sk-a-key is short"
    with serving(lambda body, before: (400, {"error": {"message": text}})) as server:
        judge_run(run, judge(server), "api")
    reasons = {a.reason for a in run.judged("api")}
    assert reasons == {f"status 400: cannot use [key]; cannot use {KEY}s; sk-a-key is short"}


def test_a_judge_that_never_answered_is_none(run, tmp_path):
    with serving(lambda body, before: (401, b"")) as server, pytest.raises(JudgeError):
        judge_run(run, judge(server), "refused")
    assert run.judges() == [] and not (run.folder / "judges").exists()
    speaks = threading.Event()
    with serving(lambda body, before: good(body, before) if speaks.is_set() else reply("no")) as server:
        judge_run(run, judge(server), "mute")
        # It is on record with its reasons, and does not stand in the way of those who answered.
        assert run.judges() == ["mute"] and Results.load([run]).judge == "mute"
        speaks.set()
        judge_run(run, judge(server), "api")
        assert run.judges() == ["api", "mute"] and Results.load([run]).judge == "api"
        assert Results.load([run], "mute").judge == "mute" and [n for n, _ in _judges([run], "api")] == ["api"]
        judge_run(run, judge(server), "mute", retry=True)
    with pytest.raises(RunError, match="several judges"):
        Results.load([run])
