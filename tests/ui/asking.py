"""Asking a running page as a browser does, and as one should not: raw requests over loopback."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from patience import PATIENCE

ROOT = Path(__file__).parents[2]
API = "/gradio_api/"


class Asker:
    """One visitor without a browser. `page` is the server's port."""

    def __init__(self, port: int, timeout: float = PATIENCE) -> None:
        self.port, self.timeout = port, timeout
        self.session = secrets.token_hex(6)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """(status, body); (0, b"") where the server hung up."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (ConnectionError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def config(self) -> dict[str, Any]:
        """What gradio tells a browser about the page: its components and handlers."""
        _, page = self.ask("GET", "/")
        found = re.search(rb"window\.gradio_config = (\{.*?\});</script>", page, re.DOTALL)
        assert found, page[:500]
        return json.loads(found[1])

    def join(self, handler: int, data: list[Any], event: Any = None) -> tuple[int, str]:
        """Run a handler; (status, id of the event or what was said)."""
        body = json.dumps({"data": data, "event_data": event, "fn_index": handler, "session_hash": self.session})
        code, said = self.ask("POST", f"{API}queue/join", body.encode(), {"content-type": "application/json"})
        answer = json.loads(said or b"{}")
        return code, answer.get("event_id") or answer.get("detail", "")

    @contextmanager
    def stream(self) -> Iterator[Iterator[dict[str, Any]]]:
        """The answers, as they come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        connection.request("GET", f"{API}queue/data?session_hash={self.session}")
        answer = connection.getresponse()

        def messages() -> Iterator[dict[str, Any]]:
            while line := answer.readline():
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])

        try:
            assert answer.status == 200, (answer.status, answer.read())
            yield messages()
        finally:
            answer.close()
            connection.close()

    def run(self, handler: int, data: list[Any], event: Any = None) -> str:
        """Run a handler to its end; everything that was said, as text."""
        code, number = self.join(handler, data, event)
        assert code == 200, (code, number)
        said: list[Any] = []
        with self.stream() as messages:
            for message in messages:
                said.append(message)
                if message.get("event_id") == number and message["msg"] == "process_completed":
                    assert message["success"], message
                    break
        return json.dumps(said, ensure_ascii=False)


class Form:
    """The handlers of a page, found by the elements they belong to, and the values of its fields."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._parts = {part["id"]: part["props"] for part in config["components"]}
        self._ids = {props.get("elem_id"): number for number, props in self._parts.items()}
        self._handlers = config["dependencies"]

    def handler(self, element: str, event: str) -> int:
        number = self._ids[element]
        return next(h["id"] for h in self._handlers if [number, event] in [list(t) for t in h["targets"]])

    def values(self, handler: int, **change: Any) -> list[Any]:
        """The inputs of a handler as the page shows them first, some changed (by the ids of their elements)."""
        inputs = next(h for h in self._handlers if h["id"] == handler)["inputs"]
        wanted = {self._ids[name.replace("_", "-")]: value for name, value in change.items()}
        return [wanted.get(number, self._parts[number].get("value")) for number in inputs]


def png(side: int, text: bytes | None = None) -> bytes:
    """A PNG of `side` x `side` zeros with settings."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj(1)
    pixels = b"".join([*(rows.compress(bytes(1 + side)) for _ in range(side)), rows.flush()])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    words = b"" if text is None else chunk(b"zTXt", b"vsf\0\0" + zlib.compress(text))
    return b"\x89PNG\r\n\x1a\n" + head + words + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def multipart(name: str, content: bytes) -> tuple[bytes, dict[str, str]]:
    """A file as a form sends it: (body, headers)."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return head + content + b"\r\n--x--\r\n", {"content-type": "multipart/form-data; boundary=x"}


def _heard() -> None:
    """A program starts with the signals ignored that its parent ignores: SIGHUP, where the tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Running:
    """A `vsf ui` (or another command that serves the page) of its own. `folder` is its temporary folder and working directory."""

    def __init__(
        self, folder: Path, prefix: str = "", suffix: str = "", options: str = "--port 0", command: str = "ui"
    ) -> None:
        self.folder, self.log = folder, folder / f"log-{secrets.token_hex(4)}"
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        program = f"{sys.executable} -c 'import sys; from vsf.cli import main; sys.exit(main())' {command} {options}"
        # exec: the shell's id is the program's, but where it has to stay in the background.
        script = f"{prefix} {'' if suffix else 'exec'} {program} >{self.log} 2>&1 {suffix}"
        self.process = subprocess.Popen(
            ["sh", "-c", script], env=environment, cwd=folder, start_new_session=True, preexec_fn=_heard
        )
        self.pid = self.process.pid
        found, said = None, ""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            said = self.said
            found = re.search(r"http://[^:/ ]+:(\d+)/", said)
            if found or self.process.poll() is not None:
                break
            time.sleep(0.1)
        assert found, said
        self.port = int(found[1])
        if suffix:
            self.pid = int((folder / "pid").read_text())

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def left(self) -> list[Path]:
        """What it left in the temporary folder."""
        return sorted(path for path in self.folder.glob("vsf-ui-*"))

    def files(self) -> list[Path]:
        """What it holds there now, but for its lock."""
        return [path for path in self.folder.glob("vsf-ui-*/*/**/*") if path.is_file()]

    def alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        stat = Path(f"/proc/{self.pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"

    def end(self, number: int = signal.SIGTERM, patience: float = PATIENCE) -> float:
        """Send a signal; the seconds until it was gone."""
        start = time.monotonic()
        os.kill(self.pid, number)
        while self.alive() and time.monotonic() - start < patience:
            self.process.poll()
            time.sleep(0.05)
        took = time.monotonic() - start
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait()
        return took
