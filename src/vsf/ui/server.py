"""Starting the page on an address of this machine, and ending it with nothing left behind."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from . import style
from .folder import private_folder, remove_folder
from .guard import Guard
from .hosts import Hosts
from .stop import until_told

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["Server", "serve"]

#: The first ports that are tried.
_PORTS = range(7860, 7960)
#: Open connections; a visitor has up to three.
_CONNECTIONS = 512


def _listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens. Raises OSError with one sentence."""
    wrong = (
        f"the host is {host[:80]!r}, which is no address of this machine; give 127.0.0.1, 0.0.0.0 or one of its own"
    )
    try:
        if re.fullmatch(r"[\d.]+", host):
            ipaddress.ip_address(host)  # or a name server is asked for it, at length
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError):
        raise OSError(wrong) from None
    family, *_, address = found[0]
    for number in _PORTS if port is None else [port]:
        listening = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((address[0], number, *address[2:]))
            listening.listen(128)
            return listening
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRNOTAVAIL:
                raise OSError(wrong) from None
            if error.errno != errno.EADDRINUSE or port is not None:
                taken = "something else listens there already" if error.errno == errno.EADDRINUSE else error.strerror
                raise OSError(f"cannot listen at {host}, port {number}: {taken}") from None
    raise OSError(
        f"cannot listen at {host}: the ports {_PORTS[0]} to {_PORTS[-1]} are all in use; give one with --port"
    )


class Server:
    """A server for a page made by `build`, running from the start; `close` ends it.

    Args:
        page: what `build` made.
        host: the name or address to listen at; None: GRADIO_SERVER_NAME if set, else 127.0.0.1.
        port: None: GRADIO_SERVER_PORT if set, else the first free one from 7860; 0: any.
        share: also a public address, through gradio's tunnel.
        hosts: further names that requests may be for (see `Hosts`).

    Raises:
        OSError: the address is not one of this machine, the port is taken, or there is no tunnel; one sentence.
        ValueError: one of `hosts` is no host name.
    """

    def __init__(
        self,
        page: gr.Blocks,
        host: str | None = None,
        port: int | None = None,
        share: bool = False,
        hosts: Iterable[str] = (),
    ) -> None:
        import uvicorn
        from fastapi import FastAPI
        from gradio import mount_gradio_app

        host = (host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1").strip("[]")
        if port is None and (given := os.environ.get("GRADIO_SERVER_PORT", "")).isdecimal():
            port = int(given)
        allowed = Hosts(host, hosts)
        self._socket = _listen(host, port)
        self.page, self.port = page, self._socket.getsockname()[1]
        page.state_session_capacity = 64
        app = mount_gradio_app(
            FastAPI(openapi_url=None), page, "/", footer_links=[], run_history=False, allowed_paths=[], show_error=False,
            enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False,
            favicon_path=str(Path(__file__).with_name("mark.svg")), theme=style.theme(), css=style.CSS, head=style.HEAD,
        )  # fmt: skip
        # A shared page is drawn by a script from the tunnel's own host.
        guard = Guard(app, page, allowed, policy=not share)
        self._server = uvicorn.Server(
            uvicorn.Config(
                guard,
                log_level="warning",
                ws="none",
                lifespan="on",
                server_header=False,
                timeout_graceful_shutdown=1,
                limit_concurrency=_CONNECTIONS,
            )  # fmt: skip  # pyright: ignore[reportArgumentType]
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="vsf-server", daemon=True
        )
        # The thread that draws hands the interpreter over at every operation, and gets it back after so many seconds: at
        # Python's 5 ms a busy page would slow a drawing down tenfold.
        sys.setswitchinterval(0.0002)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        page.is_running = True
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self.port}/"
        try:
            if share:
                self.address = self._tunnel(allowed)
            page.vsf_page.start()  # pyright: ignore[reportAttributeAccessIssue]  # behind the page: that is there
        except BaseException:
            self.close()
            raise

    def _tunnel(self, allowed: Hosts) -> str:
        from urllib.parse import urlsplit

        from gradio.networking import setup_tunnel

        try:
            public = setup_tunnel("127.0.0.1", self.port, self.page.share_token, None, None)
        except Exception as error:  # whatever the network and the tunnel's program have to say
            raise OSError(f"there is no public address: {error}") from error
        allowed.add(urlsplit(public).netloc)
        return public.replace("http://", "https://", 1)

    def close(self) -> None:
        """End it: jobs stop, visitors are cut off, and the private folder is gone. Takes up to 6 seconds."""
        self.page.vsf_page.close(timeout=4)  # pyright: ignore[reportAttributeAccessIssue]
        self.page.close(verbose=False)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # whom it cuts off is no error
        self._server.should_exit = True
        self._thread.join(timeout=2)
        if tunneling := sys.modules.get("gradio.tunneling"):
            for tunnel in tunneling.CURRENT_TUNNELS:
                tunnel.kill()
        remove_folder()


def serve(
    page: gr.Blocks,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    hosts: Iterable[str] = (),
    started: Callable[[str], None] | None = None,
) -> None:
    """Run a `Server` until SIGINT, SIGTERM or SIGHUP; `started` is given its address.

    Raises:
        OSError, ValueError: as `Server`.
    """
    server: Server | None = None
    with until_told(remove_folder):
        private_folder()
        try:
            server = Server(page, host, port, share, hosts)
            if started is not None:
                with suppress(OSError):  # nobody reads what we say
                    started(server.address)
            threading.Event().wait()
        finally:
            if server is not None:
                server.close()
            remove_folder()
