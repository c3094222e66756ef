"""Judges: the demo world's oracle, a multimodal endpoint, a local model, measures of quality, and people.

    from vsf.bench.judges import JUDGES, judge_run
    judge_run(Run.open("runs/demo"), JUDGES.make("oracle", {}), "oracle")

Judging is an act of its own on a finished or unfinished run; several judges stand side by side under their names.
Nothing here goes to the network except "api", and nothing heavy is imported before a judge is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ...registry import Table
from .base import Exhibit, Judge, JudgeError, PictureError, Tally, exhibits, judge_run, tally

__all__ = ["JUDGES", "Exhibit", "Judge", "JudgeError", "PictureError", "Tally", "exhibits", "judge_run", "tally"]

JUDGES: Table[Any] = Table(
    "judge",
    {
        "oracle": f"{__name__}.oracle:OracleJudge",
        "api": f"{__name__}.api:ApiJudge",
        "local": f"{__name__}.local:LocalJudge",
        "tuned": f"{__name__}.tuned:TunedJudge",
        "metrics": f"{__name__}.metrics:MetricJudge",
    },
)
"""Every judge by its name in command lines and sweeps. A new one is a file and a row."""


def __getattr__(name: str) -> Any:
    """The judges' classes, and what people label with, imported when asked for."""
    for where in (*map(str, JUDGES.rows.values()), f"{__name__}.human:LabelSession"):
        module, _, attribute = where.partition(":")
        if attribute == name:
            return getattr(import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
