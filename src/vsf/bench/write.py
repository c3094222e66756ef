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
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..images import write_whole
from .cases import Case, CaseSet, _stems, check_rules, save_cases, slug

__all__ = ["EndpointError", "WriteError", "Written", "replies_path", "write_cases"]

FORMAT = "vsf-replies"
VERSION = 1

_URL = "https://api.openai.com/v1"
_ATTEMPTS = 5  # of one request, at most
_DRY = 3  # replies in a row without a new case, after which the model has nothing more to give
_SHOWN = 400  # objects that a request names as taken, the latest
_LONGEST_WAIT = 120.0  # seconds
_LONGEST_REPLY = 1_000_000  # characters that are kept
_REFUSED = {401: "refuses the key", 402: "asks for payment", 403: "refuses access", 404: "knows no such model"}

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


class EndpointError(WriteError):
    """The endpoint says no, fails for good, or was asked as often as allowed; the same call can go on from there."""


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


class _Endpoint:
    """Requests with a budget, retries and waits. Nothing that leaves here contains the key."""

    def __init__(self, base_url: str | None, budget: int, timeout: float, wait: Callable[[float], None]) -> None:
        url = (base_url or os.environ.get("OPENAI_BASE_URL") or _URL).rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise WriteError(
                "the endpoint must be http://HOST/... or https://HOST/... without a name or password in it"
            )
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not self._key and url == _URL:
            raise WriteError("writing cases needs a key in the environment variable OPENAI_API_KEY")
        import openai

        self._openai, self._wait, self._timeout = openai, wait, timeout
        self.url, self.budget, self.used = self.clean(url.split("?")[0]), budget, 0
        self._client = openai.OpenAI(
            api_key=self._key or "none",  # a server of one's own often wants none; the library wants one
            base_url=url,
            timeout=timeout,
            max_retries=0,  # counted here
            http_client=openai.DefaultHttpxClient(timeout=timeout, follow_redirects=False),
        )

    def clean(self, text: str) -> str:
        """The text with the key cut out."""
        return text.replace(self._key, "[key]") if self._key else text

    def close(self) -> None:
        self._client.close()

    @property
    def spent(self) -> bool:
        return self.used >= self.budget

    def chat(self, **body: Any) -> str:
        """The text of a reply with status 200."""
        return self._request(self._client.chat.completions.with_raw_response.create, body)

    def embed(self, **body: Any) -> str:
        """Likewise, of an embedding request."""
        return self._request(self._client.embeddings.with_raw_response.create, body)

    def _request(self, send: Callable[..., Any], body: Mapping[str, Any]) -> str:
        reason = ""
        for attempt in range(_ATTEMPTS):
            if self.spent:
                raise EndpointError(f"all {self.budget} requests are used{f' (last: {reason})' if reason else ''}")
            delay = min(60.0, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)
            self.used += 1
            try:
                return self.clean(send(**body).http_response.text[:_LONGEST_REPLY])
            except self._openai.APIStatusError as error:
                reason = self._status(error)
                delay = max(delay, self._asked_to_wait(error))
            except self._openai.APITimeoutError:
                reason = f"no reply in {self._timeout:g} s"
            except self._openai.APIConnectionError as error:
                reason = f"connection failed: {type(error.__cause__ or error).__name__}"
            if attempt + 1 < _ATTEMPTS and not self.spent:
                self._wait(delay)
        raise EndpointError(f"{self.url}: {_ATTEMPTS} requests in a row failed (last: {reason})")

    def _status(self, error: Any) -> str:
        """Why a request was turned down. Raises EndpointError where the same one would be again."""
        code = error.status_code
        body = error.body if isinstance(error.body, Mapping) else {}
        text = self.clean(" ".join(str(body.get("message") or "").split())[:160])
        reason = f"status {code}{f': {text}' if text else ''}"
        if code in _REFUSED or body.get("code") == "insufficient_quota":
            raise EndpointError(f"{self.url} {_REFUSED.get(code, 'says that the quota is used up')} ({reason})")
        if code not in (408, 409, 425, 429) and code < 500:
            raise EndpointError(f"{self.url} turned the request down ({reason})")
        return reason

    def _asked_to_wait(self, error: Any) -> float:
        try:
            seconds = float(error.response.headers.get("retry-after", 0))
        except ValueError:
            return 0.0
        if seconds > _LONGEST_WAIT:
            raise EndpointError(f"{self.url} asks to wait {seconds:.0f} s (status {error.status_code})")
        return seconds if seconds > 0 else 0.0


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
    wait: Callable[[float], None] = time.sleep,
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
        wait: sleeps.

    Raises:
        WriteError: no key, a package missing, or a file in the way; nothing was asked.
        EndpointError: the endpoint fails for good; what came until then is in the files.
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
        raise WriteError(f'writing cases needs {", ".join(gone)}: pip install "vsf[bench]"')
    out = Path(out)
    topic = " ".join(topic.split())
    replies = _Replies(replies_path(out), topic)
    if out.exists() and not len(replies):
        raise WriteError(f"{out} is there and was not written by this command; give another --out")
    budget = requests or 3 * -(-n // per_request) * (1 if embedding_model is None else 2)
    endpoint = _Endpoint(base_url, budget, timeout, wait)
    draft = _Drafting(name or slug(out.name.split(".")[0]) or "cases", license, dev, tuple(avoid), similar, say)
    if embedding_model is not None:
        meaning = _Meaning(endpoint, replies, embedding_model)
        draft.like, draft.prepare = meaning, meaning.learn

    def take(row: Mapping[str, Any]) -> int:
        before = len(draft.cases)
        draft.take(str(row["text"]), str(row["model"]), n)
        if len(draft.cases) > before:
            save_cases(draft.set(), out)
        progress(len(draft.cases), n)
        return len(draft.cases) - before

    try:
        earlier = [row for row in replies.rows if row.get("kind") == "cases"]
        draft.say = lambda text: None  # was told then
        for row in earlier:
            take(row)
        draft.say = say
        if earlier:
            say(f"{len(draft.cases)} cases from {len(earlier)} earlier replies in {replies.path}")
        dry = 0
        while len(draft.cases) < n and not endpoint.spent and dry < _DRY:
            wanted = min(per_request, n - len(draft.cases))
            text = endpoint.chat(
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
    finally:
        endpoint.close()
    return Written(
        draft.set() if draft.cases else None,
        len(draft.cases) >= n,
        endpoint.used,
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
        self.prepare: Callable[[Sequence[str]], object] = lambda texts: None  # told what will be compared

    @property
    def taken(self) -> list[str]:
        """The objects there are, those to avoid first."""
        return [case.object for case in (*self.avoid, *self.cases) if case.object is not None]

    def set(self) -> CaseSet:
        """The set so far, ordered by id."""
        return CaseSet(self.name, self.license, tuple(sorted(self.cases, key=lambda case: case.id)))

    def _drop(self, what: str, why: str) -> None:
        self.dropped.append(f"{what}: {why}")
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
        choice = json.loads(text)["choices"][0]
        message = choice["message"]
        content, refusal = message["content"], message.get("refusal")
        finish = choice.get("finish_reason")
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("it has no message in it") from None
    if refusal or finish == "content_filter":
        raise ValueError(f"the model refused: {str(refusal or 'content filter')[:160]}")
    if finish == "length":
        raise ValueError("it was cut off by the endpoint's limit of length; ask for fewer cases at a time")
    try:
        items = json.loads(content)["cases"]
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

    stems = [" ".join(sorted(_stems(t))) for t in (text, *others)]
    return [fuzz.ratio(stems[0], other) / 100 for other in stems[1:]]


class _Meaning:
    """Cosines of embeddings from the endpoint; each text is paid for once, and kept with the replies."""

    def __init__(self, endpoint: _Endpoint, replies: _Replies, model: str) -> None:
        self.endpoint, self.replies, self.model = endpoint, replies, model
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
            reply = self.endpoint.embed(model=self.model, input=new, encoding_format="float")
            self.replies.add(kind="embeddings", model=self.model, texts=new, text=reply)
            self._read(new, reply)
        if any(text not in self.known for text in texts):
            raise EndpointError(f"{self.endpoint.url}: the replies of {self.model!r} are no embeddings")

    def __call__(self, text: str, others: Sequence[str]) -> list[float]:
        import numpy as np

        self.learn([text, *others])
        vectors = [self.known[t] for t in (text, *others)]
        if len({len(v) for v in vectors}) > 1:
            raise EndpointError(f"the embeddings of {self.model!r} differ in length")
        x = np.array(vectors)
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        return [float(c) for c in x[1:] @ x[0]]
