"""People as judges: blind, resumable, each for themselves, and a page that gives nothing else away."""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from judging import add_picture, drawn, files_with, make_run
from vsf.bench.judges import LabelSession
from vsf.bench.judges.human import make_server
from vsf.bench.run import Run, Unit
from vsf.cli import main

YES = {"answer_1": True, "answer_2": False, "quality": 1}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run", cases=2, seeds=(0, 1))


def say(session: LabelSession, visitor: str, pair, preference="left", said=YES) -> None:
    sides = [said if ask else None for ask in pair.ask]
    session.answer(visitor, pair.id, *sides, preference if pair.right else None)


def all_of(session: LabelSession, visitor: str) -> list:
    shown = []
    while (pair := session.next(visitor)) is not None:
        shown.append(pair)
        say(session, visitor, pair)
    return shown


# -- the session --------------------------------------------------------------------------------------------------------


def test_every_picture_is_asked_about_once_side_by_side_with_one_of_the_same_case_and_noise(run):
    shown = all_of(LabelSession(run), "anna")
    units = {unit.id for unit in drawn(run)}
    asked = [item.unit for pair in shown for item, ask in zip((pair.left, pair.right), pair.ask, strict=True) if ask]
    assert sorted(asked) == sorted(units) == sorted(a.unit for a in run.judged("human-anna"))
    for pair in shown:
        assert pair.right is not None and pair.left.unit != pair.right.unit
        left, right = Unit.parse(pair.left.unit), Unit.parse(pair.right.unit)
        assert (left.case, left.seed, left.kind) == (right.case, right.seed, right.kind)
    assert [pair.done for pair in shown] == list(range(len(shown))) and {p.total for p in shown} == {len(shown)}
    assert run.judge("human-anna")["kind"] == "human"
    answer = next(run.judged("human-anna"))
    assert (answer.answer_1, answer.answer_2, answer.quality) == (True, False, 1.0)


def test_sides_and_order_are_hidden_and_differ_between_visitors_and_seeds(tmp_path):
    run = make_run(tmp_path / "run", cases=10, seeds=(0, 1))

    def order(visitor, seed=0):
        return [(p.left.unit, p.right.unit) for p in all_of(LabelSession(run, f"human{seed}", seed), visitor)]

    anna, bert = order("anna"), order("bert")
    assert anna != bert and anna != order("anna", 1)
    lefts = [left.split("/")[0] for left, _ in anna]
    for method in ("none", "vsf", "nag"):
        times = sum(method in [unit.split("/")[0] for unit in pair] for pair in anna)
        assert 0.2 < lefts.count(method) / times < 0.8
    cases = [Unit.parse(left).case for left, _ in anna]
    changes = sum(a != b for a, b in zip(cases, cases[1:], strict=False))
    assert changes > len(anna) / 2  # cases come mixed, too


def test_what_a_page_may_know_names_no_method_file_or_unit(run):
    session = LabelSession(run)
    ids = set()
    while (pair := session.next("anna")) is not None:
        text = json.dumps(pair.public())
        unit = Unit.parse(pair.left.unit)
        assert not any(word in text for word in ("vsf", "nag", "none", "unrelated", unit.case, str(run.folder)))
        assert all(re.fullmatch("[0-9a-f]{32}", id) for id in pair.public()["pictures"])
        ids |= set(pair.public()["pictures"])
        assert b"guidance" not in session.picture(pair.left.id)
        say(session, "anna", pair)
    assert len(ids) == len(drawn(run))
    other = LabelSession(run)  # ids are random for every server
    assert other.next("bert") and not ids & set(other.next("bert").public()["pictures"])
    with pytest.raises(KeyError):
        session.picture("0" * 32)


def test_it_goes_on_where_it_stopped(run):
    first = LabelSession(run)
    for _ in range(2):
        say(first, "anna", first.next("anna"))
    waiting = first.next("anna")
    again = LabelSession(Run.open(run.folder))
    pair = again.next("anna")
    assert (pair.left.unit, pair.right.unit, pair.ask, pair.done) == (
        waiting.left.unit, waiting.right.unit, waiting.ask, 2,
    )  # fmt: skip
    rest = all_of(again, "Anna ")  # names are taken as people write them
    assert len(rest) == pair.total - 2
    assert again.next("anna") is None and LabelSession(run).next("anna") is None


def test_visitors_are_separate(run):
    session = LabelSession(run)
    say(session, "anna", session.next("anna"))
    bert = session.next("bert")
    assert bert.done == 0
    with pytest.raises(KeyError):
        say(session, "anna", bert)
    say(session, "bert", bert, "right", {"answer_1": False, "answer_2": True, "quality": 0})
    assert run.judges() == ["human-anna", "human-bert"]
    assert all(a.answer_1 for a in run.judged("human-anna")) and not any(a.answer_1 for a in run.judged("human-bert"))


def test_undo_takes_back_the_last_pair_also_after_a_restart(run):
    session = LabelSession(run)
    pairs = []
    for _ in range(3):
        pairs.append(session.next("anna"))
        say(session, "anna", pairs[-1])
    before = run.answers("human-anna").keys()
    back = session.undo("anna")
    assert back.left.unit == pairs[-1].left.unit and session.next("anna") == back
    gone = before - run.answers("human-anna").keys()
    assert gone == {i.unit for i, ask in zip((back.left, back.right), back.ask, strict=True) if ask}
    again = LabelSession(run)
    assert again.undo("anna").left.unit == pairs[1].left.unit
    assert again.undo("anna").left.unit == pairs[0].left.unit
    assert again.undo("anna") is None and not run.answers("human-anna").keys()
    assert len(all_of(again, "anna")) == pairs[0].total
    assert len({a.unit for a in run.judged("human-anna")}) == len(drawn(run))


def test_preferences_are_kept_beside_the_answers(run):
    session = LabelSession(run)
    wanted = {}
    for preference in ("left", "right", "same"):
        pair = session.next("anna")
        wanted[(pair.left.unit, pair.right.unit)] = preference
        say(session, "anna", pair, preference)
    stored = [json.loads(p.read_text()) for p in (run.folder / "judges/human-anna/pairs").rglob("*.json")]
    assert {(s["left"], s["right"]): s["preference"] for s in stored} == wanted
    assert sorted(s["n"] for s in stored) == [0, 1, 2]


def test_who_cannot_tell_has_not_judged(run):
    session = LabelSession(run)
    say(session, "anna", session.next("anna"), said={"answer_1": True, "answer_2": None, "quality": 0.5})
    answer = next(run.judged("human-anna"))
    assert answer.status == "not judged" and answer.answer_1 is None and answer.quality is None
    assert answer.reason == "the visitor cannot tell" and answer.details["answer_1"] is True


@pytest.mark.parametrize(
    ("left", "right", "preference"),
    [
        (YES, None, "left"),
        (YES, YES, None),
        (YES, YES, "both"),
        (YES, {**YES, "quality": 0.7}, "left"),
        (YES, {**YES, "quality": True}, "left"),
        (YES, {**YES, "answer_1": "yes"}, "left"),
        (YES, {**YES, "more": 1}, "left"),
        (YES, "yes", "left"),
    ],
)
def test_half_answers_are_refused_and_nothing_is_stored(run, left, right, preference):
    session = LabelSession(run)
    pair = session.next("anna")
    while pair.ask != (True, True):
        say(session, "anna", pair)
        pair = session.next("anna")
    before = sorted(p.name for p in run.folder.rglob("*"))
    with pytest.raises(ValueError):
        session.answer("anna", pair.id, left, right, preference)
    assert sorted(p.name for p in run.folder.rglob("*")) == before and session.next("anna") == pair


@pytest.mark.parametrize("name", ["", "../anna", "a" * 25, "an na", "änna", None])
def test_visitors_have_plain_names(run, name):
    with pytest.raises(ValueError, match="letters or digits"):
        LabelSession(run).next(name)


def test_one_picture_alone_and_a_run_that_grows(tmp_path):
    run = make_run(tmp_path / "run", cases=2, seeds=(0,), methods=("vsf", "nag"), draw=lambda u: u.point == "vsf")
    session = LabelSession(run)
    first = session.next("anna")
    assert first.right is None and first.ask == (True, False)
    with pytest.raises(ValueError, match="preference"):
        session.answer("anna", first.id, YES, None, "left")
    all_of(session, "anna")
    assert session.undo("anna") is not None
    all_of(session, "anna")
    for unit in run.plan.units:
        add_picture(run, unit)
    more = all_of(session, "anna")
    assert more and all(sum(pair.ask) == 1 for pair in more)  # the new ones, beside those already answered
    assert {a.unit for a in run.judged("human-anna")} == {u.id for u in run.plan.units}


# -- the page -----------------------------------------------------------------------------------------------------------


@contextmanager
def serving(run: Run):
    server = make_server(LabelSession(run))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()


def ask(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        connection.request(method, path, data, {k.replace("_", "-"): v for k, v in headers.items()})
        reply = connection.getresponse()
        return reply.status, reply.read(), reply.headers
    finally:
        connection.close()


@pytest.fixture
def page(run):
    with serving(run) as port:
        status, text, headers = ask(port, "GET", "/")
        token = re.search(rb'token = "([^"]+)"', text)[1].decode()
        assert status == 200

        def post(path, body, **changed):
            given = {"Content_Type": "application/json", "X_Token": token, **changed}
            return ask(port, "POST", path, body, **{k: v for k, v in given.items() if v is not None})

        yield port, post, text, headers


def test_the_page_leads_through_all_pairs(run, page):
    port, post, _, _ = page
    status, body, _ = post("/next", {"visitor": "anna"})
    done = 0
    while (pair := json.loads(body)["pair"]) is not None:
        for id in pair["pictures"]:
            status, png, headers = ask(port, "GET", f"/picture/{id}")
            assert status == 200 and png[:4] == b"\x89PNG" and headers["Content-Type"] == "image/png"
            assert b"guidance" not in png
        sides = [YES if a else None for a in pair["ask"]]
        answer = {"visitor": "anna", "id": pair["id"], "left": sides[0], "right": sides[1], "preference": "same"}
        status, body, _ = post("/answer", answer)
        assert status == 200
        if done == 0:
            assert post("/answer", answer)[0] == 409  # sent twice: stored once
            status, body, _ = post("/undo", {"visitor": "anna"})
            assert json.loads(body)["pair"]["id"] == pair["id"]
        done += 1
    assert {a.unit for a in run.judged("human-anna")} == {u.id for u in drawn(run)}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[", "192.0.2.7"])
def test_other_host_names_get_nothing(page, host):
    port, post, _, _ = page
    for status, body, _ in (
        ask(port, "GET", "/", Host=host),
        post("/next", {"visitor": "a"}, Host=host),
    ):
        assert status == 403 and b"token" not in body


def test_other_pages_change_nothing(run, page):
    _, post, _, _ = page
    body = {"visitor": "anna"}
    assert post("/next", body, Origin="http://evil.example")[0] == 403
    assert post("/next", body, Origin="null")[0] == 403
    assert post("/next", body, X_Token="guess")[0] == 403
    assert post("/next", body, X_Token="gu\u00e9ss")[0] == 403
    assert post("/next", body, X_Token=None)[0] == 403
    assert post("/next", body, Content_Type="text/plain")[0] == 415
    assert post("/next", body, Origin="http://localhost:1")[0] == 200
    assert not (run.folder / "judges").exists()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/next", b"{", 400),
        ("/next", b"[" * 4000, 400),
        ("/next", b"[1]", 400),
        ("/next", {"visitor": 3}, 400),
        ("/next", {"visitor": "../../etc"}, 400),
        ("/next", b"x" * 5000, 413),
        ("/answer", {"visitor": "anna"}, 409),
        ("/answer", {"visitor": "anna", "id": {"a": 1}, "left": [], "right": "x"}, 409),
        ("/elsewhere", {"visitor": "anna"}, 404),
    ],
)
def test_bad_requests_are_refused(run, page, path, body, status):
    given, reply, _ = page[1](path, body)
    assert given == status and "error" in json.loads(reply) and str(run.folder).encode() not in reply
    assert page[1]("/next", {"visitor": "anna"})[0] == 200


@pytest.mark.parametrize("path", ["/plan.json", "/picture/../plan.json", "/picture/" + "0" * 32, "/..%2f", "/?x=1/2"])
def test_files_do_not_leave(run, page, path):
    status, body, _ = ask(page[0], "GET", path)
    assert status == (200 if path == "/?x=1/2" else 404) and str(run.folder).encode() not in body


def test_the_page_needs_nothing_from_elsewhere_and_allows_nothing(page):
    _, _, text, headers = page
    assert b"http" not in text.replace(b"http-equiv", b"") and b"@TOKEN@" not in text
    assert (
        "default-src 'none'" in headers["Content-Security-Policy"] and headers["X-Content-Type-Options"] == "nosniff"
    )
    assert headers["Cache-Control"] == "no-store" and "Python" not in headers["Server"]


def test_a_lost_picture_is_missing_and_an_error_says_no_path(run, page, capsys, monkeypatch):
    port, post, _, _ = page
    pair = json.loads(post("/next", {"visitor": "anna"})[1])["pair"]
    for path in run.folder.rglob("*.png"):
        path.unlink()
    assert ask(port, "GET", f"/picture/{pair['pictures'][0]}")[0] == 404

    def full(*_):
        raise OSError(28, "No space left on device", str(run.folder))

    monkeypatch.setattr("vsf.bench.run.Store.put", full)
    answer = {"visitor": "anna", "id": pair["id"], "left": YES, "right": YES, "preference": "left"}
    answer |= {side: None for side, open in zip(("left", "right"), pair["ask"], strict=True) if not open}
    status, body, _ = post("/answer", answer)
    assert status == 500 and str(run.folder).encode() not in body and "No space" in capsys.readouterr().out
    monkeypatch.undo()
    assert post("/answer", answer)[0] == 200  # nothing was lost: the same answer again is stored


def test_the_command_says_no_plainly(run, tmp_path, capsys):
    assert main(["bench", "label", str(tmp_path)]) == 2
    assert main(["bench", "label", str(run.folder), "--name", "a b"]) == 2
    assert main(["bench", "label", str(run.folder), "--host", "256.0.0.1"]) == 2
    for path in run.folder.glob("records/*/*"):
        path.unlink()
    assert main(["bench", "label", str(run.folder)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and "no pictures yet" in errors[3] and "cannot listen" in errors[2]
    with serving(run) as port:
        assert main(["bench", "label", str(run.folder), "--port", str(port)]) == 2


@pytest.mark.skipif(not os.path.exists("/usr/bin/chromium"), reason="needs chromium")
def test_a_browser_and_a_keyboard_are_enough(run):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with serving(run) as port, playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        page.goto(f"http://127.0.0.1:{port}/")
        page.keyboard.type("Anna")
        page.keyboard.press("Enter")
        page.wait_for_selector("#work:not([hidden])")
        total = int(page.inner_text("#count").split()[-1])
        widths = "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))"
        assert page.evaluate(widths) == [64, 64]
        page.keyboard.press("1")
        page.keyboard.press("u")
        for done in range(total):
            playwright.expect(page.locator("#count")).to_have_text(f"{done + 1} of {total}")
            while "rather" not in page.inner_text("#question"):
                page.keyboard.press("2")
            page.keyboard.press("ArrowRight")
        page.wait_for_selector("#end:not([hidden])")
        page.keyboard.press("Backspace")
        page.wait_for_selector("#work:not([hidden])")
        browser.close()
    answers = list(run.judged("human-anna"))
    assert not problems and len(drawn(run)) > len(answers) >= len(drawn(run)) - 2
    assert all(a.answer_1 is False and a.answer_2 is False and a.quality == 0.5 for a in answers)
    assert not files_with(run.folder / "judges", '"preference": "left"')
