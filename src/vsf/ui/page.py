"""The page: a panel on the left, tabs on the right, one model behind them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import gradio as gr

from ..bench.judges import LabelSession
from ..bench.judges.human import Labelling
from ..bench.run import Run, RunError
from . import style
from .compare_tab import CompareTab
from .desk import Desk, Updates
from .folder import private_folder
from .form import request_of
from .gallery_tab import GalleryTab
from .grid_tab import GridTab
from .jobs import Device, Job
from .label_tab import LabelTab
from .lean import LeanBlocks
from .model import Options
from .panel import Panel
from .picture_tab import PictureTab
from .sessions import Session
from .video_tab import VideoTab
from .work import picture

__all__ = ["LabelPage", "Page", "build", "build_labels"]


@contextmanager
def _frame(desk: Desk, name: str, about: str) -> Iterator[gr.Blocks]:
    """What gradio serves, with the top of the page; the block lays out the rest."""
    # gradio's own statistics of every request take longer than the request, and grow.
    os.environ |= {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(2**62)}
    with LeanBlocks(title="vsf", fill_width=True, analytics_enabled=False, elem_id="page") as blocks:
        gr.HTML(style.HEADER(name, about), padding=False, js_on_load=None)
        with gr.Row(elem_id="main"):
            yield blocks
        blocks.unload(desk.bye)
    # Handlers are async and only follow the device's own queue, so none of them waits for another.
    blocks.max_threads = 256
    blocks.queue(default_concurrency_limit=None, api_open=False, max_size=256)


class LabelPage:
    """A page for labelling alone, which needs no model."""

    def __init__(self, labels: Labelling) -> None:
        private_folder()
        desk = Desk(Options())
        tab = LabelTab(desk, labels)
        with _frame(desk, "Labelling", str(labels.folder)) as self.blocks, gr.Column(elem_id="stage"):
            desk.lay_out("Type your name, then Begin.", cancel=False)
            tab.lay_out()
            tab.wire()

    def start(self) -> None:
        """Nothing has to be loaded."""

    def close(self, timeout: float) -> None:
        """Nothing is at work."""


class Page:
    """A page for one model; `blocks` is what gradio serves."""

    def __init__(self, options: Options, labels: Labelling | None) -> None:
        private_folder()
        self.desk = Desk(options)
        self.panel = Panel(self.desk)
        self._welcome: Job | None = None
        if self.desk.model.record is not None:
            request = request_of(self.panel.first, self.desk.model)
            self._welcome = self.device.submit(Job(picture(request, options.model)))
        about = f"{options.model}, {options.device or 'device chosen at the start'}"
        with _frame(self.desk, self.desk.model.name, about) as self.blocks:
            with gr.Column(elem_id="panel", scale=0, min_width=280):
                self.panel.lay_out()
            with gr.Column(elem_id="stage", scale=1, min_width=280):
                self.desk.lay_out()
                self._tabs(labels)
            self.panel.wire()
            self.desk.on(self.blocks.load, self._hello, [], [self.panel.fields["size"], *self.draw_tab.shown])

    def start(self) -> None:
        """Begin to load the model."""
        self.device.start()

    def close(self, timeout: float) -> None:
        """Stop what is at work; waits so many seconds for it."""
        self.device.close(timeout)

    @property
    def device(self) -> Device:
        return self.desk.device

    def _tabs(self, labels: Labelling | None) -> None:
        desk, panel = self.desk, self.panel
        video = desk.model.video
        self.draw_tab = VideoTab(desk, panel) if video else PictureTab(desk, panel)
        gallery = GalleryTab(desk, panel, self.draw_tab)
        more = [] if video else [("Compare", CompareTab(desk, panel)), ("Grid", GridTab(desk, panel))]
        more += [] if labels is None else [("Label", LabelTab(desk, labels))]
        with gr.Tabs(elem_id="tabs"):
            for name, tab in [("Video" if video else "Picture", self.draw_tab), *more]:
                with gr.Tab(name, id=name.lower()):
                    tab.lay_out()
                tab.wire()
                if name == ("Video" if video else "Grid"):
                    with gr.Tab("Gallery", id="gallery") as opened:
                        gallery.lay_out()
                    gallery.wire(opened.select)

    async def _hello(self, session: Session) -> AsyncIterator[Updates]:
        """A visitor comes: say whether the model is there, and show a first picture of the demo model."""
        desk = self.desk
        async for update in desk.ready():
            yield update
        if self._welcome is None:
            yield {**self.panel.offer_sizes(), **desk.say("Ready.")}
            return
        while not self._welcome.finished.is_set():
            await asyncio.sleep(0.05)
        found = self._welcome.result()
        if session.job is not None:  # drawing already, and that is what they will see
            yield self.panel.offer_sizes()
            return
        session.keep("picture", found)
        yield {
            **await asyncio.to_thread(self.draw_tab.show, session, found),
            **self.panel.offer_sizes(),
            **desk.say("Ready. Change anything, then Draw."),
        }


def build(options: Options | None = None) -> gr.Blocks:
    """The page as `gr.Blocks`; the model loads in the background. Start it with `vsf.ui.serve`.

    Raises:
        ModelError: no such model here, or one that the page cannot draw with.
        ValueError: what is to be labelled is no run.
    """
    options = options or Options()
    try:
        labels = None if options.label is None else LabelSession(Run.open(options.label))
    except (RunError, OSError) as error:
        raise ValueError(f"--label is {options.label}: {error}") from error
    return _kept(Page(options, labels))


def build_labels(labels: Labelling) -> gr.Blocks:
    """A page for labelling alone, likewise."""
    return _kept(LabelPage(labels))


def _kept(page: Page | LabelPage) -> gr.Blocks:
    setattr(page.blocks, "vsf_page", page)  # noqa: B010  # keeps it alive, and lets the server start and close it
    return page.blocks
