"""The published call signatures, as thin subclasses of the stock pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import StableDiffusion3Pipeline

from .guidance import VSF
from .guide import negative_guidance

__all__ = ["VSFStableDiffusion3Pipeline"]


class _Published:
    """`pipe(prompt=..., negative_prompt=..., scale=..., offset=...)` around the stock `__call__`.

    `layout` is "upstream" here unless set otherwise, so that published scales keep their meaning.
    """

    def __call__(
        self,
        *args: Any,
        negative_prompt: str | Sequence[str | None] | None = None,
        scale: float | tuple[float, ...] = 3.5,
        offset: float | tuple[float, ...] = 0.1,
        layout: str = "upstream",
        **kwargs: Any,
    ) -> Any:
        call = super().__call__  # pyright: ignore
        if negative_prompt is None:
            return call(*args, **kwargs)
        method = VSF(scale, offset, layout)  # pyright: ignore
        with negative_guidance(self, method, negative_prompt):
            return call(*args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save as the stock pipeline, which every diffusers installation can load."""
        stock = type(self).__mro__[2]
        return stock(**self.components).save_pretrained(*args, **kwargs)  # pyright: ignore


class VSFStableDiffusion3Pipeline(_Published, StableDiffusion3Pipeline):
    """`StableDiffusion3Pipeline` whose negative prompt works without classifier-free guidance."""
