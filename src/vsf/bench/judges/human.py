"""People as judges: two pictures of one case side by side, blind, one question at a time.

Which methods drew them, which is left and which comes when is hidden and differs between visitors. Every visitor is a
judge of their own, `NAME-VISITOR`, with answers like any other judge's; which of two pictures they prefer is kept
beside them, in `judges/NAME-VISITOR/pairs/`. Whoever comes back under the same name goes on where they stopped.

The page is `vsf.ui.label_tab`, alone (`vsf bench label`) or as a tab (`vsf ui --label`).
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..run import Answer, Run, Store, Unit
from .base import Exhibit, enroll, exhibits

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["LabelSession", "Labelling", "Question", "visitor_name"]

PAGE_VERSION = 1

_YES = {"Yes": True, "No": False, "Cannot tell": None}
_QUALITY = {"Good": 1.0, "Fair": 0.5, "Poor": 0.0}
_RATHER = {"Left": "left", "No difference": "same", "Right": "right"}
_VISITOR = re.compile(r"[a-z0-9]{1,24}")
_MOST_VISITORS = 200

_Step = tuple[str, str, str, dict[str, Any]]
"""Side ("" for both), name of the answer, what is asked, and the answers by their words."""


@dataclass(frozen=True)
class Question:
    """One question about two pictures (or one); nothing in it says which method drew which.

    Attributes:
        key: opaque; given back with the answer.
        side: the picture asked about, "left" or "right"; "" for both.
        choices: the answers as words, in the order of their keys 1, 2, 3.
        left, right: without anything that their files say beside the pixels; no right one where a case has one only.
        done, total: this visitor's pairs.
    """

    key: str
    text: str
    side: str
    choices: tuple[str, ...]
    left: Image.Image
    right: Image.Image | None
    prompt: str
    negative: str
    done: int
    total: int


class Labelling(Protocol):
    """What the page asks people, and where it takes their answers to: `LabelSession`, or what is asked of labels.

    All raise ValueError with a sentence for the visitor.
    """

    @property
    def folder(self) -> Path:
        """What is labelled."""
        ...

    @property
    def heading(self) -> str:
        """What the page says above its questions."""
        ...

    def next(self, visitor: str) -> Question | None:
        """The open question of a visitor, the same until it is answered; None when nothing is left."""
        ...

    def answer(self, visitor: str, key: str, choice: int) -> None:
        """Take an answer, by its place in the question's choices."""
        ...

    def undo(self, visitor: str) -> None:
        """Take back a visitor's last answer."""
        ...


def visitor_name(name: object) -> str:
    """A visitor's name in the form in which it is kept. Raises ValueError."""
    text = name.strip().lower() if isinstance(name, str) else ""
    if not _VISITOR.fullmatch(text):
        raise ValueError("a visitor's name has 1 to 24 letters or digits")
    return text


class _Visitor:
    def __init__(self, session: LabelSession, name: str) -> None:
        self.session, self.name = session, name
        self.judge = f"{session.name}-{name}"
        self.pairs = Store(session.run.folder / "judges" / self.judge / "pairs")
        self.said: list[Any] = []
        """What was answered about the open pair so far; `took` are the seconds of each, None where it was not shown."""
        self.took: list[float | None] = []
        self.shown: tuple[str, float] = ("", 0.0)
        """The question that was shown last, and when."""
        self.refresh()

    def refresh(self) -> None:
        """Read what is drawn and answered; more may have been drawn since."""
        run, salt = self.session.run, f"{self.session.seed}|{self.name}"
        drawn = run.records.keys()
        seed = int.from_bytes(sha256(salt.encode()).digest()[:6], "big")
        groups: dict[tuple[str, int, str], list[Exhibit]] = {}
        # `exhibits` shuffles, so what stands left or first in a group says nothing about the method.
        for item in exhibits(run, (unit for unit in run.plan.units if unit.id in drawn), seed):
            unit = Unit.parse(item.unit)
            groups.setdefault((unit.case, unit.seed, unit.kind), []).append(item)
        two: list[tuple[str, Exhibit, Exhibit | None]] = []
        for (case, seed, kind), group in groups.items():
            for i in range(0, len(group), 2):
                left = group[i]
                # With an odd number of methods one picture is shown twice, and asked about once.
                right = group[i + 1] if i + 1 < len(group) else group[0] if i else None
                both = left.unit + "|" + (right.unit if right else "")
                two.append((f"{case}--{seed}--{kind}/{sha256(both.encode()).hexdigest()[:16]}", left, right))
        two.sort(key=lambda entry: sha256(f"{salt}|{entry[0]}".encode()).digest())
        self.all = {key: (left, right) for key, left, right in two}
        self.answered = run.answers(self.judge).keys()
        stored = {key: self.pairs.get(key) for key in self.pairs.keys()}  # noqa: SIM118
        self.history = sorted(stored, key=lambda key: stored[key]["n"])
        self.count = stored[self.history[-1]]["n"] + 1 if self.history else 0
        self.open = [
            key
            for key, left, right in two
            if key not in stored and {item.unit for item in (left, right) if item} - self.answered
        ]

    def steps(self) -> list[_Step]:
        """What is asked about the open pair, in order; nothing where none is left."""
        if not self.open:
            self.refresh()
        if not self.open:
            return []
        steps: list[_Step] = []
        left, right = self.all[self.open[0]]
        for side, item in (("left", left), ("right", right)):
            if item is not None and item.unit not in self.answered:
                steps += [
                    (side, name, getattr(item.case, f"question_{name[-1]}"), _YES) for name in ("answer_1", "answer_2")
                ]
                steps.append((side, "quality", "Whatever it shows: how well is this picture made?", _QUALITY))
        if right is not None:
            steps.append(("", "preference", "Which one would you rather have got?", _RATHER))
        return steps

    def key(self) -> str:
        """The open question's."""
        return sha256(f"{self.name}|{self.open[0]}|{len(self.said)}".encode()).hexdigest()[:16] if self.open else ""


class LabelSession:
    """Questions to people, and their answers. Safe to use from several threads.

    Args:
        run: whose pictures are shown; it may still be growing.
        name: judges are named NAME-VISITOR.
        seed: decides orders and sides, together with the visitor's name.
    """

    def __init__(self, run: Run, name: str = "human", seed: int = 0) -> None:
        self.run, self.name, self.seed = run, name, seed
        self._lock = threading.RLock()
        self._visitors: dict[str, _Visitor] = {}

    @property
    def folder(self) -> Path:
        """The run's."""
        return self.run.folder

    @property
    def heading(self) -> str:
        """What the page says above its questions."""
        return "Two pictures of one request; nobody knows here which method drew which."

    def next(self, visitor: str) -> Question | None:
        """The open question of a visitor, the same until it is answered; None when nothing is left.

        Raises:
            ValueError: not a name for a visitor, too many visitors, or a picture that cannot be read.
        """
        with self._lock:
            who = self._visitor(visitor)
            steps = who.steps()
            if not steps:
                return None
            side, _, text, choices = steps[len(who.said)]
            left, right = who.all[who.open[0]]
            if who.shown[0] != who.key():
                who.shown = who.key(), time.monotonic()
            return Question(
                who.key(), text, side, tuple(choices), left.picture(), None if right is None else right.picture(),
                left.case.prompt, left.case.negative, len(who.all) - len(who.open), len(who.all),
            )  # fmt: skip

    def answer(self, visitor: str, key: str, choice: int) -> None:
        """Take an answer, by its place in the question's choices; what was said of a pair is stored with its last one.

        Raises:
            ValueError: this question is not open for this visitor, or has no such answer.
        """
        with self._lock:
            who = self._visitor(visitor)
            steps = who.steps()
            if not steps or key != who.key():
                raise ValueError("this question is not open any more; the next one is shown")
            words = list(steps[len(who.said)][3])
            if not 0 <= choice < len(words):
                raise ValueError(f"there are {len(words)} answers to this question")
            said = [*who.said, steps[len(who.said)][3][words[choice]]]
            took = [*who.took, round(time.monotonic() - who.shown[1], 1) if who.shown[0] == key else None]
            if len(said) == len(steps):
                names = [step[:2] for step in steps]
                self._store(who, dict(zip(names, said, strict=True)), dict(zip(names, took, strict=True)))
                said, took = [], []
            who.said, who.took = said, took

    def _store(
        self, who: _Visitor, said: dict[tuple[str, str], Any], took: dict[tuple[str, str], float | None]
    ) -> None:
        key = who.open[0]
        left, right = who.all[key]
        answers: list[Answer] = []
        for side, item in (("left", left), ("right", right)):
            given = {name: value for (where, name), value in said.items() if where == side}
            if item is not None and given:
                unclear = [name for name, value in given.items() if value is None]
                seconds = {name: spent for name in given if (spent := took[side, name]) is not None}
                details = {"seconds": seconds} if seconds else {}
                details |= {"cannot tell": unclear} if unclear else {}
                answers.append(item.judged(**given, details=details))
        about = {"kind": "human", "visitor": who.name, "page_version": PAGE_VERSION}
        store = enroll(self.run, who.judge, about, seed=self.seed)
        for answer in answers:
            store.put(answer.unit, asdict(answer))
        shown = {"left": left.unit, "right": None if right is None else right.unit}
        asked = [answer.unit for answer in answers]
        who.pairs.put(key, {"n": who.count, **shown, "preference": said.get(("", "preference")), "asked": asked})
        who.count += 1
        who.answered |= set(asked)
        who.open.pop(0)
        who.history.append(key)

    def undo(self, visitor: str) -> None:
        """Take back a visitor's last answer, or all of the last pair where nothing was said of the open one yet.

        Raises:
            ValueError: not a name for a visitor, or too many visitors.
        """
        with self._lock:
            who = self._visitor(visitor)
            if who.said:
                who.said.pop()
                who.took.pop()
            elif who.history:
                key = who.history.pop()
                entry = who.pairs.get(key)
                who.pairs.path(key).unlink(missing_ok=True)
                for unit in entry["asked"]:
                    self.run.answers(who.judge).path(unit).unlink(missing_ok=True)
                who.answered -= set(entry["asked"])
                if key in who.all:
                    who.open.insert(0, key)
                else:  # pairs change while a run grows
                    who.refresh()

    def _visitor(self, name: str) -> _Visitor:
        name = visitor_name(name)
        if name not in self._visitors:
            if len(self._visitors) >= _MOST_VISITORS:
                raise ValueError("too many visitors")
            self._visitors[name] = _Visitor(self, name)
        return self._visitors[name]
