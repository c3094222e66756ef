"""Allegro (video)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .base import Negative
from .pixart import PixArt


class Allegro(PixArt):
    """Cross attention over the text in every `attn2`, as in PixArt, whose text encoding it has, too.

    Checked in diffusers 0.42.1: the pipeline gives the text as `[B, 1, P, W]`, which the model projects token by token and
    makes `[B, P, W]` of; only the attention of the video to itself is turned by positions.
    """

    name = "Allegro"
    models = ("AllegroTransformer3DModel",)

    def text(self, call: Mapping[str, Any]) -> Any:
        text = call.get(self.text_argument)
        return text.flatten(1, -2) if isinstance(text, Tensor) else text

    def extend(self, call: dict[str, Any], negative: Negative) -> None:
        call[self.text_argument] = self.text(call)
        super().extend(call, negative)
