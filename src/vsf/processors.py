"""Copies of a model's own attention processors, with our attention in the place of the one they call.

The copy's class is a subclass whose `__call__` is the very same code with one global name re-bound: the attention
function. Query-key norms, rotary embeddings, fused projections, LoRA, IP-adapters and quantised layers therefore stay
the model's own code, and nothing is retyped.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .core.attention import Attend, Attended, additive, attend, differentiable, log_sum_exp
from .current import running
from .recompute import refuse_unknown

__all__ = ["release", "stock", "twin"]


def _replaced(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Attended:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return Attended(out, log_sum_exp(q, k, additive(mask, q.dtype), scale))


def _native() -> Attend:
    """torch's own attention, or what somebody put in its place (as is often done with sage attention)."""
    return attend if F.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention else _replaced  # pyright: ignore


def _run(  # noqa: PLR0913
    key: int,
    site: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    kernel: Callable[[], Attend] = _native,
) -> Tensor | None:
    pass_ = running(key)
    if pass_ is None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        refuse_unknown(key)
    if pass_ is None or pass_.frame is None:
        return None
    return pass_.attention(site, q, k, v, mask, scale, kernel())


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


def _chosen_kernel(original: Callable[..., Any], registry: Any, given: dict[str, Any]) -> Attend:
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
            lse = log_sum_exp(q, k.repeat_interleave(q.shape[1] // k.shape[1], 1), additive(mask, q.dtype), scale)
        else:
            lse = differentiable(lse, q, k.repeat_interleave(q.shape[1] // k.shape[1], 1), mask, scale)
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

        def kernel() -> Attend:
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
    # A code object of its own: Dynamo keeps what it compiled by code object, and would run it under other globals where a
    # graph break makes this function a frame of its own.
    code = call.__code__.replace(co_consts=(*call.__code__.co_consts, (key, site)))
    guided = types.FunctionType(code, scope, call.__name__, call.__defaults__, call.__closure__)
    guided.__kwdefaults__ = call.__kwdefaults__
    return type(f"Guided{cls.__name__}", (cls,), {"__call__": guided, "__module__": cls.__module__, **_escape(cls)})


def _escape(cls: type) -> dict[str, Any]:
    """What makes of everything that is made of a guided processor one of its own class `cls`: a copy, what is saved, an
    instance made from its class, and the class itself for those who ask for `__class__` (as diffusers' tables do)."""
    return {
        "__new__": lambda _, *args, **kwargs: cls(*args, **kwargs),
        "__reduce_ex__": lambda self, protocol: stock(self).__reduce_ex__(protocol),
        "__class__": property(lambda _: cls),
        "_stock_class": cls,
    }


def twin(original: Any, key: int, site: int) -> Any:
    """The same processor with a guided class: the two share their attributes, so that what is set on either while it is
    guided (a backend, an adapter's strength) is set on both. Another object, because modules may share a processor.

    Raises:
        TypeError: the processor calls neither of the attention functions that can be replaced.
    """
    return _sharing(_guided_class(type(original), key, site, *_call(type(original))), original)


def stock(processor: Any) -> Any:
    """The processor itself; of a guided one, the same with its own class."""
    cls = getattr(type(processor), "_stock_class", None)
    return processor if cls is None else _sharing(cls, processor)


def release(guided: Any) -> None:
    """Give a twin its own class back, as somebody may have kept it."""
    # by hand, since the guided class has a `__class__` of its own
    vars(object)["__class__"].__set__(guided, type(guided)._stock_class)  # pyright: ignore[reportAttributeAccessIssue]


def _sharing(cls: type, processor: Any) -> Any:
    other = object.__new__(cls)
    object.__setattr__(other, "__dict__", processor.__dict__)
    return other
