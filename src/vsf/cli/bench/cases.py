"""`vsf bench cases`, `vsf bench import` and `vsf bench write-cases`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..common import Problem, opt, problems, progress_bar, say, warn, writable
from .plans import read_cases

if TYPE_CHECKING:
    from ...bench.cases import CaseSet
    from ...bench.compare import Prior


def cases(
    name: Annotated[
        str | None,
        typer.Argument(
            help="neggen, common, demo (also neggen-v1, demo-v1), or a file; without it, all that come with vsf."
        ),
    ] = None,
    *,
    check: Annotated[
        bool, typer.Option("--check", help="List what breaks the rules; exit code 1 if any does.")
    ] = False,
    every: Annotated[bool, typer.Option("--list", help="Show every case with its controls.")] = False,
    measure: Annotated[
        Path | None,
        opt("A judged run with a point without guidance: which negatives its model leaves out anyway.", metavar="RUN"),
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", "-j", help="With --measure: whose answers, where several judged.")
    ] = None,
) -> None:
    """Count, list and check the cases of a set; or measure them on what a model draws without guidance.

    vsf bench generate out/plain --cases neggen --model sd3.5-large-turbo -p none

    vsf bench judge out/plain --judge local --model MODEL

    vsf bench cases --measure out/plain
    """
    if judge is not None and measure is None:
        raise Problem("--judge is of --measure RUN")
    if measure is not None:
        if name is not None or check:
            raise Problem("--measure RUN reads the cases of the run; leave out NAME and --check")
        _measure(measure, judge, every)
        return
    from ...bench.cases import LATEST, SPLITS
    from ...bench.rules import check_rules

    sets = [read_cases(one) for one in ((name,) if name is not None else LATEST)]
    broken = 0
    for number, one in enumerate(sets):
        if number:
            say("")
        say(f"{one.name}: {len(one)} cases, license {one.license}")
        say(f"hash {one.hash}")
        groups = [len({one.groups[case.id] for case in one.split(split)}) for split in SPLITS]
        say(f"statistics count by {one.unit}: {groups[0]} in dev, {groups[1]} in test")
        _counts(one)
        if every:
            _every(one)
        if check:
            lines = check_rules(one)
            broken += len(lines)
            for line in lines:
                say(f"  {line}")
            say(f"rules: {len(lines)} broken" if lines else "rules: all kept")
    if broken:
        raise typer.Exit(1)


def _counts(cases: CaseSet) -> None:
    from rich.console import Console
    from rich.table import Table

    from ...bench.cases import SPLITS
    from ...bench.controls import kept

    table = Table(box=None, pad_edge=False)
    table.add_column("category")
    for title in (*SPLITS, "all", "with kept parts"):
        table.add_column(title, justify="right")
    counts = Counter((case.category, case.split) for case in cases)
    keep = Counter(case.category for case in cases if kept(case))
    names = list(dict.fromkeys(case.category for case in cases))
    for category in names:
        row = [counts[category, split] for split in SPLITS]
        table.add_row(category, *map(str, row), str(sum(row)), str(keep[category]))
    if len(names) > 1:
        row = [len(cases.split(split)) for split in SPLITS]
        table.add_row("all", *map(str, row), str(sum(row)), str(sum(keep.values())))
    Console(width=None if Console().is_terminal else 100, highlight=False).print(table)


def _measure(folder: Path, judge: str | None, every: bool) -> None:
    """What a model draws without guidance: which expected parts are there, and which negatives are absent anyway."""
    from rich.console import Console
    from rich.table import Table

    from ...bench.compare import priors
    from ...bench.run import Run
    from ...bench.tables import Results, cell

    with problems(folder):
        run = Run.open(folder)
        results = Results.load([run], judge)
        found = priors(results)
    none = next(name for name, point in results.points.items() if point.method == "none")
    say(
        f"{run.cases.name} on {run.plan.model}, without guidance, judged by {results.judge}: {len(found)} of "
        f"{len(run.plan.cases)} cases, {sum(p.judged for p in found)} pictures"
    )
    say(f"object there: {cell(results.interval(none, 'positive'))}; negative absent anyway: "
        f"{cell(results.interval(none, 'negative'))} (95 %; the last number is how many {results.unit})")  # fmt: skip
    table = Table(box=None, pad_edge=False)
    table.add_column("category")
    for title in ("cases", "object there", "negative absent anyway"):
        table.add_column(title, justify="right")
    rows: dict[str, list[Prior]] = {}
    for prior in found:
        case = results.cases[prior.case]
        rows.setdefault(case.category, []).append(prior)
        if case.style is not None:
            rows.setdefault(f"style: {case.style}", []).append(prior)
    for title, mine in sorted(rows.items(), key=lambda row: row[0].startswith("style: ")):
        count = len(mine)
        there, absent = sum(p.there for p in mine) / count, sum(p.absent for p in mine) / count
        table.add_row(title, str(count), f"{there:.2f}", f"{absent:.2f}")
    Console(width=None if Console().is_terminal else 100, highlight=False).print(table)
    shown = found if every else [p for p in found if p.absent >= 0.5]
    if not every:
        say(f"absent anyway in half of the pictures or more: {len(shown) or 'none'}")
    for prior in sorted(shown, key=lambda p: -p.absent):
        case = results.cases[prior.case]
        say(f"{prior.case} [{case.split}] {prior.absent:.2f} of {prior.judged} (object there {prior.there:.2f}): "
            f"{case.prompt} - {case.negative}")  # fmt: skip


def _every(cases: CaseSet) -> None:
    from ...bench.controls import kept, unrelated

    for case in cases:
        try:
            control = unrelated(case, cases)
        except ValueError:
            control = "-"
        say(f"{case.id} [{case.split}] {case.prompt}")
        say(f"  negative: {case.negative}; unrelated: {control}; kept: {', '.join(kept(case)) or '-'}")


def import_(
    file: Annotated[
        Path, typer.Argument(help="JSON list of prompt, missing_element, question_1, question_2.", show_default=False)
    ],
    *,
    out: Annotated[Path, opt("The file of cases (.jsonl).")],
    name: Annotated[str, typer.Option(help="Name of the set.")] = "neggenbench",
    license: Annotated[str, typer.Option(help="License of the file; nothing in it says it.")] = "unknown",
    dev: Annotated[float, typer.Option(help="Share of the cases that become dev.")] = 0.25,
) -> None:
    """Read the public NegGenBench file into a file of cases."""
    from ...bench.cases import load_cases, save_cases
    from ...bench.rules import check_rules
    from ...bench.taken import import_neggenbench

    writable(out, ".jsonl")
    try:
        cases = import_neggenbench(file, name=name, license=license, dev=dev)
    except (OSError, ValueError) as error:
        raise Problem(str(error)) from error
    try:
        same = out.exists() and load_cases(str(out)) == cases
    except (OSError, ValueError):
        same = False
    if out.exists() and not same:
        raise Problem(f"{out} is there already; give another --out")
    save_cases(cases, out)
    say(f"{out}: {len(cases.split('dev'))} dev, {len(cases.split('test'))} test; hash {cases.hash}")
    if broken := len(check_rules(cases)):
        warn(f"{broken} lines of {out} break our rules: vsf bench cases {out} --check")


def write_cases(
    topic: Annotated[str, opt('What the objects are about: "kitchen tools".')],
    model: Annotated[str, opt("The model's name at the endpoint.")],
    out: Annotated[Path, opt("The file of cases (.jsonl).")],
    *,
    n: Annotated[int, typer.Option("--n", help="How many cases.", min=1)] = 50,
    base_url: Annotated[str | None, opt("The endpoint (default: OPENAI_BASE_URL, or OpenAI's).")] = None,
    name: Annotated[str | None, opt("Name of the set (default: the file's).")] = None,
    license: Annotated[str, typer.Option(help="License of the set.")] = "unknown",
    dev: Annotated[float, typer.Option(help="Share of the cases that become dev.")] = 0.25,
    per_request: Annotated[int, typer.Option(help="Cases asked for at a time.", min=1)] = 10,
    requests: Annotated[int | None, opt("HTTP requests at most (default: three times what it takes).", min=1)] = None,
    embedding_model: Annotated[
        str | None, opt("Compare objects by embeddings of this model (default: as strings).")
    ] = None,
    similar: Annotated[float, typer.Option(help="Similarity from which two objects are the same, 0 to 1.")] = 0.85,
    avoid: Annotated[list[str] | None, opt("A set or file of cases whose objects are taken; several times.")] = None,
) -> None:
    """Have a language model write new cases; the key is read from OPENAI_API_KEY.

    Replies are kept beside the file: the same command goes on where it stopped, with nothing paid twice.
    """
    from ...bench import write
    from ...bench.endpoint import EndpointError

    writable(out, ".jsonl")
    taken = [case for one in avoid or () for case in read_cases(one)]
    try:
        with progress_bar("writing cases", n) as update:
            done = write.write_cases(
                topic, n, out, model=model, base_url=base_url, name=name, license=license, dev=dev,
                per_request=per_request, requests=requests, embedding_model=embedding_model, similar=similar,
                avoid=taken, say=say, progress=update,
            )  # fmt: skip
    except EndpointError as error:
        kept = write.replies_path(out)
        more = f"; what came is in {kept}, the same command goes on from there" if kept.is_file() else ""
        raise Problem(f"{error}{more}") from error
    except (write.WriteError, OSError, ValueError) as error:
        raise Problem(str(error)) from error
    tokens = f", {done.tokens} tokens in all" if done.tokens else ""
    say(f"{done.requests} requests now{tokens}; {len(done.dropped)} dropped; replies in {write.replies_path(out)}")
    if done.cases is not None:
        say(f"{out}: {len(done.cases)} cases, hash {done.cases.hash}")
        say(f"read them before use; the rules see words, not pictures: vsf bench cases {out} --list")
    if not done.complete:
        count = 0 if done.cases is None else len(done.cases)
        warn(f"{count} of {n} cases; the same command asks for more")
        raise typer.Exit(1)


def register(bench: typer.Typer) -> None:
    """Add the commands of this file."""
    bench.command()(cases)
    bench.command("import")(import_)
    bench.command("write-cases")(write_cases)
