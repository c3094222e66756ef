"""What the commands share: user errors, progress, and options that derive from the guidance dataclasses."""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ..demo.models import MODELS
from ..grammar import unknown
from ..guidance import EVERY, METHODS, Guidance, Knob, knobs, make_method, read_settings

_T = TypeVar("_T")

__all__ = [
    "Problem", "choose", "flag", "make_guidance", "opt", "problems", "progress_bar", "read_flag", "spelled", "with_flags",
    "with_knobs", "writable",
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
    for model in MODELS.values():
        label, own = model.recommended.label, getattr(model.recommended, name, None)
        if label in by_method and own != by_method[label].default:
            help += f"; {label} on the model {model.name}: {_word(own)}"
    return flag(name, str, help, "Settings of the method", metavar="|".join(some.choices) or "NUMBER")


def _word(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def with_knobs(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command with `**given` one option per knob of all methods."""
    blocks = "numbers of the transformer blocks that are guided, such as 0-18,24 (default all)"
    return with_flags(
        command,
        *(_option(name, by_method) for name, by_method in _all_knobs().items()),
        flag("blocks", str, blocks, "Settings of the method", metavar="LIST"),
    )


def spelled(name: str) -> str:
    """A name as a flag."""
    return "--" + name.replace("_", "-")


def opt(help: str, *names: str, panel: str | None = None, **more: Any) -> Any:
    """An option of a command whose help says what it is where it is not given; under a heading of the help."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


def flag(name: str, kind: Any, help: str, panel: str, *names: str, **more: Any) -> inspect.Parameter:
    """A flag that may be left out, `--NAME` or `names`, under a heading of the help; then its value is None."""
    hint = Annotated[kind | None, opt(help, *(names or (spelled(name),)), panel=panel, **more)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)


def with_flags(command: Callable[..., Any], *flags: inspect.Parameter) -> Callable[..., Any]:
    """Give a command with `**given` these flags."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    parameters = [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *flags]
    setattr(command, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def choose(what: str, given: str, allowed: Sequence[str]) -> str:
    """`given` if it is allowed. Raises Problem with the nearest valid name."""
    if given in allowed:
        return given
    raise Problem(unknown(what, given, allowed))


def read_flag(read: Callable[[str, str], _T], text: str | None, flag: str) -> _T | None:
    """What a grammar reads from the text of a flag, if it was given. Raises Problem, which names the flag."""
    try:
        return None if text is None else read(text, flag)
    except ValueError as error:
        raise Problem(str(error)) from error


def make_guidance(method: str, given: Mapping[str, str | None], base: Guidance | None = None) -> Guidance:
    """The method with the settings that were given as flags, over those of `base` (see `make_method`). Raises Problem."""
    try:
        texts = {name: text for name, text in given.items() if text is not None}
        return make_method({"method": method, **read_settings(EVERY[method], texts, spelled)}, base)
    except (ValueError, TypeError) as error:
        raise Problem(str(error)) from error


# ---------------------------------------------------------------------------------------------------------------
# Files, libraries, progress


@contextmanager
def problems(folder: Path | None = None) -> Iterator[None]:
    """What is wrong with what was given, with a judge, or with a file in `folder`, as one sentence for the user."""
    from ..bench.judges import JudgeError

    try:
        yield
    except (ValueError, FloatingPointError, JudgeError) as error:
        raise Problem(str(error)) from error
    except OSError as error:
        raise Problem(f"cannot write in {folder}: {error.strerror or error}") from error


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
