"""Who guides what: a block belongs to the task that entered it, a forward pass to the thread that runs it.

A context variable says which blocks are open here. So asyncio tasks keep theirs apart, and a thread follows where it
inherits the context (`asyncio.to_thread`, `contextvars.copy_context().run`). Dynamo breaks a graph at a context
variable, but traces a `threading.local`: the hook in front of the model, which stays out of the graph, reads the former
and puts the pass that begins into the latter, where the attention inside the graph finds it.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any

__all__ = ["Entry", "current_plan", "enter", "leave", "plans", "publish", "running"]


class Entry:
    """A block on what has the id `key`. Contexts copy references, so an entry that was left is left in all of them."""

    __slots__ = ("key", "plan")

    def __init__(self, key: int, plan: Any) -> None:
        self.key, self.plan = key, plan


_open: ContextVar[tuple[Entry, ...]] = ContextVar("vsf_open_blocks", default=())


def enter(entry: Entry) -> None:
    """From here on the block counts, in this context and in those copied from it."""
    _open.set((*_open.get(), entry))


def leave(entry: Entry) -> None:
    """The block counts no more, wherever this is called (a collected generator is closed in any thread)."""
    entry.plan = None
    _open.set(tuple(e for e in _open.get() if e.plan is not None))


def plans(key: int) -> list[Any]:
    """The plans of the blocks that are open in this context on what has this id, the innermost last."""
    found = [(e.key, e.plan) for e in _open.get()]  # read once: another thread may be leaving
    return [plan for k, plan in found if k == key and plan is not None]


def current_plan(key: int) -> Any | None:
    """The innermost of them."""
    stack = plans(key)
    return stack[-1] if stack else None


class _Local(threading.local):
    """Per thread: model id -> the forward pass in progress."""

    def __init__(self) -> None:
        self.passes: dict[int, Any] = {}


_local = _Local()


def running(key: int) -> Any | None:
    """The guided forward pass that this thread runs of the model with this id."""
    return _local.passes.get(key)


def publish(key: int, pass_: Any | None) -> Any | None:
    """Make it the one that runs; returns what was there."""
    before = _local.passes.pop(key, None)
    if pass_ is not None:
        _local.passes[key] = pass_
    return before
