"""The page: self-contained, escaped, complete, and chosen by the rules it states."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from bench_runs import cases, make_run, point, says

from vsf.bench.cases import CaseSet
from vsf.bench.page import html, markdown, write_report
from vsf.bench.plots import Dot, forest, styles, tradeoff_plot
from vsf.bench.report import Report, build
from vsf.bench.run import Point, Run, RunError, Unit
from vsf.cli import main
from vsf.stats import Interval

POINTS = (point("none"), point("vsf"), Point("vsf+2", point("vsf", scale=9.0).settings), point("nag"),
          Point("ablation-no-offset", point("vsf", offset=0.0).settings))  # fmt: skip


def index(unit: Unit) -> int:
    return int(unit.case.removeprefix("case-"))


def answer(unit: Unit) -> dict[str, Any]:
    """VSF leads on cases 0 to 2 and trails on 3; nobody solves 5."""
    solved = {"none": (), "vsf": (0, 1, 2), "vsf+2": (0, 1, 2, 4), "nag": (3, 4), "ablation-no-offset": (0,)}
    gone = unit.kind == "true" and index(unit) in solved[unit.point]
    return says(True, gone, 0.8, kept=1.0, identity=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("made") / "run", POINTS, {"made": answer})


@pytest.fixture(scope="module")
def report(run: Run) -> Report:
    return build([run], extremes=2, cases=3)


class Page(HTMLParser):
    """Collects what the page loads, checks that elements close."""

    VOID = {"meta", "img", "br", "path", "link", "use"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.loads += [v for k, v in attrs if v and k in ("src", "data", "srcset", "poster", "xlink:href")]
        if given.get("id"):
            self.ids.append(given["id"] or "")
        if tag == "link" or (tag == "a" and not (given.get("href") or "").startswith("#")):
            self.loads.append(f"{tag} {given}")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def parse(text: str) -> Page:
    page = Page()
    page.feed(text)
    assert not page.open
    return page


def test_the_page_loads_nothing_and_is_well_formed(report: Report):
    page = parse(html(report))
    assert page.loads and all(v.startswith(("data:image/webp;base64,", "#")) for v in page.loads)
    assert "script" not in page.tags and "table" in page.tags and "svg" in page.tags
    assert len(page.ids) == len(set(page.ids))  # several plots on one page
    assert re.search(r"@import|url\((?!#)", html(report)) is None


def test_text_of_users_is_escaped_everywhere(tmp_path: Path):
    evil = '<img src=x onerror="alert(1)">&amp;$x$'
    made = cases(3)
    bad = CaseSet(made.name, made.license, tuple(
        replace(c, prompt=f"{evil} {c.id}", negative=evil, category=evil, question_1=evil) for c in made))  # fmt: skip
    folder = tmp_path / "<b>run"

    def refused(unit: Unit) -> dict[str, Any]:
        return {"status": "not judged", "reason": evil} if unit.case == "case-2" else says()

    one = make_run(tmp_path / "one", POINTS[:2], {"made": refused}, case_set=bad)
    two = make_run(folder, (point("vsf", scale=7.0),), {"made": refused}, case_set=bad)
    text = html(build([one, two], title=evil))
    assert "<img src=x" not in text and "<b>run" not in text and "&lt;img src=x" in text
    parse(text)


def test_every_part_is_there(report: Report):
    assert [line.name for line in report.lines] == ["none", "vsf", "nag"]
    assert [line.name for line in report.extras] == ["vsf+2"] and report.reference == "vsf"
    assert [line.name for line in report.ablations] == ["ablation-no-offset"]
    assert {c.point for c in report.comparisons} == {"none", "nag"}
    assert {c.point for c in report.ablation_comparisons} == {"ablation-no-offset"}
    assert [(g, n) for g, n, _ in report.areas] == [("none", 1), ("vsf", 2), ("nag", 1)]
    text = html(report)
    for part in ("scores", "tradeoff", "differences", "pictures", "extremes", "ablations", "cost", "judges",
                 "provenance", "reading"):  # fmt: skip
        assert f'id="{part}"' in text and f'href="#{part}"' in text
    assert "ab" * 32 in text and "c" * 40 in text and "×2.00" in text  # weights, commit, twice as slow as none
    assert "prefers-color-scheme: dark" in text and "@media print" in text and "width=device-width" in text


def test_best_and_worst_cases_follow_the_stated_rule(report: Report):
    found = {title: [s.case.id for s in strips] for title, _, strips in report.extremes}
    assert found == {
        "Where vsf is furthest ahead": ["case-0", "case-1"],
        "Where vsf is furthest behind": ["case-3", "case-4"],
        "The hardest cases": ["case-5", "case-0"],
    }


def test_a_contact_sheet_shows_cases_at_even_distances_from_the_first_seed(report: Report):
    sheet = report.sheet
    assert [s.case.id for s in sheet] == ["case-0", "case-2", "case-5"] and {s.seed for s in sheet} == {0}
    assert [p.good for p in sheet[0].rows[0][2]] == [False, True, False]
    assert "part missing yes" in sheet[0].rows[0][2][1].alt


def test_the_same_run_gives_the_same_figures(run: Run, report: Report):
    first, second = build([run], extremes=2, cases=3), report
    assert first.comparisons == second.comparisons and first.areas == second.areas and first.plots == second.plots


def test_a_judge_of_quality_alone_gives_a_page(tmp_path: Path):
    run = make_run(tmp_path / "run", POINTS[:2], {"made": lambda unit: {"quality": 0.5}})
    report = build([run])
    assert report.metrics == ["quality"] and not report.plots and not report.extremes
    parse(html(report))


def test_an_unfinished_run_gives_a_page_that_says_so(tmp_path: Path):
    run = make_run(tmp_path / "run", POINTS[:2], {"made": lambda unit: says() if unit.case == "case-0" else None})
    for unit in list(run.plan.units)[-3:]:
        run.records.path(unit.id).unlink()
        run.image(unit).unlink()
    text = html(build([run]))
    assert "not asked yet" in text and "not drawn yet" in text
    parse(text)


def test_what_cannot_be_compared_is_said(tmp_path: Path):
    one = make_run(tmp_path / "one", POINTS[:1], {"made": answer}, seeds=(0,))
    two = make_run(tmp_path / "two", POINTS[1:], {"made": answer})
    note = "Not all points of the first table were planned for the same cases and noises."
    assert not any(n.startswith(note) for n in build([two]).notes)
    assert any(n.startswith(note) for n in build([one, two]).notes)
    silent = make_run(tmp_path / "silent", POINTS[:2], {"made": lambda unit: {"status": "not judged", "reason": "no"}})
    made = build([silent], title="<b>a_b</b>")
    assert made.notes == ["made could judge no picture, so there are no figures."]
    few = build([two])
    assert "cannot find anything: no p-value can be below 2 / 2^3" in few.notes[0] and few.notes[0] in html(few)
    assert markdown(made).startswith("# \\<b\\>a\\_b\\</b\\>\n") and "no figures" in html(made)


def test_a_picture_that_cannot_be_read_leaves_its_place_empty(tmp_path: Path):
    run = make_run(tmp_path / "run", POINTS[:2], {"made": answer}, n=2, controls=False)
    run.image(Unit("vsf", "case-0", 0)).write_bytes(b"no picture")
    assert "not there" in html(build([run]))


def test_two_judges_stand_side_by_side_with_their_agreement(tmp_path: Path):
    def other(unit: Unit) -> dict[str, Any]:
        return {**answer(unit), "answer_2": index(unit) < 3}

    run = make_run(tmp_path / "run", POINTS, {"made": answer, "other": other})
    report = build([run], judge="made")
    assert {(a.first, a.second) for a in report.agreements} == {("made", "other")}
    assert "Cohen's kappa" in html(report).replace("&#39;", "'") and "| made, other | answer\\_2" in markdown(
        report
    ).replace("answer_2", "answer\\_2")


def test_the_markdown_has_the_published_scores_and_the_tests(report: Report):
    text = markdown(report)
    assert "| method | positive | negative | quality | unrelated | specificity | retention |" in text
    assert (
        "| vsf | 1.000 (.292 to 1.000; 3) | .500 (" in text
        and "which are categories" in text
        and "Ablations" in text
        and "Holm" in text
    )


def test_grey_prints_can_tell_methods_apart():
    looks = styles([f"m{i}" for i in range(10)] + ["none"])
    assert len({s.marker for s in looks.values()}) == 11


def test_plots_take_their_ink_from_the_page():
    def exact(v: float) -> Interval:
        return Interval(v, v - 0.1, v + 0.1, 10, 5)

    dots = [Dot(1, "a", "a", exact(0.2), exact(0.9)), Dot(2, "b", "b", exact(0.8), exact(0.4))]
    svg = tradeoff_plot(dots, "x < 1", "y", styles(["a", "b"]), "p")
    assert "currentColor" in svg and "var(--line)" in svg and "#010203" not in svg and "x &lt; 1" in svg
    assert svg.startswith("<svg viewBox=") and 'role="img"' in svg and ">1</text>" in svg
    other = forest([(1, "a", "a", exact(0.1), True)], "joint", styles(["a"]), "q")
    assert 'id="q-' in other and 'id="figure' not in other


def test_the_command_writes_both_files_and_says_no_in_one_line(run: Run, tmp_path: Path, capsys: Any):
    out = tmp_path / "page.html"
    assert main(["bench", "report", str(run.folder), "--out", str(out)]) == 0
    assert out.is_file() and out.with_suffix(".md").is_file() and str(out) in capsys.readouterr().out
    for arguments, words in (
        ([str(tmp_path)], "holds no run"),
        ([str(run.folder), "--judge", "nobody"], "'nobody' has not judged"),
        ([str(run.folder), "--reference", "x"], "no point 'x'"),
        ([str(run.folder), "--out", str(tmp_path / "page.pdf")], "must end with .html"),
        ([str(run.folder), "--sweep", str(tmp_path)], "holds no sweep"),
    ):
        assert main(["bench", "report", *arguments]) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1


def test_figures_that_are_tested_can_be_chosen_and_are_the_family(run: Run):
    report = build([run], tested=("balanced",))
    assert {c.metric for c in report.comparisons} == {"balanced"} and len(report.comparisons) == 2
    with pytest.raises(RunError, match="no figure 'joy'; there: positive"):
        build([run], tested=("joy",))


def test_the_reference_may_be_any_point(run: Run):
    report = build([run], reference="ablation-no-offset")
    assert report.lines[-1].name == "ablation-no-offset" and not report.ablations
    plain = build([run], reference="none")  # a KeyError once
    assert {c.reference for c in plain.comparisons} == {"none"} and {c.point for c in plain.comparisons} == {
        "vsf",
        "nag",
    }
    assert [title for title, *_ in plain.extremes] == ["The hardest cases"]
    with pytest.raises(RunError, match="no point"):
        build([run], reference="nothing")


def test_write_report_is_whole_or_not_at_all(report: Report, tmp_path: Path):
    page, table = write_report(report, tmp_path / "a.html")
    assert page.read_text("utf-8").endswith("</html>") or page.read_text("utf-8").rstrip().endswith("</html>")
    with pytest.raises(OSError):
        write_report(report, tmp_path / "nowhere" / "a.html")
    assert table.read_text("utf-8").startswith("# Negative prompts")
