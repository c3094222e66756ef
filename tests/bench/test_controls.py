"""The control's negative and the parts that must stay."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import Counter

import pytest

from vsf.bench.cases import SETS, Case, CaseSet, load_cases
from vsf.bench.controls import kept, unrelated
from vsf.bench.rules import stems_clash, word_count


def case(id: str, negative: str, category: str, object: str, **more: str) -> Case:
    return Case(
        id=id,
        prompt=f"A {object} in the morning",
        negative=negative,
        question_1=f"Is there a {object}, with or without {negative}?",
        question_2=f"Is {negative} missing?",
        split="test",
        category=category,
        source="test",
        object=object,
        **more,
    )


BIKE = case("bike", "wheels", "vehicles", "bike")


def among(*others: Case, first: Case = BIKE) -> str:
    return unrelated(first, CaseSet("mine", "CC0-1.0", (first, *others)))


@pytest.mark.parametrize("name", SETS)
def test_control_shares_nothing_with_its_case_and_is_as_long(name: str) -> None:
    cases = load_cases(name)
    for c in cases:
        other = unrelated(c, cases)
        for text in (c.prompt, c.negative, c.object or "", ", ".join(kept(c))):
            assert not stems_clash(other, text), (c.id, other)
        # A comma list of common words has sometimes no other of just its length.
        assert abs(word_count(other) - word_count(c.negative)) <= (name == "common"), (c.id, other)
        if not name.startswith("demo") and c.unrelated is None:
            assert any(o.category != c.category and o.negative == other for o in cases)


def test_same_case_same_control_whatever_the_order_of_the_set() -> None:
    for name in SETS:
        cases = load_cases(name)
        turned = CaseSet(cases.name, cases.license, cases.cases[::-1])
        assert [unrelated(c, cases) for c in cases] == [unrelated(c, turned) for c in cases]


def test_no_control_is_used_all_the_time() -> None:
    for name, most in (("neggen", 10), ("common", 6), ("demo", 25)):
        cases = load_cases(name)
        counts = Counter(unrelated(c, cases) for c in cases)
        assert max(counts.values()) <= most and len(counts) >= 20


def test_demo_control_is_a_part_that_nobody_expects_on_the_object() -> None:
    from vsf.demo import pictures as world

    cases = load_cases("demo")
    for c in cases:
        other = unrelated(c, cases)
        assert c.object is not None and c.part is not None
        assert other in world.PARTS and other not in world.TYPICAL[c.object]
        assert {other, c.part} != {"smoke", "steam"}
        assert other not in c.prompt.split()
        assert set(kept(c)) == set(world.TYPICAL[c.object]) - {c.part}


def test_another_category_comes_first_then_the_length() -> None:
    same, longer = case("car", "windows", "vehicles", "car"), case("cat", "long grey tail", "animals", "cat")
    assert among(same, longer) == "long grey tail"
    assert among(same, longer, case("dog", "ears", "animals", "dog")) == "ears"
    assert among(same) == "windows"  # a set with a single category
    assert among(longer, case("x", "two words", "food", "pie")) == "two words"


def test_a_shared_word_is_no_control() -> None:
    clashes = [
        case("a", "wheel", "animals", "hamster"),
        case("b", "bikes", "home", "garage"),
        case("c", "mornings", "nature", "week"),
        case("d", "waterwheels", "buildings", "mill"),
    ]
    with pytest.raises(ValueError, match="'bike': the set 'mine' holds no negative that is unrelated.*'unrelated'"):
        among(*clashes)
    assert among(*clashes, case("e", "roof", "buildings", "barn")) == "roof"
    keeps_it = dataclasses.replace(BIKE, kept="roof")
    with pytest.raises(ValueError, match="unrelated"):
        among(*clashes, case("e", "roof", "buildings", "barn"), first=keeps_it)


def test_other_cases_come_and_go_without_another_choice() -> None:
    cases = load_cases("neggen").cases
    choice = {c.id: unrelated(c, CaseSet("a", "x", cases)) for c in cases}
    half = tuple(c for i, c in enumerate(cases) if i % 2)
    for c in half:
        now = unrelated(c, CaseSet("a", "x", half))
        assert now == choice[c.id] or choice[c.id] not in {o.negative for o in half if o.category != c.category}


def test_the_cases_own_word_counts() -> None:
    assert among(case("e", "roof", "buildings", "barn"), first=dataclasses.replace(BIKE, unrelated="sails")) == "sails"
    demo = load_cases("demo")
    mine = dataclasses.replace(demo.cases[0], unrelated="hat", kept="pedals,  red frame")
    assert unrelated(mine, demo) == "hat" and kept(mine) == ("pedals", "red frame")
    assert kept(BIKE) == ()


def test_controls_need_no_torch() -> None:
    code = (
        "import sys\nfrom vsf.bench.cases import load_cases\nfrom vsf.bench.controls import unrelated\n"
        "s = load_cases('demo')\nunrelated(s.cases[0], s)\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))})
