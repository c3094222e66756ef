"""What the device's worker does for each tab. No gradio here."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..draw import Drawn, Request, draw, settings_of
from ..guidance import NoGuidance
from ..prompt import parse_negative
from .jobs import Job

__all__ = ["Outcome", "animate", "compare", "draw_many", "keeps_map", "picture", "even_values"]

Work = Callable[[Any, Job], Any]


@dataclass(frozen=True)
class Outcome:
    """Pictures of one request, without and with the negative from the same noise, and how to make them again."""

    request: Request
    drawn: Drawn
    settings: Mapping[str, Any]
    seconds: float
    notes: tuple[str, ...] = ()

    def settings_of(self, i: int) -> dict[str, Any]:
        """The settings of picture i. A batch of one has other rounding than a batch of many, so `n` stays as it was."""
        return dict(self.settings) | ({"picture": i} if self.request.n > 1 else {})


def keeps_map(request: Request, video: bool = False) -> bool:
    """Whether a suppression map comes of this request."""
    guidance = request.guidance
    if video or not request.guided or not guidance.has_map:
        return False
    if any(a >= b for a, b in guidance.ranges) or guidance.blocks == () or guidance.neutral:
        return False
    items = [item for item in parse_negative(request.negative or "") if item.weight > 0]
    return any(max(a, item.start) < min(b, item.stop) for item in items for a, b in guidance.ranges)


def _frame(picture: Any) -> Any:
    return picture[0] if isinstance(picture, (list, tuple)) else picture


def picture(request: Request, model: str, video: bool = False) -> Work:
    """Draw without and with the negative."""

    def work(pipe: Any, job: Job) -> Outcome:
        from ..guide import NothingGuided

        start = time.perf_counter()
        # Only this thread draws, so the warnings caught are its own.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            drawn = draw(pipe, request, compare=True, record=keeps_map(request, video), progress=job.step)
        seconds = time.perf_counter() - start
        notes = tuple(str(w.message) for w in caught if issubclass(w.category, NothingGuided))
        settings = settings_of(request, model, pipe, _frame(drawn.guided[0]).size)
        return Outcome(request, drawn, settings, seconds, notes)

    return work


def draw_many(requests: Sequence[tuple[Any, Request]], what: str, model: str) -> Work:
    """Draw requests one after the other, once each; publishes (key, picture or the reason why not, seconds, settings).

    A request that the pipeline refuses does not end the others.
    """

    def work(pipe: Any, job: Job) -> None:
        total, before = sum(request.steps for _, request in requests), 0
        for number, (key, request) in enumerate(requests):
            text = f"{what} {number + 1} of {len(requests)}"

            def progress(done: int, _: int, base: int = before, text: str = text) -> None:
                job.step(base + done, total, text)

            job.step(before, total, text)
            start = time.perf_counter()
            try:
                with warnings.catch_warnings():  # of settings without effect: the pictures show it
                    warnings.simplefilter("ignore")
                    got = draw(pipe, request, progress=progress).guided[0]
                settings = settings_of(request, model, pipe, got.size)
            except (ValueError, TypeError) as error:
                got, settings = str(error), {}
            job.publish((key, got, time.perf_counter() - start, settings))
            before += request.steps

    return work


def compare(request: Request, methods: Mapping[str, Any], model: str) -> Work:
    """Draw one request with each of the methods (name -> guidance), from the same noise."""
    plain = replace(request, n=1)
    return draw_many(
        [(label, replace(plain, guidance=guidance or NoGuidance())) for label, guidance in methods.items()],
        "method",
        model,
    )


def even_values(low: float, high: float, count: int) -> list[float]:
    """`count` values from `low` to `high`, evenly spaced."""
    if count == 1:
        return [round(low, 3)]
    return [round(low + (high - low) * i / (count - 1), 3) for i in range(count)]


def animate(request: Request, knob: str, values: Sequence[float], model: str) -> Work:
    """Draw a request once for each value of a knob; publishes as `draw_many`, keyed by the value."""
    plain = replace(request, n=1)
    return draw_many(
        [(v, replace(plain, guidance=replace(request.guidance, **{knob: v}))) for v in values], "picture", model
    )
