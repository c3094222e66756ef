"""Where annotators disagree, somebody decides: one picture and one question at a time, on the page where people label.

Who said what is not shown: whoever decides looks at the picture. Decisions are labels of the annotator "adjudicated", saved
with each answer; `consensus` takes them for true.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from ..bench.judges.human import Question, visitor_name
from .agreement import ADJUDICATED, Key, disagreements
from .labels import ANSWERED, Labels

__all__ = ["Adjudication"]

_CHOICES = ("yes", "no", "cannot tell")


class Adjudication:
    """The open disagreements of a folder of labels, as the page asks them (`vsf.bench.judges.human.Labelling`).

    Safe to use from several threads; visitors share the questions, and what one decided is asked of nobody else.

    Args:
        folder: the labels; decisions are saved there.
        seed: decides the order.

    Raises:
        LabelsError: the labels cannot be read.
    """

    def __init__(self, folder: str | Path, seed: int = 0) -> None:
        self.folder = Path(folder)
        self._labels = Labels.open(self.folder)
        self.open = sorted(disagreements(self._labels), key=lambda key: sha256(f"{seed}|{key}".encode()).digest())
        self._asked = {label.key: label for label in self._labels}
        self._total = len(self.open)
        self._decided: dict[str, list[Key]] = {}
        self._shown: dict[tuple[str, str], float] = {}
        self._lock = threading.RLock()

    @property
    def heading(self) -> str:
        """What the page says above its questions."""
        return "Annotators disagree about these; what you say decides. Who said what is not shown."

    def next(self, visitor: str) -> Question | None:
        """The first open question; None when everything is decided. Raises ValueError as `Labelling`."""
        with self._lock:
            visitor = visitor_name(visitor)
            if not self.open:
                return None
            key = _name(self.open[0])
            self._shown.setdefault((visitor, key), time.monotonic())
            text, picture = self.open[0][1], self._labels.picture(self.open[0][0])
            choices = tuple(choice.capitalize() for choice in _CHOICES)
            return Question(key, text, "", choices, picture, None, "", "", self._total - len(self.open), self._total)

    def answer(self, visitor: str, key: str, choice: int) -> None:
        """Take a decision and save it. Raises ValueError: not open any more, no such answer, a full disk."""
        with self._lock:
            visitor = visitor_name(visitor)
            if not self.open or key != _name(self.open[0]):
                raise ValueError("this question is not open any more; the next one is shown")
            if not 0 <= choice < len(_CHOICES):
                raise ValueError(f"there are {len(_CHOICES)} answers to this question")
            asked, shown = self.open[0], self._shown.pop((visitor, key), None)
            took = None if shown is None else round(time.monotonic() - shown, 1)
            said = ANSWERED[_CHOICES[choice]]
            label = replace(self._asked[asked], answer=said, annotator=ADJUDICATED, seconds=took, confidence=None)
            there = Labels.open(self.folder)  # others may have added to it
            if any(other.annotator == ADJUDICATED and other.key == asked for other in there):
                self.open.pop(0)
                raise ValueError("this question was decided elsewhere meanwhile; the next one is shown")
            self._save(there.only([*there, label]))
            self.open.pop(0)
            self._decided.setdefault(visitor, []).append(asked)

    def undo(self, visitor: str) -> None:
        """Take back a visitor's last decision since the page was started. Raises ValueError as `Labelling`."""
        with self._lock:
            if decided := self._decided.get(visitor_name(visitor)):
                there = Labels.open(self.folder)
                kept = [label for label in there if label.annotator != ADJUDICATED or label.key != decided[-1]]
                self._save(there.only(kept), lose=True)
                self.open.insert(0, decided.pop())

    def _save(self, labels: Labels, lose: bool = False) -> None:
        try:
            labels.save(self.folder, lose)
        except OSError as error:  # the page says it, and the question stays open
            raise ValueError(f"cannot write in {self.folder.name}: {error.strerror or error}") from error


def _name(key: Key) -> str:
    return sha256("|".join(key).encode()).hexdigest()[:16]
