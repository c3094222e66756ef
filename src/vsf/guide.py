"""`negative_guidance`: guide a pipeline for the length of a `with` block, and leave no footprints."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from .arch import family_of, find_models, unwrap
from .cfg import pipeline_cfg
from .current import Entry, enter, leave
from .encode import unweighted
from .guidance import Guidance
from .negatives import given_negatives, texts_of
from .plan import Guided, Plan
from .refusals import refuse_copies, refuse_model
from .seam import Install

__all__ = ["Guided", "NothingGuided", "negative_guidance"]


class NothingGuided(UserWarning):
    """A block guided nothing, or not what it was asked to: no step lay in the range that `start` and `stop` ask for, the
    model ran elsewhere or not at all, or it was exchanged."""


def _guidable(pipe: Any) -> dict[str, nn.Module]:
    """The models of a pipeline that could be guided, by name, wrapped as they are."""
    parts = {} if isinstance(pipe, nn.Module) else vars(pipe)
    return {n: m for n, m in parts.items() if isinstance(m, nn.Module) and family_of(m) is not None}


def _nothing_guided(pipe: Any, before: dict[str, nn.Module], entered: list[Plan], strangers: int) -> str | None:
    """Why the block guided nothing, or not all; None: it did. `before`: what could be guided when it was entered."""
    exchanged = [
        name
        for name, now in _guidable(pipe).items()
        # A wrapper around the same model is no other model; but what was wrapped was guided around its wrapper.
        if (old := before.get(name)) is not now and (old is None or old is not unwrap(now))
    ]
    anew = [type(plan.model).__name__ for plan in entered if plan.compiled_anew]
    if exchanged or anew:
        what = f"{' and '.join(exchanged)} was exchanged" if exchanged else f"{' and '.join(anew)} was compiled anew"
        return f"{what} inside the block, and what is there now was not guided; do that first, then enter the block"
    if entered[0].guided._ran:
        return None
    names = " and ".join(dict.fromkeys(type(plan.model).__name__ for plan in entered))
    return f"{names} {_STRANGERS if strangers else _ELSEWHERE}"


_HOW = (
    "threading.Thread and executors do not take a block with them; use asyncio.to_thread, "
    "contextvars.copy_context().run, or enter the block in the thread"
)
_STRANGERS = f"ran, but in a thread or task that does not belong to the block, so nothing was guided: {_HOW}"
_ELSEWHERE = f"did not run inside the block, so nothing was guided (in threads: {_HOW})"


@contextmanager
def negative_guidance(
    pipe_or_model: Any,
    guidance: Guidance,
    negative_prompt: str | Sequence[str | None] | None = None,
    *,
    negative_prompt_embeds: Tensor | Sequence[Tensor | None] | None = None,
    negative_weights: Tensor | Sequence[Tensor | None] | None = None,
    audio_negative_prompt: str | Sequence[str | None] | None = None,
    max_sequence_length: int | None = None,
    record: bool = False,
) -> Iterator[Guided]:
    """Guide a diffusers pipeline, or its transformer or UNet, away from a negative prompt inside a `with` block.

    Args:
        pipe_or_model: any stock pipeline of a supported model, or the model itself (then give embeddings).
        guidance: the method with its settings, e.g. `VSF(scale=3.5, offset=0.1)`.
        negative_prompt: a string for all samples, or one per prompt or sample; None or "" = not guided. With weights or
            times (`"wheels:2, [chain:0.2,0.6]"`, VSF only) each item is encoded on its own; see `vsf.prompt` for the
            grammar. An item is not there at all in the steps that its window does not touch, counted as `start` and `stop`.
        negative_prompt_embeds: instead of text: `[n, d]`, or a list of such, lengths may differ.
        negative_weights: for embeddings, factors on the flipped values of their tokens: `[n]`, or a list of such.
        audio_negative_prompt: for models of video with sound (LTX-2): what the sound is guided away from, where that is not
            `negative_prompt`, which then is the picture's alone; either may be empty. None: the same for both.
        max_sequence_length: for methods that take the negative padded (NAG, NASA): the text length to pad to, where
            it is not the pipeline's default. Give what you give to the pipeline.
        record: keep the suppression map; ask for it with `guided.suppression()`.

    Contexts nest (the innermost on a model counts), belong to the thread or asyncio task that entered them and to those
    that inherit its context variables (`asyncio.to_thread`), and restore the model on exit, on an exception and on an
    interrupt. What was copied, saved or kept of the model meanwhile is the model's own.

    Raises:
        UnsupportedModel: the pipeline or model is not supported.
        ValueError: both or neither of text and embeddings, a wrong width, a negative longer than the pipeline's
            encoders take, a block the model does not have, a model in `torch.nn.DataParallel`, or (when the pipeline
            runs) a wrong number of negatives, or classifier-free guidance on top.
        RuntimeError: a model ran inside the context but none of its attention was guided.

    Warns:
        NothingGuided: the model did not run inside the context, but elsewhere or not at all; it was exchanged inside;
            `start` to `stop`, or the times of an item, held none of the steps that ran; or the context ended while a
            thread was still at it.
    """
    if not isinstance(guidance, Guidance):
        raise TypeError(f"guidance is {guidance!r}; allowed: a method such as VSF(scale=3.5, offset=0.1)")
    if max_sequence_length is not None and not (isinstance(max_sequence_length, int) and max_sequence_length > 0):
        raise ValueError(f"max_sequence_length is {max_sequence_length!r}; allowed: a whole number from 1 up, or None")
    if guidance.negative == "pipeline":
        if negative_prompt_embeds is not None or negative_weights is not None or record:
            raise ValueError(f"{type(guidance).__name__} takes negative_prompt as text, and has no suppression map")
        if audio_negative_prompt is not None:
            raise ValueError(
                f"{type(guidance).__name__} hands one negative_prompt to the pipeline, for picture and sound; for an "
                "audio_negative_prompt use VSF, NAG or NASA"
            )
        find_models(pipe_or_model)
        for text in [] if negative_prompt is None else texts_of(negative_prompt):
            unweighted(guidance, text or "")
        with pipeline_cfg(pipe_or_model, guidance.settings()["scale"], negative_prompt) as block:
            yield Guided(guidance)
        if not block.calls:
            _tell(f"{type(pipe_or_model).__name__} {_ELSEWHERE}")
        return
    if record and not guidance.has_map:
        raise ValueError(f"a suppression map is defined for VSF, not for {type(guidance).__name__}")
    targets = find_models(pipe_or_model)
    is_model = isinstance(pipe_or_model, nn.Module)
    for outer, _ in targets:
        refuse_copies(outer)
    if is_model and guidance.ranges != ((0.0, 1.0),):
        raise ValueError("start and stop are fractions of a pipeline's steps; give the pipeline instead of the model")
    guided = Guided(guidance, record)
    entered: list[Plan] = []
    family, width = targets[0][1], targets[0][1].width(unwrap(targets[0][0]))
    if audio_negative_prompt is not None and "audio" not in family.streams:
        raise ValueError(
            f"audio_negative_prompt is for models with a text of the sound (LTX-2); {family.name} has one text, whose negative "
            "is negative_prompt"
        )
    if audio_negative_prompt is not None and negative_prompt is None and negative_prompt_embeds is None:
        negative_prompt = ""
    about = pipe_or_model, family, width, guidance
    negatives = (
        given_negatives(*about, negative_prompt, negative_prompt_embeds, negative_weights, max_sequence_length),
    )
    if audio_negative_prompt is not None:
        negatives += (given_negatives(*about, audio_negative_prompt, None, None, max_sequence_length),)
    before, strangers = _guidable(pipe_or_model), 0
    try:
        with ExitStack() as leaving:
            for outer, family in targets:
                model = unwrap(outer)
                sites = len(family.sites(model))
                if guidance.blocks is not None and max(guidance.blocks, default=0) >= sites:
                    beyond = [str(b) for b in sorted(set(guidance.blocks)) if b >= sites]
                    beyond = ", ".join(beyond if len(beyond) < 5 else [*beyond[:2], "...", beyond[-1]])
                    raise ValueError(
                        f"blocks names {beyond}; {type(model).__name__} has {sites} blocks, that is blocks 0 to {sites - 1}"
                    )
                refuse_model(model, family, guidance, record)
                plan = Plan(None if is_model else pipe_or_model, outer, model, family, guided, negatives)
                entry = Entry(id(model), plan)
                entered.append(plan)
                # Leaving is arranged before entering, so that an interrupt in between finds it.
                leaving.callback(plan.leave)
                leaving.callback(leave, entry)
                plan.install(plan)
                enter(entry)
            yield guided
            strangers = sum(live.strangers for plan in entered if (live := Install.on(plan.model)) is not None)
    finally:
        for plan in entered:
            if plan.outlived:
                _tell(
                    f"the block ended while {type(plan.model).__name__} was running in another thread: the pass that is "
                    "running is guided, those after it are not; wait for the thread inside the block"
                )
    if guidance.neutral or all(n is None for own in negatives for n in own.embeds):
        return
    why = _nothing_guided(pipe_or_model, before, entered, strangers)
    if why is not None:
        _tell(why)
    for number, (start, stop) in enumerate(guidance.ranges):
        if guided._passes and number not in guided._met:
            _tell(f"start {start:g} to stop {stop:g} held none of the steps that ran, so nothing was guided there")
    for start, stop in entered[0].windows:
        if guided._met & {*range(len(guidance.ranges))} and (start, stop) not in guided._met:
            _tell(
                f"the times {start:g} to {stop:g} of an item of the negative held none of the steps that were guided"
            )


def _tell(what: str) -> None:
    # the caller of negative_guidance, through the generator and contextlib
    warnings.warn(what, NothingGuided, stacklevel=4)
