"""What all judges share: pictures without their method, one answer per picture, and how a run is judged.

Judging is an act of its own: it reads a run, finished or not, and writes answers beside it. A judge sees a picture and
the questions of its case. Neither the method nor its settings are part of what it is asked about, pictures come in a
seeded order over all methods, and what leaves this machine is re-coded from the pixels under an opaque id.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from ...files import json_bytes
from ...grammar import first_line
from ..cases import Case
from ..controls import kept as kept_parts
from ..run import Answer, Run, RunError, Store, Unit

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "Answering", "Exhibit", "Judge", "JudgeError", "PictureError", "Tally", "exhibits", "judge_run", "png_of",
    "read_picture", "tally",
]  # fmt: skip

_LONGEST_REASON = 300


class JudgeError(RuntimeError):
    """This judge cannot go on, for a reason that the next picture would meet, too (a wrong key, no such model). What
    it has answered so far is kept."""


class PictureError(ValueError):
    """A picture is missing or damaged."""


def read_picture(file: Path | BinaryIO, any_format: bool = False) -> Image.Image:
    """A picture in RGB, without anything that its file (PNG, or with `any_format` whatever Pillow reads) says beside
    the pixels. Raises PictureError."""
    from PIL import Image

    try:
        with Image.open(file, formats=None if any_format else ("PNG",)) as image:
            pixels = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"the picture cannot be read ({type(error).__name__})") from error
    pixels.info.clear()
    return pixels


def read_clip(file: Path, count: int) -> list[Image.Image]:
    """The `count` frames of a GIF in RGB; equal frames in a row are one in the file, and last longer. Raises
    PictureError."""
    from PIL import Image, ImageSequence

    try:
        with Image.open(file, formats=("GIF",)) as video:
            shown = [(frame.convert("RGB"), frame.info.get("duration", 0)) for frame in ImageSequence.Iterator(video)]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"the clip cannot be read ({type(error).__name__})") from error
    whole = sum(duration for _, duration in shown)
    times = [1] * count if len(shown) == count else [round(count * lasts / (whole or 1)) for _, lasts in shown]
    frames = [frame for (frame, _), n in zip(shown, times, strict=True) for _ in range(n)]
    if len(frames) != count:
        raise PictureError(f"the clip cannot be read ({len(shown)} frames for {count})")
    return frames


def png_of(pixels: Image.Image) -> bytes:
    """A picture as a PNG with nothing in it but the pixels: equal pictures give equal bytes."""
    buffer = BytesIO()
    pixels.save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Exhibit:
    """One picture to judge.

    Attributes:
        id: opaque, and the only name of it that may leave this machine.
        unit: its name in the run, which names the point. Not for the judge's eyes.
        image: its file, which names the point and may carry settings. Not for the judge's eyes.
        case: what is asked.
        kept: the object's other parts, which must still be there; may be empty.
        frames: of the clip whose middle frame `image` is, and which lies beside it as a GIF; 1 for a picture.
    """

    id: str
    unit: str
    image: Path
    case: Case
    kept: tuple[str, ...] = ()
    frames: int = 1

    def picture(self) -> Image.Image:
        """The picture in RGB, without anything that its file says beside the pixels. Raises PictureError."""
        return read_picture(self.image)

    def clip(self) -> list[Image.Image]:
        """All frames in RGB, in order; of a picture, the one. Raises PictureError."""
        return [self.picture()] if self.frames == 1 else read_clip(self.image.with_suffix(".gif"), self.frames)

    def png(self) -> bytes:
        """The picture as a PNG with nothing in it but the pixels: equal pictures give equal bytes. Raises
        PictureError."""
        return png_of(self.picture())

    def judged(self, **given: Any) -> Answer:
        """The answer to this picture."""
        return Answer(self.unit, **given)

    def not_judged(self, reason: str, details: Mapping[str, Any] | None = None) -> Answer:
        """The answer that there is none, with one line that says why."""
        return Answer(
            self.unit, "not judged", reason=" ".join(reason.split())[:_LONGEST_REASON], details=details or {}
        )


class Judge(Protocol):
    """Whoever answers questions about pictures.

    One that cannot judge every kind of case also has ``refuses(case)``: why no picture of this case can be judged, or
    None. It is asked before anything is drawn for this judge. One that costs money also has ``estimate(items)`` and
    ``cost(usage)`` (see `ApiJudge`). A judge of the table `JUDGES` is a dataclass whose fields are `vsf.registry.option`,
    and its class says in `gives` which fields of `Answer` it fills.
    """

    def about(self) -> dict[str, Any]:
        """Everything that the answers depend on, as plain data: "kind", model, version of the questions. Two judges
        with the same are the same judge; nothing secret."""
        ...

    def read(self, items: Sequence[Exhibit]) -> Iterable[Answer]:
        """One answer per item, in any order, each as soon as it is there.

        An answer may depend on its own item only, not on which others are asked for. What cannot be judged is
        answered by `Exhibit.not_judged`.

        Raises:
            JudgeError: no further picture can be judged.
        """
        ...


class Answering(Protocol):
    """A judge that answers any yes/no question about a picture, beside the questions of cases: see `vsf.judging`."""

    def answer(self, picture: Image.Image, question: str, *, asks: str = "other", item: str = "") -> float | None:
        """P(yes), 0 to 1, to a yes/no question about a picture (RGB); None where it cannot tell.

        It says yes from 0.5 on: what it has of temperature and cut is in the number (a cut moves the log-odds).

        Args:
            question: alone, without "Answer yes or no.".
            asks: what the question is about, one of `vsf.judging.ASKS`; a judge may have a cut for each.
            item: what is asked for ("wheels", "red bike"): for a judge that reads no words, such as an oracle.

        Raises:
            JudgeError: no further question can be answered.
        """
        ...


@contextmanager
def loading(what: str, model: str, download: bool) -> Iterator[None]:
    """Turn whatever readers of a model's files raise into one sentence.

    Raises:
        JudgeError: `model` is neither a folder nor, by its form, an id of the hub (NAME or OWNER/NAME), or not readable.
    """
    folder = Path(model).is_dir()
    if not folder and not re.fullmatch(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*", model):
        raise JudgeError(f"there is no folder {model}; the model of a {what} is a folder, or an id such as owner/name")
    try:
        yield
    except Exception as error:  # files of other people: there is no list of what they raise
        hint = "" if download or folder else "; an id is fetched with --download"
        raise JudgeError(f"the {what} {model} cannot be loaded: {first_line(error)}{hint}") from error


@dataclass(frozen=True)
class Tally:
    """How far a judge is with a run.

    Attributes:
        judged: pictures that are judged.
        not_judged: those that could not be, by reason (what stands before its colon).
        waiting: pictures that are drawn and not answered.
        undrawn: pictures of the plan that are not there yet.
        spent: sums of what answers note under "usage" (requests, tokens); empty for judges without.
        cost: of that, where the judge knows prices.
    """

    judged: int
    not_judged: Mapping[str, int]
    waiting: int
    undrawn: int
    spent: Mapping[str, int] = field(default_factory=dict)
    cost: float | None = None


def _order(seed: int, text: str) -> bytes:
    return sha256(f"{seed}|{text}".encode()).digest()


def exhibits(run: Run, units: Iterable[Unit], seed: int = 0) -> list[Exhibit]:
    """The units as judges get them, in an order that the seed decides and that mixes all methods.

    A picture's place relative to another depends on nothing but the seed and the two.
    """
    return [
        Exhibit(
            id=sha256(f"{run.plan.cases_hash}|{seed}|{unit.id}".encode()).hexdigest()[:20],
            unit=unit.id,
            image=run.image(unit),
            case=run.case[unit.case],
            kept=kept_parts(run.case[unit.case]),
            frames=(run.records.get(unit.id).get("video") or {}).get("frames", 1),
        )
        for unit in sorted(units, key=lambda unit: _order(seed, unit.id))
    ]


def waiting(run: Run, name: str, retry: bool = False) -> tuple[list[Unit], dict[str, Mapping[str, Any]]]:
    """Drawn units that a judge has not answered; with `retry` also those it could not judge, and what was noted about
    them."""
    drawn = run.records.keys()
    store = run.answers(name)
    there = store.keys()
    earlier: dict[str, Mapping[str, Any]] = {}
    if retry:
        for unit in there:
            answer = store.get(unit)
            if answer["status"] != "judged":
                earlier[unit] = answer["details"]
    return [u for u in run.plan.units if u.id in drawn and (u.id not in there or u.id in earlier)], earlier


def able(judge: Judge, name: str, cases: Sequence[Case], some: bool = False) -> None:
    """Find out whether a judge can judge pictures of these cases: all of them, or with `some` at least one.

    Raises:
        JudgeError: it cannot, with the first reason.
    """
    refuses: Callable[[Case], str | None] = getattr(judge, "refuses", lambda case: None)
    reasons = [(case.id, reason) for case in cases if (reason := refuses(case))]
    if reasons and (not some or len(reasons) == len(cases)):
        raise JudgeError(
            f"the judge {name} cannot judge {len(reasons)} of {len(cases)} cases ({reasons[0][0]}: {reasons[0][1]})"
        )


def enroll(run: Run, name: str, about: Mapping[str, Any], **more: Any) -> Store:
    """Note who judges under this name, and give the store of the answers.

    Raises:
        RunError: another judge has this name, or the name is not fit for a folder.
    """
    about = _known(run, name, about)
    return run.set_judge(name, {**about, **more})


def _known(run: Run, name: str, about: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is on record about a judge, or `about` for a new one. Raises RunError as `enroll`."""
    if name in run.judges():
        old = run.judge(name)
        if differ := [k for k, v in json.loads(json_bytes(about)).items() if old.get(k) != v]:
            raise RunError(
                f"{run.folder} was judged by another {name!r} (other {', '.join(differ)}); give this judge another name"
            )
        return old
    return about


def judge_run(
    run: Run,
    judge: Judge,
    name: str,
    *,
    seed: int = 0,
    retry: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Tally:
    """Let a judge answer for every drawn picture that it has not answered yet.

    It may be killed at any moment and called again: every answer is a file of its own, written whole. A run that is
    still being drawn can be judged, too, and again later. `progress` is called with (answers so far, answers in all).

    Args:
        name: under which the answers are kept, `judges/NAME`.
        seed: decides the order.
        retry: ask again about pictures that could not be judged.

    Raises:
        RunError: the name belongs to another judge.
        JudgeError: the judge can judge none of the run's cases, or cannot go on; what it answered is kept.
    """
    about = {**_known(run, name, judge.about()), "seed": seed}
    store = run.answers(name)
    able(judge, name, [run.case[id] for id in run.plan.cases], some=True)
    units, earlier = waiting(run, name, retry)
    todo = exhibits(run, units, seed)
    asked = {item.unit for item in todo}
    if progress:
        progress(0, len(todo))
    for done, answer in enumerate(judge.read(todo), 1):
        if answer.unit not in asked:
            raise RuntimeError(f"the judge answered for {answer.unit!r}, which is not or no longer asked for")
        asked.discard(answer.unit)
        if done == 1:  # a judge that says nothing, its key being refused, is not put on record
            run.set_judge(name, about)
        if usage := earlier.get(answer.unit, {}).get("usage"):
            total = {k: usage.get(k, 0) + v for k, v in answer.details.get("usage", {}).items()}
            answer = replace(answer, details={**answer.details, "usage": total or usage})
        store.put(answer.unit, asdict(answer))
        if progress:
            progress(done, len(todo))
    result = tally(run, name)
    if result.spent:
        result = replace(result, cost=getattr(judge, "cost", lambda spent: None)(result.spent))
        cost = {} if result.cost is None else {"cost": result.cost}
        run.set_judge(name, {**run.judge(name), "spent": {**result.spent, **cost}})
    return result


def tally(run: Run, name: str) -> Tally:
    """How far a judge is."""
    reasons: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    judged = 0
    for answer in run.judged(name):
        spent.update(answer.details.get("usage", {}))
        if answer.status == "judged":
            judged += 1
        else:
            reasons[(answer.reason or "no reason given").partition(":")[0]] += 1
    planned = {unit.id for unit in run.plan.units}
    drawn = len(planned & run.records.keys())
    return Tally(judged, dict(reasons), drawn - judged - reasons.total(), len(planned) - drawn, dict(spent))
