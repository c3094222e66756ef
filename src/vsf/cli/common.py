"""What the commands share: user errors, progress, and options that derive from the guidance dataclasses."""

from __future__ import annotations

import difflib
import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..demo.settings import RECOMMENDED
from ..guidance import METHODS, Guidance, Knob, knobs

if TYPE_CHECKING:
    from ..presets import Preset

__all__ = [
    "Problem", "block_text", "choose", "given_knobs", "make_guidance", "progress_bar", "quiet_libraries", "with_knobs",
    "writable",
]  # fmt: skip


class Problem(Exception):
    """Bad input: one sentence for the user, exit code 2."""


# ---------------------------------------------------------------------------------------------------------------
# Options from the guidance dataclasses


def _all_knobs() -> dict[str, dict[str, Knob]]:
    """Knob name -> method name -> knob, in the order of the methods."""
    found: dict[str, dict[str, Knob]] = {}
    for label, method in METHODS.items():
        for name, knob in knobs(method).items():
            found.setdefault(name, {})[label] = knob
    own = {k: v for k, v in found.items() if k not in ("start", "stop")}
    return own | {k: v for k, v in found.items() if k not in own}


def _option(name: str, by_method: dict[str, Knob]) -> inspect.Parameter:
    some = next(iter(by_method.values()))
    if name in ("start", "stop"):
        help = f"{some.help} (default {some.default:g})"
    else:
        help = "; ".join(f"{label}: {knob.help} (default {_word(knob.default)})" for label, knob in by_method.items())
    if "vsf" in by_method and getattr(RECOMMENDED, name) != by_method["vsf"].default:
        help += f"; vsf on the demo model: {_word(getattr(RECOMMENDED, name))}"
    option = typer.Option(
        f"--{name}",
        help=help,
        metavar="|".join(some.choices) or "NUMBER",
        rich_help_panel="Settings of the method",
        show_default=False,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option])


def _blocks() -> inspect.Parameter:
    option = typer.Option(
        "--blocks",
        help="numbers of the transformer blocks that are guided, such as 0-18,24 (default all)",
        metavar="LIST",
        rich_help_panel="Settings of the method",
        show_default=False,
    )
    return inspect.Parameter("blocks", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option])


def _word(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def with_knobs(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command with `**given` one option per knob of all methods."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [*(_option(name, by_method) for name, by_method in _all_knobs().items()), _blocks()]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + options
    setattr(command, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def choose(what: str, given: str, allowed: list[str]) -> str:
    """`given` if it is allowed. Raises Problem with the nearest valid name."""
    if given in allowed:
        return given
    near = difflib.get_close_matches(given.lower(), allowed, 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise Problem(f"unknown {what} {given!r}; allowed: {', '.join(allowed)}{hint}")


def given_knobs(method: str, given: dict[str, str | None]) -> dict[str, Any]:
    """The values that were given on the command line. Raises Problem for a knob the method does not have."""
    own = knobs(METHODS[method])
    values: dict[str, Any] = {}
    for name, text in given.items():
        if text is None:
            continue
        if name == "blocks" and METHODS[method].negative in ("keys", "branch"):
            values[name] = _block_numbers(text)
            continue
        if name not in own:
            # CFG has the fields start and stop like every method, but the pipeline that runs it does not.
            has = ["--" + k for k in own if METHODS[method].negative != "pipeline" or k not in ("start", "stop")]
            has = f"it has {', '.join(has)}" if METHODS[method].negative != "none" else "it has none"
            raise Problem(f"method {method} has no setting --{name}; {has}")
        if own[name].choices:
            values[name] = text
        elif own[name].optional and text.lower() in ("none", "off"):
            values[name] = None
        else:
            try:
                values[name] = float(text)
            except ValueError:
                also = ", or none" if own[name].optional else ""
                raise Problem(f"--{name} is {text!r}; allowed: a number{also}") from None
    return values


def _block_numbers(text: str) -> tuple[int, ...] | None:
    if text.strip().lower() == "all":
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(first) > 6 or len(last) > 6:
            raise Problem(f"--blocks is {text!r}; allowed: numbers and ranges such as 0-18,24, or all")
        if dash and int(last) < int(first):
            raise Problem(f"--blocks is {text!r}; the range {part.strip()} ends before it begins")
        found += range(int(first), int(last or first) + 1)
    return tuple(sorted(set(found)))


def block_text(blocks: tuple[int, ...]) -> str:
    """The text that `--blocks` reads as these numbers."""
    runs: list[list[int]] = []
    for block in sorted(set(blocks)):
        if runs and runs[-1][-1] == block - 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs) or "none"


def make_guidance(method: str, values: dict[str, Any], demo: bool, preset: Preset | None = None) -> Guidance:
    """The method with the given values over its defaults; VSF starts from what is recommended for the model."""
    try:
        if preset is not None and method == "vsf":
            return _over(preset.guidance(), values)
        if demo and method == RECOMMENDED.label:
            return _over(RECOMMENDED, values)
        return METHODS[method](**values)
    except (ValueError, TypeError) as error:
        raise Problem(str(error)) from error


def _over(base: Guidance, values: dict[str, Any]) -> Guidance:
    """The given values over those of `base`; an end of its range that the given other end rules out is let go."""
    if "start" in values and "stop" not in values and values["start"] >= base.stop:
        values = values | {"stop": 1.0}
    if "stop" in values and "start" not in values and values["stop"] <= base.start:
        values = values | {"start": 0.0}
    return replace(base, **values)


# ---------------------------------------------------------------------------------------------------------------
# Files, libraries, progress


def writable(path: Path, *suffixes: str) -> Path:
    """`path` if a file of this kind can be written there; nothing is left behind. Raises Problem."""
    if path.suffix.lower() not in suffixes:
        raise Problem(f"cannot write {path}: its name must end with {' or '.join(suffixes)}")
    if path.is_dir():
        raise Problem(f"cannot write {path}: it is a folder")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise Problem(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from error


def quiet_libraries() -> None:
    """No progress bars and notices of the model libraries between ours."""
    import logging as python_logging
    import warnings

    # Optional packages that announce at import what they could not load.
    for name in ("torchao", "torch.utils._pytree"):
        python_logging.getLogger(name).setLevel(python_logging.ERROR)
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


@contextmanager
def progress_bar(text: str, total: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr where that is a terminal; gives an update function (done, in all)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = [SpinnerColumn(), TextColumn("{task.description}")]
    if total is not None:
        columns += [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def say(text: str) -> None:
    """A line on stdout, as it is."""
    print(text)


def warn(text: str) -> None:
    """A line on stderr, as it is."""
    print(f"warning: {text}", file=sys.stderr)
