"""The demo world keeps its promises: what a caption says is what the picture shows."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest

from vsf.demo import pictures as world
from vsf.demo.pictures import BACKGROUNDS, COLORS, OBJECTS, PARTS, PRIOR, STYLES, TYPICAL, VOCABULARY, Scene

PAIRS = [(name, part) for name in OBJECTS for part in TYPICAL[name]]
EXTRAS = [(name, part) for name in OBJECTS for part in world.allowed_extras(name)]


def scene_of(name: str, parts: tuple[str, ...], seed: int, style: str | None = None) -> Scene:
    colors = tuple(COLORS)
    return Scene(
        name,
        colors[seed % len(colors)],
        tuple(sorted(parts)),
        BACKGROUNDS[seed % len(BACKGROUNDS)],
        style or STYLES[seed % len(STYLES)],
        seed,
    )


@pytest.fixture(scope="module")
def rows() -> list[list[tuple[Scene, str]]]:
    rng = np.random.default_rng(20)
    return [world.training_pair(rng) for _ in range(12000)]


def test_size_of_the_world() -> None:
    assert len(OBJECTS) >= 14
    assert len(PAIRS) >= 24
    assert len(COLORS) == 8
    assert set(TYPICAL) == set(OBJECTS)
    assert all(1 <= len(parts) <= 2 for parts in TYPICAL.values())
    assert {part for parts in TYPICAL.values() for part in parts} == set(PARTS)
    assert all(word == word.lower() and word.isalpha() for word in VOCABULARY)
    uses = Counter(part for _, part in PAIRS)
    assert sum(count > 1 for count in uses.values()) >= 6, "typical parts are shared between objects"


def test_render_is_deterministic_across_processes() -> None:
    code = (
        "import hashlib, numpy as np\nfrom vsf.demo import pictures as world\nr = np.random.default_rng(3)\n"
        "h = hashlib.sha256()\n"
        "for _ in range(20):\n"
        "    for s, c in world.training_pair(r):\n"
        "        h.update(world.render(s).tobytes() + c.encode())\n"
        "print(h.hexdigest())"
    )
    digests = {
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("size", [32, 64, 100, 300])
def test_shape_and_type(size: int) -> None:
    picture = world.render(scene_of("car", ("wheels",), 1), size)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8


def test_seed_changes_the_picture_and_nothing_else_is_random() -> None:
    scene = scene_of("bike", ("wheels",), 4)
    assert (world.render(scene) == world.render(scene)).all()
    assert (world.render(scene) != world.render(replace(scene, seed=5))).any(axis=2).mean() > 0.05


def test_anti_aliased() -> None:
    """The 64 px pictures are area means of the scenes, not samples of them."""
    to_mean = to_sample = 0.0
    for name in OBJECTS:
        for seed in range(6):
            scene = scene_of(name, TYPICAL[name], seed)
            small = world.render(scene, 64).astype(float)
            large = world.render(scene, 256).astype(float)
            mean = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
            to_mean += np.abs(small - mean).mean()
            to_sample += np.abs(small - large[2::4, 2::4]).mean()
    assert to_mean < 0.7 * to_sample


@pytest.mark.parametrize("name", OBJECTS)
def test_pictures_of_one_seed_agree_outside_the_mask(name: str) -> None:
    for seed in range(6):
        extra = world.allowed_extras(name)[seed % 5]
        full = scene_of(name, (*TYPICAL[name], extra), seed)
        mask = world.part_mask(full)
        picture = world.render(full)
        for parts in ((), TYPICAL[name][:1], TYPICAL[name][1:], (extra,)):
            other = world.render(replace(full, parts=tuple(sorted(parts))))
            assert not ((picture != other).any(axis=2) & ~mask).any()
        assert mask.mean() < 0.75, "most of a picture does not depend on its parts"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("name", "part"), PAIRS + EXTRAS)
def test_every_part_is_visible(name: str, part: str, style: str) -> None:
    others = tuple(p for p in TYPICAL[name] if p != part)
    for seed in range(4):
        without = scene_of(name, others, seed, style)
        drawn = scene_of(name, (*others, part), seed, style)
        changed = (world.render(drawn) != world.render(without)).any(axis=2)
        assert changed.mean() >= 0.025
        assert not (changed & ~world.part_mask(drawn)).any()


@pytest.mark.parametrize("part", PARTS)
def test_a_part_alone_is_large(part: str) -> None:
    for seed in range(4):
        scene = Scene(None, "red", (part,), BACKGROUNDS[seed], STYLES[seed % 3], seed)
        mask = world.part_mask(scene)
        assert mask.mean() >= 0.06
        columns, lines = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        assert max(np.ptp(columns), np.ptp(lines)) >= 0.36 * 64


def test_extras_are_atypical_and_enough() -> None:
    for name in OBJECTS:
        extras = world.allowed_extras(name)
        assert len(extras) >= 5
        assert not set(extras) & set(TYPICAL[name])
    assert {part for _, part in EXTRAS} == set(PARTS), "every part occurs in an unusual combination"


def test_body_has_its_colour() -> None:
    for i, name in enumerate(OBJECTS):
        for j, (color, rgb) in enumerate(COLORS.items()):
            picture = world.render(Scene(name, color, (), BACKGROUNDS[(i + j) % 6], "flat", j)).astype(int)
            close = (np.abs(picture - np.asarray(rgb)).max(axis=2) <= 10).mean()
            assert close > 0.015, (name, color)


def mentioned(text: str) -> set[str]:
    return set(text.split()) & set(PARTS)


def test_caption_semantics(rows: list[list[tuple[Scene, str]]]) -> None:
    for pair in rows:
        for scene, text in pair:
            words = text.split()
            assert set(words) <= set(VOCABULARY)
            assert not {"without", "no", "not", "none"} & set(words)
            assert mentioned(text) <= set(scene.parts)
            if scene.object is None or not text or len(words) == 1:
                continue
            assert scene.object in words
            assert scene.color in words
            extras = set(scene.parts) - set(TYPICAL[scene.object])
            assert extras <= mentioned(text), "an unusual part is never drawn unsaid"
            if "plain" in words:
                assert set(scene.parts) == mentioned(text)
            for style in STYLES[1:]:
                assert style not in words or scene.style == style
            for name, phrase in world.BACKGROUND_PHRASE.items():
                assert not text.endswith(phrase) or scene.background == name
            before = words[0]
            assert before == ("an" if words[1][0] in "aeiou" else "a")


def test_pairs_are_antithetic(rows: list[list[tuple[Scene, str]]]) -> None:
    pairs = [pair for pair in rows if len(pair) == 2]
    assert abs(len(pairs) / len(rows) - 0.55) < 0.02
    with_extra = 0
    for (a, ta), (b, tb) in pairs:
        assert replace(a, parts=()) == replace(b, parts=())
        assert a.object is not None
        typical = set(TYPICAL[a.object])
        assert typical & set(a.parts) == typical - set(b.parts)
        with_extra += bool((set(a.parts) | set(b.parts)) - typical)
        for scene, text in ((a, ta), (b, tb)):
            assert not text or mentioned(text) == set(scene.parts)
            assert not text or typical <= set(scene.parts) or "plain" in text.split()
    assert abs(with_extra / len(pairs) - 0.5) < 0.03


def test_unmentioned_typical_parts_follow_the_prior(rows: list[list[tuple[Scene, str]]]) -> None:
    drawn: list[bool] = []
    for pair in rows:
        for scene, text in pair:
            words = text.split()
            if len(words) < 2 or scene.object is None or "plain" in words or mentioned(text):
                continue
            drawn += [part in scene.parts for part in TYPICAL[scene.object]]
    # 4 standard deviations of a binomial.
    assert len(drawn) > 2000
    assert abs(np.mean(drawn) - PRIOR) < 4 * sqrt(PRIOR * (1 - PRIOR) / len(drawn))


def test_shares_of_the_training_rows(rows: list[list[tuple[Scene, str]]]) -> None:
    flat = [row for pair in rows for row in pair]
    assert abs(np.mean([not text for _, text in flat]) - 0.10) < 0.01
    objects = [(s, t) for s, t in flat if s.object is not None and len(t.split()) > 1]
    assert (
        abs(np.mean([any(t.endswith(p) for p in world.BACKGROUND_PHRASE.values()) for _, t in objects]) - 0.4) < 0.02
    )
    assert abs(np.mean([bool(set(t.split()) & set(STYLES)) for _, t in objects]) - 0.15) < 0.02
    assert abs(np.mean([s.style == "flat" for s, _ in flat]) - 0.5) < 0.02
    assert {word for _, text in flat for word in text.split()} == set(VOCABULARY)


def test_split_is_stable_and_training_keeps_out(rows: list[list[tuple[Scene, str]]]) -> None:
    triples = [(o, c, b) for o in OBJECTS for c in COLORS for b in BACKGROUNDS]
    counts = Counter(world.split(*triple) for triple in triples)
    for name in ("dev", "test"):
        assert 0.11 < counts[name] / len(triples) < 0.19
    training = [t for t in triples if world.split(*t) == "train"]
    assert {(o, c) for o, c, _ in training} == {(o, c) for o in OBJECTS for c in COLORS}
    assert {(o, b) for o, _, b in training} == {(o, b) for o in OBJECTS for b in BACKGROUNDS}
    assert {(c, b) for _, c, b in training} == {(c, b) for c in COLORS for b in BACKGROUNDS}
    for name in ("dev", "test"):
        assert {o for o, c, b in triples if world.split(o, c, b) == name} == set(OBJECTS)
    for pair in rows:
        for scene, _ in pair:
            if scene.object is not None:
                assert world.split(scene.object, scene.color, scene.background) == "train"
    assert world.split("bike", "red", "grass", "wheels") == world.split("bike", "red", "grass")


@pytest.mark.parametrize("split_name", world.SPLITS)
def test_sample_scene_keeps_to_its_split(split_name: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        scene = world.sample_scene(rng, object="cake", parts=("wheels", "candles"), split_name=split_name)
        assert (scene.object, scene.parts) == ("cake", ("candles", "wheels"))
        assert world.split("cake", scene.color, scene.background) == split_name


def test_caption_forms() -> None:
    rng = np.random.default_rng(0)
    bike = Scene("bike", "red", (), "grass", "outlined", 0)
    assert world.caption(bike, "exact", rng, False, False) == "a plain red bike"
    assert world.caption(bike, "bare", rng, True, True) == "an outlined red bike on grass"
    hat = replace(bike, color="orange", parts=("hat",))
    assert world.caption(hat, "exact", rng, False, False) == "a plain orange bike with a hat"
    assert world.caption(hat, "mention", rng, False, False) == "an orange bike with a hat"
    assert world.caption(hat, "part", rng, False, False) == "hat"
    assert world.caption(hat, "empty", rng, True, True) == ""
    assert world.caption(Scene(None, "red", ("wheels",), "sea", "flat", 0), "exact", rng, False, True) == "wheels"


def test_bad_input_names_what_is_allowed() -> None:
    good = scene_of("bike", (), 0)
    for field, value in (
        ("object", "cow"),
        ("color", "mauve"),
        ("parts", ("horns",)),
        ("background", "moon"),
        ("style", "oil"),
    ):
        with pytest.raises(ValueError, match="known: "):
            replace(good, **{field: value})
    with pytest.raises(ValueError, match="sorted"):
        replace(good, parts=("wheels", "basket"))
    with pytest.raises(ValueError, match="at least one part"):
        replace(good, object=None)
    with pytest.raises(ValueError, match="at least 16"):
        world.render(good, 8)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="known: exact"):
        world.caption(good, "poem", rng, False, False)
    with pytest.raises(ValueError, match="extra"):
        world.caption(replace(good, parts=("hat",)), "bare", rng, False, False)
    with pytest.raises(ValueError, match="with a part"):
        world.caption(good, "part", rng, False, False)
    with pytest.raises(ValueError, match="known: train"):
        world.sample_scene(rng, split_name="valid")
    with pytest.raises(ValueError, match="known: "):
        world.allowed_extras("cow")
