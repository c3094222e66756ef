"""Plots of a report as SVG text that takes its ink from the page, so that it is right on light and on dark paper.

Every method has a marker and a number besides its colour (Okabe and Ito's palette), so that a grey print reads as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import stats
from ..libraries import install
from ..stats import Interval
from .run import RunError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Dot", "Style", "forest", "styles", "tradeoff_plot"]

# Stand-ins that `_svg` replaces by the page's own colours.
_INK, _FAINT, _LINE, _PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
_PAGE = {_INK: "currentColor", _FAINT: "var(--faint)", _LINE: "var(--line)", _PAPER: "var(--paper)"}

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#a6761d")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">", "*")


@dataclass(frozen=True)
class Style:
    """Colour and marker of one method."""

    color: str
    marker: str


@dataclass(frozen=True)
class Dot:
    """One point of a plot: its number in the tables (None: a further point of its curve, drawn small), its name, its
    curve, and what it has on both axes."""

    number: int | None
    name: str
    group: str
    x: Interval
    y: Interval


def styles(groups: Sequence[str]) -> dict[str, Style]:
    """A style per method in order; "none" is the page's ink."""
    named = [g for g in dict.fromkeys(groups) if g != "none"]
    found = {g: Style(_COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]) for i, g in enumerate(named)}
    return found | ({"none": Style(_INK, "*")} if "none" in groups else {})


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise RunError(f"plots need matplotlib: {install('bench')}") from None
    look: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "vsf", "font.size": 10.5, "text.color": _INK, "axes.edgecolor": _FAINT,
        "axes.labelcolor": _INK, "xtick.color": _FAINT, "ytick.color": _FAINT, "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.color": _LINE, "grid.linewidth": 0.8, "axes.axisbelow": True, "legend.frameon": False,
    }  # fmt: skip
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


def _svg(figure: Figure, label: str, prefix: str) -> str:
    """The figure as an `<svg>` element: page colours, ids of its own, no fixed size."""
    from html import escape

    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    for stand_in, page in _PAGE.items():
        svg = svg.replace(stand_in, page)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", svg)
    size = re.search(r'<svg[^>]*?viewBox="([^"]+)"', svg)
    box = size[1] if size else "0 0 100 100"
    head = f'<svg viewBox="{box}" role="img" aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg" '
    head += 'xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = max(0.02, 0.06 * (high - low))
    # No axis goes on far beyond what a score can be.
    return max(low - pad, min(low, -0.01)), min(high + pad, max(high, 1.01))


def _stairs(ax: Axes, front: Sequence[tuple[float, float]], whole: bool, **look: Any) -> None:
    """The steps of a front, which begins at the left and falls to the right; `whole`: to the edges of the plot."""
    xs, ys = ([ax.get_xlim()[0]], [front[0][1]]) if whole else ([], [])
    for (x, y), after in zip(front, [*front[1:], None], strict=True):
        xs += [x, x]
        ys += [y, after[1] if after else ax.get_ylim()[0] if whole else y]
    ax.plot(xs, ys, scalex=False, scaley=False, **look)


def tradeoff_plot(
    dots: Sequence[Dot],
    x_label: str,
    y_label: str,
    look: Mapping[str, Style],
    prefix: str,
    diagonal: bool = False,
) -> str:
    """Points with 95 % intervals on both axes, the front of every curve of several points, and the front of all."""
    with _figure(5.4, 4.5) as (figure, ax):
        ax.set_xlim(_limits([v for d in dots for v in (d.x.low, d.x.high)]))
        ax.set_ylim(_limits([v for d in dots for v in (d.y.low, d.y.high)]))
        if diagonal:
            ax.axline((0, 0), (1, 1), color=_FAINT, linewidth=1, linestyle=":")
        else:
            for group in dict.fromkeys(d.group for d in dots):
                mine = [d for d in dots if d.group == group]
                if len(mine) > 1:
                    _stairs(ax, _front(mine), False, color=look[group].color, linewidth=1.6, alpha=0.45)
            _stairs(ax, _front(dots), True, color=_FAINT, linewidth=1.2, linestyle=(0, (4, 3)))
        for dot in dots:
            style = look[dot.group]
            ax.errorbar(
                dot.x.mean, dot.y.mean,
                xerr=[[dot.x.mean - dot.x.low], [dot.x.high - dot.x.mean]],
                yerr=[[dot.y.mean - dot.y.low], [dot.y.high - dot.y.mean]],
                color=style.color, marker=style.marker, markersize=5 if dot.number is None else 9, markeredgecolor=_PAPER,
                linewidth=0.5 if dot.number is None else 1.1, alpha=0.95, zorder=2.5 if dot.number is None else 3,
            )  # fmt: skip
        _number(ax, dots)
        ax.set_xlabel(x_label)
        ax.set_ylabel(y_label)
        return _svg(figure, f"{y_label} against {x_label}", prefix)


def _front(dots: Sequence[Dot]) -> list[tuple[float, float]]:
    means = [(d.x.mean, d.y.mean) for d in dots]
    return [means[i] for i in stats.pareto_front(means)]


def _number(ax: Axes, dots: Sequence[Dot]) -> None:
    """The number of every dot beside it, at whichever of eight places is furthest from dots and numbers so far."""
    figure = ax.figure
    figure.canvas.draw()
    to_pixels = ax.transData.transform
    taken = [to_pixels((d.x.mean, d.y.mean)) for d in dots]
    frame = ax.get_window_extent()
    for dot in (d for d in dots if d.number is not None):
        at = to_pixels((dot.x.mean, dot.y.mean))
        places = []
        for angle in np.arange(8) * np.pi / 4 + np.pi / 8:
            place = at + 15 * np.array([np.cos(angle), np.sin(angle)])
            inside = frame.x0 < place[0] < frame.x1 and frame.y0 < place[1] < frame.y1
            room = min(float(np.hypot(*(place - other))) for other in taken)
            places.append((inside, round(min(room, 18.0), 3), tuple(place)))
        best = max(places)[2]
        taken.append(np.array(best))
        shift = (np.array(best) - at) * 72 / figure.dpi
        ax.annotate(
            str(dot.number), (dot.x.mean, dot.y.mean), xytext=tuple(shift), textcoords="offset points", ha="center",
            va="center", fontsize=9.5, fontweight="bold", color=_INK, zorder=4,
        )  # fmt: skip


def forest(
    rows: Sequence[tuple[int, str, str, Interval, bool]],
    title: str,
    look: Mapping[str, Style],
    prefix: str,
    better: int = 1,
) -> str:
    """Differences to a reference with 95 % intervals, one row per point; filled where it is beyond chance after
    correction. A row is (number, name, curve, difference, beyond chance)."""
    with _figure(4.2, 0.75 + 0.3 * len(rows)) as (figure, ax):
        ax.axvline(0, color=_FAINT, linewidth=1)
        for at, (_, _, group, difference, beyond) in enumerate(rows):
            style = look[group]
            ax.errorbar(
                difference.mean, at,
                xerr=[[difference.mean - difference.low], [difference.high - difference.mean]],
                color=style.color, marker=style.marker, markersize=7.5, linewidth=1.4,
                markerfacecolor=style.color if beyond else _PAPER, markeredgecolor=style.color,
            )  # fmt: skip
        ax.set_yticks(range(len(rows)), [f"{number} {name}".replace("$", r"\$") for number, name, *_ in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
        ax.locator_params(axis="x", nbins=5)
        ax.tick_params(axis="y", length=0)
        ax.set_title(title + (" (less is better)" if better < 0 else ""), loc="left", fontsize=10.5, fontweight="bold")
        return _svg(figure, f"differences in {title}", prefix)
