"""What every supported model has to fulfil, on the real diffusers classes."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import definition
import specs
import vsf.guide
import vsf.seam
from specs import Spec
from vsf import NAG, NASA, VSF, Guidance, NoGuidance, negative_guidance
from vsf.arch import family_of
from vsf.core.attention import Attended

SPECS = specs.load()
METHODS: dict[str, Guidance] = {
    "vsf": VSF(3.5, 0.1),
    "vsf-weak": VSF(0.7, 0.4),
    "vsf-normalized": VSF(4.0, 0.1, normalize=1.0),
    "nag": NAG(4.0, 1.2, 0.5),
    "nasa": NASA(0.4),
}


F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Swap(Guidance):
    """Not a method: puts the negative branch in the place of the positive one.

    A model guided by it must draw what the stock model draws when the negative prompt is its prompt. That proves,
    against code we did not write, that the negative's text stream, its positions and its masks are right.
    """

    negative = "branch"
    padded = True
    label = "swap"

    def combine(self, pos: Attended, neg: Attended, knob: Mapping[str, Tensor]) -> Tensor:
        return neg.out


@pytest.fixture(params=list(SPECS))
def spec(request: pytest.FixtureRequest) -> Spec:
    return SPECS[request.param]


def negatives(spec: Spec, *lengths: int, seed: int = 2) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, spec.width, generator=g) for n in lengths]


def first(out: Any) -> Tensor:
    """The prediction, one tensor for the whole batch (some models return a list)."""
    out = out[0] if isinstance(out, tuple) else out
    return torch.stack(list(out)) if isinstance(out, list) else out


def run(model: Any, call: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return first(model(**call))


def run_guided(model: Any, call: dict[str, Any], method: Guidance, embeds: Any) -> Tensor:
    with negative_guidance(model, method, negative_prompt_embeds=embeds):
        return run(model, call)


def row(value: Any, i: int, batch: int) -> Any:
    """Sample `i` of a batched call."""
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch:
        return value[i : i + 1]
    if isinstance(value, list) and len(value) == batch:
        return value[i : i + 1]
    return {k: row(v, i, batch) for k, v in value.items()} if isinstance(value, dict) else value


def error(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def fingerprint(model: Any) -> list[Any]:
    """Everything a context could leave on a model."""
    return [
        (name, getattr(m, "processor", None), len(m._forward_pre_hooks), len(m._forward_hooks), sorted(vars(m)))
        for name, m in model.named_modules()
    ]


def untouched(model: Any, before: list[Any]) -> bool:
    """Whether nothing of a context is left, on the model or about it."""
    return (
        fingerprint(model) == before
        and not vsf.seam.plans(id(model))
        and id(model) not in vsf.seam.Install._live
        and not any(type(m).__name__.startswith("Guided") for m in model.modules())
    )


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("dtype", [F64, F32])
def test_equals_the_whole_model_definition(spec: Spec, name: str, dtype: torch.dtype) -> None:
    """Families with a hand-written float64 model: every stream spelt out, nothing shared but the linear layers."""
    method, (negative,) = METHODS[name], negatives(spec, 3)
    if spec.definition is None:
        return  # covered by the dense definition and the swap below
    out = run_guided(spec.build(dtype), spec.inputs(1, 5, dtype), method, [negative])
    with torch.no_grad():
        truth = spec.definition(spec.build(F64), spec.inputs(1, 5, F64), negative, method.settings())
    assert error(out, truth) < (1e-9 if dtype == F64 else 1e-5)


@pytest.mark.parametrize("name", [*METHODS, "vsf-upstream"])
def test_equals_the_dense_definition(spec: Spec, name: str) -> None:
    """The whole model with every guided attention replaced by the dense, masked, float64 softmax."""
    method = VSF(3.3, 0.2, "upstream") if name == "vsf-upstream" else METHODS[name]
    call, given = spec.inputs(2, 5, F64), negatives(spec, 3, 4)
    fast = run_guided(spec.build(F64), call, method, given)
    fast32 = run_guided(spec.build(F32), spec.inputs(2, 5, F32), method, given)
    with definition.dense():
        dense = run_guided(spec.build(F64), call, method, given)
    plain = run(spec.build(F64), call)
    assert error(dense, plain) > 1e-4  # the method does something
    # Relative to what guidance changes, too: a model whose output hardly depends on its text cannot hide an error.
    assert error(fast, dense) < 1e-9 and float((fast - dense).norm() / (dense - plain).norm()) < 1e-6
    assert error(fast32, dense) < 1e-5


@pytest.mark.parametrize("n", [3, 5, 9])
def test_swapping_the_branches_draws_the_negative_prompt(spec: Spec, n: int) -> None:
    model, call = spec.build(F64), spec.inputs(1, 5, F64)
    embeds = torch.stack(negatives(spec, n)).double()
    swapped = run_guided(model, call, Swap(), [spec.padded(embeds[0])])
    plain, wanted = run(model, call), run(model, spec.replace(call, embeds))
    assert error(plain, wanted) > 1e-4
    assert float((swapped - wanted).norm() / (plain - wanted).norm()) < 1e-6


@pytest.mark.parametrize(("name", "dtype"), [*((name, BF16) for name in METHODS), ("vsf", F16)])
def test_low_precision_costs_no_more_than_the_precision(spec: Spec, name: str, dtype: torch.dtype) -> None:
    """No further from the float64 definition than the same low-precision model whose guided attentions are the
    float64 definition itself, on the same inputs: the fast path adds nothing to what the model's own layers round off.

    Root mean squares over three negatives; measured: 0.94 to 1.13 of that error.
    """
    method, exact, model = METHODS[name], spec.build(F64), spec.build(dtype)
    ours = slow = 0.0
    for seed in (2, 3, 4):
        (given,) = negatives(spec, 3, seed=seed)
        low = run_guided(model, spec.inputs(1, 5, dtype), method, [given.to(dtype)])
        assert low.dtype == run(model, spec.inputs(1, 5, dtype)).dtype
        with definition.dense():
            truth = run_guided(exact, spec.inputs(1, 5, F64), method, [given])
            reference = run_guided(model, spec.inputs(1, 5, dtype), method, [given.to(dtype)])
        ours, slow = ours + error(low, truth) ** 2, slow + error(reference, truth) ** 2
    assert ours**0.5 < 1.3 * slow**0.5


@pytest.mark.parametrize("method", [NAG(1.0), NAG(4.0, alpha=0.0), NASA(0.0), VSF(3.0, float("inf"))], ids=repr)
def test_neutral_strength_leaves_the_model_alone(spec: Spec, method: Guidance) -> None:
    model, call = spec.build(F32), spec.inputs(2, 5, F32)
    assert torch.equal(run_guided(model, call, method, negatives(spec, 3)), run(model, call))


@pytest.mark.parametrize(
    "method", [NAG((1.0, 4.0), alpha=0.5), NASA((0.0, 0.4)), VSF(3.0, (float("inf"), 0.1))], ids=repr
)
def test_neutral_strength_in_a_batch_leaves_its_sample_alone(spec: Spec, method: Guidance) -> None:
    # Not bit-equal on joint models: the text stream's matrix products have more rows, so they round differently.
    model, call = spec.build(F64), spec.inputs(2, 5, F64)
    out, plain = run_guided(model, call, method, negatives(spec, 3)), run(model, call)
    assert error(out[:1], plain[:1]) < 1e-12 and error(out[1:], plain[1:]) > 1e-6


@pytest.mark.parametrize("method", [VSF(), VSF(layout="upstream"), NAG(), NoGuidance()], ids=repr)
def test_empty_negative_is_bit_equal(spec: Spec, method: Guidance) -> None:
    model, call = spec.build(F32), spec.inputs(2, 5, F32)
    plain = run(model, call)
    assert torch.equal(run_guided(model, call, method, [torch.zeros(0, spec.width)]), plain)
    assert torch.equal(run_guided(model, call, method, [None, None]), plain)


@pytest.mark.parametrize("method", [*METHODS.values(), VSF(3.3, 0.2, "upstream")], ids=repr)
def test_ragged_batch_equals_single_runs(spec: Spec, method: Guidance) -> None:
    model, call = spec.build(F64), spec.inputs(4, 5, F64)
    given = [*negatives(spec, 3, 7), None, *negatives(spec, 1, seed=5)]
    together = run_guided(model, call, method, given)
    for i, negative in enumerate(given):
        alone = run_guided(model, row(call, i, 4), method, [negative])
        assert error(together[i : i + 1], alone) < 1e-9


def test_ragged_batch_equals_single_runs_on_the_big_kernel(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long negatives take the fused kernel, which says nothing useful about a sample that sees no key at all."""
    monkeypatch.setattr("vsf.arch.base.FEW", 0)
    model, call = spec.build(F64), spec.inputs(3, 5, F64)
    given = [negatives(spec, 7)[0], None, negatives(spec, 3, seed=5)[0]]
    together = run_guided(model, call, VSF(), given)
    assert error(together[1:2], run(model, row(call, 1, 3))) < 1e-9
    for i in (0, 2):
        assert error(together[i : i + 1], run_guided(model, row(call, i, 3), VSF(), [given[i]])) < 1e-9


def test_per_sample_knobs_equal_single_runs(spec: Spec) -> None:
    model, call, given = spec.build(F64), spec.inputs(3, 5, F64), negatives(spec, 4)
    together = run_guided(model, call, VSF((0.5, 2.0, 6.0), (0.0, 0.3, 1.0), normalize=(0.5, 1.0, 2.0)), given)
    for i, (scale, offset, tau) in enumerate([(0.5, 0.0, 0.5), (2.0, 0.3, 1.0), (6.0, 1.0, 2.0)]):
        alone = run_guided(model, row(call, i, 3), VSF(scale, offset, normalize=tau), given)
        assert error(together[i : i + 1], alone) < 1e-9


@pytest.mark.parametrize("method", [VSF(), NAG(), NASA()], ids=repr)
def test_no_negative_token_reaches_a_positive_row(spec: Spec, method: Guidance) -> None:
    """With the image rows' correction off in all blocks, even a huge negative changes nothing at all."""
    model, call = spec.build(F64), spec.inputs(2, 5, F64)
    out = run_guided(model, call, type(method)(blocks=()), [1e3 * negatives(spec, 3)[0]])
    assert error(out, run(model, call)) < 1e-12


@contextmanager
def watched() -> Iterator[list[tuple[Tensor, ...]]]:
    """Queries, keys, values and output of every guided attention, in the order of the calls."""
    calls: list[tuple[Tensor, ...]] = []
    fast = vsf.guide.joint_attention, vsf.guide.cross_attention

    def watch(real: Any) -> Any:
        def attention(frame: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            given = q.clone(), k.clone(), v.clone()
            out = real(frame, q, k, v, *args, **kwargs)
            calls.append((*given, out.clone()))
            return out

        return attention

    vsf.guide.joint_attention, vsf.guide.cross_attention = (watch(f) for f in fast)
    try:
        yield calls
    finally:
        vsf.guide.joint_attention, vsf.guide.cross_attention = fast


def changed(a: Tensor, b: Tensor) -> Tensor:
    """Which rows of `[B, H, S, D]` differ at all, `[S]`."""
    return (a != b).any(-1).any(1).any(0)


@pytest.mark.parametrize("method", [VSF, NAG, NASA])
def test_a_negative_token_reaches_the_image_and_no_positive_row(spec: Spec, method: type[Guidance]) -> None:
    """Guidance on, block by block, another negative token: every image row changes, no positive row does.

    Which rows belong to whom is found out, not believed: positive are those that change before the first block when the
    prompt does, negative those that change with the negative. Beyond the guided block positive rows may change, because
    they look at the image; so each block is the only guided one in turn, and what leaves it is read off the queries,
    keys and values of the next.
    """
    model = spec.build(F64)
    prompt, other_prompt = (torch.stack(negatives(spec, 5, seed=i)).double() for i in (7, 8))
    negative = spec.padded(negatives(spec, 3)[0])
    one = negative.clone()
    one[1] += 1.0

    def calls(embeds: Tensor, text: Tensor, **settings: Any) -> list[tuple[Tensor, ...]]:
        with watched() as seen:
            run_guided(model, spec.replace(spec.inputs(1, 5, F64), text), method(**settings), [embeds])
        return seen

    plain = calls(negative, prompt, blocks=())
    keys = plain[0][1]
    positive = changed(calls(negative, other_prompt, blocks=())[0][1], keys)
    of_negative = changed(calls(spec.padded(negatives(spec, 3, seed=5)[0]), prompt, blocks=())[0][1], keys)
    assert positive.any() and of_negative.any() and not (positive & of_negative).any()
    if not spec.joint:  # no text among the queries, and the text is not updated
        for (_, *before, old), (_, *after, new) in zip(calls(negative, prompt), calls(one, prompt), strict=True):
            for a, b in zip(before, after, strict=True):
                assert not changed(a, b)[positive].any() and changed(a, b)[of_negative].any()
            assert changed(old, new).all()
        return
    image = ~(positive | of_negative)
    for block in range(len(plain)):
        before, after = calls(negative, prompt, blocks=(block,)), calls(one, prompt, blocks=(block,))
        for i, (old, new) in enumerate(zip(before[: block + 2], after, strict=False)):
            rows = [changed(a, b) for a, b in zip(old, new, strict=True)]
            inside, out = torch.stack(rows[:3]), rows[3]
            assert not inside[:, positive].any(), (block, i)
            assert not (i <= block and out[positive].any()), (block, i)
            assert bool(out[image].all()) if i == block else i > block or not out[image].any(), (block, i)
            assert bool(inside[:, image].all()) if i > block else not inside[:, image].any(), (block, i)


def test_blocks_and_record(spec: Spec) -> None:
    model, call = spec.build(F32), spec.inputs(2, 5, F32)
    plain = run(model, call)
    with negative_guidance(model, VSF(blocks=(1,)), negative_prompt_embeds=negatives(spec, 3), record=True) as guided:
        assert error(run(model, call), plain) > 1e-6
    suppression = guided.suppression()
    assert suppression.blocks == [1] and suppression.steps == [0]
    w = suppression.share[0, 1]
    assert w.shape[0] == 2 and float(w.min()) > 0 and float(w.max()) < 1


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["inside", "at the end"])
def test_restored_after_an_exception_and_an_interrupt(spec: Spec, where: str, stop: type[BaseException]) -> None:
    """Inside the last guided attention, and where the model is done; the next guided run knows nothing of it."""
    model, given = spec.build(F32), negatives(spec, 3)
    call = spec.inputs(2, 5, F32)
    plain, wanted, before = run(model, call), run_guided(model, call, VSF(), given), fingerprint(model)
    family: Any = family_of(model)
    module = family.sites(model)[-1] if where == "inside" else model

    def fail(*_: Any) -> None:
        raise stop

    handle = module.register_forward_hook(fail)
    with pytest.raises(stop):
        run_guided(model, call, VSF(), given)
    handle.remove()
    assert untouched(model, before)
    assert torch.equal(run(model, call), plain) and torch.equal(run_guided(model, call, VSF(), given), wanted)


def test_restored_when_nobody_holds_the_context_any_more(spec: Spec) -> None:
    """A generator that draws inside a context and is collected half-way; a context that was entered and forgotten."""
    model, call, given = spec.build(F32), spec.inputs(1, 5, F32), negatives(spec, 3)
    plain, before = run(model, call), fingerprint(model)

    def pictures() -> Iterator[Tensor]:
        with negative_guidance(model, VSF(), negative_prompt_embeds=given):
            while True:
                yield run(model, call)

    drawing = pictures()
    assert not torch.equal(next(drawing), plain) and not untouched(model, before)
    del drawing
    gc.collect()
    assert untouched(model, before)
    forgotten: Any = negative_guidance(model, VSF(), negative_prompt_embeds=given)
    forgotten.__enter__()
    assert not torch.equal(run(model, call), plain)
    del forgotten
    gc.collect()
    assert untouched(model, before) and torch.equal(run(model, call), plain)


def test_upstream_layout_equals_the_whole_model_definition() -> None:
    spec = SPECS["sd3"]
    (negative,), method = negatives(spec, 3), VSF(3.3, 0.2, "upstream")
    out = run_guided(spec.build(F64), spec.inputs(1, 5, F64), method, [negative])
    with torch.no_grad():
        call = spec.inputs(1, 5, F64)
        truth = definition.sd3(spec.build(F64), call, negative, method.settings(), upstream=True)
    assert error(out, truth) < 1e-9


@pytest.mark.parametrize("method", [*METHODS.values(), VSF(3.3, 0.2, "upstream")], ids=repr)
def test_positive_rows_of_a_guided_block_do_not_know_the_negative(method: Guidance) -> None:
    """The text that leaves the first block, guidance on: the prompt's rows are those of the unguided model."""
    spec = SPECS["sd3"]
    model, call = spec.build(F64), spec.inputs(2, 5, F64)
    seen: list[Tensor] = []
    hook = model.transformer_blocks[0].register_forward_hook(lambda _m, _a, out: seen.append(out[0][:, :5]))  # pyright: ignore
    for given in ([torch.zeros(0, spec.width)], negatives(spec, 3), [1e3 * negatives(spec, 3, seed=9)[0]]):
        run_guided(model, call, method, given)
    hook.remove()
    plain, first_one, other = seen
    # "upstream" shows the prompt's rows the unflipped copy, by definition
    assert (
        (error(other, plain) > 1e-3) if getattr(method, "layout", "") == "upstream" else (error(other, plain) < 1e-12)
    )
    assert getattr(method, "layout", "") == "upstream" or error(first_one, plain) < 1e-12


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
@pytest.mark.parametrize("method", [VSF(), VSF(layout="upstream"), NAG()], ids=repr)
def test_no_square_mask_is_ever_made(name: str, method: Guidance) -> None:
    """Nothing in a guided forward pass is queries times keys, of the whole sequence, the prompt or the image."""
    spec = SPECS[name]
    model, call = spec.build(F32), spec.inputs(1, 100, F32)
    (given,) = negatives(spec, 40)
    sizes: set[tuple[int, ...]] = set()

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.update(tuple(x.shape[-2:]) for x in tree_leaves(out) if isinstance(x, Tensor) and x.ndim > 1)
            return out

    with Sizes():
        run_guided(model, call, method, [given])
    with watched() as calls:
        run_guided(model, call, method, [given])
    lengths = {x.shape[2] - n for call in calls for x in call[:2] for n in (-40, 0, 40, 140)}
    assert not [(rows, keys) for rows, keys in sizes if rows in lengths and keys in lengths and keys >= 100]
