"""`vsf judge agreement` and `vsf judge adjudicate`: whether annotators agree, and who decides where they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..common import opt, problems, say
from ..ui import serve_page
from .labels import count


def agreement(
    folders: Annotated[list[Path], typer.Argument(help="Folders of labels.", metavar="LABELS...", show_default=False)],
    *,
    annotator: Annotated[
        list[str] | None, opt("Whose answers; may be given several times; else everybody's.", "--annotator", "-a")
    ] = None,
) -> None:
    """How far annotators agree: Cohen's kappa for two, Krippendorff's alpha for more, with intervals by group.

    vsf judge agreement labels/ more-labels/
    """
    from ...judging import Labels
    from ...judging.agreement import agreement, disagreements

    with problems():
        first, *more = [Labels.open(folder) for folder in folders]
        labels = first.merge(*more)
        found = agreement(labels, annotator)
    say(count(labels))
    say(f"  {'asked':8} {'questions':>9} {'groups':>6}  {'equal answers':24} {'beyond chance':32} annotators")
    for one in found:
        value = "not defined" if one.value is None else str(one.value)
        text = (
            f"  {one.asks:8} {one.questions:9} {one.groups:6}  {str(one.same or '-'):24} {one.kind + ' ' + value:32} "
        )
        say(text + ", ".join(one.annotators))
    if left := len(disagreements(labels)):
        say(f"{left} questions are answered by yes and by no, and not decided: vsf judge adjudicate LABELS")


def adjudicate(
    folder: Annotated[Path, typer.Argument(help="A folder of labels.", metavar="LABELS", show_default=False)],
    *,
    seed: Annotated[int, typer.Option(help="Order of the questions.")] = 0,
    host: Annotated[
        str, typer.Option(help="Address to listen on; other machines can reach any but this one.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 7870,
) -> None:
    """Decide on a page where annotators disagree: only those pictures, one question at a time, by keyboard.

    vsf judge adjudicate labels/

    Decisions are saved in LABELS with every answer, as those of the annotator "adjudicated".
    """
    from ...judging.adjudicate import Adjudication

    with problems(folder):
        session = Adjudication(folder, seed)
    if not session.open:
        say("nothing to decide: no question is answered by yes and by no")
        return
    exposed = "the page has no password: whoever reaches this address can decide"
    serve_page(lambda ui: ui.build_labels(session), exposed, host=host, port=port)


def register(judge: typer.Typer) -> None:
    """Add the commands of this file."""
    judge.command()(agreement)
    judge.command()(adjudicate)
