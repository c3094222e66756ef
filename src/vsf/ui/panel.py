"""The left side of the page: prompts, method, settings, and what fills them."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from ..guidance import METHODS, Knob
from ..images import CHUNK, parse_settings
from . import style, views
from .desk import Desk, Updates, html
from .form import OWN_SIZE, RANGE, fields_of, first_values, knob_fields, restore
from .guard import LONGEST_TEXT
from .sessions import Session

__all__ = ["Panel"]

#: What the page's script finds when it reads a picture, and what is said of it.
_FAULTS = {
    "kind": "the file {} is not a PNG picture",
    "damaged": "the picture {} is damaged",
    "none": f"the file {{}} holds no settings of vsf; its pictures carry them in the PNG text chunk {CHUNK!r}",
    "long": f"the settings in {{}} are longer than {LONGEST_TEXT} characters",
}


class Panel:
    """The form. `fields`: its components by the names of `vsf.ui.form`; `filled`: all that `fill` may change."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.first = first_values(desk.model)
        self.fields: dict[str, Any] = {}
        self._groups: dict[str, Any] = {}  # method -> its knobs

    @property
    def filled(self) -> list[Any]:
        return [*self.fields.values(), *([self.preset] if self.desk.model.choices else [])]

    def lay_out(self) -> None:
        model, first, add = self.desk.model, self.first, self.fields.__setitem__
        limit = model.limits.characters
        add("prompt", gr.Textbox(first["prompt"], label="Prompt", lines=1, max_lines=5, max_length=limit, elem_id="prompt",
                                 placeholder="What should be in the picture"))  # fmt: skip
        add("negative", gr.Textbox(first["negative"], label="Not wanted", lines=1, max_lines=4, max_length=limit,
                                   elem_id="negative", placeholder="wheels, or wheels:2, [basket:0.2,0.6]"))  # fmt: skip
        if model.record is not None:
            with gr.Accordion("Words this model knows", open=False, elem_id="words"):
                html(views.chips(model.record.of_world().words))
        self.draw = gr.Button("Draw", variant="primary", elem_id="draw")
        methods = [(views.label_of(m), m) for m in sorted(model.methods, key="none".__eq__)]
        add("method", gr.Radio(methods, value=first["method"], label="Method", elem_id="method"))
        if model.choices:
            shown = model.choices[0].name if model.defaults["vsf"] == model.choices[0].guidance else None
            self.preset = gr.Dropdown(
                [choice.name for choice in model.choices],
                value=shown,
                label="Preset",
                elem_id="preset",
                filterable=False,
            )
        for label in model.methods:
            own = [(name, knob) for name, owner, knob in knob_fields(model) if owner == label]
            if own:
                self._knobs(label, own)
        with gr.Row():
            add("steps", gr.Slider(1, model.limits.steps, first["steps"], step=1, label="Steps",
                                   elem_id="steps", buttons=[]))  # fmt: skip
        with gr.Row():
            # No limits here: what is too low is said by `request_of`, once.
            add("seed", gr.Number(first["seed"], label="Seed", precision=0, elem_id="seed", min_width=90))
            self.dice = gr.Button("Shuffle", elem_id="dice", size="md")
        with gr.Row():
            add("n", gr.Slider(1, model.limits.pictures, first["n"], step=1, label="Pictures", elem_id="n", buttons=[],
                               min_width=120, visible=not model.video))  # fmt: skip
            add("size", gr.Dropdown([OWN_SIZE, *model.sizes], value=first["size"], label="Size", allow_custom_value=True,
                                    elem_id="size", min_width=120))  # fmt: skip
        if model.video:
            add("frames", gr.Number(first["frames"], label="Frames", precision=0, elem_id="frames"))
        html("<p class=small>Restore the settings of a picture</p>")
        self.restore = html(views.drop_box(), elem_id="restore", js_on_load=style.RESTORE_JS)

    def _knobs(self, label: str, own: Sequence[tuple[str, Knob]]) -> None:
        """The knobs of a method, the range of steps and blocks folded away."""
        shown = label == self.first["method"]
        with gr.Column(visible=shown, elem_classes="knobs", elem_id=f"knobs-{label}") as self._groups[label]:
            for name, knob in own:
                if knob.name not in RANGE:
                    self._knob(name, knob)
            if METHODS[label].negative != "pipeline":
                with gr.Accordion("Which steps and blocks", open=False, elem_classes="range"):
                    for name, knob in own:
                        if knob.name in RANGE:
                            self._knob(name, knob)
                    self.fields[f"{label}.blocks"] = gr.Textbox(
                        "all", label="Blocks", info="such as 0-18,24; all", max_lines=1, max_length=80,
                        elem_id=f"{label}-blocks",
                    )  # fmt: skip

    def _knob(self, name: str, knob: Knob) -> None:
        """One field (or two) from the knob's own description."""
        value, title = self.first.get(name, knob.default), knob.name.capitalize()
        about: dict[str, Any] = {"info": knob.help, "elem_id": name.replace(".", "-")}
        if knob.choices:
            self.fields[name] = gr.Radio(list(knob.choices), value=value, label=title, **about)
            return
        on = bool(self.first.get(f"{name}?", True))
        if knob.optional:
            self.fields[f"{name}?"] = gr.Checkbox(
                on, label=f"{title}: limit the length", elem_id=f"{about['elem_id']}-on"
            )
        low, high = min(knob.low, float(value)), max(knob.high, float(value))
        self.fields[name] = gr.Slider(low, high, value, step=knob.step, label=title, buttons=[], visible=on, **about)

    def wire(self) -> None:
        """What fills the form."""
        desk = self.desk
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.dice.click(None, None, self.fields["seed"], js="() => Math.floor(Math.random() * 1000000)", **quiet)
        desk.on(self.fields["method"].change, self._show_method, [self.fields["method"]], list(self._groups.values()))
        if desk.model.choices:
            desk.on(self.preset.input, self._take_preset, [self.preset], self.filled)
            knobs = [field for name, field in self.fields.items() if "." in name or name == "method"]
            # Turned by hand: no preset any more.
            gr.on([knob.input for knob in knobs], None, None, self.preset, js="() => null", **quiet)
        for name, box in self.fields.items():
            if name.endswith("?"):
                field = self.fields[name[:-1]]
                desk.on(box.change, functools.partial(_shown, field), [box], [field])
        desk.on(self.restore.upload, self._take_picture, [], self.filled, picks=True)

    def values(self, given: Sequence[Any]) -> dict[str, Any]:
        """The form's values by name, from those of its fields in order."""
        return dict(zip(self.fields, given, strict=False))

    def fill(self, values: Mapping[str, Any], preset: str | None = None) -> Updates:
        """Updates that put values into the form (`preset`: whose they are); a slider grows where its range is too small."""
        ranges = {name: knob for name, _, knob in knob_fields(self.desk.model)}
        updates: Updates = {self.preset: preset} if self.desk.model.choices else {}
        for name, value in values.items():
            knob = ranges.get(name)
            more: dict[str, Any] = {}
            if knob is not None and not knob.choices:
                more = {"minimum": min(knob.low, value), "maximum": max(knob.high, value)}
                more |= {"visible": True} if knob.optional else {}
            updates[self.fields[name]] = gr.update(value=value, **more)
        return updates

    def offer_sizes(self) -> Updates:
        """The sizes of the model, once they are known."""
        return {
            self.fields["size"]: gr.update(
                choices=[OWN_SIZE, *self.desk.model.sizes], info=str(self.desk.model.allowed)
            )
        }

    async def _show_method(self, session: Session, method: Any) -> AsyncIterator[Updates]:
        yield {group: gr.update(visible=method == label) for label, group in self._groups.items()}

    async def _take_preset(self, session: Session, name: Any) -> AsyncIterator[Updates]:
        """The settings of a preset."""
        choice = next((c for c in self.desk.model.choices if c.name == name), None)
        if choice is not None:  # None also when a setting was turned by hand, which clears the list
            values = fields_of(choice.guidance, self.desk.model) | ({"steps": choice.steps} if choice.steps else {})
            yield self.fill(values, choice.name)

    async def _take_picture(self, session: Session, found: Any) -> AsyncIterator[Updates]:
        """The settings of a picture, which the page's script read out of it: the picture itself stays where it is."""
        found = found if isinstance(found, Mapping) else {}
        name, text = str(found.get("name"))[:60], found.get("text")
        if not isinstance(text, str):
            raise ValueError(_FAULTS.get(str(found.get("fault")), _FAULTS["kind"]).format(name))
        values, notes = restore(parse_settings(text, f"the settings in {name}", LONGEST_TEXT), self.desk.model)
        for note in notes:
            gr.Info(escape(note), title="Restored, but")
        yield {**self.fill(values), **self.desk.say(f"Settings restored from {name}. Press Draw.")}


async def _shown(field: Any, session: Session, on: Any) -> AsyncIterator[Updates]:
    yield {field: gr.update(visible=bool(on))}
