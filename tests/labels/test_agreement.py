"""Agreement against scikit-learn and krippendorff as published, and decisions about disagreements."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vsf.bench.judges.base import png_of
from vsf.cli import main
from vsf.judging import Label, Labels, LabelsError
from vsf.judging.adjudicate import Adjudication
from vsf.judging.agreement import agreement, consensus, disagreements


def answered(rows: dict[str, str], groups: int = 5) -> Labels:
    """Answers by annotator, a letter a picture: y, n, ? (cannot tell) and . (not asked)."""
    words = {"y": True, "n": False, "?": None}
    images = {i: png_of(Image.new("RGB", (8, 8), (i, 0, 0))) for i in range(len(next(iter(rows.values()))))}
    names = {i: sha256(data).hexdigest() for i, data in images.items()}
    labels = [
        Label(names[i], "Is it missing?", "missing", words[letter], who, group=f"g{i % groups}", item="sail")
        for who, letters in rows.items()
        for i, letter in enumerate(letters)
        if letter != "."
    ]
    return Labels(labels, {names[i]: data for i, data in images.items()})


def test_kappa_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    a = rng.random(60) < 0.5
    b = np.where(rng.random(60) < 0.8, a, ~a)
    rows = {name: "".join("ny"[int(v)] for v in values) + "?y.." for name, values in (("ann", a), ("bo", b))}
    rows["ann"] = rows["ann"][:-4] + "y.?n"  # what one of them did not answer is left out
    (found,) = agreement(answered(rows))
    assert (found.kind, found.questions, found.groups, found.asks) == ("kappa", 60, 5, "all")
    assert found.value.mean == pytest.approx(metrics.cohen_kappa_score(a, b), abs=1e-12)
    assert found.same.mean == pytest.approx((a == b).mean()) and found.value.low < found.value.mean < found.value.high


def test_alpha_is_krippendorffs() -> None:
    """The nominal example of Krippendorff (2011), section C: four observers, twelve units, missing data; there 0.743 with
    five values. Its 1 and 2 are yes here, 3 to 5 no, worked out from the definition."""
    pytest.importorskip("krippendorff")
    table = [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ]
    letters = str.maketrans({"1": "y", "2": "y", "3": "n", "4": "n", "5": "n", " ": None})
    rows = {f"o{i}": row.translate(letters) for i, row in enumerate(table)}
    found = agreement(answered(rows))
    whole = found[0]
    # The definition: alpha = 1 - (n - 1) sum_u [y_u n_u / (m_u - 1)] / (n_y n_n), over units with m_u >= 2 answers.
    counts = [(c.count("y"), c.count("n")) for c in map("".join, zip(*rows.values(), strict=True))]
    used = [(y, n) for y, n in counts if y + n >= 2]
    total_y, total_n = sum(y for y, _ in used), sum(n for _, n in used)
    observed = sum(y * n / (y + n - 1) for y, n in used)
    alpha = 1 - (total_y + total_n - 1) * observed / (total_y * total_n)
    assert whole.kind == "alpha" and whole.value.mean == pytest.approx(alpha, abs=1e-12) and whole.questions == 11
    assert whole.value.low < alpha < whole.value.high and len(found) == 1 + 6  # and every pair


def test_what_is_not_defined_is_not_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = agreement(answered({"ann": "yyy", "bo": "yyy"}))
    assert found.value is None and found.same.mean == 1.0
    (found,) = agreement(answered({"ann": "yy.", "bo": "..y"}))
    assert found.value is None and found.questions == 0
    with pytest.raises(LabelsError, match="agreement needs two annotators; there: ann"):
        agreement(answered({"ann": "yn"}))
    answered({"ann": "ynyn", "bo": "yyyn"}).save(tmp_path / "a")
    assert main(["judge", "agreement", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert "kappa 0.500" in said and "1 questions are answered by yes and by no" in said
    assert main(["judge", "agreement", str(tmp_path / "a"), "-a", "ann", "-a", "bo", "-a", "ann"]) == 0
    assert capsys.readouterr().out == said  # who is named twice is one
    assert main(["judge", "agreement", str(tmp_path / "a"), "-a", "ann", "-a", "bob"]) == 2
    assert "unknown annotator 'bob'; allowed: ann, bo" in capsys.readouterr().err


def test_disagreements_are_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("vsf.judging.adjudicate.time.monotonic", lambda: float(next(clock)))
    labels = answered({"ann": "yyn?y", "bo": "ynyyn", "cy": "yyyyn"})
    labels.save(tmp_path / "labels")
    assert len(disagreements(labels)) == 3 and len(consensus(labels)) == 2
    session = Adjudication(tmp_path / "labels", seed=1)
    decided: dict[str, bool | None] = {}
    for choice, answer in ((0, True), (1, False), (2, None)):
        question = session.next("Eve")
        assert question is not None and question.choices == ("Yes", "No", "Cannot tell") and question.right is None
        assert (question.done, question.total) == (
            len(decided),
            3,
        ) and "ann" not in f"{question.prompt}{question.text}"
        decided[sha256(png_of(question.left)).hexdigest()] = answer
        session.answer("Eve", question.key, choice)
        with pytest.raises(ValueError, match="not open any more"):
            session.answer("bob", question.key, choice)
    assert session.next("eve") is None
    read = Labels.open(tmp_path / "labels")
    assert {label.image: label.answer for label in read.of("adjudicated")} == decided and not disagreements(read)
    assert {label.seconds for label in read.of("adjudicated")} == {4.0}
    taken = {image: label.answer for (image, _), label in consensus(read).items()}
    assert len(taken) == 4 and all(taken[image] == answer for image, answer in decided.items() if answer is not None)
    session.undo("bob")  # who decided nothing takes nothing back
    session.undo("eve")
    assert len(Labels.open(tmp_path / "labels").of("adjudicated")) == 2
    again = Adjudication(tmp_path / "labels")  # goes on where it stopped
    question = again.next("eve")
    assert question is not None and question.total == 1
    with pytest.raises(ValueError, match="there are 3 answers"):
        again.answer("eve", question.key, 3)
    with pytest.raises(ValueError, match="1 to 24 letters"):
        again.next("../x")


def test_a_full_disk_leaves_the_question_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered({"ann": "yn", "bo": "ny"}).save(tmp_path / "labels")
    session = Adjudication(tmp_path / "labels")
    question = session.next("eve")

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="cannot write in labels: No space left"):
        patch.setattr("vsf.judging.labels.write_whole", full)
        session.answer("eve", question.key, 0)
    assert session.next("eve").key == question.key and len(Labels.open(tmp_path / "labels")) == 4
    session.answer("eve", question.key, 0)
    assert len(Labels.open(tmp_path / "labels")) == 5


def test_what_another_page_decided_is_not_decided_again(tmp_path: Path) -> None:
    answered({"ann": "yny", "bo": "nyy"}).save(tmp_path / "labels")
    one, other = Adjudication(tmp_path / "labels"), Adjudication(tmp_path / "labels")
    first, same = one.next("eve"), other.next("bob")
    assert first is not None and same is not None and first.key == same.key
    one.answer("eve", first.key, 0)
    with pytest.raises(ValueError, match="decided elsewhere meanwhile"):
        other.answer("bob", same.key, 1)
    then = other.next("bob")
    assert then is not None and then.key != first.key
    other.answer("bob", then.key, 1)
    assert [label.answer for label in Labels.open(tmp_path / "labels").of("adjudicated")] == [True, False]


def test_nothing_to_decide_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answered({"ann": "yn", "bo": "y?"}).save(tmp_path / "labels")
    assert main(["judge", "adjudicate", str(tmp_path / "labels")]) == 0
    assert "nothing to decide" in capsys.readouterr().out
    assert main(["judge", "adjudicate", str(tmp_path / "none")]) == 2


def test_who_is_measured_has_no_say() -> None:
    labels = answered({"ann": "yyn", "judge": "yny"})
    assert len(consensus(labels)) == 1 and len(consensus(labels, ["judge"])) == 3
