"""Everything that stands on the page about judged runs; `vsf.bench.page` writes it.

Everything on it comes from run folders; nothing is drawn or judged here. Which cases are shown is decided by rules that
the page states, not by hand. Text of users (cases, names, reasons) is escaped.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..stats import Interval
from . import compare, sheets, tables
from .compare import Agreement, Comparison
from .plots import Dot, Style, forest, styles, tradeoff_plot
from .run import Run, RunError
from .sheets import Strip
from .tables import METRICS, PRIMARY, TESTED, Results, cell, describe, group_of, is_ablation

if TYPE_CHECKING:
    from .sweep import Sweep
    from .tries import Try

__all__ = ["LEVEL", "Line", "Report", "build"]

LEVEL = 0.05
"""Of the tests."""


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
    agreements: list[Agreement]
    judges: list[tuple[str, str]]
    unjudged: list[tuple[str, str, int]]
    categories: tuple[str, list[tuple[str, int, list[float | None]]]]
    provenance: list[tuple[str, str]]
    sweep: dict[str, Any] | None = None
    memory_is: str = ""
    notes: list[str] = field(default_factory=list)


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
        if c.p_holm < LEVEL:
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
            (at[c.point].number, c.point, at[c.point].group, c.difference, c.p_holm < LEVEL)
            for c in found
            if c.metric == metric and np.isfinite((c.difference.low, c.difference.high)).all()
        ]
        if rows:
            m = METRICS[metric]
            plots.append(forest(rows, m.label, looks, f"{prefix}{len(plots)}", m.more))
    return plots


def _findings(results: Results, reference: str, lines: Sequence[Line], found: Sequence[Comparison]) -> list[str]:
    """Sentences that follow from the figures by rule."""
    said: list[str] = []
    at = {line.name: line for line in lines}
    guided = [line for line in lines if line.method != "none"]
    for metric in (PRIMARY, "joint"):
        if not (ranked := [li for li in guided if metric in li.scores]):
            continue
        highest = max(li.scores[metric].mean for li in ranked)
        top = [li for li in ranked if li.scores[metric].mean == highest]
        primary = "Primary figure. " if metric == PRIMARY else ""
        said.append(
            f"{primary}Highest {METRICS[metric].label} score ({METRICS[metric].help}): "
            f"{' and '.join(li.name for li in top)}, "
            f"{cell(top[0].scores[metric])}."
            + (f" Without guidance: {cell(at['none'].scores[metric])}." if metric in _of(at, "none") else "")
            + _against(metric, reference, at, found)
        )
    differ = [c for c in found if c.p_holm < LEVEL and at[c.point].method != "none"]
    said.append(
        f"Of {len(found)} differences to {reference}, {sum(c.p_holm < LEVEL for c in found)} are beyond chance after "
        f"Holm's correction, {len(differ)} of them of guided points. What is not beyond chance may still be there: see the "
        "intervals."
    )
    ref = at.get(reference)
    if ref and "specificity" in ref.scores:
        said.append(
            f"With {reference} the part is gone in {cell(ref.scores['negative'])} of pictures; with a negative about "
            f"something else, in {cell(ref.scores['negative_unrelated'])}. The difference, what the negative meant, is "
            f"{cell(ref.scores['specificity'])}."
        )
    kept = sorted((li for li in guided if "retention" in li.scores), key=lambda li: -li.scores["retention"].mean)
    if ref and kept and "retention" in ref.scores and kept[0].name != reference:
        said.append(
            f"What it costs: {reference} keeps {cell(ref.scores['retention'])} of the object's other parts; the most is "
            f"kept by {kept[0].name}, {cell(kept[0].scores['retention'])}"
            + (f", without guidance {cell(at['none'].scores['retention'])}" if "retention" in _of(at, "none") else "")
            + "."
        )
    return said


def _against(metric: str, reference: str, at: dict[str, Line], found: Sequence[Comparison]) -> str:
    """Who differs from the reference in a figure, and who cannot be told apart from it."""
    mine = [c for c in found if c.metric == metric and at[c.point].method != "none"]
    groups = (
        ("beyond chance below it", [c for c in mine if c.p_holm < LEVEL and c.difference.mean < 0]),
        ("beyond chance above it", [c for c in mine if c.p_holm < LEVEL and c.difference.mean > 0]),
        ("not told apart from it", [c for c in mine if c.p_holm >= LEVEL]),
    )
    parts = [
        f"{word}: {', '.join(f'{c.point} {cell(c.difference)}' for c in group)}" for word, group in groups if group
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
    means = {name: sheets.case_means(results, name, metric) for name in names}
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
    from .arms import ARMS
    from .chosen import area, best, front
    from .objectives import OBJECTIVES
    from .tries import Tries

    tries = Tries(sweep).all()
    top = best(tries)
    looks = styles(sweep.arms)

    def exact(value: float) -> Interval:
        return Interval(value, value, value, 1, 1)

    def dot(one: Try, number: int | None) -> Dot:
        return Dot(number, one.arm, one.arm, exact(one.scores["negative"]), exact(one.scores["positive"]))

    dots = [dot(t, sweep.arms.index(t.arm) + 1) for t in top.values()]
    dots += [dot(t, None) for arm in sweep.arms for t in front([t for t in tries if t.arm == arm]) if t != top[arm]]
    arms: list[dict[str, Any]] = []
    for number, arm in enumerate(sweep.arms, 1):
        mine = [t for t in tries if t.arm == arm]
        arms.append(
            {
                "number": number, "name": arm, "color": looks[arm].color, "marker": looks[arm].marker,
                "tries": len(mine), "failed": sum(t.state == "fail" for t in mine),
                "value": top[arm].value if arm in top else None,
                "first": next((t.value for t in mine if t.number == 0), None),
                "area": area(mine), "settings": describe(top[arm].settings) if arm in top else "",
                "knobs": len(ARMS[arm].space), "paper": ARMS[arm].paper,
                "on_bound": ARMS[arm].on_bound(top[arm].settings) if arm in top else [],
            }
        )  # fmt: skip
    return {
        "objective": OBJECTIVES[sweep.objective].help,
        "budget": sweep.budget,
        "cases": len(sweep.chosen),
        "seeds": len(sweep.seeds),
        "arms": arms,
        "plot": tradeoff_plot(dots, "negative (dev)", "positive (dev)", looks, "sweep") if dots else "",
        "front": [(t.arm, describe(t.settings), t.scores["negative"], t.scores["positive"]) for t in front(tries)],
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
    tested: Sequence[str] = TESTED,
) -> Report:
    """Compute everything that stands on the page.

    Args:
        judge: whose answers; needed where several judges saw the runs.
        reference: the point that the others are compared with; "vsf" or the first guided one by default.
        sweep: the sweep that the settings come from, to report its dev figures.
        seed: of permutations and bootstraps.
        cases: rows of the contact sheet.
        extremes: cases per list of best, worst and hardest.
        tested: figures that are compared with the reference: with the points the family of Holm's correction. Choose
            them before there are answers.

    Raises:
        RunError: see `Results.load`; or no such reference, or no such figure.
    """
    if unknown := [name for name in tested if name not in METRICS]:
        raise RunError(f"no figure {unknown[0]!r}; there: {', '.join(METRICS)}")
    results = Results.load(runs, judge)
    chosen = _pick_reference(results, reference)
    parts = [n for n, p in results.points.items() if is_ablation(p) and n != chosen]
    # Further points of a curve (`vsf+2`) stand in plots and areas only.
    more = [n for n in results.points if "+" in n and n not in (*parts, chosen)]
    main = [n for n in results.points if n not in (*parts, *more)]
    looks = styles([group_of(n) for n in (*main, *more)])
    found = compare.compare(results, chosen, np.random.default_rng([seed, 0]), main, tested)
    found_parts = compare.compare(results, chosen, np.random.default_rng([seed, 1]), parts, tested) if parts else []
    lines = _lines(results, main, found, 1, looks)
    ablations = _lines(results, parts, found_parts, len(main) + 1, looks)
    extras = _lines(results, more, [], 0, looks)
    metrics = [m for m in METRICS if any(m in line.scores for line in (*lines, *ablations))]

    curves = [*lines, *extras]
    groups = {g: [li.name for li in curves if li.group == g] for g in dict.fromkeys(li.group for li in curves)}
    rng = np.random.default_rng([seed, 2])
    areas = [(g, len(names), area) for g, names in groups.items() if (area := compare.tradeoff(results, names, rng))]

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

    order = [c for c in results.cases if any((p, c) in results.noises for p in main)]
    sheet = [s for c in sheets.evenly(order, cases) if (s := sheets.strip(results, main, c, False))]
    with_parts = [chosen, *parts]
    ablated = [c for c in order if all((p, c) in results.noises for p in with_parts)]
    ablation_sheet = [
        s for c in sheets.evenly(ablated, 6) if parts and (s := sheets.strip(results, with_parts, c, False))
    ]

    provenance, notes = _provenance(results, main)
    if found and (least := compare.smallest_p(found)) >= LEVEL:
        count = max(c.difference.clusters for c in found)
        notes.append(
            f"{len(found)} tests over {count} {results.unit} cannot find anything: no p-value can be below 2 / 2^{count}, "
            f"nor below {least:.2f} after the correction. Compare fewer points or figures, chosen before there are answers."
        )
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
        forests=_forests(found, lines, looks, "f", tested),
        sheet=sheet,
        extremes=sheets.extremes(results, chosen, main, extremes),
        ablation_sheet=ablation_sheet,
        agreements=compare.agreement(runs),
        judges=_judges(runs, results.judge),
        unjudged=[(n, reason, k) for n, reasons in results.unjudged.items() for reason, k in reasons.most_common()],
        categories=_categories(results, main),
        provenance=provenance,
        sweep=None if sweep is None else _sweep_part(sweep),
        memory_is=", ".join(memory),
        notes=notes,
    )


def _judges(runs: Sequence[Run], chosen: str) -> list[tuple[str, str]]:
    """Who judged these runs, and how; `chosen` also where it could judge nothing."""
    found: dict[str, str] = {}
    for run in runs:
        for name in run.judges():
            if name != chosen and not run.has_judged(name):
                continue
            about = {k: v for k, v in run.judge(name).items() if v not in (None, "", {}, [])}
            found.setdefault(name, ", ".join(f"{k} {v}" for k, v in about.items()))
    return list(found.items())
