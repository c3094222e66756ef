"""A judge's errors in the benchmark's rates: by hand, by simulation, and in a run whose truth is known."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from judging import make_run
from vsf.bench.judges import JUDGES, judge_run
from vsf.bench.run import Run
from vsf.cli import main
from vsf.judging import from_run
from vsf.judging.correction import corrected_rates, prediction_powered, rogan_gladen


def test_by_hand() -> None:
    # Of 10 pictures 6 are said yes; it says yes to 4 of 5 true yes and to 1 of 5 true no: (.6 - .2) / (.8 - .2).
    said = [1] * 6 + [0] * 4
    true, heard = [1] * 5 + [0] * 5, [1, 1, 1, 1, 0, 1, 0, 0, 0, 0]
    found = rogan_gladen(said, list("ababababab"), true, heard, list("ababababab"))
    assert found is not None and found.mean == pytest.approx(0.4 / 0.6) and (found.n, found.clusters) == (10, 2)
    # Known of four: y - f is 0, 0, -1, 0, and y follows f with slope 1/2: .5 x .6 + (1 - .5 x 2) / 4 ... by the definition.
    known = [1, np.nan, np.nan, 0, np.nan, np.nan, 0, 0, np.nan, np.nan]
    f, y = np.array([1, 1, 0, 0.0]), np.array([1, 0, 0, 0.0])
    slope = ((f * y).mean() - f.mean() * y.mean()) / f.var()
    got = prediction_powered(said, known, list("abcdefghij"))
    assert got is not None and got.mean == pytest.approx(slope * 0.6 + (y - slope * f).mean())


def test_what_cannot_be_corrected() -> None:
    groups = list("abcdefgh")
    assert rogan_gladen([1] * 8, groups, [1, 1], [1, 1], list("ab")) is None  # nothing is truly no
    assert rogan_gladen([1] * 8, groups, [1, 0], [1, 1], list("ab")) is None  # it says yes to everything
    assert prediction_powered([1] * 8, [np.nan] * 8, groups) is None
    one = prediction_powered([1, 0], [1, np.nan], ["a", "a"])
    assert one is not None and (one.low, one.high) == (0.0, 1.0)  # of one group nothing is known
    sure = rogan_gladen([1] * 8, groups, [1, 0] * 4, [1, 0] * 4, groups)
    assert sure is not None and sure.mean == 1.0 and 0 < sure.low < 0.7  # never wrong, on eight groups


@pytest.mark.parametrize("shared", [True, False])
def test_95_percent_of_the_intervals_hold_the_truth(shared: bool) -> None:
    """20 groups of unlike rates, 15 pictures each, a fifth of them labelled, a judge that is right in .8 of yes and .95 of no."""
    rng, runs, hits = np.random.default_rng(5), 400, {"raw": 0, "gladen": 0, "powered": 0}
    widths = {"powered": 0.0, "labelled": 0.0}

    def draw(names: list[str], each: int = 15) -> tuple[np.ndarray, np.ndarray, list[str]]:
        rates = rng.beta(2.8, 1.2, len(names))  # mean .7
        y = (rng.random((len(names), each)) < rates[:, None]).ravel()
        f = np.where(y, rng.random(y.size) < 0.8, rng.random(y.size) < 0.05)
        return y, f, [name for name in names for _ in range(each)]

    for _ in range(runs):
        y, f, groups = draw([f"g{i:02}" for i in range(20)])
        known = np.where(rng.random(y.size) < 0.2, y, np.nan)
        powered = prediction_powered(f, known, groups)
        has = ~np.isnan(known)
        if shared:  # labels of the run itself
            gladen = rogan_gladen(f, groups, y[has], f[has], [g for g, h in zip(groups, has, strict=True) if h])
        else:  # of other objects, so few that the judge's errors are not well known
            gladen = rogan_gladen(f, groups, *draw([f"h{i:02}" for i in range(12)], 4))
        alone = prediction_powered(np.zeros_like(f), known, groups)
        assert powered is not None and gladen is not None and alone is not None
        for name, found in (("gladen", gladen), ("powered", powered)):
            hits[name] += found.low <= 0.7 <= found.high
        half = 2.09 * f.reshape(20, 15).mean(1).std(ddof=1) / np.sqrt(20)
        hits["raw"] += abs(f.mean() - 0.7) <= half
        widths["powered"] += powered.high - powered.low
        widths["labelled"] += alone.high - alone.low
    # 380 are expected; three standard errors are 13.
    assert all(365 <= hits[name] <= 396 for name in ("gladen", "powered")), hits
    assert hits["raw"] < 250 and widths["powered"] < 0.9 * widths["labelled"], (hits, widths)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Judged by the oracle, and by a judge that takes every third missing part for there."""
    made = make_run(tmp_path_factory.mktemp("ranks") / "run", cases=6, seeds=tuple(range(4)))
    judge_run(made, JUDGES.make("oracle", {}), "oracle")
    store = made.set_judge("weak", {"kind": "made"})
    for i, answer in enumerate(made.judged("oracle")):
        wrong = bool(answer.answer_2) and i % 3 == 0
        store.put(answer.unit, {**asdict(answer), "answer_2": bool(answer.answer_2) and not wrong, "details": {}})
    return made


def test_the_truth_comes_back(run: Run) -> None:
    labels = from_run(run, ["oracle"])
    found = corrected_rates(run, "weak", labels)
    by_name = {point.point: point for point in found.points}
    assert list(by_name) == ["none", "vsf", "nag"] and found.sensitivity is not None and found.specificity is not None
    assert found.specificity.mean == 1.0 and found.sensitivity.mean < 0.75
    for name, true in (("none", 0.0), ("vsf", 1.0), ("nag", 1.0)):
        one = by_name[name]
        assert one.true is not None and one.true.mean == true and one.labelled == one.raw.n == 24
        assert one.powered is not None and one.powered.mean == pytest.approx(true)
        assert one.gladen is not None and abs(one.gladen.mean - true) < 0.1
    assert by_name["vsf"].raw.mean < 0.75
    unrelated = {
        one.point: one.raw.mean for one in corrected_rates(run, "oracle", labels, "unrelated", "oracle").points
    }
    assert unrelated["none"] == unrelated["vsf"] == 0.0
    # Where all is known and the judge never errs, nothing changes.
    for point in corrected_rates(run, "oracle", labels, annotator="oracle").points:
        for other in (point.gladen, point.powered, point.true):
            assert other is not None and asdict(other) == pytest.approx(asdict(point.raw))
    # The object is there in every picture: nothing tells how often the judge would miss that it is gone.
    positive = corrected_rates(run, "weak", labels, "positive")
    assert positive.sensitivity is not None and positive.sensitivity.mean == 1.0 and positive.specificity is None
    assert {point.gladen for point in positive.points} == {None}
    assert [point.powered.mean for point in positive.points if point.powered is not None] == [1.0] * 3


def test_the_command(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, out = tmp_path / "labels", tmp_path / "ranks.json"
    from_run(run, ["oracle"]).save(labels)
    command = ["judge", "ranks", str(run.folder), "--labels", str(labels), "--judge"]
    assert main([*command, "weak", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "weak says yes to" in said and "prediction-powered" in said and "labelled" in said
    assert [point["point"] for point in json.loads(out.read_bytes())[0]["points"]] == ["none", "vsf", "nag"]
    for more, text in (
        (["nobody"], "no judge 'nobody'"),
        (["weak", "--figure", "joint"], "unknown figure 'joint'; allowed: positive, negative, unrelated"),
        (["oracle"], "no question has an answer that could be taken for true"),
        (["weak", "--labels", str(tmp_path)], "holds no labels"),
        (["weak", "--out", "x.txt"], "its name must end with .json"),
    ):
        assert main([*command, *more]) == 2 and text in capsys.readouterr().err, more
    # Who is measured has no say, not about another one either.
    from_run(run, ["oracle", "weak"]).save(labels)
    assert main([*command, "weak", "--judge", "oracle"]) == 2
    assert "no question has an answer that could be taken for true" in capsys.readouterr().err
    assert main([*command, "weak", "--judge", "oracle", "--truth", "oracle"]) == 0
    capsys.readouterr()
    other = tmp_path / "other"
    assert main(["judge", "world", "6", "--out", str(other)]) == 0
    assert main([*command, "weak", "--labels", str(other)]) == 2
    assert (
        "no labels tell how weak errs about 'missing': none of its answers has a known one" in capsys.readouterr().err
    )
