"""The page: its layout, and which click does what. The handlers are in `actions.py`, the HTML in `views.py`."""

from __future__ import annotations

import functools
from typing import Any

import gradio as gr

from ..guidance import METHODS, Knob
from . import style, views
from .actions import ALL_MEAN, Actions, holes, label_of
from .form import OWN_SIZE, RANGE, first_values, knob_fields, numeric, request_of
from .jobs import Device, Job
from .label import Labels, open_labels
from .model import Options, PageModel, describe_model, load
from .sessions import Sessions, private_folder
from .work import picture

__all__ = ["Page", "build"]


def _knob_label(knob: Knob) -> str:
    return knob.name.capitalize()


class Page(Actions):
    """A page for one model; `blocks` is what gradio serves."""

    def __init__(self, options: Options, labels: Labels | None) -> None:
        private_folder()
        self.options, self.labels = options, labels
        self.model: PageModel = describe_model(options)
        self.sessions = Sessions()
        self.device = Device(functools.partial(load, options))
        self.first = first_values(self.model)
        self.welcome: Job | None = None
        self.gallery_drawn: dict[str, tuple[Any, Any]] = {}
        if self.model.demo:
            request = request_of(self.first, self.model)
            self.welcome = self.device.submit(Job(picture(request, options.model)))
        self.fields: dict[str, Any] = {}  # name -> component
        self.groups: dict[str, Any] = {}  # method -> its knobs
        about = f"{options.model}, {options.device or 'device chosen at the start'}"
        with gr.Blocks(
            title="vsf", fill_width=True, analytics_enabled=False, delete_cache=(900, 3600), elem_id="page"
        ) as self.blocks:
            gr.HTML(style.HEADER(self.model.name, about), padding=False, js_on_load=None)
            with gr.Row(elem_id="main"):
                with gr.Column(elem_id="panel", scale=0, min_width=280):
                    self._panel()
                with gr.Column(elem_id="stage", scale=1, min_width=280):
                    self._stage()
            self._wire()
        # Handlers are async and only follow the device's own queue, so none of them waits for another.
        self.blocks.queue(default_concurrency_limit=None, api_open=False, max_size=256)

    # -- layout -------------------------------------------------------------------------------------------------------

    def _panel(self) -> None:
        model, first = self.model, self.first
        add = self.fields.__setitem__
        limit = model.limits.characters
        add("prompt", gr.Textbox(first["prompt"], label="Prompt", lines=1, max_lines=5, max_length=limit, elem_id="prompt",
                                 placeholder="What should be in the picture"))  # fmt: skip
        add("negative", gr.Textbox(first["negative"], label="Not wanted", lines=1, max_lines=4, max_length=limit,
                                   elem_id="negative", placeholder="wheels, or with weights wheels:2, basket"))  # fmt: skip
        if model.demo:
            with gr.Accordion("Words this model knows", open=False, elem_id="words"):
                gr.HTML(views.chips(_word_groups()), js_on_load=None)
        self.draw_button = gr.Button("Draw", variant="primary", elem_id="draw")
        methods = [m for m in model.methods if m != "none"] + ["none"]
        add(
            "method",
            gr.Radio([(label_of(m), m) for m in methods], value=first["method"], label="Method", elem_id="method"),
        )
        if model.choices:
            names = [choice.name for choice in model.choices]
            self.preset: Any = gr.Dropdown(names, value=names[0] if model.defaults["vsf"] == model.choices[0].guidance else None,
                                           label="Preset", elem_id="preset", filterable=False)  # fmt: skip
        for label in model.methods:
            if any(owner == label for _, owner, _ in knob_fields(model)):
                with gr.Column(
                    visible=label == first["method"], elem_classes="knobs", elem_id=f"knobs-{label}"
                ) as group:
                    own = [(name, knob) for name, owner, knob in knob_fields(model) if owner == label]
                    for name, knob in own:
                        if knob.name not in RANGE:
                            self._knob(name, knob)
                    if METHODS[label].negative != "pipeline":
                        with gr.Accordion("Which steps and blocks", open=False, elem_classes="range"):
                            for name, knob in own:
                                if knob.name in RANGE:
                                    self._knob(name, knob)
                            add(f"{label}.blocks", gr.Textbox("all", label="Blocks", info="such as 0-18,24; all", max_lines=1,
                                                              max_length=80, elem_id=f"{label}-blocks"))  # fmt: skip
                self.groups[label] = group
        with gr.Row():
            add("steps", gr.Slider(1, model.limits.steps, first["steps"], step=1, label="Steps",
                                   elem_id="steps", buttons=[]))  # fmt: skip
        with gr.Row():
            add("seed", gr.Number(first["seed"], label="Seed", precision=0, minimum=0, elem_id="seed", min_width=90))
            self.dice = gr.Button("Shuffle", elem_id="dice", size="md")
        with gr.Row():
            add("n", gr.Slider(1, model.limits.pictures, first["n"], step=1, label="Pictures", elem_id="n", buttons=[],
                               min_width=120, visible=not model.video))  # fmt: skip
            add("size", gr.Dropdown([OWN_SIZE, *model.sizes], value=first["size"], label="Size", allow_custom_value=True,
                                    elem_id="size", min_width=120))  # fmt: skip
        if model.video:
            add("frames", gr.Number(first["frames"], label="Frames", precision=0, minimum=1, elem_id="frames"))
        self._html("<p class=small>Restore the settings of a picture</p>")
        self.upload = gr.File(
            label="A picture of vsf (PNG)", show_label=False, file_types=[".png"], elem_id="restore", height=64
        )

    def _knob(self, name: str, knob: Knob) -> None:
        """One field (or two) from the knob's own description."""
        value, kind = self.first.get(name, knob.default), name.replace(".", "-")
        if knob.choices:
            self.fields[name] = gr.Radio(
                list(knob.choices), value=value, label=_knob_label(knob), info=knob.help, elem_id=kind
            )
            return
        slider = functools.partial(
            gr.Slider,
            min(knob.low, float(value)),
            max(knob.high, float(value)),
            value,
            step=knob.step,
            info=knob.help,
            elem_id=kind,
            buttons=[],
        )
        if knob.optional:
            on = self.first[f"{name}?"]
            box = gr.Checkbox(on, label=f"{_knob_label(knob)}: limit the length", elem_id=f"{kind}-on")
            field = slider(label=_knob_label(knob), visible=on)
            box.change(
                lambda on: gr.update(visible=bool(on)), box, field, show_progress="hidden", api_visibility="private"
            )
            self.fields[f"{name}?"], self.fields[name] = box, field
        else:
            self.fields[name] = slider(label=_knob_label(knob))

    def _html(self, value: str = "", **more: Any) -> Any:
        more.setdefault("js_on_load", None)
        return gr.HTML(value, padding=False, **more)

    def _stage(self) -> None:
        with gr.Row(elem_id="statusrow"):
            self.status = self._html(views.status("Loading the model"), elem_id="status")
            self.cancel = gr.Button("Cancel", elem_id="cancel", size="md", interactive=False)
        with gr.Tabs(elem_id="tabs"):
            if self.model.video:
                with gr.Tab("Video", id="video"):
                    self._video_tab()
            else:
                with gr.Tab("Picture", id="picture"):
                    self._picture_tab()
                with gr.Tab("Compare", id="compare"):
                    self._compare_tab()
                with gr.Tab("Sweep", id="sweep"):
                    self._sweep_tab()
            with gr.Tab("Gallery", id="gallery") as self.gallery_tab:
                self._gallery_tab()
            if self.labels is not None:
                with gr.Tab("Label", id="label"):
                    self._label_tab()

    def _reproduce(self) -> None:
        with gr.Accordion("Draw it again: command line and Python", open=False, elem_id="again"):
            self.cli = gr.Code(
                label="Command line",
                language="shell",
                lines=1,
                interactive=False,
                show_line_numbers=False,
                elem_id="cli",
                wrap_lines=True,
            )
            self.python = gr.Code(
                label="Python",
                language="python",
                lines=1,
                interactive=False,
                show_line_numbers=False,
                elem_id="python",
                wrap_lines=True,
            )

    def _picture_tab(self) -> None:
        self.pictures = self._html(holes("Without", "With", "Wipe"), elem_id="pictures")
        self.which = gr.Radio([], label="Picture", visible=False, elem_id="which")
        with gr.Row(equal_height=False, elem_id="second"):
            with gr.Column(min_width=220):
                self.map = self._html(holes("Where it acted"), elem_id="map")
            with gr.Column(min_width=220):
                self.diff = self._html(holes("Difference"), elem_id="difference")
            with gr.Column(min_width=220, elem_id="scrub"):
                self.step = gr.Slider(0, 1, 0, step=1, label="Map at step", info="0: mean of all guided steps", buttons=[],
                                      elem_id="map-step", interactive=False)  # fmt: skip
                self.block = gr.Dropdown([ALL_MEAN], value=ALL_MEAN, label="Block of the model", elem_id="map-block",
                                         interactive=False, filterable=False)  # fmt: skip
                self.files = self._html(elem_id="files")
        self._reproduce()

    def _compare_tab(self) -> None:
        self._html("<p class=sub>The same prompt, the same noise, every method with its settings from the left.</p>")
        self.compare_button = gr.Button(
            "Compare all methods", variant="primary", elem_id="compare-go", elem_classes="go"
        )
        self.compared = self._html(elem_id="compared")
        self.compare_files = self._html(elem_id="compare-files")

    def _sweep_tab(self) -> None:
        self._html(
            "<p class=sub>One setting against another, from the same noise. Click a picture to take its settings.</p>"
        )
        axes, ranges = _axes(str(self.first["method"]), self.model)
        self.axes: list[Any] = []
        for i, name in enumerate("xy"):
            low, high, count = ranges[i]
            with gr.Row(elem_id=f"axis-{name}"):
                self.axes.append(gr.Dropdown(axes if name == "x" else ["(one row)", *axes], value=axes[i] if i < len(axes) else
                                             "(one row)", label="Across" if name == "x" else "Down", min_width=120,
                                             filterable=False, elem_id=f"axis-{name}-knob"))  # fmt: skip
                self.axes.append(gr.Number(low, label="From", min_width=70, elem_id=f"axis-{name}-from"))
                self.axes.append(gr.Number(high, label="To", min_width=70, elem_id=f"axis-{name}-to"))
                self.axes.append(gr.Slider(1, 6, count, step=1, label="Values", min_width=110, buttons=[],
                                           elem_id=f"axis-{name}-count"))  # fmt: skip
        with gr.Row():
            self.sweep_button = gr.Button("Draw the grid", variant="primary", elem_id="sweep-go", elem_classes="go")
            self.animate_button = gr.Button("Animate across", elem_id="animate-go", elem_classes="go")
        self.swept = self._html(elem_id="swept", js_on_load=style.GRID_JS)
        self.animation = self._html(elem_id="animation")

    def _gallery_tab(self) -> None:
        self._html(
            "<p class=sub>What a negative prompt is good for. Choose one: its prompts go to the left, and it is drawn.</p>"
        )
        self.gallery = self._html(self.gallery_html(), elem_id="gallery", js_on_load=style.GRID_JS)

    def _video_tab(self) -> None:
        self.video = self._html(
            views.empty("No video yet", "Say what should be in it, and what should not, and press Draw."),
            elem_id="video",
        )
        self.files = self._html(elem_id="files")
        self._reproduce()

    def _label_tab(self) -> None:
        self._html(
            "<p class=sub>Two pictures of one request; nobody knows here which method drew which. Keys: 1, 2, 3, U.</p>"
        )
        with gr.Row(elem_id="labeller"):
            self.visitor = gr.Textbox(
                label="Your name", info="letters and digits; the same name goes on where it stopped", max_lines=1,
                max_length=24, elem_id="visitor", min_width=200,
            )  # fmt: skip
            self.begin = gr.Button("Begin", variant="primary", elem_id="begin", elem_classes="go")
        self.question = self._html(elem_id="question")
        self.label_key = gr.State("")
        with gr.Row(elem_id="answers"):
            self.answers = [
                gr.Button(f"Answer {i}", elem_id=f"answer-{i}", min_width=90, visible=False) for i in (1, 2, 3)
            ]
            self.undo = gr.Button("Undo (U)", elem_id="answer-u", min_width=90, visible=False, variant="stop")
        self.label_pictures = self._html(elem_id="label-pictures")

    # -- wiring -------------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        state = [self.status, self.cancel]
        fields = list(self.fields.values())
        shown = (
            [self.video, self.files, self.cli, self.python]
            if self.model.video
            else [
                self.pictures,
                self.which,
                self.map,
                self.diff,
                self.step,
                self.block,
                self.files,
                self.cli,
                self.python,
            ]
        )
        drawing: dict[str, Any] = {"fn": self.draw, "inputs": fields, "outputs": [*state, *shown], **quiet}
        self.blocks.load(self.hello, None, [*state, *shown], **quiet)
        self.blocks.unload(self.leave)
        gr.on([self.draw_button.click, self.fields["prompt"].submit, self.fields["negative"].submit], **drawing)
        self.cancel.click(self.stop, None, self.cancel, **quiet)
        self.dice.click(None, None, self.fields["seed"], js="() => Math.floor(Math.random() * 1000000)", **quiet)
        self.fields["method"].change(
            lambda method: [gr.update(visible=method == label) for label in self.groups],
            self.fields["method"], list(self.groups.values()), **quiet,
        )  # fmt: skip
        if self.model.choices:
            self.preset.input(self.take_preset, self.preset, [self.preset, *fields], **quiet)
            knobs = [field for name, field in self.fields.items() if "." in name or name == "method"]
            # Turned by hand: no preset any more.
            gr.on([knob.input for knob in knobs], None, None, self.preset, js="() => null", **quiet)
        form = [*fields, *([self.preset] if self.model.choices else [])]
        self.upload.upload(self.take_picture, self.upload, [*state, self.upload, *form], preprocess=False, **quiet)
        self.gallery.click(self.take_card, None, [*state, *form], **quiet).success(**drawing)
        self.gallery_tab.select(self.draw_gallery, None, [*state, self.gallery], **quiet)
        if self.labels is not None:
            outputs = [*state, self.question, self.label_pictures, self.label_key, self.undo, *self.answers]
            gr.on([self.begin.click, self.visitor.submit], self.ask, self.visitor, outputs, **quiet)
            self.undo.click(self.take_back, self.visitor, outputs, **quiet)
            for i, button in enumerate(self.answers):
                button.click(self.answer_with(i), [self.visitor, self.label_key], outputs, **quiet)
        if self.model.video:
            return
        scrub = [self.which, self.step, self.block]
        for part in (self.step, self.block):
            part.input(self.scrub, scrub, [*state, self.map], trigger_mode="always_last", **quiet)
        self.which.input(self.pick, scrub, [*state, *shown], trigger_mode="always_last", **quiet)
        self.compare_button.click(self.compare_all, fields, [*state, self.compared, self.compare_files], **quiet)
        self.sweep_button.click(self.sweep, [*fields, *self.axes], [*state, self.swept], **quiet)
        self.animate_button.click(self.animate, [*fields, *self.axes], [*state, self.animation], **quiet)
        self.swept.click(self.take_cell, None, [*state, *form], **quiet)
        self.fields["method"].change(
            functools.partial(_axis_updates, model=self.model), self.fields["method"], self.axes, **quiet
        )


def _axes(method: str, model: PageModel) -> tuple[list[str], list[tuple[float, float, int]]]:
    """The knobs a sweep of this method can run over, and (from, to, values) for the first two."""
    own = numeric(method)
    ranges: list[tuple[float, float, int]] = []
    for knob in list(own.values())[:2]:
        here = getattr(model.defaults[method], knob.name)
        high = min(knob.high, 2 * here) if here else knob.high
        ranges.append((knob.low, round(max(high, knob.low), 2), 4 if not ranges else 3))
    return list(own), [*ranges, *[(0.0, 1.0, 1)] * (2 - len(ranges))]


def _axis_updates(method: str, model: PageModel) -> list[Any]:
    names, ranges = _axes(method if method in METHODS else "none", model)
    updates: list[Any] = []
    for i in range(2):
        low, high, count = ranges[i]
        choices = names if i == 0 else ["(one row)", *names]
        value = names[i] if i < len(names) else (choices[0] if choices else None)
        updates += [gr.update(choices=choices, value=value), low, high, count]
    return updates


def _word_groups() -> list[tuple[str, list[str]]]:
    """The words of the demo world, by what they are."""
    from ..demo import world

    places = [world._BACKGROUND_PHRASE[name] for name in world.BACKGROUNDS]
    looks = ["plain", *world.STYLES[1:]]
    return [
        ("Parts", list(world.PARTS)),
        ("Things", list(world.OBJECTS)),
        ("Colours", list(world.COLORS)),
        ("Places", places),
        ("Looks", looks),
    ]


def build(options: Options | None = None, labels: Labels | None = None) -> gr.Blocks:
    """The page as `gr.Blocks`; the model loads in the background. Start it with `vsf.ui.serve`.

    Raises:
        ModelError: no such model here, or one that the page cannot draw with.
    """
    options = options or Options()
    if labels is None and options.label is not None:
        labels = open_labels(options.label)
    page = Page(options, labels)
    setattr(page.blocks, "vsf_page", page)  # noqa: B010  # keeps it alive, and lets the server close its device
    return page.blocks
