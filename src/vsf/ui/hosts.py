"""Under which names the page may be asked for: a foreign name that leads here is another site's (DNS rebinding)."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable

__all__ = ["Hosts"]

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>\d{1,5}))?")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class Hosts:
    """The hosts that a server was started for.

    Those are the name or address it listens at, for loopback all names of loopback; for every address (0.0.0.0) any
    address of numbers, which no other site can be called by, and this machine's own name. `more` are added.

    Raises:
        ValueError: one of `more` is no host name.
    """

    def __init__(self, listens: str, more: Iterable[str] = ()) -> None:
        listens = listens.lower()
        bare = listens.strip("[]")
        address = ipaddress.ip_address(bare) if _is_address(bare) else None
        self._every = address is not None and address.is_unspecified
        self._names = {f"[{bare}]" if ":" in bare else bare}
        if self._every:
            self._names |= {*_LOOPBACK, socket.gethostname().lower()}
        if bare == "localhost" or (address is not None and address.is_loopback):
            self._names |= set(_LOOPBACK)
        #: With their ports, as given: where a proxy hands requests on under another name.
        self._more: set[str] = set()
        for name in more:
            self.add(name)
        if space := os.environ.get("SPACE_HOST"):
            self.add(space.split(",")[0])

    def add(self, host: str) -> None:
        """Allow one more. Raises ValueError."""
        found = _HOST.fullmatch(host.lower())
        if found is None:
            raise ValueError(f"{host[:80]!r} is no host name; give one such as draw.example.org")
        self._names.add(found["name"])
        self._more.add(host.lower())

    def allows(self, host: str) -> bool:
        """Whether a request with this Host header is for us."""
        found = _HOST.fullmatch(host.lower())
        return found is not None and (found["name"] in self._names or (self._every and _is_address(found["name"])))

    def same(self, origin: str, host: str) -> bool:
        """Whether a request from a page of this Origin comes from our own page, asked for as `host`."""
        scheme, _, rest = origin.lower().partition("://")
        return scheme in ("http", "https") and (rest == host.lower() or rest in self._more)
