"""Deciding disagreements on the page: a real server, raw requests and a real browser."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from asking import Asker, Form, Running

from patience import PATIENCE
from vsf.judging import Label, Labels, collected, world_labels

if sys.platform == "win32":
    pytest.skip("signals and loopback as POSIX has them", allow_module_level=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of the demo world; "secretary" says the opposite of what is true of one question each."""
    folder = tmp_path_factory.mktemp("decide") / "labels"
    true = collected(world_labels(2, 4))
    wrong = [label for label in true if label.asks == "missing"]
    said = [Label(o.image, o.question, o.asks, not o.answer, "secretary", item=o.item, group=o.group) for o in wrong]
    true.only([*true, *said]).save(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("server"), options=f"{folder} --port 0", command="judge adjudicate")
    yield running
    running.end()
    assert "Traceback" not in running.said and not running.left(), running.said


def test_what_is_sent_says_nothing_about_annotators(folder: Path, server: Running) -> None:
    visitor = Asker(server.port)
    form = Form(visitor.config())
    said = visitor.run(form.handler("begin", "click"), ["eve"])
    assert "missing from the" in said and "side.webp" in said and "1 of 2" in said
    assert "secretary" not in said and str(folder) not in said


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(BROWSER is None and os.environ.get("VSF_REQUIRE_BROWSER") != "1", reason="no browser")
def test_a_browser_and_a_keyboard_decide(folder: Path, server: Running) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    artefacts = Path(__file__).parent / "artefacts"
    artefacts.mkdir(exist_ok=True)
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.locator("#visitor input, #visitor textarea").fill("Eve")
        page.keyboard.press("Enter")
        question = page.locator("#question .question")
        playwright.expect(question).to_contain_text("1 of 2", timeout=1000 * PATIENCE)
        decoded = "Promise.all([...document.querySelectorAll('#label-pictures img')].map(i => i.decode()))"
        assert len(page.evaluate(decoded)) == 1
        page.screenshot(path=str(artefacts / "adjudicate.png"))
        for then in ("2 of 2", "That was the last one"):
            while then not in question.inner_text():  # a key is passed over while the answer before it is being taken
                page.keyboard.press("1")
                with suppress(AssertionError):
                    playwright.expect(question).to_contain_text(then, timeout=30_000)
        browser.close()
    decided = Labels.open(folder).of("adjudicated")
    assert [label.answer for label in decided] == [True, True] and all(label.seconds is not None for label in decided)
