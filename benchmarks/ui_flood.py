"""A flood of bad input against a `vsf ui` of its own, on loopback: does a visitor beside it notice, does anything stay?

    python benchmarks/ui_flood.py --minutes 10

Starts a server, lets one visitor draw alone, then again beside a flood of: pictures that unpack to 169 MB, files of other
kinds, settings nested a million deep or with half a character, bodies of 150 MB, other hosts and origins, requests that are
no event of the page, wrong sizes, seeds and numbers, visitors who leave while they draw, connections that say nothing.
`--clients` of them work at once, each as fast as it is answered, at most `--rate` requests a second altogether.

Prints, and with `--out` writes, the memory of the server over time, the times of the visitor's draws before and beside the
flood, how each kind was answered, and what was left. Exit code 1 if memory grew by more than 100 MB, a draw took more than
twice its time, the log holds a traceback, or a file stayed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "ui"))
from asking import API, Asker, Form, Running, multipart, png  # pyright: ignore[reportMissingImports]

MEGABYTE = 2**20
#: Kinds that are not bad input alone: who leaves has had the device until then, and others wait as for any visitor.
RARE = {"leaving_while_drawing": 0.03}


class Flood:
    """The kinds of bad input; each is a method that says how it was answered."""

    def __init__(self, port: int, form: Form) -> None:
        self.port, self.form = port, form
        self.bomb = png(13000)
        self.deep = png(8, b'{"a":' * 900_000 + b"1" + b"}" * 900_000)
        self.half = png(8, b'{"prompt": "\\ud800"}')
        self.noise = os.urandom(7 * MEGABYTE)
        self.draw = form.handler("draw", "click")

    def kinds(self) -> dict[str, Callable[[Asker, random.Random], Any]]:
        return {
            name: getattr(self, name)
            for name in vars(Flood)
            if not name.startswith("_") and name not in ("kinds",) and callable(getattr(self, name))
        }

    def large_picture(self, it: Asker, dice: random.Random) -> Any:
        return it.ask("POST", f"{API}upload", *multipart("a.png", self.bomb))[0]

    def deep_settings(self, it: Asker, dice: random.Random) -> Any:
        return it.ask("POST", f"{API}upload", *multipart("a.png", self.deep))[0]

    def half_a_character_in_a_picture(self, it: Asker, dice: random.Random) -> Any:
        return it.ask("POST", f"{API}upload", *multipart("a.png", self.half))[0]

    def other_files(self, it: Asker, dice: random.Random) -> Any:
        name = dice.choice(["a.svg", "a.html", "a.exe", "../../a.png", "a" * 300, "a\\u0000b.png"])
        return it.ask("POST", f"{API}upload", *multipart(name, self.noise))[0]

    def restored_settings(self, it: Asker, dice: random.Random) -> Any:
        text = dice.choice(
            ['{"prompt": "\\ud800"}', '{"a":' * 5000, "x" * 32_000, "[]", "1" * 5000, '{"seed": 1e999}',
             json.dumps({"guidance": {"method": "vsf", "scale": {}}, "prompt": "a", "steps": 1, "seed": 0})]
        )  # fmt: skip
        return self._run(it, self.form.handler("restore", "upload"), [], {"name": "a.png", "text": text})

    def half_a_character(self, it: Asker, dice: random.Random) -> Any:
        return it.join(self.draw, self.form.values(self.draw, prompt="\ud800"))[0]

    def long_bodies(self, it: Asker, dice: random.Random) -> Any:
        path = dice.choice(["/login", "/", f"{API}queue/join", f"{API}run/predict"])
        return self._pour(path, 150 * MEGABYTE)

    def no_events(self, it: Asker, dice: random.Random) -> Any:
        body = dice.choice(
            [b"", b"{", b"[" * 100_000, b'{"data": []}', b"\xff" * 1000, b"x" * 300_000,
             json.dumps({"data": [{"path": "/etc/passwd"}], "fn_index": self.draw, "session_hash": "x"}).encode(),
             json.dumps({"data": [1], "fn_index": self.draw, "session_hash": it.session}).encode(),
             json.dumps({"data": [], "fn_index": 10**9, "session_hash": it.session}).encode()]
        )  # fmt: skip
        return it.ask("POST", f"{API}queue/join", body, {"content-type": "application/json"})[0]

    def other_sites(self, it: Asker, dice: random.Random) -> Any:
        headers = dice.choice(
            [{"Host": "evil.example"}, {"Origin": "http://localhost:3000"}, {"Origin": "null"}, {"Host": "x" * 5000}]
        )
        method, path = dice.choice([("GET", "/"), ("OPTIONS", f"{API}queue/join"), ("POST", f"{API}queue/join")])
        return it.ask(method, path, b"{}" if method == "POST" else None, headers)[0]

    def other_paths(self, it: Asker, dice: random.Random) -> Any:
        path = dice.choice(
            ["/config", f"{API}info", f"{API}file=/etc/passwd", f"{API}file=http://127.0.0.1/", f"{API}proxy=http://x/",
             f"{API}queue/data?session_hash=nobody", f"{API}heartbeat/%00", "/monitoring/summary", "/" + "a" * 9000]
        )  # fmt: skip
        return it.ask("GET", path)[0]

    def wrong_values(self, it: Asker, dice: random.Random) -> Any:
        change = dice.choice(
            [{"seed": -3}, {"size": "512x512"}, {"steps": 0}, {"n": 10**9}, {"seed": 1e300}, {"vsf_blocks": "0-9999," * 9},
             {"vsf_scale": -1}, {"method": "x" * 30_000}, {"prompt": "a" * 30_000}, {"negative": "candles:-1"}]
        )  # fmt: skip
        return self._run(it, self.draw, self.form.values(self.draw, **change))

    def leaving_while_drawing(self, it: Asker, dice: random.Random) -> Any:
        alive = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        alive.sendall(f"GET {API}heartbeat/{it.session} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        try:
            code, _ = it.join(self.draw, self.form.values(self.draw, steps=50, n=8))
            if code != 200:
                return code
            with it.stream() as messages:
                for _ in range(dice.randint(1, 5)):
                    next(messages)
            return "left"
        finally:
            alive.close()

    def never_fetched(self, it: Asker, dice: random.Random) -> Any:
        handler = self.form.handler("method", "change")
        return [it.join(handler, ["nag"])[0] for _ in range(5)][-1]

    def saying_nothing(self, it: Asker, dice: random.Random) -> Any:
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(dice.choice([b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le"]))
            time.sleep(dice.random())
        return "hung up"

    def _run(self, it: Asker, handler: int, data: list[Any], event: Any = None) -> Any:
        code, number = it.join(handler, data, event)
        if code != 200:
            return code
        with it.stream() as messages:
            for message in messages:
                if message.get("event_id") == number and message["msg"] == "process_completed":
                    return "sentence" if message["success"] else "failure"
        return "no answer"

    def _pour(self, path: str, size: int) -> Any:
        """Send a long body until the server has had enough."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {size}\r\n\r\n"
            try:
                connection.sendall(head.encode())
                for _ in range(size // MEGABYTE):
                    connection.sendall(bytes(MEGABYTE))
                return int(connection.recv(100).split()[1])
            except (ConnectionError, TimeoutError, IndexError):
                return "hung up"


def memory(pid: int) -> float:
    """The process's own memory in MB."""
    import psutil

    return psutil.Process(pid).memory_info().rss / MEGABYTE


def timed_draw(it: Asker, form: Form, seed: int) -> tuple[float, bool]:
    """Seconds from the click to the picture, and whether another visitor's picture came first: one is drawn at a time."""
    handler = form.handler("draw", "click")
    start = time.perf_counter()
    said = it.run(handler, form.values(handler, seed=seed, steps=8))
    assert "Drawn in" in said, said[-500:]
    return time.perf_counter() - start, "before you" in said


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=8, help="at work at once, 1 to 32")
    parser.add_argument("--rate", type=float, default=30.0, help="requests a second altogether, up to 200")
    parser.add_argument("--draws", type=int, default=30, help="the visitor's draws before the flood")
    parser.add_argument(
        "--without", nargs="*", default=[], metavar="KIND", help="kinds to leave out (see their figures)"
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    given = parser.parse_args(arguments)
    minutes = min(given.minutes, 60.0)
    clients, rate = min(max(given.clients, 1), 32), min(given.rate, 200.0)
    with tempfile.TemporaryDirectory(prefix="ui-flood-") as folder:
        server = Running(Path(folder))
        try:
            figures = flood(server, minutes, clients, rate, given.draws, given.without)
        finally:
            ended = server.end()
        figures |= {
            "seconds to end": round(ended, 2),
            "tracebacks in the log": server.said.count("Traceback"),
            "files left": len([p for p in Path(folder).rglob("*") if p.is_file() and p != server.log]),
        }
        log = server.said
    faults = [
        f"{name} is {figures[name]}"
        for name, limit in (
            ("memory grew by, MB", 100),
            ("slowest draw, times the slowest alone", 2),
            ("tracebacks in the log", 0),
            ("files left", 0),
            ("files held beside the visitor's", 0),
            ("answers that failed", 0),
        )  # fmt: skip
        if figures[name] > limit
    ]
    print(json.dumps(figures, indent=1))
    print("\n".join(["", *faults]) if faults else "\nnothing of it was noticed and nothing stayed")
    if figures["tracebacks in the log"]:
        print(log[-5000:])
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if faults else 0


def pour(port: int, seconds: float, clients: int, rate: float, without: list[str], results: Any) -> None:
    """The flood, in a process of its own and with a low priority: the visitor's clock is not its clock."""
    if hasattr(os, "nice"):
        os.nice(10)
    bad = Flood(port, Form(Asker(port).config()))
    kinds, answers = {k: act for k, act in bad.kinds().items() if k not in without}, Counter[str]()
    names = sorted(kinds)
    end, lock, turn = time.monotonic() + seconds, threading.Lock(), [time.monotonic()]

    def client(number: int) -> None:
        dice = random.Random(number)
        it, used = Asker(port, 60), 0
        while True:
            with lock:  # the rate of all together
                at = turn[0] = max(turn[0], time.monotonic()) + 1 / rate
            if at > end:
                return
            time.sleep(max(0.0, at - time.monotonic()))
            used += 1
            if used % 5 == 0:
                it = Asker(port, 60)
            (name,) = dice.choices(names, [RARE.get(name, 1.0) for name in names])
            try:
                said = str(kinds[name](it, dice))
            except (OSError, StopIteration, AssertionError, ValueError) as error:
                said = type(error).__name__
            with lock:
                answers[f"{name}: {said}"] += 1

    threads = [threading.Thread(target=client, args=(n,), daemon=True) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
    results.put(dict(answers))


def flood(
    server: Running, minutes: float, clients: int, rate: float, draws: int, without: list[str]
) -> dict[str, Any]:
    visitor = Asker(server.port)
    form = Form(visitor.config())
    spawn = multiprocessing.get_context("spawn")

    def start(seconds: float) -> tuple[Any, Any]:
        results = spawn.Queue()
        process = spawn.Process(target=pour, args=(server.port, seconds, clients, rate, without, results), daemon=True)
        process.start()
        return process, results

    def several() -> list[float]:
        return [timed_draw(visitor, form, seed)[0] for seed in range(draws)]

    several()
    process, results = start(10)  # what is loaded then is loaded
    results.get(timeout=300)
    process.join(60)
    time.sleep(3)
    alone = several()
    before, held = memory(server.pid), len(server.files())
    process, results = start(60 * minutes)
    beside, behind = list[float](), list[float]()  # the visitor's draws; those that waited for another's
    grown: list[tuple[int, float]] = []
    began = time.monotonic()
    while time.monotonic() < began + 60 * minutes:
        took, waited = timed_draw(visitor, form, len(beside))
        (behind if waited else beside).append(took)
        grown.append((round(time.monotonic() - began), round(memory(server.pid) - before, 1)))
        time.sleep(1)
    answers = results.get(timeout=600)
    process.join(60)
    time.sleep(5)
    alone += several()
    count = sum(answers.values())
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
        "minutes": minutes,
        "requests": count,
        "requests a second": round(count / (60 * minutes), 1),
        "draws alone: median and slowest, s": [round(statistics.median(alone), 3), round(max(alone), 3)],
        "draws beside the flood: number, median and slowest, s": [
            len(beside), round(statistics.median(beside), 3), round(max(beside), 3)
        ],
        "draws that waited for another visitor's picture: number and slowest, s": [
            len(behind), round(max(behind, default=0.0), 3)
        ],
        "slowest draw, times the slowest alone": round(max(beside) / max(alone), 2),
        "draws slower than twice the slowest alone": sum(took > 2 * max(alone) for took in beside),
        "median draw, times the median alone": round(statistics.median(beside) / statistics.median(alone), 2),
        "memory before, MB": round(before, 1),
        "memory grew by, MB": max(mb for _, mb in grown),
        "memory over time (s, MB more)": grown[:: max(1, len(grown) // 20)],
        "files held beside the visitor's": max(0, len(server.files()) - held),
        "answers that failed": sum(n for said, n in answers.items() if said.endswith(("failure", ": 500", "no answer"))),
        "answers": dict(sorted(answers.items())),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
