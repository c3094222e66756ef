"""The tab that shows what a negative prompt is good for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from . import style, views
from .desk import Desk, Updates, html
from .form import OWN_SIZE, fields_of, request_of
from .gallery import Example, groups
from .jobs import Job
from .panel import Panel
from .picture_tab import DrawTab
from .sessions import Session
from .work import picture

__all__ = ["GalleryTab"]


class GalleryTab:
    def __init__(self, desk: Desk, panel: Panel, draw_tab: DrawTab) -> None:
        self.desk, self.panel, self.draw_tab = desk, panel, draw_tab
        self._drawn: dict[str, tuple[Any, Any]] = {}  # the same for everyone

    def lay_out(self) -> None:
        html(
            "<p class=sub>What a negative prompt is good for. Choose one: its prompts go to the left, and it is drawn.</p>"
        )
        self.gallery = html(self._html(), elem_id="gallery", js_on_load=style.GRID_JS)

    def wire(self, opened: Any) -> None:
        """`opened`: the event of the tab being looked at."""
        fields, changed = list(self.panel.fields.values()), [*self.panel.filled, *self.draw_tab.shown]
        self.desk.on(self.gallery.click, self._take, fields, changed, picks=True)
        self.desk.on(opened, self._draw_all, [], [self.gallery])

    def _html(self, session: Session | None = None) -> str:
        found = []
        for g, group in enumerate(groups(self.desk.model)):
            cards = []
            for e, entry in enumerate(group.entries):
                key, addresses = f"{g}.{e}", list[str]()
                if session is not None and key in self._drawn:
                    addresses = [self.desk.address(session, "gallery", "card.webp", p) for p in self._drawn[key]]
                note = "drawn when chosen" if entry.seed is None else ""
                cards.append(views.GalleryEntry(key, entry.prompt, entry.negative, note, addresses))
            found.append(views.cards(group.title, group.text, cards))
        return "".join(found)

    async def _take(self, session: Session, *given: Any) -> AsyncIterator[Updates]:
        """An entry: its prompts into the form, and it is drawn."""
        *values, pick = given
        at = str(pick.get("pick", "")).split(".") if isinstance(pick, Mapping) else []
        model = self.desk.model
        entries = {f"{g}.{e}": x for g, group in enumerate(groups(model)) for e, x in enumerate(group.entries)}
        entry = entries.get(".".join(at))
        if entry is None:
            raise ValueError("there is no such entry in the gallery")
        chosen: dict[str, Any] = {"prompt": entry.prompt, "negative": entry.negative, "n": 1}
        preset = None
        if entry.seed is not None:
            recommended = model.choices[0]
            preset = recommended.name
            chosen |= {"seed": entry.seed, "size": OWN_SIZE, **fields_of(recommended.guidance, model)}
            chosen |= {"steps": recommended.steps or model.steps}
        yield {**self.panel.fill(chosen, preset), **self.desk.say(f"Drawing: {entry.prompt}, not {entry.negative}")}
        async for update in self.draw_tab.draw(session, self.panel.values(values) | chosen):
            yield update

    async def _draw_all(self, session: Session) -> AsyncIterator[Updates]:
        """Draw the pictures of the gallery, once for all visitors."""
        wanted = [
            (f"{g}.{e}", entry)
            for g, group in enumerate(groups(self.desk.model))
            for e, entry in enumerate(group.entries)
            if entry.seed is not None and f"{g}.{e}" not in self._drawn
        ]
        if "gallery" in session.kept and not wanted:
            return
        before = session.job
        for number, (key, entry) in enumerate(wanted):
            if key in self._drawn:  # another visitor's came first
                continue
            job = self.desk.submit_aside(
                session, self._picture(key, entry, number, len(wanted)), self.desk.model.steps
            )
            async for update in self.desk.follow(job):
                if session.job is before:  # who draws meanwhile reads of that
                    yield update
            job.result()
        if wanted and session.job is before:
            yield self.desk.say("Ready. Choose an entry.")
        session.keep("gallery", True)
        yield {self.gallery: await asyncio.to_thread(self._html, session)}

    def _picture(self, key: str, entry: Example, number: int, total: int) -> Callable[[Any, Job], None]:
        """Work that draws one entry: a visitor's own picture waits for one of the gallery and not for all."""

        def work(pipe: Any, job: Job) -> None:
            job.step(number, total, "Gallery")
            own = self.panel.first | {"n": 1, "prompt": entry.prompt, "negative": entry.negative, "seed": entry.seed}
            request = request_of(own, self.desk.model)
            drawn = picture(request, self.desk.options.model)(pipe, Job(lambda *_: None)).drawn
            self._drawn[key] = (views.upscale(drawn.plain[0], 192), views.upscale(drawn.guided[0], 192))

        return work
