"""Cases written by a model behind a server that really speaks HTTP and misbehaves on purpose."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("openai", reason="needs value-sign-flip[bench]")
pytest.importorskip("rapidfuzz", reason="needs value-sign-flip[bench]")

from vsf.bench.cases import Case, load_cases
from vsf.bench.endpoint import EndpointError
from vsf.bench.rules import check_rules
from vsf.bench.write import WriteError, Written, replies_path, write_cases
from vsf.cli import main

KEY = "sk-very-secret-7f3a"
GOOD = load_cases("neggen").cases

Reply = tuple[int, dict[str, str], bytes]
Step = Callable[[dict[str, Any]], Reply | None]
"""What a request is answered with: status, headers, body; None hangs up."""


def draft(case: Case, **changes: object) -> dict[str, object]:
    fields = ("prompt", "object", "negative", "question_1", "question_2", "category")
    kept = [part.strip() for part in (case.kept or "").split(",")]
    return {name: getattr(case, name) for name in fields} | {"kept": kept} | changes


def message(content: str | None, **more: object) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}} | more
    return json.dumps({"id": "x", "choices": [choice], "usage": {"total_tokens": 100}}).encode()


def says(*drafts: object) -> Step:
    return lambda body: (200, {}, message(json.dumps({"cases": list(drafts)})))


def raw(data: bytes, status: int = 200, **headers: str) -> Step:
    return lambda body: (status, {k.replace("_", "-"): v for k, v in headers.items()}, data)


def fails(status: int, text: str = "no", **headers: str) -> Step:
    return raw(json.dumps({"error": {"message": text}}).encode(), status, **headers)


class Server:
    """Answers one step after the other, the last one for ever."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.keys.add(self.headers["Authorization"])
                if self.path.endswith("/embeddings"):
                    reply = outer.embed(body)
                else:
                    outer.bodies.append(body)
                    step = outer.steps[min(len(outer.bodies), len(outer.steps)) - 1]
                    reply = step(body)
                if reply is None:
                    return  # hangs up
                status, headers, data = reply
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.embedded: list[list[str]] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def embed(self, body: dict[str, Any]) -> Reply:
        """Texts that begin with the same letter mean the same."""
        self.embedded.append(body["input"])
        rows = [
            {"index": i, "embedding": [float(t.lower().startswith(c)) for c in "abcdefghijklmnopqrstuvwxyz"]}
            for i, t in enumerate(body["input"])
        ]
        return 200, {}, json.dumps({"data": rows[::-1], "usage": {"total_tokens": 5}}).encode()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits between requests are noted instead of sat out."""
    noted: list[float] = []
    monkeypatch.setattr("openai._base_client.time", SimpleNamespace(sleep=noted.append, time=time.time))
    return noted


def write(server: Server, out: Path, n: int = 4, **more: Any) -> Written:
    return write_cases("things", n, out, model="writer-1", base_url=server.url, **more)


def test_everything_that_can_go_wrong_goes_wrong_and_the_set_is_written(
    server: Server, tmp_path: Path, waits: list[float]
) -> None:
    out, told = tmp_path / "mine.jsonl", []
    hint = draft(GOOD[5], prompt="A striped hot-air balloon without any load under it")
    names = draft(GOOD[1], prompt="A yellow city bus with windows, seen from the side")
    double = draft(GOOD[1], object="bus", kept=["wheels", "Windows"])
    server.steps = [
        fails(429, f"slow down, {KEY}", Retry_After="7"),
        fails(500),
        lambda body: None,
        says(draft(GOOD[0]), hint),
        raw(message(json.dumps({"cases": [draft(GOOD[2])]}))[:-40]),
        raw(message('{"cases": [{"prompt": "A lamp')),
        says(draft(GOOD[2]), draft(GOOD[0]), draft(GOOD[0], object="Bicycles")),
        raw(message(None, message={"role": "assistant", "content": None, "refusal": "I will not, " + KEY})),
        says(
            draft(GOOD[3], prompt=7), {"prompt": "x"}, "text", draft(GOOD[3], kept="wheels"), draft(GOOD[3], extra=1)
        ),
        raw(message(json.dumps({"cases": [draft(GOOD[4])]}), finish_reason="length")),
        raw(message(json.dumps([1, 2]))),
        says(names, double, draft(GOOD[6]), draft(GOOD[7])),
    ]
    done = write(server, out, say=told.append, requests=30)
    assert done.complete and done.requests == len(server.bodies) == 12
    assert len(waits) == 3 and waits[0] == 7.0 and 0.5 <= waits[1] <= 1 <= waits[2] <= 2
    cases = load_cases(out)
    assert cases == done.cases and check_rules(cases) == []
    assert [c.object for c in cases] == sorted(str(GOOD[i].object) for i in (0, 2, 3, 6))
    assert [c.id for c in cases] == sorted(c.id for c in cases)
    assert {c.source for c in cases} == {"written by writer-1"} and cases.name == "mine"
    assert next(c for c in cases if c.object == "bicycle").kept == "wheels, frame"
    for part in (
        "hints at an absence: 'without'", "a reply: no answer: the reply is not JSON",
        "its message is no JSON", "nearly the same as",
        "a reply: refused: I will not", "prompt: Input should be a valid string", "Field required", "cut off",
        "names the negative's", "kept names the negative",
    ):  # fmt: skip
        assert any(part in line for line in done.dropped), (part, done.dropped)
    assert told == [f"dropped {line}" for line in done.dropped]
    assert server.keys == {f"Bearer {KEY}"}
    assert KEY not in out.read_text() and KEY not in " ".join(told)
    # A paid reply is kept as it came, be it that the server itself put the key in it.
    assert replies_path(out).read_text().count(KEY) == 1
    assert "[key]" in " ".join(told) and done.tokens == 800  # one reply of nine does not say
    assert {p.name for p in tmp_path.iterdir()} == {"mine.jsonl", "mine.replies.jsonl"}


def test_the_model_is_told_what_is_taken_and_asked_for_a_schema(server: Server, tmp_path: Path) -> None:
    server.steps = [says(draft(GOOD[0]), draft(GOOD[1])), says(draft(GOOD[2]))]
    write(server, tmp_path / "a.jsonl", 3, per_request=2, avoid=GOOD[100:102])
    first, second = (body["messages"][1]["content"] for body in server.bodies)
    assert "Write 2 new cases" in first and "Write 1 new cases" in second
    for case in GOOD[100:102]:
        assert str(case.object) in first
    assert "bicycle" in second and "bicycle" not in first
    schema = server.bodies[0]["response_format"]["json_schema"]
    assert schema["strict"] is True and schema["schema"]["additionalProperties"] is False
    assert server.bodies[0]["model"] == "writer-1"


def test_what_was_paid_for_is_not_paid_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = [says(*(draft(c) for c in GOOD[i : i + 3])) for i in range(0, 30, 3)]
    server.steps = list(good)
    whole = write(server, tmp_path / "whole.jsonl", 12, per_request=3)
    assert whole.requests == 4
    server.bodies.clear()
    out = tmp_path / "parts.jsonl"
    server.steps = [*good[:2], fails(503)]
    with pytest.raises(EndpointError, match="5 requests in a row failed .last: status 503: no."):
        write(server, out, 12, per_request=3)
    assert len(server.bodies) == 7 and len(load_cases(out)) == 6
    server.bodies.clear()
    server.steps = [good[2], lambda body: None]

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("openai._base_client.time", SimpleNamespace(sleep=interrupt, time=time.time))
        write(server, out, 12, per_request=3, name="whole")
    assert len(server.bodies) == 2 and len(load_cases(out)) == 9
    server.bodies.clear()
    server.steps = good[3:]
    told: list[str] = []
    done = write(server, out, 12, per_request=3, name="whole", say=told.append)
    assert done.requests == len(server.bodies) == 1 and done.tokens == 400
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert told[0] == f"9 cases from 3 earlier replies in {replies_path(out)}"
    again = write(server, out, 12, per_request=3, name="whole")
    assert again.requests == 0 and again.cases == done.cases
    # Asking for more keeps every case where it is, its split included.
    more = write(server, out, 14, per_request=3, name="whole")
    assert more.cases is not None and done.cases is not None and len(more.cases) == 14
    assert set(done.cases) < set(more.cases) and len(more.cases.split("dev")) == 3


def test_dev_has_its_share(server: Server, tmp_path: Path) -> None:
    server.steps = [says(*(draft(c) for c in GOOD[:20]))]
    for dev, count in ((0.25, 5), (0.0, 0), (1.0, 20), (0.1, 2)):
        done = write(server, tmp_path / f"d{count}.jsonl", 20, dev=dev)
        assert done.cases is not None and len(done.cases.split("dev")) == count


def test_requests_are_bounded(server: Server, tmp_path: Path) -> None:
    server.steps = [fails(429)]
    with pytest.raises(EndpointError, match="all 3 requests are used .last: status 429"):
        write(server, tmp_path / "a.jsonl", requests=3)
    assert len(server.bodies) == 3 and not any(tmp_path.iterdir())
    server.bodies.clear()
    server.steps = [says(draft(GOOD[0]))]  # the same for ever
    told: list[str] = []
    done = write(server, tmp_path / "b.jsonl", requests=50, say=told.append)
    assert (len(server.bodies), done.complete) == (4, False) and done.cases is not None and len(done.cases) == 1
    assert told[-1] == "3 replies in a row brought no new case; stopped"
    server.bodies.clear()
    server.steps = [says(draft(c)) for c in GOOD[:50]]
    done = write(server, tmp_path / "c.jsonl", 40, per_request=10)  # a lazy model
    assert (done.requests, len(done.cases or ()), done.complete) == (12, 12, False)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (fails(401, f"wrong key {KEY}"), "refuses the key .status 401: wrong key .key.."),
        (fails(404), "knows no such model"),
        (fails(400, "response_format is not known"), "turned the request down .status 400: response_format"),
        (raw(b'{"error": {"message": "x", "code": "insufficient_quota"}}', 429), "quota is used up"),
        (fails(429, Retry_After="86400"), "asks to wait 86400 s"),
    ],
)
def test_a_final_no_is_taken_at_once(server: Server, tmp_path: Path, step: Step, message: str) -> None:
    server.steps = [step]
    with pytest.raises(EndpointError, match=message) as caught:
        write(server, tmp_path / "a.jsonl")
    assert len(server.bodies) == 1 and KEY not in str(caught.value) and not any(tmp_path.iterdir())


def test_embeddings_find_what_spelling_does_not(server: Server, tmp_path: Path) -> None:
    three = [c for c in GOOD if str(c.object)[0] in "bt"][:3]
    assert [str(c.object)[0] for c in three] == ["b", "b", "t"]
    server.steps = [says(*map(draft, three))]
    out = tmp_path / "a.jsonl"
    done = write(server, out, 2, embedding_model="e-1")
    assert done.cases is not None and {c.object for c in done.cases} == {three[0].object, three[2].object}
    assert any("'bus' is nearly the same as 'bicycle' (1.00)" in line for line in done.dropped)
    assert len(server.embedded) == 1 and done.requests == 2 and done.tokens == 105
    assert write(server, out, 2, embedding_model="e-1").requests == 0
    server.embed = lambda body: (200, {}, b'{"data": [{"index": 0, "embedding": ["x"]}]}')  # type: ignore[method-assign]
    with pytest.raises(EndpointError, match="replies of 'e-2' are no embeddings"):
        write(server, tmp_path / "b.jsonl", 2, embedding_model="e-2")


def test_files_in_the_way_are_left_alone(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    out.write_text("mine")
    with pytest.raises(WriteError, match="was not written by this command"):
        write(server, out)
    assert out.read_text() == "mine" and not server.bodies
    out.unlink()
    server.steps = [says(*(draft(c) for c in GOOD[:4]))]
    write(server, out)
    before = replies_path(out).read_bytes()
    with pytest.raises(WriteError, match="holds replies about 'things', not about 'toys'"):
        write_cases("toys", 4, out, model="m", base_url=server.url)
    assert replies_path(out).read_bytes() == before
    replies_path(out).write_bytes(b'{"format": "other"}\n')
    with pytest.raises(WriteError, match="holds no replies of an earlier run"):
        write(server, out)


def test_no_key_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(EndpointError, match="needs a key in the environment variable OPENAI_API_KEY"):
        write_cases("things", 3, tmp_path / "a.jsonl", model="m")
    with pytest.raises(ValueError, match="without a name or password"):
        write_cases("things", 3, tmp_path / "a.jsonl", model="m", base_url="http://me:pw@127.0.0.1/v1")
    for bad in ({"n": 0}, {"dev": 2.0}, {"similar": 0.0}, {"requests": -1}):
        with pytest.raises(ValueError):
            write_cases("things", **({"n": 3} | bad), out=tmp_path / "a.jsonl", model="m")  # type: ignore[arg-type]


def test_a_missing_package_is_named_before_anything_is_paid(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsf.bench.write.find_spec", lambda name: None if name == "rapidfuzz" else name)
    with pytest.raises(WriteError, match=r'needs rapidfuzz: pip install "value-sign-flip\[bench\]"'):
        write(server, tmp_path / "a.jsonl")
    assert not server.bodies


@pytest.mark.parametrize("key", ["k", "e", "wheels", "prompt"])
def test_a_key_that_is_a_word_changes_no_paid_reply(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    server.steps = [says(*(draft(c) for c in GOOD[:4]))]
    done = write(server, tmp_path / "a.jsonl")
    assert done.complete and not done.dropped and done.cases is not None
    assert {c.prompt for c in done.cases} == {c.prompt for c in GOOD[:4]}


# --- The commands


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_command_writes_and_says_what_is_missing(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.jsonl"
    server.steps = [says(draft(GOOD[0]), draft(GOOD[1])), says(draft(GOOD[0]))]
    given = ("bench", "write-cases", "--topic", "things", "--model", "m", "--base-url", server.url, "--out", out)
    code, said, err = run(capsys, *given, "--n", 3, "--license", "CC0-1.0")
    assert code == 1 and "2 of 3 cases; the same command asks for more" in err
    assert "nearly the same as 'bicycle'" in said and load_cases(out).hash in said
    server.bodies.clear()
    server.steps = [says(draft(GOOD[2]))]
    code, said, err = run(capsys, *given, "--n", 3, "--license", "CC0-1.0")
    assert code == 0 and "1 requests now" in said and len(load_cases(out)) == 3 and err == ""
    server.steps = [fails(403)]
    code, said, err = run(capsys, *given, "--n", 5)
    assert code == 2 and "refuses access" in err and f"what came is in {replies_path(out)}" in err
    assert KEY not in said + err
    assert run(capsys, *given[:-1], tmp_path / "mine.txt")[0] == 2


def test_command_counts_lists_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "bench", "cases", "--check")
    assert code == 0 and out.count("rules: all kept") == 3 and load_cases("neggen").hash in out
    assert "vehicles" in out and "bike/wheels" in out
    code, out, _ = run(capsys, "bench", "cases", "neggen", "--list")
    assert "bicycle-handlebars [test]" in out and "negative: handlebars; unrelated: tines; kept: wheels, frame" in out
    public = tmp_path / "public.json"
    entry = {"prompt": "A red lamp", "missing_element": "lamp", "question_1": "Is it?", "question_2": "Is it not?"}
    public.write_text(json.dumps([entry, {**entry, "missing_element": "shade"}]))
    target = tmp_path / "cases.jsonl"
    code, out, err = run(capsys, "bench", "import", public, "--out", target, "--license", "MIT", "--dev", 0.5)
    assert code == 0 and "1 dev, 1 test" in out and "break our rules" in err
    assert load_cases(target).license == "MIT"
    code, out, _ = run(capsys, "bench", "cases", target, "--check")
    assert code == 1 and "names the negative's 'lamp'" in out and "rules:" in out


def test_commands_show_every_bad_line_on_a_line_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.jsonl"
    header = {"format": "vsf-cases", "version": 1, "name": "x", "license": "y"}
    row = GOOD[0].to_dict()
    bad.write_bytes(b"\n".join([json.dumps(header).encode(), json.dumps(row).encode()] * 1 + [
        json.dumps(row).encode(), b"{", b"\xff", json.dumps({**row, "id": "b", "split": "x"}).encode(),
    ]))  # fmt: skip
    code, out, err = run(capsys, "bench", "cases", bad)
    lines = err.splitlines()
    assert code == 2 and out == "" and lines[0] == f"error: {bad}: 4 bad lines, no case was loaded"
    assert [line.split(":")[0] for line in lines[1:]] == [f"  line {k}" for k in (3, 4, 5, 6)]
    folder = tmp_path / "run"
    code, _, other = run(capsys, "bench", "generate", folder, "--cases", bad, "--point", "none")
    assert code == 2 and other == err and not folder.exists()
    public = tmp_path / "public.json"
    public.write_text("[1, {}]")
    target = tmp_path / "cases.jsonl"
    code, _, err = run(capsys, "bench", "import", public, "--out", target)
    assert code == 2 and len(err.splitlines()) == 3 and not target.exists()
