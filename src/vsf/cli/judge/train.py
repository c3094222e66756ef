"""`vsf judge train`: a judge of one's own, tuned on labels or made from nothing."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common import Problem, opt, problems, say
from .labels import names

#: What comes with the package; a file's name may be given in the place of one.
RECIPES = ("tune", "shift", "scratch")


def _recipe(kind: Any, name: str) -> Any:
    from ...demo.training.recipes import read_recipe

    shipped = name in RECIPES
    path = Path(str(files("vsf.judging").joinpath(f"recipes/{name}.toml"))) if shipped else Path(name)
    try:
        return read_recipe(kind, name, path)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise Problem(f"cannot read the recipe {name} ({why}); a file, or one of {', '.join(RECIPES)}") from error
    except (ValueError, TypeError) as error:
        raise Problem(f"the recipe {name} cannot be used: {error}") from error


def train(
    *,
    base: Annotated[
        str | None, opt("The model to tune: a folder, or an id of the hub such as Qwen/Qwen2.5-VL-3B-Instruct.")
    ] = None,
    data: Annotated[Path | None, opt("Labels to tune it on.", metavar="LABELS")] = None,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Make the small judge from nothing, on pictures of the demo world.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; an interrupted one goes on.")] = Path(
        "out/judge"
    ),
    recipe: Annotated[str | None, opt(f"A file (TOML), or one of {', '.join(RECIPES)}; by default tune or scratch.")] = None,
    annotator: Annotated[str | None, opt("Whose answers, where several are in LABELS.", "--annotator", "-a")] = None,
    asks: Annotated[str | None, opt("Only questions of these kinds: object, missing, kept, other.", metavar="LIST")] = None,
    minutes: Annotated[float | None, opt("With --scratch: end after so long.", min=0.01)] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of going on.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would take, from the config of the model alone.")
    ] = False,
    tflops: Annotated[float, typer.Option(help="With --dry-run: teraflops a second that are reached.", min=1e-3)] = 150.0,
    pixels: Annotated[int, typer.Option(help="With --dry-run: pixels a side of the pictures.", min=28)] = 784,
    device: Annotated[str | None, opt("cpu, cuda, ...")] = None,
    dtype: Annotated[str | None, opt("float32, bfloat16 or float16; else float32 on a CPU and bfloat16 elsewhere.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch an id from the hub.")] = False,
) -> None:  # fmt: skip
    """Train a judge of absence: LoRA on a vision-language model, or a small one from nothing.

    vsf judge train --base Qwen/Qwen2.5-VL-3B-Instruct --download --data labels/

    vsf judge train --scratch --out out/small-judge

    No object is on both sides of a split; what is kept is what did best on dev, with a temperature and a cut for each kind of
    question, fitted there. FOLDER/adapter (FOLDER/weights of --scratch) then judges: vsf bench judge RUN --judge tuned
    --model FOLDER/adapter. Ctrl-C or a kill stop it; the same command goes on.
    """
    from ...libraries import offline_unless, quiet_libraries

    if scratch and (base or data or dry_run or asks):
        raise Problem("--scratch starts from nothing: it takes no --base, --data, --asks or --dry-run")
    if not scratch and (base is None or (data is None and not dry_run)):
        raise Problem("--base MODEL and --data LABELS are needed, or --scratch")
    if minutes is not None and not scratch:
        raise Problem("--minutes is of --scratch; a tuning ends by its recipe, or where dev gets no better")
    offline_unless(download)
    if scratch:
        from ...judging.scratch import Recipe, make

        chosen = _recipe(Recipe, recipe or "scratch")
        quiet_libraries()
        with problems(out):
            say(str(make(chosen, out, minutes=minutes, resume=not fresh)))
        return
    from ...judging import Labels
    from ...judging.train import Tune, tune

    assert base is not None
    settings = _recipe(Tune, recipe or "tune")
    quiet_libraries()
    if dry_run:
        from ...judging.estimate import estimate

        with problems():
            found = estimate(settings, base, pixels=pixels, download=download)
        say(f"parameters: {found.text:,} of language, {found.vision:,} of vision, {found.trained:,} trained")
        say(f"a picture: {found.patches} patches, {found.tokens} tokens with its questions")
        parts = f"weights {found.weights:.1f}, adapter {found.state:.2f}, activations {found.activations:.1f}"
        say(f"memory: {found.memory:.1f} GiB ({parts})")
        time = f"{found.flops:.3g} operations, {found.hours(tflops):.1f} hours at {tflops:g} TFLOP/s"
        say(f"{settings.train.rows} pictures: {time}")
        return
    assert data is not None
    with problems(out):
        labels = Labels.open(data)
        labels = labels if annotator is None else labels.of(annotator)
        labels = labels if asks is None else labels.asking(names(asks))
        done = tune(settings, base, labels, out, device=device, dtype=dtype, download=download, resume=not fresh)
    assert done is not None
    say(f"{done.folder}: loss on dev {done.before:.4f} before, {done.best:.4f} now")


def register(judge: typer.Typer) -> None:
    """Add the command of this file."""
    judge.command()(train)
