"""What a context does in a model: its negative joins the text of each forward pass, its method guides the attention."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .arch import Family
from .arch.base import GuidedPass, Negative
from .arch.caches import stateful
from .core.attention import Attend, additive
from .core.geometry import cross_attention, joint_attention, keys_attention
from .core.suppression import Suppression
from .current import plans, publish
from .guidance import Guidance
from .negatives import Batch, Negatives
from .recompute import in_backward, refuse_reentrant, trained, under_reentrant
from .refusals import Call, refuse_model, refuse_own_guidance, refuse_steps, refuse_what_misleads, running_call
from .seam import Install

__all__ = ["Guided", "Plan"]


@dataclass
class Guided:
    """What `with negative_guidance(...) as guided` gives: the record of what happened inside."""

    method: Guidance
    record: bool = False
    _share: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _grid: tuple[int, ...] | None = None
    #: Where schedulers do not count: the step last seen, and the one the picture began with. Of the whole pipeline,
    #: since the second model of Wan 2.2 begins in the middle.
    _last: int | None = None
    _begin: int = 0
    #: Whether a model ran, be it for a block inside this one.
    _ran: bool = False
    #: Forward passes of this block, and which of the method's ranges of steps (by number) one of them lay in, and which of
    #: the negative's windows (by their times) one that was guided.
    _passes: int = 0
    _met: set[int | tuple[float, float]] = field(default_factory=set)

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
    """One block on one model. Several threads may run passes of it at a time.

    What is built once, when the block is entered: the method, the negatives, the model's family and its taps. What is
    built once per batch size: a `Batch`. What lives for one forward pass: a `Pass`, from `begin` until the hook behind
    the model ends it.
    """

    def __init__(
        self,
        pipe: Any,
        outer: nn.Module,
        model: nn.Module,
        family: Family,
        guided: Guided,
        negatives: tuple[Negatives, ...],
    ) -> None:
        self.pipe, self.outer, self.model, self.family, self.guided = pipe, outer, model, family, guided
        self.sites = list(family.sites(model))
        #: One for all texts of the model, or one for each of `family.streams`.
        self.method, self.negatives = guided.method, negatives
        self.windows = tuple(sorted({window for own in negatives for window in own.distinct}))
        self.step = 0
        #: By thread; each is used again by the next pass there.
        self.passes: dict[int, Pass] = {}
        self._lock = threading.RLock()  # whether a pass runs, and whether the block is left, change together
        self.left = False
        #: Whether a pass was still running in another thread when it was left, and whether model.compile() had taken the
        #: guidance off by then.
        self.outlived, self.compiled_anew = False, False
        self.compiled = any(getattr(m, "_compiled_call_impl", None) for m in model.modules()) or outer is not model
        self._arguments = list(inspect.signature(type(model).forward).parameters)[1:]
        self._batches: dict[Any, tuple[Batch | None, ...]] = {}
        #: Whether text stands among the queries.
        self.joint = family.geometry not in ("cross", "keys")
        self.late = bool(family.taps(model)) and family.late

    # -- its life -------------------------------------------------------------------------------------------------

    @property
    def frame(self) -> GuidedPass | None:
        """That of the pass which this thread runs."""
        pass_ = self.passes.get(threading.get_ident())
        return None if pass_ is None else pass_.frame

    def install(self, owner: object) -> None:
        """Put the guidance on the model, or join what is there, until `owner` leaves."""
        taps = functools.partial(self.family.taps, self.model)
        Install.enter(owner, self.model, self.outer, self.sites, _begin, _end, taps)

    def leave(self) -> None:
        """The block is over.

        A pass that is still running in another thread keeps what it needs to its end, so that it does not go on with
        half of it; the next is not guided.
        """
        self.compiled_anew = Install.compiled_anew(self.model)
        alive = {t.ident for t in threading.enumerate()} - {threading.get_ident()}
        with self._lock:
            running = [p for p in self.passes.values() if p.frame is not None and p.thread in alive]
            for pass_ in running:
                self.install(pass_)
            self.left, self.outlived = True, bool(running)
            for pass_ in self.passes.values():
                if pass_ not in running:
                    pass_.frame = None
        Install.leave(self, self.model)

    def end(self, pass_: Pass) -> None:
        """The pass is over: what it needed must not meet another one, nor keep its tensors alive."""
        with self._lock:
            pass_.frame = None
            if self.left:
                Install.leave(pass_, self.model)

    def again(self, frame: GuidedPass, block: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a part of the model as in the pass with this frame; the block may be over."""
        pass_ = Pass(self)
        pass_.frame, pass_.remembered = frame, True
        before = publish(id(self.model), pass_)
        try:
            self.install(pass_)
            return block(*args, **kwargs)
        finally:
            publish(id(self.model), before)
            Install.leave(pass_, self.model)

    # -- the inputs -----------------------------------------------------------------------------------------------

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Pass, dict[str, Any]] | None:
        """Make the frame of the forward pass that begins, and lengthen its text by the negative.

        Returns:
            The pass, and the model's new arguments by name; None where it is not guided (a step out of range, no
            negative).

        Raises:
            ValueError: classifier-free guidance on top, a text that is no tensor, or a number of negatives that does not
                fit the batch.
        """
        call = dict(zip(self._arguments, args, strict=False)) | kwargs
        running = running_call(self.model)
        if running is not None:
            refuse_own_guidance(running, self.family)
            refuse_what_misleads(running)
        active, held, step = self._active(call, running)
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
        twice = running is not None and running.draws_twice
        if running is not None and twice and self.joint:
            raise ValueError(
                f"{type(running.pipe).__name__} perturbs the attention that text and image share, in a processor that cannot "
                "be guided; use pag_scale=0, or the pipeline without perturbed attention"
            )
        batches = self._batch(text, active, held, twice)
        frames = tuple(
            None if batch is None else self._frame(batch, text, call, None if len(batches) == 1 else stream)
            for stream, batch in enumerate(batches)
        )
        frame = next((f for f in frames if f is not None), None)
        if frame is None:
            return None
        if len(frames) > 1:
            frame = replace(frame, streams=frames)
        if self.guided.record:
            self.guided._grid = self.family.grid(self.model, call)
        pass_ = self.passes.setdefault(threading.get_ident(), Pass(self))
        pass_.step, pass_.active, pass_.twice, pass_.reached = step, (active, held), twice, False
        with self._lock:
            if self.left:
                return None
            pass_.frame = frame
        return pass_, call

    def _batch(
        self, text: Tensor, active: tuple[bool, ...], held: tuple[bool, ...], twice: bool
    ) -> tuple[Batch | None, ...]:
        key = (text.shape[0], text.dtype, text.device, twice, held, active)
        if key not in self._batches:
            once, model = text[: len(text) // 2] if twice else text, type(self.model).__name__
            batches = list[Batch | None]()
            for negatives in self.negatives:
                given = negatives.at(dict(zip(self.windows, held, strict=True)))
                room = max((len(x) for x in negatives.embeds if x is not None), default=0)
                batch = Batch.of(given, self.method, once, active, self.compiled, model, room)
                batches.append(batch.twice() if twice and batch is not None else batch)
            self._batches[key] = tuple(batches)
        return self._batches[key]

    def _frame(self, batch: Batch, text: Tensor, call: dict[str, Any], stream: int | None = None) -> GuidedPass:
        """The frame of a pass whose prompt is `text` `[B, P, W]`, for all texts of the model or one `stream`; changes
        `call`, the model's arguments by name."""
        n = batch.embeds.shape[1]
        negative = Negative(batch.embeds, batch.keep, padded=self.method.negative == "padded", stream=stream)
        appends = self.method.appends and self.joint
        if appends:
            self.family.extend(call, replace(negative, copy=True))
        n_pos = (self.family.text(call) if stream is None else text).shape[1]
        if not self.late:
            self.family.extend(call, negative)
        hidden = additive(batch.keep, torch.float32)
        pos_bias = None
        if batch.ragged and appends and not self.late:
            seen = hidden.new_zeros(hidden.shape[0], text.shape[1])
            order = [hidden, seen] if self.family.geometry == "text_first" else [seen, hidden]
            pos_bias = torch.cat(order, 1)[:, None, None]
        return GuidedPass(
            self.method, n_pos, n, batch.knob, hidden[:, None, None] if batch.ragged else None, pos_bias,
            batch.guided, batch.weight, n if appends else 0, negative=negative, call=call, grad=torch.is_grad_enabled(),
        )  # fmt: skip

    def _active(self, call: Mapping[str, Any], running: Call | None) -> tuple[tuple[bool, ...], tuple[bool, ...], int]:
        """Whether this step is guided: once for all samples, or once per entry of `method.ranges` where they differ; which of
        the negative's windows hold in it; and its number, where that is wanted."""
        guided, ranges = self.guided, self.method.ranges
        guided._passes += 1
        if ranges == ((0.0, 1.0),) and not self.windows and not guided.record:
            guided._met.add(0)
            return (True,), (), 0
        if running is not None:
            refuse_steps(running)
        step, total = self._step(call, getattr(self.pipe if running is None else running.pipe, "scheduler", None))
        if step == 0 and self.step != 0 and guided.record:
            guided._share.clear()  # a new picture
        self.step = step
        active = tuple(_holds(start, stop, step, total) for start, stop in ranges)
        guided._met.update(i for i, on in enumerate(active) if on)
        held = tuple(_holds(*window, step, total) for window in self.windows)
        if any(active):
            guided._met.update(window for window, on in zip(self.windows, held, strict=True) if on)
        return active if len(set(active)) > 1 else active[:1], held, step

    def _step(self, call: Mapping[str, Any], scheduler: Any) -> tuple[int, int]:
        """The number of this step, and of all steps, of the picture being drawn (image-to-image begins later)."""
        guided = self.guided
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


class Pass:
    """A forward pass in one thread; the guided attention works on it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.thread = threading.get_ident()
        self.frame: GuidedPass | None = None  # None: not running, or not guided
        self.step = 0
        #: Which samples are guided, and which of the negative's windows hold.
        self.active: tuple[tuple[bool, ...], tuple[bool, ...]] = (True,), ()
        #: Whether all samples stand in it a second time, behind the first.
        self.twice = False
        self.reached = False
        #: Within a checkpointed block that will see this frame when it is run again.
        self.remembered = False

    def attention(
        self, site: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, kernel: Attend
    ) -> Tensor | None:
        """The guided attention of a block, or None where this is not the attention over the text.

        Args:
            site: the number of the block.
            q, k, v: `[B, H, S, D]` as the model's processor made them, with the negative's tokens among them.
            mask: the model's own, boolean or a bias, broadcasting to `[B, H, S, K]`.
            scale: of the scores; None: `D**-0.5`.
            kernel: what the model itself would have called.

        Returns:
            `[B, H, S, D]`.
        """
        frame, plan = self.frame, self.plan
        if frame is None or frame.last == site:  # the second: an adapter's own attention
            return None
        if frame.skip:
            frame.skip = False
            return None
        if frame.grad and not torch.compiler.is_compiling() and not torch.is_grad_enabled() and not self.remembered:
            refuse_reentrant(plan.model, "a checkpointing that guidance does not know runs its blocks again")
        own = frame.streams[plan.family.stream_of(plan.model, site)] if frame.streams else frame
        if own is None:  # the text of this attention has no negative
            return None
        text = own.n_pos + own.n_neg
        blocks = plan.method.blocks
        active = blocks is None or site in blocks
        record = self._recorder(site) if plan.guided.record and active else None
        if not plan.joint:
            keys = plan.family.geometry == "keys"
            if k.shape[2] != text + (q.shape[2] if keys else 0):
                return None
            attention = keys_attention if keys else cross_attention
            out = attention(own.on(q.device), q, k, v, mask, scale, active, record, kernel=kernel)
        else:
            if k.shape[2] != q.shape[2] or k.shape[2] <= text:
                return None
            first = plan.family.geometry == "text_first"
            if plan.late and mask is not None:  # made by the model, which does not know of the negative's columns
                visible = mask.dtype == torch.bool  # 0 in a bias
                mask = torch.nn.functional.pad(mask[..., : k.shape[2] - frame.n_neg], (0, frame.n_neg), value=visible)
            out = joint_attention(own.on(q.device), q, k, v, mask, scale, active, record, first, kernel=kernel)
        frame.last = site
        self.reached = True  # a plain store, which a compiled graph replays without guarding on it
        return out

    def _recorder(self, site: int) -> Callable[[Tensor], None]:
        share, at, twice = self.plan.guided._share, (self.step, site), self.twice

        def record(w: Tensor) -> None:
            share[at] = w[: len(w) // 2] if twice else w

        return record


def _begin(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Called in front of each forward pass of a model that is guided by somebody, in whatever thread."""
    _drop(model)  # what an interrupt left
    open_here: list[Plan] = plans(id(model))
    for plan in open_here:
        plan.guided._ran = True
    plan = open_here[-1] if open_here else _recomputed(model)
    Install.before_forward(model, plan is not None)
    if plan is None:
        return None
    refuse_model(model, plan.family, plan.method, plan.guided.record)
    if under_reentrant():
        refuse_reentrant(model, "the whole model is run again, after the block or in another thread")
    begun = plan.begin(args, kwargs)
    if begun is None:
        Install.changed(model, None)
        return None
    pass_, call = begun
    Install.changed(model, (plan, pass_.active))
    publish(id(model), pass_)
    return (), call


def _recomputed(model: nn.Module) -> Plan | None:
    """The block of a model that is run again as a whole, by a backward pass that is in another thread than it."""
    live = Install.on(model)
    if live is None or id(model) not in trained or not in_backward():
        return None
    found = [user for user in live.users.values() if isinstance(user, Plan)]
    if len(found) > 1:
        raise RuntimeError(
            f"{type(model).__name__} is run again in the backward pass while {len(found)} blocks guide it, and nothing "
            "says which of them it belongs to; use model.enable_gradient_checkpointing(), or one block at a time"
        )
    return found[0] if found else None


def _end(model: nn.Module, done: bool) -> None:
    """Called behind it; `done`: it came to its end."""
    pass_ = _drop(model)
    if pass_ is None or not done or pass_.reached:
        return
    if not any(stateful(model)):  # a step cache may skip all attention of a pass
        raise RuntimeError(f"{type(model).__name__} ran inside negative_guidance but none of its attention was guided")


def _drop(model: nn.Module) -> Pass | None:
    """End the guided pass that this thread runs of the model, if it does."""
    pass_: Pass | None = publish(id(model), None)
    if pass_ is None or pass_.frame is None:
        return None
    pass_.plan.end(pass_)
    return pass_


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
