"""What every supported model has to fulfil, on the real diffusers classes."""

from __future__ import annotations

import functools
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
import vsf.current
import vsf.plan
import vsf.seam
from closeness import close, differs, error, rounding, same
from specs import Spec
from vsf import NAG, NASA, VSF, Guidance, NoGuidance, negative_guidance
from vsf.arch import family_of
from vsf.core.geometry import Pieces
from vsf.guidance.variants import VARIANTS

SPECS = specs.load()
METHODS: dict[str, Guidance] = {
    "vsf": VSF(3.5, 0.1),
    "vsf-weak": VSF(0.7, 0.4),
    "vsf-normalized": VSF(4.0, 0.1, normalize=1.0),
    "nag": NAG(4.0, 1.2, 0.5),
    "nasa": NASA(0.4),
}
#: Methods that want another table of who sees what, or other pieces of the attention.
VARIED: dict[str, Guidance] = {name: method(1.5, 0.3) for name, method in VARIANTS.items()}


F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Swap(Guidance):
    """Not a method: puts the negative branch in the place of the positive one.

    A model guided by it must draw what the stock model draws when the negative prompt is its prompt. That proves,
    against code we did not write, that the negative's text stream, its positions and its masks are right.
    """

    negative = "padded"
    label = "swap"

    def combine(self, at: Pieces, knob: Mapping[str, Tensor]) -> Tensor:
        return at.branch.out


#: Joint attention, joint attention with single-stream blocks, cross-attention, and a UNet: what `make test-fast` runs.
FOUR = ("sd3", "flux", "wan", "unet")


@pytest.fixture(params=[pytest.param(name, marks=[] if name in FOUR else pytest.mark.more) for name in SPECS])
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
        and not vsf.current.plans(id(model))
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
    model = spec.build(dtype)
    out = run_guided(model, spec.inputs(1, 5, dtype), method, [negative])
    with torch.no_grad():
        truth = spec.definition(spec.build(F64), spec.inputs(1, 5, F64), negative, method.settings())
    same(out, truth, rounding(model, dtype))


@pytest.mark.parametrize("name", [*METHODS, *VARIED, "vsf-upstream"])
def test_equals_the_dense_definition(spec: Spec, name: str) -> None:
    """The whole model with every guided attention replaced by the dense, masked, float64 softmax."""
    method = VSF(3.3, 0.2, "upstream") if name == "vsf-upstream" else (METHODS | VARIED)[name]
    model, call, given = spec.build(F64), spec.inputs(2, 5, F64), negatives(spec, 3, 4)
    fast = run_guided(model, call, method, given)
    fast32 = run_guided(spec.build(F32), spec.inputs(2, 5, F32), method, given)
    with definition.dense():
        dense = run_guided(model, call, method, given)
    plain = run(model, call)
    close(fast, dense, plain, rounding(model, F64))
    close(fast32, dense, plain, rounding(model, F32))


@pytest.mark.parametrize("n", [3, 5, 9])
def test_swapping_the_branches_draws_the_negative_prompt(spec: Spec, n: int) -> None:
    model, call = spec.build(F64), spec.inputs(1, 5, F64)
    embeds = torch.stack(negatives(spec, n)).double()
    swapped = run_guided(model, call, Swap(), [spec.padded(embeds[0])])
    plain, wanted = run(model, call), run(model, spec.replace(call, embeds))
    # Here positions move as a whole: the same distances, but each rotation rounded for itself.
    close(swapped, wanted, plain, rounding(model, spec.rotary))


@functools.cache
def true_result(name: str, method: str, seed: int) -> Tensor:
    """The float64 definition's, for one negative of three tokens; several tests measure how far they are from it."""
    spec = SPECS[name]
    with definition.dense():
        return run_guided(spec.build(F64), spec.inputs(1, 5, F64), METHODS[method], negatives(spec, 3, seed=seed))


@pytest.mark.parametrize(("name", "dtype"), [*((name, BF16) for name in METHODS), ("vsf", F16)])
def test_low_precision_costs_no_more_than_the_precision(spec: Spec, name: str, dtype: torch.dtype) -> None:
    """No further from the float64 definition than the same low-precision model whose guided attentions are the
    float64 definition itself, on the same inputs: the fast path adds nothing to what the model's own layers round off.

    Root mean squares over three negatives; measured: 0.94 to 1.13 of that error.
    """
    method, model = METHODS[name], spec.build(dtype)
    plain = run(model, spec.inputs(1, 5, dtype))
    ours = slow = 0.0
    for seed in (2, 3, 4):
        (given,) = negatives(spec, 3, seed=seed)
        low = run_guided(model, spec.inputs(1, 5, dtype), method, [given.to(dtype)])
        assert low.dtype == plain.dtype
        with definition.dense():
            reference = run_guided(model, spec.inputs(1, 5, dtype), method, [given.to(dtype)])
        truth = true_result(spec.name, name, seed)
        ours, slow = ours + error(low, truth) ** 2, slow + error(reference, truth) ** 2
    assert ours**0.5 < 1.3 * slow**0.5


def gradient(model: Any, call: dict[str, Any], method: Guidance, given: Any) -> Tensor:
    """Of all parameters, for a loss in which every number of the prediction has a weight of its own per sample."""
    model.requires_grad_(True)
    with negative_guidance(model, method, negative_prompt_embeds=given):
        out = first(model(**call))
        (out * torch.linspace(-1, 1, out[0].numel(), dtype=out.dtype).view_as(out[0])).sum().backward()
    found = torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()])
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", ["vsf", "vsf-normalized", "nag"])
def test_gradients_equal_those_of_the_dense_definition(spec: Spec, name: str) -> None:
    """Also through the share of the negative, for which fused kernels give no gradient."""
    model, call, given = spec.build(F64), spec.inputs(2, 5, F64), negatives(spec, 3, 4)
    fast = gradient(model, call, METHODS[name], given)
    with definition.dense():
        wanted = gradient(model, call, METHODS[name], given)
    same(fast, wanted, rounding(model, F64, passes=2))


@pytest.mark.parametrize("few", [0, 64])
def test_gradients_of_a_batch_with_a_sample_that_is_not_guided(
    spec: Spec, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its negative sees no key at all, which must not make NaN of the others' gradients.

    Some models compute a part of themselves in fp32, where kernels round the ends of rows otherwise than their middle: the
    spec says which, or a batch differs from its samples unguided, too (Sana, Wan).
    """
    monkeypatch.setattr("vsf.core.geometry.FEW", few)
    model, call = spec.build(F64), spec.inputs(3, 5, F64)

    def batching(given: list[Tensor | None]) -> tuple[Tensor, Tensor]:
        together = gradient(model, call, VSF(3.5, 0.1), given)
        alone = torch.stack([gradient(model, row(call, i, 3), VSF(3.5, 0.1), [given[i]]) for i in range(3)])
        return together, alone.sum(0)

    stock = error(*batching([None, None, None]))
    own = F32 if stock > rounding(model, F64, passes=2) or F32 in (spec.sums, spec.rotary) else F64
    got, wanted = batching([negatives(spec, 3)[0], None, negatives(spec, 4, seed=5)[0]])
    same(got, wanted, stock + rounding(model, own, passes=2))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's own, of a stock norm
@pytest.mark.parametrize(("name", "dtype"), [("vsf", BF16), ("nag", BF16), ("vsf", F16)])
def test_autocast_does_to_the_guided_model_what_it_does_to_the_stock_one(
    spec: Spec, name: str, dtype: torch.dtype
) -> None:
    """fp32 weights under `torch.autocast`: the same bound as above, and every attention in the dtype of the stock one."""
    method, model = METHODS[name], spec.build(F32)
    ours = slow = 0.0
    for seed in (2, 3, 4):
        given = negatives(spec, 3, seed=seed)
        with torch.autocast("cpu", dtype):
            plain = run(model, spec.inputs(1, 5, F32))
            with watched() as calls:
                low = run_guided(model, spec.inputs(1, 5, F32), method, given)
            assert torch.equal(run_guided(model, spec.inputs(1, 5, F32), method, [None]), plain)
            with definition.dense():
                reference = run_guided(model, spec.inputs(1, 5, F32), method, given)
        truth = true_result(spec.name, name, seed)
        assert low.dtype == plain.dtype and all(out.dtype == dtype for *_, out in calls)
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
    same(out[:1], plain[:1], rounding(model, F64))
    differs(out[1:], plain[1:], rounding(model, F64))


@pytest.mark.parametrize("method", [VSF(), VSF(layout="upstream"), NAG(), NoGuidance()], ids=repr)
def test_empty_negative_is_bit_equal(spec: Spec, method: Guidance) -> None:
    model, call = spec.build(F32), spec.inputs(2, 5, F32)
    plain = run(model, call)
    assert torch.equal(run_guided(model, call, method, [torch.zeros(0, spec.width)]), plain)
    assert torch.equal(run_guided(model, call, method, [None, None]), plain)


@pytest.mark.parametrize("method", [*METHODS.values(), *VARIED.values(), VSF(3.3, 0.2, "upstream")], ids=repr)
def test_ragged_batch_equals_single_runs(spec: Spec, method: Guidance) -> None:
    model, call = spec.build(F64), spec.inputs(4, 5, F64)
    given = [*negatives(spec, 3, 7), None, *negatives(spec, 1, seed=5)]
    together = run_guided(model, call, method, given)
    for i, negative in enumerate(given):
        alone = run_guided(model, row(call, i, 4), method, [negative])
        same(together[i : i + 1], alone, rounding(model, spec.sums))


def test_ragged_batch_equals_single_runs_on_the_big_kernel(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long negatives take the fused kernel, which says nothing useful about a sample that sees no key at all."""
    monkeypatch.setattr("vsf.core.geometry.FEW", 0)
    model, call = spec.build(F64), spec.inputs(3, 5, F64)
    given = [negatives(spec, 7)[0], None, negatives(spec, 3, seed=5)[0]]
    together = run_guided(model, call, VSF(), given)
    same(together[1:2], run(model, row(call, 1, 3)), rounding(model, spec.sums))
    for i in (0, 2):
        alone = run_guided(model, row(call, i, 3), VSF(), [given[i]])
        same(together[i : i + 1], alone, rounding(model, spec.sums))


def test_per_sample_knobs_equal_single_runs(spec: Spec) -> None:
    model, call, given = spec.build(F64), spec.inputs(3, 5, F64), negatives(spec, 4)
    together = run_guided(model, call, VSF((0.5, 2.0, 6.0), (0.0, 0.3, 1.0), normalize=(0.5, 1.0, 2.0)), given)
    for i, (scale, offset, tau) in enumerate([(0.5, 0.0, 0.5), (2.0, 0.3, 1.0), (6.0, 1.0, 2.0)]):
        alone = run_guided(model, row(call, i, 3), VSF(scale, offset, normalize=tau), given)
        same(together[i : i + 1], alone, rounding(model, spec.sums))


@pytest.mark.parametrize("method", [VSF(), NAG(), NASA()], ids=repr)
def test_no_negative_token_reaches_a_positive_row(spec: Spec, method: Guidance) -> None:
    """With the image rows' correction off in all blocks, even a huge negative changes nothing at all."""
    model, call = spec.build(F64), spec.inputs(2, 5, F64)
    out = run_guided(model, call, type(method)(blocks=()), [1e3 * negatives(spec, 3)[0]])
    same(out, run(model, call), rounding(model, F64))


@contextmanager
def watched() -> Iterator[list[tuple[Tensor, ...]]]:
    """Queries, keys, values and output of every guided attention, in the order of the calls."""
    calls: list[tuple[Tensor, ...]] = []
    fast = {name: getattr(vsf.plan, name) for name in definition.DENSE}

    def watch(real: Any) -> Any:
        def attention(frame: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            given = q.clone(), k.clone(), v.clone()
            out = real(frame, q, k, v, *args, **kwargs)
            calls.append((*given, out.clone()))
            return out

        return attention

    for name, real in fast.items():
        setattr(vsf.plan, name, watch(real))
    try:
        yield calls
    finally:
        for name, real in fast.items():
            setattr(vsf.plan, name, real)


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
    model, call = spec.build(F64), spec.inputs(2, 5, F64)
    plain = run(model, call)
    with negative_guidance(model, VSF(blocks=(1,)), negative_prompt_embeds=negatives(spec, 3), record=True) as guided:
        differs(run(model, call), plain, rounding(model, F64))
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
    model, call = spec.build(F64), spec.inputs(1, 5, F64)
    out = run_guided(model, call, method, [negative])
    with torch.no_grad():
        truth = definition.sd3(model, call, negative, method.settings(), upstream=True)
    same(out, truth, rounding(model, F64))


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
    if getattr(method, "layout", "") == "upstream":  # shows the prompt's rows the unflipped copy, by definition
        differs(other, plain, rounding(model, F64))
        return
    same(other, plain, rounding(model, F64))
    same(first_one, plain, rounding(model, F64))


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
