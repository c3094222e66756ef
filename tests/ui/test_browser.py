"""The page in a real browser, served by a real `vsf ui`. Screenshots are kept in tests/ui/artefacts.

VSF_REQUIRE_BROWSER=1 makes a missing browser a failure instead of a skip; VSF_SCREENSHOTS=1 also writes the pictures of
the documentation, docs/images/ui-*.png.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patience import PATIENCE
from vsf.cli import main
from vsf.images import read_settings

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-prefers-reduced-motion",
]
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ARTEFACTS = HERE / "artefacts"


def _missing() -> str | None:
    if next(filter(None, map(shutil.which, BROWSERS)), None) is None:
        return f"no browser: none of {', '.join(BROWSERS)} is on the path"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return None


if (_why := _missing()) is not None:
    if os.environ.get("VSF_REQUIRE_BROWSER") == "1":
        raise RuntimeError(f"VSF_REQUIRE_BROWSER=1, but {_why}")
    pytest.skip(_why, allow_module_level=True)

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright  # noqa: E402

expect.set_options(timeout=1000 * PATIENCE)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of our own, on a free port of this machine."""
    folder = tmp_path_factory.mktemp("server")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with (folder / "log").open("w+") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", "import sys; from vsf.cli import main; sys.exit(main())", "ui", "--port", "0"],
            stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=folder,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            log.seek(0)
            assert found, line + log.read()
            yield found[0]
        finally:
            server.send_signal(signal.SIGINT)
            try:
                assert server.wait(PATIENCE) == 0
            finally:
                server.kill()
                if server.stdout is not None:
                    server.stdout.close()
        log.seek(0)
        said = log.read()
    assert "Traceback" not in said, said
    assert not list(folder.glob("vsf-ui-*"))  # what visitors made is gone


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, BROWSERS)))
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def visit(browser: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Opens the page as a new visitor, who talks to nobody but the server and gets no error in the console."""
    contexts: list[BrowserContext] = []
    troubles: list[str] = []

    def come(**more: Any) -> Page:
        context = browser.new_context(viewport={"width": 1360, "height": 900}, accept_downloads=True, **more)
        context.set_default_timeout(1000 * PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else troubles.append(r.url))
        page.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: troubles.append(str(e)))
        page.goto(address)
        page.locator("#pictures img").first.wait_for()
        return page

    yield come
    for context in contexts:
        context.close()
    assert not troubles


@pytest.fixture(scope="module")
def page(visit: Callable[..., Page]) -> Page:
    """One visitor for most tests."""
    return visit()


def shot(page: Page, name: str, doc: bool = False, full: bool = True) -> None:
    ARTEFACTS.mkdir(exist_ok=True)
    page.mouse.move(0, 0)
    page.wait_for_timeout(250)
    path = ARTEFACTS / f"{name}.png"
    page.screenshot(path=path, full_page=full)
    if doc and os.environ.get("VSF_SCREENSHOTS") == "1":
        with Image.open(path) as image:
            small = image.convert("RGB")
        target = ROOT / "docs/images" / f"ui-{name}.png"
        small.thumbnail((880, 2000))  # this and a palette keep the repository small
        small = small.quantize(palette=small.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
        small.save(target, optimize=True)


def status(page: Page) -> Any:
    return page.locator("#status .status")


def fill(page: Page, name: str, value: Any) -> None:
    box = page.locator(f"#{name} textarea, #{name} input").first
    box.fill(str(value))
    box.blur()


def tab(page: Page, name: str) -> None:
    shown = page.locator("#tabs button[role=tab]", has_text=name)
    if not shown.first.is_visible():  # on narrow pages the last ones are behind a menu
        page.locator("#tabs .overflow-menu > button").click()
        shown = page.locator("#tabs .overflow-dropdown button", has_text=name)
    shown.first.click()


def fresh(page: Page, **fields: Any) -> None:
    """The form as a test wants it, whatever tests ran before."""
    tab(page, "Picture")
    page.locator("#method label", has_text="VSF").click()
    wanted = {"prompt": "a red bike on grass", "negative": "wheels", "seed": 2, "steps": 3, "n": 1, "size": "128x128"}
    for name, value in (wanted | fields).items():
        fill(page, name, value)


def draw(page: Page) -> None:
    """Press Draw and wait for the new picture."""
    before = page.locator("#pictures img").first.get_attribute("src")
    page.locator("#draw").click()
    expect(page.locator("#pictures img").first).not_to_have_attribute("src", before or "")
    expect(status(page)).to_contain_text("Drawn in")


def download(page: Page, link: str, folder: Path) -> Path:
    with page.expect_download() as got:
        page.locator(link).click()
    path = folder / got.value.suggested_filename
    got.value.save_as(path)
    return path


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def open_again(page: Page) -> None:
    if not page.locator("#cli .cm-content").is_visible():
        page.locator("#again > button").click()


# ---------------------------------------------------------------------------------------------------------------------


def test_the_page_loads_with_a_picture(visit: Callable[..., Page]) -> None:
    page = visit()
    expect(page).to_have_title("vsf")
    expect(status(page)).to_contain_text("Ready")
    assert page.locator("#pictures img").count() == 4  # without, with, and both for the wipe
    assert page.locator("#map img").count() == page.locator("#difference img").count() == 1
    for image in page.locator("#stage img").all():
        assert image.get_attribute("alt") and image.evaluate("i => i.naturalWidth") == 512
    assert not page.locator("footer").is_visible()
    shot(page, "picture", doc=True)


def test_a_drawn_picture_can_be_made_again_from_what_the_page_shows(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh(page, prompt="a blue house on grass", negative="windows:1.5, chimney", seed=10, steps=4)
    draw(page)
    picture = download(page, "#files a >> nth=0", tmp_path)
    settings = read_settings(picture)
    assert (settings["prompt"], settings["negative"], settings["seed"]) == (
        "a blue house on grass",
        "windows:1.5, chimney",
        10,
    )
    open_again(page)
    shot(page, "again")
    shown = {name: page.locator(f"#{name} .cm-content").inner_text() for name in ("cli", "python")}
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)  # as the server
    assert main(shlex.split(shown["cli"].replace("\\\n", ""))[1:]) == 0
    assert np.array_equal(pixels("vsf.png"), pixels(picture))
    Path("vsf.png").unlink()
    exec(compile(shown["python"], "shown", "exec"), {})
    assert np.array_equal(pixels("vsf.png"), pixels(picture))


def test_the_map_is_scrubbed_over_steps_and_blocks(page: Page) -> None:
    fresh(page)
    draw(page)
    seen = [page.locator("#map img").get_attribute("src") or ""]
    page.locator("#map-step input[type=range]").focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
        expect(page.locator("#map img")).not_to_have_attribute("src", seen[-1])
        page.wait_for_timeout(300)
        seen.append(page.locator("#map img").get_attribute("src") or "")
    assert len(set(seen)) == 3
    expect(page.locator("#map figcaption")).to_contain_text("of the attention")


def test_several_pictures_are_looked_at_one_by_one(page: Page, tmp_path: Path) -> None:
    fresh(page, seed=10, steps=2, n=2)
    draw(page)
    which = page.locator("#which label")
    expect(which).to_have_count(2)
    first = page.locator("#pictures img").first.get_attribute("src")
    which.nth(1).click()
    expect(page.locator("#pictures img").first).not_to_have_attribute("src", first or "")
    expect(page.locator("#pictures figcaption").first).to_contain_text("seed 11")
    assert read_settings(download(page, "#files a >> nth=0", tmp_path))["picture"] == 1


def test_all_methods_are_compared(page: Page, tmp_path: Path) -> None:
    fresh(page, negative="wheels:1.5, basket", steps=4)
    tab(page, "Compare")
    page.locator("#compare-go").click()  # with weights in the negative, which only VSF takes
    expect(status(page)).to_contain_text("Compared 2 methods")
    expect(page.locator("#compared .tile", has_text="NAG")).to_contain_text("has weights, which NAG cannot take")
    fill(page, "negative", "wheels")
    fill(page, "steps", 8)
    page.locator("#compare-go").click()
    expect(status(page)).to_contain_text("Compared 5 methods")
    assert page.locator("#compared img").count() == 5
    for name in ("No guidance", "VSF", "NAG", "NASA", "CFG"):
        assert page.locator("#compared b", has_text=re.compile(f"^{name}$")).count() == 1
    sheet = download(page, "#compare-files a", tmp_path)
    assert read_settings(sheet)["guidance"]["method"] == "vsf"
    shot(page, "compare", doc=True)


def test_a_grid_is_drawn_and_a_cell_gives_its_settings(page: Page) -> None:
    fresh(page, steps=8)
    tab(page, "Grid")
    for axis, high, count in (("x", 3, 3), ("y", 1, 2)):
        fill(page, f"axis-{axis}-to", high)
        fill(page, f"axis-{axis}-count", count)
    page.locator("#grid-go").click()
    expect(status(page)).to_contain_text("6 pictures")
    assert page.locator("#cells img").count() == 6
    page.locator("#cells button[data-cell='1,2']").click()
    expect(status(page)).to_contain_text("on the left now")
    expect(page.locator("#vsf-scale input[type=number]")).to_have_value("3")
    expect(page.locator("#vsf-offset input[type=number]")).to_have_value("1")
    shot(page, "grid", doc=True)


def test_an_animation_over_a_knob_is_downloaded(page: Page, tmp_path: Path) -> None:
    fresh(page, steps=1)
    tab(page, "Grid")
    page.locator("#animate-go").click()
    expect(status(page)).to_contain_text("22 frames over scale")
    for i in range(page.locator("#animation a").count()):
        path = download(page, f"#animation a >> nth={i}", tmp_path)
        if path.suffix == ".mp4":
            assert path.read_bytes()[4:8] == b"ftyp"
        else:
            with Image.open(path) as image:
                assert image.n_frames > 10  # pyright: ignore[reportAttributeAccessIssue]


def test_cancel_stops_the_drawing_and_leaves_nothing_behind(page: Page, tmp_path: Path) -> None:
    fresh(page)
    draw(page)
    before = pixels(download(page, "#files a >> nth=0", tmp_path))
    fill(page, "steps", 50)
    fill(page, "n", 8)
    fill(page, "size", "256x256")  # half a minute, so that it is not done before it is stopped
    page.locator("#draw").click()
    expect(status(page)).to_contain_text(re.compile(r"Step [1-9]"))
    page.locator("#cancel").click()
    expect(status(page)).to_contain_text("Stopped")
    expect(page.locator("#cancel")).to_be_disabled()
    fresh(page)
    draw(page)
    assert np.array_equal(before, pixels(download(page, "#files a >> nth=0", tmp_path)))


def test_a_picture_restores_its_settings(page: Page, tmp_path: Path) -> None:
    fresh(page, prompt="a pink cake in a room", negative="candles", seed=8)
    page.locator("#method label", has_text="NAG").click()
    fill(page, "nag-scale", 3)
    draw(page)
    picture = download(page, "#files a >> nth=0", tmp_path)
    page.locator("#method label", has_text="VSF").click()
    fill(page, "prompt", "a cat")
    fill(page, "seed", 1)
    page.locator("#restore input[type=file]").set_input_files(picture)
    expect(status(page)).to_contain_text("Settings restored")
    expect(page.locator("#prompt textarea")).to_have_value("a pink cake in a room")
    expect(page.locator("#nag-scale input[type=number]")).to_be_visible()
    expect(page.locator("#nag-scale input[type=number]")).to_have_value("3")
    draw(page)
    assert np.array_equal(pixels(picture), pixels(download(page, "#files a >> nth=0", tmp_path / "again")))


def test_bad_input_is_answered_with_a_sentence(page: Page, tmp_path: Path) -> None:
    def told(words: str) -> None:
        expect(status(page)).to_have_class(re.compile("bad"))
        expect(status(page)).to_contain_text(words)
        expect(page.locator(".toast-body").last).to_contain_text(words)
        assert "Traceback" not in page.content()

    fresh(page, negative="candles:-1")
    page.locator("#draw").click()
    told("The weight -1 at character 9 of the negative prompt is not allowed")
    shot(page, "bad-input", full=False)
    fill(page, "negative", "")
    tab(page, "Compare")
    page.locator("#compare-go").click()
    told("Say what is not wanted first")
    tab(page, "Picture")
    plain = tmp_path / "plain.png"
    Image.new("RGB", (8, 8)).save(plain)
    page.locator("#restore input[type=file]").set_input_files(plain)
    told("The file plain.png holds no settings of vsf")
    fake = tmp_path / "fake.png"
    fake.write_bytes(b"GIF89a nothing")
    page.locator("#restore input[type=file]").set_input_files(fake)
    told("The file fake.png is not a PNG picture")
    fill(page, "negative", "<img src=x onerror=alert(1)>")
    fill(page, "prompt", "a bicycle")
    fill(page, "steps", 1)
    draw(page)
    expect(status(page)).to_contain_text("does not know “bicycle”")
    assert page.locator("img[src=x]").count() == 0


def test_the_gallery_draws_what_is_chosen(visit: Callable[..., Page]) -> None:
    page = visit()
    tab(page, "Gallery")
    expect(page.locator("#gallery img").first).to_be_visible()
    expect(status(page)).to_contain_text("Choose an entry")
    assert page.locator("#gallery .card").count() == page.locator("#gallery img").count() / 2 > 12
    shot(page, "gallery", doc=True, full=False)
    page.locator("#gallery .card", has_text="a green tree").click()
    expect(status(page)).to_contain_text("Drawn in")
    expect(page.locator("#prompt textarea")).to_have_value("a green tree on grass")
    tab(page, "Picture")
    expect(page.locator("#pictures img").first).to_have_attribute("alt", "Without: a green tree on grass")


def test_two_visitors_see_nothing_of_each_other(page: Page, visit: Callable[..., Page], address: str) -> None:
    def get(url: str) -> int:
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    other = visit(color_scheme="dark")
    fresh(other, prompt="a purple castle at night", negative="flag", seed=11, steps=8)
    draw(other)
    shot(other, "dark", doc=True)
    theirs = f"{address}/" + str(other.locator("#pictures img").first.get_attribute("src"))
    assert "purple castle" not in page.content() and get(theirs) == 200
    # Two random words stand between the folder of all and a file: neither content nor name gives them away.
    words = urllib.parse.urlparse(theirs).path.split("/")
    assert all(len(word) >= 16 for word in words[-4:-1]) and hashlib.sha256(b"").hexdigest() not in theirs
    folder = theirs.rsplit("/", 2)[0]
    for guess in (folder, folder.rsplit("/", 1)[0], f"{address}/gradio_api/file=/etc/passwd",
                  f"{address}/gradio_api/file={ROOT}/README.md", f"{address}/gradio_api/file=https://example.org/",
                  f"{address}/gradio_api/runs", f"{address}/gradio_api/monitoring/summary"):  # fmt: skip
        assert get(guess) in (403, 404), guess
    # A long job of theirs ends when they leave, and frees the device.
    fill(other, "steps", 50)
    fill(other, "n", 8)
    fill(other, "size", "256x256")
    other.locator("#draw").click()
    expect(status(other)).to_contain_text(re.compile(r"Step [1-9]"))
    fresh(page)
    page.locator("#draw").click()
    expect(status(page)).to_contain_text("Waiting: 1 before you")
    other.context.close()
    expect(status(page)).to_contain_text("Drawn in")
    until = time.monotonic() + PATIENCE
    while get(theirs) == 200 and time.monotonic() < until:
        page.wait_for_timeout(100)
    assert get(theirs) in (403, 404)


def test_a_request_by_hand_gets_no_further_than_the_page(address: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    data = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}

    def post(path: str, body: Any) -> int:
        request = urllib.request.Request(
            f"{address}/gradio_api/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert post("queue/join", {"data": [data], "fn_index": 0, "session_hash": "x"}) == 400
    assert post("queue/join", {"data": [], "event_data": data, "fn_index": 1, "session_hash": "x"}) == 400
    for path in ("call/draw", "upload", "run/draw", "../login"):
        assert post(path, {"data": []}) == 403


def test_a_phone_shows_everything_in_its_width(visit: Callable[..., Page]) -> None:
    page = visit(is_mobile=True, has_touch=True)
    page.set_viewport_size({"width": 390, "height": 844})
    for name in ("Grid", "Compare", "Gallery", "Picture"):
        tab(page, name)
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    page.locator("#words > button").click()
    page.locator(".chip[data-word=basket]").tap()
    expect(page.locator("#negative textarea")).to_have_value("wheels, basket")
    fill(page, "steps", 2)
    draw(page)
    shot(page, "phone")
    box = page.locator("#pictures").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.context.close()


def test_everything_can_be_done_with_the_keyboard(page: Page) -> None:
    def tab_to(selector: str, most: int = 60) -> None:
        for _ in range(most):
            if page.evaluate("s => !!document.activeElement?.closest(s)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{selector} is not reached with the Tab key")

    fresh(page)
    if page.locator(".chip").first.is_visible():
        page.locator("#words > button").click()
    page.evaluate("document.activeElement?.blur(); window.scrollTo(0, 0)")
    page.locator("#theme-switch").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.body.classList.contains('dark')")
    page.keyboard.press("Enter")
    tab_to("#prompt")
    page.keyboard.press("Control+A")
    page.keyboard.type("a red train on grass")
    tab_to("#negative")
    page.keyboard.press("Control+A")
    page.keyboard.type("smoke")
    before = page.locator("#pictures img").first.get_attribute("src")
    tab_to("#words button")
    page.keyboard.press("Enter")
    expect(page.locator(".chip").first).to_be_visible()
    tab_to(".chip[data-word=wheels]")
    page.keyboard.press("Enter")
    expect(page.locator("#negative textarea")).to_have_value("smoke, wheels")
    tab_to("#draw", 120)
    assert "solid" in page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    page.keyboard.press("Enter")
    expect(page.locator("#pictures img").first).not_to_have_attribute("src", before or "")
    tab_to("#method")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#knobs-nag")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    tab_to("#tabs [role=tab][aria-selected=true]")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#compare-go")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    tab_to("#pictures .zoom")
    page.keyboard.press("Enter")
    expect(page.locator("dialog.sheet")).to_be_visible()
    shot(page, "enlarged", full=False)
    page.keyboard.press("Escape")
    expect(page.locator("dialog.sheet")).to_have_count(0)
    tab_to("#pictures .wipe")
    page.keyboard.press("Home")
    assert page.evaluate("getComputedStyle(document.querySelector('.wipe')).getPropertyValue('--at')") == "0%"
    for part in ("#map-step", "#map-block", "#files a", "#again"):
        tab_to(part)


def test_a_bad_start_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["--model", "nowhere"], "no model folder nowhere"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
        (["--model-path", "/nowhere"], "--model-path goes with a preset"),
        (["--label", "/nowhere"], "--label is /nowhere"),
    ):
        assert main(["ui", *words]) == 2
        err = capsys.readouterr().err
        assert told in err and err.startswith("error: ") and err.count("\n") == 1
