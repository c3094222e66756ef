"""Encoding a negative prompt with the pipeline's own encoders, which must not cut it unnoticed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arch import Family
from .arch.base import too_long
from .guidance import Guidance
from .prompt import parse_negative

__all__ = ["encode_negative", "unweighted"]


def encode_negative(
    pipe: Any, family: Family, method: Guidance, text: str, max_sequence_length: int | None
) -> tuple[Tensor | None, Tensor | None]:
    """The tokens `[n, W]` of a negative prompt, each of its items encoded on its own, and their weights `[n]`.

    None: no tokens; all weights are 1.

    Raises:
        PromptError: the text does not follow the grammar.
        ValueError: it has weights, which the method cannot take; or an item is longer than every text encoder of the
            attention's text stream takes.
    """
    items = parse_negative(text)
    if method.negative == "branch":
        unweighted(method, text)
    parts: list[Tensor] = []
    factors: list[float] = []
    for item in items:
        if item.weight > 0:
            parts.append(_encode(pipe, family, method.padded, item.text, max_sequence_length).detach())
            factors += [item.weight] * len(parts[-1])
    if not factors:
        return None, None
    weight = None if all(f == 1 for f in factors) else torch.tensor(factors, dtype=torch.float64)
    return parts[0] if len(parts) == 1 else torch.cat(parts), weight


def unweighted(method: Guidance, text: str) -> None:
    """Refuse weights for a method that has none."""
    items = parse_negative(text)
    if len(items) > 1 or any(item.weight != 1 for item in items):
        raise ValueError(
            f"the negative prompt {text!r} has weights, which {type(method).__name__} cannot take: its negative branch "
            "is one padded prompt; use VSF, or write no weights"
        )


def _encode(pipe: Any, family: Family, padded: bool, text: str, limit: int | None) -> Tensor:
    twin, read = _watched(pipe, family)
    embeds = family.encode(twin, text, padded, limit)
    if read and all(r.tokens > r.limit for r in read.values()):
        raise too_long(text, *max(read.values(), key=lambda r: r.limit), type(pipe).__name__)
    # Some pipelines (Qwen-Image) cut the encoder's output instead of the text.
    if limit is not None and len(embeds) == limit and all(r.limit > limit for r in read.values()):
        tokens = len(family.encode(twin, text, False, limit))
        tokens = len(family.encode(twin, text, False, limit + 1)) if tokens == limit else 0
        if tokens > limit:
            raise too_long(text, tokens, limit, type(pipe).__name__)
    return embeds


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
    return twin, read


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
