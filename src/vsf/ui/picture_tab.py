"""The tab a picture is drawn in: without and with the negative, where it acted, what changed, and how to draw it again."""

from __future__ import annotations

import asyncio
import functools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import gradio as gr

from ..images import compare_sheet, save_png
from ..prompt import describe_negative, parse_negative
from . import views
from .desk import Desk, Updates, html
from .form import request_of
from .panel import Panel
from .reproduce import command_line, python_code
from .sessions import Session
from .views import Tile
from .work import Outcome, picture

__all__ = ["DrawTab", "PictureTab"]

#: The entry of the block list that means all of them.
_ALL_MEAN = "all"
#: The picture, step and block that are shown; None: the mean of all.
Place = tuple[int, "int | None", "int | None"]


class DrawTab(ABC):
    """What the tabs for pictures and for videos share: drawing, and the code that draws it again."""

    files: gr.HTML

    def __init__(self, desk: Desk, panel: Panel) -> None:
        self.desk, self.panel = desk, panel

    @abstractmethod
    def lay_out(self) -> None: ...

    @property
    def shown(self) -> list[Any]:
        """What a new picture changes."""
        return [self.files, self.cli, self.python]

    @abstractmethod
    def show(self, session: Session, found: Outcome, place: Place = (0, None, None)) -> Updates:
        """Everything of the tab for a result that the session keeps."""

    def wire(self) -> None:
        panel = self.panel
        triggers = [panel.draw.click, panel.fields["prompt"].submit, panel.fields["negative"].submit]
        self.desk.on(triggers, self._draw, list(panel.fields.values()), self.shown)

    def _draw(self, session: Session, *values: Any) -> AsyncIterator[Updates]:
        return self.draw(session, self.panel.values(values))

    async def draw(self, session: Session, values: Mapping[str, Any]) -> AsyncIterator[Updates]:
        """Draw what the form asks for."""
        desk = self.desk
        asked = request_of(values, desk.model)
        job = desk.submit(session, picture(asked, desk.options.model, desk.model.video), asked.steps * asked.n)
        async for update in desk.follow(job):
            yield update
        found: Outcome = job.result()
        session.keep("picture", found)
        updates = await asyncio.to_thread(self.show, session, found)
        text = f"Drawn in {found.seconds:.1f} s."
        if not asked.guided:
            text += " Nothing was guided: " + ("the method is None." if asked.negative else "nothing is unwanted.")
        understood = describe_negative(asked.negative)
        text += "" if understood is None else f" Not wanted: {understood}."
        text += "".join(" " + views.sentence(note) for note in found.notes)
        text += desk.unknown_words(asked.prompt, *(item.text for item in parse_negative(asked.negative or "")))
        yield {**updates, **desk.say(text)}

    def _lay_out_again(self) -> None:
        with gr.Accordion("Draw it again: command line and Python", open=False, elem_id="again"):
            code = functools.partial(gr.Code, lines=1, interactive=False, show_line_numbers=False, wrap_lines=True)
            self.cli = code(label="Command line", language="shell", elem_id="cli")
            self.python = code(label="Python", language="python", elem_id="python")

    def _again(self, found: Outcome) -> Updates:
        about = found.request, self.desk.options, self.desk.model
        return {self.cli: command_line(*about), self.python: python_code(*about)}


class PictureTab(DrawTab):
    def lay_out(self) -> None:
        self.pictures = html(views.holes("Without", "With", "Wipe"), elem_id="pictures")
        self.which = gr.Radio([], label="Picture", visible=False, elem_id="which")
        with gr.Row(equal_height=False, elem_id="second"):
            with gr.Column(min_width=220):
                self.map = html(views.holes("Where it acted"), elem_id="map")
            with gr.Column(min_width=220):
                self.diff = html(views.holes("Difference"), elem_id="difference")
            with gr.Column(min_width=220, elem_id="scrub"):
                self.step = gr.Slider(0, 1, 0, step=1, label="Map at step", info="0: mean of all guided steps", buttons=[],
                                      elem_id="map-step", interactive=False)  # fmt: skip
                self.block = gr.Dropdown([_ALL_MEAN], value=_ALL_MEAN, label="Block of the model", elem_id="map-block",
                                         interactive=False, filterable=False)  # fmt: skip
                self.files = html(elem_id="files")
        self._lay_out_again()

    @property
    def shown(self) -> list[Any]:
        return [self.pictures, self.which, self.map, self.diff, self.step, self.block, *super().shown]

    def wire(self) -> None:
        super().wire()
        place = [self.which, self.step, self.block]
        for part in (self.step, self.block):
            self.desk.on(part.input, self._scrub, place, [self.map], trigger_mode="always_last")
        self.desk.on(self.which.input, self._pick, place, self.shown, trigger_mode="always_last")

    async def _scrub(self, session: Session, *place: Any) -> AsyncIterator[Updates]:
        """The map at another step or block."""
        found: Outcome = session.get("picture")
        yield {self.map: await asyncio.to_thread(self._map, session, found, _chosen(found, *place))}

    async def _pick(self, session: Session, *place: Any) -> AsyncIterator[Updates]:
        """Another picture of several."""
        found: Outcome = session.get("picture")
        session.keep("picture", found)
        yield await asyncio.to_thread(self.show, session, found, _chosen(found, *place))

    def show(self, session: Session, found: Outcome, place: Place = (0, None, None)) -> Updates:
        asked, drawn = found.request, found.drawn
        i, step, block = place
        address = functools.partial(self.desk.address, session, "picture")
        alt = f"{asked.prompt}, not {asked.negative}" if asked.negative else asked.prompt
        a = address("without.webp", views.display(drawn.plain[i]))
        b = address("with.webp", views.display(drawn.guided[i]))
        note = views.label_of(asked.guidance.label) if asked.guided else "nothing guided"
        row = (
            views.figure(Tile("Without", a, f"seed {asked.seed + i}", f"Without: {asked.prompt}"))
            + views.figure(Tile("With", b, note, f"With: {alt}")) + views.wipe(a, b, alt)
        )  # fmt: skip
        change, _, share = views.difference(drawn.plain[i], drawn.guided[i])
        changed = f"{share:.0%} of the pixels changed"
        diff = Tile("Difference", address("difference.webp", change), changed, f"Difference: {alt}")
        seeds = [(f"seed {asked.seed + k}", k) for k in range(asked.n)]
        files = [("Picture (PNG)", self._png(session, found, i)), ("Sheet (PNG)", self._sheet(session, found))]
        recorded = drawn.suppression
        return {
            self.pictures: f"<div class='tiles three' style='--columns:3'>{row}</div>",
            self.which: gr.update(choices=seeds, value=i, visible=asked.n > 1),
            self.map: self._map(session, found, place),
            self.diff: views.tiles([diff]),
            self.step: gr.update(
                maximum=max(recorded.steps) + 1 if recorded else 1,
                value=0 if step is None else step + 1,
                interactive=recorded is not None,
            ),
            self.block: gr.update(
                choices=[_ALL_MEAN, *(str(n) for n in (recorded.blocks if recorded else []))],
                value=_ALL_MEAN if block is None else str(block),
                interactive=recorded is not None,
            ),
            self.files: views.links(files)
            + "<p class=fine>The picture carries its settings: drop it on the left to restore them.</p>",
            **self._again(found),
        }

    def _png(self, session: Session, found: Outcome, i: int) -> str:
        name = f"vsf-{found.request.seed + i}.png"
        return session.file("picture", name, lambda path: save_png(found.drawn.guided[i], path, found.settings_of(i)))

    def _sheet(self, session: Session, found: Outcome) -> str:
        drawn = found.drawn
        try:
            image = compare_sheet(found.request, drawn)
        except ValueError:  # a model whose image tokens have no 2D grid
            image = compare_sheet(found.request, replace(drawn, suppression=None))
        return session.file("picture", "vsf-sheet.png", lambda path: save_png(image, path, found.settings))

    def _map(self, session: Session, found: Outcome, place: Place) -> str:
        """The map, in the place of the last one."""
        session.drop("map")
        recorded, (i, step, block) = found.drawn.suppression, place
        if recorded is None:
            kept = found.request.guidance.has_map
            return views.holes("Where it acted", note="no negative acted" if kept else "recorded for VSF only")
        if step is not None and step not in recorded.steps:
            return views.holes("Where it acted", note=f"step {step + 1} was not guided")
        try:
            image, most, mean = views.map_view(found.drawn, i, step, block)
        except ValueError:
            return views.holes("Where it acted", note="this model's image tokens have no 2D grid")
        note = f"up to {most:.0%} of the attention, {mean:.0%} on average"
        return views.tiles([Tile("Where it acted", self.desk.address(session, "map", "map.webp", image), note)])


def _chosen(found: Outcome, which: Any, step: Any, block: Any) -> Place:
    """What the scrubbers say."""
    i = which if isinstance(which, int) and 0 <= which < found.request.n else 0
    recorded = found.drawn.suppression
    at = int(step) - 1 if isinstance(step, (int, float)) and 1 <= step <= 1000 else None
    number = int(block) if isinstance(block, str) and block.isdecimal() and len(block) < 6 else None
    return i, at, number if recorded and number in recorded.blocks else None
