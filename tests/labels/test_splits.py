"""Splits by object, and datasets of Hugging Face's library."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from vsf.cli import main
from vsf.judging import Label, Labels, LabelsError, check_split, collected, from_dataset, split, world_labels


@pytest.fixture(scope="module")
def labels() -> Labels:
    return collected(world_labels(240, 3))


def groups(some: Iterable[Label]) -> set[str]:
    return {label.group for label in some}


@pytest.mark.parametrize("seed", range(4))
def test_no_object_is_in_two_parts(labels: Labels, seed: int) -> None:
    parts = split(labels, {"train": 0.7, "dev": 0.15, "test": 0.15}, seed)
    there = [groups(part) for part in parts.values()]
    assert sum(map(len, there)) == len(set().union(*there)) == 17 and sum(map(len, parts.values())) == len(labels)
    assert list(map(len, there)) == [12, 3, 2] or list(map(len, there)) == [12, 2, 3]
    back = labels.only(reversed(list(labels)))
    assert {name: groups(part) for name, part in split(back, {"train": 0.7, "dev": 0.15, "test": 0.15}, seed).items()} == {
        name: groups(part) for name, part in parts.items()
    }  # fmt: skip


def test_seeds_part_differently(labels: Labels) -> None:
    assert len({tuple(sorted(groups(split(labels, {"a": 1, "b": 1}, seed)["a"]))) for seed in range(6)}) > 3


def test_a_picture_that_objects_share_is_on_one_side(labels: Labels) -> None:
    """A background from which the object is gone looks alike whatever the object was."""
    shares = {"train": 0.7, "dev": 0.15, "test": 0.15}
    before = split(labels, shares)
    one, *_ = before["train"]
    again = [replace(one, question=f"{one.question} {name}?", group=next(iter(before[name])).group) for name in shares]
    parts = split(labels.only([*labels, *again]), shares)
    assert {name: groups(part) for name, part in parts.items()} == {n: groups(part) for n, part in before.items()}
    assert [name for name, part in parts.items() if one.image in part.images] == ["test"]
    lost = {label for label in (*labels, *again) if label.image == one.image} - {again[-1]}
    assert {label for part in parts.values() for label in part} == {*labels, *again} - lost


def test_what_cannot_be_parted(labels: Labels) -> None:
    with pytest.raises(LabelsError, match="share above 0, got {'train': 1, 'test': 0}"):
        split(labels, {"train": 1, "test": 0})
    with pytest.raises(LabelsError, match=r"1 groups \(cat\) cannot be parted into train, test"):
        split(labels.only(one for one in labels if one.group == "cat"), {"train": 1, "test": 1})
    yes = labels.only(one for one in labels if one.asks != "missing" or one.answer or one.group != "cat")
    parts = {
        "train": yes.only(o for o in yes if o.group != "cat"),
        "test": yes.only(o for o in yes if o.group == "cat"),
    }
    with pytest.raises(LabelsError, match="test has no question of the kind 'missing' that is answered by no"):
        check_split(parts)


def test_an_object_on_both_sides_is_refused(labels: Labels) -> None:
    half = list(labels)[: len(labels) // 2]
    with pytest.raises(LabelsError, match="in train and in test, which must not share an object: 'bike', 'boat'"):
        check_split({"train": labels.only(half), "test": labels.only(set(labels) - set(half))})


def test_a_dataset_and_back(labels: Labels, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = pytest.importorskip("datasets")
    some = labels.only(list(labels)[:12])
    some.save(tmp_path / "labels")
    for name in ("hub", "hub.parquet"):
        assert main(["judge", "dataset", str(tmp_path / "labels"), "--out", str(tmp_path / name)]) == 0
        assert main(["judge", "import", str(tmp_path / name), "--out", str(tmp_path / f"{name}-back")]) == 0
        assert list(Labels.open(tmp_path / f"{name}-back")) == list(some)
        assert main(["judge", "dataset", str(tmp_path / "labels"), "--out", str(tmp_path / name)]) == 2
        assert "is there already" in capsys.readouterr().err
    # The library itself reads it: pictures are pictures, and an open answer is None.
    rows = datasets.load_from_disk(str(tmp_path / "hub"))
    assert rows[0]["image"].size == (64, 64) and rows[0]["answer"] in (True, False) and rows[0]["seconds"] is None
    (tmp_path / "empty").mkdir()
    assert main(["judge", "import", str(tmp_path / "empty"), "--out", str(tmp_path / "x")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(str(tmp_path / "text"))
    assert main(["judge", "import", str(tmp_path / "text"), "--out", str(tmp_path / "x")]) == 2
    assert "text has no column image, question, asks, answer, annotator; it has text" in capsys.readouterr().err


def test_what_a_picture_of_a_dataset_says_of_itself_is_not_taken_over(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    buffer, text = BytesIO(), PngImagePlugin.PngInfo()
    text.add_text("settings", "by method nag")
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=text)
    data = buffer.getvalue()
    row = {"image": {"bytes": data, "path": None}, "sha256": sha256(data).hexdigest()}
    row |= {"question": "Is it there?", "asks": "other", "answer": True, "annotator": "ann"}
    made = from_dataset(datasets.Dataset.from_list([row]))
    assert b"nag" in data and b"nag" not in made.png(made.images[0])
    again = {**row, "image": {"bytes": made.png(made.images[0]), "path": None}, "sha256": made.images[0]}
    assert from_dataset(datasets.Dataset.from_list([again])).images == made.images
    with pytest.raises(LabelsError, match="the column image of numbers holds no pictures"):
        from_dataset(datasets.Dataset.from_list([{**row, "image": 3}]), "numbers")
