"""People judge on the page, alone (`vsf bench label`) or beside the model: a real server, raw requests and a real browser."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from asking import ROOT, Asker, Form, Running

from judging import drawn, files_with, make_run
from patience import PATIENCE
from vsf.bench.run import Run

if sys.platform == "win32":
    pytest.skip("signals and loopback as POSIX has them", allow_module_level=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("labels") / "run", cases=2, seeds=(0,))


@pytest.fixture(scope="module")
def server(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("server"), options=f"{run.folder} --port 0", command="bench label")
    yield running
    running.end()
    assert "Traceback" not in running.said and not running.left(), running.said


def test_what_is_sent_says_nothing_about_methods_and_files(run: Run, server: Running) -> None:
    visitor = Asker(server.port)
    form = Form(visitor.config())
    said = visitor.run(form.handler("begin", "click"), ["bert"])
    assert "Is there" in said and "side.webp" in said
    assert not any(word in said for word in ("vsf/", "nag", "none--", "unrelated", "--0--", str(run.folder)))
    assert visitor.ask("GET", f"/gradio_api/file={run.folder}/plan.json")[0] in (403, 404)
    assert visitor.ask("GET", "/", headers={"Host": "evil.example"})[0] == 403
    said = visitor.run(form.handler("begin", "click"), ["../bert"])
    assert "has 1 to 24 letters or digits" in said
    assert not (run.folder / "judges").exists()


def test_an_address_that_cannot_be_had_is_one_sentence(run: Run) -> None:
    code = "import sys; from vsf.cli import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for option, words in ((["--host", "256.0.0.1"], "no address of this machine"), (["--port", port], "already")):
            command = [sys.executable, "-c", code, "bench", "label", str(run.folder), *option]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            last = done.stderr.splitlines()[-1]
            assert done.returncode == 2 and last.startswith("error: ") and words in last, done.stderr


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(BROWSER is None and os.environ.get("VSF_REQUIRE_BROWSER") != "1", reason="no browser")
def test_a_browser_and_a_keyboard_are_enough(run: Run, server: Running) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    expect = playwright.expect
    artefacts = Path(__file__).parent / "artefacts"
    artefacts.mkdir(exist_ok=True)
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.locator("#visitor input, #visitor textarea").fill("Anna")
        page.keyboard.press("Enter")
        question = page.locator("#question .question")
        expect(question).to_contain_text("Left: Is there", timeout=1000 * PATIENCE)
        decoded = "Promise.all([...document.querySelectorAll('#label-pictures img')].map(i => i.decode()))"
        assert len(page.evaluate(decoded)) == 2
        page.screenshot(path=str(artefacts / "label-alone.png"))
        assert page.locator("#panel, #tabs, #cancel:visible").count() == 0
        total, asked = int(question.locator("small").inner_text().split()[-1]), 0

        def press(key: str) -> None:
            """Until it is heard: a key is passed over while the answer before it is being taken.

            After 30 s it is pressed again, three hundred times what taking an answer needs: on a busy machine it was only late.
            """
            text = question.inner_text()
            while question.inner_text() == text:
                page.keyboard.press(key)
                with suppress(AssertionError):
                    expect(question).not_to_have_text(text, timeout=30_000)

        first = question.inner_text()
        press("1")
        press("Backspace")
        assert question.inner_text() == first
        while "That was the last one" not in (text := question.inner_text()):
            press("ArrowRight" if "rather" in text else "2")
            asked += 1
        page.screenshot(path=str(artefacts / "label-end.png"))
        press("u")
        expect(question).to_contain_text(f"{total} of {total}")
        browser.close()
    answers = list(run.judged("human-anna"))
    assert not problems and asked == 3 * len(drawn(run)) + total
    assert len(drawn(run)) > len(answers) >= len(drawn(run)) - 2
    assert all(a.answer_1 is False and a.answer_2 is False and a.quality == 0.5 for a in answers)
    pairs = [json.loads(p.read_bytes()) for p in (run.folder / "judges/human-anna/pairs").rglob("*.json")]
    assert {pair["preference"] for pair in pairs} == {"right"} and not files_with(server.folder, "human-anna")
