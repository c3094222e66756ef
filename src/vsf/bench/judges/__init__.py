"""Judges: the demo world's oracle, a multimodal endpoint, a local model, measures of quality, and people.

    from vsf.bench.judges import OracleJudge, judge_run
    judge_run(Run.open("runs/demo"), OracleJudge(), "oracle")

Judging is an act of its own on a finished or unfinished run; several judges stand side by side under their names.
Nothing here goes to the network except `ApiJudge`, and nothing heavy is imported before a judge is made.
"""

from __future__ import annotations

from .api import ApiJudge
from .base import Item, Judge, JudgeError, PictureError, Tally, items, judge_run, tally
from .human import LabelSession
from .local import LocalJudge
from .metrics import MetricJudge
from .oracle import OracleJudge

__all__ = [
    "ApiJudge", "Item", "Judge", "JudgeError", "LabelSession", "LocalJudge", "MetricJudge", "OracleJudge",
    "PictureError", "Tally", "items", "judge_run", "tally",
]  # fmt: skip
