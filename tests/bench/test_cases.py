from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from vsf.bench.cases import LATEST, SETS, Case, CasesError, CaseSet, load_cases, save_cases
from vsf.bench.controls import kept
from vsf.bench.rules import check_rules, word_count
from vsf.bench.taken import DEV_OBJECTS, import_neggenbench, make_demo_cases
from vsf.cli import main

HEADER = {"format": "vsf-cases", "version": 1, "name": "mine", "license": "CC0-1.0"}
GOOD = Case(
    id="lamp-shade",
    prompt="A desk lamp in an office",
    negative="shade",
    question_1="Is there a desk lamp in the picture, with or without a shade?",
    question_2="Is the shade missing from the desk lamp?",
    split="test",
    category="home",
    source="test",
    object="desk lamp",
)
ROW = GOOD.to_dict()


def write(path: Path, *rows: object) -> Path:
    """Rows as JSON lines; bytes as they are."""
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n")
    return path


def other(**changes: object) -> dict[str, object]:
    return {**ROW, **changes}


# --- Shipped sets


@pytest.mark.parametrize("name", SETS)
def test_shipped_set_keeps_the_rules(name: str) -> None:
    cases = load_cases(name)
    assert cases.name == name.removesuffix("-v1") and cases.license == "Apache-2.0"
    assert check_rules(cases) == []


def test_a_name_without_a_version_is_the_latest_and_old_versions_stay_what_they_were() -> None:
    for name, latest in LATEST.items():
        assert load_cases(name) == load_cases(latest)
    # What was drawn before can be found again: these are the hashes in the plans of old runs.
    assert load_cases("demo-v1").hash == "928a780488f912975bc684e62e5e8bfca24c76e3e8809698704e561357c2ed52"
    assert load_cases("neggen-v1").hash == "9ff741a3b95d1465ace3f75069a1b7934a89cc6cbe40af48251e3c06a92987ba"


@pytest.mark.parametrize("name", ["neggen-v1", "neggen-v2"])
def test_neggen_has_200_cases_with_balanced_categories(name: str) -> None:
    cases = load_cases(name)
    assert (len(cases.split("dev")), len(cases.split("test"))) == (50, 150)
    counts = Counter((case.category, case.split) for case in cases)
    assert len({category for category, _ in counts}) == 10
    assert {count for (_, split), count in counts.items() if split == "dev"} == {5}
    assert {count for (_, split), count in counts.items() if split == "test"} == {15}
    assert all(case.object for case in cases)
    assert max(Counter(case.negative for case in cases).values()) <= 3  # no habit of one word


def test_a_third_of_neggen_is_narrative() -> None:
    cases = load_cases("neggen")
    told = [case for case in cases if case.style == "narrative"]
    assert len(told) == 67 and {case.style for case in cases} == {"narrative", "short"}
    assert {6, 7} == set(Counter(case.category for case in told).values())
    lengths = [word_count(case.prompt) for case in told]
    assert min(lengths) >= 15 and max(lengths) <= 30 and len(set(lengths)) >= 8
    assert all(word_count(case.prompt) < 20 for case in cases if case.style == "short")
    assert all(case.prompt.endswith(".") for case in told)


def test_a_case_id_that_both_versions_of_neggen_have_means_one_case() -> None:
    old = {case.id: case for case in load_cases("neggen-v1")}
    for case in load_cases("neggen-v2"):
        if case.id in old:
            before = old[case.id]
            assert (case.prompt, case.negative, case.question_1, case.question_2, case.kept) == (
                before.prompt, before.negative, before.question_1, before.question_2, before.kept,
            )  # fmt: skip


def test_neggen_v2_mends_what_was_found_in_v1() -> None:
    cases = {case.object: case for case in load_cases("neggen")}
    # Weak priors, and objects that are nothing without the part.
    weak = {("pirate captain", "eye patch"), ("chef", "hat"), ("knight", "sword"), ("living room window", "curtains"),
            ("mermaid", "fish tail"), ("dandelion", "seeds"), ("tropical beach", "ocean")}  # fmt: skip
    assert not weak & {(case.object, case.negative) for case in cases.values()}
    # Words that name other things when they stand alone, as a negative does.
    assert not {"bow", "cap", "club", "board", "net", "valves", "stem"} & {case.negative for case in cases.values()}
    people = {name for name, case in cases.items() if case.category == "people"}
    assert not {"birthday party", "Christmas tree", "campsite", "classroom"} & people


def test_common_has_60_cases_with_balanced_categories() -> None:
    cases = load_cases("common")
    assert (len(cases.split("dev")), len(cases.split("test"))) == (15, 45)
    assert Counter(case.category for case in cases) == dict.fromkeys(
        ("text", "watermark", "blur", "people", "clutter", "style"), 10
    )
    dev = Counter(case.category for case in cases.split("dev"))
    assert set(dev.values()) <= {2, 3}


def test_the_first_demo_set_is_the_held_out_part_of_the_demo_world() -> None:
    from vsf.demo import pictures as world

    cases = load_cases("demo-v1")
    assert cases == make_demo_cases(1)
    assert len(cases.split("dev")) >= 60 and len(cases.split("test")) >= 160
    for case in cases:
        assert case.object and case.part and case.color and case.background
        assert case.negative == case.part and case.part in world.TYPICAL[case.object]
        assert case.split == world.split(case.object, case.color, case.background, case.part)


DRAWN_BEFORE = set(Path(__file__).with_name("drawn_before.txt").read_text().split())
EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"


def test_whole_objects_and_pairs_of_the_demo_set_are_held_out() -> None:
    """In version 1 dev and test shared all 30 (object, part) pairs."""
    old = load_cases("demo-v1")
    assert {c.category for c in old.split("dev")} == {c.category for c in old.split("test")}
    cases = load_cases("demo")
    assert cases == make_demo_cases(2, DRAWN_BEFORE)
    dev, test = cases.split("dev"), cases.split("test")
    assert not {c.category for c in dev} & {c.category for c in test}
    assert {c.object for c in dev} == set(DEV_OBJECTS) and not {c.object for c in test} & set(DEV_OBJECTS)
    assert len(dev) == 86 and len(test) == 107 and len({c.object for c in test}) == 12
    # No combination that the model was trained on: all are cases of version 1, which says so.
    before = {c.id: c for c in old}
    assert all(dataclasses.replace(c, split=before[c.id].split) == before[c.id] for c in cases)
    with pytest.raises(ValueError, match="version must be 1 or 2, got 3"):
        make_demo_cases(3)


def test_no_test_case_of_the_demo_set_was_drawn_for_earlier_evidence() -> None:
    from vsf.bench.answers import read_answers

    test = {c.id for c in load_cases("demo").split("test")}
    drawn = {case for run in read_answers(EVIDENCE / "bench" / "answers.csv.gz") for case in run.plan.cases}
    drawn |= set(json.loads((EVIDENCE / "bench" / "sweep.json").read_text())["chosen"])
    assert len(drawn) == 150 + 44 and drawn <= DRAWN_BEFORE
    assert not test & DRAWN_BEFORE


def test_shipped_cases_say_which_parts_must_stay() -> None:
    assert all(case.kept for case in load_cases("neggen"))
    assert [case.id for case in load_cases("common") if not case.kept] == ["movie-poster-text-title-letters"]
    assert not any(case.kept or case.unrelated for case in load_cases("demo"))  # its world knows
    parts = Counter(part for name in ("neggen", "common") for case in load_cases(name) for part in kept(case))
    assert len(parts) > 180  # written for each object, no filler


def test_no_case_is_in_two_sets() -> None:
    keys = [(case.prompt.lower(), case.negative) for name in LATEST for case in load_cases(name)]
    assert len(keys) == len(set(keys))


def test_reading_cases_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom vsf.bench.cases import load_cases\nfrom vsf.bench.taken import make_demo_cases\n"
        "load_cases('neggen'), make_demo_cases()\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))})


# --- The format


@pytest.mark.parametrize("name", SETS)
def test_saving_what_was_loaded_gives_the_shipped_bytes(name: str, tmp_path: Path) -> None:
    import vsf.bench.cases as module

    cases = load_cases(name)
    save_cases(cases, tmp_path / "again.jsonl")
    shipped = Path(str(module.__file__)).parent / "sets" / f"{name}.jsonl"
    assert (tmp_path / "again.jsonl").read_bytes() == shipped.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.jsonl"]


def test_hash_ignores_how_a_file_is_written_and_sees_what_it_says(tmp_path: Path) -> None:
    accent = other(prompt="A desk lamp in a café")
    plain = load_cases(write(tmp_path / "a", HEADER, accent, other(id="b", prompt="A tall desk lamp")))
    second = json.dumps(dict(reversed(other(id="b", prompt="A tall desk lamp").items())), indent=None)
    raw = b"\r\n".join(
        [
            b"\xef\xbb\xbf" + json.dumps(HEADER).encode(),
            b"",
            json.dumps(accent, ensure_ascii=False, separators=(" , ", " :  ")).encode(),
            second.encode(),
        ]
    )
    (tmp_path / "b").write_bytes(raw)
    assert load_cases(tmp_path / "b").hash == plain.hash
    assert len(plain.hash) == 64
    changed = {plain.hash, CaseSet("mine", "CC0-1.0", plain.cases[::-1]).hash}
    changed.add(CaseSet("other", "CC0-1.0", plain.cases).hash)
    for field in dataclasses.fields(Case):
        value = {"split": "dev", "world": "pictures"}.get(field.name, "x")
        changed.add(CaseSet("mine", "CC0-1.0", (dataclasses.replace(plain.cases[0], **{field.name: value}),)).hash)
    assert len(changed) == 3 + len(dataclasses.fields(Case))


def test_one_error_lists_every_bad_line(tmp_path: Path) -> None:
    missing = {key: value for key, value in ROW.items() if key not in ("prompt", "source")}
    path = write(
        tmp_path / "bad.jsonl",
        HEADER,
        ROW,  # 2: the only good one
        b'{"id": "cut',
        missing | {"id": "a"},
        other(id="b", seed="3"),
        other(id="LAMP-shade"),
        json.dumps(other(id="c", prompt="caf#")).encode().replace(b"#", b"\xe9"),
        other(id="d", prompt=3),
        other(id="e", split="train"),
        b'["a list"]',
        other(id="f/../g"),
        other(id="h", negative="  "),
        b'{"id": "i", "id": "j"}',
        other(id="k", prompt="A lamp\nin an office"),
        other(id="l", prompt="A lamp \ud800"),
        other(id="m", object=None),
        b"[" * 100_000,
        other(id="n", prompt=" A lamp"),
    )
    with pytest.raises(CasesError) as caught:
        load_cases(path)
    assert [number for number, _ in caught.value.problems] == list(range(3, 19))
    text = str(caught.value)
    assert text.startswith(f"{path}: 16 bad lines, no case was loaded\n")
    lines = text.splitlines()[1:]
    wanted = (
        "not JSON", "missing fields prompt, source", "unknown field 'seed'", "already used on line 2",
        "not UTF-8 (byte 0xe9", "prompt must be a string, got int", "split must be one of dev, test, got 'train'",
        "not a JSON object but list", "id 'f/../g' must be", "negative is empty", "field 'id' occurs twice",
        "line break", "surrogate", "object must be a string, got NoneType", "JSON nested too deeply", "space",
    )  # fmt: skip
    for number, (line, part) in enumerate(zip(lines, wanted, strict=True), 3):
        assert line.startswith(f"  line {number}: ") and part in line


def test_a_line_with_several_faults_names_them_all(tmp_path: Path) -> None:
    with pytest.raises(CasesError, match="unknown field 'x'.*negative must be.*split must be"):
        load_cases(write(tmp_path / "f", HEADER, other(x="1", negative=[], split="val")))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (ROW, "line 1: the first line must be a header"),
        ({**HEADER, "version": 2}, "line 1: version must be 1, got 2"),
        ({**HEADER, "version": True}, "line 1: version must be 1, got True"),
        ({**HEADER, "author": "me"}, "line 1: unknown header field 'author'"),
        ({key: HEADER[key] for key in ("format", "version", "name")}, "line 1: missing header field license"),
        ({**HEADER, "name": 7}, "line 1: name must be a string"),
    ],
)
def test_bad_header_is_reported_with_the_bad_lines(header: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(CasesError) as caught:
        load_cases(write(tmp_path / "f", header, ROW, b"{"))
    assert message in str(caught.value) and "line 3: not JSON" in str(caught.value)


@pytest.mark.parametrize(("data", "message"), [(b"\n\n", "empty"), (json.dumps(HEADER).encode(), "no case follows")])
def test_file_without_cases(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(CasesError, match=message):
        load_cases(tmp_path / "f")


def test_unknown_set_names_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match="'negen'; sets that come with vsf: neggen, common, demo; versions before: neggen-v1, demo-v1",
    ):
        load_cases("negen")


def test_cases_made_in_python_are_held_to_the_same_rules() -> None:
    with pytest.raises(ValueError, match="case 'a b': id 'a b' must be.*split must be one of dev, test"):
        dataclasses.replace(GOOD, id="a b", split="train")
    with pytest.raises(ValueError, match="'lamp-shade' occurs twice"):
        CaseSet("x", "CC0-1.0", (GOOD, GOOD))
    with pytest.raises(ValueError, match="at least one case"):
        CaseSet("x", "CC0-1.0", ())
    with pytest.raises(ValueError, match="dev, test, got 'train'"):
        CaseSet("x", "CC0-1.0", (GOOD,)).split("train")


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases, path = CaseSet("x", "CC0-1.0", (GOOD,)), tmp_path / "f"
    save_cases(cases, path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_cases(CaseSet("y", "CC0-1.0", (GOOD,)), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["f"]


# --- Groups and samples


def grouped(*rows: tuple[str, str, str | None]) -> CaseSet:
    """Cases of (id, category, object), all dev."""
    made = [
        dataclasses.replace(GOOD, id=id, category=category, object=name, split="dev") for id, category, name in rows
    ]
    return CaseSet("x", "CC0-1.0", tuple(made))


@pytest.mark.parametrize(
    ("rows", "unit", "groups"),
    [
        # Parts of one object in categories of their own: the object is outermost.
        ([("a", "bike/wheels", "bike"), ("b", "bike/basket", "bike"), ("c", "car/w", "car")], "object", "bike bike car"),
        # Objects within categories: the category is.
        ([("a", "tools", "axe"), ("b", "tools", "saw"), ("c", "food", "egg")], "category", "tools tools food"),
        # A category that all share says nothing; nor does no object.
        ([("a", "mine", "axe"), ("b", "mine", "saw"), ("c", "mine", "saw")], "object", "axe saw saw"),
        ([("a", "mine", None), ("b", "mine", None), ("c", "mine", None)], "case", "a b c"),
        ([("a", "x", None), ("b", "x", "axe"), ("c", "y", "axe")], "category", "x x y"),
        # Crossed: whoever shares either is one group.
        ([("a", "x", "axe"), ("b", "y", "axe"), ("c", "y", "saw"), ("d", "z", "egg")], "group", "g g g z"),
    ],
)  # fmt: skip
def test_the_group_of_a_case_is_the_outermost_it_declares(
    rows: list[tuple[str, str, str | None]], unit: str, groups: str
):
    cases = grouped(*rows)
    names = [cases.groups[case.id] for case in cases]
    wanted = groups.split()
    assert cases.unit == unit
    assert [names.index(n) for n in names] == [wanted.index(n) for n in wanted]


def test_the_groups_of_the_shipped_sets() -> None:
    counted = {name: (load_cases(name).unit, len(set(load_cases(name).groups.values()))) for name in SETS}
    assert counted == {
        "neggen-v2": ("category", 10), "common": ("category", 6), "demo-v2": ("object", 17),
        "neggen-v1": ("category", 10), "demo-v1": ("object", 17),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["neggen", "demo", "common"])
def test_a_sample_is_even_over_groups_seeded_and_nested(name: str) -> None:
    """`--limit 44` used to take the first 44: of the demo set's 30 pairs the alphabetically first 14 twice."""
    cases = load_cases(name)
    there = cases.split("test")
    held = Counter(cases.groups[case.id] for case in there)
    for n in (7, 20, 44):
        sample = cases.sample("test", n)
        assert len(sample) == n and set(sample) <= set(there)
        counts = Counter(cases.groups[case.id] for case in sample)
        # Groups that have run out of cases aside, no two differ by more than one case.
        most = max(counts.values())
        assert all(counts[g] >= min(most - 1, held[g]) for g in held)
        assert set(sample) <= set(cases.sample("test", n + 5))
        assert sample == tuple(case for case in there if case in set(sample))  # in the set's order
    assert cases.sample("test", 20) == cases.sample("test", 20) != cases.sample("test", 20, seed=1)
    assert cases.sample("test", 10_000) == cases.sample("test") == there
    assert cases.sample(None) == cases.cases
    # Another order of the file gives the same cases.
    turned = CaseSet(cases.name, cases.license, cases.cases[::-1])
    assert set(turned.sample("test", 20)) == set(cases.sample("test", 20))
    with pytest.raises(ValueError, match="at least 1 case, got 0"):
        cases.sample("test", 0)


def test_a_sample_is_even_over_the_pairs_of_an_object() -> None:
    cases = load_cases("demo")
    for name, pairs in Counter(c.object for c in cases.sample("test", 44)).items():
        mine = Counter(c.category for c in cases.sample("test", 44) if c.object == name)
        held = Counter(c.category for c in cases.split("test") if c.object == name)
        assert pairs == sum(mine.values())
        assert all(mine[p] >= min(max(mine.values()) - 1, held[p]) for p in held)


# --- The public benchmark's format


def public(n: int) -> list[dict[str, str]]:
    return [
        {
            "prompt": f"A desk lamp in office {i}",
            "missing_element": "shade ",
            "question_1": ROW["question_1"],
            "question_2": ROW["question_2"],
        }
        for i in range(n)
    ]


def test_import_of_the_public_format(tmp_path: Path) -> None:
    path = tmp_path / "public.json"
    path.write_text(json.dumps([{**entry, "note": 1} for entry in public(200)]))
    cases = import_neggenbench(path, license="MIT")
    assert cases.license == "MIT"
    assert (len(cases.split("dev")), len(cases.split("test"))) == (50, 150)
    assert cases.cases[7].prompt == "A desk lamp in office 7" and cases.cases[7].negative == "shade"
    assert check_rules(cases) == []
    # The division does not depend on the order of the list.
    path.write_text(json.dumps(public(200)[::-1]))
    again = import_neggenbench(path)
    assert {case.prompt for case in cases.split("dev")} == {case.prompt for case in again.split("dev")}
    save_cases(cases, tmp_path / "saved")
    assert load_cases(tmp_path / "saved") == cases
    assert import_neggenbench(path, dev=0).split("dev") == ()
    with pytest.raises(ValueError, match="dev must be a share between 0 and 1, got 2"):
        import_neggenbench(path, dev=2)


def test_import_lists_every_bad_entry(tmp_path: Path) -> None:
    entries: list[object] = list(public(5))
    entries[1] = "text"
    entries[3] = {"prompt": 5, "missing_element": "", "question_1": "Is it?"}
    path = tmp_path / "public.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(CasesError) as caught:
        import_neggenbench(path)
    assert [number for number, _ in caught.value.problems] == [2, 4]
    for part in ("missing field question_2", "prompt must be a string", "missing_element is empty"):
        assert part in caught.value.problems[1][1]
    for data in (b"{}", b"[]", b"[1,", b'["\xff"]', b"[" * 100_000):
        path.write_bytes(data)
        with pytest.raises(CasesError):
            import_neggenbench(path)
    with pytest.raises(FileNotFoundError, match="no NegGenBench file"):
        import_neggenbench(tmp_path / "nothing")


# --- The rules


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "A desk lamp with two shades in an office"}, "names the negative's 'shad'"),
        ({"prompt": "A shaded desk lamp in an office"}, "names the negative's"),
        ({"prompt": "A desk lamp under a sunshade"}, "names the negative's"),
        ({"prompt": "A desk lamp without anything around the bulb"}, "hints at an absence: 'without'"),
        ({"prompt": "A bare desk lamp in an office"}, "hints at an absence: 'bare'"),
        ({"prompt": "A desk lamp with no cover"}, "hints at an absence: 'no'"),
        ({"prompt": "A coverless desk lamp in an office"}, "hints at an absence: 'coverless'"),
        ({"prompt": "A cover-free desk lamp in an office"}, "hints at an absence: 'cover-free'"),
        ({"prompt": "A desk lamp next to another lamp"}, "names the object 'desk lamp' twice"),
        ({"prompt": "A fire in an office"}, "the prompt does not name the object"),
        ({"negative": "lamps"}, "names the object"),
        ({"question_1": "Is there a desk lamp in the picture?"}, "does not say 'with or without'"),
        ({"question_1": "Is there a bulb here, with or without a shade?"}, "question_1 does not mention the object"),
        ({"question_1": "Is a desk lamp there, with or without a plug?"}, "does not name the negative 'shade' after"),
        ({"question_2": "Is the shade of the desk lamp there?"}, "does not ask whether something is missing"),
        ({"question_2": "Is the plug missing from the desk lamp?"}, "question_2 does not name the negative"),
        ({"question_2": "The shade is missing from the lamp."}, "question_2 does not end with a question mark"),
        ({"prompt": "Desk lamp"}, "prompt has 2 words; 3 to 60 are allowed"),
        ({"prompt": "A desk lamp" + " far" * 60}, "prompt has 63 words"),
        ({"negative": "shade" + " far" * 12}, "negative has 13 words; 1 to 12"),
        ({"kept": "bulb, lampshade"}, "kept names the negative 'shade': 'lampshade'"),
        ({"kept": "stand, bulb, cord, switch"}, "kept names 4 parts; 1 to 3"),
        ({"kept": "stand, , bulb"}, "kept names '' of 0 words"),
        ({"kept": "a stand with a very heavy foot"}, "of 7 words; 1 to 4"),
        ({"kept": "stand, the stands"}, "kept names 'the stands' twice"),
        ({"kept": "stand, desk lamp"}, "kept names the object itself: 'desk lamp'"),
        ({"unrelated": "shades"}, "unrelated ('shades') shares a word with the negative"),
        ({"unrelated": "office"}, "shares a word with the prompt"),
        ({"unrelated": "stand", "kept": "stand, bulb"}, "shares a word with the kept parts"),
        ({"unrelated": "long yellow straws"}, "differ in length by more than a word"),
    ],
)
def test_rules_find_what_was_planted(changes: dict[str, str], message: str) -> None:
    assert check_rules([GOOD]) == []
    found = check_rules([dataclasses.replace(GOOD, **changes)])
    assert any(line.startswith("lamp-shade: ") and message in line for line in found), found


def test_rules_find_a_planted_violation_in_every_shipped_case() -> None:
    for name in SETS:
        cases = load_cases(name).cases
        planted = [dataclasses.replace(case, prompt=f"{case.prompt} with {case.negative}") for case in cases]
        flagged = {line.split(":")[0] for line in check_rules(planted) if "names the negative" in line}
        assert flagged == {case.id for case in cases}
        planted = [dataclasses.replace(case, prompt=f"{case.prompt} without it") for case in cases]
        assert len([line for line in check_rules(planted) if "hints at an absence" in line]) == len(cases)


def test_rules_find_the_main_object_without_the_field() -> None:
    unnamed = dataclasses.replace(GOOD, object=None)
    assert check_rules([unnamed]) == []
    asked = dataclasses.replace(unnamed, question_1="Is there a horse in the picture, with or without a shade?")
    assert check_rules([asked]) == ["lamp-shade: question_1 does not mention the prompt's main object"]


def test_rules_find_an_object_or_a_pair_twice() -> None:
    second = dataclasses.replace(GOOD, id="second", prompt="A tall desk lamp in an office")
    assert check_rules([GOOD, second]) == ["second: the same object as in lamp-shade (desk lamp)"]
    same = dataclasses.replace(GOOD, id="second", object=None)
    assert check_rules([GOOD, same]) == [
        "second: the same prompt with the same negative as in lamp-shade (a desk lamp in an office, shade)"
    ]
    demo = load_cases("demo").cases
    twice = dataclasses.replace(demo[0], id="twice")
    assert any("twice: the same combination" in line for line in check_rules([*demo, twice]))


@pytest.mark.parametrize("word", ["stainless", "timeless", "nothing-like-it", "another", "blessing"])
def test_rules_read_words_not_letters(word: str) -> None:
    found = check_rules([dataclasses.replace(GOOD, prompt=f"A {word} desk lamp in an office")])
    assert bool(found) == (word == "nothing-like-it")


def test_the_import_command_replaces_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "public.json", tmp_path / "mine.jsonl"
    entry = {"prompt": "a red bike", "missing_element": "wheels", "question_1": "a?", "question_2": "b?"}
    source.write_text(json.dumps([entry]))
    out.write_text("mine, and not to be had again")
    command = ["bench", "import", str(source), "--out", str(out)]
    assert main(command) == 2
    assert "is there already; give another --out" in capsys.readouterr().err
    assert out.read_text() == "mine, and not to be had again"
    out.unlink()
    assert main(command) == 0 and main(command) == 0  # the same again is the same
    assert main([*command, "--dev", "1"]) == 2
    assert len(load_cases(out).split("dev")) == 0
