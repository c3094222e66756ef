"""The published call signatures, as thin subclasses of the stock pipelines: no pipeline code is copied."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers import (
    FluxPipeline,
    QwenImagePipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
    WanPipeline,
)
from torch import Tensor

from .guidance import VSF
from .guide import negative_guidance
from .negatives import says_something
from .prompt import Item, join_negatives, split_prompt

__all__ = [
    "VSFFluxPipeline",
    "VSFQwenImagePipeline",
    "VSFStableDiffusion3Img2ImgPipeline",
    "VSFStableDiffusion3InpaintPipeline",
    "VSFStableDiffusion3Pipeline",
    "VSFWanPipeline",
]

PerSample = float | tuple[float, ...]
_USED = ("negative_prompt", "negative_prompt_embeds")
_PROMPTS = ("prompt", "prompt_2", "prompt_3")


class _Published:
    """`pipe(prompt=..., negative_prompt=..., scale=..., offset=...)` around the stock `__call__`.

    Everything the stock pipeline takes, positionally or by name, and on top of it the settings of `VSF`. `layout` is
    "upstream" unless set otherwise, so that published scales keep their meaning. Negatives may have weights
    (`"wheels:2, chain"`) and may stand inside the prompt (`"a bicycle (wheels:-1.2)"`); see `docs/prompts.md`.

    Args:
        negative_prompt: one for all, or one per prompt; None or "" = the stock pipeline.
        negative_prompt_embeds: instead of text, `[n, d]`, or a list of such: real tokens only.
        scale, offset, layout, normalize, start, stop, blocks: see `VSF`.

    Raises:
        ValueError: classifier-free guidance is on as well; or an argument for the negative prompt is given that VSF
            does not use (`negative_prompt_2`, `negative_pooled_prompt_embeds`, ...).
    """

    #: What keeps the stock pipeline from running classifier-free guidance, where the caller does not say.
    _defaults: ClassVar[Mapping[str, Any]] = {}

    def __call__(
        self,
        *args: Any,
        scale: PerSample = 3.5,
        offset: PerSample = 0.1,
        layout: str = "upstream",
        normalize: PerSample | None = None,
        start: PerSample = 0.0,
        stop: PerSample = 1.0,
        blocks: tuple[int, ...] | None = None,
        **kwargs: Any,
    ) -> Any:
        stock = self._stock().__call__
        # By name, since the negative prompt has a place of its own among the stock pipeline's positional arguments.
        call = dict(inspect.signature(stock).bind_partial(self, *args, **kwargs).arguments)
        del call["self"]
        call = {**self._defaults, **call}
        method = VSF(scale, offset, layout, normalize, start=start, stop=stop, blocks=blocks)  # pyright: ignore[reportArgumentType]
        if isinstance(call.get("prompt"), (list, tuple)) and not call["prompt"]:
            raise ValueError("prompt is an empty list; give a string, or a list of at least one")
        negative, embeds = (call.pop(name, None) for name in _USED)
        unused = [n for n, v in call.items() if n.startswith("negative_") and v is not None]
        if unused:
            raise ValueError(f"{type(self).__name__} does not use {', '.join(unused)}; allowed: {' or '.join(_USED)}")
        negative = _take_inline(call, negative)
        if embeds is None and not says_something(negative):
            return stock(self, **call)
        if isinstance(embeds, Tensor) and embeds.ndim == 3:
            embeds = list(embeds)
        with negative_guidance(
            self,
            method,
            negative,
            negative_prompt_embeds=embeds,
            max_sequence_length=call.get("max_sequence_length"),
        ):
            return stock(self, **call)

    @classmethod
    def _stock(cls) -> Any:
        return next(c for c in cls.__mro__ if not issubclass(c, _Published))

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save as the stock pipeline, which every diffusers installation can load."""
        stock = self._stock()
        twin = object.__new__(stock)
        twin.__dict__ = self.__dict__
        return twin.save_pretrained(*args, **kwargs)


def _take_inline(call: dict[str, Any], negative: Any) -> Any:
    """Move the inline negatives of the prompts in `call` behind `negative`; one per prompt where they differ."""
    found: list[list[Item]] = []
    for name in _PROMPTS:
        prompts = call.get(name)
        if not isinstance(prompts, str) and not (
            isinstance(prompts, list) and all(isinstance(p, str) for p in prompts)
        ):
            continue
        pairs = [split_prompt(p) for p in ([prompts] if isinstance(prompts, str) else prompts)]
        call[name] = pairs[0][0] if isinstance(prompts, str) else [p for p, _ in pairs]
        found = found or [[] for _ in pairs]
        for own, (_, items) in zip(found, pairs, strict=False):  # the pipeline checks the lengths
            own += [item for item in items if item not in own]
    if not any(found):
        return negative
    given: Sequence[str | None] = negative if isinstance(negative, (list, tuple)) else [negative]
    if len(given) not in (1, len(found)):
        raise ValueError(
            f"{len(given)} negative prompts for {len(found)} prompts; give one for all, or one per prompt"
        )
    given = list(given) * (len(found) // len(given))
    return [join_negatives(n, items) for n, items in zip(given, found, strict=True)]


class VSFStableDiffusion3Pipeline(_Published, StableDiffusion3Pipeline):
    """`StableDiffusion3Pipeline` whose negative prompt works without classifier-free guidance."""

    _defaults = {"guidance_scale": 0.0}


class VSFStableDiffusion3Img2ImgPipeline(_Published, StableDiffusion3Img2ImgPipeline):
    """`StableDiffusion3Img2ImgPipeline` whose negative prompt works without classifier-free guidance."""

    _defaults = {"guidance_scale": 0.0}


class VSFStableDiffusion3InpaintPipeline(_Published, StableDiffusion3InpaintPipeline):
    """`StableDiffusion3InpaintPipeline` whose negative prompt works without classifier-free guidance."""

    _defaults = {"guidance_scale": 0.0}


class VSFFluxPipeline(_Published, FluxPipeline):
    """`FluxPipeline` whose negative prompt works without classifier-free guidance.

    `guidance_scale` is the model's embedded guidance (Flux-dev), not classifier-free guidance, and is left alone.
    """

    _defaults = {"true_cfg_scale": 1.0}


class VSFWanPipeline(_Published, WanPipeline):
    """`WanPipeline` whose negative prompt works without classifier-free guidance (both layouts are the same here)."""

    _defaults = {"guidance_scale": 1.0}


class VSFQwenImagePipeline(_Published, QwenImagePipeline):
    """`QwenImagePipeline` whose negative prompt works without classifier-free guidance."""

    _defaults = {"true_cfg_scale": 1.0}
