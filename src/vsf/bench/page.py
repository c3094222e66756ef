"""A report as files: a self-contained HTML page and the same tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_whole
from ..libraries import install
from ..stats import Interval
from . import tables
from .compare import Comparison
from .report import LEVEL, Report
from .run import RunError
from .tables import METRICS

__all__ = ["html", "markdown", "write_report"]


def html(report: Report) -> str:
    """The page. Raises RunError where jinja2 is missing."""
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise RunError(f"a page needs jinja2: {install('bench')}") from None
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)

    def spark(interval: Interval | None, low: float = 0.0, high: float = 1.0) -> Any:
        """A line with the interval and its mean, drawn inside the cell."""
        if interval is None or not np.isfinite((interval.low, interval.high)).all():
            return ""
        a, m, b = (
            max(0.0, min(100.0, 100 * (v - low) / (high - low))) for v in (interval.low, interval.mean, interval.high)
        )
        return Markup(
            '<svg class="spark" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
            f'<path d="M0 4H100" class="rail"/><path d="M{a:.1f} 4H{b:.1f}" class="span"/>'
            f'<path d="M{m:.1f} 0V8" class="mean"/></svg>'
        )

    environment.filters |= {
        "mean": lambda i: "–" if i is None else tables.short(i.mean),
        "ci": lambda i: "" if i is None else f"{tables.short(i.low)} to {tables.short(i.high)}; {i.clusters}",
        "cell": tables.cell,
        "short": tables.short,
        "p": _p,
        "spark": spark,
        "svg": Markup,
        "bytes": lambda b: "–" if b is None else f"{b / 2**30:.2f} GiB",
        "seconds": lambda s: f"{s:.3f}" if s < 1 else f"{s:.2f}" if s < 100 else f"{s:.0f}",
        "glyph": lambda marker: _GLYPHS.get(marker, ""),
    }
    template = environment.from_string(files("vsf.bench").joinpath("templates/report.html").read_text("utf-8"))
    return template.render(r=report, M=METRICS, results=report.results, by_metric=_by_metric, level=LEVEL)


def _by_metric(found: Sequence[Comparison]) -> list[tuple[str, list[Comparison]]]:
    rows = {metric: [c for c in found if c.metric == metric] for metric in METRICS}
    return [(metric, mine) for metric, mine in rows.items() if mine]


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 0.001:
        digits, _, exponent = f"{value:.0e}".partition("e-")
        return f"{digits}e−{int(exponent)}" if exponent else "< 1e−300"
    return f"{value:.3f}".removeprefix("0")


_GLYPHS = {
    "o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "p": "⬟", "h": "⬢", "<": "◀", ">": "▶",
    "*": "★",
}  # fmt: skip


def markdown(report: Report) -> str:
    """The tables of the page as Markdown, the published scores first."""
    results = report.results
    names = [line.name for line in report.lines]
    count, seeds = len(results.cases), len({seed for *_, seed, _ in results.where})
    out = [
        f"# {_md(report.title)}\n",
        f"{count} cases x {seeds} seeds, judge {results.judge}. Means with 95 % intervals, clustered; after the semicolon the "
        f"number of clusters, which are {results.unit}.\n",
        *(f"- {_md(finding)}" for finding in report.findings),
        *(f"- {_md(note)}" for note in report.notes),
        "",
        tables.markdown(results, names, report.metrics),
        f"Differences to {_md(report.reference)}, paired by case and noise; p from flipping whole {results.unit}, "
        f"Holm-corrected over all {len(report.comparisons)} tests of this table:\n",
        _comparisons(report.comparisons),
    ]
    if report.ablations:
        out += [
            "Ablations:\n",
            tables.markdown(results, [line.name for line in report.ablations], report.metrics),
            _comparisons(report.ablation_comparisons),
        ]
    if report.areas:
        out += [
            "Area under the trade-off (positive against negative, 0 to 1 on both axes):\n",
            "| method | points | area |\n|---|---|---|",
            *(f"| {_md(g)} | {n} | {tables.cell(a)} |" for g, n, a in report.areas),
            "",
        ]
    timed = any(li.cost is not None for li in (*report.lines, *report.ablations))
    out += [
        "| method | settings |" + (" seconds per picture |" if timed else ""),
        "|---|---|" + ("---|" if timed else ""),
    ]
    out += [
        f"| {_md(li.name)} | {_md(li.settings)} |"
        + (f" {'–' if li.cost is None else f'{li.cost.seconds:.3f}'} |" if timed else "")
        for li in (*report.lines, *report.ablations)
    ]
    if report.agreements:
        out += ["", "| judges | question | pictures | same | kappa |\n|---|---|---|---|---|"]
        out += [
            f"| {_md(a.first)}, {_md(a.second)} | {a.question} | {a.n} | {tables.cell(a.same)} | {tables.cell(a.kappa)} |"
            for a in report.agreements
        ]
    out += ["", *(f"- {_md(k)}: {_md(v)}" for k, v in report.provenance)]
    return "\n".join(out) + "\n"


def _comparisons(found: Sequence[Comparison]) -> str:
    rows = [
        "| method | figure | difference | p | Holm |",
        "|---|---|---|---|---|",
    ]
    rows += [
        f"| {_md(c.point)} | {METRICS[c.metric].label} | {tables.cell(c.difference)} | {_p(c.p)} | {_p(c.p_holm)} |"
        for c in found
    ]
    return "\n".join(rows) + "\n"


def _md(text: str) -> str:
    for mark in "\\`*_|<>[]":
        text = text.replace(mark, f"\\{mark}")
    return text


def write_report(report: Report, out: str | Path) -> tuple[Path, Path]:
    """Write OUT (.html) and the Markdown table beside it (.md); gives both paths.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    page = Path(out)
    table = page.with_suffix(".md")
    write_whole(page, html(report).encode())
    write_whole(table, markdown(report).encode())
    return page, table
