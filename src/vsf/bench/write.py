"""Ask a language model for new cases: pairs of a prompt and something it should leave out.

Any OpenAI-compatible endpoint will do. The key comes from OPENAI_API_KEY alone and is kept nowhere. Every reply is
added to a file beside the result before anything is done with it, and the result is a function of that file: whoever
is interrupted at any moment runs the same command again and pays for nothing twice.

A model writes rules down more easily than it keeps them, so each case is checked by `check_rules`, and dropped with
the reason if it breaks one. What remains has to be read by a person, who alone can see whether a picture can be judged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..files import write_whole
from ..libraries import install
from .cases import Case, CaseSet, save_cases, slug
from .endpoint import BadReply, Endpoint, EndpointError, NoReply, message
from .rules import check_rules, stems

__all__ = ["WriteError", "Written", "replies_path", "write_cases"]

FORMAT = "vsf-replies"
VERSION = 1

_ATTEMPTS = 5  # of one request, at most
_DRY = 3  # replies in a row without a new case, after which the model has nothing more to give
_SHOWN = 400  # objects that a request names as taken, the latest

_SYSTEM = """You write test cases for image generators that take a negative prompt. A case asks for an object in a
setting, and for leaving out one thing that nearly every picture of that prompt would show: an essential, visible part
of the object, such as the wheels of a bicycle. Each case keeps these rules:
- prompt: one sentence of 4 to 25 words. It names the object exactly once, gives it a setting and, where it matters, a
  point of view from which the part is seen large. It contains no word of the negative nor one of the same stem or a
  compound of it, and hints at no absence (no "without", "no", "bare", "plain", "empty", "-less", "-free").
- object: the main object, in the words of the prompt.
- negative: the unwanted part, 1 to 3 words. The object is still recognisable when it is gone, and two people would
  agree whether it is gone.
- question_1: "Is there OBJECT in the picture, with or without NEGATIVE?", grammatical.
- question_2: "Is/Are the NEGATIVE missing from the OBJECT?", grammatical.
- category: one or two lower-case words for the kind of thing.
- kept: 1 to 3 other essential, visible parts of the same object, which must stay; never the negative nor a part of it.
- Every case has another object."""

_TEXTS = ("prompt", "object", "negative", "question_1", "question_2", "category")
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "cases": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    **{name: {"type": "string"} for name in _TEXTS},
                    "kept": {"type": "array", "items": {"type": "string"}},
                },
                "required": [*_TEXTS, "kept"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["cases"],
    "additionalProperties": False,
}


class WriteError(RuntimeError):
    """Cases cannot be written, or no more of them. What was paid for is kept."""


@dataclass(frozen=True)
class Written:
    """What came of it.

    Attributes:
        cases: the set, as it is in the file; None if no case came through.
        complete: whether there are as many as were asked for.
        requests: HTTP requests that were made now, failed ones included.
        tokens: those of all replies, earlier ones included, as far as the endpoint says.
        dropped: one line per case or reply that was dropped, with the reason.
    """

    cases: CaseSet | None
    complete: bool
    requests: int
    tokens: int
    dropped: tuple[str, ...]


def replies_path(out: str | Path) -> Path:
    """Where the replies for a file of cases are kept: `cases.replies.jsonl` beside `cases.jsonl`."""
    return Path(out).with_suffix(".replies.jsonl")


class _Replies:
    """All replies ever paid for, one JSON line each behind a header with the topic; rewritten whole with each."""

    def __init__(self, path: Path, topic: str) -> None:
        self.path = path
        header = {"format": FORMAT, "version": VERSION, "topic": topic}
        self.rows: list[dict[str, Any]] = [header]
        if not path.is_file():
            return
        try:
            self.rows = [json.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
            there = self.rows[0]
            if not all(isinstance(row, dict) for row in self.rows) or there.get("format") != FORMAT:
                raise ValueError
        except (ValueError, IndexError, RecursionError):
            raise WriteError(f"{path} is there and holds no replies of an earlier run; give another --out") from None
        if there != header:
            raise WriteError(
                f"{path} holds replies about {there.get('topic')!r}, not about {topic!r}; give another --out"
            )

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        write_whole(self.path, "".join(json.dumps(r) + "\n" for r in self.rows).encode())

    def __len__(self) -> int:
        return len(self.rows) - 1


class _Asking:
    """Requests to an endpoint from one budget. Raises EndpointError when there is no reply in the end."""

    def __init__(self, endpoint: Endpoint, budget: int) -> None:
        self.endpoint, self.budget, self.usage = endpoint, budget, {"requests": 0}

    @property
    def spent(self) -> bool:
        return self.usage["requests"] >= self.budget

    def __call__(self, send: Callable[..., str], **body: Any) -> str:
        before = self.usage["requests"]
        allowed = min(_ATTEMPTS, self.budget - before)
        reason = ""
        try:
            if allowed > 0:
                return send(self.usage, allowed, **body)
        except BadReply as error:
            raise EndpointError(f"{self.endpoint.url}: {error}") from error
        except NoReply as error:
            reason = str(error)
            made = self.usage["requests"] - before
            if made < allowed:
                raise EndpointError(f"{self.endpoint.url} turned the request down ({reason})") from error
            if not self.spent:
                raise EndpointError(
                    f"{self.endpoint.url}: {made} requests in a row failed (last: {reason})"
                ) from error
        raise EndpointError(f"all {self.budget} requests are used{f' (last: {reason})' if reason else ''}")


def write_cases(
    topic: str,
    n: int,
    out: str | Path,
    *,
    model: str,
    base_url: str | None = None,
    name: str | None = None,
    license: str = "unknown",
    dev: float = 0.25,
    per_request: int = 10,
    requests: int | None = None,
    embedding_model: str | None = None,
    similar: float = 0.85,
    avoid: Iterable[Case] = (),
    timeout: float = 120.0,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
    """Write a set of `n` cases about a topic to a file, which grows with every reply.

    Args:
        topic: what the objects are about, in plain words.
        n: how many cases.
        out: the file of cases; replies are kept beside it, see `replies_path`. If both are there, they are continued.
        model: the model's name at the endpoint; the cases' `source` says it.
        base_url: the endpoint; by default OPENAI_BASE_URL, or OpenAI's own.
        name, license: of the set; the file's name by default.
        dev: share of the cases that become "dev", evenly over the order in which they came.
        per_request: cases asked for at a time.
        requests: HTTP requests at most, retries included; by default three times what it takes if all goes well.
        embedding_model: compare objects by the cosine of their embeddings from the same endpoint; by default they
            are compared as strings.
        similar: from this similarity (0 to 1) on two objects are the same.
        avoid: cases whose objects are taken.
        timeout: seconds for one request.
        say: is told what was dropped and why.
        progress: is told (cases there are, cases wanted).

    Raises:
        WriteError: a package missing, or a file in the way; nothing was asked.
        EndpointError: no key, or the endpoint says no, fails for good, or was asked as often as allowed. What came until
            then is in the files, and the same call goes on from there.
        ValueError: a number out of range.
        OSError: the files cannot be written.
    """
    for what, value, low in (("n", n, 1), ("per_request", per_request, 1), ("requests", requests or 1, 1)):
        if value < low:
            raise ValueError(f"{what} must be at least {low}, got {value}")
    if not 0 <= dev <= 1 or not 0 < similar <= 1:
        raise ValueError(f"dev ({dev}) and similar ({similar}) must be shares between 0 and 1")
    if not topic.strip() or not model.strip():
        raise ValueError("topic and model must not be empty")
    if gone := [package for package in ("openai", "pydantic", "rapidfuzz") if not find_spec(package)]:
        raise WriteError(f"writing cases needs {', '.join(gone)}: {install('bench')}")
    out = Path(out)
    topic = " ".join(topic.split())
    replies = _Replies(replies_path(out), topic)
    if out.exists() and not len(replies):
        raise WriteError(f"{out} is there and was not written by this command; give another --out")
    budget = requests or 3 * -(-n // per_request) * (1 if embedding_model is None else 2)
    endpoint = Endpoint(base_url, timeout, "writing cases")
    asking = _Asking(endpoint, budget)
    draft = _Drafting(name or slug(out.name.split(".")[0]) or "cases", license, dev, tuple(avoid), similar, say)
    draft.clean = endpoint.clean
    if embedding_model is not None:
        meaning = _Meaning(asking, replies, embedding_model)
        draft.like, draft.prepare = meaning, meaning.learn

    def take(row: Mapping[str, Any]) -> int:
        before = len(draft.cases)
        draft.take(str(row["text"]), str(row["model"]), n)
        if len(draft.cases) > before:
            save_cases(draft.set(), out)
        progress(len(draft.cases), n)
        return len(draft.cases) - before

    with endpoint:
        earlier = [row for row in replies.rows if row.get("kind") == "cases"]
        draft.say = lambda text: None  # was told then
        for row in earlier:
            take(row)
        draft.say = say
        if earlier:
            say(f"{len(draft.cases)} cases from {len(earlier)} earlier replies in {replies.path}")
        dry = 0
        while len(draft.cases) < n and not asking.spent and dry < _DRY:
            wanted = min(per_request, n - len(draft.cases))
            text = asking(
                endpoint.chat,
                model=model,
                messages=[
                    {"role": "system", "content": _SYSTEM},
                    {"role": "user", "content": _ask(topic, wanted, draft.taken)},
                ],
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "cases", "strict": True, "schema": _SCHEMA},
                },
            )
            replies.add(kind="cases", model=model, text=text)
            dry = 0 if take(replies.rows[-1]) else dry + 1
        if dry >= _DRY:
            say(f"{_DRY} replies in a row brought no new case; stopped")
    return Written(
        draft.set() if draft.cases else None,
        len(draft.cases) >= n,
        asking.usage["requests"],
        sum(_tokens(str(row.get("text"))) for row in replies.rows[1:]),
        tuple(draft.dropped),
    )


def _ask(topic: str, count: int, taken: Sequence[str]) -> str:
    lines = [f"Topic: {topic}", f"Write {count} new cases."]
    if taken:
        lines.append(f"These objects are taken, and so is whatever is nearly the same: {', '.join(taken[-_SHOWN:])}")
    return "\n".join(lines)


def _tokens(text: str) -> int:
    try:
        total = json.loads(text)["usage"]["total_tokens"]
        return total if type(total) is int and total > 0 else 0
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0


# ---------------------------------------------------------------------------------------------------------------
# From replies to cases


class _Drafting:
    """Cases made of replies in their order: the same replies always give the same cases."""

    def __init__(
        self, name: str, license: str, dev: float, avoid: Sequence[Case], similar: float, say: Callable[[str], None]
    ) -> None:
        self.name, self.license, self.dev, self.avoid, self.similar, self.say = name, license, dev, avoid, similar, say
        self.cases: list[Case] = []
        self.dropped: list[str] = []
        self.like: Callable[[str, Sequence[str]], Sequence[float]] = _spelt_alike
        self.clean: Callable[[str], str] = lambda text: text
        self.prepare: Callable[[Sequence[str]], object] = lambda texts: None  # told what will be compared

    @property
    def taken(self) -> list[str]:
        """The objects there are, those to avoid first."""
        return [case.object for case in (*self.avoid, *self.cases) if case.object is not None]

    def set(self) -> CaseSet:
        """The set so far, ordered by id."""
        return CaseSet(self.name, self.license, tuple(sorted(self.cases, key=lambda case: case.id)))

    def _drop(self, what: str, why: str) -> None:
        self.dropped.append(f"{what}: {self.clean(why)}")
        self.say(f"dropped {self.dropped[-1]}")

    def take(self, text: str, model: str, n: int) -> None:
        """Add the good cases of a reply, up to `n` in all."""
        try:
            drafts = _drafts(text)
        except ValueError as error:
            return self._drop("a reply", str(error))
        self.prepare([*self.taken, *(draft["object"] for draft in drafts if isinstance(draft, dict))])
        for number, draft in enumerate(drafts, 1):
            if len(self.cases) >= n:
                return
            if isinstance(draft, str):
                self._drop(f"case {number} of a reply", draft)
                continue
            i = len(self.cases)
            split = "dev" if int((i + 1) * self.dev) > int(i * self.dev) else "test"
            kept = ", ".join(dict.fromkeys(part.strip() for part in draft.pop("kept") if part.strip()))
            id = slug(f"{draft['object']}-{draft['negative']}") or "case"
            try:
                case = Case(id=id, split=split, source=f"written by {model}", kept=kept or None, **draft)
            except ValueError as error:
                self._drop(id, str(error).partition(": ")[2])
                continue
            case = replace(case, category=slug(case.category).replace("-", " ") or "other")
            if wrong := self._wrong(case):
                self._drop(id, wrong)
            else:
                self.cases.append(case)

    def _wrong(self, case: Case) -> str | None:
        """Why a case cannot join the others."""
        if wrong := check_rules([case]):
            return "; ".join(line.partition(": ")[2] for line in wrong)
        assert case.object is not None
        taken = self.taken
        scores = self.like(case.object, taken) if taken else ()
        if scores and max(scores) >= self.similar:
            nearest = taken[max(range(len(taken)), key=scores.__getitem__)]
            return f"{case.object!r} is nearly the same as {nearest!r} ({max(scores):.2f})"
        if any(case.id == other.id for other in self.cases):
            return "there is such a case already"
        return None


def _drafts(text: str) -> list[dict[str, Any] | str]:
    """The cases in a reply, or what is wrong with each. Raises ValueError for a reply that is no list of cases."""
    from pydantic import BaseModel, ConfigDict, ValidationError

    class Draft(BaseModel):
        model_config = ConfigDict(strict=True, str_strip_whitespace=True)
        prompt: str
        object: str
        negative: str
        question_1: str
        question_2: str
        category: str
        kept: list[str]

    try:
        items = json.loads(message(text))["cases"]
    except BadReply:
        raise
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("its message is no JSON with cases") from None
    if not isinstance(items, list):
        raise ValueError("its cases are no list")
    found: list[dict[str, Any] | str] = []
    for item in items:
        try:
            found.append(Draft.model_validate(item).model_dump())
        except ValidationError as error:
            found.append("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3]))
    return found


def _spelt_alike(text: str, others: Sequence[str]) -> list[float]:
    """How alike the stems of the words are, whatever their order, 0 to 1."""
    from rapidfuzz import fuzz

    sorted_stems = [" ".join(sorted(stems(t))) for t in (text, *others)]
    return [fuzz.ratio(sorted_stems[0], other) / 100 for other in sorted_stems[1:]]


class _Meaning:
    """Cosines of embeddings from the endpoint; each text is paid for once, and kept with the replies."""

    def __init__(self, asking: _Asking, replies: _Replies, model: str) -> None:
        self.asking, self.replies, self.model = asking, replies, model
        self.known: dict[str, list[float]] = {}
        for row in replies.rows:
            if row.get("kind") == "embeddings" and row.get("model") == model:
                self._read(row["texts"], str(row["text"]))

    def _read(self, texts: Sequence[str], reply: str) -> None:
        try:
            data = json.loads(reply)["data"]
            vectors = {row["index"]: [float(x) for x in row["embedding"]] for row in data}
            if all(math.isfinite(x) for v in vectors.values() for x in v):
                self.known.update({text: vectors[i] for i, text in enumerate(texts)})
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # asked for again

    def learn(self, texts: Sequence[str]) -> None:
        """Have the embeddings of these texts. Raises EndpointError."""
        for _ in range(_DRY):
            new = [text for text in dict.fromkeys(texts) if text not in self.known]
            if not new:
                return
            reply = self.asking(self.asking.endpoint.embed, model=self.model, input=new, encoding_format="float")
            self.replies.add(kind="embeddings", model=self.model, texts=new, text=reply)
            self._read(new, reply)
        if any(text not in self.known for text in texts):
            raise EndpointError(f"{self.asking.endpoint.url}: the replies of {self.model!r} are no embeddings")

    def __call__(self, text: str, others: Sequence[str]) -> list[float]:
        import numpy as np

        self.learn([text, *others])
        vectors = [self.known[t] for t in (text, *others)]
        if len({len(v) for v in vectors}) > 1:
            raise EndpointError(f"the embeddings of {self.model!r} differ in length")
        x = np.array(vectors)
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        return [float(c) for c in x[1:] @ x[0]]
