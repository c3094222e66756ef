"""`vsf bench judge` and `vsf bench label`: who says what about the pictures of a run."""

from __future__ import annotations

import inspect
import math
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...bench.judges import JUDGES
from ...libraries import quiet_libraries
from ...registry import Option, options
from ..common import Problem, choose, flag, opt, problems, progress_bar, say, spelled, with_flags
from ..ui import serve_page

if TYPE_CHECKING:
    from ...bench.judges import Tally
    from ...bench.run import Run

_Run = Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False, metavar="RUN")]
_Seed = Annotated[int, typer.Option(help="Order in which pictures are judged, over all methods.")]


def judge_flags(prefix: str = "") -> list[inspect.Parameter]:
    """One flag per option of any judge of the table; with a prefix those of a command that has a `--download` itself."""
    found: dict[str, dict[str, Option]] = {}
    for kind in JUDGES:
        for name, spec in options(JUDGES[kind]).items():
            found.setdefault(name, {})[kind] = spec
    flags: list[inspect.Parameter] = []
    for name, of in found.items():
        if prefix and name == "download":
            continue
        some = next(iter(of.values()))
        same = len({spec.help for spec in of.values()}) == 1
        text = some.help if same else "; ".join(f"{kind}: {spec.help}" for kind, spec in of.items())
        text += "" if some.default in (None, False) or some.required else f" ({some.default})"
        limits = {k: v for k, v in (("min", some.low), ("max", some.high)) if abs(v) < math.inf}
        # Named, so that a truth needs no opposite; and a sweep's endpoint as it was called first.
        names = (spelled(prefix + name), *(["--base-url"] if prefix and name == "base_url" else []))
        flags.append(flag(prefix + name, some.kind, text, f"Only with --judge {', '.join(of)}", *names, **limits))
    return flags


def open_run(folder: Path) -> Run:
    """A run. Raises Problem."""
    from ...bench.run import Run

    with problems(folder):
        return Run.open(folder)


def judge(
    *,
    folder: _Run,
    kind: Annotated[str, typer.Option("--judge", "-j", help=f"One of {', '.join(JUDGES)}, human.")] = "oracle",
    name: Annotated[str | None, opt("Name of this judge in the run; by default from its kind.")] = None,
    seed: _Seed = 0,
    retry: Annotated[bool, typer.Option("--retry", help="Ask again about pictures that could not be judged.")] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither use nor keep answers already paid for.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before spending.")] = False,
    **given: Any,
) -> None:
    """Judge the pictures of a run: all that are drawn and that this judge has not answered yet.

    vsf bench judge RUN --judge oracle

    A separate act, as often as wanted: several judges stand side by side under their names, and one that was stopped
    goes on. What cannot be judged is recorded as that, with the reason. Only the judge api talks to a network; its key
    is the environment variable OPENAI_API_KEY. Its answers are kept in ~/.cache/vsf/judge, so none is paid for twice.
    """
    if kind == "human":
        raise Problem(f"people judge on a page: vsf bench label {folder}")
    choose("judge", kind, [*JUDGES, "human"])
    given = {option: value for option, value in given.items() if value is not None}
    if (no_cache or yes) and not hasattr(JUDGES[kind], "estimate"):
        raise Problem(f"{'--yes' if yes else '--no-cache'} is for a judge that costs money, which {kind} does not")
    run = open_run(folder)
    name = name or _name(kind, given)
    if no_cache and "cache" in given:
        raise Problem("--cache and --no-cache exclude each other")
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vsf" / "judge"

    from ...bench.judges import judge_run

    with problems(folder):
        if "model" in given and kind != "api":
            quiet_libraries()
        JUDGES.check(kind, given, spelled)
        made = JUDGES.make(kind, given, world=run.cases.world, **({} if no_cache else {"cache": home}))
        if hasattr(made, "estimate") and not _agreed(run, made, name, seed, retry, yes):
            raise typer.Abort()
        with progress_bar("judging", 1) as progress:
            done = judge_run(run, made, name, seed=seed, retry=retry, progress=progress)
    _report(name, done)


def _name(kind: str, given: dict[str, Any]) -> str:
    """The judge's name where none is given: its kind and model, or its measure."""
    which = given.get("model") or given.get("metric")
    if which is None:
        return kind
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(str(which)).name).strip("-._") or "model"
    return f"{kind}-{text}"[:90].rstrip("-._")


def _agreed(run: Run, judge: Any, name: str, seed: int, retry: bool, yes: bool) -> bool:
    from ...bench.judges import exhibits
    from ...bench.judges.base import waiting

    estimate = judge.estimate(exhibits(run, waiting(run, name, retry)[0], seed))
    cost = (
        "; no price was given (--price-in, --price-out)" if estimate.cost is None else f", about {estimate.cost:.2f}"
    )
    say(
        f"{estimate.requests} requests to {judge.about()['base_url']} ({estimate.cached} answers in the cache): about "
        f"{estimate.tokens_in} tokens in, {estimate.tokens_out} out{cost}"
    )
    if yes or not estimate.requests:
        return True
    if not sys.stdin.isatty():
        raise Problem("nobody to ask whether to spend this; give --yes")
    return typer.confirm("Go on?")


def _report(name: str, done: Tally) -> None:
    failed = sum(done.not_judged.values())
    text = f"{name}: {done.judged} judged, {failed} not judged"
    if done.undrawn:
        text += f", {done.undrawn} not drawn yet"
    if done.spent:
        text += f"; spent {done.spent['requests']} requests, {done.spent['tokens_in']} tokens in, "
        text += f"{done.spent['tokens_out']} out" + ("" if done.cost is None else f", {done.cost:.4f}")
    say(text)
    for reason, count in sorted(done.not_judged.items(), key=lambda pair: -pair[1]):
        say(f"  {count} x {reason}")
    if failed:
        say("  --retry asks again about these")


def label(
    *,
    folder: _Run,
    name: Annotated[str, typer.Option(help="Answers are kept under NAME-VISITOR.")] = "human",
    seed: _Seed = 0,
    host: Annotated[
        str, typer.Option(help="Address to listen on; other machines can reach any but this one.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 7870,
) -> None:
    """Let people judge on a page: two pictures side by side, blind, by keyboard.

    vsf bench label RUN

    It is the Label tab of vsf ui, without a model. Ctrl-C ends it; everything answered is kept, and the page goes on
    there the next time.
    """
    from ...bench.judges import LabelSession

    run = open_run(folder)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}", name):
        raise Problem(f"--name is {name!r}; allowed: letters, digits and . _ - (1 to 60)")
    if not run.records.keys():
        raise Problem(f"the run in {folder} has no pictures yet: vsf bench generate")
    exposed = "the page has no password: whoever reaches this address can judge"
    serve_page(lambda ui: ui.build_labels(LabelSession(run, name, seed)), exposed, host=host, port=port)


def register(bench: typer.Typer) -> None:
    """Add the commands of this file."""
    bench.command()(with_flags(judge, *judge_flags()))
    bench.command()(label)
