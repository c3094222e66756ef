"""Answers without their pictures, as one small file: what a published table is made of, and made of again.

A gzipped CSV whose first line is a comment with the plans, the cases and the judge as JSON::

    # {"format": "vsf-answers", "version": 1, "judge": "oracle", "runs": [{"name": "test", "plan": {...}, ...}], ...}
    run,point,case,seed,negative,status,answer_1,answer_2,quality,kept,identity,reason
    test,none,bike-basket-yellow-city,0,true,judged,1,0,1.0,1.0,1,

`negative` is the kind of negative: true or unrelated. What is read is a run like any other, but for pictures and records,
so `vsf.bench.report` and `vsf.bench.tables` take it as it is.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

from ..files import plain, write_whole
from .cases import Case, CaseSet
from .run import Answer, Run, RunError, RunPlan, Store, Unit

__all__ = ["read_answers", "write_answers"]

FORMAT = "vsf-answers"
VERSION = 1
_COLUMNS = (
    "run", "point", "case", "seed", "negative", "status", "answer_1", "answer_2", "quality", "kept", "identity", "reason",
)  # fmt: skip
_OF_CLIPS = ("flicker", "motion", "ends")
"""Columns behind the others, in files about clips alone."""
_MADE = (
    "weights", "pipeline", "revision", "commit", "dtype", "device", "hardware", "threads", "versions", "git", "size",
)  # fmt: skip
"""Of records: what is kept where it is the same for all pictures of a run."""
_YES_NO = ("answer_1", "answer_2", "identity")
_SHARES = ("quality", "kept")


class _Memory(Store):
    """Entries that are in no folder."""

    def __init__(self, entries: Mapping[str, dict[str, Any]]) -> None:
        super().__init__("")
        self.entries = entries

    def put(self, key: str, data: Mapping[str, Any]) -> None:
        raise RunError("a run that was read from a file of answers cannot be changed")

    def get(self, key: str) -> dict[str, Any]:
        return self.entries[key]

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def keys(self) -> set[str]:
        return set(self.entries)


class _Stored(Run):
    """A run of which there are answers alone; every picture that was asked about counts as drawn."""

    def __init__(self, run: Mapping[str, Any], cases: Mapping[str, CaseSet], judge: str) -> None:
        plan = RunPlan.from_dict(run["plan"])
        super().__init__(Path(run["name"]), plan, cases[plan.cases_hash])
        self._judge, self._about = judge, dict(run["about"])
        self.made: dict[str, Any] = dict(run["made"])
        self.said: dict[str, dict[str, Any]] = {}

    def judges(self) -> list[str]:
        return [self._judge]

    def judge(self, name: str) -> dict[str, Any]:
        if name != self._judge:
            raise RunError(f"no judge {name!r} in {self.folder}; there: {self._judge}")
        return self._about

    def answers(self, judge: str) -> Store:
        return _Memory(self.said if judge == self._judge else {})


def write_answers(path: str | Path, runs: Sequence[Run], judge: str) -> None:
    """Write what `judge` said about these runs.

    Raises:
        RunError: no such judge, or two of the runs' folders have one name.
        OSError: the folder is missing or cannot be written to.
    """
    names = [run.folder.resolve().name for run in runs]
    if len(set(names)) < len(names):
        raise RunError(f"a file of answers needs runs of different names, got {', '.join(names)}")
    sets = {run.cases.hash: run.cases for run in runs}
    head = {
        "format": FORMAT,
        "version": VERSION,
        "judge": judge,
        "runs": [
            {"name": name, "plan": run.plan.to_dict(), "about": run.judge(judge), "made": _made(run)}
            for name, run in zip(names, runs, strict=True)
        ],
        "cases": [
            {"name": one.name, "license": one.license, "cases": [case.to_dict() for case in one]}
            for one in sets.values()
        ],
    }
    text = StringIO()
    text.write("# " + json.dumps(plain(head), allow_nan=False) + "\n")
    table = csv.writer(text, lineterminator="\n")
    said = [(name, answer) for name, run in zip(names, runs, strict=True) for answer in run.judged(judge)]
    clips = any(answer.motion is not None for _, answer in said)
    columns = (*_COLUMNS, *_OF_CLIPS) if clips else _COLUMNS
    table.writerow(columns)
    table.writerows(_row(name, answer, columns) for name, answer in said)
    write_whole(path, gzip.compress(text.getvalue().encode(), mtime=0))


def _made(run: Run) -> dict[str, Any]:
    records = [run.records.get(id) for id in sorted(run.records.keys())]
    found = {name: [record.get(name) for record in records] for name in _MADE}
    return {name: values[0] for name, values in found.items() if values and all(v == values[0] for v in values)}


def _row(run: str, answer: Answer, columns: Sequence[str]) -> list[Any]:
    unit, given = Unit.parse(answer.unit), asdict(answer)
    yes_no = {name: None if given[name] is None else int(given[name]) for name in _YES_NO}
    row = {
        **given,
        **yes_no,
        "run": run,
        "point": unit.point,
        "case": unit.case,
        "seed": unit.seed,
        "negative": unit.kind,
    }
    return ["" if row[name] is None else row[name] for name in columns]


def read_answers(path: str | Path, only: Sequence[str] = ()) -> list[Run]:
    """The runs of a file that `write_answers` wrote, or those named in `only`, in this order.

    Raises:
        RunError: the file is missing or damaged, or has no such run.
    """
    try:
        lines = gzip.decompress(Path(path).read_bytes()).decode("utf-8").splitlines()
        head = json.loads(lines[0].removeprefix("# ")) if lines and lines[0].startswith("# ") else None
        if not isinstance(head, dict) or head.get("format") != FORMAT or head.get("version") != VERSION:
            raise RunError(f"{path} is no file of answers ({FORMAT}, version {VERSION})")
        runs = {run.folder.name: run for run in _runs(head)}
        for row in csv.DictReader(lines[1:]):
            answer = _answer(row)
            runs[row["run"]].said[answer.unit] = asdict(answer)
    except OSError as error:
        raise RunError(f"cannot read the answers in {path}: {error.strerror or error}") from error
    except RunError:
        raise
    except (EOFError, ValueError, KeyError, TypeError, IndexError) as error:
        raise RunError(f"the answers in {path} cannot be read: {type(error).__name__}: {error}") from error
    for run in runs.values():
        run.records = _Memory(dict.fromkeys(run.said, run.made))
    if unknown := [name for name in only if name not in runs]:
        raise RunError(f"no run {unknown[0]!r} in {path}; there: {', '.join(runs)}")
    return [runs[name] for name in (only or runs)]


def _runs(head: Mapping[str, Any]) -> Iterator[_Stored]:
    sets = [
        CaseSet(one["name"], one["license"], tuple(Case(**case) for case in one["cases"])) for one in head["cases"]
    ]
    by_hash = {one.hash: one for one in sets}
    yield from (_Stored(run, by_hash, head["judge"]) for run in head["runs"])


def _answer(row: Mapping[str, str]) -> Answer:
    given: dict[str, Any] = {name: None if row[name] == "" else bool(int(row[name])) for name in _YES_NO}
    given |= {name: None if row[name] == "" else float(row[name]) for name in _SHARES}
    given |= {name: float(row[name]) for name in _OF_CLIPS if row.get(name)}
    unit = Unit(row["point"], row["case"], int(row["seed"]), row["negative"])  # type: ignore[arg-type]
    return Answer(unit.id, row["status"], reason=row.get("reason") or None, **given)  # type: ignore[arg-type]
