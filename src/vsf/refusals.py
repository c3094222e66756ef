"""What would silently give a wrong picture, and is refused instead."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor, nn

from .arch import Family, unwrap
from .arch.caches import refuse_caches
from .guidance import Guidance

__all__ = [
    "Call",
    "refuse_copies",
    "refuse_model",
    "refuse_own_guidance",
    "refuse_steps",
    "refuse_what_misleads",
    "running_call",
]


@dataclass(frozen=True)
class Call:
    """The running `pipe.__call__`, and its frame."""

    pipe: Any
    frame: FrameType

    @property
    def draws_twice(self) -> bool:
        """Whether it draws all samples a second time behind the first (perturbed-attention guidance)."""
        return getattr(self.pipe, "do_perturbed_attention_guidance", False) is True


def running_call(model: nn.Module) -> Call | None:
    """The call of a pipeline that this forward pass of its model belongs to; None: the model was called by somebody else.

    What counts is who calls now: not the pipeline that a block was entered with, but a sibling made by `from_pipe`, a
    modular pipeline, or one around a model that was given itself.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__call__":
            pipe = frame.f_locals.get("self")
            if not isinstance(pipe, nn.Module) and any(part is model for part in _parts(pipe)):
                return Call(pipe, frame)
        frame = frame.f_back
    return None


def _parts(pipe: Any) -> list[nn.Module]:
    return [unwrap(part) for part in getattr(pipe, "__dict__", {}).values() if isinstance(part, nn.Module)]


def refuse_own_guidance(call: Call, family: Family) -> None:
    """Refuse a call with guidance of its own, which would run the guided model several times per step.

    Raises:
        ValueError: classifier-free guidance is on, or another that needs passes of its own, or a guider with several.
    """
    pipe, running = call.pipe, call.frame.f_locals
    name = type(pipe).__name__
    always = next((kind.__name__ for kind in type(pipe).__mro__ if kind.__name__ in family.always_guided), None)
    if always is not None:
        raise ValueError(
            f"{always} runs classifier-free guidance of its own in every picture, which cannot be switched off; inside "
            f"negative_guidance use a pipeline of {family.name} without it"
        )
    if getattr(pipe, "do_classifier_free_guidance", False) is True:
        raise ValueError(
            f"guidance_scale is {getattr(pipe, 'guidance_scale', '?')}, so {name} runs classifier-free "
            f"guidance of its own; inside negative_guidance use guidance_scale <= 1 (0 for most few-step models)"
        )
    # PixArt, HunyuanVideo and others keep it nowhere else.
    own = next((n for n in ("do_true_cfg", "do_classifier_free_guidance") if running.get(n) is True), None)
    if own is not None:
        raise ValueError(
            f"{name} runs classifier-free guidance of its own ({own}); inside negative_guidance "
            f"use guidance_scale <= 1, and no negative_prompt in the call of a pipeline that has true_cfg_scale"
        )
    for own, off in _OTHERS.items():
        if getattr(pipe, own, False) is True:
            raise ValueError(
                f"{name} runs another guidance of its own ({own}), with more passes of the model per step; inside "
                f"negative_guidance switch it off ({off})"
            )
    for part, guider in vars(pipe).items():
        passes = getattr(guider, "num_conditions", 1) if hasattr(guider, "prepare_models") else 1
        if passes > 1:
            kind = type(guider).__name__
            raise ValueError(
                f"{name} runs a guidance of its own ({part} is a {kind}, {passes} passes per step: classifier-free guidance "
                f"or one built on it); inside negative_guidance switch it off with pipe.update_components({part}="
                "ClassifierFreeGuidance(guidance_scale=1))"
            )


#: Of pipelines: a guidance that is not classifier-free, and what switches it off.
_OTHERS = {
    "do_spatio_temporal_guidance": "stg_scale=0, audio_stg_scale=0",
    "do_modality_isolation_guidance": "modality_scale=1, audio_modality_scale=1",
}


def refuse_what_misleads(call: Call) -> None:
    """Refuse a negative in the call itself, where it does nothing.

    Raises:
        ValueError: as it says.
    """
    for name, value in _arguments(call.frame).items():
        if name.startswith("negative_prompt") and "mask" not in name and _says_something(value):
            shown = repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
            raise ValueError(
                f"{type(call.pipe).__name__} was called with {name}={shown}, which does nothing without "
                "classifier-free guidance; give it to negative_guidance instead"
            )


def refuse_steps(call: Call) -> None:
    """Refuse a pipeline whose steps cannot be counted, to a method, a negative or a record that asks for them.

    Raises:
        ValueError: it moves copies of its scheduler, one per frame, each at a step of its own (diffusion forcing).
    """
    if "sample_schedulers" in call.frame.f_locals:
        raise ValueError(
            f"{type(call.pipe).__name__} has every frame at a step of its own, so there is no range of steps to guide and no "
            "step to record; use start=0, stop=1 and record=False, and no times in the negative"
        )


def _says_something(negative: Any) -> bool:
    """Whether a negative (text, embeddings, or a list of either) is more than nothing."""
    if isinstance(negative, (list, tuple)):
        return any(_says_something(n) for n in negative)
    return bool(negative.strip()) if isinstance(negative, str) else isinstance(negative, Tensor)


def _arguments(frame: FrameType) -> Mapping[str, Any]:
    """What the running `pipe.__call__` was given, by name. Its local variables need not have it any more."""
    outer = frame.f_back  # torch.no_grad, which decorates the call of every pipeline
    if outer is None or outer.f_code.co_name != "decorate_context":
        names = frame.f_code.co_varnames[: frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount]
        return {name: frame.f_locals[name] for name in names if name in frame.f_locals}
    call = outer.f_locals
    given = inspect.signature(call["func"]).bind_partial(*call["args"], **call["kwargs"])
    return {**given.arguments, **given.kwargs}  # with those that a modular pipeline takes as **kwargs


def refuse_model(model: nn.Module, family: Family, method: Guidance, record: bool) -> None:
    """Refuse a model whose caches or parallelism keep the negative out, or keep from the method what it needs.

    Raises:
        ValueError: it has one of them.
    """
    refuse_caches(model)
    parallel: Any = getattr(model, "_parallel_config", None)
    if parallel is None:
        return
    name = type(model).__name__
    without = "use the model without enable_parallelism"
    if parallel.context_parallel_config is not None:
        if family.geometry != "cross" or _text_is_shared_out(model):
            raise ValueError(
                f"{name} has context parallelism on, which shares out its text tokens, so that the negative would be torn apart; "
                f"it cannot be guided: {without}"
            )
        if record:
            raise ValueError(
                f"{name} has context parallelism on, so that each process sees a part of the picture; a suppression map cannot "
                f"be recorded: {without}, or record=False"
            )
    if parallel.tensor_parallel_config is not None and (record or not method.per_head):
        what = (
            "a suppression map, which is a mean over the heads"
            if record
            else f"{type(method).__name__}, whose norm is"
        )
        what += "" if record else " over all heads"
        raise ValueError(
            f"{name} has tensor parallelism on, so that each process has some of the heads; it cannot be used with {what}: "
            f"{without}, or {'record=False' if record else 'VSF or NASA'}"
        )


def _text_is_shared_out(model: nn.Module) -> bool:
    """Whether diffusers' context parallelism splits a text where it enters the model or one of its parts."""
    for module in model.modules():
        for name, hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).items():
            split = getattr(hook, "metadata", None) if name.startswith("cp_input") else None
            if isinstance(split, Mapping) and any("encoder_hidden_states" in str(key) for key in split):
                return True
    return False


def refuse_copies(model: nn.Module) -> None:
    """Refuse a model in `torch.nn.DataParallel`.

    Raises:
        ValueError: it is.
    """
    inner: Any = model
    while inner is not None:
        if isinstance(inner, nn.DataParallel):
            raise ValueError(
                f"{type(unwrap(model)).__name__} is wrapped in torch.nn.DataParallel, which runs copies of it in threads of "
                "their own, where guidance cannot follow; use one process per device with the model itself"
            )
        inner = getattr(inner, "_orig_mod", None)
