"""Encoding a negative prompt with the pipeline's own encoders, which must not cut it unnoticed."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arch import Family
from .arch.base import too_long
from .guidance import Guidance
from .prompt import Item, parse_negative

__all__ = ["Encoded", "encode_negative", "unweighted"]


class Encoded(NamedTuple):
    """A negative prompt: its tokens `[n, W]` (None: there are none), and of each its weight `[n]` and its window, the
    fractions of all steps between which it acts (None: all weights are 1, all windows are the whole run)."""

    tokens: Tensor | None
    weight: Tensor | None
    windows: tuple[tuple[float, float], ...] | None


def encode_negative(
    pipe: Any, family: Family, method: Guidance, text: str, max_sequence_length: int | None
) -> Encoded:
    """A negative prompt, each of its items encoded on its own.

    Raises:
        PromptError: the text does not follow the grammar.
        ValueError: it has weights or times, which the method cannot take; or an item is longer than every text encoder of
            the attention's text stream takes; or the pipeline has no text encoder (any more).
    """
    items = parse_negative(text)
    if method.negative != "tokens":
        unweighted(method, text)
    parts: list[Tensor] = []
    of: list[Item] = []
    for item in items:
        if item.weight > 0:
            parts.append(_encode(pipe, family, method.negative == "padded", item.text, max_sequence_length).detach())
            of += [item] * len(parts[-1])
    if not of:
        return Encoded(None, None, None)
    weight = None if all(i.weight == 1 for i in of) else torch.tensor([i.weight for i in of], dtype=torch.float64)
    windows = tuple((i.start, i.stop) for i in of) if any(i.timed for i in of) else None
    return Encoded(parts[0] if len(parts) == 1 else torch.cat(parts), weight, windows)


def unweighted(method: Guidance, text: str) -> None:
    """Refuse weights, and times of single items, for a method that has none."""
    items = parse_negative(text)
    if any(item.timed for item in items):
        where = "" if method.negative == "pipeline" else ", or start and stop for the whole negative prompt"
        raise ValueError(
            f"the negative prompt {text!r} has times of its own for an item, which {type(method).__name__} cannot take: its "
            f"negative branch is one padded prompt; use VSF{where}"
        )
    if len(items) > 1 or any(item.weight != 1 for item in items):
        raise ValueError(
            f"the negative prompt {text!r} has weights, which {type(method).__name__} cannot take: its negative branch "
            "is one padded prompt; use VSF, or write no weights"
        )


def _encode(pipe: Any, family: Family, padded: bool, text: str, limit: int | None) -> Tensor:
    twin, read = _watched(pipe, family)
    try:
        embeds = family.encode(twin, text, padded, limit)
    except (TypeError, AttributeError) as error:
        missing = _missing(pipe)
        if not missing:
            raise
        raise ValueError(
            f"{type(pipe).__name__} has no {', '.join(missing)}, so it cannot encode the negative prompt; give "
            "negative_prompt_embeds, encoded while it had (as the prompt's are), or load what is missing"
        ) from error
    if not isinstance(embeds, Tensor):
        raise ValueError(
            f"{type(pipe).__name__} encodes a prompt as several pieces around its pictures ({type(embeds).__name__}), where a "
            "negative prompt has no place; it cannot be guided by a text"
        )
    if read and all(r.tokens > r.limit for r in read.values()):
        raise too_long(text, *max(read.values(), key=lambda r: r.limit), type(pipe).__name__)
    # Some pipelines (Qwen-Image) cut the encoder's output instead of the text.
    if limit is not None and len(embeds) == limit and all(r.limit > limit for r in read.values()):
        tokens = len(family.encode(twin, text, False, limit))
        tokens = len(family.encode(twin, text, False, limit + 1)) if tokens == limit else 0
        if tokens > limit:
            raise too_long(text, tokens, limit, type(pipe).__name__)
    return embeds


def _missing(pipe: Any) -> list[str]:
    """The text encoders and tokenizers that the pipeline has a place for, but which were never loaded or were freed."""
    names = sorted(n for n in getattr(pipe, "components", ()) if n.startswith(("text_encoder", "tokenizer")))
    return [name for name in names if not callable(getattr(pipe, name, None))]


class _Read(NamedTuple):
    """How many tokens a text is, and how many of them a tokenizer was asked for at most."""

    tokens: int
    limit: int


def _watched(pipe: Any, family: Family) -> tuple[Any, dict[str, _Read]]:
    """A twin of the pipeline (everything in it is shared) that notes by tokenizer what it was asked to cut.

    A twin, since another thread may be drawing with the pipeline itself.
    """
    twin, read = object.__new__(type(pipe)), dict[str, _Read]()
    vars(twin).update(vars(pipe))
    names = [name for name, part in vars(pipe).items() if name.startswith("tokenizer") and callable(part)]
    for name in [name for name in names if name not in family.pooled] or names:
        vars(twin)[name] = _noting(vars(pipe)[name], name, read)
    if not hasattr(pipe, "encode_prompt"):
        block = _text_block(pipe)
        vars(twin)["encode_prompt"] = functools.partial(_encode_prompt, twin, block)
        vars(twin)["system_message"] = getattr(block, "DEFAULT_SYSTEM_MESSAGE", None)
    return twin, read


def _text_block(pipe: Any) -> Any:
    """The block of a modular pipeline that makes embeddings out of a prompt and of nothing else.

    Raises:
        ValueError: it has none.
    """

    def leaves(block: Any) -> Iterator[Any]:
        inner = getattr(block, "sub_blocks", None) or {}
        for sub in inner.values():
            yield from leaves(sub)
        if not inner:
            yield block

    for block in leaves(getattr(pipe, "blocks", None)):
        names: tuple[Any, Any] = getattr(block, "input_names", ()), getattr(block, "intermediate_output_names", ())
        if "prompt" in names[0] and "prompt_embeds" in names[1] and set(block.required_inputs) <= {"prompt"}:
            return block
    raise ValueError(
        f"{type(pipe).__name__} has no step that encodes a prompt alone; give negative_prompt_embeds instead of a text"
    )


def _encode_prompt(
    twin: Any, block: Any, prompt: str, *_: Any, max_sequence_length: int | None = None, **__: Any
) -> tuple[Any, Any]:
    """A stock pipeline's `encode_prompt` with the text block of a modular one: embeddings and mask (or None)."""
    from diffusers.modular_pipelines.modular_pipeline import PipelineState

    state = PipelineState()
    state.set("prompt", prompt)
    if max_sequence_length is not None:
        state.set("max_sequence_length", max_sequence_length)
    block(twin, state)
    mask = state.get("prompt_embeds_mask")
    return state.get("prompt_embeds"), state.get("prompt_attention_mask") if mask is None else mask


def _noting(tokenizer: Any, name: str, read: dict[str, _Read]) -> Any:
    cls: Any = type(tokenizer)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = cls.__call__(self, *args, **kwargs)
        if kwargs.get("truncation"):
            whole = {"truncation": False, "padding": False, "max_length": None, "return_tensors": None}
            tokens = max(_lengths(cls.__call__(self, *args, **{**kwargs, **whole})["input_ids"]))
            limit = kwargs.get("max_length") or self.model_max_length
            read[name] = max(read.get(name, _Read(0, limit)), _Read(tokens, limit))
        return out

    noting = object.__new__(type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__}))
    object.__setattr__(noting, "__dict__", vars(tokenizer))
    return noting


def _lengths(ids: Any) -> list[int]:
    return [len(row) for row in ids] if len(ids) and not isinstance(ids[0], int) else [len(ids)]
