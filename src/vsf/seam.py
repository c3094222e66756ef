"""Putting our attention under a model's own attention processors, and taking it away without a trace.

Each guided attention module gets a copy of its own processor. The copy's class is a subclass whose `__call__` is the
very same code object with one global name re-bound: the attention function. Query-key norms, rotary embeddings, fused
projections, LoRA, IP-adapters and quantised layers therefore stay the model's own code, and nothing is retyped.
"""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .core.attention import Attended, attend, log_sum_exp

__all__ = ["Install", "current_plan", "plans"]

#: q, k, v, mask, scale -> output and log-sum-exp.
Kernel = Callable[[Tensor, Tensor, Tensor, "Tensor | None", "float | None"], Attended]


def _replaced(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Attended:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    return Attended(out, log_sum_exp(q, k, mask, scale))


def _native() -> Kernel:
    """torch's own attention, or what somebody put in its place (as is often done with sage attention)."""
    return attend if F.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention else _replaced  # pyright: ignore


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


def _run(  # noqa: PLR0913
    key: int,
    site: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    kernel: Callable[[], Kernel] = _native,
) -> Tensor | None:
    plan = current_plan(key)
    return None if plan is None or plan.frame is None else plan.attention(site, q, k, v, mask, scale, kernel())


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


#: diffusers' names for one of torch's own kernels.
_TORCH = {
    "_native_math": SDPBackend.MATH,
    "_native_flash": SDPBackend.FLASH_ATTENTION,
    "_native_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "_native_cudnn": SDPBackend.CUDNN_ATTENTION,
}
#: Kernels that return their log-sum-exp if asked (diffusers 0.42.1): by which argument, and whether as [B, S, H].
_RETURNS_LSE = {
    **dict.fromkeys(("flash", "flash_hub", "flash_4_hub", "aiter_fa2_hub", "sage", "sage_hub"), ("return_lse", False)),
    "_flash_3": ("return_lse", True),
    "_flash_3_hub": ("return_attn_probs", False),
}


def _chosen_kernel(original: Callable[..., Any], registry: Any, given: dict[str, Any]) -> Kernel:
    """The kernel that this call of `dispatch_attention_fn` would use, with its log-sum-exp.

    The log-sum-exp comes from the kernel where it returns one, else from a second product of queries and keys. The
    kernel gets the mask the model made, or none.
    """
    backend = given.get("backend")
    if registry is None:
        backend = "?"
    elif backend is None:  # as dispatch_attention_fn does: `with attention_backend(...)`, or the environment's choice
        backend = registry.get_active_backend()[0]
    name = str(getattr(backend, "value", backend))
    if name == "native":
        return _native()
    if name in _TORCH:

        def one_of_torch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Attended:
            with sdpa_kernel(_TORCH[name]):
                return attend(q, k, v, mask, scale)

        return one_of_torch

    ask, last_is_heads = _RETURNS_LSE.get(name, (None, False))

    def another(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Attended:
        extra = {} if ask is None else {"attention_kwargs": {**(given.get("attention_kwargs") or {}), ask: True}}
        out: Any = original(*(x.transpose(1, 2) for x in (q, k, v)), mask, scale=scale, **{**given, **extra})
        out, lse = out if isinstance(out, tuple) else (out, None)
        if lse is not None and last_is_heads:
            lse = lse.transpose(1, 2)
        if lse is None or lse.shape != q.shape[:3]:
            if mask is not None and mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
            lse = log_sum_exp(q, k.repeat_interleave(q.shape[1] // k.shape[1], 1), mask, scale)
        return Attended(out.transpose(1, 2), lse)

    return another


def _dispatch(original: Callable[..., Tensor], key: int, site: int) -> Callable[..., Tensor]:
    """diffusers' `dispatch_attention_fn` (`[B, S, H, D]`) with our attention in front of it."""
    # None: a function of somebody else in its place
    registry = getattr(original, "__globals__", {}).get("_AttentionBackendRegistry")

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

        def kernel() -> Kernel:
            if kwargs.get("parallel_config") is not None:
                raise ValueError(
                    "context parallelism is on: it shares out the tokens of this attention, which cannot be guided; "
                    "use the model without enable_parallelism"
                )
            return _chosen_kernel(original, registry, {"enable_gqa": k.shape[1] != q.shape[1], **kwargs})

        out = _run(key, site, q, k, v, attn_mask, scale, kernel)
        if out is not None:
            return out.transpose(1, 2)
        return original(query, key_, value, attn_mask, *args, scale=scale, **kwargs)

    def by_keyword(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return dispatch_attention_fn(query, key, value, *args, **kwargs)

    return by_keyword


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _call(cls: type) -> tuple[Any, tuple[int, ...]]:
    """The processor's own `__call__`, and the identity of every global (and function of `F`) that it names."""
    call: Any = cls.__call__
    while hasattr(call, "__wrapped__"):
        call = call.__wrapped__
    return call, tuple(id(table.get(n)) for table in (call.__globals__, vars(F)) for n in _names(call.__code__))


@functools.lru_cache(maxsize=4096)
def _guided_class(cls: type, key: int, site: int, call: Any, used: tuple[int, ...]) -> type:
    """`cls` with the attention function of its `__call__` re-bound.

    Cached, so that compiled graphs stay valid; `used` is part of the key, so that a global that somebody replaced in
    the processor's module since (a monkey patch) is replaced here as well. The class keeps those globals alive, so
    an identity does not come back as another object's.
    """
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
    # Some processors (IP-adapter) are modules and live in _modules, where the order is that of the state dict.
    where: dict[str, Any] = attention._modules if "processor" in attention._modules else attention.__dict__  # pyright: ignore
    where["processor"] = processor


def _twin(original: Any, key: int, site: int) -> Any:
    """The same processor with a guided class: the two share their attributes, so that what is set on either while it is
    guided (a backend, an adapter's strength) is set on both. Another object, because modules may share a processor."""
    cls = _guided_class(type(original), key, site, *_call(type(original)))
    twin = object.__new__(cls)
    object.__setattr__(twin, "__dict__", original.__dict__)
    return twin


def _before(
    key: int, tap: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    plan = current_plan(key)
    return None if plan is None or plan.frame is None else tap(plan.frame, args, kwargs)


def _after(key: int, tap: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    plan = current_plan(key)
    return None if plan is None or plan.frame is None else tap(plan.frame, args, output)


def _input(
    hook: Callable[..., Any], model: nn.Module, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    return hook(model, args, kwargs)


def _input_first(
    hook: Callable[..., Any], model: nn.Module, compiled: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    args, kwargs = hook(model, args, kwargs) or (args, kwargs)
    try:
        return compiled(*args, **kwargs)
    finally:
        _over(id(model))


def _over(key: int, *_: Any) -> None:
    """The forward pass is over: what it needed to know must not meet another one, nor keep its tensors alive."""
    plan = current_plan(key)
    if plan is not None:
        plan.frame = None


class Install:
    """Processors, taps and the input hook of one model, shared by all contexts that guide it at a time."""

    _lock = threading.RLock()
    _live: dict[int, Install] = {}

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[nn.Module],
        hook: Callable[..., Any],
        taps: Sequence[Any],
        outer: nn.Module,
    ) -> None:
        self.model = model
        self.users: set[int] = set()
        self.guided_by: Any = None
        # All twins before the first is set: a processor that cannot be guided must leave the model untouched.
        self.sites = [(a, a.processor, _twin(a.processor, id(model), number)) for number, a in enumerate(sites)]
        self.handles: list[Any] = []
        self.compiled: Any = None
        self._hook, self._taps, self._outer = hook, taps, outer

    def put(self) -> None:
        """Put everything on the model. `remove` takes back whatever part of it is there."""
        model, outer, hook = self.model, self._outer, self._hook
        for attention, _, twin in self.sites:
            _set_processor(attention, twin)
        # The input hook stays out of compiled graphs, so that a new prompt, step or strength is a new tensor to them
        # and never a new graph: on the wrapper of torch.compile(model), or in front of what model.compile() compiled.
        self.compiled = getattr(model, "_compiled_call_impl", None) if outer is model else None
        if self.compiled is None:
            before = functools.partial(_input, hook, model)
            self.handles.append(outer.register_forward_pre_hook(before, with_kwargs=True))
            after = functools.partial(_over, id(model))
            self.handles.append(outer.register_forward_hook(after, always_call=True))
        else:
            model._compiled_call_impl = functools.partial(_input_first, hook, model, self.compiled)
        for tap in self._taps:
            if tap.before is not None:
                before = functools.partial(_before, id(model), tap.before)
                self.handles.append(tap.module.register_forward_pre_hook(before, with_kwargs=True))
            if tap.after is not None:
                after = functools.partial(_after, id(model), tap.after)
                self.handles.append(tap.module.register_forward_hook(after))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        if self.compiled is not None:
            self.model._compiled_call_impl = self.compiled
        for attention, original, twin in self.sites:
            if attention.processor is twin:
                _set_processor(attention, original)
        self.forget()

    def adopt(self) -> None:
        """Guide the processors that somebody set since (fused projections, an adapter loaded inside the context)."""
        for number, (attention, _, twin) in enumerate(self.sites):
            now = attention.processor
            if now is not twin:
                self.sites[number] = (attention, now, _twin(now, id(self.model), number))
                _set_processor(attention, self.sites[number][2])

    def forget(self) -> None:
        """Empty the model's step caches (first-block cache and the like): they hold what another guidance computed."""
        for module in self.model.modules():
            registry: Any = getattr(module, "_diffusers_hook", None)
            for hook in getattr(registry, "hooks", {}).values():
                if getattr(hook, "_is_stateful", False):
                    managers = [x for x in vars(hook).values() if type(x).__name__ == "StateManager"]
                    entered = [{k: v for k, v in vars(m).items() if "context" in k} for m in managers]
                    hook.reset_state(module)
                    for manager, context in zip(managers, entered, strict=True):
                        vars(manager).update(context)  # a reset also leaves the cache_context() we are in

    @classmethod
    def before_forward(cls, model: nn.Module) -> None:
        """Bring the installation up to date with what was done to the model since the last forward pass."""
        with cls._lock:
            if (live := cls._live.get(id(model))) is not None:
                live.adopt()

    @classmethod
    def changed(cls, model: nn.Module, guided_by: Any) -> None:
        """Say what guides the forward pass that begins; caches do not outlive a change of it."""
        with cls._lock:
            live = cls._live.get(id(model))
            if live is not None and live.guided_by != guided_by:
                live.guided_by = guided_by
                live.forget()

    @classmethod
    def enter(
        cls,
        owner: object,
        model: nn.Module,
        sites: Sequence[nn.Module],
        hook: Callable[..., Any],
        taps: Sequence[Any],
        outer: nn.Module,
    ) -> None:
        """Install on `model`, or join the installation that is there."""
        with cls._lock:
            live = cls._live.get(id(model))
            new = live is None
            if live is None:
                live = cls._live[id(model)] = cls(model, sites, hook, taps, outer)
            live.users.add(id(owner))
            if new:
                live.put()

    @classmethod
    def leave(cls, owner: object, model: nn.Module) -> None:
        """Leave; the last user removes everything. Also right where `enter` was interrupted, or never came."""
        with cls._lock:
            live = cls._live.get(id(model))
            if live is not None:  # None: interrupted before anything was installed
                live.users.discard(id(owner))
                if not live.users:
                    del cls._live[id(model)]
                    live.remove()
