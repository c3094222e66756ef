"""The tab where one request is drawn with every method, from the same noise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import gradio as gr

from ..guidance import Guidance, describe
from ..images import Card, save_png, sheet
from . import views
from .desk import Desk, Updates, html
from .form import guidance_of, request_of
from .panel import Panel
from .sessions import Session
from .views import Tile
from .work import compare

__all__ = ["CompareTab"]


class CompareTab:
    def __init__(self, desk: Desk, panel: Panel) -> None:
        self.desk, self.panel = desk, panel

    def lay_out(self) -> None:
        html("<p class=sub>The same prompt, the same noise, every method with its settings from the left.</p>")
        self.go = gr.Button("Compare all methods", variant="primary", elem_id="compare-go", elem_classes="go")
        self.compared = html(elem_id="compared")
        self.files = html(elem_id="compare-files")

    def wire(self) -> None:
        self.desk.on(self.go.click, self._compare, list(self.panel.fields.values()), [self.compared, self.files])

    async def _compare(self, session: Session, *values: Any) -> AsyncIterator[Updates]:
        desk, form = self.desk, self.panel.values(values)
        asked = request_of(form, desk.model, "vsf")
        if not asked.guided:
            raise ValueError("say what is not wanted first: without it all methods draw the same picture")
        methods: dict[str, Any] = {"none": None}
        methods |= {label: guidance_of(form, label, desk.model) for label in desk.model.methods if label != "none"}
        job = desk.submit(session, compare(asked, methods, desk.options.model), asked.steps * len(methods))
        session.keep("compare", True)
        done = {label: Tile(views.title_of(label), "") for label in methods}
        pictures: list[tuple[str, Any]] = []
        settings: Mapping[str, Any] = {}

        def add() -> Updates:
            """What was drawn since."""
            nonlocal settings
            for label, got, seconds, made in job.parts():
                title = views.title_of(label)
                if isinstance(got, str):
                    done[label] = Tile(title, "", views.sentence(got))
                    continue
                pictures.append((title, got))
                settings = made if label == "vsf" else settings
                address = desk.address(session, "compare", f"{label}.webp", views.display(got))
                done[label] = Tile(title, address, _in_words(methods[label], seconds), f"{title}: {asked.prompt}")
            return {self.compared: views.tiles(list(done.values()), 3)}

        yield {**add(), self.files: ""}
        async for update in desk.follow(job):
            yield {**update, **await asyncio.to_thread(add)}
        yield await asyncio.to_thread(add)
        job.result()
        image = await asyncio.to_thread(sheet, [Card(asked.prompt, asked.negative, pictures)])
        address = session.file("compare", "vsf-compare.png", lambda path: save_png(image, path, settings))
        links = views.links([("Sheet of all methods (PNG)", address)])
        yield {self.files: links, **desk.say(f"Compared {len(pictures)} methods.")}


def _in_words(guidance: Guidance | None, seconds: float) -> str:
    words = describe(guidance.settings()).partition(": ")[2] if guidance else ""
    return f"{words} · {seconds:.2f} s" if words else f"{seconds:.2f} s"
