"""Folders of labels: whole or not at all, no method in them, and one sentence for what is wrong."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from judging import files_with, make_run
from vsf.bench.judges import JUDGES, LabelSession, judge_run
from vsf.bench.judges.base import png_of
from vsf.bench.run import Run
from vsf.cli import main
from vsf.judging import Label, Labels, LabelsError, from_json, from_run


def png(color: int = 0) -> bytes:
    return png_of(Image.new("RGB", (8, 8), (color, 0, 0)))


def label(color: int = 0, **more: object) -> Label:
    given = {
        "question": "Is the sail missing?",
        "asks": "missing",
        "answer": True,
        "annotator": "ann",
        "group": "boat",
    }
    return Label(sha256(png(color)).hexdigest(), **{**given, **more})  # type: ignore[arg-type]


def labels(*some: Label) -> Labels:
    return Labels(some, {sha256(png(color)).hexdigest(): png(color) for color in range(4)})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = make_run(tmp_path / "run", cases=2, seeds=(0,))
    judge_run(made, JUDGES.make("oracle", {}), "oracle")
    return made


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    some = labels(
        label(confidence=0.75, seconds=2.5, item="sail", category="boat/sail", damage="missing"),
        label(1, answer=None, annotator="bo"),
    )
    some.save(tmp_path / "deep" / "labels")
    read = Labels.open(tmp_path / "deep" / "labels")
    assert list(read) == list(some) and read.images == some.images == tuple(one.image for one in some)
    assert read.annotators == ("ann", "bo") and [one.yes for one in read] == [0.75, None]
    assert read.picture(next(iter(read))).getpixel((0, 0)) == (0, 0, 0)
    assert not list((tmp_path / "deep").glob(".*"))


def test_what_was_answered_goes_before_its_probability() -> None:
    assert [label(answer=a, confidence=c).yes for a, c in ((True, None), (True, 0.7), (True, 0.3))] == [1.0, 0.7, 0.5]
    assert (
        label(answer=False, confidence=0.75).yes == 0.25
        and 0.499 < (label(answer=False, confidence=0.5).yes or 0) < 0.5
    )


def test_a_run_becomes_labels_that_do_not_say_what_drew_them(run: Run, tmp_path: Path) -> None:
    made = from_run(run, ["oracle"])
    # Two cases of one bike: all that it has, without its basket, without its wheels, with nothing. Each once.
    assert len(made.images) == 4 and {one.annotator for one in made} == {"oracle"}
    assert {one.asks for one in made} == {"object", "missing", "kept"} and all(
        one.confidence for one in made if one.asks != "object"
    )
    by_case = {case.question_2: case for case in run.cases}
    for one in made:
        if one.asks == "missing":
            case = by_case[one.question]
            assert (one.item, one.group, one.category) == (case.part, case.object, case.category)
    # The renders: "none" has every part, "vsf" lacks the part, "nag" all parts.
    assert sorted(bool(one.answer) for one in made if one.asks == "missing") == [False, False, True, True, True, True]
    assert sorted(bool(one.answer) for one in made if one.asks == "kept") == [False, False, True, True, True, True]
    made.save(tmp_path / "labels")
    for text in ("vsf+", "guidance", "nag", "unrelated", "vsf--", str(run.folder)):
        assert not files_with(tmp_path / "labels", text), text


def test_what_people_said_becomes_labels(run: Run) -> None:
    session = LabelSession(run, seed=3)
    while (question := session.next("ann")) is not None and question.done == 0:
        session.answer("ann", question.key, 2 if question.text.startswith("Is there") else 0)  # cannot tell; yes, good
    made = from_run(run, ["human-ann"])
    assert {one.answer for one in made if one.asks == "object"} == {None}
    assert {one.answer for one in made if one.asks == "missing"} == {True}
    both = from_run(run, ["human-ann", "oracle"])
    assert both.annotators == ("human-ann", "oracle") and len(both) == len(made) + len(from_run(run, ["oracle"]))


def test_a_json_list_of_paths(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(7))
    Image.new("RGB", (8, 8), (0, 99, 0)).save(tmp_path / "b.jpg")
    rows = [
        {"image": "a.png", "question": "Is it there?", "answer": "No"},
        {"image": "b.jpg", "question": "Is it there?", "answer": None, "asks": "object", "annotator": "bo"},
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    made = list(from_json(tmp_path / "list.json"))
    assert [(one.answer, one.asks, one.annotator) for one in made] == [
        (False, "other", "file"),
        (None, "object", "bo"),
    ]
    assert made[0].image == sha256(png(7)).hexdigest()
    assert main(["judge", "import", str(tmp_path / "list.json"), "--out", str(tmp_path / "out")]) == 0
    assert len(Labels.open(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image": "gone.png"}, "entry 2: gone.png: the picture cannot be read"),
        ({"asks": "colour"}, "unknown value of asks 'colour'; allowed: object, missing, kept, other"),
        ({"answer": "maybe"}, "answer must be true, false or null (cannot tell), got 'maybe'"),
        ({"damage": "broken"}, "unknown value of damage 'broken'"),
        ({"question": " "}, "question must be a text"),
        ({"colour": 1}, "unknown field 'colour' (allowed: image,"),
        ({"confidence": 1.5}, "confidence must be a number from 0 to 1 or null, got 1.5"),
        ({"seconds": -1}, "seconds must be a number from 0 up or null, got -1"),
        ({"seconds": float("inf")}, "seconds must be a number from 0 up or null, got inf"),
        ({"answer": True}, "file contradicts itself about picture"),
    ],
)
def test_a_bad_entry_is_named(change: dict, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    row = {"image": "a.png", "question": "Is it there?", "answer": "no"}
    (tmp_path / "list.json").write_text(json.dumps([row, {**row, **change}]))
    with pytest.raises(LabelsError) as error:
        from_json(tmp_path / "list.json")
    assert says in str(error.value) and "entry 2" in str(error.value)


def test_contradictions_are_refused_with_both_lines(tmp_path: Path) -> None:
    one, other = labels(label(1), label()), labels(label(2), label(3), label(answer=False))
    one.save(tmp_path / "a")
    other.save(tmp_path / "b")
    a, b = Labels.open(tmp_path / "a"), Labels.open(tmp_path / "b")
    says = "ann contradicts itself .* is yes in .*/a/labels.jsonl line 2 and no in .*/b/labels.jsonl line 3"
    with pytest.raises(LabelsError, match=says):
        a.merge(b)
    again = a.merge(Labels.open(tmp_path / "a"))
    assert list(again) == list(a)
    two = a.merge(labels(label(answer=False, annotator="bo")))  # somebody else may think otherwise
    assert len(two) == 3


def test_damaged_folders_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def says(text: str) -> None:
        assert main(["judge", "show", str(folder)]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") <= 2 and "Traceback" not in error, error

    folder = tmp_path / "labels"
    says("holds no labels")
    labels(label(), label(1)).save(folder)
    lines = (folder / "labels.jsonl").read_text()
    (folder / "labels.jsonl").write_text(lines.splitlines()[0] + "\n")
    says("labels.jsonl ends early: 1 of 2 labels are there")
    (folder / "labels.jsonl").write_text(lines + "{oops\n")
    says("line 3: not JSON")
    (folder / "labels.jsonl").write_text(lines.replace('"missing"', '"quality"', 1))
    says("line 1: unknown value of asks 'quality'")
    (folder / "labels.jsonl").write_text(lines)
    picture = folder / "images" / f"{label(1).image}.png"
    picture.write_bytes(png(3))
    says("is damaged: its bytes have another hash than its name")
    picture.unlink()
    says(f"line 2: there is no picture {label(1).image}.png")
    (folder / "labels.json").write_text('{"format": "vsf-labels", "version": 2}')
    says("has labels of version 2; this vsf reads 1")
    (folder / "labels.json").write_text('{"format": "vsf-run"}')
    says("is not of vsf-labels")


def test_nothing_is_left_of_labels_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vsf.judging.labels as module

    written: list[Path] = []

    def full(path: Path, data: bytes) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        path.write_bytes(data)

    monkeypatch.setattr(module, "write_whole", full)
    with pytest.raises(OSError, match="No space"):
        labels(label(), label(1)).save(tmp_path / "labels")
    assert written and not list(tmp_path.iterdir())


@pytest.mark.parametrize("grows", [True, False])
def test_a_folder_that_was_being_changed_is_the_old_one_or_the_new_one(
    grows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between any two files."""
    import vsf.judging.labels as module

    few, many = labels(label()), labels(label(), label(1), label(2))
    old, new = (few, many) if grows else (many, few)
    write, seen = module.write_whole, set()
    for most in range(6):
        folder, written = tmp_path / str(most), []
        monkeypatch.setattr(module, "write_whole", write)
        old.save(folder)

        def killed(path: Path, data: bytes, most: int = most, written: list[Path] = written) -> None:
            if len(written) == most:
                raise KeyboardInterrupt
            written.append(path)
            write(path, data)

        monkeypatch.setattr(module, "write_whole", killed)
        with suppress(KeyboardInterrupt):
            new.save(folder, lose=not grows)
        read = list(Labels.open(folder))
        assert read in (list(old), list(new))
        seen.add(len(read))
    assert seen == {1, 3}


def test_saving_never_loses_labels(tmp_path: Path) -> None:
    first, more = labels(label()), labels(label(), label(1))
    first.save(tmp_path / "labels")
    more.save(tmp_path / "labels")
    assert len(Labels.open(tmp_path / "labels").images) == 2
    with pytest.raises(LabelsError, match="holds 1 other labels, which would be lost"):
        first.save(tmp_path / "labels")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(LabelsError, match="holds no labels"):
        first.save(tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(LabelsError, match="is a file"):
        first.save(tmp_path / "file")


def test_export_takes_several_judges_and_adds_to_what_is_there(run: Run, tmp_path: Path, capsys) -> None:
    out = tmp_path / "labels"
    command = ["bench", "export", str(run.folder), "--out", str(out), "--judge"]
    assert main([*command, "oracle"]) == 0 and "by oracle" in capsys.readouterr().out
    run.set_judge("second", {"kind": "made"})
    for answer in run.judged("oracle"):
        run.answers("second").put(answer.unit, {**replace(answer, answer_2=not answer.answer_2, details={}).__dict__})
    assert main([*command, "second", "--judge", "oracle"]) == 0
    assert set(Labels.open(out).annotators) == {"oracle", "second"}
    assert main([*command, "nobody"]) == 2 and "no judge 'nobody'" in capsys.readouterr().err
    run.set_judge("metrics", {"kind": "made"})
    assert main([*command, "metrics"]) == 2 and "answered no yes/no question" in capsys.readouterr().err
