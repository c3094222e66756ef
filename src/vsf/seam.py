"""Putting our attention under a model's own attention processors, and taking it away without a trace.

Each guided attention module gets a copy of its own processor. The copy's class is a subclass whose `__call__` is the
very same code object with one global name re-bound: the attention function. Query-key norms, rotary embeddings, fused
projections, LoRA, IP-adapters and quantised layers therefore stay the model's own code, and nothing is retyped.
"""

from __future__ import annotations

import copy
import functools
import threading
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Install", "current_plan", "plans"]

#: (frame-aware attention) site number, q, k, v, mask, scale -> output [B, H, S, D], or None to leave the call alone.
Attention = Callable[[Any, int, Tensor, Tensor, Tensor, "Tensor | None", "float | None"], "Tensor | None"]


class _Local(threading.local):
    """Per thread: model id -> the stack of plans entered in this thread."""

    def __init__(self) -> None:
        self.plans: dict[int, list[Any]] = {}


# A threading.local rather than a ContextVar: Dynamo traces the one and breaks the graph on the other.
_local = _Local()


def plans(key: int) -> list[Any]:
    """This thread's stack of plans for the model with this id."""
    return _local.plans.setdefault(key, [])


def current_plan(key: int) -> Any | None:
    """This thread's innermost plan for the model with this id."""
    stack = _local.plans.get(key)
    return stack[-1] if stack else None


def _run(key: int, site: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor | None:
    plan = current_plan(key)
    return None if plan is None else plan.attention(site, q, k, v, mask, scale)


def _torch_functional(key: int, site: int) -> types.ModuleType:
    """`torch.nn.functional` with our attention in the place of its own."""

    def scaled_dot_product_attention(  # noqa: PLR0913
        query: Tensor,
        key_: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        out = None if is_causal else _run(key, site, query, key_, value, attn_mask, scale)
        if out is not None:
            return out
        return F.scaled_dot_product_attention(
            query, key_, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    def by_keyword(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return scaled_dot_product_attention(query, key, value, *args, **kwargs)

    proxy = types.ModuleType("functional")
    proxy.__dict__.update({k: v for k, v in F.__dict__.items() if not k.startswith("__")})
    proxy.__dict__["scaled_dot_product_attention"] = by_keyword
    return proxy


def _dispatch(original: Callable[..., Tensor], key: int, site: int) -> Callable[..., Tensor]:
    """diffusers' `dispatch_attention_fn` (`[B, S, H, D]`) with our attention in front of it."""

    def dispatch_attention_fn(
        query: Tensor,
        key_: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *args: Any,
        scale: float | None = None,
        **kwargs: Any,
    ) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (query, key_, value))
        out = _run(key, site, q, k, v, attn_mask, scale)
        if out is not None:
            return out.transpose(1, 2)
        return original(query, key_, value, attn_mask, *args, scale=scale, **kwargs)

    def by_keyword(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return dispatch_attention_fn(query, key, value, *args, **kwargs)

    return by_keyword


@functools.lru_cache(maxsize=4096)
def _guided_class(cls: type, key: int, site: int) -> type:
    """`cls` with the attention function of its `__call__` re-bound. Cached, so that compiled graphs stay valid."""
    call = cls.__call__
    while hasattr(call, "__wrapped__"):
        call = call.__wrapped__
    scope = dict(call.__globals__)
    # Dynamo would resolve globals through the module of this name instead of through this dict.
    scope.pop("__name__", None)
    names = call.__code__.co_names
    if "scaled_dot_product_attention" in names and scope.get("F") is F:
        scope["F"] = _torch_functional(key, site)
    elif "dispatch_attention_fn" in names:
        scope["dispatch_attention_fn"] = _dispatch(scope["dispatch_attention_fn"], key, site)
    else:
        raise TypeError(
            f"the attention processor {cls.__name__} calls neither F.scaled_dot_product_attention nor "
            "dispatch_attention_fn, so it cannot be guided; use the model's default attention processor"
        )
    guided = types.FunctionType(call.__code__, scope, call.__name__, call.__defaults__, call.__closure__)
    guided.__kwdefaults__ = call.__kwdefaults__
    return type(f"Guided{cls.__name__}", (cls,), {"__call__": guided, "__module__": cls.__module__})


def _set_processor(attention: nn.Module, processor: Any) -> None:
    # Some processors (IP-adapter) are modules and live in _modules; setattr refuses to exchange the two kinds.
    attention.__dict__.pop("processor", None)
    attention._modules.pop("processor", None)
    attention.processor = processor


class Install:
    """Processors and the input hook of one model, shared by all contexts that guide it at a time."""

    _lock = threading.RLock()
    _live: dict[int, Install] = {}

    def __init__(self, model: nn.Module, sites: list[nn.Module], hook: Callable[..., Any]) -> None:
        self.model, self.users = model, 0
        self.saved: list[tuple[nn.Module, Any]] = []
        guided: list[Any] = []
        for number, attention in enumerate(sites):
            original = attention.processor
            twin = copy.copy(original)  # keeps _attention_backend, _parallel_config and IP-adapter weights
            twin.__class__ = _guided_class(type(original), id(model), number)
            self.saved.append((attention, original))
            guided.append(twin)
        for (attention, _), twin in zip(self.saved, guided, strict=True):
            _set_processor(attention, twin)
        self.handle = model.register_forward_pre_hook(hook, with_kwargs=True)

    def remove(self) -> None:
        self.handle.remove()
        for attention, original in self.saved:
            _set_processor(attention, original)

    @classmethod
    def enter(cls, model: nn.Module, sites: list[nn.Module], hook: Callable[..., Any]) -> None:
        """Install on `model`, or join the installation that is there."""
        with cls._lock:
            live = cls._live.get(id(model))
            if live is None:
                live = cls._live[id(model)] = cls(model, sites, hook)
            live.users += 1

    @classmethod
    def leave(cls, model: nn.Module) -> None:
        """Leave; the last user removes everything."""
        with cls._lock:
            live = cls._live[id(model)]
            live.users -= 1
            if live.users == 0:
                del cls._live[id(model)]
                live.remove()


def is_compiling() -> bool:
    """Whether the code is being traced by `torch.compile` (bookkeeping is left out of graphs)."""
    return torch.compiler.is_compiling()
