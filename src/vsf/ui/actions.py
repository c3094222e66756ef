"""What happens at a click: handlers of the page's events. They follow the device's queue and never draw themselves."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..cli.common import Problem
from ..draw import ModelError
from ..guidance import Guidance
from ..images import read_settings, save_png
from ..prompt import parse_negative
from . import views
from .form import OWN_SIZE, fields_of, guidance_of, knob_fields, numeric, request_of, restore
from .gallery import groups
from .jobs import Busy, Cancelled, Device, Job
from .label import Labels
from .model import Options, PageModel
from .reproduce import command_line, python_code
from .sessions import Expired, Session, Sessions, private_folder
from .views import Tile
from .work import Picture, animate, compare, draw_many, picture, sweep_values

__all__ = ["ALL_MEAN", "Actions", "holes", "label_of"]

log = logging.getLogger("vsf.ui")

#: What is told to the visitor in its own words, with UnsupportedModel; anything else is a fault of ours.
_TOLD = (ValueError, TypeError, ModelError, Busy, Expired, Problem)
#: The entry of the block list that means all of them.
ALL_MEAN = "all"


def label_of(method: str) -> str:
    return "None" if method == "none" else method.upper()


def _title(method: str) -> str:
    return "No guidance" if method == "none" else method.upper()


def _told(handler: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """Errors of a handler become a sentence in the status line and a note; a stop becomes "Stopped"."""

    @functools.wraps(handler)
    async def wrapped(self: Actions, *args: Any) -> AsyncIterator[Any]:
        try:
            async for update in handler(self, *args):
                yield update
        except Cancelled:
            yield self._say("Stopped. Nothing is left behind; draw again at any time.")
        except _TOLD as error:
            text = views.sentence(str(error))
            gr.Warning(escape(text), title="Not done")
            yield self._say(text, "bad")
        except Exception as error:
            text = _unexpected(error)
            gr.Warning(escape(text), title="Not done")
            yield self._say(text, "bad")

    return wrapped


def _unexpected(error: Exception) -> str:
    import torch

    from ..arch import UnsupportedModel

    if isinstance(error, UnsupportedModel):
        return views.sentence(str(error))
    if isinstance(error, torch.OutOfMemoryError):
        return "Out of memory: try a smaller size or fewer pictures."
    log.error("unexpected error in the page", exc_info=error)
    return "Something went wrong here. The server's log says what; your settings are kept."


class Actions:
    """The handlers. The components they speak of are made by `vsf.ui.page.Page`."""

    options: Options
    labels: Labels | None
    model: PageModel
    sessions: Sessions
    device: Device
    first: dict[str, Any]
    welcome: Job | None
    gallery_drawn: dict[str, tuple[Any, Any]]
    fields: dict[str, Any]
    #: Components by their attribute's name (`status`, `pictures`, ...).
    status: Any
    cancel: Any
    preset: Any
    pictures: Any
    which: Any
    map: Any
    diff: Any
    step: Any
    block: Any
    files: Any
    cli: Any
    python: Any
    video: Any
    upload: Any
    compared: Any
    compare_files: Any
    swept: Any
    animation: Any
    gallery: Any
    question: Any
    label_pictures: Any
    label_key: Any
    undo: Any
    answers: list[Any]

    # -- what handlers share ------------------------------------------------------------------------------------------

    def _say(self, text: str, kind: str = "", share: float | None = None, busy: bool = False) -> dict[Any, Any]:
        return {self.status: views.status(text, kind, share), self.cancel: gr.update(interactive=busy)}

    def _values(self, values: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(self.fields, values, strict=False))

    def _fill(self, values: Mapping[str, Any], preset: str | None = None) -> dict[Any, Any]:
        """Updates that put values into the form (`preset`: whose they are); a slider grows where its range is too small."""
        ranges = {name: knob for name, _, knob in knob_fields(self.model)}
        updates: dict[Any, Any] = {self.preset: preset} if self.model.choices else {}
        for name, value in values.items():
            knob = ranges.get(name)
            more: dict[str, Any] = {}
            if knob is not None and not knob.choices:
                more = {"minimum": min(knob.low, value), "maximum": max(knob.high, value)}
                more |= {"visible": True} if knob.optional else {}
            updates[self.fields[name]] = gr.update(value=value, **more)
        return updates

    def _submit(self, session: Session, work: Callable[[Any, Job], Any]) -> Job:
        if session.job is not None and not session.job.finished.is_set():
            raise ValueError("one thing at a time: cancel what is running, or wait for it")
        session.job = self.device.submit(Job(work))
        return session.job

    async def _follow(self, job: Job) -> AsyncIterator[dict[Any, Any]]:
        """Status updates until the job is finished."""
        last = None
        while not job.finished.is_set():
            line = self._line(job)
            if line != last:
                last = line
                yield self._say(*line, busy=True)
            await asyncio.sleep(0.04)

    def _line(self, job: Job) -> tuple[str, str, float | None]:
        ahead = self.device.ahead(job)
        if not self.device.loaded.is_set():
            return "Loading the model", "busy", None
        if ahead:
            return f"Waiting: {ahead} before you", "busy", None
        text = f"Step {job.done} of {job.total}" if job.total else "Starting"
        return (
            (f"{job.text}, {text.lower()}" if job.text else text),
            "busy",
            job.done / job.total if job.total else 0.0,
        )

    def _warn_of_unknown(self, *texts: str) -> str:
        if not self.model.demo:
            return ""
        from ..demo.model import unknown_words

        unknown = unknown_words(list(texts))
        if not unknown:
            return ""
        words = ", ".join(f"“{word}”" for word in unknown[:5])
        return f" This model does not know {words}; to it they are all one unknown word."

    # -- the picture --------------------------------------------------------------------------------------------------

    @_told
    async def hello(self, request: gr.Request) -> AsyncIterator[Any]:
        """A visitor comes: say whether the model is there, and show a first picture of the demo model."""
        session = self.sessions.of(request.session_hash)
        self.device.start()
        while not self.device.loaded.is_set():
            yield self._say("Loading the model", "busy")
            await asyncio.sleep(0.25)
        if self.device.failure is not None:
            raise ModelError(self.device.failure)
        if self.welcome is None:
            yield self._say("Ready.")
            return
        while not self.welcome.finished.is_set():
            await asyncio.sleep(0.05)
        found = self.welcome.result()
        session.keep("picture", found)
        yield {
            **await asyncio.to_thread(self._show, session, found, 0, None, None),
            **self._say("Ready. Change anything, then Draw."),
        }

    def leave(self, request: gr.Request) -> None:
        """A visitor closes the page."""
        self.sessions.leave(request.session_hash)

    def stop(self, request: gr.Request) -> Any:
        """Cancel."""
        job = self.sessions.of(request.session_hash).job
        if job is not None:
            job.cancel()
        return gr.update(interactive=False)

    @_told
    async def draw(self, request: gr.Request, *values: Any) -> AsyncIterator[Any]:
        session = self.sessions.of(request.session_hash)
        asked = request_of(self._values(values), self.model)
        job = self._submit(session, picture(asked, self.options.model, self.model.video))
        async for update in self._follow(job):
            yield update
        found: Picture = job.result()
        session.keep("picture", found)
        show = self._show_video if self.model.video else self._show
        updates = await asyncio.to_thread(show, session, found, 0, None, None)
        text = f"Drawn in {found.seconds:.1f} s."
        if not asked.guided:
            text += " Nothing was guided: " + ("the method is None." if asked.negative else "nothing is unwanted.")
        text += "".join(" " + views.sentence(note) for note in found.notes)
        warning = self._warn_of_unknown(asked.prompt, *(item.text for item in parse_negative(asked.negative or "")))
        yield {**updates, **self._say(text + warning)}

    def _address(self, session: Session, kind: str, name: str, image: Any) -> str:
        return session.file(kind, name, functools.partial(views.save_view, image))

    def _show(self, session: Session, found: Picture, i: int, step: int | None, block: int | None) -> dict[Any, Any]:
        """Everything of the Picture tab, for picture i."""
        asked, drawn = found.request, found.drawn
        address = functools.partial(self._address, session, "picture")
        plain, guided = drawn.plain[i], drawn.guided[i]
        alt = f"{asked.prompt}, not {asked.negative}" if asked.negative else asked.prompt
        a = address("without.webp", views.display(plain))
        b = address("with.webp", views.display(guided))
        note = label_of(asked.guidance.label) if asked.guided else "nothing guided"
        without = Tile("Without", a, f"seed {asked.seed + i}", f"Without: {asked.prompt}")
        with_ = Tile("With", b, note, f"With: {alt}")
        row = (
            "<div class='tiles three' style='--columns:3'>"
            + views.figure(without) + views.figure(with_) + views.wipe(a, b, alt) + "</div>"
        )  # fmt: skip
        change, most, share = views.difference(plain, guided)
        diff = Tile(
            "Difference",
            address("difference.webp", change),
            f"{share:.0%} of the pixels changed",
            f"Difference: {alt}",
        )
        seeds = [(f"seed {asked.seed + k}", k) for k in range(asked.n)]
        files = [("Picture (PNG)", self._png(session, found, i)), ("Sheet (PNG)", self._sheet(session, found))]
        recorded = drawn.suppression
        blocks = [] if recorded is None else recorded.blocks
        return {
            self.pictures: row,
            self.which: gr.update(choices=seeds, value=i, visible=asked.n > 1),
            self.map: self._map(session, found, i, step, block),
            self.diff: views.tiles([diff]),
            self.step: gr.update(
                maximum=max(recorded.steps) + 1 if recorded else 1,
                value=0 if step is None else step + 1,
                interactive=recorded is not None,
            ),
            self.block: gr.update(
                choices=[ALL_MEAN, *(str(n) for n in blocks)],
                value=ALL_MEAN if block is None else str(block),
                interactive=recorded is not None,
            ),
            self.files: views.links(files)
            + "<p class=fine>The picture carries its settings: drop it on the left to restore them.</p>",
            self.cli: command_line(asked, self.options, self.model),
            self.python: python_code(asked, self.options, self.model),
        }

    def _png(self, session: Session, found: Picture, i: int) -> str:
        name = f"vsf-{found.request.seed + i}.png"
        return session.file("picture", name, lambda path: save_png(found.drawn.guided[i], path, found.settings_of(i)))

    def _sheet(self, session: Session, found: Picture) -> str:
        from ..cli.generate import compare_sheet

        drawn = found.drawn
        try:
            image = compare_sheet(found.request, drawn)
        except ValueError:  # a model whose image tokens have no 2D grid
            image = compare_sheet(found.request, replace(drawn, suppression=None))
        return session.file("picture", "vsf-sheet.png", lambda path: save_png(image, path, found.settings))

    def _map(self, session: Session, found: Picture, i: int, step: int | None, block: int | None) -> str:
        recorded = found.drawn.suppression
        if recorded is None:
            why = "no negative acted" if found.request.guidance.label == "vsf" else "recorded for VSF only"
            return holes("Where it acted", why)
        if step is not None and step not in recorded.steps:
            return holes("Where it acted", f"step {step + 1} was not guided")
        try:
            image, most, mean = views.map_view(found.drawn, i, step, block)
        except ValueError:
            return holes("Where it acted", "this model's image tokens have no 2D grid")
        note = f"up to {most:.0%} of the attention, {mean:.0%} on average"
        return views.tiles([Tile("Where it acted", self._address(session, "map", "map.webp", image), note)])

    @_told
    async def scrub(self, request: gr.Request, which: Any, step: Any, block: Any) -> AsyncIterator[Any]:
        """The map at another step or block."""
        session = self.sessions.of(request.session_hash)
        found: Picture = session.get("picture")
        i, at, site = _chosen(found, which, step, block)
        session.drop("map")
        yield {self.map: await asyncio.to_thread(self._map, session, found, i, at, site)}

    @_told
    async def pick(self, request: gr.Request, which: Any, step: Any, block: Any) -> AsyncIterator[Any]:
        """Another picture of several."""
        session = self.sessions.of(request.session_hash)
        found: Picture = session.get("picture")
        session.keep("picture", found)
        yield await asyncio.to_thread(self._show, session, found, *_chosen(found, which, step, block))

    # -- video --------------------------------------------------------------------------------------------------------

    def _show_video(self, session: Session, found: Picture, i: int, step: Any, block: Any) -> dict[Any, Any]:
        from ..video import can_write, side_by_side

        asked, drawn, fps = found.request, found.drawn, self.model.fps
        shown: list[Tile] = []
        for name, frames in (("Without", drawn.plain[i]), ("With", drawn.guided[i])):
            frames = [views.display(frame) for frame in frames]
            address = session.file(
                "picture", f"{name.lower()}.webp", lambda p, f=frames: views.save_animation(f, p, fps)
            )
            shown.append(Tile(name, address, f"{len(frames)} frames", f"{name}: {asked.prompt}"))
        both = side_by_side(drawn.plain[i], drawn.guided[i])
        files = []
        for what, frames in (("Video", drawn.guided[i]), ("Side by side", both)):
            for suffix in (".mp4", ".gif", ".webp"):
                if suffix == ".webp" or can_write(suffix):
                    address = session.file(
                        "picture",
                        f"vsf-{asked.seed}{suffix}",
                        lambda p, f=frames: views.save_animation(f, p, fps, found.settings),
                    )
                    files.append((f"{what} ({suffix[1:].upper()})", address))
        first = session.file("picture", "first-frame.png", lambda p: save_png(drawn.guided[i][0], p, found.settings))
        files.append(("First frame (PNG with the settings)", first))
        return {
            self.video: views.tiles(shown),
            self.files: views.links(files),
            self.cli: command_line(asked, self.options, self.model),
            self.python: python_code(asked, self.options, self.model),
        }

    # -- settings -----------------------------------------------------------------------------------------------------

    def take_preset(self, name: str | None) -> dict[Any, Any]:
        """The settings of a preset."""
        choice = next((c for c in self.model.choices if c.name == name), None)
        if choice is None:  # also when a setting was turned by hand, which clears the list
            return {self.preset: gr.skip()}
        values = fields_of(choice.guidance, self.model) | ({"steps": choice.steps} if choice.steps else {})
        return self._fill(values, name)

    @_told
    async def take_picture(self, file: Any) -> AsyncIterator[Any]:
        """The settings of an uploaded picture. The file is read once and removed."""
        yield {self.upload: None}
        path = Path(str(file.get("path", ""))).resolve() if isinstance(file, Mapping) else None
        if path is None or not path.is_relative_to(private_folder().resolve()) or not path.is_file():
            raise ValueError("no picture was uploaded")
        try:
            if path.stat().st_size > self.model.limits.upload:
                raise ValueError(f"the file is larger than {self.model.limits.upload // 2**20} MB")
            try:
                settings = read_settings(path)
            except ValueError as error:
                raise ValueError(str(error).replace(str(path), f"the file {path.name[:60]}")) from error
        finally:
            path.unlink(missing_ok=True)
        values, notes = restore(settings, self.model)
        for note in notes:
            gr.Info(escape(note), title="Restored, but")
        yield {**self._fill(values), **self._say(f"Settings restored from {path.name[:60]}. Press Draw.")}

    @_told
    async def take_card(self, request: gr.Request, event: gr.EventData) -> AsyncIterator[Any]:
        """An entry of the gallery: its prompts into the form (then it is drawn)."""
        at = str(event._data.get("pick", "")).split(".") if isinstance(event._data, dict) else []
        try:
            entry = groups(self.model)[int(at[0])].entries[int(at[1])]
        except (ValueError, IndexError):
            raise ValueError("there is no such entry in the gallery") from None
        values: dict[str, Any] = {"prompt": entry.prompt, "negative": entry.negative, "n": 1}
        preset = None
        if entry.seed is not None:
            recommended = self.model.choices[0]
            preset = recommended.name
            values |= {"seed": entry.seed, "size": OWN_SIZE, **fields_of(recommended.guidance, self.model)}
            values |= {"steps": recommended.steps or self.model.steps}
        yield {**self._fill(values, preset), **self._say(f"Drawing: {entry.prompt}, not {entry.negative}")}

    @_told
    async def take_cell(self, request: gr.Request, event: gr.EventData) -> AsyncIterator[Any]:
        """A picture of the grid: its settings into the form."""
        cells: Mapping[str, Guidance] = self.sessions.of(request.session_hash).get("cells")
        guidance = cells.get(str(event._data.get("pick", "")) if isinstance(event._data, dict) else "")
        if guidance is None:
            raise Expired("this grid is not kept any more; draw it again")
        yield {
            **self._fill(fields_of(guidance, self.model)),
            **self._say("These settings are on the left now. Press Draw."),
        }

    # -- compare, sweep, animation ------------------------------------------------------------------------------------

    @_told
    async def compare_all(self, request: gr.Request, *values: Any) -> AsyncIterator[Any]:
        session, form = self.sessions.of(request.session_hash), self._values(values)
        asked = request_of(form, self.model, "vsf")
        if not asked.guided:
            raise ValueError("say what is not wanted first: without it all methods draw the same picture")
        methods: dict[str, Any] = {"none": None}
        methods |= {label: guidance_of(form, label, self.model) for label in self.model.methods if label != "none"}
        job = self._submit(session, compare(asked, methods, self.options.model))
        session.keep("compare", True)
        done: dict[str, Tile] = {}
        pictures: list[tuple[str, Any]] = []
        settings: Mapping[str, Any] = {}

        def add() -> bool:
            nonlocal settings
            news = job.parts()
            for label, got, seconds, made in news:
                if isinstance(got, str):
                    done[label] = Tile(_title(label), "", views.sentence(got))
                    continue
                pictures.append((_title(label), got))
                settings = made if label == "vsf" else settings
                address = self._address(session, "compare", f"{label}.webp", views.display(got))
                done[label] = Tile(
                    _title(label), address, _in_words(methods[label], seconds), f"{_title(label)}: {asked.prompt}"
                )
            return bool(news)

        def html() -> str:
            return views.tiles([done.get(label, Tile(_title(label), "")) for label in methods], 3)

        yield {self.compared: html(), self.compare_files: ""}
        async for update in self._follow(job):
            yield {**update, **({self.compared: html()} if await asyncio.to_thread(add) else {})}
        await asyncio.to_thread(add)
        yield {self.compared: html()}
        job.result()
        from ..images import Card, sheet

        image = await asyncio.to_thread(sheet, [Card(asked.prompt, asked.negative, pictures)])
        address = session.file("compare", "vsf-compare.png", lambda path: save_png(image, path, settings))
        yield {
            self.compare_files: views.links([("Sheet of all methods (PNG)", address)]),
            **self._say(f"Compared {len(pictures)} methods."),
        }

    def _axes_of(self, values: tuple[Any, ...], method: str) -> list[tuple[str, list[float]]]:
        """[(knob, its values)] across and down, from the sweep's own fields."""
        own, found = numeric(method), list[tuple[str, list[float]]]()
        if not own:
            raise ValueError(f"{label_of(method)} has no setting to run over; choose another method")
        for i in (0, 4):
            knob, low, high, count = values[i : i + 4]
            if i and knob not in own:
                break
            if knob not in own:
                raise ValueError(f"{label_of(method)} has no setting {knob}; it has {', '.join(own)}")
            if not all(isinstance(v, (int, float)) and abs(v) < 1e6 for v in (low, high)):
                raise ValueError(f"the range of {knob} is empty; give two numbers, From and To")
            found.append((knob, sweep_values(float(low), float(high), max(1, min(6, int(count or 1))))))
        if len(found) == 2 and found[0][0] == found[1][0]:
            raise ValueError(f"both axes are {found[0][0]}; choose two settings, or one row")
        return found

    @_told
    async def sweep(self, request: gr.Request, *values: Any) -> AsyncIterator[Any]:
        session, form = self.sessions.of(request.session_hash), self._values(values)
        asked = replace(request_of(form, self.model), n=1)
        if not asked.guided:
            raise ValueError(
                "say what is not wanted first, and choose a method: a grid of equal pictures shows nothing"
            )
        axes = self._axes_of(values[len(self.fields) :], asked.guidance.label)
        (x, across), (y, down) = axes[0], axes[1] if len(axes) > 1 else ("", [0.0])
        made: dict[tuple[int, int], Guidance] = {}
        for r, row in enumerate(down):
            for c, column in enumerate(across):
                made[r, c] = replace(asked.guidance, **{x: column}, **({y: row} if y else {}))
        job = self._submit(
            session,
            draw_many([(k, replace(asked, guidance=g)) for k, g in made.items()], "Picture", self.options.model),
        )
        session.keep("sweep", True)
        session.keep("cells", {f"{r},{c}": guidance for (r, c), guidance in made.items()})
        cells: dict[tuple[int, int], str] = {}
        pictures: dict[tuple[int, int], Any] = {}

        def add() -> bool:
            news = job.parts()
            for key, got, _, _ in news:
                if isinstance(got, str):  # one refused is all refused
                    job.cancel()
                    raise ValueError(got)
                pictures[key] = got
                cells[key] = self._address(session, "sweep", "cell.webp", views.upscale(got, 192))
            return bool(news)

        def html() -> str:
            side = (y, [f"{v:g}" for v in down] if y else [""])
            return views.grid((x, [f"{v:g}" for v in across]), side, cells, asked.prompt)

        yield {self.swept: html()}
        async for update in self._follow(job):
            yield {**update, **({self.swept: html()} if await asyncio.to_thread(add) else {})}
        await asyncio.to_thread(add)
        yield {self.swept: html()}
        job.result()
        yield {self.swept: html(), **self._say(f"{len(cells)} pictures. Click one to take its settings.")}

    @_told
    async def animate(self, request: gr.Request, *values: Any) -> AsyncIterator[Any]:
        from ..video import can_write

        session, form = self.sessions.of(request.session_hash), self._values(values)
        asked = replace(request_of(form, self.model), n=1)
        if not asked.guided:
            raise ValueError(
                "say what is not wanted first, and choose a method: an animation needs something that changes"
            )
        knob, across = self._axes_of(values[len(self.fields) :], asked.guidance.label)[0]
        moments = 12 if len(across) > 1 else 1
        job = self._submit(
            session, animate(asked, knob, sweep_values(across[0], across[-1], moments), self.options.model)
        )
        async for update in self._follow(job):
            yield update
        job.result()
        frames: list[Any] = []
        for value, got, _, _ in job.parts():
            if isinstance(got, str):
                raise ValueError(got)
            frames.append(views.with_caption(got, f"{knob} {value:.2f}"))
        frames += frames[-2:0:-1]  # there and back
        session.keep("animation", True)

        def save() -> list[tuple[str, str]]:
            return [
                (suffix[1:].upper(), session.file("animation", f"vsf-{knob}{suffix}",
                                                  functools.partial(views.save_animation, frames, fps=8)))
                for suffix in (".webp", ".gif", ".mp4")
                if suffix == ".webp" or can_write(suffix)
            ]  # fmt: skip

        yield self._say("Writing the animation", "busy")
        files = await asyncio.to_thread(save)
        html = f'<img src="{escape(files[0][1])}" alt="{escape(f"{asked.prompt}: {knob} from {across[0]:g} to {across[-1]:g}")}">'
        yield {self.animation: html + views.links(files), **self._say(f"{len(frames)} frames over {knob}.")}

    # -- gallery ------------------------------------------------------------------------------------------------------

    def gallery_html(self, session: Session | None = None) -> str:
        found = []
        for g, group in enumerate(groups(self.model)):
            cards = []
            for e, entry in enumerate(group.entries):
                key, note, addresses = f"{g}.{e}", "", list[str]()
                if entry.seed is None:
                    note = "drawn when chosen"
                elif session is not None and key in self.gallery_drawn:
                    addresses = [self._address(session, "gallery", "card.webp", p) for p in self.gallery_drawn[key]]
                cards.append(views.Card(key, entry.prompt, entry.negative, note, addresses))
            found.append(views.cards(group.title, group.text, cards))
        return "".join(found)

    @_told
    async def draw_gallery(self, request: gr.Request) -> AsyncIterator[Any]:
        """Draw the gallery's pictures, once for all visitors: they are the same for everyone."""
        session = self.sessions.of(request.session_hash)
        wanted = [
            (f"{g}.{e}", entry)
            for g, group in enumerate(groups(self.model))
            for e, entry in enumerate(group.entries)
            if entry.seed is not None and f"{g}.{e}" not in self.gallery_drawn
        ]
        if "gallery" in session.kept and not wanted:
            return
        busy = session.job is not None and not session.job.finished.is_set()
        if wanted and not busy:
            form = self.first | {"n": 1}

            def work(pipe: Any, job: Job) -> None:
                for number, (key, entry) in enumerate(wanted):
                    own = form | {"prompt": entry.prompt, "negative": entry.negative, "seed": entry.seed}
                    job.step(number, len(wanted), "Gallery")
                    found = picture(request_of(own, self.model), self.options.model)(pipe, Job(lambda *_: None))
                    drawn = found.drawn
                    self.gallery_drawn[key] = (views.upscale(drawn.plain[0], 192), views.upscale(drawn.guided[0], 192))

            job = self._submit(session, work)
            async for update in self._follow(job):
                yield update
            job.result()
            yield self._say("Ready. Choose an entry.")
        session.keep("gallery", True)
        yield {self.gallery: await asyncio.to_thread(self.gallery_html, session)}

    # -- label --------------------------------------------------------------------------------------------------------

    def _ask(self, session: Session, visitor: str) -> dict[Any, Any]:
        assert self.labels is not None
        asked = self.labels.next(visitor)
        session.drop("label")
        hidden = {button: gr.update(visible=False) for button in self.answers}
        if asked is None:
            thanks = "<div class=question>That was the last one. Thank you.</div>"
            return {
                self.question: thanks,
                self.label_pictures: "",
                self.label_key: "",
                self.undo: gr.update(visible=True),
            } | hidden
        session.keep("label", True)
        sides = [("Left", asked.left), *([("Right", asked.right)] if asked.right is not None else [])]
        shown = [
            Tile(name, self._address(session, "label", "side.webp", views.display(image)),
                 "this one" if asked.side == name.lower() else "")
            for name, image in sides
        ]  # fmt: skip
        side = f"{asked.side.capitalize()}: " if asked.side else ""
        text = (
            f"<div class=question>{escape(side + asked.text)}<small>{asked.done + 1} of {asked.total}</small></div>"
            f"<p class=sub>{escape(asked.prompt)} <em>{escape(asked.negative)}</em></p>"
        )
        buttons = {
            button: gr.update(
                value=f"{asked.choices[i]} ({i + 1})" if i < len(asked.choices) else "", visible=i < len(asked.choices)
            )
            for i, button in enumerate(self.answers)
        }
        return {
            self.question: text,
            self.label_pictures: views.tiles(shown, 2),
            self.label_key: asked.key,
            self.undo: gr.update(visible=True),
        } | buttons

    @_told
    async def ask(self, request: gr.Request, visitor: str) -> AsyncIterator[Any]:
        """Somebody begins, or comes back."""
        session = self.sessions.of(request.session_hash)
        yield {**await asyncio.to_thread(self._ask, session, visitor), **self._say(f"Labelling as {visitor[:24]}.")}

    def answer_with(self, choice: int) -> Callable[..., AsyncIterator[Any]]:
        """The handler of one answer's button."""

        async def answer(request: gr.Request, visitor: str, key: str) -> AsyncIterator[Any]:
            async for update in self.answer(request, choice, visitor, key):
                yield update

        return answer

    @_told
    async def answer(self, request: gr.Request, choice: int, visitor: str, key: str) -> AsyncIterator[Any]:
        """An answer, then the next question."""
        assert self.labels is not None
        session = self.sessions.of(request.session_hash)
        line = self._say(f"Labelling as {visitor[:24]}.")
        try:
            await asyncio.to_thread(self.labels.answer, visitor, key, choice)
        except ValueError as error:
            line = self._say(views.sentence(str(error)), "bad")
        yield {**await asyncio.to_thread(self._ask, session, visitor), **line}

    @_told
    async def take_back(self, request: gr.Request, visitor: str) -> AsyncIterator[Any]:
        """Undo."""
        assert self.labels is not None
        session = self.sessions.of(request.session_hash)
        await asyncio.to_thread(self.labels.undo, visitor)
        yield {**await asyncio.to_thread(self._ask, session, visitor), **self._say("Taken back.")}


def _chosen(found: Picture, which: Any, step: Any, block: Any) -> tuple[int, int | None, int | None]:
    """(picture, step, block) from what the scrubbers say; None is the mean of all."""
    i = which if isinstance(which, int) and 0 <= which < found.request.n else 0
    recorded = found.drawn.suppression
    at = int(step) - 1 if isinstance(step, (int, float)) and step >= 1 else None
    site = int(block) if recorded and str(block).isdecimal() and int(block) in recorded.blocks else None
    return i, at, site


def holes(*titles: str) -> str:
    """Tiles without a picture; a second title alone is a note."""
    if len(titles) == 2 and titles[0] == "Where it acted":
        return views.tiles([Tile(titles[0], "", titles[1])])
    return views.tiles([Tile(title, "") for title in titles])


def _in_words(guidance: Guidance | None, seconds: float) -> str:
    from ..demo.evaluate import describe

    words = describe(guidance.settings()).partition(": ")[2] if guidance else ""
    return f"{words} · {seconds:.2f} s" if words else f"{seconds:.2f} s"
