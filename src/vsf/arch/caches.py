"""Step caches of diffusers (hooks on modules that keep outputs from one step to the next), which guidance has to know of.

Checked in diffusers 0.42.1: first-block cache, MagCache, TaylorSeer, FasterCache, Pyramid Attention Broadcast, SeaCache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["apart", "forget", "refuse_caches", "stateful"]


def _hooks(module: nn.Module) -> dict[str, Any]:
    return getattr(getattr(module, "_diffusers_hook", None), "hooks", {})


def stateful(model: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """Every hook in the model that keeps something between steps, with the module it sits on."""
    for module in model.modules():
        for hook in _hooks(module).values():
            if getattr(hook, "_is_stateful", False):
                yield module, hook


def forget(model: nn.Module) -> None:
    """Empty the step caches: they hold what another guidance computed."""
    for module, hook in stateful(model):
        managers = [x for x in vars(hook).values() if type(x).__name__ == "StateManager"]
        entered = [{k: v for k, v in vars(m).items() if "context" in k} for m in managers]
        hook.reset_state(module)
        for manager, context in zip(managers, entered, strict=True):
            vars(manager).update(context)  # a reset also leaves the cache_context() we are in
        state = getattr(hook, "state", None)
        if hasattr(hook, "block_skip_range") and hasattr(state, "iteration"):
            # The same place in its rhythm, but one at which it computes: FasterCache, whose first steps lie outside its
            # range of times, would otherwise look into the empty cache in the middle of a picture.
            state.iteration = hook.block_skip_range  # pyright: ignore[reportOptionalMemberAccess]


def apart(module: nn.Module, call: Callable[[], Any]) -> Any:
    """`call`, which runs `module` a second time in one forward pass, on something else: past its step caches, which
    would give back what they keep of the first."""
    if torch.compiler.is_compiling():
        return call()
    references = [hook.fn_ref for _, hook in stateful(module) if hasattr(hook, "new_forward")]
    kept = [reference.forward for reference in references]
    try:
        for reference in references:
            reference.forward = reference.original_forward
        return call()
    finally:
        for reference, forward in zip(references, kept, strict=True):
            reference.forward = forward


def refuse_caches(model: nn.Module) -> None:
    """Refuse a cache that keeps the negative out, or that splits the batch in two.

    Raises:
        ValueError: the model has one.
    """
    name = type(model).__name__
    for key, hook in _hooks(model).items():
        if key.startswith("text_kv_cache"):
            raise ValueError(
                f"{name} has a TextKVCache, which keeps the keys of the prompt alone; it cannot be guided: use the model "
                "without apply_text_kv_cache"
            )
        if getattr(hook, "is_guidance_distilled", True) is False:
            raise ValueError(
                f"{name} has a FasterCache for classifier-free guidance, which takes the first half of a batch for the "
                "unconditional one; inside negative_guidance use FasterCacheConfig(is_guidance_distilled=True)"
            )
