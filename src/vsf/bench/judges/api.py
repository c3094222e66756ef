"""Any multimodal model behind an OpenAI-compatible endpoint as a judge.

What leaves the machine is the pixels of a picture and the questions of its case (see `vsf.bench.endpoint`).
"""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...registry import check, option
from ..endpoint import BadReply, Endpoint, EndpointError, NoReply, message, tokens
from ..run import Answer, Store
from .base import Exhibit, JudgeError, PictureError, png_of
from .local import QUALITY, YES_NO, YES_NO_ASKED
from .spoken import booleans, chosen

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ApiJudge", "Estimate"]

PROMPT_VERSION = 1
"""Part of the cache's key: raise it with any change to what is asked."""

_BAD_ANSWERS = 3
"""Times a picture is asked for when what comes back is no answer."""

_ALTERNATIVES = 20
"""To each token of which probabilities are asked for: the most that endpoints give."""

_FIELDS = {"reasoning", "answer_1", "answer_2", "quality", "kept"}

_SYSTEM = (
    "You judge one generated picture. Say only what is visible in it; do not guess what was meant. "
    "Reply with one JSON object of the given schema: first the reasoning in one or two sentences, then the answers."
)
_QUALITY = (
    "quality: a number from 0 to 1. How well made is the picture, whatever it shows or lacks? 1 is clean and coherent, "
    "0.5 has clear artefacts or distortions, 0 is destroyed."
)


@dataclass(frozen=True)
class Estimate:
    """What judging is about to take, if every picture is answered at the first time of asking.

    Attributes:
        requests: pictures that are not in the cache.
        cached: pictures that are.
        tokens_in, tokens_out: of all requests together; a rule of thumb.
        cost: at the given prices; None without.
    """

    requests: int
    cached: int
    tokens_in: int
    tokens_out: int
    cost: float | None


@dataclass(eq=False)
class ApiJudge:
    """Asks a model for `reasoning, answer_1, answer_2, quality` (and which kept parts are there) by JSON schema.

    A picture takes at most `attempts` requests. What still is no answer then is "not judged" with the reason. `cache` is a
    folder of answers by pixels, questions, model and endpoint; after `give_up` pictures in a row that failed for the
    endpoint's reasons the judge stops (None: never).

    With `words` every question is a request of its own, put as `LocalJudge` puts it and answered by yes or no: for a judge that
    was tuned to that and writes no JSON. With `logprobs` the probabilities of the answers are asked for; where the server gives
    them, the more probable answer counts instead of the one that was written, and they are in the details.

    Raises:
        JudgeError: no key for an endpoint that needs one, or no package openai.
        ValueError: an address that cannot be one, prices by half, or a number out of range.
    """

    gives: ClassVar = ("answer_1", "answer_2", "quality", "kept")

    model: str = option("name of the model at the endpoint")
    _: KW_ONLY
    base_url: str | None = option(
        "endpoint, such as http://127.0.0.1:8000/v1; else OPENAI_BASE_URL, or OpenAI's own", None
    )
    concurrency: int = option("requests at a time", 4, low=1, high=256)
    attempts: int = option("requests per picture, at most", 5, low=1, high=20)
    timeout: float = option("seconds for one request, all of it", 60.0, low=0.001)
    price_in: float | None = option("price of a million tokens sent, in any currency", None, low=0)
    price_out: float | None = option("price of a million tokens received", None, low=0)
    image_tokens: int | None = option(
        "tokens of one picture, for the estimate; else 85 and 170 per 512 px tile", None, low=1
    )
    max_tokens: int = option("longest reply; models that think before they speak need more", 1024, low=1)
    temperature: float | None = option("as the endpoint takes it; else its default", None, low=0)
    words: bool = option("ask each question alone and read yes or no, as of a tuned judge; else all as JSON", False)
    logprobs: bool = option("ask for the probabilities of the answers, and use them where the server has them", False)
    cache: str | Path | None = option("folder of answers already paid for", None)
    give_up: int | None = option("pictures in a row that fail before it stops", 20, low=1)

    def __post_init__(self) -> None:
        check(self)
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("price_in and price_out are given together")
        try:
            self._endpoint = Endpoint(self.base_url, self.timeout, "this judge")
        except EndpointError as error:
            raise JudgeError(str(error)) from error
        self._answers = None if self.cache is None else Store(Path(self.cache).expanduser())

    def about(self) -> dict[str, Any]:
        """Model, endpoint and what is asked; never the key."""
        return {
            "kind": "api",
            "model": self.model,
            "base_url": self._endpoint.url,
            "prompt_version": PROMPT_VERSION,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            **{name: True for name in ("words", "logprobs") if getattr(self, name)},
        }

    # -----------------------------------------------------------------------------------------------------------
    # Cost

    def cost(self, usage: Mapping[str, int]) -> float | None:
        """What so many "tokens_in" and "tokens_out" cost; None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (usage.get("tokens_in", 0) * self.price_in + usage.get("tokens_out", 0) * self.price_out) / 1_000_000

    def estimate(self, items: Sequence[Exhibit]) -> Estimate:
        """What `read` is about to take: four characters are a token, a reply has 120 (one word: 2)."""
        requests = cached = tokens = 0
        for item in items:
            try:
                if self._cached(self._key(item, item.png())) is not None:
                    cached += 1
                    continue
                width, height = item.picture().size
            except PictureError:
                continue
            asks = 3 + len(item.kept) if self.words else 1
            requests += asks
            picture = self.image_tokens or 85 + 170 * math.ceil(width / 512) * math.ceil(height / 512)
            said = _question(item) if self.words else _SYSTEM + _question(item) + json.dumps(_schema(item))
            tokens += picture * asks + len(said) // 4
        usage = {"tokens_in": tokens, "tokens_out": (2 if self.words else 120) * requests}
        return Estimate(requests, cached, **usage, cost=self.cost(usage))

    # -----------------------------------------------------------------------------------------------------------
    # Answers

    def read(self, items: Sequence[Exhibit]) -> Iterator[Answer]:
        """Answers as they come in.

        Raises:
            JudgeError: the key or the model is refused, or `give_up` pictures in a row failed for the endpoint's
                reasons. What was asked at that moment is waited for and answered.
        """
        queue = iter(items)
        running: set[Future[tuple[Answer, bool]]] = set()
        failed = 0
        problem: JudgeError | None = None
        # Left in this order, so that after an interrupt nothing more is sent: the connections close, then threads end.
        with ThreadPoolExecutor(self.concurrency, "judge") as pool, self._endpoint:
            while True:
                while problem is None and len(running) < self.concurrency and (item := next(queue, None)):
                    running.add(pool.submit(self._one, item))
                if not running:
                    break
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    try:
                        answer, answered = future.result()
                    except EndpointError as error:
                        problem = problem or JudgeError(str(error))
                        continue
                    yield answer
                    failed = 0 if answered else failed + 1
                    if self.give_up is not None and failed >= self.give_up and problem is None:
                        problem = JudgeError(
                            f"{failed} pictures in a row could not be judged at {self._endpoint.url} "
                            f"(last: {answer.reason}); stopped"
                        )
        if problem is not None:
            raise problem

    def _one(self, item: Exhibit) -> tuple[Answer, bool]:
        """The answer to one picture, and whether the endpoint answered at all, be it badly. Raises EndpointError."""
        usage = {"requests": 0, "tokens_in": 0, "tokens_out": 0}
        try:
            png = item.png()
        except PictureError as error:
            return item.not_judged(str(error), {"usage": usage}), True
        key = self._key(item, png)
        if (known := self._cached(key)) is not None:
            return _answer(item, known, cached=True), True
        reason = ""
        for _ in range(_BAD_ANSWERS):
            if usage["requests"] >= self.attempts:
                break
            try:
                verdict = self._words(item, png, usage) if self.words else self._json(item, png, usage)
            except NoReply as error:
                return item.not_judged(str(error), {"usage": usage}), False
            except BadReply as error:
                reason = self._endpoint.clean(str(error))
                continue
            if self._answers is not None:
                self._answers.put(key, verdict)
            return _answer(item, verdict, usage=usage), True
        return item.not_judged(reason, {"usage": usage}), True

    def answer(self, picture: Image.Image, question: str, *, asks: str = "other", item: str = "") -> float | None:
        """P(yes), from the server's probabilities with `logprobs`, else 1 or 0 by the word; None for neither. One request."""
        try:
            with self._endpoint:
                return self._word(png_of(picture), question + YES_NO_ASKED, YES_NO, Counter())[0]
        except (EndpointError, NoReply) as error:  # who is asked for one answer only has nothing to fall back on
            raise JudgeError(str(error)) from error
        except BadReply:
            return None

    def _chat(self, usage: MutableMapping[str, int], messages: list[dict[str, Any]], left: int, **more: Any) -> str:
        """A reply to messages. Raises as `Endpoint.chat`."""
        more |= {} if self.temperature is None else {"temperature": self.temperature}
        more |= {"logprobs": True, "top_logprobs": _ALTERNATIVES} if self.logprobs else {}
        body = {"model": self.model, "messages": messages, "max_completion_tokens": self.max_tokens, **more}
        reply = self._endpoint.chat(usage, left, **body)
        for name, count in tokens(reply).items():
            usage[name] += count
        return reply

    def _word(
        self,
        png: bytes,
        question: str,
        words: tuple[str, str],
        usage: MutableMapping[str, int],
        left: int | None = None,
    ) -> tuple[float, bool]:
        content = [_shown(png), {"type": "text", "text": question}]
        reply = self._chat(usage, [{"role": "user", "content": content}], self.attempts if left is None else left)
        return chosen(reply, words)

    def _words(self, item: Exhibit, png: bytes, usage: MutableMapping[str, int]) -> dict[str, Any]:
        """A verdict from one question at a time. Raises as `Endpoint.chat` and BadReply."""
        p: dict[str, float] = {}
        given: list[str] = []
        asked: dict[str, tuple[str, tuple[str, str]]] = {
            "answer_1": (item.case.question_1 + YES_NO_ASKED, YES_NO),
            "answer_2": (item.case.question_2 + YES_NO_ASKED, YES_NO),
            "quality": (QUALITY, ("good", "poor")),
            **{f"kept:{part}": (f"Can you see {part} in this picture?{YES_NO_ASKED}", YES_NO) for part in item.kept},
        }
        for number, (name, (question, words)) in enumerate(asked.items()):
            spare = self.attempts + number - usage["requests"]  # each question has one request; the others are shared
            p[name], known = self._word(png, question, words, usage, max(1, spare))
            given += [name] * known
        kept = [p[name] >= 0.5 for name in p if name.startswith("kept:")]
        return {
            "reasoning": None, "answer_1": p["answer_1"] >= 0.5, "answer_2": p["answer_2"] >= 0.5, "quality": p["quality"],
            "kept": sum(kept) / len(kept) if kept else None, "probabilities": {name: p[name] for name in given},
        }  # fmt: skip

    def _json(self, item: Exhibit, png: bytes, usage: MutableMapping[str, int]) -> dict[str, Any]:
        """A verdict from all questions at once. Raises as `Endpoint.chat` and BadReply."""
        messages = [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": [{"type": "text", "text": _question(item)}, _shown(png)]},
        ]
        schema = {"name": "verdict", "strict": True, "schema": _schema(item)}
        left = self.attempts - usage["requests"]
        reply = self._chat(usage, messages, left, response_format={"type": "json_schema", "json_schema": schema})
        verdict = _verdict(message(reply), item)
        p = booleans(reply, ("answer_1", "answer_2")) if self.logprobs else {}
        more = {"probabilities": p} if p else {}
        return {**verdict, **{name: value >= 0.5 for name, value in p.items()}, **more}

    # -----------------------------------------------------------------------------------------------------------
    # Cache

    def _key(self, item: Exhibit, png: bytes) -> str:
        digest = sha256(png)
        digest.update(json.dumps([self.about(), _SYSTEM, _question(item), list(item.kept)], sort_keys=True).encode())
        name = digest.hexdigest()
        return f"{name[:2]}/{name}"

    def _cached(self, key: str) -> dict[str, Any] | None:
        if self._answers is None:
            return None
        try:
            known = self._answers.get(key)
            return known if known.keys() - {"probabilities"} == _FIELDS else None
        except (KeyError, ValueError):
            return None


def _shown(png: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(png).decode()}}


def _answer(item: Exhibit, verdict: Mapping[str, Any], **details: Any) -> Answer:
    said = {name: value for name, value in verdict.items() if name not in ("reasoning", "probabilities")}
    p = {name: round(value, 6) for name, value in (verdict.get("probabilities") or {}).items()}
    return item.judged(
        **said, details={"reasoning": verdict["reasoning"], **({"probabilities": p} if p else {}), **details}
    )


def _question(item: Exhibit) -> str:
    lines = [
        f"answer_1: {item.case.question_1} (true or false)",
        f"answer_2: {item.case.question_2} (true or false)",
    ]
    if item.kept:
        lines.append(f"answer_3: which of these are in the picture: {', '.join(item.kept)}? (a list, may be empty)")
    return "\n".join([*lines, _QUALITY])


def _schema(item: Exhibit) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "reasoning": {"type": "string"},
        "answer_1": {"type": "boolean"},
        "answer_2": {"type": "boolean"},
    }
    if item.kept:
        properties["answer_3"] = {"type": "array", "items": {"type": "string", "enum": list(item.kept)}}
    properties["quality"] = {"type": "number"}
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


@lru_cache(maxsize=1)
def _verdict_type() -> Any:
    from pydantic import ConfigDict, Field, create_model

    return create_model(
        "Verdict",
        __config__=ConfigDict(strict=True, allow_inf_nan=False),
        reasoning=(str, Field(max_length=20_000)),
        answer_1=(bool, ...),
        answer_2=(bool, ...),
        quality=(float, Field(ge=0, le=1)),
        answer_3=(list[str] | None, None),
    )


def _verdict(content: str, item: Exhibit) -> dict[str, Any]:
    """The fields of an answer, exactly of the types that were asked for. Raises BadReply."""
    from pydantic import ValidationError

    try:
        verdict = _verdict_type().model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise BadReply("no answer: the message is not JSON") from None
        where = ".".join(map(str, first["loc"])) or "the message"
        raise BadReply(f"wrong answer: {where}: {first['msg']}") from None
    kept: float | None = None
    if item.kept:
        if verdict.answer_3 is None or not set(verdict.answer_3) <= set(item.kept):
            raise BadReply(f"wrong answer: answer_3 must be a list of {', '.join(item.kept)}")
        kept = len(set(verdict.answer_3)) / len(item.kept)
    return {**verdict.model_dump(exclude={"answer_3"}), "kept": kept}
