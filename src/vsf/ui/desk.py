"""What all parts of the page share: the model and its queue, the visitors, the status line, and how a click is answered."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from ..grammar import parse_size
from ..loading import ModelError
from ..outside import checked
from ..sizes import Sizes, sizes_of
from . import views
from .jobs import Busy, Cancelled, Device, Job
from .model import Options, PageModel, describe_model, load
from .sessions import Expired, Session, Sessions

__all__ = ["Desk", "Updates", "html"]

log = logging.getLogger("vsf.ui")

#: What a click changes: component -> its new value.
Updates = dict[Any, Any]
#: What a click does: `act(session, *values of the inputs)`, and for `picks` what was picked comes last.
Act = Callable[..., AsyncIterator[Updates]]

#: What is told to the visitor in its own words, with UnsupportedModel; anything else is a fault of ours.
_TOLD = (ValueError, TypeError, ModelError, Busy, Expired)


def _sentence(error: Exception) -> str:
    """What a visitor is told of an error."""
    import torch

    from ..arch import UnsupportedModel

    if isinstance(error, (*_TOLD, UnsupportedModel)):
        return views.sentence(str(error))
    if isinstance(error, torch.OutOfMemoryError):
        return "Out of memory: try a smaller size or fewer pictures."
    log.error("unexpected error in the page", exc_info=error)
    return "Something went wrong here. The server's log says what; your settings are kept."


class Desk:
    """One model, its visitors, and the line that tells them what is going on."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.model: PageModel = describe_model(options)
        self.sessions = Sessions()
        self.device = Device(functools.partial(load, options))

    def lay_out(self, text: str = "Loading the model", cancel: bool = True) -> None:
        """The status line and, with `cancel`, its button."""
        with gr.Row(elem_id="statusrow"):
            self.status = html(views.status(text), elem_id="status")
            self.cancel = gr.Button("Cancel", elem_id="cancel", size="md", interactive=False, visible=cancel)
        self.on(self.cancel.click, self._stop)

    def say(self, text: str, kind: str = "", share: float | None = None, busy: bool = False) -> Updates:
        """The status line (see `views.status`), and whether there is something to cancel."""
        return {self.status: views.status(text, kind, share), self.cancel: gr.update(interactive=busy)}

    def on(
        self,
        triggers: Any,
        act: Act,
        inputs: Sequence[Any] = (),
        outputs: Sequence[Any] = (),
        picks: bool = False,
        **more: Any,
    ) -> Any:
        """Answer an event with the updates that `act` yields; a stop or an error is a sentence, in the line and in a note.

        The values arrive as they were sent (gradio's own checks would speak before ours), but `checked`.
        """

        async def run(request: gr.Request, event: gr.EventData, *values: Any) -> AsyncIterator[Updates]:
            try:
                session = self.sessions.of(request.session_hash)
                given = checked([*values, event._data], "the request")
                async with aclosing(act(session, *given[: None if picks else -1])) as updates:  # pyright: ignore
                    async for update in updates:
                        yield update
            except Cancelled:
                yield self.say("Stopped. Nothing is left behind; draw again at any time.")
            except Exception as error:
                text = _sentence(error)
                gr.Warning(escape(text), title="Not done")
                yield self.say(text, "bad")

        return gr.on(
            triggers, run, list(inputs), [self.status, self.cancel, *outputs], preprocess=False, show_progress="hidden",
            api_visibility="private", **more,
        )  # fmt: skip

    def bye(self, request: gr.Request) -> None:
        """A visitor closes the page."""
        self.sessions.leave(request.session_hash)

    async def _stop(self, session: Session) -> AsyncIterator[Updates]:
        session.stop()
        yield {self.cancel: gr.update(interactive=False)}

    async def ready(self) -> AsyncIterator[Updates]:
        """Wait for the model, saying so. Raises ModelError."""
        self.device.start()
        while not self.device.loaded.is_set():
            yield self.say("Loading the model", "busy")
            await asyncio.sleep(0.25)
        if self.device.failure is not None:
            raise ModelError(self.device.failure)
        self._learn_sizes()

    def _learn_sizes(self) -> None:
        taken = sizes_of(self.device.pipe)
        taken = Sizes(taken.multiple, min(taken.longest, self.model.limits.side // taken.multiple * taken.multiple))
        if taken != self.model.allowed:
            offered = tuple(text for text in self.model.sizes if taken.takes(parse_size(text)))
            self.model = replace(self.model, allowed=taken, sizes=offered)

    def submit(self, session: Session, work: Callable[[Any, Job], Any], size: int) -> Job:
        """Put the visitor's work in the queue; `size` as for `Job`. Raises ValueError, Busy."""
        if session.job is not None and not session.job.finished.is_set():
            raise ValueError("one thing at a time: cancel what is running, or wait for it")
        session.job = self.device.submit(Job(work, size))
        return session.job

    def submit_aside(self, session: Session, work: Callable[[Any, Job], Any], size: int) -> Job:
        """The same for work that nobody asked for by name: the visitor's own goes on beside it. Raises Busy."""
        session.aside = self.device.submit(Job(work, size))
        return session.aside

    async def follow(self, job: Job) -> AsyncIterator[Updates]:
        """Status updates until the job is finished; it stops if nobody follows it any more."""
        last = None
        try:
            while not job.finished.is_set():
                line = self._line(job)
                if line != last:
                    last = line
                    yield self.say(*line, busy=True)
                await asyncio.sleep(0.04)
        finally:
            job.cancel()

    def _line(self, job: Job) -> tuple[str, str, float | None]:
        ahead = self.device.ahead(job)
        if not self.device.loaded.is_set():
            return "Loading the model", "busy", None
        if ahead:
            return f"Waiting: {ahead} before you", "busy", None
        text = f"Step {job.done} of {job.total}" if job.total else "Starting"
        text = f"{job.text}, {text.lower()}" if job.text else text
        return text, "busy", job.done / job.total if job.total else 0.0

    def unknown_words(self, *texts: str) -> str:
        """A sentence about words that an embedded model does not know."""
        if self.model.record is None:
            return ""
        words = ", ".join(f"“{word}”" for word in self.model.record.of_world().unknown_words(texts)[:5])
        return f" This model does not know {words}; to it they are all one unknown word." if words else ""

    def address(self, session: Session, kind: str, name: str, image: Any) -> str:
        """Where a picture for looking at is served."""
        return session.file(kind, name, functools.partial(views.save_view, image))


def html(value: str = "", **more: Any) -> gr.HTML:
    """HTML of ours."""
    more.setdefault("js_on_load", None)
    return gr.HTML(value, padding=False, **more)
