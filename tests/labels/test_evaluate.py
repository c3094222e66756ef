"""How well a judge answers: the figures are scikit-learn's, the intervals those of the literature, and nobody marks their own."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from vsf.bench.judges import JudgeError
from vsf.cli import main
from vsf.cli.common import Problem
from vsf.cli.judge.evaluate import _judge
from vsf.judging import Label, Labels, LabelsError, collected, world_labels
from vsf.judging.evaluate import (
    Measured,
    _auroc,
    _balanced,
    _linear,
    answered,
    ask,
    ask_and_keep,
    evaluate,
    kappas,
    kept_as,
    truth,
)
from vsf.stats import Interval

Key = tuple[str, str]


def draw(n: int, groups: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True answers, a somewhat right judge's P(yes) with ties, and groups, which are of different difficulty."""
    rng = np.random.default_rng(seed)
    y, g, easy = rng.random(n) < 0.4, rng.integers(groups, size=n), rng.normal(1.0, 0.7, groups)
    return y, np.round(1 / (1 + np.exp(-(easy[g] * (2 * y - 1) + rng.normal(0, 1, n)))), 2), g


def made(n: int = 300, groups: int = 12, seed: int = 0) -> tuple[dict[Key, Label], dict[Key, float | None]]:
    true: dict[Key, Label] = {}
    said: dict[Key, float | None] = {}
    for i, (y, p, g) in enumerate(zip(*draw(n, groups, seed), strict=True)):
        name, damage = sha256(str(i).encode()).hexdigest(), ("intact", "missing")[int(y)]
        label = Label(name, "Is it?", ("object", "missing")[i % 2], bool(y), "ann", group=f"g{g}", damage=damage)
        true[label.key], said[label.key] = label, float(p)
    return true, said


def arrays(true: dict[Key, Label], said: dict[Key, float | None]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([label.answer for label in true.values()]), np.array([said[key] for key in true], dtype=float)


def row(rows: list[Measured], name: str) -> Measured:
    return next(one for one in rows if one.name == name)


def test_figures_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    calibration = pytest.importorskip("sklearn.calibration")
    true, said = made()
    rows = evaluate(true, said)
    y, p = arrays(true, said)
    whole = row(rows, "all")
    assert (whole.questions, whole.open, whole.yes, whole.accuracy.clusters) == (300, 0, int(y.sum()), 12)
    assert whole.accuracy.mean == pytest.approx(metrics.accuracy_score(y, p >= 0.5))
    assert whole.balanced.mean == pytest.approx(metrics.balanced_accuracy_score(y, p >= 0.5))
    assert whole.auroc.mean == pytest.approx(metrics.roc_auc_score(y, p))
    # Its curve has the mean of each bin that holds anything: the error weighs the gaps by how many are in the bins.
    rate, mean = calibration.calibration_curve(y, p, n_bins=15)
    share = np.unique(np.searchsorted(np.linspace(0, 1, 16)[1:-1], p), return_counts=True)[1] / 300
    assert whole.ece.mean == pytest.approx(float(np.abs(rate - mean) @ share))
    for asks in ("object", "missing"):
        some = np.array([label.asks == asks for label in true.values()])
        found = row([one for one in rows if one.by == "asks"], asks)
        assert found.auroc.mean == pytest.approx(metrics.roc_auc_score(y[some], p[some]))
    only = row([r for r in rows if r.by == "damage"], "intact")
    assert only.yes == 0 and only.balanced is None and only.auroc is None and only.accuracy is not None


def test_the_interval_of_auroc_is_delongs_where_every_question_is_a_group() -> None:
    true, said = made(400, groups=400)
    true = {key: replace(label, group=key[0]) for key, label in true.items()}
    y, p = arrays(true, said)
    above = (p[y][:, None] > p[~y]) + 0.5 * (p[y][:, None] == p[~y])
    error = np.sqrt(above.mean(1).var(ddof=1) / y.sum() + above.mean(0).var(ddof=1) / (~y).sum())
    found = row(evaluate(true, said), "all").auroc
    v, t = found.mean, 1.966  # of 399 degrees of freedom, on the log-odds
    width = np.log(found.high / (1 - found.high)) - np.log(found.low / (1 - found.low))
    assert width * v * (1 - v) / 2 / t == pytest.approx(error, rel=0.01)


def test_intervals_count_groups() -> None:
    """The same questions twice over are no more evidence; and groups that differ are seen."""
    true, said = made()
    twice = {(sha256(key[0].encode()).hexdigest(), key[1]): label for key, label in true.items()}
    both = {**true, **{key: replace(label, image=key[0]) for key, label in twice.items()}}
    doubled = {**said, **{new: said[old] for new, old in zip(twice, true, strict=True)}}
    one, two = row(evaluate(true, said), "all"), row(evaluate(both, doubled), "all")
    for name in ("balanced", "auroc", "ece"):
        a, b = getattr(one, name), getattr(two, name)
        assert b.mean == pytest.approx(a.mean) and b.high - b.low == pytest.approx(a.high - a.low, rel=0.02), name


def test_95_percent_intervals_hold_the_truth() -> None:
    def both(n: int, groups: int, seed: int) -> dict[str, Interval]:
        y, p, g = draw(n, groups, seed)
        return {
            "balanced": _linear(*_balanced((p >= 0.5) == y, y), g, 0.95),
            "auroc": _linear(*_auroc(p, y), g, 0.95),
        }

    whole, hits = both(30_000, 3000, 99), {"balanced": 0, "auroc": 0}
    for seed in range(200):
        for name, found in both(240, 20, seed).items():
            hits[name] += found.low <= whole[name].mean <= found.high
    assert all(180 <= count <= 199 for count in hits.values()), hits  # three standard errors of 190


def test_what_is_open_counts_nowhere_and_is_counted() -> None:
    true, said = made()
    some = list(said)[:50]
    found = row(evaluate(true, {**said, **dict.fromkeys(some)}), "all")
    without = row(evaluate(true, {key: p for key, p in said.items() if key not in some}), "all")
    assert (found.questions, found.open) == (250, 50)
    assert found.accuracy == without.accuracy and found.auroc == without.auroc
    assert row(evaluate(true, dict.fromkeys(said)), "all").accuracy is None
    hard = row(evaluate(true, {key: float((p or 0) >= 0.5) for key, p in said.items()}), "all")
    assert hard.auroc is None and hard.ece is None and hard.balanced is not None
    with pytest.raises(LabelsError, match="asked none of the questions"):
        evaluate(true, {})


@pytest.fixture(scope="module")
def labels() -> Labels:
    return collected(world_labels(40, 2))


class Sure:
    """A judge that says .9 to "missing" and .2 to the rest, and stops after some."""

    def __init__(self, most: int = 1000) -> None:
        self.most = most

    def about(self) -> dict[str, str]:
        return {"kind": "sure"}

    def answer(self, picture: object, question: str, *, asks: str = "other", item: str = "") -> float | None:
        self.most -= 1
        if self.most < 0:
            raise JudgeError("enough")
        return None if asks == "kept" else 0.9 if asks == "missing" else 0.2


def test_a_judge_is_asked_each_question_once_and_its_answers_can_be_kept(labels: Labels) -> None:
    count = len({label.key for label in labels})
    said = ask(Sure(count), labels.merge(kept_as("twin", answered(labels, "world"), labels)))
    assert len(said) == count
    kept = kept_as("sure", said, labels)
    assert set(kept.annotators) == {"world", "sure"} and answered(kept, "sure") == pytest.approx(said)
    assert {(label.asks, label.answer, label.confidence) for label in kept.of("sure")} == {
        ("missing", True, 0.9), ("object", False, 0.8), ("kept", None, None)
    }  # fmt: skip
    with pytest.raises(LabelsError, match="sure contradicts itself"):
        kept_as("sure", {key: 0.1 for key, p in said.items() if p == 0.9}, kept)
    with pytest.raises(JudgeError, match="enough"):
        ask(Sure(3), labels)
    with pytest.raises(LabelsError, match="object cannot be asked"):
        ask(object(), labels)
    assert set(kappas(kept, said, ["sure"])) == {"world"}
    # Who is measured does not say what is true.
    assert len(truth(kept)) < len(truth(kept, without=["sure"])) == len({label.key for label in labels})
    with pytest.raises(LabelsError, match="unknown annotator 'nobody'"):
        truth(kept, "nobody")


def test_a_judge_that_stops_goes_on_where_it_stopped(labels: Labels, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    labels.save(folder)
    keys = [label.key for label in labels]
    with pytest.raises(JudgeError, match="enough"):
        ask_and_keep(Sure(107), "sure", folder, keys)
    assert len(Labels.open(folder).of("sure")) == 107
    rest = Sure(len(set(keys)) - 107)
    said = ask_and_keep(rest, "sure", folder, keys)
    assert rest.most == 0 and said == pytest.approx(ask(Sure(), labels)) and len(Labels.open(folder).of("sure")) == 120
    assert ask_and_keep(Sure(0), "sure", folder, keys) == pytest.approx(said)

    class Other(Sure):
        def about(self) -> dict[str, str]:
            return {"kind": "sure", "model": "other"}

    with pytest.raises(LabelsError, match="'sure' in .* is a judge with other settings"):
        ask_and_keep(Other(), "sure", folder, keys)


def test_what_others_add_to_the_folder_meanwhile_is_kept_and_so_are_the_answers(
    labels: Labels, tmp_path: Path
) -> None:
    folder = tmp_path / "labels"
    labels.save(folder)
    first = next(iter(labels))

    class Slow(Sure):
        def answer(self, picture: object, question: str, *, asks: str = "other", item: str = "") -> float | None:
            if self.most == 1000:
                Labels.open(folder).merge(labels.only([replace(first, annotator="ann")])).save(folder)
            return super().answer(picture, question, asks=asks, item=item)

    said = ask_and_keep(Slow(), "slow", folder, [label.key for label in labels])
    there = Labels.open(folder)
    assert there.annotators == ("world", "ann", "slow") and answered(there, "slow") == pytest.approx(said)


@pytest.mark.parametrize("p", [float("nan"), 1.5, -0.1])
def test_what_is_no_probability_is_refused(labels: Labels, p: float) -> None:
    class Off(Sure):
        def answer(self, picture: object, question: str, *, asks: str = "other", item: str = "") -> float | None:
            return p

    with pytest.raises(LabelsError, match=f"Off answered {p!r}; allowed: a probability from 0 to 1, or None"):
        ask(Off(), labels)


def test_the_command(labels: Labels, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "labels", tmp_path / "figures.json"
    labels.save(folder)
    command = ["judge", "eval", str(folder)]
    assert main([*command, "--judge", "oracle", "--keep", "oracle", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "oracle: 120 questions answered, 0 open" in said and "kappa with world" in said and "half removed" in said
    figures = json.loads(out.read_bytes())["oracle"]["rows"][0]
    assert main([*command, "-a", "oracle", "--out", str(out)]) == 0
    again = json.loads(out.read_bytes())["oracle"]["rows"][0]
    assert again["accuracy"] == figures["accuracy"] and figures["accuracy"]["mean"] > 0.9
    some = [sorted({label.group for label in labels})[i] for i in (0, 2)]
    assert main([*command, "-a", "oracle", "--objects", ", ".join(some), "--asks", "missing", "--out", str(out)]) == 0
    rows = json.loads(out.read_bytes())["oracle"]["rows"]
    asked = [label for label in labels if label.group in some and label.asks == "missing"]
    assert rows[0]["questions"] == len(asked) > 0 and rows[0]["accuracy"]["clusters"] == 2
    for more, text in (
        ([], "name who is measured"),
        (["--judge", "oracel"], "unknown judge 'oracel'"),
        (["--judge", "metrics"], "the judge metrics answers no questions of labels; those that do: "),
        (["--judge", "local"], "the judge local needs --model"),
        (["-a", "oracle", "--model", "x"], "--model is for --judge"),
        (["-a", "oracle", "--judge", "oracle"], "oracle is asked and an annotator, too"),
        (["-a", "world", "--truth", "ann"], "unknown annotator 'ann'; allowed: world, oracle"),
        (
            ["-a", "oracle", "--objects", "bike,bus"],
            "--objects bus: no question with a known answer is about that; there are: ",
        ),
        (["-a", "oracle", "--asks", "all"], "--asks all: no question"),
        (["-a", "oracle", "--out", "figures.csv"], "its name must end with .json"),
    ):
        assert main([*command, *more]) == 2 and text in capsys.readouterr().err, more


def test_nobody_is_asked_to_pay_for_answers_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    given = {"model": "m", "base_url": "http://127.0.0.1:9/v1"}
    assert _judge("api", given, 0, False).about()["model"] == "m"
    with pytest.raises(Problem, match="3 questions may cost money"):
        _judge("api", given, 3, False)


SHOWN = {
    "world": ("shipped-raw", "shipped", "remade-raw", "remade", "oracle"),
    "shift": ("shipped-raw", "shipped", "lora"),
}


@pytest.mark.parametrize("name", ["world-missing", "world-kept", "shift-missing", "shift-kept"])
def test_the_page_on_the_small_judge_has_the_figures_of_its_files(name: str) -> None:
    folder = Path(__file__).parents[2] / "docs/evidence/judge"
    said = (folder / "README.md").read_text("utf-8").replace("**", "")
    found = json.loads((folder / f"{name}.json").read_bytes())
    for who in SHOWN[name.partition("-")[0]]:
        row = found[who]["rows"][0]
        figures = [row["accuracy"][key] for key in ("mean", "low", "high")]
        mean, low, high = (f"{x:.3f}" if x >= 1 else f"{x:.3f}"[1:] for x in figures)
        assert f"| {row['questions']} | {mean} ({low} to {high}) |" in said, who
