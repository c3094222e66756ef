"""The tab where people judge pictures without knowing what drew them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from html import escape
from typing import Any

import gradio as gr

from ..bench.judges.human import Labelling
from . import views
from .desk import Desk, Updates, html
from .sessions import Session
from .views import Tile

__all__ = ["LabelTab"]


class LabelTab:
    def __init__(self, desk: Desk, labels: Labelling) -> None:
        self.desk, self.labels = desk, labels

    def lay_out(self) -> None:
        html(f"<p class=sub>{escape(self.labels.heading)} Keys: 1, 2, 3 or arrows, U.</p>")
        with gr.Row(elem_id="labeller"):
            self.visitor = gr.Textbox(
                label="Your name", info="letters and digits; the same name goes on where it stopped", max_lines=1,
                max_length=24, elem_id="visitor", min_width=200,
            )  # fmt: skip
            self.begin = gr.Button("Begin", variant="primary", elem_id="begin", elem_classes="go")
        self.question = html(elem_id="question")
        self.key = gr.State("")
        with gr.Row(elem_id="answers"):
            self.answers = [
                gr.Button(f"Answer {i}", elem_id=f"answer-{i}", min_width=90, visible=False) for i in (1, 2, 3)
            ]
            self.undo = gr.Button("Undo (U)", elem_id="answer-u", min_width=90, visible=False, variant="stop")
        self.pictures = html(elem_id="label-pictures")

    def wire(self) -> None:
        on, outputs = self.desk.on, [self.question, self.pictures, self.key, self.undo, *self.answers]
        on([self.begin.click, self.visitor.submit], self._begin, [self.visitor], outputs)
        on(self.undo.click, self._undo, [self.visitor], outputs)
        for i, button in enumerate(self.answers):
            on(button.click, functools.partial(self._answer, i), [self.visitor, self.key], outputs)

    def _ask(self, session: Session, visitor: str) -> Updates:
        asked = self.labels.next(visitor)
        session.drop("label")
        hidden = {button: gr.update(visible=False) for button in self.answers}
        if asked is None:
            thanks = "<div class=question>That was the last one. Thank you.</div>"
            return {
                self.question: thanks,
                self.pictures: "",
                self.key: "",
                self.undo: gr.update(visible=True),
            } | hidden
        session.keep("label", True)
        only = asked.right is None and not asked.side
        sides = [
            ("Picture" if only else "Left", asked.left),
            *([("Right", asked.right)] if asked.right is not None else []),
        ]
        shown = [
            Tile(name, self.desk.address(session, "label", "side.webp", views.display(image)),
                 "this one" if asked.side == name.lower() else "")
            for name, image in sides
        ]  # fmt: skip
        side = f"{asked.side.capitalize()}: " if asked.side else ""
        text = f"<div class=question>{escape(side + asked.text)}<small>{asked.done + 1} of {asked.total}</small></div>"
        if asked.prompt:
            text += f"<p class=sub>{escape(asked.prompt)} <em>{escape(asked.negative)}</em></p>"
        buttons = {
            button: gr.update(
                value=f"{asked.choices[i]} ({i + 1})" if i < len(asked.choices) else "", visible=i < len(asked.choices)
            )
            for i, button in enumerate(self.answers)
        }
        return {
            self.question: text,
            self.pictures: views.tiles(shown, 2),
            self.key: asked.key,
            self.undo: gr.update(visible=True),
        } | buttons

    async def _begin(self, session: Session, visitor: Any) -> AsyncIterator[Updates]:
        """Somebody begins, or comes back."""
        yield {
            **await asyncio.to_thread(self._ask, session, str(visitor)),
            **self.desk.say(f"Labelling as {str(visitor)[:24]}."),
        }

    async def _answer(self, choice: int, session: Session, visitor: Any, key: Any) -> AsyncIterator[Updates]:
        """An answer, then the next question."""
        line = self.desk.say(f"Labelling as {str(visitor)[:24]}.")
        try:
            await asyncio.to_thread(self.labels.answer, str(visitor), str(key), choice)
        except ValueError as error:
            line = self.desk.say(views.sentence(str(error)), "bad")
        yield {**await asyncio.to_thread(self._ask, session, str(visitor)), **line}

    async def _undo(self, session: Session, visitor: Any) -> AsyncIterator[Updates]:
        """Take the last answer back."""
        await asyncio.to_thread(self.labels.undo, str(visitor))
        yield {**await asyncio.to_thread(self._ask, session, str(visitor)), **self.desk.say("Taken back.")}
