"""Temperatures and cuts: fitted as scikit-learn fits them, applied where the judge answers, and part of what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from judging import drawn, make_run
from tiny_vlm import save_tiny_vlm
from vsf.bench.judges import JudgeError, LocalJudge, TunedJudge, exhibits
from vsf.bench.judges.calibration import FILE, Calibration, Scale
from vsf.files import json_bytes
from vsf.judging import Label, LabelsError
from vsf.judging.calibration import fit_calibration, fit_scale

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def drawn_at(temperature: float, cut: float, n: int = 4000):
    """Log-odds of a judge that is off by a temperature and a cut, and answers drawn by the true probabilities."""
    rng = np.random.default_rng(3)
    x = rng.normal(0.5, 3, n)
    return x, rng.random(n) < 1 / (1 + np.exp(-(x - cut) / temperature))


def test_what_a_judge_is_off_by_is_found():
    x, y = drawn_at(2.5, -1.5)
    scale = fit_scale(list(x), list(y))
    # Four standard errors of this fit at n = 4000 (seen over seeds: 0.08 and 0.09).
    assert scale.temperature == pytest.approx(2.5, abs=0.32) and scale.cut == pytest.approx(-1.5, abs=0.36)


def test_it_is_scikit_learns_logistic_regression():
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = drawn_at(0.7, 2.0, 300)
    share = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))  # of yes in each label, by Platt
    twice, both = np.concatenate([x, x])[:, None], np.repeat([True, False], len(x))
    model = linear.LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(twice, both, sample_weight=np.concatenate([share, 1 - share]))
    scale = fit_scale(list(x), list(y))
    ours = [scale(1 / (1 + np.exp(-one))) for one in x]
    assert np.allclose(ours, model.predict_proba(x[:, None])[:, 1], atol=1e-4)  # what both call converged


def test_a_judge_that_is_never_wrong_is_not_made_sure_beyond_measure():
    few, more = ([*[-2.0] * n, *[2.0] * n] for n in (5, 500))
    for x in (few, more):  # as sure as (n + 1) / (n + 2)
        n = len(x) // 2
        scale = fit_scale(x, [False] * n + [True] * n)
        assert scale(1 / (1 + np.exp(-2.0))) == pytest.approx((n + 1) / (n + 2), abs=1e-4)
    assert fit_scale([-one for one in few], [False] * 5 + [True] * 5).temperature == pytest.approx(20)


def test_one_answer_alone_is_refused():
    with pytest.raises(ValueError, match="only one occurs"):
        fit_scale([1.0, 2.0], [True, True])
    labels = [Label("0" * 64, f"q{i}?", "missing", True, "world") for i in range(12)]
    with pytest.raises(LabelsError, match="'missing'.*only one occurs"):
        fit_calibration(labels, [1.0] * 12)


def test_kinds_have_scales_of_their_own_and_few_labels_none():
    x, y = drawn_at(3.0, 1.0, 400)
    labels = [Label("0" * 64, f"m{i}?", "missing", bool(a), "world") for i, a in enumerate(y)]
    labels += [Label("0" * 64, f"k{i}?", "kept", i % 2 == 0, "world") for i in range(9)]
    found = fit_calibration(labels, [*x, *[0.0] * 9], base="b")
    assert set(found.scales) == {"missing"} and found.record == {"base": "b"}
    assert found(0.8, "kept") == 0.8 != found(0.8, "missing")


def test_a_scale_keeps_order_and_stays_finite():
    scale = Scale(2.0, 1.0)
    values = [scale(p) for p in (0.0, 1e-12, 0.2, 0.5, 0.9, 1.0)]
    assert values == sorted(values) and values[0] > 0 and values[-1] < 1
    assert Scale()(0.3) == pytest.approx(0.3) and Scale(1e-6, 30.0)(0.1) == 0.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny")


def test_the_file_beside_the_weights_decides_and_is_part_of_the_judge(folder, tmp_path):
    plain = LocalJudge(folder, device="cpu", mass=0.0)
    copy = tmp_path / "judge"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    scales = {"missing": Scale(0.5, 3.0), "object": Scale(1.0, -3.0)}
    (copy / FILE).write_bytes(json_bytes(Calibration(scales, {"base": "tiny"}).plain()))
    judge = LocalJudge(copy, device="cpu", mass=0.0)
    assert judge.calibration.record == {"base": "tiny"} and Calibration.read(copy) == judge.calibration
    assert judge.about()["calibration"] == {"missing": [0.5, 3.0], "object": [1.0, -3.0]}
    assert plain.about()["calibration"] is None and json.dumps(judge.about())
    red = Image.new("RGB", (64, 64), "red")
    raw = LocalJudge(copy, device="cpu", mass=0.0, raw=True)
    assert raw.about()["calibration"] is None is TunedJudge(copy, device="cpu", raw=True).about()["calibration"]
    assert raw.answer(red, "Is it red?", asks="missing") == plain.answer(red, "Is it red?", asks="missing")
    for asks in ("missing", "object", "kept"):
        own = plain.answer(red, "Is it red?", asks=asks)
        assert own is not None
        assert judge.answer(red, "Is it red?", asks=asks) == (own if asks == "kept" else scales[asks](own))
    run = make_run(tmp_path / "run", cases=1, seeds=(0,), methods=("none",))
    item = exhibits(run, drawn(run))[0]
    before, after = (next(iter(j.read([item]))) for j in (plain, judge))
    own, now = (a.details["probabilities"] for a in (before, after))
    assert now["answer_2"] == pytest.approx(scales["missing"](own["answer_2"]), abs=2e-6)
    assert after.answer_2 is (now["answer_2"] >= 0.5) and after.answer_1 is (now["answer_1"] >= 0.5)
    assert now["answer_1"] == pytest.approx(scales["object"](own["answer_1"]), abs=2e-6)
    assert now["quality"] == own["quality"] and before.answer_2 != after.answer_2


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("{", "cannot be used"),
        ('{"format": "other", "version": 1, "calibration": {}}', "not of vsf-judge 1"),
        ('{"format": "vsf-judge", "version": 1}', "'calibration' is missing"),
        ('{"format": "vsf-judge", "version": 1, "calibration": {"kept": {"temperature": 0, "cut": 1}}}', "above 0"),
        (
            '{"format": "vsf-judge", "version": 1, "calibration": {"kept": {"temperature": "x", "cut": 1}}}',
            "cannot be",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, said, why):
    (tmp_path / FILE).write_text(said)
    with pytest.raises(JudgeError, match=why) as caught:
        Calibration.read(tmp_path)
    assert str(tmp_path / FILE) in str(caught.value) and "\n" not in str(caught.value)
    assert replace(Calibration(), record={}).about() is None
