"""`vsf judge eval`: how well judges answer the questions of labels."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...bench.judges import JUDGES
from ...libraries import quiet_libraries
from ..bench.judge import judge_flags
from ..common import Problem, choose, opt, problems, progress_bar, say, spelled, with_flags, writable
from .labels import names

if TYPE_CHECKING:
    from ...judging import Label, Labels
    from ...judging.agreement import Key
    from ...judging.evaluate import Measured
    from ...stats import Interval

_MOST = 20  # categories that are shown
_MISTAKES = 24  # on a sheet


def evaluate(
    *,
    folder: Annotated[Path, typer.Argument(help="A folder of labels.", metavar="LABELS", show_default=False)],
    kind: Annotated[str | None, opt(f"Who is asked: one of {', '.join(JUDGES)}.", "--judge", "-j")] = None,
    annotator: Annotated[
        list[str] | None,
        opt("Annotators of the labels who are measured, too; may be given several times.", "--annotator", "-a"),
    ] = None,
    true: Annotated[
        str | None,
        opt(
            "Whose answers are true; else what was adjudicated, or all agree on but those who are measured.", "--truth"
        ),
    ] = None,
    keep: Annotated[
        str | None,
        opt(
            "Keep the judge's answers in LABELS, under this name; those that are there are not asked for again.",
            metavar="NAME",
        ),
    ] = None,
    objects: Annotated[str | None, opt("Only questions about these, separated by commas.", metavar="LIST")] = None,
    asks: Annotated[
        str | None, opt("Only questions of these kinds: object, missing, kept, other.", metavar="LIST")
    ] = None,
    out: Annotated[Path | None, opt("Write all figures to this .json file, too.")] = None,
    sheet: Annotated[Path | None, opt("Draw the judge's worst mistakes into this .png or .webp file.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before spending.")] = False,
    **given: Any,
) -> None:
    """Accuracy, balanced accuracy, AUROC and calibration of a judge, or of annotators, with 95 % intervals by group.

    vsf judge eval labels/ --judge local --model MODEL

    vsf judge eval labels/ --annotator human-ann --truth world
    """
    from ...files import json_bytes, write_whole
    from ...judging import Labels
    from ...judging import evaluate as measure

    given = {option: value for option, value in given.items() if value is not None}
    if kind is None and not annotator:
        raise Problem(f"name who is measured: --judge {', '.join(JUDGES)} or --annotator NAME")
    if kind is None and (given or keep or sheet):
        raise Problem(f"{spelled(next(iter(given), 'keep' if keep else 'sheet'))} is for --judge")
    if out is not None:
        writable(out, ".json")
    if sheet is not None:
        writable(sheet, ".png", ".webp")
    if keep is not None and not keep.strip():
        raise Problem("--keep needs a name")
    if (asked := keep or kind) in (annotator or []):
        raise Problem(f"{asked} is asked and an annotator, too: leave out --annotator {asked}, or --keep another name")
    with problems(folder):
        labels = Labels.open(folder)
        known = measure.truth(labels, true, [*(annotator or []), *([keep] if keep else [])])
        known = _only(known, "group", None if objects is None else names(objects), "--objects")
        known = _only(known, "asks", None if asks is None else names(asks), "--asks")
        answers = {name: measure.answered(labels, name) for name in annotator or []}
        if kind is not None:
            there = measure.answered(labels, keep) if keep in labels.annotators else {}
            judge = _judge(kind, given, len(known.keys() - there.keys()), yes)
            with progress_bar("asking", len(known)) as progress:
                if keep is None:
                    answers[kind] = measure.ask(judge, labels, known, progress)
                else:
                    answers[keep] = measure.ask_and_keep(judge, keep, folder, known, progress)
            if sheet is not None:
                _worst(labels, known, answers[keep or kind], sheet)
        found = {
            name: (measure.evaluate(known, said), measure.kappas(labels, said, [name, *([true] if true else [])]))
            for name, said in answers.items()
        }
        if out is not None:
            plain = {
                name: {"rows": [asdict(row) for row in rows], "kappa": {who: asdict(k) for who, k in agree.items()}}
                for name, (rows, agree) in found.items()
            }
            write_whole(out, json_bytes(plain, 1))
    for name, (rows, agree) in found.items():
        _show(name, rows, agree)


def _only(known: dict[Key, Label], field: str, wanted: tuple[str, ...] | None, option: str) -> dict[Key, Label]:
    if wanted is None:
        return known
    there = sorted({getattr(label, field) for label in known.values()})
    for name in wanted:
        if name not in there:
            raise Problem(
                f"{option} {name}: no question with a known answer is about that; there are: {', '.join(there)}"
            )
    return {key: label for key, label in known.items() if getattr(label, field) in wanted}


def _judge(kind: str, given: dict[str, Any], questions: int, yes: bool) -> Any:
    choose("judge", kind, list(JUDGES))
    if not hasattr(JUDGES[kind], "answer"):
        able = [name for name in JUDGES if hasattr(JUDGES[name], "answer")]
        raise Problem(f"the judge {kind} answers no questions of labels; those that do: {', '.join(able)}")
    if "model" in given:
        quiet_libraries()
    JUDGES.check(kind, given, spelled)
    made = JUDGES.make(kind, given)
    if hasattr(made, "estimate") and questions and not yes:
        if not sys.stdin.isatty():
            raise Problem(f"{questions} questions may cost money; nobody to ask whether to spend it; give --yes")
        if not typer.confirm(f"{questions} questions to {made.about()['base_url']}; go on?"):
            raise typer.Abort()
    return made


def _worst(labels: Labels, true: dict[Key, Label], answers: dict[Key, float | None], path: Path) -> None:
    from ...files import whole
    from ...judging.mistakes import worst, worst_sheet

    mistakes = worst(true, answers, _MISTAKES)
    if not mistakes:
        say("no mistake to show")
        return
    drawn = worst_sheet(labels, mistakes)
    with whole(path) as part:
        drawn.save(part, path.suffix[1:], quality=80)


def _show(name: str, rows: list[Measured], agree: dict[str, Interval]) -> None:
    from rich.console import Console
    from rich.table import Table

    say(f"{name}: {rows[0].questions} questions answered, {rows[0].open} open; 95 % intervals count groups")
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for title in ("questions", "groups", "accuracy", "balanced", "AUROC", "calibration error"):
        table.add_column(title, justify="right", no_wrap=True)
    worst = [row for row in rows if row.by == "category"]
    if len(worst) > _MOST:
        worst = sorted(worst, key=lambda row: row.accuracy.mean if row.accuracy else 1.0)[:_MOST]
    by = ""
    for row in rows:
        if row.by == "category" and row not in worst:
            continue
        if row.by != by and row.by != "all":
            table.add_row(f"by {row.by}" if row.by != "asks" else "by question")
        by = row.by
        groups = "-" if row.accuracy is None else str(row.accuracy.clusters)
        figures = [_text(value) for value in (row.accuracy, row.balanced, row.auroc, row.ece)]
        table.add_row(("" if by == "all" else "  ") + row.name, str(row.questions), groups, *figures)
    Console(width=None if Console().is_terminal else 140, highlight=False).print(table)
    if (left := sum(row.by == "category" for row in rows) - len(worst)) > 0:
        say(f"{left} more categories, all of them answered no worse; --out has them")
    for other, kappa in agree.items():
        say(f"kappa with {other}: {_text(kappa)}")


def _text(value: Interval | None) -> str:
    return "-" if value is None else f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"


def register(judge: typer.Typer) -> None:
    """Add the command of this file."""
    judge.command("eval")(with_flags(evaluate, *judge_flags()))
