"""The tab where settings run over a range: a grid of pictures, or an animation."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from ..draw import Request
from ..guidance import METHODS, Guidance
from ..video import can_write, save_video
from . import style, views
from .desk import Desk, Updates, html
from .form import fields_of, numeric, request_of
from .model import PageModel
from .panel import Panel
from .sessions import Expired, Session
from .work import animate, draw_many, even_values

__all__ = ["GridTab"]

_ONE_ROW = "(one row)"


class GridTab:
    def __init__(self, desk: Desk, panel: Panel) -> None:
        self.desk, self.panel = desk, panel
        self.axes: list[Any] = []

    def lay_out(self) -> None:
        html(
            "<p class=sub>One setting against another, from the same noise. Click a picture to take its settings.</p>"
        )
        names, ranges = _axes(str(self.panel.first["method"]), self.desk.model)
        for i, axis in enumerate("xy"):
            low, high, count = ranges[i]
            choices = names if i == 0 else [_ONE_ROW, *names]
            with gr.Row(elem_id=f"axis-{axis}"):
                self.axes += [
                    gr.Dropdown(choices, value=names[i] if i < len(names) else _ONE_ROW, label="Down" if i else "Across",
                                min_width=120, filterable=False, elem_id=f"axis-{axis}-knob"),
                    gr.Number(low, label="From", min_width=70, elem_id=f"axis-{axis}-from"),
                    gr.Number(high, label="To", min_width=70, elem_id=f"axis-{axis}-to"),
                    gr.Slider(1, 6, count, step=1, label="Values", min_width=110, buttons=[],
                              elem_id=f"axis-{axis}-count"),
                ]  # fmt: skip
        with gr.Row():
            self.go = gr.Button("Draw the grid", variant="primary", elem_id="grid-go", elem_classes="go")
            self.animate = gr.Button("Animate across", elem_id="animate-go", elem_classes="go")
        self.cells = html(elem_id="cells", js_on_load=style.GRID_JS)
        self.animation = html(elem_id="animation")

    def wire(self) -> None:
        desk, panel = self.desk, self.panel
        inputs = [*panel.fields.values(), *self.axes]
        desk.on(self.go.click, self._draw, inputs, [self.cells])
        desk.on(self.animate.click, self._animate, inputs, [self.animation])
        desk.on(self.cells.click, self._take, [], panel.filled, picks=True)
        desk.on(panel.fields["method"].change, self._fit, [panel.fields["method"]], self.axes)

    async def _fit(self, session: Session, method: Any) -> AsyncIterator[Updates]:
        """The axes of another method."""
        names, ranges = _axes(method if method in METHODS else "none", self.desk.model)
        for i in range(2):
            choices = names if i == 0 else [_ONE_ROW, *names]
            value = names[i] if i < len(names) else (choices[0] if choices else None)
            yield dict(zip(self.axes[4 * i :], (gr.update(choices=choices, value=value), *ranges[i]), strict=False))

    async def _take(self, session: Session, pick: Any) -> AsyncIterator[Updates]:
        """A picture of the grid: its settings into the form."""
        cells: Mapping[str, Guidance] = session.get("cells")
        guidance = cells.get(str(pick.get("pick"))) if isinstance(pick, Mapping) else None
        if guidance is None:
            raise Expired("this grid is not kept any more; draw it again")
        yield {
            **self.panel.fill(fields_of(guidance, self.desk.model)),
            **self.desk.say("These settings are on the left now. Press Draw."),
        }

    def _asked(self, values: Sequence[Any], what: str) -> tuple[Request, list[tuple[str, list[float]]]]:
        """What the form asks for, and [(knob, its values)] across and down. Raises ValueError."""
        count = len(self.panel.fields)
        asked = replace(request_of(self.panel.values(values[:count]), self.desk.model), n=1)
        if not asked.guided:
            raise ValueError(f"say what is not wanted first, and choose a method: {what}")
        return asked, _chosen_axes(values[count:], asked.guidance.label)

    async def _draw(self, session: Session, *values: Any) -> AsyncIterator[Updates]:
        asked, axes = self._asked(values, "a grid of equal pictures shows nothing")
        (x, across), (y, down) = axes[0], axes[1] if len(axes) > 1 else ("", [0.0])
        made = {
            (r, c): replace(asked.guidance, **{x: column}, **({y: row} if y else {}))
            for r, row in enumerate(down)
            for c, column in enumerate(across)
        }
        requests = [(key, replace(asked, guidance=guidance)) for key, guidance in made.items()]
        job = self.desk.submit(
            session, draw_many(requests, "Picture", self.desk.options.model), asked.steps * len(made)
        )
        session.keep("grid", True)
        session.keep("cells", {f"{r},{c}": guidance for (r, c), guidance in made.items()})
        cells: dict[tuple[int, int], str] = {}

        def add() -> Updates:
            """What was drawn since."""
            for key, got, *_ in job.parts():
                if isinstance(got, str):  # one refused is all refused
                    job.cancel()
                    raise ValueError(got)
                cells[key] = self.desk.address(session, "grid", "cell.webp", views.upscale(got, 192))
            side = (y, [f"{v:g}" for v in down] if y else [""])
            return {self.cells: views.grid((x, [f"{v:g}" for v in across]), side, cells, asked.prompt)}

        yield add()
        async for update in self.desk.follow(job):
            yield {**update, **await asyncio.to_thread(add)}
        yield await asyncio.to_thread(add)
        job.result()
        yield self.desk.say(f"{len(cells)} pictures. Click one to take its settings.")

    async def _animate(self, session: Session, *values: Any) -> AsyncIterator[Updates]:
        asked, axes = self._asked(values, "an animation needs something that changes")
        knob, across = axes[0]
        moments = even_values(across[0], across[-1], 12 if len(across) > 1 else 1)
        job = self.desk.submit(
            session, animate(asked, knob, moments, self.desk.options.model), asked.steps * len(moments)
        )
        async for update in self.desk.follow(job):
            yield update
        job.result()
        frames: list[Any] = []
        for value, got, *_ in job.parts():
            if isinstance(got, str):
                raise ValueError(got)
            frames.append(views.with_caption(got, f"{knob} {value:.2f}"))
        frames += frames[-2:0:-1]  # there and back
        session.keep("animation", True)

        def save() -> list[tuple[str, str]]:
            write = functools.partial(save_video, frames, one_palette=True, fps=8)
            return [
                (suffix[1:].upper(), session.file("animation", f"vsf-{knob}{suffix}", write))
                for suffix in (".webp", ".gif", ".mp4")
                if suffix == ".webp" or can_write(suffix)
            ]

        yield self.desk.say("Writing the animation", "busy")
        files = await asyncio.to_thread(save)
        alt = escape(f"{asked.prompt}: {knob} from {across[0]:g} to {across[-1]:g}")
        shown = f'<img src="{escape(files[0][1])}" alt="{alt}">' + views.links(files)
        yield {self.animation: shown, **self.desk.say(f"{len(frames)} frames over {knob}.")}


def _axes(method: str, model: PageModel) -> tuple[list[str], list[tuple[float, float, int]]]:
    """The knobs a grid of this method can run over, and (from, to, values) for the first two."""
    own = numeric(method)
    ranges: list[tuple[float, float, int]] = []
    for knob in list(own.values())[:2]:
        here = getattr(model.defaults[method], knob.name)
        high = min(knob.high, 2 * here) if here else knob.high
        ranges.append((knob.low, round(max(high, knob.low), 2), 4 if not ranges else 3))
    return list(own), [*ranges, *[(0.0, 1.0, 1)] * (2 - len(ranges))]


def _chosen_axes(values: Sequence[Any], method: str) -> list[tuple[str, list[float]]]:
    """[(knob, its values)] across and down, from the fields of the grid. Raises ValueError."""
    own, found = numeric(method), list[tuple[str, list[float]]]()
    name = views.label_of(method)
    if not own:
        raise ValueError(f"{name} has no setting to run over; choose another method")
    for i in (0, 4):
        knob, low, high, count = values[i : i + 4]
        if i and knob not in own:
            break
        if knob not in own:
            raise ValueError(f"{name} has no setting {str(knob)[:40]}; it has {', '.join(own)}")
        if not all(isinstance(v, (int, float)) and abs(v) < 1e6 for v in (low, high)):
            raise ValueError(f"the range of {knob} is empty; give two numbers, From and To")
        steps = count if isinstance(count, (int, float)) else 1
        found.append((knob, even_values(float(low), float(high), int(max(1, min(6, steps))))))
    if len(found) == 2 and found[0][0] == found[1][0]:
        raise ValueError(f"both axes are {found[0][0]}; choose two settings, or one row")
    return found
