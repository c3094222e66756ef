"""`vsf bench cases`, `vsf bench import` and `vsf bench write-cases`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..common import Problem, progress_bar, say, warn, writable

if TYPE_CHECKING:
    from ...bench.cases import CaseSet


def _read(name: str) -> CaseSet:
    from ...bench.cases import load_cases

    try:
        return load_cases(name)
    except (OSError, ValueError) as error:
        raise Problem(str(error)) from error


def cases(
    name: Annotated[
        str | None, typer.Argument(help="neggen, common, demo, or a file; without it, all that come with vsf.")
    ] = None,
    *,
    check: Annotated[
        bool, typer.Option("--check", help="List what breaks the rules; exit code 1 if any does.")
    ] = False,
    every: Annotated[bool, typer.Option("--list", help="Show every case with its controls.")] = False,
) -> None:
    """Count, list and check the cases of a set."""
    from ...bench.cases import SETS, check_rules

    sets = [_read(one) for one in ((name,) if name is not None else SETS)]
    broken = 0
    for number, one in enumerate(sets):
        if number:
            say("")
        say(f"{one.name}: {len(one)} cases, license {one.license}")
        say(f"hash {one.hash}")
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
    out: Annotated[Path, typer.Option(help="The file of cases (.jsonl).", show_default=False)],
    name: Annotated[str, typer.Option(help="Name of the set.")] = "neggenbench",
    license: Annotated[str, typer.Option(help="License of the file; nothing in it says it.")] = "unknown",
    dev: Annotated[float, typer.Option(help="Share of the cases that become dev.")] = 0.25,
) -> None:
    """Read the public NegGenBench file into a file of cases."""
    from ...bench.cases import check_rules, import_neggenbench, save_cases

    writable(out, ".jsonl")
    try:
        cases = import_neggenbench(file, name=name, license=license, dev=dev)
    except (OSError, ValueError) as error:
        raise Problem(str(error)) from error
    save_cases(cases, out)
    say(f"{out}: {len(cases.split('dev'))} dev, {len(cases.split('test'))} test; hash {cases.hash}")
    if broken := len(check_rules(cases)):
        warn(f"{broken} lines of {out} break our rules: vsf bench cases {out} --check")


def write_cases(
    topic: Annotated[str, typer.Option(help='What the objects are about: "kitchen tools".', show_default=False)],
    model: Annotated[str, typer.Option(help="The model's name at the endpoint.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The file of cases (.jsonl).", show_default=False)],
    *,
    n: Annotated[int, typer.Option("--n", min=1, help="How many cases.")] = 50,
    base_url: Annotated[
        str | None, typer.Option(help="The endpoint (default: OPENAI_BASE_URL, or OpenAI's).", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the set (default: the file's).", show_default=False)
    ] = None,
    license: Annotated[str, typer.Option(help="License of the set.")] = "unknown",
    dev: Annotated[float, typer.Option(help="Share of the cases that become dev.")] = 0.25,
    per_request: Annotated[int, typer.Option(min=1, help="Cases asked for at a time.")] = 10,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="HTTP requests at most (default: three times what it takes).", show_default=False),
    ] = None,
    embedding_model: Annotated[
        str | None,
        typer.Option(help="Compare objects by embeddings of this model (default: as strings).", show_default=False),
    ] = None,
    similar: Annotated[float, typer.Option(help="Similarity from which two objects are the same, 0 to 1.")] = 0.85,
    avoid: Annotated[
        list[str] | None,
        typer.Option(help="A set or file of cases whose objects are taken; several times.", show_default=False),
    ] = None,
) -> None:
    """Have a language model write new cases; the key is read from OPENAI_API_KEY.

    Replies are kept beside the file: the same command goes on where it stopped, with nothing paid twice.
    """
    from ...bench import write

    writable(out, ".jsonl")
    taken = [case for one in avoid or () for case in _read(one)]
    try:
        with progress_bar("writing cases", n) as update:
            done = write.write_cases(
                topic, n, out, model=model, base_url=base_url, name=name, license=license, dev=dev,
                per_request=per_request, requests=requests, embedding_model=embedding_model, similar=similar,
                avoid=taken, say=say, progress=update,
            )  # fmt: skip
    except write.EndpointError as error:
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
