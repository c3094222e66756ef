"""Gradient checkpointing: the backward pass runs blocks again, and they see what they saw at first, or it is refused."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

import specs
from closeness import differs, rounding, same
from test_contract import fingerprint, first, negatives
from vsf import NAG, VSF, Guidance, negative_guidance

SPECS = specs.load()
F64 = torch.float64
STEP: Callable[..., Any] = functools.partial(checkpoint, use_reentrant=False)
REENTRANT: Callable[..., Any] = functools.partial(checkpoint, use_reentrant=True)
#: One of each family that can do it, with taps of every kind among them.
NAMES = [
    "sd3", "unet", "wan", "wan-vace", "wan-i2v", "flux", "flux2", "qwen-mask", "chroma", "cogview4", "bria", "longcat", "ovis",
    "hunyuan-video", "z-image", "lumina2", "pixart", "sana", "ltx", "ltx2",
]  # fmt: skip


class Case:
    """A model in training, and its gradients without checkpointing."""

    def __init__(self, name: str, method: Guidance | None = None, *given: int) -> None:
        self.spec, self.method = SPECS[name], method or VSF(3.5, 0.1)
        self.model: Any = self.spec.build(F64).requires_grad_(True)
        self.given: Any = negatives(self.spec, *(given or (3, 4)))
        self.bound = rounding(self.model, F64, passes=2)  # forward and backward

    def block(self, given: Any = None) -> Any:
        return negative_guidance(self.model, self.method, negative_prompt_embeds=given or self.given)

    def inputs(self) -> dict[str, Any]:
        """With gradients of their own: a re-entrant checkpoint without any in its arguments has no backward at all."""
        return {
            k: v.requires_grad_(True) if isinstance(v, Tensor) and v.is_floating_point() and v.ndim > 2 else v
            for k, v in self.spec.inputs(2, 5, F64).items()
        }

    def loss(self, run: Callable[..., Any] | None = None) -> Tensor:
        out = first((self.model if run is None else run)(**self.inputs()))
        return (out * torch.linspace(-1, 1, out[0].numel(), dtype=out.dtype).view_as(out[0])).sum()

    def gradients(self) -> Tensor:
        found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.model.parameters()]
        self.model.zero_grad()
        return torch.cat([g.flatten() for g in found])

    def wanted(self) -> Tensor:
        with self.block():
            self.loss().backward()
        return self.gradients()

    def unguided(self) -> Tensor:
        self.loss().backward()
        return self.gradients()


def counted(case: Case) -> list[int]:
    """Gets longer with every run of the first guided attention."""
    ran: list[int] = []
    family = __import__("vsf.arch", fromlist=["family_of"]).family_of(case.model)
    family.sites(case.model)[0].register_forward_pre_hook(lambda *_: ran.append(1))
    return ran


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradients_are_the_same(name: str, after: bool) -> None:
    """Also where the backward pass comes after the block, which is gone by then."""
    case = Case(name)
    wanted, plain, ran = case.wanted(), case.unguided(), counted(case)
    differs(wanted, plain, case.bound)
    case.model.enable_gradient_checkpointing()
    case.model.train()
    before = fingerprint(case.model)
    with case.block():
        loss = case.loss()
        if not after:
            loss.backward()
    if after:
        assert fingerprint(case.model) == before
        loss.backward()
    assert len(ran) > 1, "nothing was run again"
    same(case.gradients(), wanted, case.bound)
    assert fingerprint(case.model) == before
    same(case.unguided(), plain, case.bound)


@pytest.mark.parametrize("method", [VSF(3.3, 0.2, "upstream"), VSF(4.0, normalize=1.0), NAG(4.0, 1.2, 0.5)], ids=repr)
@pytest.mark.parametrize("name", ["sd3", "wan-i2v", "z-image", "lumina2"])
def test_with_other_methods(name: str, method: Guidance) -> None:
    case = Case(name, method, 3)
    wanted = case.wanted()
    case.model.enable_gradient_checkpointing()
    with case.block():
        case.loss().backward()
    same(case.gradients(), wanted, case.bound)


@pytest.mark.parametrize("name", ["sd3", "unet", "wan", "wan-i2v", "flux", "qwen-mask", "hunyuan-video", "pixart"])
def test_re_entrant(name: str) -> None:
    case = Case(name)
    if name == "wan-i2v":  # else the negative's tokens, which are no argument, would have a gradient
        case.model.condition_embedder.requires_grad_(False)
    wanted, ran = case.wanted(), counted(case)
    case.model.enable_gradient_checkpointing(REENTRANT)
    for after in (False, True):
        del ran[:]
        with case.block():
            loss = case.loss()
            if not after:
                loss.backward()
        if after:
            loss.backward()
        assert len(ran) > 1
        same(case.gradients(), wanted, case.bound)


@pytest.mark.parametrize("name", ["z-image", "lumina2", "wan-i2v"])
def test_re_entrant_is_refused_where_it_loses_the_negatives_gradients(name: str) -> None:
    case = Case(name)
    before = fingerprint(case.model)
    case.model.enable_gradient_checkpointing(REENTRANT)
    with pytest.raises(ValueError, match=r"use_reentrant=True.*use use_reentrant=False"), case.block():
        case.loss()
    assert fingerprint(case.model) == before


def test_two_passes_before_one_backward() -> None:
    """In the other order, each with its own negatives, and one without any."""
    case = Case("sd3")
    other = negatives(case.spec, 6, 2, seed=9)
    with case.block():
        total = case.loss()
    with case.block(other):
        total = total + 2.0 * case.loss()
    (total + 3.0 * case.loss()).backward()
    wanted = case.gradients()
    case.model.enable_gradient_checkpointing()
    with case.block():
        total = case.loss()
        with case.block(other):
            total = total + 2.0 * case.loss()
        with case.block([None]):
            total = total + 3.0 * case.loss()
    with case.block(negatives(case.spec, 1, 1)):
        case.loss()
        total.backward()
    same(case.gradients(), wanted, case.bound)


def test_a_backward_pass_in_another_thread() -> None:
    """As on a GPU, where it runs in a thread of its own."""
    case = Case("unet")
    wanted = case.wanted()
    case.model.enable_gradient_checkpointing()
    for after in (False, True):
        with case.block():
            loss = case.loss()
            thread = threading.Thread(target=loss.backward)
            if not after:
                thread.start()
                thread.join()
        if after:
            thread.start()
            thread.join()
        same(case.gradients(), wanted, case.bound)


@pytest.mark.parametrize("how", ["inside", "off again", "other function inside"])
def test_switched_inside(how: str) -> None:
    case = Case("sd3")
    wanted = case.wanted()
    mine: Callable[..., Any] = lambda module, *args: STEP(module, *args)  # noqa: E731
    if how != "inside":
        case.model.enable_gradient_checkpointing()
    with case.block():
        case.loss().backward()
        case.gradients()
        if how == "inside":
            case.model.enable_gradient_checkpointing()
        elif how == "off again":
            case.model.disable_gradient_checkpointing()
        else:
            case.model.enable_gradient_checkpointing(mine)
        case.loss().backward()
    same(case.gradients(), wanted, case.bound)
    functions = {vars(m).get("_gradient_checkpointing_func") for m in case.model.modules()}
    assert not any("vsf" in type(f).__module__ for f in functions)
    assert how != "other function inside" or mine in functions


def test_what_is_copied_inside_has_the_models_own_function() -> None:
    case = Case("sd3")
    case.model.enable_gradient_checkpointing(STEP)
    with case.block():
        case.loss()
        twin: Any = copy.deepcopy(case.model)
    assert isinstance(twin._gradient_checkpointing_func, functools.partial)
    wanted, case.model = case.wanted(), twin
    same(case.wanted(), wanted, case.bound)


# -- other checkpointing than the model's own ---------------------------------------------------------------------------


def wrap(model: Any, **kwargs: Any) -> None:
    """As FSDP and accelerate do."""
    model.transformer_blocks = torch.nn.ModuleList([checkpoint_wrapper(b, **kwargs) for b in model.transformer_blocks])


@pytest.mark.parametrize("after", [False, True])
def test_wrapped_blocks(after: bool) -> None:
    case = Case("sd3")
    wanted, ran = case.wanted(), counted(case)
    wrap(case.model)
    with case.block():
        loss = case.loss()
        if not after:
            loss.backward()
    if after:
        loss.backward()
    assert len(ran) == 2
    same(case.gradients(), wanted, case.bound)


class Foreign(torch.nn.Module):
    """A block that checkpoints itself, in a way nobody can know."""

    def __init__(self, block: Any, step: Callable[..., Any]) -> None:
        super().__init__()
        self.block, self.step = block, step

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.block, name)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, **kwargs: Any) -> Any:
        return self.step(self.block, hidden_states, encoder_hidden_states, temb)


def test_unknown_checkpointing_of_blocks_is_refused() -> None:
    for step, kind, says in (
        (STEP, RuntimeError, "a checkpointing that guidance does not know.*enable_gradient_checkpointing"),
        (REENTRANT, ValueError, "use_reentrant=True.*use use_reentrant=False"),
    ):
        case = Case("sd3")
        plain = case.unguided()
        case.model.transformer_blocks = torch.nn.ModuleList([Foreign(b, step) for b in case.model.transformer_blocks])
        with pytest.raises(kind, match=says), case.block():
            case.loss().backward()
        case.gradients()
        same(case.unguided(), plain, case.bound)


@pytest.mark.parametrize("other_thread", [False, True])
@pytest.mark.parametrize("name", ["sd3", "z-image", "wan-i2v"])
def test_the_whole_model_checkpointed(name: str, other_thread: bool) -> None:
    case = Case(name)
    wanted, ran = case.wanted(), counted(case)
    with case.block():
        loss = case.loss(lambda **call: STEP(case.model, **call))
        if other_thread:
            thread = threading.Thread(target=loss.backward)
            thread.start()
            thread.join()
        else:
            loss.backward()
    assert len(ran) == 2
    same(case.gradients(), wanted, case.bound)


def test_the_whole_model_re_entrant_is_refused() -> None:
    case = Case("sd3")

    def run(**call: Any) -> Any:
        def positional(hidden_states: Tensor) -> Any:
            return case.model(**call | {"hidden_states": hidden_states})

        return checkpoint(positional, call["hidden_states"], use_reentrant=True)

    with pytest.raises(ValueError, match=r"use_reentrant=True.*use use_reentrant=False"), case.block():
        case.loss(run)


def test_the_whole_model_under_two_blocks_in_another_thread_is_refused() -> None:
    case, errors = Case("sd3"), []

    def backward(loss: Tensor) -> None:
        try:
            loss.backward()
        except RuntimeError as e:
            errors.append(str(e))

    with case.block():
        loss = case.loss(lambda **call: STEP(case.model, **call))
        with case.block(negatives(case.spec, 2, 2)):
            case.loss()
            thread = threading.Thread(target=backward, args=(loss,))
            thread.start()
            thread.join()
    assert len(errors) == 1 and "2 blocks guide it" in errors[0]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of Dynamo itself
@pytest.mark.parametrize(("name", "in_place"), [("sd3", False), ("wan", True), ("unet", False)])
def test_compiled(name: str, in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    case = Case(name)
    monkeypatch.setattr(case, "inputs", lambda: case.spec.inputs(2, 5, F64))
    wanted = case.wanted()
    case.model.enable_gradient_checkpointing()
    compiled = case.model
    if in_place:
        case.model.compile(backend="aot_eager")
    else:
        compiled = torch.compile(case.model, backend="aot_eager")
    for _ in range(2):
        with negative_guidance(compiled, case.method, negative_prompt_embeds=case.given):
            case.loss(compiled).backward()
        same(case.gradients(), wanted, case.bound)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # Dynamo itself does
@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_gradients_of_a_compiled_model(name: str) -> None:
    """In one graph, with those of the log-sum-exp."""
    torch._dynamo.reset()
    case, graphs = Case(name), torch._dynamo.utils.counters["stats"]
    specs.shorten(case.model)
    inputs, wanted = case.spec.inputs(2, 5, F64), []
    case.inputs = lambda: inputs  # pyright: ignore[reportAttributeAccessIssue]
    others = (case.given, negatives(case.spec, 9, 2, seed=5))
    for given in others:
        with case.block(given):
            case.loss().backward()
        wanted.append(case.gradients())
    compiled = torch.compile(case.model, backend="aot_eager", fullgraph=True)
    before = graphs["unique_graphs"]
    for given, truth in zip(others, wanted, strict=True):
        with negative_guidance(compiled, case.method, negative_prompt_embeds=given):
            case.loss(compiled).backward()
        same(case.gradients(), truth, case.bound)
    assert graphs["unique_graphs"] == before + 1
    torch._dynamo.reset()
