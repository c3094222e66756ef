"""Blind labelling, one question at a time: the benchmark's own session decides what is asked and keeps the answers."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL import Image

    from ..bench.judges import LabelSession
    from ..bench.judges.human import Pair

__all__ = ["Labels", "Question", "RunLabels", "open_labels"]

_YES = (("Yes", True), ("No", False), ("Cannot tell", None))
_QUALITY = (("Good", 1), ("Fair", 0.5), ("Poor", 0))
_RATHER = (("Left", "left"), ("No difference", "same"), ("Right", "right"))


@dataclass(frozen=True)
class Question:
    """One question about two pictures (or one); nothing in it says which method drew which.

    `key` is given back with the answer. `side` is the picture asked about ("" for both). `choices` are the answers as
    words, in the order of their keys 1, 2, 3. `done` and `total` count this visitor's pairs.
    """

    key: str
    text: str
    side: str
    choices: tuple[str, ...]
    left: Image.Image
    right: Image.Image | None
    prompt: str
    negative: str
    done: int = 0
    total: int = 0


class Labels(Protocol):
    """Where the questions come from and the answers go. `visitor` is the name somebody gives."""

    def next(self, visitor: str) -> Question | None:
        """The open question of this visitor, the same until it is answered; None: no more. Raises ValueError."""
        ...

    def answer(self, visitor: str, key: str, choice: int) -> None:
        """Keep an answer, by its place in `choices`. Raises ValueError for a question that is not open."""
        ...

    def undo(self, visitor: str) -> None:
        """Take the last answer back. Raises ValueError."""
        ...


class RunLabels:
    """The questions of a benchmark run: three about each picture, then which one is preferred."""

    def __init__(self, session: LabelSession) -> None:
        self._session = session
        self._lock = threading.RLock()
        self._said: dict[str, tuple[str, list[Any]]] = {}  # visitor -> (pair, what was answered about it so far)

    def _steps(self, pair: Pair) -> list[tuple[str, str, str, tuple[tuple[str, Any], ...]]]:
        """(side, name of the answer, what is asked, answers) of a pair, in order."""
        steps: list[tuple[str, str, str, tuple[tuple[str, Any], ...]]] = []
        for side, ask in zip(("left", "right"), pair.ask, strict=True):
            if ask:
                case = pair.left.case
                steps += [(side, "answer_1", case.question_1, _YES), (side, "answer_2", case.question_2, _YES)]
                steps += [(side, "quality", "Whatever it shows: how well is this picture made?", _QUALITY)]
        if pair.right is not None:
            steps.append(("", "preference", "Which one would you rather have got?", _RATHER))
        return steps

    def _open(self, visitor: str) -> tuple[Pair | None, list[Any]]:
        pair = self._session.next(visitor)
        said = self._said.get(visitor)
        if pair is None or said is None or said[0] != pair.id:
            said = ("" if pair is None else pair.id, [])
            self._said[visitor] = said
        return pair, said[1]

    def next(self, visitor: str) -> Question | None:
        with self._lock:
            pair, said = self._open(visitor)
            if pair is None:
                return None
            side, name, text, choices = self._steps(pair)[len(said)]
            right = None if pair.right is None else pair.right.picture()
            words = tuple(word for word, _ in choices)
            case = pair.left.case
            return Question(
                f"{pair.id}/{side}/{name}", text, side, words, pair.left.picture(), right, case.prompt, case.negative,
                pair.done, pair.total,
            )  # fmt: skip

    def answer(self, visitor: str, key: str, choice: int) -> None:
        with self._lock:
            pair, said = self._open(visitor)
            steps = [] if pair is None else self._steps(pair)
            if pair is None or key != f"{pair.id}/{steps[len(said)][0]}/{steps[len(said)][1]}":
                raise ValueError("this question is not open any more; the next one is shown")
            choices = steps[len(said)][3]
            if not 0 <= choice < len(choices):
                raise ValueError(f"there are {len(choices)} answers to this question")
            said.append(choices[choice][1])
            if len(said) < len(steps):
                return
            sides: dict[str, Any] = {"left": None, "right": None}
            preference = None
            for (side, name, _, _), value in zip(steps, said, strict=True):
                if side:
                    sides[side] = (sides[side] or {}) | {name: value}
                else:
                    preference = value
            del self._said[visitor]
            try:
                self._session.answer(visitor, pair.id, sides["left"], sides["right"], preference)
            except KeyError as error:
                raise ValueError("this question is not open any more; the next one is shown") from error

    def undo(self, visitor: str) -> None:
        with self._lock:
            _, said = self._open(visitor)
            if said:
                said.pop()
            else:
                self._session.undo(visitor)


def open_labels(run: str | Path) -> Labels:
    """The questions of a benchmark's run directory.

    Raises:
        ValueError: this is no run directory.
    """
    from ..bench.judges import LabelSession
    from ..bench.run import Run, RunError

    try:
        return RunLabels(LabelSession(Run.open(run)))
    except (RunError, OSError) as error:
        raise ValueError(f"--label is {run}: {error}") from error
