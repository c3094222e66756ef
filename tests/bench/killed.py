"""Draws a run with a process that is killed again and again, beside one that is left alone; see test_generate.py.

    python killed.py MODEL FOLDER SEED

Every process is a fork of this one, so that the model is loaded once. Prints what it found as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)  # before any fork: threads are not forked

import vsf.bench.generate as g  # noqa: E402
import vsf.bench.run as r  # noqa: E402
from vsf.bench import drawer  # noqa: E402
from vsf.bench.cases import load_cases  # noqa: E402
from vsf.bench.points import parse_points  # noqa: E402
from vsf.libraries import quiet_libraries  # noqa: E402

KILLS = 20


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment: str, count: int) -> None:
    """Arrange for this process to be killed at the `count`-th file it writes, before, in or after that."""
    seen, replace, write_whole = 0, os.replace, g.write_whole

    def replacing(source: Any, target: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == count and moment == "before":
            die()
        replace(source, target)
        if seen == count and moment == "after":
            die()

    def writing(path: Any, data: bytes) -> None:
        if seen + 1 == count and moment == "half":
            Path(path).with_name(f".{Path(path).name}.x.part").write_bytes(data[: len(data) // 2])
            die()
        write_whole(path, data)

    os.replace = replacing  # type: ignore[assignment]
    g.write_whole = r.write_whole = writing


def forked(run: r.Run, pipe: Any, moment: str, number: float) -> int:
    """Go on with the run in a fork; the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        if moment not in ("never", "later"):
            die_at(moment, int(number))
        try:
            g.generate(run, pipe)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if moment == "later":
        time.sleep(number)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def half_done(run: r.Run) -> list[str]:
    """Records whose picture is not the one they tell of."""
    return [
        key
        for key in run.records.keys()  # noqa: SIM118
        if sha256(run.image(key).read_bytes()).hexdigest() != run.records.get(key)["sha256"]
    ]


def content(run: r.Run) -> dict[str, str]:
    """Every file of a run by name: its bytes; of a record what does not depend on the clock."""
    found: dict[str, str] = {}
    for path in sorted(p for p in run.folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        name = str(path.relative_to(run.folder))
        if name.startswith("records") and path.suffix == ".json":
            record = {k: v for k, v in json.loads(data).items() if k not in drawer.MEASURED}
            data = json.dumps(record).encode()
        found[name] = sha256(data).hexdigest()
    return found


def main(model: str, folder: Path, seed: int) -> None:
    quiet_libraries()
    cases = load_cases("demo")
    points = parse_points(["none", "vsf:scale=2", "nag", "nasa", "cfg:scale=2"])
    ids = tuple(case.id for case in cases.cases[:5])
    plan = r.RunPlan(model, points, ids, cases.name, cases.hash, seeds=(0, 1), steps=1, batch=3)
    pipe = drawer.load(plan)
    drawer.environment()  # once, before the forks: somebody may commit in between
    alone, killed = (r.Run.create(folder / name, plan, cases) for name in ("alone", "killed"))
    ended = [forked(alone, pipe, "never", 0)]
    rng = random.Random(seed)
    torn: list[str] = []
    for _ in range(KILLS):
        moment = rng.choice(("before", "half", "after", "later"))
        number = rng.uniform(0, 0.2) if moment == "later" else rng.randint(1, 9)
        ended.append(forked(killed, pipe, moment, number))
        torn += half_done(killed)
    left = sum(len(wanted) for _, _, wanted in g.missing(killed))
    ended.append(forked(killed, pipe, "never", 0))
    a, b = content(alone), content(killed)
    print(
        json.dumps(
            {
                "ended": ended,
                "torn": torn,
                "left": left,
                "units": len(list(plan.units)),
                "files": len(a),
                "differ": sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k)),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
