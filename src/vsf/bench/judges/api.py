"""Any multimodal model behind an OpenAI-compatible endpoint as a judge.

This is the only judge that talks to a network, and only to the address it is given. What leaves the machine is the
pixels of a picture and the questions of its case. The key is read from OPENAI_API_KEY; it is kept in no file, and cut
out of every message.
"""

from __future__ import annotations

import base64
import json
import math
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..run import Answer, Store
from .base import Item, JudgeError, PictureError

__all__ = ["ApiJudge", "Estimate", "Prices"]

PROMPT_VERSION = 1
"""Part of the cache's key: raise it with any change to what is asked."""

_DEFAULT_URL = "https://api.openai.com/v1"
_LONGEST_BODY = 1_000_000
"""Bytes of a reply that are read; an answer has a few hundred."""
_LONGEST_WAIT = 120.0
"""Seconds: a server that asks for more is not waited for."""
_BAD_ANSWERS = 3
"""Times a picture is asked for when what comes back is no answer. Errors of the transport have their own limit."""
_PERMANENT = {
    401: "refuses the key", 402: "asks for payment", 403: "refuses access", 404: "knows no such model or address",
}  # fmt: skip

_SYSTEM = (
    "You judge one generated picture. Say only what is visible in it; do not guess what was meant. "
    "Reply with one JSON object of the given schema: first the reasoning in one or two sentences, then the answers."
)
_QUALITY = (
    "quality: a number from 0 to 1. How well made is the picture, whatever it shows or lacks? 1 is clean and coherent, "
    "0.5 has clear artefacts or distortions, 0 is destroyed."
)


class _Bad(Exception):
    """A reply that is no answer; asking again may help."""


class _Lost(Exception):
    """A reply that broke off on its way."""


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost, in any one currency."""

    tokens_in: float
    tokens_out: float

    def cost(self, usage: Mapping[str, int]) -> float:
        """Cost of so many "tokens_in" and "tokens_out"."""
        return (usage.get("tokens_in", 0) * self.tokens_in + usage.get("tokens_out", 0) * self.tokens_out) / 1_000_000


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


class ApiJudge:
    """Asks a model for `reasoning, answer_1, answer_2, quality` (and which kept parts are there) by JSON schema.

    A picture takes at most `attempts` requests, with growing waits with jitter in between, or as long as the server
    says (Retry-After). What still is no answer then is "not judged" with the reason.

    Args:
        model: the model's name at the endpoint.
        base_url: the endpoint; by default OPENAI_BASE_URL, or OpenAI's own.
        concurrency: requests at the same time.
        attempts: requests for one picture, at most.
        timeout: seconds for one request, all of it.
        prices: for the estimate.
        image_tokens: tokens of a picture for the estimate; by default 85 and 170 per tile of 512 pixels a side.
        max_tokens: longest reply; models that think before they speak need more.
        temperature: as the endpoint takes it; its default if None.
        cache: folder of answers by pixels, questions, model and endpoint; None for no cache.
        give_up: pictures in a row that fail for the endpoint's reasons before the judge stops; None never stops.

    Raises:
        JudgeError: no key for an endpoint that needs one, or the openai package is missing.
        ValueError: a number out of range.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        concurrency: int = 4,
        attempts: int = 5,
        timeout: float = 60.0,
        prices: Prices | None = None,
        image_tokens: int | None = None,
        max_tokens: int = 1024,
        temperature: float | None = None,
        cache: str | Path | None = None,
        give_up: int | None = 20,
    ) -> None:
        for name, value in (("concurrency", concurrency), ("attempts", attempts), ("max_tokens", max_tokens)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not (timeout > 0 and math.isfinite(timeout)):
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout}")
        url = (base_url or os.environ.get("OPENAI_BASE_URL") or _DEFAULT_URL).rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError(
                "the endpoint must be http://HOST/... or https://HOST/... without a name or password in it"
            )
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not key and url == _DEFAULT_URL:
            raise JudgeError("this judge needs a key in the environment variable OPENAI_API_KEY")
        try:
            import openai
        except ImportError:
            raise JudgeError('this judge needs the openai package: pip install "vsf[bench]"') from None
        self._openai = openai
        self._secret = key
        self.model, self.url = model, url
        self.concurrency, self.attempts, self.timeout = concurrency, attempts, timeout
        self.prices, self.image_tokens = prices, image_tokens
        self.max_tokens, self.temperature, self.give_up = max_tokens, temperature, give_up
        self.cache = None if cache is None else Store(Path(cache).expanduser())
        self._stop = threading.Event()
        self._jitter = random.Random()

    def about(self) -> dict[str, Any]:
        """Model, endpoint and what is asked; never the key."""
        return {
            "kind": "api",
            "model": self.model,
            "base_url": self._clean(self.url.split("?")[0]),
            "prompt_version": PROMPT_VERSION,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }

    # -----------------------------------------------------------------------------------------------------------
    # Cost

    def estimate(self, items: Sequence[Item]) -> Estimate:
        """What `read` is about to take: four characters are a token, a reply has 120."""
        requests = cached = tokens = 0
        for item in items:
            try:
                if self.cache is not None and self._cached(self._key(item, item.png())) is not None:
                    cached += 1
                    continue
                width, height = item.picture().size
            except PictureError:
                continue
            requests += 1
            picture = self.image_tokens or 85 + 170 * math.ceil(width / 512) * math.ceil(height / 512)
            tokens += picture + len(_SYSTEM + _question(item) + json.dumps(_schema(item))) // 4
        usage = {"tokens_in": tokens, "tokens_out": 120 * requests}
        return Estimate(requests, cached, **usage, cost=None if self.prices is None else self.prices.cost(usage))

    # -----------------------------------------------------------------------------------------------------------
    # Answers

    def read(self, items: Sequence[Item]) -> Iterator[Answer]:
        """Answers as they come in.

        Raises:
            JudgeError: the key or the model is refused, or `give_up` pictures in a row failed for the endpoint's
                reasons. What was asked at that moment is waited for and answered.
        """
        self._stop.clear()
        queue = iter(items)
        running: set[Future[tuple[Answer, str | None]]] = set()
        failed = 0
        problem: JudgeError | None = None
        with self._connect() as client, ThreadPoolExecutor(self.concurrency, "judge") as pool:
            try:
                while True:
                    while problem is None and len(running) < self.concurrency and (item := next(queue, None)):
                        running.add(pool.submit(self._one, client, item))
                    if not running:
                        break
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        try:
                            answer, fault = future.result()
                        except JudgeError as error:
                            problem = problem or error
                            self._stop.set()
                            continue
                        yield answer
                        failed = failed + 1 if fault == "endpoint" else 0
                        if self.give_up is not None and failed >= self.give_up and problem is None:
                            problem = JudgeError(
                                f"{failed} pictures in a row could not be judged at {self._clean(self.url)} "
                                f"(last: {answer.reason}); stopped"
                            )
                            self._stop.set()
            finally:
                self._stop.set()  # an interrupt does not sit out the waits of what is under way
        if problem is not None:
            raise problem

    def _connect(self) -> Any:
        openai = self._openai
        return openai.OpenAI(
            api_key=self._secret or "none",  # a server of one's own often wants none; the library wants one
            base_url=self.url,
            timeout=self.timeout,
            max_retries=0,  # counted here, together with replies that are no answer
            http_client=openai.DefaultHttpxClient(timeout=self.timeout, follow_redirects=False),
        )

    def _one(self, client: Any, item: Item) -> tuple[Answer, str | None]:
        """The answer to one picture, and whose fault it was if there is none: "picture", "answer" or "endpoint"."""
        usage = {"requests": 0, "tokens_in": 0, "tokens_out": 0}

        def give_up(reason: str, fault: str) -> tuple[Answer, str]:
            return item.not_judged(self._clean(reason), {"usage": usage}), fault

        try:
            png = item.png()
            key = self._key(item, png)
            if (known := self._cached(key)) is not None:
                reasoning = known.pop("reasoning")
                return item.judged(**known, details={"reasoning": reasoning, "cached": True}), None
            body = self._body(item, png)
        except PictureError as error:
            return give_up(str(error), "picture")
        bad = 0
        reason, fault = "", "endpoint"
        for attempt in range(self.attempts):
            if self._stop.is_set():
                raise JudgeError("stopped")
            delay = min(60.0, 0.5 * 2**attempt) * self._jitter.uniform(0.5, 1.0)
            usage["requests"] += 1
            try:
                reply = self._ask(client, body)
                _count(reply, usage)
                verdict = _verdict(reply, item)
            except _Bad as error:
                reason, fault, bad = str(error), "answer", bad + 1
                if bad >= _BAD_ANSWERS:
                    break
                delay = 0.0  # a model that misspoke need not be spared
            except _Lost as error:
                reason, fault = str(error), "endpoint"
            except self._openai.APIStatusError as error:
                reason, fault = self._status(error), "endpoint"
                if error.status_code not in (408, 409, 425, 429) and error.status_code < 500:
                    break  # the server understood and does not want to: the same request again meets the same
                if (wanted := _retry_after(error.response.headers)) is not None:
                    if wanted > _LONGEST_WAIT:
                        reason += f"; it asks to wait {wanted:.0f} s"
                        break
                    delay = max(delay, wanted)
            except self._openai.APITimeoutError:
                reason, fault = f"timeout: no reply in {self.timeout:g} s", "endpoint"
            except self._openai.APIConnectionError as error:
                reason, fault = f"connection failed: {_cause(error)}", "endpoint"
            else:
                verdict["reasoning"] = self._clean(verdict["reasoning"])
                if self.cache is not None:
                    self.cache.put(key, verdict)
                details = {"reasoning": verdict.pop("reasoning"), "usage": usage}
                return item.judged(**verdict, details=details), None
            if attempt + 1 < self.attempts and delay:
                _pause(self._stop, delay)
        return give_up(reason, fault)

    def _ask(self, client: Any, body: Mapping[str, Any]) -> Any:
        """The reply to one request, read up to a limit of length and time. Raises _Bad or an error of openai."""
        deadline = time.monotonic() + self.timeout
        data = b""
        try:
            with client.chat.completions.with_streaming_response.create(**body) as response:
                for piece in response.iter_bytes():
                    data += piece
                    if len(data) > _LONGEST_BODY:
                        raise _Bad("no answer: the reply is too long")
                    if time.monotonic() > deadline:
                        raise _Lost(f"timeout: the reply was not complete in {self.timeout:g} s")
        except (_Bad, _Lost, self._openai.OpenAIError):
            raise
        except Exception as error:  # the transport's own errors while the body is read; their classes vary by version
            if "timeout" in type(error).__name__.lower():
                raise _Lost(f"timeout: the reply was not complete in {self.timeout:g} s") from error
            raise _Lost(f"connection failed: {type(error).__name__} within the reply") from error
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise _Bad("no answer: the reply is not JSON") from None

    def _status(self, error: Any) -> str:
        """Why a request was turned down. Raises JudgeError where every other would be, too."""
        body = error.body if isinstance(error.body, Mapping) else {}
        text = self._clean(" ".join(str(body.get("message") or "").split())[:160])
        if error.status_code in _PERMANENT:
            what = _PERMANENT[error.status_code]
            raise JudgeError(f"{self._clean(self.url)} {what} ({error.status_code}{': ' + text if text else ''})")
        if body.get("code") == "insufficient_quota":
            raise JudgeError(f"{self._clean(self.url)}: the quota is used up ({error.status_code}: {text})")
        return f"status {error.status_code}: {text}" if text else f"status {error.status_code}"

    def _body(self, item: Item, png: bytes) -> dict[str, Any]:
        picture = "data:image/png;base64," + base64.b64encode(png).decode()
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": _SYSTEM},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": _question(item)},
                        {"type": "image_url", "image_url": {"url": picture}},
                    ],
                },
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "verdict", "strict": True, "schema": _schema(item)},
            },
            "max_completion_tokens": self.max_tokens,
        }
        return body if self.temperature is None else {**body, "temperature": self.temperature}

    def _clean(self, text: str) -> str:
        return text.replace(self._secret, "[key]") if self._secret else text

    # -----------------------------------------------------------------------------------------------------------
    # Cache

    def _key(self, item: Item, png: bytes) -> str:
        digest = sha256(png)
        digest.update(json.dumps([self.about(), _SYSTEM, _question(item), list(item.kept)], sort_keys=True).encode())
        name = digest.hexdigest()
        return f"{name[:2]}/{name}"

    def _cached(self, key: str) -> dict[str, Any] | None:
        if self.cache is None:
            return None
        try:
            known = self.cache.get(key)
            return known if known.keys() == {"reasoning", "answer_1", "answer_2", "quality", "kept"} else None
        except (KeyError, ValueError):
            return None


def _pause(stop: threading.Event, seconds: float) -> None:
    stop.wait(seconds)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server wants to be left alone (RFC 9110, 10.2.3: a number, or a date); None if it says nothing
    that can be read."""
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _cause(error: BaseException) -> str:
    """The innermost cause in one word: what the library wraps around it says nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return type(error).__name__


def _question(item: Item) -> str:
    lines = [
        f"answer_1: {item.case.question_1} (true or false)",
        f"answer_2: {item.case.question_2} (true or false)",
    ]
    if item.kept:
        lines.append(f"answer_3: which of these are in the picture: {', '.join(item.kept)}? (a list, may be empty)")
    return "\n".join([*lines, _QUALITY])


def _schema(item: Item) -> dict[str, Any]:
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


def _count(reply: Any, usage: dict[str, int]) -> None:
    """Add what a reply says it has cost."""
    given = reply.get("usage") if isinstance(reply, Mapping) else None
    for ours, theirs in (("tokens_in", "prompt_tokens"), ("tokens_out", "completion_tokens")):
        count = given.get(theirs) if isinstance(given, Mapping) else None
        if type(count) is int and count > 0:
            usage[ours] += count


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


def _verdict(reply: Any, item: Item) -> dict[str, Any]:
    """The fields of an answer, exactly of the types that were asked for. Raises _Bad."""
    from pydantic import ValidationError

    try:
        choice = reply["choices"][0]
        message = choice["message"]
        refusal, content, finish = message.get("refusal"), message.get("content"), choice.get("finish_reason")
    except (AttributeError, IndexError, KeyError, TypeError):
        raise _Bad("no answer: the reply has no message in it") from None
    if refusal or finish == "content_filter":
        raise _Bad(f"refused: {refusal or 'content filter'}")
    if finish == "length":
        raise _Bad("cut off: the reply is longer than allowed")
    if not isinstance(content, str) or not content.strip():
        raise _Bad("no answer: the message is empty")
    try:
        verdict = _verdict_type().model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise _Bad("no answer: the message is not JSON") from None
        where = ".".join(map(str, first["loc"])) or "the message"
        raise _Bad(f"wrong answer: {where}: {first['msg']}") from None
    kept: float | None = None
    if item.kept:
        if verdict.answer_3 is None or not set(verdict.answer_3) <= set(item.kept):
            raise _Bad(f"wrong answer: answer_3 must be a list of {', '.join(item.kept)}")
        kept = len(set(verdict.answer_3)) / len(item.kept)
    return {**verdict.model_dump(exclude={"answer_3"}), "kept": kept}
