"""The moving world: what it draws moves, is there in every frame, and is read by the same oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vsf.bench.cases import load_cases
from vsf.demo import clips, pictures
from vsf.demo.clips.motion import Moment
from vsf.demo.oracle import load_oracle
from vsf.demo.pictures import BACKGROUNDS, COLORS, OBJECTS, PARTS, STYLES, TYPICAL, Scene

PAIRS = [(name, part) for name in OBJECTS for part in TYPICAL[name]]
EXTRAS = [(name, part) for name in OBJECTS for part in clips.allowed_extras(name)]


def scene_of(name: str | None, parts: tuple[str, ...], seed: int) -> Scene:
    return Scene(name, tuple(COLORS)[seed % 8], tuple(sorted(parts)), BACKGROUNDS[seed % 6], STYLES[seed % 3], seed)


@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_moves_with_and_without_its_parts(name: str) -> None:
    for seed in range(4):
        for parts in ((), TYPICAL[name]):
            clip = clips.render(scene_of(name, parts, seed)).astype(int)
            steps = np.abs(np.diff(clip, axis=0)).max(-1) > 24
            assert steps.any((1, 2)).sum() >= 5, "it stands still for most of the time"
            assert (clip == clip[0]).all((0, -1)).mean() > 0.25, "the place stands still"


@pytest.mark.parametrize("part", sorted(set(PARTS) - {"windows", "chimney", "buttons"}))
def test_a_part_moves_by_itself(part: str) -> None:
    for seed in range(3):
        clip = clips.render(scene_of(None, (part,), seed)).astype(int)
        assert (np.abs(np.diff(clip, axis=0)).max(-1) > 24).any((1, 2)).sum() >= 3


@pytest.mark.parametrize(("name", "part"), PAIRS + EXTRAS)
def test_every_part_is_visible_in_every_frame(name: str, part: str) -> None:
    others = tuple(p for p in TYPICAL[name] if p != part)
    for seed in range(3):  # another style each
        drawn, without = (clips.render(scene_of(name, parts, seed)) for parts in ((*others, part), others))
        assert ((drawn != without).any(-1).mean((1, 2)) >= 0.018).all()


@pytest.mark.parametrize("name", OBJECTS)
def test_clips_of_one_seed_agree_outside_the_mask_of_every_frame(name: str) -> None:
    for seed in range(2):
        extra = clips.allowed_extras(name)[seed % 5]
        full = scene_of(name, (*TYPICAL[name], extra), seed)
        clip, mask = clips.render(full), clips.part_mask(full)
        assert mask.shape == clip.shape[:3] and mask.dtype == bool
        for parts in ((), TYPICAL[name][:1], (extra,)):
            other = clips.render(replace(full, parts=tuple(sorted(parts))))
            assert not ((clip != other).any(-1) & ~mask).any()


def test_a_bike_rolls_the_way_it_faces_by_parts_of_a_pixel_and_its_wheels_turn_with_it() -> None:
    for seed in range(6):
        scene = Scene("bike", "red", (), "grass", "flat", seed)
        centres: list[float] = []
        for frame in clips.render(scene, 64).astype(int):
            red = (np.abs(frame - COLORS["red"]).max(-1) < 60).astype(float)
            centres.append(float((red.sum(0) * np.arange(64)).sum() / red.sum()))
        steps = np.diff(centres)
        first = pictures.render(scene)  # the basket's place, and so the handlebars, are ahead
        ahead = np.nonzero((pictures.render(replace(scene, parts=("basket",))) != first).any((0, 2)))[0].mean()
        assert (np.sign(steps) == np.sign(ahead - 32)).all()
        assert 0.4 < np.abs(steps).mean() < 2 and np.abs(steps - steps.mean()).max() < 0.5
        rolled = [Moment(scene, t).rolled for t in range(clips.FRAMES)]
        assert np.allclose(np.diff(rolled), rolled[-1] / 4)  # the spokes turn by this way over the radius


def test_frames_are_anti_aliased() -> None:
    to_mean = to_sample = 0.0
    for seed, name in enumerate(OBJECTS):
        scene = scene_of(name, TYPICAL[name], seed)
        small, large = clips.render(scene, 64).astype(float), clips.render(scene, 256).astype(float)
        to_mean += np.abs(small - large.reshape(9, 64, 4, 64, 4, 3).mean((2, 4))).mean()
        to_sample += np.abs(small - large[:, 2::4, 2::4]).mean()
    assert to_mean < 0.7 * to_sample


def test_it_is_said_as_before_and_held_out_as_before() -> None:
    """No caption tells of motion: scenes, captions, words, splits and cases are those of the pictures."""
    assert clips.training_pair is pictures.training_pair and clips.split is pictures.split
    assert clips.WORLD.vocabulary == pictures.WORLD.vocabulary and clips.WORLD.frames == clips.FRAMES
    cases, still = load_cases("clips"), load_cases("demo")
    assert (cases.name, cases.world) == ("clips", "clips")
    assert [replace(case, world=None) for case in cases] == list(still)
    assert all(case.of_world() is clips.WORLD for case in cases)


def test_the_oracle_of_the_pictures_reads_every_frame() -> None:
    rng = np.random.default_rng(11)
    scenes = []
    for i in range(102):
        name = OBJECTS[i % len(OBJECTS)]
        parts = [p for p in TYPICAL[name] if rng.random() < 0.5]
        if rng.random() < 0.4:
            parts.append(str(rng.choice(clips.allowed_extras(name))))
        scenes.append(clips.sample_scene(rng, name, parts, "test"))
    oracle = load_oracle()
    reading = oracle.read(np.concatenate([clips.render(scene) for scene in scenes]))
    of_frames = [scene for scene in scenes for _ in range(clips.FRAMES)]
    assert np.mean([a == s.object for a, s in zip(reading.objects, of_frames, strict=True)]) >= 0.99
    assert np.mean([a == s.color for a, s in zip(reading.colors, of_frames, strict=True)]) >= 0.98
    right = (reading.part_probs >= 0.5) == np.array([[p in s.parts for p in PARTS] for s in of_frames])
    assert right.mean() >= 0.993
    assert right.reshape(len(scenes), clips.FRAMES, -1).all(1).mean() >= 0.985  # in all frames of a clip
    assert (reading.quality >= oracle.threshold).mean() >= 0.93
