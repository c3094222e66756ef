"""Classifier-free guidance through the pipeline's own implementation, for comparison."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from .current import Entry, current_plan, enter, leave

__all__ = ["pipeline_cfg"]

_lock = threading.RLock()
_users: dict[int, list[Entry]] = {}


@dataclass
class _Block:
    """One open block: what calls of the pipeline are given, and how many there were."""

    scale_name: str
    scale: float
    negative: str | list[str]
    calls: int = 0


@functools.lru_cache(maxsize=256)
def _class(cls: type) -> type:
    """`cls`, whose call takes scale and negative prompt from the block that the caller is in."""
    stock = cls.__call__
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind_partial(self, *args, **kwargs)
        block: _Block | None = current_plan(id(self))
        if block is not None:
            block.calls += 1
            bound.arguments[block.scale_name] = block.scale
            bound.arguments["negative_prompt"] = _like(bound.arguments.get("prompt"), block.negative)
        return stock(*bound.args, **bound.kwargs)

    def stock_copy(self: Any, protocol: Any) -> Any:
        """What is copied or saved of the pipeline is of its own class."""
        twin = object.__new__(cls)
        twin.__dict__.update(vars(self))
        return twin.__reduce_ex__(protocol)

    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), {"__call__": call, "__reduce_ex__": stock_copy, "_stock_class": cls, **names})


def _like(prompt: Any, negative: Any) -> Any:
    """The negative for all prompts in the form of the prompts: some pipelines want both as text or both as lists."""
    one = negative if isinstance(negative, str) else negative[0] if len(negative) == 1 else None
    if one is None:
        return negative
    return [one] * len(prompt) if isinstance(prompt, list) else one


@contextmanager
def pipeline_cfg(pipe: Any, scale: float, negative_prompt: str | Sequence[str | None] | None) -> Iterator[_Block]:
    """Run every call of `pipe` in this context with its own classifier-free guidance; gives the count of them.

    Raises:
        ValueError: not a pipeline, no negative prompt as text, or a pipeline without classifier-free guidance.
    """
    if isinstance(pipe, nn.Module):
        raise ValueError("CFG runs the pipeline's own classifier-free guidance; give the pipeline, not the bare model")
    if negative_prompt is None:
        raise ValueError("CFG needs negative_prompt")
    stock = getattr(type(pipe), "_stock_class", type(pipe))  # another block may be open
    names = inspect.signature(stock.__call__).parameters
    name = "true_cfg_scale" if "true_cfg_scale" in names else "guidance_scale"
    if not {name, "negative_prompt"} <= set(names):
        raise ValueError(f"{stock.__name__} has no classifier-free guidance with a negative prompt of its own")
    negative = negative_prompt if isinstance(negative_prompt, str) else [n or "" for n in negative_prompt]
    block = _Block(name, scale, negative)
    entry = Entry(id(pipe), block)
    try:
        with _lock:
            _users.setdefault(id(pipe), []).append(entry)
            if len(_users[id(pipe)]) == 1:
                pipe.__class__ = _class(stock)
        enter(entry)
        yield block
    finally:
        leave(entry)
        with _lock:
            users = _users.get(id(pipe), [])
            if entry in users:
                users.remove(entry)
                if not users:
                    del _users[id(pipe)]
                    pipe.__class__ = stock
