"""Classifier-free guidance through the pipeline's own implementation, for comparison."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from .guidance import CFG
from .seam import current_plan, plans

__all__ = ["pipeline_cfg"]

_lock = threading.RLock()
_users: dict[int, int] = {}


@functools.lru_cache(maxsize=256)
def _class(cls: type) -> type:
    """`cls`, whose call takes scale and negative prompt from the context of the calling thread."""
    stock = cls.__call__
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind_partial(self, *args, **kwargs)
        given = dict(current_plan(id(self)) or {})
        if given:
            given["negative_prompt"] = _like(bound.arguments.get("prompt"), given["negative_prompt"])
        bound.arguments.update(given)
        return stock(*bound.args, **bound.kwargs)

    return type(
        cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    )


def _like(prompt: Any, negative: Any) -> Any:
    """The negative for all prompts in the form of the prompts: some pipelines want both as text or both as lists."""
    one = negative if isinstance(negative, str) else negative[0] if len(negative) == 1 else None
    if one is None:
        return negative
    return [one] * len(prompt) if isinstance(prompt, list) else one


@contextmanager
def pipeline_cfg(pipe: Any, guidance: CFG, negative_prompt: str | Sequence[str | None] | None) -> Iterator[None]:
    """Run every call of `pipe` in this thread with its own classifier-free guidance.

    Raises:
        ValueError: not a pipeline, no negative prompt as text, or a pipeline without classifier-free guidance.
    """
    if isinstance(pipe, nn.Module):
        raise ValueError("CFG runs the pipeline's own classifier-free guidance; give the pipeline, not the bare model")
    if negative_prompt is None:
        raise ValueError("CFG needs negative_prompt")
    stock = type(pipe)
    names = inspect.signature(stock.__call__).parameters
    scale = "true_cfg_scale" if "true_cfg_scale" in names else "guidance_scale"
    if not {scale, "negative_prompt"} <= set(names):
        raise ValueError(f"{stock.__name__} has no classifier-free guidance with a negative prompt of its own")
    negative = negative_prompt if isinstance(negative_prompt, str) else [n or "" for n in negative_prompt]
    stack, given = plans(id(pipe)), {scale: guidance.scale, "negative_prompt": negative}
    with _lock:
        _users[id(pipe)] = _users.get(id(pipe), 0) + 1
        if _users[id(pipe)] == 1:
            pipe.__class__ = _class(stock)
    stack.append(given)
    try:
        yield
    finally:
        stack.remove(given)
        with _lock:
            _users[id(pipe)] -= 1
            if not _users[id(pipe)]:
                del _users[id(pipe)]
                pipe.__class__ = type(pipe).__mro__[1]
