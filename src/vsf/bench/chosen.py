"""What came out of a sweep: the best tries, the trade-off, and the points that are frozen for the test."""

from __future__ import annotations

from collections.abc import Sequence

from .. import stats
from .points import write_points
from .run import Point
from .sweep import Sweep, SweepError
from .tries import Tries, Try

__all__ = ["area", "best", "freeze", "front"]


def best(tries: Sequence[Try]) -> dict[str, Try]:
    """The best try of every arm that has one; of equals the first."""
    found: dict[str, Try] = {}
    for one in tries:
        if one.value is not None and (one.arm not in found or one.value > (found[one.arm].value or 0.0)):
            found[one.arm] = one
    return found


def _scores(tries: Sequence[Try]) -> tuple[list[float], list[float]]:
    return [t.scores["negative"] for t in tries], [t.scores["positive"] for t in tries]


def front(tries: Sequence[Try]) -> list[Try]:
    """The finished tries that no other beats in positive and negative, ascending in negative."""
    done = [t for t in tries if t.value is not None]
    return [done[i] for i in stats.pareto_front(list(zip(*_scores(done), strict=True)))] if done else []


def area(tries: Sequence[Try]) -> float:
    """Area under the trade-off (positive against negative) of the finished tries on dev."""
    return stats.tradeoff_area(*_scores([t for t in tries if t.value is not None]))


def freeze(sweep: Sweep, more: int = 0) -> tuple[Point, ...]:
    """Write the chosen settings to points.json: the best try of every arm, under the arm's name, and `more` others
    of its Pareto front (`ARM+2`, `ARM+3`, ...), each the one that adds most area to the trade-off on dev.

    Raises:
        SweepError: tries are still missing, or an arm has none that was finished.
    """
    tries = Tries(sweep).all()
    open_ = len(sweep.arms) * sweep.budget - sum(t.state in ("complete", "fail") for t in tries)
    if open_:
        raise SweepError(f"{open_} tries of the sweep in {sweep.folder} are not finished; run it again to go on")
    top = best(tries)
    points: list[Point] = []
    for arm in sweep.arms:
        mine = [t for t in tries if t.arm == arm]
        if arm not in top:
            reason = next((t.reason for t in mine if t.reason), "no reason given")
            raise SweepError(f"every try of {arm} failed: {reason}")
        chosen = [top[arm]]
        rest = [t for t in front(mine) if t.settings != top[arm].settings]
        for _ in range(min(more, len(rest))):
            gains = [area([*chosen, t]) for t in rest]
            chosen.append(rest.pop(gains.index(max(gains))))
        points += [Point(arm if i == 0 else f"{arm}+{i + 1}", dict(t.settings)) for i, t in enumerate(chosen)]
    about = {
        "sweep": sweep.to_dict(),
        "dev": {arm: {"objective": t.value, "scores": dict(t.scores), "try": t.number} for arm, t in top.items()},
    }
    write_points(sweep.folder / "points.json", points, about)
    return tuple(points)
