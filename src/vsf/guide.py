"""`negative_guidance`: guide a pipeline for the length of a `with` block, and leave no footprints."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .arch import Family, find_models
from .arch.base import Frame, Negative, cross_attention, joint_attention
from .core.attention import Attended
from .guidance import VSF, Guidance, knobs
from .seam import Install, current_plan, is_compiling, plans

__all__ = ["Guided", "Suppression", "negative_guidance"]


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
            raise ValueError(f"nothing recorded for step {step}, block {block}; steps {self.steps}, blocks {self.blocks}")
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

    def __init__(self, pipe: Any, model: nn.Module, family: Family, guided: Guided, negatives: list[Tensor | None]) -> None:
        self.pipe, self.model, self.family, self.guided = pipe, model, family, guided
        self.method = guided.method
        self.negatives = negatives
        self.frame: Frame | None = None
        self.step = 0
        self.forwards = self.sites_run = 0
        self._arguments = list(inspect.signature(type(model).forward).parameters)[1:]
        self._batches: dict[Any, Any] = {}
        self._joint = family.geometry != "cross"

    # -- the inputs -----------------------------------------------------------------------------------------------

    def before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self.frame = None
        if not self._enabled():
            return None
        call = dict(zip(self._arguments, args, strict=False)) | kwargs
        text = call.get(self.family.text_argument)
        if not isinstance(text, Tensor):
            raise ValueError(f"{type(self.model).__name__} was called without {self.family.text_argument}")
        self.forwards += 0 if is_compiling() else 1
        batch = self._batch(text)
        if batch is None:
            return None
        embeds, keep, ragged, guided, knob = batch
        negative = Negative(embeds, keep)
        upstream = isinstance(self.method, VSF) and self.method.layout == "upstream" and self._joint
        if upstream:
            self.family.extend(call, negative)
        n_pos = call[self.family.text_argument].shape[1]
        self.family.extend(call, negative)
        hidden = torch.zeros(keep.shape, dtype=torch.float32, device=keep.device).masked_fill(~keep, float("-inf"))
        neg_bias = hidden[:, None, None] if ragged else None
        pos_bias = None
        if ragged and upstream:
            seen = hidden.new_zeros(hidden.shape[0], text.shape[1])
            order = [hidden, seen] if self.family.geometry == "text_first" else [seen, hidden]
            pos_bias = torch.cat(order, 1)[:, None, None]
        self.frame = Frame(self.method, n_pos, embeds.shape[1], knob, neg_bias, pos_bias, guided)
        if self.guided.record:
            self.guided._grid = self.family.grid(self.model, call)
        return (), call

    def _enabled(self) -> bool:
        if getattr(self.pipe, "do_classifier_free_guidance", False) is True:
            raise ValueError(
                f"guidance_scale is {getattr(self.pipe, 'guidance_scale', '?')}, so the pipeline runs classifier-free "
                f"guidance of its own; inside negative_guidance use guidance_scale <= 1 (0 for most few-step models)"
            )
        scheduler = getattr(self.pipe, "scheduler", None)
        index = getattr(scheduler, "step_index", None)
        begin = getattr(scheduler, "begin_index", None) or 0
        step = 0 if index is None else index - begin
        if step == 0 and self.step != 0 and self.guided.record:
            self.guided._share.clear()  # a new picture
        self.step = step
        if self.method.start == 0.0 and self.method.stop == 1.0:
            return True
        total = len(scheduler.timesteps) - begin  # pyright: ignore
        return self.method.start * total <= step < self.method.stop * total

    def _batch(self, text: Tensor) -> Any | None:
        """The negatives and knobs repeated to the batch of `text` `[B, P, W]`; None if no sample has a negative."""
        key = (text.shape[0], text.dtype, text.device)
        if key not in self._batches:
            self._batches[key] = self._build(text)
        return self._batches[key]

    def _build(self, text: Tensor) -> Any | None:
        size = text.shape[0]
        negatives = _repeat(self.negatives, size, "negative prompts")
        real = [n for n in negatives if n is not None]
        if not real:
            return None
        longest = max(len(n) for n in real)
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
            if spec.per_sample:
                value = getattr(self.method, name)
                values = _repeat(list(value) if isinstance(value, tuple) else [value], size, f"values of {name}")
                knob[name] = torch.tensor(values, dtype=wide, device=text.device).view(size, 1, 1, 1)
        ragged = not bool(keep.all())
        guided = keep.any(1).view(size, 1, 1, 1) if len(real) < size else None
        return embeds, keep, ragged, guided, knob

    # -- the attention --------------------------------------------------------------------------------------------

    def attention(
        self, site: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None
    ) -> Tensor | None:
        frame = self.frame
        if frame is None:
            return None
        text = frame.n_pos + frame.n_neg
        blocks = self.method.blocks
        active = blocks is None or site in blocks
        record = self._recorder(site) if self.guided.record and active else None
        if not self._joint:
            if k.shape[2] != text:  # an IP-adapter's own call
                return None
            out = cross_attention(frame, q, k, v, mask, scale, active, record)
        else:
            if k.shape[2] != q.shape[2] or k.shape[2] <= text:
                return None
            first = self.family.geometry == "text_first"
            out = joint_attention(frame, q, k, v, mask, scale, active, record, first)
        if not is_compiling():
            self.sites_run += 1
        return out

    def _recorder(self, site: int) -> Any:
        def record(pos: Attended, neg: Attended) -> None:
            assert isinstance(self.method, VSF) and self.frame is not None
            w = self.method.share(pos, neg, self.frame.knob)
            self.guided._share[self.step, site] = w.squeeze(-1).mean(1).float().cpu()

        return record


def _repeat(values: list[Any], size: int, what: str) -> list[Any]:
    """One per sample from one for all, one per prompt (`num_images_per_prompt`), or one per sample."""
    if size % len(values):
        raise ValueError(f"{len(values)} {what} for a batch of {size}; give one for all, or one per prompt or sample")
    return [v for v in values for _ in range(size // len(values))]


def _hook(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    plan = current_plan(id(model))
    return None if plan is None else plan.before_forward(args, kwargs)


def _negatives(
    pipe: Any, family: Family, width: int, method: Guidance, prompt: Any, embeds: Any, max_sequence_length: int | None
) -> list[Tensor | None]:
    if prompt is not None and embeds is not None:
        raise ValueError("both negative_prompt and negative_prompt_embeds were given; give one of them")
    if method.negative == "none":
        return [None]
    if embeds is not None:
        given = list(embeds) if isinstance(embeds, (list, tuple)) else [embeds]
        if not given:
            raise ValueError("negative_prompt_embeds is empty; give a list of [n, d] tensors")
        for x in given:
            if x is not None and not (isinstance(x, Tensor) and x.ndim == 2):
                shape = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
                raise ValueError(f"negative_prompt_embeds holds {shape}; allowed: a list of tensors [n, {width}]")
            if x is not None and x.shape[1] != width:
                raise ValueError(f"negative_prompt_embeds is {x.shape[1]} wide; this model takes text of width {width}")
            if x is not None and not bool(torch.isfinite(x).all()):
                raise ValueError("negative_prompt_embeds holds NaN or infinite values")
        return [None if x is None or len(x) == 0 else x.detach() for x in given]
    if prompt is None:
        raise ValueError(f"{type(method).__name__} needs negative_prompt or negative_prompt_embeds")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("negative_prompt is an empty list; give a string, or one string or None per sample")
    for text in prompts:
        if text is not None and not isinstance(text, str):
            raise TypeError(f"negative_prompt holds {text!r}; allowed: strings, or None for a sample that is not guided")
    if isinstance(pipe, nn.Module):
        if not any(p and p.strip() for p in prompts):
            return [None] * len(prompts)
        raise ValueError("a bare model cannot encode text; give negative_prompt_embeds, or the pipeline instead")
    known: dict[str, Tensor | None] = {}
    with torch.no_grad():
        for text in prompts:
            if text and text.strip() and text not in known:
                encoded = family.encode(pipe, text, method.padded, max_sequence_length)
                known[text] = encoded.detach() if len(encoded) else None
    return [known.get(text) if text else None for text in prompts]


@contextmanager
def negative_guidance(
    pipe_or_model: Any,
    guidance: Guidance,
    negative_prompt: str | Sequence[str | None] | None = None,
    *,
    negative_prompt_embeds: Tensor | Sequence[Tensor | None] | None = None,
    max_sequence_length: int | None = None,
    record: bool = False,
) -> Iterator[Guided]:
    """Guide a diffusers pipeline, or its transformer or UNet, away from a negative prompt inside a `with` block.

    Args:
        pipe_or_model: any stock pipeline of a supported model, or the model itself (then give embeddings).
        guidance: the method with its settings, e.g. `VSF(scale=3.5, offset=0.1)`.
        negative_prompt: a string for all samples, or one per prompt or sample; None or "" = not guided.
        negative_prompt_embeds: instead of text: `[n, d]`, or a list of such, lengths may differ.
        max_sequence_length: for methods that take the negative padded (NAG, NASA): the text length to pad to, where
            it is not the pipeline's default. Give what you give to the pipeline.
        record: keep the suppression map; ask for it with `guided.suppression()`.

    Contexts nest (the innermost on a model counts), are private to the thread that entered them, and restore the
    model on exit, on an exception and on an interrupt.

    Raises:
        UnsupportedModel: the pipeline or model is not supported.
        ValueError: both or neither of text and embeddings, a wrong width, a wrong number of negatives, or (when the
            pipeline runs) classifier-free guidance on top.
        RuntimeError: the model ran inside the context but none of its attention was guided.
    """
    if not isinstance(guidance, Guidance):
        raise TypeError(f"guidance is {guidance!r}; allowed: a method such as VSF(scale=3.5, offset=0.1)")
    if record and not isinstance(guidance, VSF):
        raise ValueError(f"a suppression map is defined for VSF, not for {type(guidance).__name__}")
    targets = find_models(pipe_or_model)
    is_model = isinstance(pipe_or_model, nn.Module)
    if is_model and (guidance.start, guidance.stop) != (0.0, 1.0):
        raise ValueError("start and stop are fractions of a pipeline's steps; give the pipeline instead of the model")
    guided = Guided(guidance, record)
    entered: list[tuple[Plan, list[Any]]] = []
    family, width = targets[0][1], targets[0][1].width(targets[0][0])
    negatives = _negatives(
        pipe_or_model, family, width, guidance, negative_prompt, negative_prompt_embeds, max_sequence_length
    )
    failed = True
    try:
        for model, family in targets:
            sites = list(family.sites(model))
            if guidance.blocks is not None and max(guidance.blocks, default=0) >= len(sites):
                raise ValueError(f"blocks is {guidance.blocks}; {type(model).__name__} has blocks 0 to {len(sites) - 1}")
            plan = Plan(None if is_model else pipe_or_model, model, family, guided, negatives)
            Install.enter(model, sites, _hook)
            # The stack itself is kept, so that a context that is left in another thread (a collected generator)
            # still takes its plan from where it was put.
            stack = plans(id(model))
            entered.append((plan, stack))
            stack.append(plan)
        yield guided
        failed = False
    finally:
        for plan, stack in reversed(entered):
            if plan in stack:
                stack.remove(plan)
            Install.leave(plan.model)
    ran = [p for p, _ in entered if p.forwards]
    if not failed and ran and not any(p.sites_run for p in ran) and any(n is not None for n in negatives):
        if guidance.blocks != ():
            raise RuntimeError(
                f"{type(ran[0].model).__name__} ran inside negative_guidance but none of its attention was guided"
            )


