"""`vsf judge world`, `import`, `dataset` and `show`: folders of labels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..common import opt, problems, progress_bar, say

if TYPE_CHECKING:
    from ...judging import Labels

_Out = Annotated[Path, opt("The folder of labels; one that is there gets the new ones added.", "--out", "-o")]


def keep(labels: Labels, out: Path) -> None:
    """Save labels, with those that the folder has already; say what is there now. Raises as `problems`."""
    from ...judging import Labels

    if (out / "labels.json").exists():
        labels = Labels.open(out).merge(labels)
    labels.save(out)
    say(f"{out}: {count(labels)}")


def count(labels: Labels) -> str:
    """How much there is."""
    return f"{len(labels)} labels of {len(labels.images)} pictures by {', '.join(labels.annotators)}"


def world(
    pictures: Annotated[int, typer.Argument(help="How many.", min=1)],
    *,
    out: _Out,
    objects: Annotated[str | None, opt("Which objects, separated by commas; else all.", metavar="LIST")] = None,
    damage: Annotated[str | None, opt("Kinds of damage, separated by commas; else all.", metavar="LIST")] = None,
    split: Annotated[str | None, opt("Only combinations of this split of the world: train, dev or test.")] = None,
    seed: Annotated[int, typer.Option(help="Which pictures.", min=0)] = 0,
    name: Annotated[str, typer.Option("--world", help="A demo world of pictures.")] = "pictures",
) -> None:
    """Draw pictures of a demo world with labels that are true by construction: whole, lacking a part, and damaged.

    vsf judge world 300 --out labels/ --objects bike,car
    """
    from ...judging import collected, world_labels
    from ...judging.world import KINDS, Drawn

    with problems(out), progress_bar("drawing", pictures) as progress:
        drawn: list[Drawn] = []
        kinds = KINDS if damage is None else names(damage)
        for one in world_labels(
            pictures, seed, objects=None if objects is None else names(objects), kinds=kinds, split=split, of=name
        ):
            drawn.append(one)
            progress(len(drawn), pictures)
        keep(collected(drawn, f"world {name}, seed {seed}"), out)


def names(text: str) -> tuple[str, ...]:
    """Names that were given with commas between them, each once."""
    return tuple(dict.fromkeys(part for piece in text.split(",") if (part := piece.strip())))


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="A JSON list of image, question, answer; or a dataset: a .parquet file or a folder.",
            show_default=False,
        ),
    ],
    *,
    out: _Out,
    annotator: Annotated[str, typer.Option(help="Who answered, where an entry of a list does not say it.")] = "file",
) -> None:
    """Make labels of a JSON list of paths of pictures (relative to the file), or of a dataset of Hugging Face's datasets.

    Other fields may be given: asks, annotator, seconds, confidence, group, category, damage, item.
    """
    from ...judging import from_json
    from ...judging.hub import load_dataset

    with problems(out):
        listed = file.suffix != ".parquet" and not file.is_dir()
        keep(from_json(file, annotator) if listed else load_dataset(file), out)


def dataset(
    folder: Annotated[Path, typer.Argument(help="A folder of labels.", metavar="LABELS", show_default=False)],
    *,
    out: Annotated[Path, opt("A new folder, or a file whose name ends with .parquet.", "--out", "-o")],
) -> None:
    """Write labels as a dataset of Hugging Face's datasets: a folder for load_from_disk, or one parquet file."""
    from ...judging import Labels
    from ...judging.hub import save_dataset

    with problems(out):
        labels = Labels.open(folder)
        save_dataset(labels, out)
    say(f"{out}: {count(labels)}")


def show(
    folder: Annotated[Path, typer.Argument(help="A folder of labels.", metavar="LABELS", show_default=False)],
) -> None:
    """Count labels by what is asked, kind of damage and answer, and check every picture."""
    from ...judging import Labels
    from ...judging.labels import word

    with problems(folder):
        labels = Labels.open(folder)
        for image in labels.images:
            labels.picture(image)
    say(count(labels))
    say(f"groups: {len({label.group for label in labels})}; from: {'; '.join(labels.source) or 'not said'}")
    counts = Counter((label.asks, label.damage or "damage not known", word(label.answer)) for label in labels)
    for (asks, damage, answer), number in sorted(counts.items()):
        say(f"  {number:6} {asks}, {damage}: {answer}")


def register(judge: typer.Typer) -> None:
    """Add the commands of this file."""
    judge.command()(world)
    judge.command("import")(import_)
    judge.command()(dataset)
    judge.command()(show)
