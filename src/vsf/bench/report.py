"""One page that says what was measured: a self-contained HTML file and a Markdown table beside it.

Everything on it comes from run folders; nothing is drawn or judged here. Which cases are shown is decided by rules that
the page states, not by hand. Text of users (cases, names, reasons) is escaped.
"""

from __future__ import annotations

import base64
import datetime
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..images import write_whole
from ..stats import Interval
from . import tables
from .plots import Dot, Style, forest, styles, tradeoff_plot
from .run import Answer, Run, RunError
from .tables import METRICS, TESTED, Comparison, Results, describe, group_of, is_ablation

if TYPE_CHECKING:
    from .sweep import Row, Sweep

__all__ = ["Report", "build", "write_report"]

_THUMB = 192
_LEVEL = 0.05


@dataclass(frozen=True)
class Picture:
    """A thumbnail with what the judge said."""

    source: str
    alt: str
    answer: Answer | None
    good: bool | None


@dataclass(frozen=True)
class Strip:
    """One case on a contact sheet: a row of pictures per kind of negative."""

    case: Any
    seed: int
    rows: tuple[tuple[str, str, tuple[Picture | None, ...]], ...]
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One point of a table."""

    number: int
    name: str
    group: str
    method: str
    settings: str
    scores: dict[str, Interval]
    marks: dict[str, str]
    marker: str
    color: str
    drawn: int
    judged: int
    broken: int
    cost: tables.Cost | None
    extra: str = ""


@dataclass
class Report:
    """Everything on the page, as plain values for the template."""

    title: str
    results: Results
    reference: str
    lines: list[Line]
    ablations: list[Line]
    extras: list[Line]
    metrics: list[str]
    findings: list[str]
    comparisons: list[Comparison]
    ablation_comparisons: list[Comparison]
    areas: list[tuple[str, int, Interval]]
    plots: dict[str, str]
    forests: list[str]
    sheet: list[Strip]
    extremes: list[tuple[str, str, list[Strip]]]
    ablation_sheet: list[Strip]
    agreements: list[tables.Agreement]
    judges: list[tuple[str, str]]
    unjudged: list[tuple[str, str, int]]
    categories: tuple[str, list[tuple[str, int, list[float | None]]]]
    provenance: list[tuple[str, str]]
    sweep: dict[str, Any] | None = None
    memory_is: str = ""
    notes: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------------------------
# Pictures


@lru_cache(maxsize=4096)
def _thumb(path: Path) -> str:
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return ""
    image.thumbnail((_THUMB, _THUMB), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=88, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _picture(results: Results, point: str, case: str, seed: int, kind: str) -> Picture | None:
    if results.points[point].method == "none":
        kind = "true"
    run = results.where.get((point, case, seed, kind))
    name = point.partition("@")[0]
    source = _thumb(run.image(f"{name}/{case}--{seed}--{kind}")) if run else ""
    if not source:
        return None
    answer = results.answers[point].get((case, seed, kind))
    if answer is None:
        return Picture(source, f"{point}: not judged", None, None)

    def said(value: bool | None) -> str:
        return "not judged" if value is None else "yes" if value else "no"

    quality = "" if answer.quality is None else f", quality {answer.quality:.2f}"
    alt = f"{point}: object there {said(answer.answer_1)}, part missing {said(answer.answer_2)}{quality}"
    known = (answer.answer_1, answer.answer_2, answer.quality)
    good = None
    if None not in known:
        good = bool(answer.answer_1 and answer.answer_2 and (answer.quality or 0.0) >= results.threshold)
    return Picture(source, alt, answer, good)


def _strip(results: Results, points: Sequence[str], case: str, controls: bool, note: str = "") -> Strip | None:
    seeds = sorted({seed for point in points for _, c, seed, _ in _keys(results, point) if c == case})
    if not seeds:
        return None
    negative = results.cases[case].negative
    rows = [("without", negative, tuple(_picture(results, p, case, seeds[0], "true") for p in points))]
    if controls:
        other = _unrelated(results, points, case, seeds[0])
        pictures = tuple(_picture(results, p, case, seeds[0], "unrelated") for p in points)
        if other and any(pictures):
            rows.append(("control: without", other, pictures))
    return Strip(results.cases[case], seeds[0], tuple(rows), note)


def _keys(results: Results, point: str) -> list[tuple[str, str, int, str]]:
    return _index(results).get(point, [])


def _index(results: Results) -> dict[str, list[tuple[str, str, int, str]]]:
    found = results.__dict__.get("_by_point")
    if found is None:
        found = {}
        for key in results.where:
            found.setdefault(key[0], []).append(key)
        results.__dict__["_by_point"] = found
    return found


def _unrelated(results: Results, points: Sequence[str], case: str, seed: int) -> str:
    """The negative that the control was really drawn with, from a record."""
    for point in points:
        run = results.where.get((point, case, seed, "unrelated"))
        if run is not None:
            try:
                record = run.records.get(f"{point.partition('@')[0]}/{case}--{seed}--unrelated")
            except KeyError:
                continue
            if record.get("negative"):
                return str(record["negative"])
    return ""


# ---------------------------------------------------------------------------------------------------------------
# What is shown, by rule


def _evenly(items: Sequence[str], count: int) -> list[str]:
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def _case_means(results: Results, point: str, metric: str) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    for (case, _), value in results.values(point, metric).items():
        sums.setdefault(case, []).append(value)
    return {case: sum(v) / len(v) for case, v in sums.items()}


def _extremes(
    results: Results, reference: str, points: Sequence[str], count: int
) -> list[tuple[str, str, list[Strip]]]:
    metric = "joint" if results.values(reference, "joint") else "negative"
    guided = [p for p in points if results.points[p].method != "none"]
    means = {p: _case_means(results, p, metric) for p in guided}
    others = [p for p in guided if p != reference]
    order = [c for c in results.cases if all(c in means[p] for p in guided)]
    if not order or not guided:
        return []
    label = METRICS[metric].label
    found: list[tuple[str, str, list[Strip]]] = []

    def add(title: str, rule: str, ranked: list[tuple[float, str]]) -> None:
        strips = [_strip(results, points, case, True, f"{label}: {value:+.2f}") for value, case in ranked[:count]]
        if kept := [s for s in strips if s is not None]:
            found.append((title, rule, kept))

    if others:
        lead = {c: means[reference][c] - float(np.mean([means[p][c] for p in others])) for c in order}
        rule = (
            f"mean {label} of {reference} over the seeds of a case, minus that of the other guided methods together; "
            "equal cases in the order of the set; the first seed is shown"
        )
        ahead = sorted(((v, c) for c, v in lead.items() if v > 0), key=lambda pair: -pair[0])
        behind = sorted(((v, c) for c, v in lead.items() if v < 0), key=lambda pair: pair[0])
        add(f"Where {reference} is furthest ahead", f"up to {count}, the largest {rule}", ahead)
        add(f"Where {reference} is furthest behind", f"up to {count}, the lowest {rule}", behind)
    hardest = sorted(((float(np.mean([means[p][c] for p in guided])), c) for c in order), key=lambda pair: pair[0])
    add(
        "The hardest cases",
        f"the {count} lowest means of {label} over all guided methods and the seeds of a case",
        hardest,
    )
    return found


# ---------------------------------------------------------------------------------------------------------------
# Building


def _pick_reference(results: Results, reference: str | None) -> str:
    if reference is not None:
        if reference not in results.points:
            raise RunError(f"no point {reference!r} to compare with; there: {', '.join(results.points)}")
        return reference
    guided = [n for n, p in results.points.items() if p.method != "none" and not is_ablation(p)]
    if "vsf" in guided:
        return "vsf"
    return (guided or list(results.points))[0]


_PLAIN = Style("", "")
"""Of ablations, which stand in no plot."""


def _lines(
    results: Results, names: Sequence[str], found: Sequence[Comparison], first: int, looks: dict[str, Any]
) -> list[Line]:
    marks: dict[str, dict[str, str]] = {}
    for c in found:
        if c.p_holm < _LEVEL:
            marks.setdefault(c.point, {})[c.metric] = "▲" if c.difference.mean > 0 else "▼"
    lines: list[Line] = []
    for number, name in enumerate(names, first):
        point, records = results.points[name], results.records[name]
        look = looks.get(group_of(name), _PLAIN)
        own = {k: v for k, v in (("steps", point.steps), ("guidance", point.guidance_scale)) if v is not None}
        lines.append(
            Line(
                number, name, group_of(name), point.method, describe(point.settings), results.scores(name),
                marks.get(name, {}), look.marker, look.color,
                len(records), len(results.answers[name]), sum(bool(r.get("broken")) for r in records),
                results.cost(name), ", ".join(f"{k} {v:g}" for k, v in own.items()),
            )
        )  # fmt: skip
    return lines


def _dots(lines: Sequence[Line], x: str, y: str, numbered: bool = True) -> list[Dot]:
    return [
        Dot(line.number if numbered else None, line.name, line.group, line.scores[x], line.scores[y])
        for line in lines
        if x in line.scores and y in line.scores
    ]


def _forests(
    found: Sequence[Comparison], lines: Sequence[Line], looks: Any, prefix: str, metrics: Sequence[str] = TESTED
) -> list[str]:
    at = {line.name: line for line in lines}
    plots: list[str] = []
    for metric in metrics:
        rows = [
            (at[c.point].number, c.point, at[c.point].group, c.difference, c.p_holm < _LEVEL)
            for c in found
            if c.metric == metric and np.isfinite((c.difference.low, c.difference.high)).all()
        ]
        if rows:
            m = METRICS[metric]
            plots.append(forest(rows, m.label, looks, f"{prefix}{len(plots)}", m.more))
    return plots


def _span(interval: Interval) -> str:
    return tables.cell(interval)


def _findings(results: Results, reference: str, lines: Sequence[Line], found: Sequence[Comparison]) -> list[str]:
    """Sentences that follow from the figures by rule."""
    said: list[str] = []
    at = {line.name: line for line in lines}
    guided = [line for line in lines if line.method != "none"]
    for metric in ("joint", "balanced"):
        if not (ranked := [li for li in guided if metric in li.scores]):
            continue
        highest = max(li.scores[metric].mean for li in ranked)
        top = [li for li in ranked if li.scores[metric].mean == highest]
        said.append(
            f"Highest {METRICS[metric].label} score ({METRICS[metric].help}): {' and '.join(li.name for li in top)}, "
            f"{_span(top[0].scores[metric])}."
            + (f" Without guidance: {_span(at['none'].scores[metric])}." if metric in _of(at, "none") else "")
            + _against(metric, reference, at, found)
        )
    ref = at.get(reference)
    if ref and "specificity" in ref.scores:
        said.append(
            f"With {reference} the part is gone in {_span(ref.scores['negative'])} of pictures; with a negative about "
            f"something else, in {_span(ref.scores['negative_unrelated'])}. The difference, what the negative meant, is "
            f"{_span(ref.scores['specificity'])}."
        )
    kept = sorted((li for li in guided if "retention" in li.scores), key=lambda li: -li.scores["retention"].mean)
    if ref and kept and "retention" in ref.scores and kept[0].name != reference:
        said.append(
            f"What it costs: {reference} keeps {_span(ref.scores['retention'])} of the object's other parts; the most is "
            f"kept by {kept[0].name}, {_span(kept[0].scores['retention'])}"
            + (f", without guidance {_span(at['none'].scores['retention'])}" if "retention" in _of(at, "none") else "")
            + "."
        )
    return said


def _against(metric: str, reference: str, at: dict[str, Line], found: Sequence[Comparison]) -> str:
    """Who differs from the reference in a figure, and who cannot be told apart from it."""
    mine = [c for c in found if c.metric == metric and at[c.point].method != "none"]
    groups = (
        ("beyond chance below it", [c for c in mine if c.p_holm < _LEVEL and c.difference.mean < 0]),
        ("beyond chance above it", [c for c in mine if c.p_holm < _LEVEL and c.difference.mean > 0]),
        ("not told apart from it", [c for c in mine if c.p_holm >= _LEVEL]),
    )
    parts = [
        f"{word}: {', '.join(f'{c.point} {_span(c.difference)}' for c in group)}" for word, group in groups if group
    ]
    return f" Against {reference}, Holm-corrected, {'; '.join(parts)}." if parts else ""


def _of(at: dict[str, Line], name: str) -> dict[str, Interval]:
    return at[name].scores if name in at else {}


def _categories(results: Results, names: Sequence[str]) -> tuple[str, list[tuple[str, int, list[float | None]]]]:
    """A figure's label and its mean per category of cases and point; no rows where the judge gave none."""
    metric = "joint" if any(results.values(n, "joint") for n in names) else "negative"
    by: dict[str, list[str]] = {}
    for case in results.cases.values():
        by.setdefault(case.category, []).append(case.id)
    means = {name: _case_means(results, name, metric) for name in names}
    rows: list[tuple[str, int, list[float | None]]] = []
    for category, ids in sorted(by.items()):
        cells: list[float | None] = []
        for name in names:
            mine = [means[name][c] for c in ids if c in means[name]]
            cells.append(float(np.mean(mine)) if mine else None)
        if any(c is not None for c in cells):
            rows.append((category, len(ids), cells))
    return METRICS[metric].label, rows


def _distinct(values: Iterable[Any], of: str = "pictures") -> str:
    counts = Counter(str(v) for v in values if v is not None)
    if len(counts) <= 1:
        return next(iter(counts), "unknown")
    return "; ".join(f"{value} ({n:,} {of})" for value, n in counts.most_common())


def _provenance(results: Results, main: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    records = [r for rows in results.records.values() for r in rows]
    notes: list[str] = []
    plans = [run.plan for run in results.runs]
    rows: list[tuple[str, str]] = [
        ("runs", ", ".join(run.folder.resolve().name for run in results.runs)),
        ("pictures", f"{len(records):,}"),
        ("cases", _distinct((f"{p.cases_name}, SHA-256 {p.cases_hash}" for p in plans), "runs")),
        ("splits", _distinct((case.split for case in results.cases.values()), "cases")),
        ("model", _distinct((p.model for p in plans), "runs")),
        ("revision", _distinct(r.get("revision") or r.get("commit") for r in records)),
        ("weights, SHA-256", _distinct(r.get("weights") for r in records)),
        ("pipeline", _distinct(r.get("pipeline") for r in records)),
        ("steps, batch", _distinct((f"{p.steps} steps, batches of {p.batch}" for p in plans), "runs")),
        ("seeds", "; ".join(f"{r.folder.resolve().name}: {', '.join(map(str, r.plan.seeds))}" for r in results.runs)),
        ("size", _distinct("x".join(map(str, r["size"])) for r in records if r.get("size"))),
        ("dtype, device", _distinct(f"{r.get('dtype')} on {r.get('device')}" for r in records)),
        ("machine", _distinct(f"{r.get('hardware')}, {r.get('threads')} threads" for r in records)),
        ("versions", _distinct(", ".join(f"{k} {v}" for k, v in (r.get("versions") or {}).items()) for r in records)),
        (
            "commit",
            _distinct(
                f"{g['commit']}{', with uncommitted changes' if g.get('dirty') else ''}"
                for r in records
                if (g := r.get("git"))
            ),
        ),
        ("page", f"vsf {__version__}, {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC"),
    ]
    if any(r.get("git") and r["git"].get("dirty") for r in records):
        notes.append("Some pictures were drawn by a package with uncommitted changes.")
    if len({r.get("weights") for r in records}) > 1:
        notes.append(
            "The runs were drawn by models with different weights: differences between them are not the methods'."
        )
    if len({r.get("hardware") for r in records}) > 1:
        notes.append("The pictures come from several kinds of machine: compare their runtimes with care.")
    planned: dict[str, set[tuple[str, int]]] = {n: set() for n in main}
    for name, case, noise, _ in results.where:
        if name in planned:
            planned[name].add((case, noise))
    if len({frozenset(p) for p in planned.values()}) > 1:
        notes.append(
            "Not all points of the first table were planned for the same cases and noises. Scores side by side may "
            "differ for that alone; differences are taken over what both have."
        )
    if not any(results.answers.values()):
        notes.append(f"{results.judge} could judge no picture, so there are no figures.")
    if any(case.split == "dev" for case in results.cases.values()):
        notes.append("Some cases are of the dev split. If settings were chosen on it, these figures flatter them.")
    return [(k, v) for k, v in rows if v and v != "unknown"], notes


def _sweep_part(sweep: Sweep) -> dict[str, Any]:
    """Tries, best settings and the trade-off of a sweep on dev."""
    from .sweep import OBJECTIVES, area

    rows = sweep.rows()
    best = sweep.best(rows)
    looks = styles(sweep.arms)

    def exact(value: float) -> Interval:
        return Interval(value, value, value, 1, 1)

    def dot(row: Row, number: int | None) -> Dot:
        return Dot(number, row.arm, row.arm, exact(row.scores["negative"]), exact(row.scores["positive"]))

    dots = [dot(r, sweep.arms.index(r.arm) + 1) for r in best.values()]
    dots += [dot(r, None) for arm in sweep.arms for r in sweep.front(arm, rows) if r != best[arm]]
    arms: list[dict[str, Any]] = []
    for number, arm in enumerate(sweep.arms, 1):
        mine = [r for r in rows if r.arm == arm]
        arms.append(
            {
                "number": number, "name": arm, "color": looks[arm].color, "marker": looks[arm].marker,
                "tries": len(mine), "failed": sum(r.state == "fail" for r in mine),
                "value": best[arm].value if arm in best else None,
                "first": next((r.value for r in mine if r.number == 0), None),
                "area": area(mine), "settings": describe(best[arm].settings) if arm in best else "",
            }
        )  # fmt: skip
    return {
        "objective": OBJECTIVES[sweep.objective].help,
        "budget": sweep.budget,
        "cases": len(sweep.chosen),
        "seeds": len(sweep.seeds),
        "arms": arms,
        "plot": tradeoff_plot(dots, "negative (dev)", "positive (dev)", looks, "sweep") if dots else "",
        "front": [
            (r.arm, describe(r.settings), r.scores["negative"], r.scores["positive"]) for r in sweep.front(None, rows)
        ],
    }


def build(
    runs: Sequence[Run],
    *,
    judge: str | None = None,
    reference: str | None = None,
    title: str = "Negative prompts, measured",
    sweep: Sweep | None = None,
    seed: int = 0,
    cases: int = 20,
    extremes: int = 4,
) -> Report:
    """Compute everything that stands on the page.

    Args:
        judge: whose answers; needed where several judges saw the runs.
        reference: the point that the others are compared with; "vsf" or the first guided one by default.
        sweep: the sweep that the settings come from, to report its dev figures.
        seed: of permutations and bootstraps.
        cases: rows of the contact sheet.
        extremes: cases per list of best, worst and hardest.

    Raises:
        RunError: see `Results.load`; or no such reference.
    """
    results = Results.load(runs, judge)
    chosen = _pick_reference(results, reference)
    parts = [n for n, p in results.points.items() if is_ablation(p) and n != chosen]
    # Further points of a curve (`vsf+2`) stand in plots and areas only.
    more = [n for n in results.points if "+" in n and n not in (*parts, chosen)]
    main = [n for n in results.points if n not in (*parts, *more)]
    looks = styles([group_of(n) for n in (*main, *more)])
    found = tables.compare(results, chosen, np.random.default_rng([seed, 0]), main)
    found_parts = tables.compare(results, chosen, np.random.default_rng([seed, 1]), parts) if parts else []
    lines = _lines(results, main, found, 1, looks)
    ablations = _lines(results, parts, found_parts, len(main) + 1, looks)
    extras = _lines(results, more, [], 0, looks)
    metrics = [m for m in METRICS if any(m in line.scores for line in (*lines, *ablations))]

    curves = [*lines, *extras]
    groups = {g: [li.name for li in curves if li.group == g] for g in dict.fromkeys(li.group for li in curves)}
    rng = np.random.default_rng([seed, 2])
    areas = [(g, len(names), area) for g, names in groups.items() if (area := tables.tradeoff(results, names, rng))]

    plots: dict[str, str] = {}
    for key, x, y, diagonal in (
        ("positive", "negative", "positive", False),
        *([("close", "negative", "positive", False)] if extras else []),
        ("quality", "negative", "quality", False),
        ("control", "negative_unrelated", "negative", True),
        ("retention", "negative", "retention", False),
    ):
        if dots := _dots(lines, x, y) + _dots([] if key == "close" else extras, x, y, False):
            labels = {"negative_unrelated": "part missing, unrelated negative", "negative": "negative: part missing"}
            labels |= {"positive": "positive: object there", "quality": "quality", "retention": "other parts kept"}
            plots[key] = tradeoff_plot(dots, labels[x], labels[y], looks, key, diagonal)

    order = [c for c in results.cases if any((p, c) in _drawn(results) for p in main)]
    sheet = [s for c in _evenly(order, cases) if (s := _strip(results, main, c, False))]
    with_parts = [chosen, *parts]
    ablated = [c for c in order if all((p, c) in _drawn(results) for p in with_parts)]
    ablation_sheet = [s for c in _evenly(ablated, 6) if parts and (s := _strip(results, with_parts, c, False))]

    provenance, notes = _provenance(results, main)
    memory = Counter(
        str(r["peak_memory_is"]) for rows in results.records.values() for r in rows if "peak_memory_is" in r
    )
    return Report(
        title=title,
        results=results,
        reference=chosen,
        lines=lines,
        ablations=ablations,
        extras=extras,
        metrics=metrics,
        findings=_findings(results, chosen, lines, found),
        comparisons=found,
        ablation_comparisons=found_parts,
        areas=areas,
        plots=plots,
        forests=_forests(found, lines, looks, "f"),
        sheet=sheet,
        extremes=_extremes(results, chosen, main, extremes),
        ablation_sheet=ablation_sheet,
        agreements=tables.agreement(runs),
        judges=_judges(runs),
        unjudged=[(n, reason, k) for n, reasons in results.unjudged.items() for reason, k in reasons.most_common()],
        categories=_categories(results, main),
        provenance=provenance,
        sweep=None if sweep is None else _sweep_part(sweep),
        memory_is=", ".join(memory),
        notes=notes,
    )


def _drawn(results: Results) -> set[tuple[str, str]]:
    found = results.__dict__.get("_drawn_cases")
    if found is None:
        found = results.__dict__["_drawn_cases"] = {(p, c) for p, c, _, _ in results.where}
    return found


def _judges(runs: Sequence[Run]) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for run in runs:
        for name in run.judges():
            about = {k: v for k, v in run.judge(name).items() if v not in (None, "", {}, [])}
            found.setdefault(name, ", ".join(f"{k} {v}" for k, v in about.items()))
    return list(found.items())


# ---------------------------------------------------------------------------------------------------------------
# Writing


def html(report: Report) -> str:
    """The page. Raises RunError where jinja2 is missing."""
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise RunError('a page needs jinja2: pip install "vsf[bench]"') from None
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
        "mean": lambda i: "–" if i is None else tables._short(i.mean),
        "ci": lambda i: "" if i is None else f"{tables._short(i.low)} to {tables._short(i.high)}",
        "cell": tables.cell,
        "short": tables._short,
        "p": _p,
        "spark": spark,
        "svg": Markup,
        "bytes": lambda b: "–" if b is None else f"{b / 2**30:.2f} GiB",
        "seconds": lambda s: f"{s:.3f}" if s < 1 else f"{s:.2f}" if s < 100 else f"{s:.0f}",
        "glyph": _glyph,
    }
    template = environment.from_string(files("vsf.bench").joinpath("templates/report.html").read_text("utf-8"))
    return template.render(r=report, M=METRICS, results=report.results, by_metric=_by_metric, level=_LEVEL)


def _by_metric(found: Sequence[Comparison]) -> list[tuple[str, list[Comparison]]]:
    return [(m, list(rows)) for m, rows in itertools.groupby(sorted(found, key=_metric_order), key=lambda c: c.metric)]


def _metric_order(c: Comparison) -> int:
    return list(METRICS).index(c.metric)


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


def _glyph(marker: str) -> str:
    return _GLYPHS.get(marker, "")


def markdown(report: Report) -> str:
    """The tables of the page as Markdown, the published scores first."""
    results = report.results
    names = [line.name for line in report.lines]
    count, seeds = len(results.cases), len({seed for *_, seed, _ in results.where})
    out = [
        f"# {_md(report.title)}\n",
        f"{count} cases x {seeds} seeds, judge {results.judge}; means with 95 % intervals clustered by case.\n",
        *(f"- {_md(finding)}" for finding in report.findings),
        "",
        tables.markdown(results, names, report.metrics),
        f"Differences to {_md(report.reference)}, paired by case and noise; p from flipping whole cases, Holm-corrected over "
        f"all {len(report.comparisons)} tests of this table:\n",
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
    out += ["| method | settings | seconds per picture |\n|---|---|---|"]
    out += [
        f"| {_md(li.name)} | {_md(li.settings)} | {'–' if li.cost is None else f'{li.cost.seconds:.3f}'} |"
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
        "| method | figure | difference | p (cases) | Holm | McNemar (pictures) | Holm |",
        "|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {_md(c.point)} | {METRICS[c.metric].label} | {tables.cell(c.difference)} | {_p(c.p)} | {_p(c.p_holm)} | "
        f"{_p(c.mcnemar)} | {_p(c.mcnemar_holm)} |"
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
