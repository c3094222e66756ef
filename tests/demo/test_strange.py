"""Strange pictures: what they say is there can be seen, what they do not say is not drawn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vsf.demo.oracle import load_oracle
from vsf.demo.pictures import OBJECTS, PARTS, strange


@pytest.fixture(scope="module")
def drawn():
    return [strange(np.random.default_rng([1, i]), OBJECTS) for i in range(240)]


def test_they_are_pictures_with_up_to_three_parts_of_every_kind(drawn):
    assert all(one.pixels.shape == (64, 64, 3) and one.pixels.dtype == np.uint8 for one in drawn)
    seen = Counter(part for one in drawn for part in one.parts)
    assert {*seen} == {*PARTS} and {len(one.parts) for one in drawn} == {0, 1, 2, 3}
    again = strange(np.random.default_rng([1, 7]), OBJECTS)
    assert (again.pixels == drawn[7].pixels).all() and again.parts == drawn[7].parts
    assert not any({"smoke", "steam"} <= one.parts for one in drawn)


def test_somebody_who_never_saw_such_bodies_sees_their_parts(drawn):
    """The oracle reads parts on the world's objects in their places; elsewhere it still finds half, and hardly any others."""
    reading = load_oracle().read(np.stack([one.pixels for one in drawn]))
    there = np.array([[part in one.parts for part in PARTS] for one in drawn])
    said = reading.part_probs >= 0.5
    assert said[there].mean() > 0.5 and said[~there].mean() < 0.05


def test_only_the_given_objects_lend_bodies_and_places():
    few = [strange(np.random.default_rng([2, i]), ("mug",)).pixels for i in range(8)]
    more = [strange(np.random.default_rng([2, i]), ("mug", "car")).pixels for i in range(8)]
    assert any((a != b).any() for a, b in zip(few, more, strict=True))
