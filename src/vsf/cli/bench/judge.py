"""`vsf bench judge` and `vsf bench label`: who says what about the pictures of a run."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common import Problem, choose, progress_bar, quiet_libraries, say, warn

if TYPE_CHECKING:
    from ...bench.judges import Tally
    from ...bench.run import Run

_JUDGES = ("oracle", "api", "local", "metrics", "human")
_Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
_Seed = Annotated[int, typer.Option(help="Order in which pictures are judged, over all methods.")]


def _own(panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=f"Only with --judge {panel}", show_default=False, **more)


def _open(folder: Path) -> Run:
    from ...bench.run import Run, RunError

    try:
        return Run.open(folder)
    except RunError as error:
        raise Problem(str(error)) from error


def judge(
    *,
    folder: _Run,
    kind: Annotated[str, typer.Option("--judge", "-j", help=f"One of {', '.join(_JUDGES)}.")] = "oracle",
    name: Annotated[
        str | None, typer.Option(help="Name of this judge in the run; by default from its kind.", show_default=False)
    ] = None,
    seed: _Seed = 0,
    retry: Annotated[bool, typer.Option("--retry", help="Ask again about pictures that could not be judged.")] = False,
    model: Annotated[str | None, _own("api, local, metrics", help="Name, id or folder of the model.")] = None,
    device: Annotated[str | None, _own("local, metrics", help="cpu, cuda, ...")] = None,
    download: Annotated[
        bool, _own("local, metrics", "--download", help="Fetch what is not here from the hub.")
    ] = False,
    base_url: Annotated[
        str | None, _own("api", help="Endpoint, such as http://127.0.0.1:8000/v1; else OPENAI_BASE_URL.")
    ] = None,
    concurrency: Annotated[int | None, _own("api", min=1, max=256, help="Requests at a time (4).")] = None,
    attempts: Annotated[int | None, _own("api", min=1, max=20, help="Requests per picture, at most (5).")] = None,
    timeout: Annotated[float | None, _own("api", min=0.1, help="Seconds for one request (60).")] = None,
    price_in: Annotated[float | None, _own("api", min=0, help="Price of a million tokens sent.")] = None,
    price_out: Annotated[float | None, _own("api", min=0, help="Price of a million tokens received.")] = None,
    image_tokens: Annotated[
        int | None, _own("api", min=1, help="Tokens of one picture, for the estimate (85 and 170 per 512 px tile).")
    ] = None,
    max_tokens: Annotated[int | None, _own("api", min=1, help="Longest reply (1024).")] = None,
    temperature: Annotated[float | None, _own("api", min=0, help="As the endpoint takes it; its default.")] = None,
    cache: Annotated[Path | None, _own("api", help="Folder of answers already paid for (~/.cache/vsf/judge).")] = None,
    no_cache: Annotated[bool, _own("api", "--no-cache", help="Neither use nor keep such answers.")] = False,
    yes: Annotated[bool, _own("api", "--yes", "-y", help="Do not ask before spending.")] = False,
    adapter: Annotated[Path | None, _own("local", help="Folder of a LoRA adapter (peft).")] = None,
    dtype: Annotated[str | None, _own("local", help="float32 (CPU), bfloat16 (else), float16.")] = None,
    revision: Annotated[str | None, _own("local", help="Revision of an id.")] = None,
    metric: Annotated[
        str | None, _own("metrics", help="demo (default), preference (with --model), or a name of pyiqa: clipiqa, ...")
    ] = None,
) -> None:
    """Judge the pictures of a run: all that are drawn and that this judge has not answered yet.

    vsf bench judge RUN --judge oracle

    A separate act, as often as wanted: several judges stand side by side under their names, and one that was stopped
    goes on. What cannot be judged is recorded as that, with the reason. Only the judge api talks to a network; its key
    is the environment variable OPENAI_API_KEY.
    """
    choose("judge", kind, list(_JUDGES))
    given: dict[str, Any] = {
        "model": model, "device": device, "download": download or None, "base_url": base_url,
        "concurrency": concurrency, "attempts": attempts, "timeout": timeout, "price_in": price_in,
        "price_out": price_out, "image_tokens": image_tokens, "max_tokens": max_tokens, "temperature": temperature,
        "cache": cache, "no_cache": no_cache or None, "yes": yes or None, "adapter": adapter, "dtype": dtype,
        "revision": revision, "metric": metric,
    }  # fmt: skip
    given = {option: value for option, value in given.items() if value is not None}
    if kind == "human":
        raise Problem(f"people judge on a page: vsf bench label {folder}")
    run = _open(folder)
    own = _OPTIONS[kind].split()
    if wrong := sorted(given.keys() - own):
        have = ", ".join("--" + option.replace("_", "-") for option in own) or "none of its own"
        raise Problem(f"--{wrong[0].replace('_', '-')} is no option of the judge {kind}, which has {have}")

    from ...bench.judges import JudgeError, judge_run
    from ...bench.run import RunError

    try:
        made, prices = _make(kind, given)
        name = name or _name(kind, given)
        if kind == "api" and not _agreed(run, made, name, seed, retry, "yes" in given):
            raise typer.Abort()
        with progress_bar("judging", 1) as progress:
            done = judge_run(run, made, name, seed=seed, retry=retry, progress=progress)
    except (JudgeError, RunError, ValueError) as error:
        raise Problem(str(error)) from error
    except OSError as error:
        raise Problem(f"cannot write in {folder}: {error.strerror or error}") from error
    _report(name, done, prices)


#: The options that a judge has, beside those of all.
_OPTIONS = {
    "oracle": "",
    "api": "model base_url concurrency attempts timeout price_in price_out image_tokens max_tokens temperature cache "
    "no_cache yes",
    "local": "model device download adapter dtype revision",
    "metrics": "metric model device download",
}


def _make(kind: str, given: dict[str, Any]) -> tuple[Any, Any]:
    """The judge, and the prices if there are any."""
    from ...bench.judges import ApiJudge, LocalJudge, MetricJudge, OracleJudge
    from ...bench.judges.api import Prices

    rest = dict(given)
    if kind == "oracle":
        return OracleJudge(), None
    if kind in ("api", "local") and "model" not in rest:
        raise Problem(f"the judge {kind} needs --model")
    if kind == "local" or (kind == "metrics" and "model" in rest):
        quiet_libraries()
    if kind == "metrics":
        return MetricJudge(rest.pop("metric", "demo"), **rest), None
    if kind == "local":
        return LocalJudge(rest.pop("model"), **rest), None
    rest.pop("yes", None)
    price = rest.pop("price_in", None), rest.pop("price_out", None)
    if (price[0] is None) != (price[1] is None):
        raise Problem("--price-in and --price-out are given together")
    prices = None if price[0] is None or price[1] is None else Prices(*price)
    if "no_cache" in rest and "cache" in rest:
        raise Problem("--cache and --no-cache exclude each other")
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vsf" / "judge"
    folder = None if rest.pop("no_cache", None) else rest.pop("cache", home)
    return ApiJudge(rest.pop("model"), prices=prices, cache=folder, **rest), prices


def _name(kind: str, given: dict[str, Any]) -> str:
    """The judge's name where none is given: its kind and model, or its measure."""
    which = given.get("model") or given.get("metric")
    if which is None:
        return kind
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(str(which)).name).strip("-._") or "model"
    return f"{kind}-{text}"[:90].rstrip("-._")


def _agreed(run: Run, judge: Any, name: str, seed: int, retry: bool, yes: bool) -> bool:
    from ...bench.judges import items
    from ...bench.judges.base import waiting

    estimate = judge.estimate(items(run, waiting(run, name, retry)[0], seed))
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


def _report(name: str, done: Tally, prices: Any) -> None:
    failed = sum(done.not_judged.values())
    text = f"{name}: {done.judged} judged, {failed} not judged"
    if done.undrawn:
        text += f", {done.undrawn} not drawn yet"
    if done.spent:
        text += f"; spent {done.spent['requests']} requests, {done.spent['tokens_in']} tokens in, "
        text += f"{done.spent['tokens_out']} out"
        text += "" if prices is None else f", {prices.cost(done.spent):.4f}"
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
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7870,
) -> None:
    """Let people judge on a page: two pictures side by side, blind, by keyboard.

    vsf bench label RUN

    Ctrl-C ends it; everything answered is kept, and the page goes on there the next time.
    """
    from ...bench.judges.human import LabelSession, make_server

    run = _open(folder)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}", name):
        raise Problem(f"--name is {name!r}; allowed: letters, digits and . _ - (1 to 60)")
    if not run.records.keys():
        raise Problem(f"the run in {folder} has no pictures yet: vsf bench generate")
    try:
        server = make_server(LabelSession(run, name, seed), host, port)
    except (OSError, OverflowError) as error:
        raise Problem(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from error
    if host not in ("127.0.0.1", "localhost", "::1"):
        warn(f"the page on {host} has no password: whoever reaches this address can judge")
    with server:
        say(f"http://{host}:{server.server_address[1]}  (Ctrl-C ends it)")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("stopped; answers are kept")


def register(bench: typer.Typer) -> None:
    """Add the commands of this file."""
    bench.command()(judge)
    bench.command()(label)
