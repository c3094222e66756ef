"""What runs on a laptop runs in the workflows, what the workflows call exists, and the site finds broken links."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from vsf.files import read_toml

yaml = pytest.importorskip("yaml", reason="needs value-sign-flip[dev]")

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
WORKFLOWS = {p.stem: yaml.safe_load(p.read_text("utf-8")) for p in (ROOT / ".github" / "workflows").glob("*.yml")}
PROJECT = read_toml((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def _needs(target: str) -> set[str]:
    """What a target of the Makefile depends on; an error if there is no such target."""
    found = re.search(rf"^{target}:(.*)$", MAKEFILE, re.M)
    assert found, f"no target {target}"
    return {word for word in found[1].split() if "$" not in word}


def _runs(workflow: dict[str, Any]) -> list[str]:
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


def test_a_commit_meets_the_same_checks_on_a_laptop_and_in_the_workflow() -> None:
    hooks = [
        h
        for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
        for h in repo["hooks"]
    ]
    assert all(hook["language"] == "system" for hook in hooks)  # nothing is fetched
    assert {hook["entry"] for hook in hooks} == {f"make {target}" for target in _needs("check")}
    assert {"check", "docs"} <= _needs("test") and "make check docs" in _runs(WORKFLOWS["tests"])


def test_workflows_call_what_there_is() -> None:
    assert set(WORKFLOWS) == {"tests", "release"}
    for workflow in WORKFLOWS.values():
        for run in _runs(workflow):
            for targets in re.findall(r"^make (.+)$", run, re.M):
                assert [_needs(target) for target in targets.split()]
            for extra in re.findall(r'-e "\.\[(\w+)\]"', run):
                assert extra in PROJECT["optional-dependencies"]
        assert workflow["permissions"] == {"contents": "read"}


def test_every_supported_python_and_both_ends_of_diffusers_are_tested() -> None:
    matrix = WORKFLOWS["tests"]["jobs"]["tests"]["strategy"]["matrix"]
    assert {os.split("-")[0] for os in matrix["os"]} == {"ubuntu", "macos", "windows"}
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert matrix["python"] == [lowest, "3.11", "3.12", "3.13"]
    bounds = {d.split(">=")[0]: d.split(">=")[1].split(",")[0] for d in PROJECT["dependencies"] if ">=" in d}
    oldest, newest = (row["packages"] for row in matrix["include"])
    for name in ("diffusers", "transformers"):
        assert re.search(rf"\b{name}=={re.escape(bounds[name])}\.\*", oldest) and re.search(
            rf"--upgrade.* {name}\b", newest
        )


def test_the_lock_holds_what_is_asked_for_and_says_how_it_was_made() -> None:
    lock = (ROOT / "constraints.txt").read_text("utf-8")
    assert "make lock" in lock.splitlines()[1] and _needs("lock") == set()
    assert not re.search(r"https?:|--(extra-)?index|--find-links|@|^(nvidia|cuda)", lock, re.M)
    assert re.search(r"^torch==[\d.]+$", lock, re.M)
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r"^([\w.-]+)==", lock, re.M)}
    asked = [*PROJECT["dependencies"], *(d for extra in PROJECT["optional-dependencies"].values() for d in extra)]
    names = {re.split(r"[\[<>=; ]", d)[0].lower() for d in asked if "python_version <" not in d} - {PROJECT["name"]}
    assert names <= pinned


def test_links_that_leave_the_docs_are_turned_or_found_broken() -> None:
    pytest.importorskip("mkdocs", reason="needs value-sign-flip[dev]")
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "_site.py")
    assert spec is not None and spec.loader is not None
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)

    text = "[a](docs/ui.md#the-page) ![b](docs/images/demo.jpg) [c](CONTRIBUTING.md) [d](src/vsf/guide.py) [e](nowhere.md)"
    turned, broken = site.relinked(text, "index.md", "README.md")
    assert turned == "[a](ui.md#the-page) ![b](images/demo.jpg) [c](contributing.md) d [e](nowhere.md)"
    assert broken == ["nowhere.md"]
    text = "[a](../../README.md) [b](../ui.md) [c](#here) [d](https://x.org/y)\n```\n[e](nowhere.md)\n```\n"
    turned, broken = site.relinked(text, "bench/index.md", "docs/bench/index.md")
    assert turned == text.replace("../../README.md", "../index.md") and not broken
