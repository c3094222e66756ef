"""The tab of a video model: without beside with."""

from __future__ import annotations

import functools
from typing import Any

from ..images import save_png
from ..video import can_write, save_video, side_by_side
from . import views
from .desk import Updates, html
from .picture_tab import DrawTab, Place
from .sessions import Session
from .views import Tile
from .work import Outcome

__all__ = ["VideoTab"]


class VideoTab(DrawTab):
    def lay_out(self) -> None:
        about = "Say what should be in it, and what should not, and press Draw."
        self.video = html(views.empty("No video yet", about), elem_id="video")
        self.files = html(elem_id="files")
        self._lay_out_again()

    @property
    def shown(self) -> list[Any]:
        return [self.video, *super().shown]

    def show(self, session: Session, found: Outcome, place: Place = (0, None, None)) -> Updates:
        asked, drawn, fps, i = found.request, found.drawn, self.desk.model.fps, place[0]

        def file(name: str, frames: Any, *settings: Any) -> str:
            write = functools.partial(save_video, frames, one_palette=True, fps=fps)
            return session.file(
                "picture", name, lambda path: write(path, settings=found.settings if settings else None)
            )

        shown: list[Tile] = []
        for name, frames in (("Without", drawn.plain[i]), ("With", drawn.guided[i])):
            address = file(f"{name.lower()}.webp", [views.display(frame) for frame in frames])
            shown.append(Tile(name, address, f"{len(frames)} frames", f"{name}: {asked.prompt}"))
        files = [
            (f"{what} ({suffix[1:].upper()})", file(f"vsf-{asked.seed}{suffix}", frames, True))
            for what, frames in (
                ("Video", drawn.guided[i]),
                ("Side by side", side_by_side(drawn.plain[i], drawn.guided[i])),
            )
            for suffix in (".mp4", ".gif", ".webp")
            if suffix == ".webp" or can_write(suffix)
        ]
        first = session.file("picture", "first-frame.png", lambda p: save_png(drawn.guided[i][0], p, found.settings))
        files.append(("First frame (PNG with the settings)", first))
        return {self.video: views.tiles(shown), self.files: views.links(files), **self._again(found)}
