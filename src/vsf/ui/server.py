"""Starting the page, and a guard in front of it: only what the page itself needs is answered."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import style
from .sessions import private_folder

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["Guard", "serve"]

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_API = "/gradio_api/"
#: What the page asks the server for; everything else under the API (calls by name, proxies, histories, ...) is refused.
_NEEDED = (
    "queue/", "upload", "file=", "heartbeat/", "startup-events", "theme.css", "app_id", "info", "cancel", "reset", "token",
    "user", "login_check",
)  # fmt: skip
#: The longest request that is no upload, in bytes.
_LONGEST = 256 * 1024

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)


def _files(value: Any) -> Iterator[dict[str, Any]]:
    """Every file that a request names."""
    if isinstance(value, dict):
        if "path" in value or (isinstance(value.get("meta"), dict) and "_type" in value["meta"]):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _files(inner)


def _harmless(body: bytes) -> bool:
    """Whether the files that a request names are files of the page's own folder: no addresses, no other folders."""
    try:
        files = list(_files(json.loads(body))) if body else []
    except (ValueError, RecursionError):
        return False
    home = private_folder().resolve()
    for file in files:
        path = file.get("path")
        if path is None:
            continue
        if not isinstance(path, str) or "\0" in path or not Path(path).resolve().is_relative_to(home):
            return False
    return True


class Guard:
    """Middleware: refuses what the page does not need, and keeps the browser from asking anyone else.

    gradio can fetch addresses for its visitors (`file=https://...`, and files given by address); this page never does.
    """

    def __init__(self, app: Any, policy: bool = True) -> None:
        self.app, self.policy = app, policy

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = str(scope.get("path", ""))
        inside = path.partition(_API)[2] if _API in path else None
        if inside is not None and not self._needed(inside):
            await _refuse(send, 403, "not part of this page")
            return
        if inside is not None and scope["method"] == "POST" and not inside.startswith("upload"):
            body = await _body(receive)
            if body is None:
                await _refuse(send, 413, "the request is too long")
                return
            if not _harmless(body):
                await _refuse(send, 403, "the request names a file that is not of this page")
                return
            receive = _again(body, receive)

        async def with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                    *([(b"content-security-policy", _POLICY.encode())] if self.policy else []),
                    *([(b"cache-control", b"private, no-store")] if inside and inside.startswith("file=") else []),
                ]
                own = {name for name, _ in headers}
                message["headers"] = [h for h in message.get("headers", []) if h[0].lower() not in own] + headers
            await send(message)

        await self.app(scope, receive, with_headers)

    @staticmethod
    def _needed(inside: str) -> bool:
        if inside.startswith("file="):
            return "://" not in inside and not inside.startswith(("file=http:", "file=https:"))
        return inside.startswith(_NEEDED)


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None if it is too long."""
    parts, size = list[bytes](), 0
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _LONGEST:
            return None
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


async def _refuse(send: Send, code: int, text: str) -> None:
    await send({"type": "http.response.start", "status": code, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text.encode()})


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def serve(
    page: gr.Blocks,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    started: Callable[[str], None] | None = None,
    block: bool = True,
) -> str:
    """Start a server for a page made by `build`; with `block`, until an interrupt. Gives its address.

    `host` None: GRADIO_SERVER_NAME if set, else 127.0.0.1. `port` None: the first free one from 7860; 0: any.

    Raises:
        OSError: the port is taken.
    """
    from starlette.middleware import Middleware

    private_folder()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    if port == 0:
        port = _free_port(host or "127.0.0.1")
    limits = page.vsf_page.model.limits  # pyright: ignore[reportAttributeAccessIssue]
    _, local, public = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=limits.upload,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        strict_cors=True,
        state_session_capacity=256,
        favicon_path=str(Path(__file__).with_name("mark.svg")),
        theme=style.theme(),
        css=style.CSS,
        head=style.HEAD,
        # A shared page is drawn by a script from the tunnel's own host.
        app_kwargs={"middleware": [Middleware(Guard, policy=not share)]},  # pyright: ignore[reportArgumentType]
    )
    address = public if share and public else local
    device = page.vsf_page.device  # pyright: ignore[reportAttributeAccessIssue]
    device.start()  # behind the page: that is there at once
    if started is not None:
        started(address)
    if block:
        # A stop by the system leaves as little behind as one by the keyboard.
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            device.close()
            page.close(verbose=False)
    return address
