"""The parts of the page that need no browser: jobs, form, reproduction, sessions, guard."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import re
import shlex
import subprocess
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from closeness import of_sums
from patience import PATIENCE
from tiny import save_tiny
from vsf import CFG, METHODS, NAG, NASA, VSF, NoGuidance, knobs
from vsf.arch import find_models
from vsf.cli import main
from vsf.current import plans
from vsf.demo import pictures as world
from vsf.demo.models import MODELS
from vsf.draw import Request, draw
from vsf.grammar import parse_size
from vsf.guidance import Guidance, blocks_text, parse_blocks
from vsf.loading import ModelError, load_model
from vsf.prompt import as_typed
from vsf.sizes import sizes_of
from vsf.ui import form, gallery, gallery_tab, views, work
from vsf.ui.jobs import Busy, Cancelled, Device, Job
from vsf.ui.model import Options, describe_model, load
from vsf.ui.reproduce import command_line, python_code
from vsf.video import save_video


async def _import() -> Any:
    with warnings.catch_warnings():  # what gradio's own imports say
        warnings.simplefilter("ignore")
        import vsf.ui.page

    return vsf.ui.page


# Inside a running event loop: outside, gradio makes one for each page and never closes it.
pages = asyncio.run(_import())

OPTIONS = Options()
DEMO = describe_model(OPTIONS)


def build_page(options: Options) -> Any:
    async def build() -> Any:
        return pages.build(options).vsf_page

    return asyncio.run(build())


@pytest.fixture(scope="module")
def pipe() -> Any:
    torch.set_num_threads(1)
    return load_model(device="cpu")


def pixels(image: Any) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


# -- jobs -------------------------------------------------------------------------------------------------------------


def test_jobs_run_one_at_a_time_and_in_order() -> None:
    device, log = Device(lambda: "pipe"), list[tuple[str, int]]()
    device.start()

    def work(n: int) -> Any:
        def run(pipe: Any, job: Job) -> int:
            assert pipe == "pipe"
            log.append(("in", n))
            time.sleep(0.01)
            log.append(("out", n))
            return n

        return run

    jobs = [device.submit(Job(work(n))) for n in range(4)]
    assert all(job.finished.wait(PATIENCE) for job in jobs) and [job.result() for job in jobs] == [0, 1, 2, 3]
    assert log == [(what, n) for n in range(4) for what in ("in", "out")]
    device.close()


def test_a_waiting_job_can_be_cancelled_and_the_queue_has_an_end() -> None:
    device, gate = Device(lambda: None, most=2), threading.Event()
    device.start()
    first = device.submit(Job(lambda *_: gate.wait(PATIENCE)))
    while first.started is None:
        time.sleep(0.001)
    second, third = (device.submit(Job(lambda *_: "ran")) for _ in range(2))
    assert (device.ahead(first), device.ahead(second), device.ahead(third)) == (0, 1, 2)
    with pytest.raises(Busy):
        device.submit(Job(lambda *_: None))
    second.cancel()
    gate.set()
    assert third.finished.wait(PATIENCE) and third.result() == "ran"
    with pytest.raises(Cancelled):
        second.result()
    device.close()


def test_one_picture_does_not_wait_for_a_hundred() -> None:
    device, gate, log = Device(lambda: None), threading.Event(), list[str]()
    device.start()
    first = device.submit(Job(lambda *_: gate.wait(PATIENCE)))
    while first.started is None:
        time.sleep(0.001)
    large, small = (
        device.submit(Job(lambda *_, n=n: log.append(n), size)) for n, size in (("large", 400), ("small", 8))
    )
    assert (device.ahead(small), device.ahead(large)) == (1, 2)
    gate.set()
    assert large.finished.wait(PATIENCE) and small.finished.is_set() and log == ["small", "large"]
    device.close()


def test_a_model_that_cannot_be_loaded_fails_every_job_with_its_sentence() -> None:
    def load() -> Any:
        raise ModelError("no such model")

    device = Device(load)
    device.start()
    job = device.submit(Job(lambda *_: None))
    assert job.finished.wait(PATIENCE) and device.failure == "no such model"
    with pytest.raises(ModelError, match="no such model"):
        job.result()
    device.close()


def test_what_is_loaded_is_not_searched_for_garbage() -> None:
    there: list[list[int]] = [[]]
    before = gc.get_freeze_count()
    load(Options(device="cpu"))
    assert gc.get_freeze_count() > before + 1000
    assert not any(one is there for one in gc.get_objects())


@pytest.mark.parametrize("guidance", [VSF(2.0), NAG(), NASA(), CFG()], ids=lambda g: g.label)
def test_cancelling_stops_the_loop_and_leaves_the_model_as_it_was(pipe: Any, guidance: Guidance) -> None:
    plain = draw(pipe, Request("a red bike", steps=2)).guided[0]
    seen: list[int] = []
    job = Job(work.picture(Request("a red bike", "wheels", guidance, steps=6), "demo"))
    step = job.step

    def stop_at_two(done: int, total: int, text: str = "") -> None:
        seen.append(done)
        if done == 2:
            job.cancel()
        step(done, total, text)

    job.step = stop_at_two  # pyright: ignore[reportAttributeAccessIssue]
    job._run(lambda: pipe)
    with pytest.raises(Cancelled):
        job.result()
    assert seen == [1, 2]
    (model, _), *_ = find_models(pipe)
    assert not plans(id(model)) and not plans(id(pipe)) and type(pipe).__name__ == "StableDiffusion3Pipeline"
    assert np.array_equal(pixels(plain), pixels(draw(pipe, Request("a red bike", steps=2)).guided[0]))


def test_one_refused_request_does_not_end_the_others(pipe: Any) -> None:
    good = Request("a red bike", "wheels", VSF(2.0), steps=1)
    job = Job(work.draw_many([("bad", replace(good, guidance=VSF(2.0, blocks=(99,)))), ("good", good)], "x", "demo"))
    job._run(lambda: pipe)
    job.result()
    (_, bad, *_), (_, fine, _, settings) = job.parts()
    assert "blocks" in bad and fine.size == (128, 128) and settings["guidance"]["scale"] == 2.0


# -- the form ---------------------------------------------------------------------------------------------------------


def test_every_knob_of_every_method_has_a_field_made_from_its_definition() -> None:
    page = build_page(OPTIONS)
    for label, method in METHODS.items():
        for name, knob in knobs(method).items():
            field = page.panel.fields.get(f"{label}.{name}")
            if method.negative == "none" or (method.negative == "pipeline" and name in form.RANGE):
                assert field is None
                continue
            assert field.info == knob.help
            if knob.choices:
                assert [value for _, value in field.choices] == list(knob.choices)
            else:
                assert field.minimum <= knob.low and field.maximum >= knob.high and field.step == knob.step
            assert (f"{label}.{name}?" in page.panel.fields) == knob.optional


def test_the_first_form_is_what_the_command_line_draws() -> None:
    request = form.request_of(form.first_values(DEMO), DEMO)
    assert (
        request.guidance == MODELS["demo"].recommended
        and request.steps == 8
        and request.size is None
        and request.guided
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "number of steps is 0; allowed: a whole number from 1 to 50"),
        ({"steps": None}, "number of steps is empty"),
        ({"seed": -1}, "the seed is -1"),
        ({"seed": 2.5}, "the seed is 2.5"),
        ({"n": 99}, "number of pictures is 99; allowed: a whole number from 1 to 8"),
        ({"size": "big"}, "the size is 'big'"),
        ({"size": "8192x8192"}, "takes multiples of 16 up to 256 pixels a side"),
        ({"size": "512"}, "size is 512x512; this model takes multiples of 16 up to 256 pixels a side"),
        ({"size": "60x60"}, "multiples of 16"),
        ({"negative": "wheels:-2"}, "weight -2 at character 8"),
        ({"prompt": "a" * 501}, "the prompt has 501 characters; allowed: up to 500"),
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"vsf.scale": -1.0}, "VSF.scale is -1.0"),
        ({"vsf.start": 0.9, "vsf.stop": 0.1}, "start (0.9) must not be greater than stop (0.1)"),
        ({"vsf.blocks": "one"}, "Blocks is 'one'"),
    ],
)
def test_bad_input_is_one_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as told:
        form.request_of(form.first_values(DEMO) | change, DEMO)
    assert words in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "guidance",
    [
        VSF(1.25, 0.4, "upstream", normalize=1.1, start=0.1, stop=0.9, blocks=(0, 1, 2, 5)),
        VSF(42.0, -3.0),
        NAG(3.0, 2.0, 0.5),
        NASA(0.3, stop=0.5),
        CFG(2.0),
        NoGuidance(),
    ],
    ids=lambda g: g.label,
)
def test_a_picture_restores_the_whole_form(pipe: Any, guidance: Guidance) -> None:
    request = Request("a red bike", "wheels" if guidance.label in ("nag", "nasa", "cfg") else "wheels:2, [basket:0.2,1]",
                      guidance, 2, 7, 2, (48, 48))  # fmt: skip
    from vsf.draw import settings_of

    settings = json.loads(json.dumps(settings_of(request, "demo", pipe, (48, 48))))
    values, notes = form.restore(settings, DEMO)
    assert not notes
    again = form.request_of(form.first_values(DEMO) | values, DEMO)
    assert again == request


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance": {"method": "vsf"}},
        {"guidance": {"method": "vsf", "scale": [1, 2]}, "prompt": "a", "steps": 1, "seed": 0},
        {"guidance": {"method": "vsf", "offset": "inf"}, "prompt": "a", "steps": 1, "seed": 0},
        {"guidance": {"method": "vsf", "scale": "../../x"}, "prompt": "a", "steps": 1, "seed": 0},
        {"guidance": {"method": "vsf-text"}, "prompt": "a", "steps": 1, "seed": 0},
        {"guidance": {"method": ["vsf"]}, "prompt": "a", "steps": 1, "seed": 0},
        {"guidance": {"method": "vsf"}, "prompt": "a", "steps": 10**9, "seed": 0},
        {"guidance": {"method": "vsf"}, "prompt": "a" * 9999, "steps": 1, "seed": 0},
        {"guidance": {"method": "vsf"}, "prompt": "a", "steps": 1, "seed": 0, "size": [64, {}]},
    ],
)
def test_settings_that_the_page_cannot_hold_restore_nothing(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        form.restore(settings, DEMO)


def test_a_picture_of_another_model_says_so() -> None:
    settings = {
        "guidance": {"method": "none"},
        "prompt": "a",
        "steps": 1,
        "seed": 0,
        "model": "owner/name",
        "guidance_scale": 3,
    }
    _, notes = form.restore(settings, DEMO)
    assert "guidance_scale 3" in notes[0] and "owner/name" in notes[1]
    settings["guidance_scale"] = 0
    for model, said in (("here/mine", False), ("mine", False), ("here/other", True), ("demo", True)):
        _, notes = form.restore(settings | {"model": model}, replace(DEMO, record=None, name="mine"))
        assert bool(notes) == said and (not said or f"drawn by {model}; this page runs mine" in notes[0])


@pytest.mark.parametrize("blocks", [None, (0,), (0, 1, 2), (3, 7, 8, 9, 20)])
def test_blocks_survive_their_text(blocks: tuple[int, ...] | None) -> None:
    assert parse_blocks(blocks_text(blocks)) == blocks


# -- drawing it again -------------------------------------------------------------------------------------------------

AGAIN = [
    Request("a red bike on grass", "wheels", VSF(1.5, 1.0, stop=0.75), 3, 2),
    Request(
        'it\'s a "bike"; $(touch x) `ls`', "wheels:2, basket", VSF(2.0, 0.0, normalize=1.0, blocks=(0, 1, 4)), 2, 3
    ),
    Request("a (red:-1) bike, really", "-wheels", VSF(2.0, layout="upstream"), 2, 4, size=(48, 32)),
    Request("-a blue house", "windows", NAG(2.0, 1.5, 0.5, stop=0.5), 2, 10),
    Request("a yellow face", "glasses", NASA(0.4), 2, 12, n=2),
    Request("a green tree", "apples", CFG(1.5), 2, 1),
    Request("a cat", "", NoGuidance(), 2, 5),
]


@pytest.mark.parametrize("request_", AGAIN, ids=lambda r: r.guidance.label)
def test_the_shown_command_and_python_draw_the_same_bits(
    pipe: Any, request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job(work.picture(request_, "demo"))
    job._run(lambda: pipe)
    wanted = [pixels(p) for p in job.result().drawn.guided]
    names = ["vsf.png"] if request_.n == 1 else [f"vsf-{request_.seed + i}.png" for i in range(request_.n)]

    def check() -> None:
        for name, picture in zip(names, wanted, strict=True):
            with Image.open(name) as image:
                assert np.array_equal(pixels(image), picture)
            Path(name).unlink()

    # What a real shell makes of it.
    shell = 'vsf() { printf "%s\\0" "$@"; }\n' + command_line(request_, OPTIONS, DEMO)
    typed = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert main(typed.removesuffix("\0").split("\0")) == 0
    check()
    exec(compile(python_code(request_, OPTIONS, DEMO), "shown", "exec"), {})
    check()
    assert not list(tmp_path.iterdir())


def test_every_word_of_another_model_is_in_the_command() -> None:
    options = Options("sd3.5-large-turbo", "cpu", "float32", True, "/models/my sd35", True)
    model = replace(DEMO, record=None, steps=8, guidance_scale=0.0)
    words = shlex.split(command_line(replace(AGAIN[0], guidance_scale=1.0), options, model))
    for word in (
        "sd3.5-large-turbo",
        "/models/my sd35",
        "--no-lora",
        "--download",
        "cpu",
        "float32",
        "--guidance-scale",
    ):
        assert word in words
    code = python_code(AGAIN[0], options, model)
    compile(code, "shown", "exec")
    assert "PRESETS['sd3.5-large-turbo'].prepare(pipe, loras=False, download=True)" in code


@pytest.mark.parametrize(
    "prompt", ["a bike", "a bike, 10:30 (at night)", r"a \(x:-1\)", "(x:-1)", "a (b:-2) c", "back\\slash"]
)
def test_a_prompt_is_typed_so_that_it_reads_as_itself(prompt: str) -> None:
    from vsf.prompt import split_prompt

    assert split_prompt(as_typed(prompt)) == (prompt, [])


# -- views ------------------------------------------------------------------------------------------------------------


def test_nothing_typed_becomes_html() -> None:
    evil = '"><img src=x onerror=alert(1)><script>'
    tile = views.Tile(evil, evil, evil, evil)
    pages = [
        views.tiles([tile, views.Tile(evil, "")]), views.empty(evil, evil), views.wipe(evil, evil, evil),
        views.status(evil, "bad", 0.5), views.links([(evil, evil)]), views.chips({evil: [evil]}),
        views.grid((evil, [evil]), (evil, [evil]), {(0, 0): evil}, evil),
        views.cards(evil, evil, [views.GalleryEntry(evil, evil, evil, evil, [evil, evil])]),
    ]  # fmt: skip
    for page in pages:
        assert "<script" not in page and "onerror=alert(1)>" not in re.sub(r"&gt;", "", page).replace("&quot;", "")
        assert '"><img src=x' not in page


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".mp4"])
def test_an_animation_has_all_its_frames(tmp_path: Path, suffix: str) -> None:
    frames = [views.with_caption(Image.new("RGB", (64, 64), (40 * i, 90, 90)), f"scale {i}") for i in range(5)]
    path = tmp_path / f"a{suffix}"
    if suffix == ".mp4":
        pytest.importorskip("imageio_ffmpeg")
    save_video(frames, path, 8, {"prompt": "a", "offset": math.inf}, one_palette=True)
    if suffix == ".mp4":
        assert path.read_bytes()[4:8] == b"ftyp"
        return
    with Image.open(path) as image:
        assert image.n_frames == 5 and image.size == frames[0].size  # pyright: ignore[reportAttributeAccessIssue]


def test_the_difference_of_equal_pictures_is_nothing() -> None:
    picture = Image.new("RGB", (64, 64), "red")
    _, most, share = views.difference(picture, picture)
    assert (most, share) == (0.0, 0.0)


def test_the_map_of_a_step_and_block_is_the_recorded_one(pipe: Any) -> None:
    job = Job(work.picture(Request("a red bike on grass", "wheels", VSF(1.5, 1.0), 3, 2), "demo"))
    job._run(lambda: pipe)
    drawn = job.result().drawn
    share = drawn.suppression.map(1, 2)[0]
    _, most, mean = views.map_view(drawn, 0, 1, 2)
    order = of_sums(share.numel())  # NumPy's mean and torch's
    assert most == float(share.max()) and mean == pytest.approx(float(share.mean()), rel=order)
    every = [views.map_view(drawn, 0, s, None)[2] for s in drawn.suppression.steps]
    assert views.map_view(drawn, 0, None, None)[2] == pytest.approx(np.mean(every), rel=2 * order)


@pytest.mark.parametrize(
    ("request_", "kept"),
    [
        (Request("a", "b", VSF()), True),
        (Request("a", "b", NAG()), False),
        (Request("a", "", VSF()), False),
        (Request("a", "b:0", VSF()), False),
        (Request("a", "b", VSF(start=0.5, stop=0.5)), False),
        (Request("a", "[b:0.2,0.6]", VSF()), True),
        (Request("a", "[b:0.5], c:0", VSF(stop=0.4)), False),
        (Request("a", "b", VSF(blocks=())), False),
        (Request("a", "b", VSF(offset=float("inf"))), False),
    ],
)
def test_a_map_is_kept_where_something_acts(pipe: Any, request_: Request, kept: bool) -> None:
    assert work.keeps_map(request_) is kept
    job = Job(work.picture(replace(request_, steps=1), "demo"))
    job._run(lambda: pipe)
    assert (job.result().drawn.suppression is not None) is kept


def test_the_gallery_speaks_the_models_language() -> None:
    known = set(world.VOCABULARY)
    for group in gallery.groups(DEMO):
        for entry in group.entries:
            assert set(f"{entry.prompt} {entry.negative}".replace(",", "").split()) <= known and entry.seed is not None


def test_who_draws_while_the_gallery_is_drawn_does_not_wait_for_all_of_it() -> None:
    async def visit() -> tuple[Any, Any, list[Any], list[Any]]:
        page: Any = pages.build(OPTIONS).vsf_page
        with page.blocks:
            tab = gallery_tab.GalleryTab(page.desk, page.panel, page.draw_tab)
            tab.lay_out()
        page.start()
        session = page.desk.sessions.of("visitor")
        opened = tab._draw_all(session)
        await anext(opened)
        mine = [update async for update in page.draw_tab.draw(session, page.panel.first)]
        assert len(tab._drawn) < 3
        rest = [update async for update in opened]
        page.desk.sessions.leave("visitor")
        page.close(PATIENCE)
        return page.desk.status, tab, mine, rest

    status, tab, mine, rest = asyncio.run(visit())
    assert "Drawn in" in mine[-1][status]
    assert rest[-1][tab.gallery].count("<img") > 24 and not any(status in update for update in rest)


def test_the_chips_are_the_models_words() -> None:
    assert DEMO.record is not None
    shown = re.findall('data-word="([^"]+)"', views.chips(DEMO.record.of_world().words))
    words = {word for phrase in shown for word in phrase.split()}
    assert words <= set(world.VOCABULARY) and set(world.PARTS) | set(world.OBJECTS) | set(world.COLORS) <= words


# -- the model --------------------------------------------------------------------------------------------------------


def test_the_sizes_of_the_demo_model_are_known_before_it_is_loaded(pipe: Any) -> None:
    assert DEMO.allowed == sizes_of(pipe)
    for size in DEMO.sizes:
        DEMO.allowed.check(parse_size(size))
    side = DEMO.allowed.longest
    assert draw(pipe, Request("a cat", steps=1, size=(side, 16))).guided[0].size == (side, 16)
    with pytest.raises(ValueError, match="multiples of 16 up to 256"):
        draw(pipe, Request("a cat", steps=1, size=(512, 512)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options("nowhere"), "no model folder nowhere"),
        (Options("/etc"), "no model_index.json"),
        (Options("../x/y"), "no model folder"),
        (Options("owner/name"), "add --download"),
        (Options("flux-kontext"), "edits a picture"),
    ],
)
def test_a_model_that_is_not_there_is_named(options: Options, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        describe_model(options)


def test_a_folder_gets_the_presets_of_its_pipeline(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    model = describe_model(Options(str(folder)))
    assert (
        not model.video and "sd3.5-large-turbo" in {choice.name for choice in model.choices} and model.name == "tiny"
    )
    preset = describe_model(Options("sd3.5-large-turbo", model_path=str(folder)))
    assert preset.defaults["vsf"] == VSF(3.5, 0.1, "upstream") and preset.steps == 8
    (folder / "model_index.json").write_text("[")
    with pytest.raises(ModelError, match="cannot be read"):
        describe_model(Options(str(folder)))


def test_a_video_preset_makes_a_video_page(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    options = Options("wan2.1-1.3b-causvid", model_path=str(tmp_path))
    model = describe_model(options)
    assert model.video and form.first_values(model)["frames"] == 81
    page = build_page(options)
    assert hasattr(page.draw_tab, "video") and "compare-go" not in {b.elem_id for b in page.blocks.blocks.values()}
    request = form.request_of(form.first_values(model) | {"prompt": "a", "negative": "b", "frames": 5}, model)
    assert request.extra["num_frames"] == 5 and request.size == (832, 480)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--label is .* holds no run"):
        pages.build(Options(label=str(tmp_path)))
