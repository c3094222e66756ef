"""Labels that are true by construction: the same again, balanced, and as the oracle, who was trained elsewhere, sees them."""

from __future__ import annotations

import itertools
from collections import Counter
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vsf.bench.cases import load_cases
from vsf.bench.judges import JUDGES
from vsf.bench.judges.oracle import OracleJudge
from vsf.cli import main
from vsf.demo.pictures import TYPICAL
from vsf.judging import Drawn, Labels, collected, world_labels
from vsf.judging.world import KINDS


@pytest.fixture(scope="module")
def some() -> list[Drawn]:
    return list(world_labels(400, 11))


def test_a_picture_depends_on_its_number_and_the_seed_alone(some: list[Drawn]) -> None:
    again = list(itertools.islice(world_labels(None, 11, start=7), 5))
    assert [one.labels for one in again] == [one.labels for one in some[7:12]]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(again, some[7:12], strict=True))
    assert next(world_labels(1, 12)).labels != some[0].labels


def test_the_hash_is_of_the_picture(some: list[Drawn]) -> None:
    for one in some[:20]:
        assert {label.image for label in one.labels} == {sha256(one.png).hexdigest()}
        assert np.array_equal(np.asarray(Image.open(BytesIO(one.png))), one.pixels)


def test_yes_and_no_are_about_as_frequent_and_every_kind_is_there(some: list[Drawn]) -> None:
    asked = Counter((label.asks, label.answer) for one in some for label in one.labels)
    for asks in ("object", "missing", "kept"):  # four standard errors of 400 fair coins are .1
        assert 0.35 < asked[asks, True] / 400 < 0.65, asks
    kinds = Counter(one.labels[0].damage for one in some)
    assert set(kinds) == set(KINDS) and 0.23 < sum(kinds[k] for k in KINDS[2:]) / 400 < 0.43


def test_the_oracle_sees_what_is_said_of_it(some: list[Drawn]) -> None:
    """It is a network with errors of its own: .99 and more on clean renders. Of halves it was taught nothing."""
    oracle = JUDGES.make("oracle", {})
    right: Counter[tuple[str, bool]] = Counter()
    for one in some[:160]:
        picture = Image.fromarray(one.pixels)
        for label in one.labels:
            yes = oracle.answer(picture, label.question, asks=label.asks, item=label.item)
            right[label.damage, (yes >= 0.5) == label.answer] += 1
    least = {"intact": 0.97, "missing": 0.97, "distorted": 0.9, "object gone": 0.95, "half removed": 0.75}
    for kind, share in least.items():
        assert right[kind, True] / (right[kind, True] + right[kind, False]) > share, (kind, right)


def test_the_oracle_says_what_it_does_not_know() -> None:
    oracle, picture = JUDGES.make("oracle", {}), Image.new("RGB", (64, 64))
    assert oracle.answer(picture, "?", asks="missing", item="doors") is None
    assert oracle.answer(picture, "?", asks="object", item="red bus") is None
    assert oracle.answer(picture, "?", asks="object", item="teal bike") is None
    assert oracle.answer(picture, "Is the sail missing?") is None


def test_an_oracle_of_another_kind_answers_by_what_it_reads() -> None:
    """Only `objects`, `colors`, `part` and `has` are needed of a reading."""
    read = SimpleNamespace(objects=["bike"], colors=["red"], part=lambda name: np.array([0.25]))
    judge = OracleJudge(SimpleNamespace(read=lambda pixels: read))
    picture = Image.new("RGB", (64, 64))
    asked = {("object", "red bike"): 1.0, ("object", "bike"): 1.0, ("object", "blue bike"): 0.0, ("object", "red car"): 0.0,
             ("missing", "wheels"): 0.75, ("kept", "wheels"): 0.25}  # fmt: skip
    assert {(a, i): judge.answer(picture, "?", asks=a, item=i) for a, i in asked} == asked


def test_half_of_a_part_is_left() -> None:
    """The mended pixels are those of the part: of the picture with it and the one without it, no third."""
    from dataclasses import replace

    from vsf.demo import pictures
    from vsf.judging import world as module

    for seed in range(12):
        rng = np.random.default_rng(seed)
        scene = replace(pictures.sample_scene(rng, object="boat"), parts=("sail",))
        whole, bare = pictures.render(scene), pictures.render(replace(scene, parts=()))
        mask = (whole != bare).any(-1)
        got = module._damaged(pictures.WORLD, rng, scene, "sail", "half removed", whole, mask, 64)
        taken = (got != whole).any(-1)
        assert np.array_equal(got[taken], bare[taken]) and 0.29 < taken.sum() / mask.sum() < 0.56


def test_only_these_objects_are_drawn_and_named() -> None:
    others = [name for name in TYPICAL if name not in ("bike", "mug")]
    for one in world_labels(60, objects=["bike", "mug"], split="dev"):
        for label in one.labels:
            assert label.group in ("bike", "mug") and label.answer is not None
            assert not {*others} & set(label.question.rstrip("?").replace(",", "").split()), label.question


def test_questions_are_those_of_the_cases(some: list[Drawn]) -> None:
    known = {q for case in load_cases("demo") for q in (case.question_1, case.question_2)}
    asked = [
        label for one in some for label in one.labels if label.asks != "kept" and label.item in TYPICAL[label.group]
    ]
    assert sum(label.question in known for label in asked) / len(asked) > 0.95


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"objects": ["bus"]}, "unknown object 'bus'; allowed: bike"),
        ({"objects": []}, "at least one object is needed"),
        ({"kinds": ["torn"]}, "unknown kind of damage 'torn'"),
        ({"split": "all"}, "unknown split 'all'"),
        ({"of": "films"}, "unknown world 'films'"),
    ],
)
def test_bad_input(given: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        world_labels(1, **given)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "labels")
    assert main(["judge", "world", "8", "--out", out, "--objects", "cat,tree", "--damage", "intact,missing"]) == 0
    made = Labels.open(out)
    assert list(made) == list(collected(world_labels(8, objects=["cat", "tree"], kinds=["intact", "missing"])))
    assert main(["judge", "show", out]) == 0 and "groups: 2" in capsys.readouterr().out
    assert main(["judge", "world", "8", "--out", out, "--objects", "dog"]) == 2
    assert "unknown object 'dog'" in capsys.readouterr().err
