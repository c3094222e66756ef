"""`vsf demo ...`: the embedded world, its model, and what is measured on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..guidance import METHODS
from .common import Problem, choose, given_knobs, make_guidance, progress_bar, say, with_knobs, writable
from .generate import as_problems, load

demo = typer.Typer(help="The embedded world and its model: see it, measure it, make it again.", no_args_is_help=True)

_Model = Annotated[str, typer.Option(help="demo, or the folder of another model of this world.", metavar="MODEL")]
_Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...", show_default=False)]
_Json = Annotated[Path | None, typer.Option("--json", help="Also write everything to this file.", show_default=False)]
_Oracle = Annotated[
    Path | None, typer.Option("--oracle", help="Folder of another judge than the shipped one.", show_default=False)
]


def _oracle(folder: Path | None) -> Any:
    from ..demo.oracle import OracleError, load_oracle

    try:
        return load_oracle(folder)
    except OracleError as error:
        raise Problem(str(error)) from error


def _demo_pipe(model: str, device: str | None) -> Any:
    from ..draw import is_demo

    pipe = load(model, device, None)
    if not is_demo(pipe):
        raise Problem(f"the model in {model} does not speak the demo world's vocabulary")
    return pipe


def _write_json(path: Path, data: Any) -> None:
    from ..images import write_whole

    try:
        write_whole(path, (json.dumps(data, indent=1) + "\n").encode())
    except OSError as error:
        raise Problem(f"cannot write {path}: {error.strerror or error}") from error


@demo.command()
@with_knobs
def show(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file.")] = Path("demo.png"),
    method: Annotated[str, typer.Option("--method", "-m", help=f"One of {', '.join(METHODS)}.")] = "vsf",
    seed: Annotated[int, typer.Option(min=0, help="Other noise.")] = 0,
    model: _Model = "demo",
    device: _Device = None,
    **given: str | None,
) -> None:
    """Draw the sheet of `make demo`: eight prompts without and with a negative, from the same noise.

    vsf demo show --out demo.png
    """
    from ..images import save_png

    label = choose("method", method, list(METHODS))
    guidance = make_guidance(label, given_knobs(label, given), True)
    writable(out, ".png")
    pipe = _demo_pipe(model, device)
    from ..demo.settings import SHOWN
    from ..demo.show import show as draw_sheet

    with as_problems(), progress_bar("drawing", len(SHOWN)) as progress:
        picture = draw_sheet(pipe, guidance, seed=seed, progress=progress)
    try:
        save_png(picture, out, {"guidance": guidance.settings(), "seed": seed, "model": model, "shown": SHOWN})
    except OSError as error:
        raise Problem(f"cannot write {out}: {error.strerror or error}") from error
    say(str(out))


@demo.command()
def render(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file.")] = Path("world.png"),
    n: Annotated[int, typer.Option("--n", min=1, max=400, help="Number of scenes.")] = 32,
    columns: Annotated[int, typer.Option(min=1, max=40, help="Scenes side by side.")] = 8,
    size: Annotated[int, typer.Option(min=16, max=512, help="Pixels a side before enlarging.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Other scenes.")] = 0,
) -> None:
    """Draw scenes of the world with their captions: what the model was trained on.

    vsf demo render --n 32 --out world.png
    """
    writable(out, ".png")
    import numpy as np
    from PIL import Image

    from ..demo import world
    from ..images import Card, save_png, sheet

    rng = np.random.default_rng(seed)
    cards: list[Card] = []
    while len(cards) < n:
        for scene, caption in world.training_pair(rng)[: n - len(cards)]:
            cards.append(Card(caption, None, [("", Image.fromarray(world.render(scene, size)))]))
    save_png(sheet(cards, columns), out, {"render": n, "seed": seed})
    say(str(out))


@demo.command()
def train(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; an interrupted run goes on.")] = Path(
        "out/demo"
    ),
    recipe: Annotated[Path | None, typer.Option(help="Another recipe file (TOML).", show_default=False)] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Stop the transformer's training after so long.", show_default=False)
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of going on.")] = False,
    device: _Device = None,
) -> None:
    """Make the demo model from nothing.

    vsf demo train --out out/demo

    Loss curve, sample sheets and checkpoints appear in the folder as it goes; the model ends in FOLDER/weights.
    """
    from ..demo.model import Recipe

    try:
        chosen = Recipe.load(recipe)
    except OSError as error:
        raise Problem(f"cannot read the recipe {recipe}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, TypeError) as error:
        raise Problem(f"the recipe {recipe} cannot be used: {error}") from error
    from ..demo.train import train as run

    with as_problems():
        try:
            say(str(run(chosen, out, minutes, resume=not fresh, device=device)))
        except OSError as error:
            raise Problem(f"cannot write in {out}: {error.strerror or error}") from error


@demo.command()
def gate(
    *,
    n: Annotated[int, typer.Option("--n", min=1, max=2000, help="Held-out combinations, four captions each.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Other captions and noise.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 8,
    model: _Model = "demo",
    device: _Device = None,
    oracle: _Oracle = None,
    json_file: _Json = None,
) -> None:
    """Measure whether the demo model draws what captions say; exit code 1 if it does not pass.

    vsf demo gate --json gate.json
    """
    if json_file is not None:
        writable(json_file, ".json")
    judge, pipe = _oracle(oracle), _demo_pipe(model, device)
    from rich.console import Console

    from ..demo.gate import gate_table, run_gate

    with progress_bar("gate", 4 * n) as progress, as_problems():
        report = run_gate(pipe, judge, n, seed, steps=steps, progress=progress)
    Console().print(gate_table(report))
    if json_file is not None:
        _write_json(json_file, report.to_dict())
    if not report.passed:
        raise typer.Exit(1)


@demo.command(name="eval")
@with_knobs
def evaluate(
    *,
    method: Annotated[str, typer.Option("--method", "-m", help=f"One of {', '.join(METHODS)}.")] = "vsf",
    cases: Annotated[int, typer.Option("--cases", min=1, help="Number of cases.")] = 100,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="Noises per case.")] = 2,
    split: Annotated[str, typer.Option(help="dev (to choose settings) or test (to report).")] = "dev",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 8,
    model: _Model = "demo",
    device: _Device = None,
    oracle: _Oracle = None,
    json_file: _Json = None,
    **given: str | None,
) -> None:
    """Measure a method on held-out cases: part gone, picture kept, with an unrelated negative as the control.

    vsf demo eval --method vsf --scale 2 --cases 60

    vsf demo eval --method nag --split test --json nag.json
    """
    from ..demo.evaluate import demo_cases, eval_table
    from ..demo.evaluate import evaluate as run

    label = choose("method", method, list(METHODS))
    chosen = make_guidance(label, given_knobs(label, given), True)
    if json_file is not None:
        writable(json_file, ".json")
    with as_problems():
        rows = demo_cases(split, cases)
    judge, pipe = _oracle(oracle), _demo_pipe(model, device)
    with progress_bar("drawing and judging", 2 * cases * seeds) as progress, as_problems():
        result = run(pipe, judge, chosen, rows, tuple(range(seeds)), steps, progress=progress)
    from rich.console import Console

    Console().print(eval_table([result], f"{cases} {split} cases x {seeds} seeds, 95 % intervals clustered by case"))
    if json_file is not None:
        _write_json(json_file, result.to_dict())


@demo.command(name="train-oracle")
def train_oracle(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the judge's weights and figures.")] = Path(
        "out/oracle"
    ),
    samples: Annotated[int, typer.Option(min=1000, help="Pictures seen.")] = 220_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = 0,
) -> None:
    """Train the judge of demo pictures from nothing and measure it on held-out renders."""
    from ..demo.oracle import train_oracle as run

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(f"cannot write {out}: {error.strerror or error}") from error
    run(out, samples, seed)
    say(str(out))
