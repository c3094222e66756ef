"""What is shown: pictures made ready for the page, and the HTML around them. Every text is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import write_whole
from ..images import overlay, upscale

if TYPE_CHECKING:
    from ..draw import Drawn

__all__ = [
    "Tile", "cards", "chips", "difference", "display", "drop_box", "empty", "figure", "grid", "holes", "label_of", "links",
    "map_view", "save_view", "sentence", "status", "tiles", "title_of", "wipe", "with_caption",
]  # fmt: skip

_SIDE = 512


# ---------------------------------------------------------------------------------------------------------------
# Pictures


def display(image: Image.Image) -> Image.Image:
    """A picture as the page shows it: enlarged if it is small."""
    return upscale(image, _SIDE if min(image.size) <= 256 else 1)


def save_view(image: Image.Image, path: Path) -> None:
    """Write a picture for looking at (the one to keep is the PNG)."""
    buffer = BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=92, method=2)
    write_whole(path, buffer.getvalue())


def difference(plain: Image.Image, guided: Image.Image) -> tuple[Image.Image, float, float]:
    """Where two pictures differ, over the greyed first; the largest difference, and the share of pixels over 10 %."""
    a, b = (np.asarray(p.convert("RGB"), np.float64) for p in (plain, guided))
    change = np.abs(a - b).max(-1) / 255
    return (
        overlay(display(plain), change, top=max(0.25, float(change.max()))),
        float(change.max()),
        float((change > 0.1).mean()),
    )


def map_view(drawn: Drawn, i: int, step: int | None, block: int | None) -> tuple[Image.Image, float, float]:
    """The suppression map of picture `i` over it (step, block None: their mean), its largest and its mean share.

    All steps of a block have one colour scale, so that they can be compared.
    """
    assert drawn.suppression is not None
    recorded = drawn.suppression
    share = recorded.map(step, block)[i].numpy()
    top = share.max() if step is None else max(float(recorded.map(s, block)[i].max()) for s in recorded.steps)
    return overlay(display(drawn.guided[i]), share, float(top)), float(share.max()), float(share.mean())


def with_caption(image: Image.Image, text: str) -> Image.Image:
    """A picture with a line of text below it, of a size that makes small files."""
    picture = upscale(image, 256)
    picture.thumbnail((640, 640))
    band = max(28, picture.height // 14)
    page = Image.new("RGB", (picture.width, picture.height + band), "#ffffff")
    page.paste(picture)
    font = ImageFont.load_default(round(band * 0.55))
    ImageDraw.Draw(page).text((page.width / 2, picture.height + band / 2), text, "#1b1f27", font, "mm")
    return page


# ---------------------------------------------------------------------------------------------------------------
# HTML


@dataclass(frozen=True)
class Tile:
    """One picture with its title and what is said about it; `note` is more, `alt` is for those who do not see it."""

    title: str
    address: str
    note: str = ""
    alt: str = ""


def label_of(method: str) -> str:
    """A method's name where there is little room."""
    return "None" if method == "none" else method.upper()


def title_of(method: str) -> str:
    """A method's name as a title."""
    return "No guidance" if method == "none" else method.upper()


def sentence(text: str) -> str:
    """A message as people write it: a capital in front, a point behind."""
    text = " ".join(text.split())
    return (text[:1].upper() + text[1:]).rstrip(".") + "." if text else ""


def figure(tile: Tile) -> str:
    note = f"<span>{escape(tile.note)}</span>" if tile.note else ""
    if not tile.address:
        return f"<figure class=tile><div class=hole></div><figcaption><b>{escape(tile.title)}</b>{note}</figcaption></figure>"
    alt = escape(tile.alt or tile.title)
    return (
        f'<figure class=tile><button type=button class=zoom aria-label="Enlarge: {alt}">'
        f'<img src="{escape(tile.address)}" alt="{alt}"></button>'
        f"<figcaption><b>{escape(tile.title)}</b>{note}</figcaption></figure>"
    )


def tiles(row: Sequence[Tile], columns: int | None = None) -> str:
    """Pictures side by side."""
    style = f' style="--columns:{columns or len(row)}"'
    return f"<div class=tiles{style}>{''.join(figure(t) for t in row)}</div>"


def holes(*titles: str, note: str = "") -> str:
    """Tiles without a picture."""
    return tiles([Tile(title, "", note) for title in titles])


def drop_box() -> str:
    """Where a picture is dropped or chosen; the page's script reads its settings, and sends nothing else."""
    return (
        "<label class=drop><input type=file accept='.png,image/png' aria-label='A picture of vsf (PNG)'>"
        "<span>Drop a PNG of vsf here, or choose one</span></label>"
    )


def empty(title: str, text: str) -> str:
    """What stands where nothing was drawn yet."""
    return f"<div class=empty><b>{escape(title)}</b><p>{escape(text)}</p></div>"


def wipe(plain: str, guided: str, alt: str) -> str:
    """Two pictures on top of each other, with a slider that moves their border (by mouse, touch or arrow keys).

    Not gradio's ImageSlider: that one (6.31) hears no key, and gives its pictures no alternative text.
    """
    return (
        '<figure class="tile wipe"><div class=stack>'
        f'<img src="{escape(guided)}" alt="With: {escape(alt)}">'
        f'<img class=over src="{escape(plain)}" alt="Without: {escape(alt)}">'
        "<i class=bar></i></div>"
        '<figcaption><b>Wipe</b><input type=range min=0 max=100 value=50 step=1 aria-label="Wipe between without and with">'
        "</figcaption></figure>"
    )


def status(text: str, kind: str = "", share: float | None = None) -> str:
    """The line that says what is going on; `kind` "busy", "bad" or "", `share` of the work that is done."""
    role = "alert" if kind == "bad" else "status"
    bar = "" if share is None else f'<div class=track><i style="width:{100 * share:.1f}%"></i></div>'
    return f'<div class="status {kind}" role={role}><span>{escape(text)}</span>{bar}</div>'


def links(files: Sequence[tuple[str, str]]) -> str:
    """Downloads: (what it says, address)."""
    found = [f'<a href="{escape(address)}" download>{escape(text)}</a>' for text, address in files]
    return f"<div class=links>{''.join(found)}</div>"


def chips(groups: Mapping[str, Sequence[str]]) -> str:
    """Words to click; the page's script puts them where the toggle says."""
    rows = []
    for name, words in groups.items():
        own = "".join(f'<button type=button class=chip data-word="{escape(w)}">{escape(w)}</button>' for w in words)
        rows.append(f"<div class=chiprow><span>{escape(name)}</span><div>{own}</div></div>")
    toggle = "".join(
        f"<label><input type=radio name=chip-target value={value} {'checked' if value == 'negative' else ''}>{text}</label>"
        for value, text in (("prompt", "Prompt"), ("negative", "Not wanted"))
    )
    return (
        f"<div class=chips><div class=target role=radiogroup aria-label='Words go to'><span>Words go to</span>{toggle}</div>"
        f"{''.join(rows)}</div>"
    )


def grid(
    columns: tuple[str, Sequence[str]],
    rows: tuple[str, Sequence[str]],
    cells: Mapping[tuple[int, int], str],
    what: str,
) -> str:
    """A table of pictures; every one is a button that takes its settings over. `cells` by (row, column)."""
    head = "".join(f"<span class=axis>{escape(columns[0])} {escape(text)}</span>" for text in columns[1])
    body = []
    for r, row in enumerate(rows[1]):
        label = f"{rows[0]} {row}".strip()
        body.append(f'<span class="axis side">{escape(label)}</span>')
        for c, column in enumerate(columns[1]):
            address = cells.get((r, c))
            name = f"{columns[0]} {column}" + (f", {label}" if label else "")
            body.append(
                f'<button type=button class=cell data-cell="{r},{c}" aria-label="Use {escape(name)}" title="Use {escape(name)}">'
                f'<img src="{escape(address)}" alt="{escape(what)}, {escape(name)}"></button>'
                if address
                else "<div class=hole></div>"
            )
    return f'<div class=grid-view style="--columns:{len(columns[1])}"><span></span>{head}{"".join(body)}</div>'


@dataclass(frozen=True)
class GalleryEntry:
    """One entry of the gallery; `pictures` are addresses, none while they are not drawn."""

    key: str
    prompt: str
    negative: str
    note: str = ""
    pictures: Sequence[str] = ()


def cards(title: str, text: str, entries: Sequence[GalleryEntry]) -> str:
    """A group of the gallery."""
    found = []
    for card in entries:
        pictures = "".join(
            f'<img src="{escape(a)}" alt="{what}: {escape(card.prompt)}">'
            for what, a in zip(("Without", "With"), card.pictures, strict=False)
        )
        if not card.pictures and not card.note:
            pictures = "<span class=hole></span><span class=hole></span>"
        words = f"{escape(card.prompt)} <em>{escape(card.negative)}</em>"
        note = f"<small>{escape(card.note)}</small>" if card.note else ""
        pair = f"<span class=pair>{pictures}</span>" if pictures else ""
        found.append(
            f'<button type=button class=card data-card="{escape(card.key)}">{pair}<span class=words>{words}{note}</span></button>'
        )
    return f"<section class=group><h3>{escape(title)}</h3><p>{escape(text)}</p><div class=cards>{''.join(found)}</div></section>"
