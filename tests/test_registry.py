"""Tables of what plugs in: imported when used, one way to make a thing, and one sentence for what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import ClassVar

import pytest

from vsf.bench.judges import JUDGES
from vsf.bench.run import Answer
from vsf.registry import Option, Table, check, option, options


@dataclass
class Lamp:
    """Something to choose about."""

    watts: int = option("power", low=1, high=100)
    _: KW_ONLY
    shade: str | Path | None = option("which shade", None)
    dim: float = option("share of its light", 1.0, low=0, high=1)
    on: bool = option("whether it burns", False)
    switch: object = None
    count: ClassVar = 0

    def __post_init__(self) -> None:
        check(self)


TABLE: Table[type] = Table("lamp", {"lamp": Lamp, "gone": "vsf.nothing:Nothing", "path": "pathlib:Path"})


def test_options_are_the_fields_that_say_so() -> None:
    found = options(Lamp)
    assert list(found) == ["watts", "shade", "dim", "on"]
    assert found["watts"].required and not found["dim"].required
    assert found["shade"] == Option("shade", str, True, None, "which shade")
    assert [o.kind for o in found.values()] == [int, str, float, bool]


def test_a_row_is_imported_when_it_is_asked_for() -> None:
    assert TABLE["path"] is Path and list(TABLE) == ["lamp", "gone", "path"] and len(TABLE) == 3
    assert "gone" in TABLE  # without looking
    with pytest.raises(ModuleNotFoundError):
        TABLE["gone"]
    code = "import sys; from vsf.bench.judges import JUDGES; print([m for m in sys.modules if m.startswith('vsf.bench.judges.')])"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "['vsf.bench.judges.base']"


def test_a_thing_is_made_of_its_name_and_its_options() -> None:
    made = TABLE.make("lamp", {"watts": 5, "shade": Path("x")}, dim=0.5, download=True)
    assert made == Lamp(5, shade=Path("x"), dim=0.5)
    assert TABLE.make("lamp", {"watts": 5, "dim": 1.0}, dim=0.5).dim == 1.0  # what is given comes first


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("lmap", {}, "unknown lamp 'lmap'; allowed: lamp, gone, path; did you mean lamp?"),
        ("lamp", {}, "the lamp lamp needs watts"),
        (
            "lamp",
            {"watts": 5, "shadow": "x"},
            "shadow is no option of the lamp lamp, which has .*; did you mean shade?",
        ),
        ("lamp", {"watts": 5, "switch": "x"}, "switch is no option"),
        ("lamp", {"watts": 0}, "Lamp.watts is 0; allowed: a whole number from 1 to 100"),
        ("lamp", {"watts": 5.0}, "Lamp.watts is 5.0; allowed: a whole number"),
        ("lamp", {"watts": True}, "Lamp.watts is True"),
        ("lamp", {"watts": None}, "Lamp.watts is None"),
        ("lamp", {"watts": 5, "dim": float("nan")}, "Lamp.dim is nan; allowed: a number from 0 to 1"),
        ("lamp", {"watts": 5, "on": "yes"}, "Lamp.on is 'yes'; allowed: true or false"),
        ("lamp", {"watts": 5, "shade": 3}, "Lamp.shade is 3; allowed: text"),
    ],
)
def test_what_is_wrong_is_one_sentence(name: str, given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TABLE.make(name, given)


def test_an_option_is_named_as_it_was_written() -> None:
    with pytest.raises(ValueError, match="--shad is no option of the lamp lamp, which has --watts, --shade"):
        TABLE.check("lamp", {"shad": 1}, lambda name: f"--{name}")


@pytest.mark.parametrize("name", JUDGES)
def test_every_judge_says_what_it_gives_and_what_can_be_chosen(name: str) -> None:
    kind = JUDGES[name]
    assert kind.gives and set(kind.gives) <= {field.name for field in fields(Answer)}
    assert all(o.help and o.kind in (bool, int, float, str) for o in options(kind).values())


def test_the_docs_have_every_option() -> None:
    rows = ["| option | of | | default |", "|---|---|---|---|"]
    for kind in JUDGES:
        for o in options(JUDGES[kind]).values():
            default = "needed" if o.required else "" if o.default in (None, False) else o.default
            rows.append(f"| `--{o.name.replace('_', '-')}` | {kind} | {o.help} | {default} |")
    text = (Path(__file__).parents[1] / "docs/bench/judges.md").read_text("utf-8")
    assert "\n".join(rows) in text, "put this into docs/bench/judges.md:\n" + "\n".join(rows)
