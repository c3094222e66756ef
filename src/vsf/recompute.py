"""Gradient checkpointing: a block that the backward pass runs again has to see what it saw at first.

By then the forward pass is over, and what it knew about its negative tokens with it; the backward pass may even run in
another thread. So a model's checkpointing function is exchanged for one that remembers.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterable
from types import FrameType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .current import publish, running

__all__ = ["Checkpointing", "in_backward", "refuse_reentrant", "refuse_unknown", "trained"]

#: Where modules keep their checkpointing function: those of diffusers, and torch's `checkpoint_wrapper` (FSDP).
_NAMES = ("_gradient_checkpointing_func", "checkpoint_fn")

#: Ids of the guided models that ran with gradients on.
trained: set[int] = set()


def in_backward() -> bool:
    """Whether this thread is in a backward pass."""
    return torch._C._current_graph_task_id() != -1


class Checkpointing:
    """The checkpointing functions of a model, for the length of an installation."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._put = model, dict[tuple[int, str], tuple[nn.Module, str, _Remembering]]()

    def put(self) -> None:
        """Exchange those that are there now."""
        for module in self._model.modules():
            for name in _NAMES:
                function = module.__dict__.get(name)
                if callable(function) and not isinstance(function, _Remembering):
                    ours = module.__dict__[name] = _Remembering(id(self._model), function)
                    self._put[id(module), name] = module, name, ours

    def remove(self) -> None:
        for module, name, ours in self._put.values():
            if module.__dict__.get(name) is ours:
                module.__dict__[name] = ours.original
        self._put.clear()


class _Remembering:
    """A checkpointing function, called with what is run now and again later, and its arguments."""

    def __init__(self, key: int, original: Callable[..., Any]) -> None:
        self.key, self.original = key, original

    # Dynamo cannot trace a checkpoint in which something is noted, as guided attention does: the blocks run uncompiled.
    @torch._disable_dynamo
    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.original(_Block(self.key, function), *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.original, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return functools.partial, (self.original,)


class _Block:
    """What is checkpointed; when it is called again, what it saw at first is there again."""

    def __init__(self, key: int, block: Callable[..., Any]) -> None:
        self._key, self._block = key, block
        pass_ = running(key)
        self._plan = None if pass_ is None else pass_.plan
        self._frame = None if pass_ is None else copy.copy(pass_.frame)
        self._grad, self._first = torch.is_grad_enabled(), True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._first:
            self._first = False
            return self._at_first(args, kwargs)
        if self._plan is not None and self._frame is not None:
            return self._plan.again(copy.copy(self._frame), self._block, args, kwargs)
        # It was not guided at first, so it is not now.
        before = publish(self._key, SimpleNamespace(plan=None, frame=None))
        try:
            return self._block(*args, **kwargs)
        finally:
            publish(self._key, before)

    def _at_first(self, args: Any, kwargs: Any) -> Any:
        pass_ = running(self._key)
        if pass_ is None or pass_.frame is None or self._frame is None:
            return self._block(*args, **kwargs)
        before, pass_.remembered = pass_.remembered, True
        try:
            out = self._block(*args, **kwargs)
        finally:
            pass_.remembered = before
        if self._grad and not torch.is_grad_enabled():
            kept = pass_.frame.kept
            if kept is not self._frame.kept or any(x.requires_grad for x in _tensors(kept)):
                refuse_reentrant(pass_.plan.model, "its negative's tokens go from block to block beside the arguments")
        return out


def _tensors(kept: Any) -> Iterable[Tensor]:
    return (x for x in (kept if isinstance(kept, tuple) else (kept,)) if isinstance(x, Tensor))


def refuse_reentrant(model: nn.Module, why: str) -> None:
    raise ValueError(
        f"{type(model).__name__} is guided under gradient checkpointing with use_reentrant=True, which would give wrong "
        f"gradients: {why}; use use_reentrant=False, as model.enable_gradient_checkpointing() does"
    )


def refuse_unknown(key: int) -> None:
    """Refuse to run a block of a guided model again where nothing says what it saw at first."""
    if key in trained and in_backward():
        raise RuntimeError(
            "a block of a guided model is run again in the backward pass by a checkpointing that guidance does not know, "
            "so its gradients would be wrong; use model.enable_gradient_checkpointing(), before the forward pass"
        )


def under_reentrant() -> bool:
    """Whether this runs inside of a checkpoint with use_reentrant=True, for the first time."""
    if torch.is_grad_enabled():
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "forward" and frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
        frame = frame.f_back
    return False
