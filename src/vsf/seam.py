"""What is put on a model for the time it is guided, and taken away without a trace."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .arch.caches import forget
from .current import running
from .processors import release, stock, twin
from .recompute import Checkpointing, trained

__all__ = ["Install"]


def _set_processor(attention: nn.Module, processor: Any) -> None:
    # Some processors (IP-adapter) are modules and live in _modules, where the order is that of the state dict.
    where: dict[str, Any] = attention._modules if "processor" in attention._modules else attention.__dict__  # pyright: ignore
    where["processor"] = processor


def _before(
    key: int, tap: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    pass_ = running(key)
    return None if pass_ is None or pass_.frame is None else tap(pass_.frame, args, kwargs)


def _after(key: int, tap: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    pass_ = running(key)
    return None if pass_ is None or pass_.frame is None else tap(pass_.frame, args, output)


@torch._disable_dynamo
def _untraced(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _input(
    begin: Callable[..., Any], model: nn.Module, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    # Being traced: the model was compiled while it is guided, and this with it.
    return _untraced(begin, model, args, kwargs) if torch.compiler.is_compiling() else begin(model, args, kwargs)


def _output(end: Callable[..., None], model: nn.Module, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    done = output is not None  # None: after an exception
    _untraced(end, model, done) if torch.compiler.is_compiling() else end(model, done)


def _around(
    begin: Callable[..., Any],
    end: Callable[..., None],
    model: nn.Module,
    compiled: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    args, kwargs = begin(model, args, kwargs) or (args, kwargs)
    output = None
    try:
        output = compiled(*args, **kwargs)
    finally:
        end(model, output is not None)
    return output


class _State:
    """`__getstate__` of a module that has hooks of ours: what is copied or saved of it is the module without them.

    On the module itself and not its class: exchanging that would be noticed by whoever asks for the type.
    """

    def __init__(self, module: nn.Module, own: Callable[[], set[int]]) -> None:
        self._module, self._own = module, own

    def __call__(self) -> Any:
        state: Any = type(self._module).__getstate__(self._module)
        own = self._own()
        clean = {
            name: type(value)((k, v) for k, v in value.items() if k not in own) if name in _HOOKS else value
            for name, value in state.items()
            if name != "__getstate__"
        }
        return clean


#: The dictionaries of a module whose keys are the ids of hooks.
_HOOKS = {
    "_forward_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
}  # fmt: skip


class Install:
    """Processors, taps and the hooks around one model, shared by all contexts that guide it at a time.

    Args:
        model: the model; `outer`: the same in its `torch.compile` wrapper, if it has one.
        sites: the attention modules to guide.
        begin: called in front of each forward pass, outside of compiled graphs, with the model and its arguments; returns
            other `(args, kwargs)`, or None.
        end: called behind each forward pass with the model and whether it came to its end.
        taps: gives the family's taps on the modules that the model has now.
    """

    _lock = threading.RLock()
    _live: dict[int, Install] = {}

    def __init__(
        self,
        model: nn.Module,
        outer: nn.Module,
        sites: Sequence[nn.Module],
        begin: Callable[..., Any],
        end: Callable[..., None],
        taps: Callable[[], Sequence[Any]],
    ) -> None:
        self.model = model
        #: By id, those for whom this is here: open blocks, and passes that outlive theirs.
        self.users: dict[int, Any] = {}
        self.guided_by: Any = None
        self._twins: list[Any] = []
        # All twins before the first is set: a processor that cannot be guided must leave the model untouched.
        self.sites = [self._site(a, number) for number, a in enumerate(sites)]
        self._handles: list[Any] = []
        self._tapped: list[tuple[Any, list[Any]]] = []
        self._states: dict[int, tuple[nn.Module, _State]] = {}
        self._checkpointing = Checkpointing(model)
        self._compiled: tuple[Any, Any] | None = None
        self._begin, self._end, self._taps, self._outer = begin, end, taps, outer
        #: Forward passes of no block: in threads and tasks that do not belong to one.
        self.strangers = 0

    def _site(self, attention: Any, number: int) -> tuple[Any, Any, Any]:
        """The attention module, its own processor, and the guided one. (One set inside may be a guided one itself.)"""
        original = stock(attention.processor)
        self._twins.append(twin(original, id(self.model), number))
        return attention, original, self._twins[-1]

    def put(self) -> None:
        """Put everything on the model. `remove` takes back whatever part of it is there."""
        model, outer = self.model, self._outer
        for attention, _, guided in self.sites:
            _set_processor(attention, guided)
        # The hooks stay out of compiled graphs, so that a new prompt, step or strength is a new tensor to them and
        # never a new graph: on the wrapper of torch.compile(model), or around what model.compile() compiled.
        compiled = getattr(model, "_compiled_call_impl", None) if outer is model else None
        if compiled is None:
            self._keep_out(outer)
            before = functools.partial(_input, self._begin, model)
            self._handles.append(outer.register_forward_pre_hook(before, with_kwargs=True))
            after = functools.partial(_output, self._end, model)
            self._handles.append(outer.register_forward_hook(after, always_call=True))
        else:
            around = functools.partial(_around, self._begin, self._end, model, compiled)
            self._compiled = compiled, around
            model._compiled_call_impl = around
        self._tap()

    def _keep_out(self, module: nn.Module) -> None:
        """Keep our hooks out of what is copied or saved of this module."""
        if id(module) not in self._states and "__getstate__" not in module.__dict__:
            self._states[id(module)] = module, _State(module, self._ids)
            module.__dict__["__getstate__"] = self._states[id(module)][1]

    def _ids(self) -> set[int]:
        return {handle.id for handle in [*self._handles, *(h for _, handles in self._tapped for h in handles)]}

    def _tap(self) -> None:
        """Put the taps on the modules that are there now (a LoRA that is loaded exchanges the projections)."""
        taps = list(self._taps())
        if [id(t.module) for t in taps] == [id(t.module) for t, _ in self._tapped]:
            return
        self._untap()
        for tap in taps:
            self._keep_out(tap.module)
            handles: list[Any] = []
            self._tapped.append((tap, handles))
            if tap.before is not None:
                before = functools.partial(_before, id(self.model), tap.before)
                handles.append(tap.module.register_forward_pre_hook(before, with_kwargs=True))
            if tap.after is not None:
                after = functools.partial(_after, id(self.model), tap.after)
                handles.append(tap.module.register_forward_hook(after))

    def _untap(self) -> None:
        for _, handles in self._tapped:
            for handle in handles:
                handle.remove()
        self._tapped.clear()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._untap()
        if self._compiled is not None:
            compiled, around = self._compiled
            if getattr(self.model, "_compiled_call_impl", None) is around:
                self.model._compiled_call_impl = compiled
        for attention, original, guided in self.sites:
            if attention.processor is guided:
                _set_processor(attention, original)
        for guided in self._twins:  # somebody may have kept them
            release(guided)
        self._checkpointing.remove()
        for module, state in self._states.values():
            if module.__dict__.get("__getstate__") is state:
                del module.__dict__["__getstate__"]
        trained.discard(id(self.model))
        forget(self.model)

    def adopt(self) -> None:
        """Guide what somebody set since: processors (fused projections, an adapter loaded inside the context) and modules
        with a tap."""
        for number, (attention, _, guided) in enumerate(self.sites):
            if attention.processor is not guided:
                self.sites[number] = self._site(attention, number)
                _set_processor(attention, self.sites[number][2])
        self._tap()

    @classmethod
    def before_forward(cls, model: nn.Module, guided: bool) -> None:
        """Bring the installation up to date with what was done to the model since the last forward pass."""
        with cls._lock:
            if (live := cls._live.get(id(model))) is not None:
                if guided:
                    live.adopt()
                else:
                    live.strangers += 1
                if torch.is_grad_enabled():
                    live._checkpointing.put()
                    trained.update([id(model)] if guided else [])

    @classmethod
    def changed(cls, model: nn.Module, guided_by: Any) -> None:
        """Say what guides the forward pass that begins; caches do not outlive a change of it."""
        with cls._lock:
            live = cls._live.get(id(model))
            if live is not None and live.guided_by != guided_by:
                live.guided_by = guided_by
                forget(model)

    @classmethod
    def on(cls, model: nn.Module) -> Install | None:
        """What is installed on the model now."""
        return cls._live.get(id(model))

    @classmethod
    def compiled_anew(cls, model: nn.Module) -> bool:
        """Whether a model that was compiled in place was so once more since, which takes the hooks off it."""
        live = cls._live.get(id(model))
        put = None if live is None else live._compiled
        return put is not None and getattr(model, "_compiled_call_impl", None) is not put[1]

    @classmethod
    def enter(cls, owner: object, model: nn.Module, *args: Any) -> None:
        """Install on `model`, or join the installation that is there; see `Install` for the arguments."""
        with cls._lock:
            live = cls._live.get(id(model))
            new = live is None
            if live is None:
                live = cls._live[id(model)] = cls(model, *args)
            live.users[id(owner)] = owner
            if new:
                live.put()

    @classmethod
    def leave(cls, owner: object, model: nn.Module) -> None:
        """Leave; the last user removes everything. Also right where `enter` was interrupted, or never came."""
        with cls._lock:
            live = cls._live.get(id(model))
            if live is not None:  # None: interrupted before anything was installed
                live.users.pop(id(owner), None)
                if not live.users:
                    del cls._live[id(model)]
                    live.remove()
