"""An OpenAI-compatible endpoint: the one way in which anything leaves this machine, and only to the address that is given.

The key is read from OPENAI_API_KEY; it is written to no file, and cut out of error messages. Asking again is what the
client of openai does itself: growing waits with jitter, or as long as Retry-After says, up to two minutes. What it lacks is
here: a limit on the length of a reply and on the time of a request as a whole, and errors in one sentence.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections.abc import Mapping, MutableMapping
from importlib import import_module
from operator import attrgetter
from typing import Any
from urllib.parse import urlsplit

from ..libraries import install

__all__ = ["BadReply", "Endpoint", "EndpointError", "NoReply", "message", "tokens"]

_DEFAULT_URL = "https://api.openai.com/v1"
_LONGEST_REPLY = 1_000_000
"""Bytes; an answer has a few hundred, a set of cases some thousand."""
_PERMANENT = {
    401: "refuses the key", 402: "asks for payment", 403: "refuses access", 404: "knows no such model or address",
}  # fmt: skip


class EndpointError(RuntimeError):
    """This endpoint cannot be used: whatever is asked next would meet the same."""


class NoReply(RuntimeError):
    """A request that was turned down, or failed as often as it was allowed to; another one may not."""


class BadReply(ValueError):
    """A reply that is no answer; asking again may help."""


class Endpoint:
    """One address, for several threads; requests are made inside of a `with` block.

    Args:
        base_url: the address; by default OPENAI_BASE_URL, or OpenAI's own.
        timeout: seconds for one request, all of it.
        purpose: who needs it, for error messages.

    Raises:
        EndpointError: no key for an address that needs one, or no package openai.
        ValueError: an address that cannot be one, or a timeout out of range.
    """

    def __init__(self, base_url: str | None = None, timeout: float = 60.0, purpose: str = "this") -> None:
        if not (timeout > 0 and math.isfinite(timeout)):
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout}")
        self._address = (base_url or os.environ.get("OPENAI_BASE_URL") or _DEFAULT_URL).rstrip("/")
        parts = urlsplit(self._address)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError(
                "the endpoint must be http://HOST/... or https://HOST/... without a name or password in it"
            )
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not self._key and self._address == _DEFAULT_URL:
            raise EndpointError(f"{purpose} needs a key in the environment variable OPENAI_API_KEY")
        try:
            import openai
        except ImportError:
            raise EndpointError(f"{purpose} needs the openai package: {install('bench')}") from None
        self._openai, self.timeout = openai, timeout
        self.url = self.clean(self._address.split("?")[0])
        self._usage = threading.local()
        self._client: Any = None

    def __enter__(self) -> Endpoint:
        openai, usage, timeout = self._openai, self._usage, self.timeout
        # Where the client's own errors of time are: they are what it takes for a reason to ask again.
        transport: Any = import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])

        class Limited(openai.DefaultHttpxClient):
            def send(self, request: Any, **options: Any) -> Any:
                usage.of["requests"] += 1
                deadline = time.monotonic() + timeout
                response = super().send(request, **{**options, "stream": True})
                try:
                    data = b""
                    for piece in response.iter_bytes():
                        data += piece
                        if len(data) > _LONGEST_REPLY and response.is_success:
                            raise BadReply("no answer: the reply is too long")
                        if len(data) > _LONGEST_REPLY:
                            break  # the beginning of an error says enough
                        if time.monotonic() > deadline:
                            raise transport.ReadTimeout("the reply was not complete in time", request=request)
                finally:
                    response.close()
                headers = {
                    k: v for k, v in response.headers.items() if k not in ("content-encoding", "content-length")
                }
                if response.status_code == 425:  # by RFC 8470 the same again later
                    headers["x-should-retry"] = "true"
                if response.status_code == 429 and b"insufficient_quota" in data:
                    headers["x-should-retry"] = "false"  # a word of the client's own with servers
                return transport.Response(response.status_code, headers=headers, content=data, request=request)

        self._client = openai.OpenAI(
            api_key=self._key or "none",  # a server of one's own often wants none; the library wants one
            base_url=self._address,
            timeout=timeout,
            http_client=Limited(timeout=timeout, follow_redirects=False),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def clean(self, text: str) -> str:
        """An error's text with the key cut out, where it stands as a word of its own.

        What was paid for is never changed, and a key shorter than 8 characters (servers of one's own take any) is no
        secret worth a text full of holes.
        """
        key = self._key
        return re.sub(rf"(?<![\w-]){re.escape(key)}(?![\w-])", "[key]", text) if len(key) >= 8 else text

    def chat(self, usage: MutableMapping[str, int], requests: int, **body: Any) -> str:
        """The text of a reply to a chat completion, after at most so many requests; each is counted in "requests" of
        `usage`, whatever comes of it.

        Raises:
            EndpointError: the key, the access or the model is refused, or the quota used up.
            NoReply: this request was turned down, or failed every time.
            BadReply: an endless reply.
        """
        return self._ask("chat.completions", usage, requests, body)

    def embed(self, usage: MutableMapping[str, int], requests: int, **body: Any) -> str:
        """Likewise, of an embedding request."""
        return self._ask("embeddings", usage, requests, body)

    def _ask(self, what: str, usage: MutableMapping[str, int], requests: int, body: Mapping[str, Any]) -> str:
        self._usage.of = usage
        resource = attrgetter(what)(self._client.with_options(max_retries=requests - 1))
        try:
            return resource.with_raw_response.create(**body).http_response.text
        except self._openai.APIStatusError as error:
            raise self._status(error) from error
        except self._openai.APITimeoutError as error:
            raise NoReply(f"timeout: no whole reply in {self.timeout:g} s") from error
        except self._openai.APIConnectionError as error:
            cause: BaseException = error  # the innermost: what the library wraps around it says nothing
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise NoReply(f"connection failed: {type(cause).__name__}") from error

    def _status(self, error: Any) -> EndpointError | NoReply:
        """Why a request was turned down."""
        code, body = error.status_code, error.body if isinstance(error.body, Mapping) else {}
        text = self.clean(" ".join(str(body.get("message") or "").split()))[:160]
        reason = f"status {code}{f': {text}' if text else ''}"
        if code in _PERMANENT or body.get("code") == "insufficient_quota":
            return EndpointError(f"{self.url} {_PERMANENT.get(code, 'says that the quota is used up')} ({reason})")
        after = error.response.headers.get("retry-after", "")
        return NoReply(reason + (f"; it asks to wait {after[:40]}{' s' if after.isdigit() else ''}" if after else ""))


def message(reply: str) -> str:
    """The text of the one message in a reply to a chat completion.

    Raises:
        BadReply: there is none: no JSON, no message, a refusal, cut off.
    """
    try:
        choice = json.loads(reply)["choices"][0]
        given = choice["message"]
        refusal, content, finish = given.get("refusal"), given.get("content"), choice.get("finish_reason")
    except (ValueError, RecursionError):
        raise BadReply("no answer: the reply is not JSON") from None
    except (AttributeError, IndexError, KeyError, TypeError):
        raise BadReply("no answer: the reply has no message in it") from None
    if refusal or finish == "content_filter":
        raise BadReply(f"refused: {str(refusal or 'content filter')[:160]}")
    if finish == "length":
        raise BadReply("cut off: the reply is longer than allowed")
    if not isinstance(content, str) or not content.strip():
        raise BadReply("no answer: the message is empty")
    return content


def tokens(reply: str) -> dict[str, int]:
    """What a reply says it has cost, as "tokens_in" and "tokens_out"; 0 where it does not say."""
    try:
        given = json.loads(reply)["usage"]
        counts = given.get("prompt_tokens"), given.get("completion_tokens")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        counts = None, None
    return {
        name: count if type(count) is int and count > 0 else 0
        for name, count in zip(("tokens_in", "tokens_out"), counts, strict=True)
    }
