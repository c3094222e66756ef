"""A guard in front of gradio: only what the page itself needs is answered, and only to the page itself."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from ..outside import parse_json
from .folder import private_folder
from .hosts import Hosts
from .lean import admit

__all__ = ["LONGEST_TEXT", "Guard"]

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_API = "/gradio_api/"
#: What the page asks for. Everything else (calls by name, uploads, proxies, logins, histories, ...) is refused.
_PAGES = ("/", "/favicon.ico", "/theme.css", f"{_API}app_id")
_FILES = ("/assets/", "/static/")
#: The longest text in a request, in characters; the longest request, in bytes; how long it may take, in seconds.
LONGEST_TEXT = 32_768
_LONGEST = 256 * 1024
_PATIENCE = 15.0
#: How many visitors gradio keeps something of, and how many unanswered requests each may have.
_VISITORS = 256
_WAITING = 32
#: How long a stream of answers stays open after the last one, in seconds, and the answer that closes it then.
_LINGER = 2.0
_LAST = "last"
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors "
)


class _Refused(Exception):
    """An answer other than the page: (status, what is said)."""


class Guard:
    """An ASGI application around gradio's.

    gradio can fetch addresses, keep uploads and run functions by name for its visitors; this page never does. A hosted
    Space is shown in a frame of its hub, every other page in none.

    Args:
        app: gradio's application, `blocks` its page.
        hosts: the hosts that requests may be for.
        policy: whether the browser is told to load nothing from anywhere else.
    """

    def __init__(self, app: Any, blocks: Any, hosts: Hosts, policy: bool = True) -> None:
        self.app, self.blocks, self.hosts = app, blocks, hosts
        frames = "https://huggingface.co https://*.hf.space" if os.environ.get("SPACE_ID") else "'none'"
        self._headers = [
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"content-security-policy", ((_POLICY if policy else "frame-ancestors ") + frames).encode()),
        ]
        self._streams: Counter[str] = Counter()
        self._seen: dict[
            str, asyncio.TimerHandle
        ] = {}  # the visitors, longest ago first, and when their streams close

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return
        path = str(scope["path"])
        try:
            self._is_ours(scope)
            stream = await self._allowed(scope["method"], path, scope)
            if scope["method"] == "POST":
                receive = _again(await self._request(scope, receive), receive)
        except _Refused as refused:
            await self._refuse(send, *refused.args)
            return
        file = path.removeprefix(f"{_API}file=") if path.startswith(f"{_API}file=") else None
        own = self._headers + ([(b"cache-control", b"private, no-store")] if file else [])
        names = {name for name, _ in own}

        async def with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [
                    (name, value)
                    for name, value in message.get("headers", [])
                    # gradio answers other sites that come through loopback: nobody else is allowed to read.
                    if name.lower() not in names and not name.lower().startswith(b"access-control-")
                ]
                message = message | {"headers": kept + own}
            await send(message)

        if file is not None:
            await self._file(Path(file), scope, receive, with_headers)
            return
        if stream:
            self._streams[stream] += 1
        try:
            await self.app(scope, receive, with_headers)
        finally:
            if stream:
                self._streams[stream] -= 1
                if self._streams[stream] <= 0:
                    del self._streams[stream]

    def _is_ours(self, scope: dict[str, Any]) -> None:
        """Whether a request is for this server, and from its own page where a page sent it."""
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self.hosts.allows(hosts[0]):
            raise _Refused(403, "this server was not started for that host; --allow-host adds one")
        for name, value in scope["headers"]:
            if name == b"origin" and not self.hosts.same(value.decode("latin-1"), hosts[0]):
                raise _Refused(403, "the request comes from another site")

    async def _allowed(self, method: str, path: str, scope: dict[str, Any]) -> str:
        """Whether the page asks for this; gives the session whose stream it is, or ""."""
        if method == "POST" and path == f"{_API}queue/join":
            return ""
        if method in ("GET", "HEAD"):
            if path in _PAGES or path.startswith(_FILES) or self._is_file(path):
                return ""
            if method == "GET" and path.startswith(f"{_API}heartbeat/"):
                session = path.removeprefix(f"{_API}heartbeat/")
                if _SESSION.fullmatch(session):
                    admit(self.blocks, session)  # gradio asks for it when the stream ends
                    return session
            if method == "GET" and path == f"{_API}queue/data":
                session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
                if session not in self.blocks._queue.pending_messages_per_session:
                    raise _Refused(404, "nothing was asked for here")
                return await self._only(f"{session} data")
        raise _Refused(403, "not part of this page")

    async def _only(self, stream: str) -> str:
        """A session has one stream of answers: two would take them from each other."""
        for _ in range(20):
            if not self._streams[stream]:
                return stream
            await asyncio.sleep(0.1)  # the last one is about to end
        raise _Refused(409, "this page is listened to already")

    @staticmethod
    def _is_file(path: str) -> bool:
        """Whether this is a file of a result: four levels down in the private folder."""
        name = path.removeprefix(f"{_API}file=")
        if name == path or "\0" in name or ".." in name:
            return False
        home = private_folder()
        return Path(name).is_relative_to(home) and len(Path(name).relative_to(home).parts) == 4

    async def _file(self, path: Path, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """A file of a result. It may go at any moment, when another result takes its place: no fault, but not found.

        gradio, and starlette under it, would take that for an error of the server.
        """
        from starlette.responses import FileResponse

        begun = False

        async def noted(message: dict[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            found = await asyncio.to_thread(path.stat)
            await FileResponse(path, stat_result=found)(scope, receive, noted)  # pyright: ignore[reportArgumentType]
        except OSError:
            if not begun:
                await self._refuse(send, 404, "this picture is not kept any more; draw it again")

    async def _request(self, scope: dict[str, Any], receive: Receive) -> bytes:
        """The body of a request to run one of the page's handlers: checked, and without what is not needed."""
        said = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not said.isdigit() or int(said) > _LONGEST:
            raise _Refused(413, "the request is too long")
        try:
            body = await asyncio.wait_for(_body(receive), _PATIENCE)
            given = parse_json(body, "the request", _LONGEST)
        except asyncio.TimeoutError:
            raise _Refused(408, "the request is too slow") from None
        except ValueError as error:
            raise _Refused(400, str(error)) from None
        if not isinstance(given, dict):
            raise _Refused(400, "the request is no event of this page")
        session, number, data, event = (given.get(key) for key in ("session_hash", "fn_index", "data", "event_data"))
        handler = self.blocks.fns.get(number) if isinstance(number, int) else None
        if (
            handler is None
            or handler.fn is None
            or not isinstance(session, str)
            or not _SESSION.fullmatch(session)
            or not isinstance(data, list)
            or len(data) != len(handler.inputs)
            or not all(_is_plain(value) for value in data)  # so no files either
            or not isinstance(event, (dict, type(None)))
            or not all(_is_plain(value) for value in (event or {}).values())
        ):
            raise _Refused(400, "the request is no event of this page")
        await self._room(session)
        return json.dumps({"session_hash": session, "fn_index": number, "data": data, "event_data": event}).encode()

    async def _room(self, session: str) -> None:
        """Make room for a visitor: gradio itself keeps what it has for everyone who ever came."""
        queue = self.blocks._queue
        if len(queue.pending_event_ids_session.get(session, ())) >= _WAITING:
            raise _Refused(429, "too many requests at once; their answers were not fetched yet")
        closing = self._seen.pop(session, None)
        if closing is not None:
            closing.cancel()
        elif len(self._seen) >= _VISITORS:
            idle = (old for old in self._seen if not self._streams[old] and not self._streams[f"{old} data"])
            oldest = next(idle, None)
            if oldest is None:
                raise _Refused(503, "too many visitors at once; try again later")
            self._seen.pop(oldest).cancel()
            await queue.clean_events(session_hash=oldest)
            for kept in (queue.pending_messages_per_session, queue.pending_event_ids_session):
                kept.pop(oldest, None)
            holder = self.blocks.state_holder
            for kept in (holder.session_data, holder.time_last_used):
                kept.pop(oldest, None)
        admit(self.blocks, session)
        # gradio closes a stream with the last answer. A request that is on its way at that moment was never answered: its page
        # still believes in the stream. So one answer more is expected until nothing was asked for a while.
        queue.pending_event_ids_session.setdefault(session, set()).add(_LAST)
        self._seen[session] = asyncio.get_running_loop().call_later(_LINGER, self._close_stream, session)

    def _close_stream(self, session: str) -> None:
        from gradio.server_messages import ProcessCompletedMessage

        messages = self.blocks._queue.pending_messages_per_session.get(session)
        if self.blocks._queue.pending_event_ids_session.get(session, set()) - {_LAST}:  # something is in work
            self._seen[session] = asyncio.get_running_loop().call_later(_LINGER, self._close_stream, session)
        elif messages is not None:
            messages.put_nowait(ProcessCompletedMessage(event_id=_LAST, output={}, success=True))

    async def _refuse(self, send: Send, code: int, text: str) -> None:
        headers = [(b"content-type", b"application/json"), (b"connection", b"close"), *self._headers]
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"detail": text}).encode()})


def _is_plain(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, (bool, int, float))
        or (isinstance(value, str) and len(value) <= LONGEST_TEXT)
    )


async def _body(receive: Receive) -> bytes:
    """The whole body. Raises _Refused if it is too long."""
    parts, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Refused(400, "the request broke off")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _LONGEST:
            raise _Refused(413, "the request is too long")
        if not message.get("more_body"):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already, then what follows it."""
    given = False

    async def replay() -> dict[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
