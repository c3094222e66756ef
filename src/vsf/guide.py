"""`negative_guidance`: guide a pipeline for the length of a `with` block, and leave no footprints."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .arch import Family, find_models, unwrap
from .arch.base import Attend, Frame, Negative, cross_attention, joint_attention
from .cfg import pipeline_cfg
from .core.attention import Attended
from .encode import encode_negative, unweighted
from .guidance import CFG, VSF, Guidance, knobs
from .seam import Install, current_plan, plans

__all__ = ["Guided", "NothingGuided", "Suppression", "negative_guidance"]

#: Negatives of a compiled model are padded to a multiple of this many tokens.
BUCKET = 16


class NothingGuided(UserWarning):
    """The model ran, but no step of it lay in the range that `start` and `stop` ask for."""


@dataclass(frozen=True)
class Suppression:
    """Where the negative acted: w, the share of attention that went to it, averaged over heads.

    `share[(step, block)]` is `[B, S]`, S image tokens; `grid` is the (height, width) ratio of the image tokens.
    """

    share: dict[tuple[int, int], Tensor]
    grid: tuple[int, int] | None

    @property
    def steps(self) -> list[int]:
        """The recorded steps."""
        return sorted({step for step, _ in self.share})

    @property
    def blocks(self) -> list[int]:
        """The recorded blocks."""
        return sorted({block for _, block in self.share})

    def stack(self) -> Tensor:
        """`[steps, blocks, B, S]`, where all blocks have the same number of image tokens."""
        return torch.stack([torch.stack([self.share[s, b] for b in self.blocks]) for s in self.steps])

    def map(self, step: int | None = None, block: int | None = None) -> Tensor:
        """The map as a picture `[B, h, w]`, averaged over the steps and blocks not named, on the finest grid.

        Raises:
            ValueError: nothing was recorded for this step and block, or the tokens of this model have no 2D grid.
        """
        chosen = [x for (s, b), x in self.share.items() if step in (None, s) and block in (None, b)]
        if not chosen:
            raise ValueError(
                f"nothing recorded for step {step}, block {block}; steps {self.steps}, blocks {self.blocks}"
            )
        if self.grid is None:
            raise ValueError("the image tokens of this model have no 2D grid; use .share or .stack()")
        ratio = self.grid[0] / self.grid[1]
        pictures: list[Tensor] = []
        for x in chosen:
            height = round((x.shape[-1] * ratio) ** 0.5)
            pictures.append(x.unflatten(-1, (height, x.shape[-1] // height)))
        size = max((tuple(p.shape[-2:]) for p in pictures), key=lambda s: s[0])
        resized = [torch.nn.functional.interpolate(p[:, None], size, mode="bilinear")[:, 0] for p in pictures]
        return torch.stack(resized).mean(0)


@dataclass
class Guided:
    """What `with negative_guidance(...) as guided` gives: the record of what happened inside."""

    method: Guidance
    record: bool = False
    _share: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _grid: tuple[int, int] | None = None
    #: Where schedulers do not count: the step last seen, and the one the picture began with. Of the whole pipeline,
    #: since the second model of Wan 2.2 begins in the middle.
    _last: int | None = None
    _begin: int = 0
    #: Forward passes inside the context, and which of the method's ranges of steps one of them lay in.
    _passes: int = 0
    _met: set[int] = field(default_factory=set)

    def suppression(self) -> Suppression:
        """The suppression map of the last image(s) drawn inside the context.

        Raises:
            ValueError: nothing was recorded: `record=True` was not given, or no guided step ran.
        """
        if not self.record:
            raise ValueError("no suppression map was recorded; use negative_guidance(..., record=True)")
        if not self._share:
            raise ValueError("no suppression map was recorded: no guided step ran inside the context")
        return Suppression(dict(self._share), self._grid)


class Plan:
    """One context on one model: the method, its negatives, and the frame of the forward pass in progress."""

    def __init__(
        self,
        pipe: Any,
        outer: nn.Module,
        model: nn.Module,
        family: Family,
        guided: Guided,
        negatives: list[Tensor | None],
        weights: list[Tensor | None],
    ) -> None:
        self.pipe, self.model, self.family, self.guided = pipe, model, family, guided
        self.method = guided.method
        self.negatives = negatives
        self.weights = weights  # [n] each, of the tokens of the negative; None: all 1
        self.frame: Frame | None = None
        self.step = 0
        self.guiding, self.reached = False, False
        self.active: tuple[bool, ...] = (True,)
        self.compiled = any(getattr(m, "_compiled_call_impl", None) for m in model.modules()) or outer is not model
        self._arguments = list(inspect.signature(type(model).forward).parameters)[1:]
        self._batches: dict[Any, Any] = {}
        self._joint = family.geometry != "cross"
        self.taps = family.taps(model)
        self._late = bool(self.taps) and family.late

    # -- the inputs -----------------------------------------------------------------------------------------------

    def before_forward(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self.frame = None
        call = dict(zip(self._arguments, args, strict=False)) | kwargs
        self._refuse_cfg()
        active = self._active(call)
        if not any(active):
            return None
        text = self.family.text(call)
        if not isinstance(text, Tensor):
            raise ValueError(
                f"{type(self.model).__name__} was called with {self.family.text_argument} of type {type(text).__name__}; "
                "allowed: a tensor, or a list of tensors, one per sample"
            )
        if not len(text):
            raise ValueError(f"{type(self.model).__name__} was called for no sample at all; give at least one prompt")
        batch = self._batch(text, active)
        if batch is None:
            return None
        self.guiding, self.active = True, active
        embeds, keep, ragged, guided, knob, weight = batch
        negative = Negative(embeds, keep)
        upstream = isinstance(self.method, VSF) and self.method.layout == "upstream" and self._joint
        if upstream:
            self.family.extend(call, replace(negative, copy=True))
        given = call[self.family.text_argument]
        n_pos = given.shape[1] if isinstance(given, Tensor) else max(len(t) for t in given)
        if not self._late:
            self.family.extend(call, negative)
        hidden = torch.zeros(keep.shape, dtype=torch.float32, device=keep.device).masked_fill(~keep, float("-inf"))
        neg_bias = hidden[:, None, None] if ragged else None
        pos_bias = None
        if ragged and upstream and not self._late:
            seen = hidden.new_zeros(hidden.shape[0], text.shape[1])
            order = [hidden, seen] if self.family.geometry == "text_first" else [seen, hidden]
            pos_bias = torch.cat(order, 1)[:, None, None]
        n_copy = embeds.shape[1] if upstream else 0
        self.frame = Frame(self.method, n_pos, embeds.shape[1], knob, neg_bias, pos_bias, guided, weight, n_copy)
        self.frame.negative, self.frame.call = negative, call
        if self.guided.record:
            self.guided._grid = self.family.grid(self.model, call)
        return (), call

    def _refuse_cfg(self) -> None:
        if getattr(self.pipe, "do_classifier_free_guidance", False) is True:
            raise ValueError(
                f"guidance_scale is {getattr(self.pipe, 'guidance_scale', '?')}, so the pipeline runs classifier-free "
                f"guidance of its own; inside negative_guidance use guidance_scale <= 1 (0 for most few-step models)"
            )
        running = _locals(self.pipe)
        # PixArt, HunyuanVideo and others keep it nowhere else.
        name = next((n for n in ("do_true_cfg", "do_classifier_free_guidance") if running.get(n) is True), None)
        if name is not None:
            raise ValueError(
                f"{type(self.pipe).__name__} runs classifier-free guidance of its own ({name}); inside negative_guidance "
                f"use guidance_scale <= 1, and no negative_prompt in the call of a pipeline that has true_cfg_scale"
            )
        ignored = running.get("negative_prompt") or ()
        if any(isinstance(n, str) and n.strip() for n in ([ignored] if isinstance(ignored, str) else ignored)):
            raise ValueError(
                f"{type(self.pipe).__name__} was called with negative_prompt={ignored!r}, which does nothing without "
                "classifier-free guidance; give it to negative_guidance instead"
            )

    def _active(self, call: Mapping[str, Any]) -> tuple[bool, ...]:
        """Whether this step is guided: once for all samples, or once per entry of `method.ranges` where they differ."""
        guided, ranges = self.guided, self.method.ranges
        guided._passes += 1
        if ranges == ((0.0, 1.0),) and not guided.record:
            guided._met.add(0)
            return (True,)
        step, total = self._step(call)
        if step == 0 and self.step != 0 and guided.record:
            guided._share.clear()  # a new picture
        self.step = step
        active = tuple(_holds(start, stop, step, total) for start, stop in ranges)
        guided._met.update(i for i, on in enumerate(active) if on)
        return active if len(set(active)) > 1 else active[:1]

    def _step(self, call: Mapping[str, Any]) -> tuple[int, int]:
        """The number of this step, and of all steps, of the picture being drawn (image-to-image begins later)."""
        scheduler, guided = getattr(self.pipe, "scheduler", None), self.guided
        total = len(getattr(scheduler, "timesteps", ()))
        if hasattr(scheduler, "step_index"):
            begin = getattr(scheduler, "begin_index", None) or 0
            step = begin if scheduler.step_index is None else scheduler.step_index  # pyright: ignore
        else:  # DDIM and other schedulers that do not count
            step = _nearest(scheduler, call.get("timestep"))
            if guided._last is None or step < guided._last:
                guided._begin = step
            guided._last, begin = step, guided._begin
        return step - begin, total - begin

    def _batch(self, text: Tensor, active: tuple[bool, ...]) -> Any | None:
        """The negatives and knobs repeated to the batch of `text` `[B, P, W]`; None if no sample has a negative."""
        key = (text.shape[0], text.dtype, text.device, active)
        if key not in self._batches:
            self._batches[key] = self._build(text, active)
        return self._batches[key]

    def _build(self, text: Tensor, active: tuple[bool, ...]) -> Any | None:
        size = text.shape[0]
        negatives = _repeat(self.negatives, size, "negative prompts")
        longest = max((len(n) for n in negatives if n is not None), default=0)
        # A sample outside its range of steps is one without a negative.
        rows = zip(negatives, _repeat(list(active), size, "ranges of start and stop"), strict=True)
        negatives = [n if on else None for n, on in rows]
        real = [n for n in negatives if n is not None]
        if not real or self.method.neutral:
            return None
        if self.compiled:  # lengths in steps, and always a mask, so that another negative is not another graph
            longest += -longest % BUCKET
        embeds = text.new_zeros(size, longest, text.shape[-1])
        keep = torch.zeros(size, longest, dtype=torch.bool, device=text.device)
        for row, negative in enumerate(negatives):
            if negative is not None:
                if negative.shape[1] != text.shape[-1]:
                    raise ValueError(
                        f"the negative embeddings are {negative.shape[1]} wide; {type(self.model).__name__} was given "
                        f"text of width {text.shape[-1]}"
                    )
                embeds[row, : len(negative)] = negative.to(text)
                keep[row, : len(negative)] = True
        wide = torch.float64 if text.dtype == torch.float64 else torch.float32
        knob: dict[str, Tensor] = {}
        for name, spec in knobs(self.method).items():
            value = getattr(self.method, name)
            if spec.per_sample and value is not None:
                values = _repeat(list(value) if isinstance(value, tuple) else [value], size, f"values of {name}")
                if name in ("start", "stop"):
                    continue
                knob[name] = torch.tensor(values, dtype=wide, device=text.device).view(size, 1, 1, 1)
        ragged = self.compiled or not bool(keep.all())
        guided = keep.any(1).view(size, 1, 1, 1) if self.compiled or len(real) < size else None
        return embeds, keep, ragged, guided, knob, self._weight(size, longest, text.device, wide)

    def _weight(self, size: int, longest: int, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """The weights of the negative tokens `[B, 1, N, 1]`; None if all are 1."""
        if all(w is None for w in self.weights):
            return None
        weight = torch.ones(size, 1, longest, 1, dtype=dtype)
        for row, own in enumerate(_repeat(self.weights, size, "negative prompts")):
            if own is not None:
                weight[row, 0, : len(own), 0] = own
        return weight.to(device)

    # -- the attention --------------------------------------------------------------------------------------------

    def attention(
        self, site: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, kernel: Attend
    ) -> Tensor | None:
        frame = self.frame
        if frame is None or frame.last == site:  # the second: an adapter's own attention
            return None
        if frame.skip:
            frame.skip = False
            return None
        text = frame.n_pos + frame.n_neg
        blocks = self.method.blocks
        active = blocks is None or site in blocks
        record = self._recorder(site) if self.guided.record and active else None
        if not self._joint:
            if k.shape[2] != text:
                return None
            out = cross_attention(frame.on(q.device), q, k, v, mask, scale, active, record, kernel=kernel)
        else:
            if k.shape[2] != q.shape[2] or k.shape[2] <= text:
                return None
            first = self.family.geometry == "text_first"
            if self._late and mask is not None:  # made by the model, which does not know of the negative's columns
                visible = mask.dtype == torch.bool  # 0 in a bias
                mask = torch.nn.functional.pad(mask[..., : k.shape[2] - frame.n_neg], (0, frame.n_neg), value=visible)
            out = joint_attention(frame.on(q.device), q, k, v, mask, scale, active, record, first, kernel=kernel)
        frame.last = site
        self.reached = True  # a plain store, which a compiled graph replays without guarding on it
        return out

    def _recorder(self, site: int) -> Any:
        def record(pos: Attended, neg: Attended) -> None:
            assert isinstance(self.method, VSF) and self.frame is not None
            w = self.method.share(pos, neg, self.frame.knob)
            self.guided._share[self.step, site] = w.squeeze(-1).mean(1).float().cpu()

        return record


def _holds(start: float, stop: float, step: int, total: int) -> bool:
    if (start, stop) == (0.0, 1.0):
        return True
    # With few steps a short range may lie between two of them: it then means the step it begins in.
    first = min(int(start * total), total - 1)
    return start < stop and first <= step < max(stop * total, first + 1)


def _nearest(scheduler: Any, timestep: Any) -> int:
    """The step whose time is nearest to the one the model was called with."""
    times = getattr(scheduler, "timesteps", None)
    if times is None or timestep is None:
        return 0
    now = torch.as_tensor(timestep).flatten()[0].to(times)
    return int((times - now).abs().argmin())


def _locals(pipe: Any) -> Mapping[str, Any]:
    """The local variables of the running `pipe.__call__`; none if the model was called by somebody else."""
    frame = sys._getframe(1) if pipe is not None else None
    while frame is not None:
        if frame.f_code.co_name == "__call__" and frame.f_locals.get("self") is pipe:
            return frame.f_locals
        frame = frame.f_back
    return {}


def _repeat(values: list[Any], size: int, what: str) -> list[Any]:
    """One per sample from one for all, one per prompt (`num_images_per_prompt`), or one per sample."""
    if size % len(values):
        raise ValueError(f"{len(values)} {what} for a batch of {size}; give one for all, or one per prompt or sample")
    return [v for v in values for _ in range(size // len(values))]


def _hook(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    plan = current_plan(id(model))
    if plan is None:
        return None
    _refuse(model, plan.family)
    Install.before_forward(model)
    changed = plan.before_forward(args, kwargs)
    Install.changed(model, None if plan.frame is None else (plan, plan.active))
    return changed


def _refuse(model: nn.Module, family: Family) -> None:
    """What would silently give a wrong picture."""
    hooks = getattr(getattr(model, "_diffusers_hook", None), "hooks", {})
    if any(name.startswith("text_kv_cache") for name in hooks):
        raise ValueError(
            f"{type(model).__name__} has a TextKVCache, which keeps the keys of the prompt alone; it cannot be guided: "
            "use the model without apply_text_kv_cache"
        )
    parallel = getattr(getattr(model, "_parallel_config", None), "context_parallel_config", None)
    if parallel is not None and family.geometry != "cross":
        raise ValueError(
            f"{type(model).__name__} has context parallelism on, which shares out text and image tokens; it cannot be guided: "
            "use the model without enable_parallelism"
        )


def _refuse_copies(model: nn.Module) -> None:
    inner: Any = model
    while inner is not None:
        if isinstance(inner, nn.DataParallel):
            raise ValueError(
                f"{type(unwrap(model)).__name__} is wrapped in torch.nn.DataParallel, which runs copies of it in threads of "
                "their own, where guidance cannot follow; use one process per device with the model itself"
            )
        inner = getattr(inner, "_orig_mod", None)


def _negatives(
    pipe: Any,
    family: Family,
    width: int,
    method: Guidance,
    prompt: Any,
    embeds: Any,
    weights: Any,
    max_sequence_length: int | None,
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The negatives `[n, W]`, one for all or one per prompt or sample, and the weights `[n]` of their tokens."""
    if prompt is not None and embeds is not None:
        raise ValueError("both negative_prompt and negative_prompt_embeds were given; give one of them")
    if method.negative == "none":
        return [None], [None]
    if weights is not None and embeds is None:
        raise ValueError(
            'negative_weights needs negative_prompt_embeds; in a text, write weights as "wheels:2, chain"'
        )
    if embeds is not None:
        given = list(embeds) if isinstance(embeds, (list, tuple)) else [embeds]
        if not given:
            raise ValueError("negative_prompt_embeds is empty; give a list of [n, d] tensors")
        for x in given:
            if x is not None and not (isinstance(x, Tensor) and x.ndim == 2):
                shape = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
                raise ValueError(f"negative_prompt_embeds holds {shape}; allowed: a list of tensors [n, {width}]")
            if x is not None and x.shape[1] != width:
                raise ValueError(
                    f"negative_prompt_embeds is {x.shape[1]} wide; this model takes text of width {width}"
                )
            if x is not None and not bool(torch.isfinite(x).all()):
                raise ValueError("negative_prompt_embeds holds NaN or infinite values")
        negatives = [None if x is None or len(x) == 0 else x.detach() for x in given]
        return negatives, _given_weights(method, given, weights)
    if prompt is None:
        raise ValueError(f"{type(method).__name__} needs negative_prompt or negative_prompt_embeds")
    prompts = _texts(prompt)
    if isinstance(pipe, nn.Module):
        if not any(p and p.strip() for p in prompts):
            return [None] * len(prompts), [None]
        raise ValueError("a bare model cannot encode text; give negative_prompt_embeds, or the pipeline instead")
    known: dict[str, tuple[Tensor | None, Tensor | None]] = {}
    with torch.no_grad():
        for text in prompts:
            if text and text.strip() and text not in known:
                known[text] = encode_negative(pipe, family, method, text, max_sequence_length)
    pairs = [known.get(text or "", (None, None)) for text in prompts]
    return [negative for negative, _ in pairs], [weight for _, weight in pairs]


def _texts(prompt: Any) -> list[str | None]:
    """The negative prompts, one for all or one per prompt or sample."""
    if not isinstance(prompt, (str, list, tuple)):
        raise TypeError(f"negative_prompt is {prompt!r}; allowed: a string, or one string or None per sample")
    prompts: list[str | None] = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("negative_prompt is an empty list; give a string, or one string or None per sample")
    for text in prompts:
        if text is not None and not isinstance(text, str):
            raise TypeError(
                f"negative_prompt holds {text!r}; allowed: strings, or None for a sample that is not guided"
            )
    return prompts


def _given_weights(method: Guidance, embeds: list[Tensor | None], weights: Any) -> list[Tensor | None]:
    if weights is None:
        return [None]
    if method.negative == "branch":
        name = type(method).__name__
        raise ValueError(f"{name} cannot take negative_weights: its negative branch is one padded prompt")
    given = [weights] if isinstance(weights, Tensor) else list(weights)
    if len(given) != len(embeds):
        raise ValueError(f"negative_weights has {len(given)} entries for {len(embeds)} in negative_prompt_embeds")
    for w, x in zip(given, embeds, strict=True):
        n = 0 if x is None else len(x)
        if w is not None and not (isinstance(w, Tensor) and tuple(w.shape) == (n,)):
            shape = f"a tensor of shape {tuple(w.shape)}" if isinstance(w, Tensor) else repr(w)
            raise ValueError(f"negative_weights holds {shape} for {n} tokens; allowed: a tensor ({n},), or None")
        if w is not None and not bool((w.isfinite() & (w >= 0)).all()):
            raise ValueError("negative_weights holds negative, NaN or infinite values; allowed: 0 or more")
    return [None if w is None else w.detach().double().cpu() for w in given]


def _leave(plan: Plan, stack: list[Any]) -> None:
    if plan in stack:
        stack.remove(plan)
    Install.leave(plan, plan.model)


@contextmanager
def negative_guidance(
    pipe_or_model: Any,
    guidance: Guidance,
    negative_prompt: str | Sequence[str | None] | None = None,
    *,
    negative_prompt_embeds: Tensor | Sequence[Tensor | None] | None = None,
    negative_weights: Tensor | Sequence[Tensor | None] | None = None,
    max_sequence_length: int | None = None,
    record: bool = False,
) -> Iterator[Guided]:
    """Guide a diffusers pipeline, or its transformer or UNet, away from a negative prompt inside a `with` block.

    Args:
        pipe_or_model: any stock pipeline of a supported model, or the model itself (then give embeddings).
        guidance: the method with its settings, e.g. `VSF(scale=3.5, offset=0.1)`.
        negative_prompt: a string for all samples, or one per prompt or sample; None or "" = not guided. With weights
            (`"wheels:2, chain"`, VSF only) each item is encoded on its own; see `vsf.prompt` for the grammar.
        negative_prompt_embeds: instead of text: `[n, d]`, or a list of such, lengths may differ.
        negative_weights: for embeddings, factors on the flipped values of their tokens: `[n]`, or a list of such.
        max_sequence_length: for methods that take the negative padded (NAG, NASA): the text length to pad to, where
            it is not the pipeline's default. Give what you give to the pipeline.
        record: keep the suppression map; ask for it with `guided.suppression()`.

    Contexts nest (the innermost on a model counts), are private to the thread that entered them, and restore the
    model on exit, on an exception and on an interrupt.

    Raises:
        UnsupportedModel: the pipeline or model is not supported.
        ValueError: both or neither of text and embeddings, a wrong width, a negative longer than the pipeline's
            encoders take, a block the model does not have, a model in `torch.nn.DataParallel`, or (when the pipeline
            runs) a wrong number of negatives, or classifier-free guidance on top.
        RuntimeError: a model ran inside the context but none of its attention was guided.

    Warns:
        NothingGuided: `start` to `stop` held none of the steps that ran.
    """
    if not isinstance(guidance, Guidance):
        raise TypeError(f"guidance is {guidance!r}; allowed: a method such as VSF(scale=3.5, offset=0.1)")
    if max_sequence_length is not None and not (isinstance(max_sequence_length, int) and max_sequence_length > 0):
        raise ValueError(f"max_sequence_length is {max_sequence_length!r}; allowed: a whole number from 1 up, or None")
    if isinstance(guidance, CFG):
        if negative_prompt_embeds is not None or negative_weights is not None or record:
            raise ValueError("CFG takes negative_prompt as text, and has no suppression map")
        find_models(pipe_or_model)
        for text in [] if negative_prompt is None else _texts(negative_prompt):
            unweighted(guidance, text or "")
        with pipeline_cfg(pipe_or_model, guidance, negative_prompt):
            yield Guided(guidance)
        return
    if record and not isinstance(guidance, VSF):
        raise ValueError(f"a suppression map is defined for VSF, not for {type(guidance).__name__}")
    targets = find_models(pipe_or_model)
    is_model = isinstance(pipe_or_model, nn.Module)
    for outer, _ in targets:
        _refuse_copies(outer)
    if is_model and guidance.ranges != ((0.0, 1.0),):
        raise ValueError("start and stop are fractions of a pipeline's steps; give the pipeline instead of the model")
    guided = Guided(guidance, record)
    entered: list[Plan] = []
    family, width = targets[0][1], targets[0][1].width(unwrap(targets[0][0]))
    negatives, weights = _negatives(
        pipe_or_model,
        family,
        width,
        guidance,
        negative_prompt,
        negative_prompt_embeds,
        negative_weights,
        max_sequence_length,
    )
    with ExitStack() as leaving:
        for outer, family in targets:
            model = unwrap(outer)
            sites = list(family.sites(model))
            if guidance.blocks is not None and max(guidance.blocks, default=0) >= len(sites):
                beyond = [str(b) for b in sorted(set(guidance.blocks)) if b >= len(sites)]
                beyond = ", ".join(beyond if len(beyond) < 5 else [*beyond[:2], "...", beyond[-1]])
                raise ValueError(
                    f"blocks names {beyond}; {type(model).__name__} has {len(sites)} blocks, that is blocks 0 to "
                    f"{len(sites) - 1}"
                )
            _refuse(model, family)
            plan = Plan(None if is_model else pipe_or_model, outer, model, family, guided, negatives, weights)
            # The stack itself is kept, so that a context that is left in another thread (a collected generator)
            # still takes its plan from where it was put. And leaving is arranged before entering, so that an
            # interrupt in between finds it.
            stack = plans(id(model))
            entered.append(plan)
            leaving.callback(_leave, plan, stack)
            Install.enter(plan, model, sites, _hook, plan.taps, outer)
            stack.append(plan)
        yield guided
    for plan in entered:
        if plan.guiding and not plan.reached:
            raise RuntimeError(
                f"{type(plan.model).__name__} ran inside negative_guidance but none of its attention was guided"
            )
    if guided._passes and any(n is not None for n in negatives) and not guidance.neutral:
        for number, (start, stop) in enumerate(guidance.ranges):
            if number not in guided._met:
                warnings.warn(
                    f"start {start:g} to stop {stop:g} held none of the steps that ran, so nothing was guided there",
                    NothingGuided,
                    stacklevel=3,
                )
