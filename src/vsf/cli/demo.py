"""`vsf demo ...`: the embedded world, its model, and what is measured on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..demo.models import MODELS
from ..demo.training import TRAININGS
from ..demo.worlds import FIRST, WORLDS
from ..guidance import EVERY, METHODS
from ..loading import DEMO, recommended
from ..video import SUFFIXES
from .common import Problem, choose, make_guidance, opt, progress_bar, say, with_knobs, writable
from .generate import as_problems, load

if TYPE_CHECKING:
    from ..demo.models import DemoModel
    from ..demo.worlds import World

demo = typer.Typer(help="The embedded world and its model: see it, measure it, make it again.", no_args_is_help=True)

_Model = Annotated[
    str, typer.Option(help=f"{', '.join(MODELS)}, or the folder of one trained likewise.", metavar="MODEL")
]
_Device = Annotated[str | None, opt("cpu, cuda, ...")]
_Json = Annotated[Path | None, opt("Also write everything to this file.", "--json")]
_Oracle = Annotated[Path | None, opt("Folder of another judge than the shipped one.", "--oracle")]


def _oracle(world: World, folder: Path | None) -> Any:
    from ..demo.worlds import OracleError

    try:
        return world.load_oracle(folder)
    except OracleError as error:
        raise Problem(str(error)) from error


def _demo_pipe(model: str, device: str | None) -> tuple[Any, DemoModel]:
    """The pipeline of a demo model or of a folder of one, and its record."""
    from ..demo.models import model_of

    pipe = load(model, device, None)
    record = model_of(pipe)
    if record is None:
        raise Problem(f"the model in {model} does not speak the vocabulary of a demo world")
    return pipe, record


def _write_json(path: Path, data: Any) -> None:
    from ..files import json_bytes, write_whole

    try:
        write_whole(path, json_bytes(data, 1))
    except OSError as error:
        raise Problem(f"cannot write {path}: {error.strerror or error}") from error


@demo.command()
@with_knobs
def show(
    *,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="PNG file; of a model of clips GIF, WebP or MP4, or PNG for a middle frame."),
    ] = Path("demo.png"),
    method: Annotated[str, typer.Option("--method", "-m", help=f"One of {', '.join(METHODS)}.")] = "vsf",
    seed: Annotated[int, typer.Option(help="Other noise.", min=0)] = 0,
    model: _Model = DEMO,
    device: _Device = None,
    **given: str | None,
) -> None:
    """Draw the sheet of `make demo`: eight prompts without and with a negative, from the same noise.

    vsf demo show --out demo.png
    """
    from ..images import save_png

    method = choose("method", method, list(EVERY))
    make_guidance(method, given, recommended(model))  # complain before anything is loaded
    known = MODELS.get(model)
    writable(out, ".png", *(SUFFIXES if known is None or known.video else ()))
    moving = out.suffix.lower() in SUFFIXES
    pipe, record = _demo_pipe(model, device)
    if moving and not record.video:
        raise Problem(f"{record.name} draws pictures; --out must end with .png")
    guidance = make_guidance(method, given, record.recommended)
    from ..show import show as draw_sheet
    from ..video import save_video

    with as_problems(), progress_bar("drawing", len(record.shown)) as progress:
        sheets = draw_sheet(pipe, record, guidance, seed, progress)
    shown = [(entry.prompt, entry.negative, entry.seed) for entry in record.shown]
    settings = {"guidance": guidance.settings(), "seed": seed, "model": model, "shown": shown}
    try:
        if moving:
            save_video(sheets, out, record.fps or 8, settings)
        else:
            save_png(sheets[len(sheets) // 2], out, settings)
    except OSError as error:
        raise Problem(f"cannot write {out}: {error.strerror or error}") from error
    say(str(out))


@demo.command()
def render(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file.")] = Path("world.png"),
    n: Annotated[int, typer.Option("--n", help="Number of scenes.", min=1, max=400)] = 32,
    columns: Annotated[int, typer.Option(help="Scenes side by side.", min=1, max=40)] = 8,
    size: Annotated[int, typer.Option(help="Pixels a side before enlarging.", min=16, max=512)] = 128,
    seed: Annotated[int, typer.Option(help="Other scenes.", min=0)] = 0,
    world: Annotated[str, typer.Option(help=f"One of {', '.join(WORLDS)}.")] = FIRST,
) -> None:
    """Draw scenes of a world with their captions: what its models were trained on. Of a clip, three of its frames.

    vsf demo render --n 32 --out world.png
    """
    choose("world", world, list(WORLDS))
    writable(out, ".png")
    import numpy as np
    from PIL import Image

    from ..demo.worlds import world as record_of
    from ..images import Card, save_png, sheet

    rng, code = np.random.default_rng(seed), record_of(world).code
    cards: list[Card] = []
    while len(cards) < n:
        for scene, caption in code.training_pair(rng)[: n - len(cards)]:
            drawn = code.render(scene, size)
            frames = [drawn] if drawn.ndim == 3 else [drawn[0], drawn[len(drawn) // 2], drawn[-1]]
            cards.append(Card(caption, None, [("", Image.fromarray(frame)) for frame in frames]))
    save_png(sheet(cards, columns), out, {"render": n, "seed": seed})
    say(str(out))


@demo.command()
def train(
    *,
    model: Annotated[str, typer.Option(help=f"One of {', '.join(TRAININGS)}.")] = "sd3",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the run; an interrupted run goes on.", show_default="out/MODEL"),
    ] = None,
    cache: Annotated[Path, typer.Option(help="Folder of rendered rows and latents; models share it.")] = Path(
        "out/demo-cache"
    ),
    recipe: Annotated[Path | None, opt("Another recipe file (TOML).")] = None,
    minutes: Annotated[float | None, opt("Stop the transformer's training after so long.", min=0.01)] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of going on.")] = False,
    device: _Device = None,
) -> None:
    """Make a demo model again; sd3 and wan (clips) from nothing, flux from the rows, autoencoder and predictions of sd3.

    vsf demo train

    vsf demo train --model flux

    vsf demo train --model wan

    torchrun --nproc-per-node 2 --no-python vsf demo train --model wan

    Loss curve, sample sheets and checkpoints appear in the folder as it goes; the model ends in FOLDER/weights. Ctrl-C
    or a kill stop it; the same command goes on.
    """
    from ..bench.cluster import launched
    from ..demo.training import training
    from ..demo.training.recipes import read_recipe
    from ..loading import usable_device

    name = choose("model", model, list(TRAININGS))
    kind, run = training(name)
    try:
        chosen = read_recipe(kind, name, recipe)
    except OSError as error:
        raise Problem(f"cannot read the recipe {recipe}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, TypeError) as error:
        raise Problem(f"the recipe {recipe} cannot be used: {error}") from error
    folder = out or Path("out") / name
    with as_problems(), launched(device) as ranks:
        place = usable_device(ranks.device)
        try:
            made = run(chosen, folder, cache, minutes, resume=not fresh, device=place)
            if ranks.rank == 0:
                say(str(made))
        except OSError as error:
            raise Problem(f"cannot write in {folder}: {error.strerror or error}") from error


@demo.command()
def gate(
    *,
    n: Annotated[int, typer.Option("--n", help="Held-out combinations, four captions each.", min=1, max=2000)] = 200,
    seed: Annotated[int, typer.Option(help="Other captions and noise.", min=0)] = 0,
    split: Annotated[
        str | None, typer.Option(help="Only dev (to choose settings) or test (to report).", show_default="both")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", min=1, show_default="the model's")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="The pipeline's own.", min=0, show_default="the model's")
    ] = None,
    model: _Model = DEMO,
    device: _Device = None,
    oracle: _Oracle = None,
    json_file: _Json = None,
) -> None:
    """Measure whether a demo model draws what captions say; exit code 1 if it does not pass.

    vsf demo gate --json gate.json

    vsf demo gate --model out/sd3/weights --split test
    """
    if json_file is not None:
        writable(json_file, ".json")
    splits = ("dev", "test") if split is None else (choose("split", split, ["dev", "test"]),)
    pipe, record = _demo_pipe(model, device)
    world = record.of_world()
    judge = _oracle(world, oracle)
    from rich.console import Console

    from ..demo.gate import about, gate_table, run_gate, unguided
    from ..libraries import quiet

    steps, scale = steps or record.steps, record.guidance_scale if guidance_scale is None else guidance_scale
    facts = {"model": record.name, "steps": steps, "guidance_scale": scale, **about(pipe, judge)}
    with quiet(pipe), progress_bar("gate", 4 * n) as progress, as_problems():
        report = run_gate(
            unguided(pipe, record, steps, scale), world, judge, n, seed, splits=splits, about=facts, progress=progress
        )
    Console().print(gate_table(report))
    if json_file is not None:
        _write_json(json_file, report.to_dict())
    if not report.passed:
        raise typer.Exit(1)


@demo.command(name="train-oracle")
def train_oracle(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the judge's weights and figures.")] = Path(
        "out/oracle"
    ),
    samples: Annotated[int, typer.Option(help="Pictures seen.", min=1000)] = 220_000,
    seed: Annotated[int, typer.Option(help="Seed of everything.", min=0)] = 0,
) -> None:
    """Train the judge of demo pictures from nothing and measure it on held-out renders."""
    from ..demo.oracle import train_oracle as run

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(f"cannot write {out}: {error.strerror or error}") from error
    run(out, samples, seed)
    say(str(out))
