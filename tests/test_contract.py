"""What every supported model has to fulfil, on the real diffusers classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import definition
import specs
import vsf.guide
from specs import Spec
from vsf import NAG, NASA, VSF, Guidance, NoGuidance, negative_guidance
from vsf.core.attention import Attended

SPECS = specs.load()
METHODS: dict[str, Guidance] = {
    "vsf": VSF(3.5, 0.1),
    "vsf-weak": VSF(0.7, 0.4),
    "vsf-normalized": VSF(4.0, 0.1, normalize=1.0),
    "nag": NAG(4.0, 1.2, 0.5),
    "nasa": NASA(0.4),
}


F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


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


def strength(method: Guidance) -> float:
    scale = getattr(method, "scale", 1.0)
    return 1.0 + (max(scale) if isinstance(scale, tuple) else scale)


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
def test_equals_the_dense_definition(spec: Spec, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole model with every guided attention replaced by the dense, masked, float64 softmax."""
    method = VSF(3.3, 0.2, "upstream") if name == "vsf-upstream" else METHODS[name]
    call, given = spec.inputs(2, 5, F64), negatives(spec, 3, 4)
    fast = run_guided(spec.build(F64), call, method, given)
    fast32 = run_guided(spec.build(F32), spec.inputs(2, 5, F32), method, given)
    monkeypatch.setattr(vsf.guide, "joint_attention", definition.joint)
    monkeypatch.setattr(vsf.guide, "cross_attention", definition.cross)
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


@pytest.mark.parametrize("name", list(METHODS))
def test_bf16_stays_within_the_error_of_the_unguided_model(spec: Spec, name: str) -> None:
    method, given = METHODS[name], negatives(spec, 3)
    truth = run_guided(spec.build(F64), spec.inputs(1, 5, F64), method, given)
    plain = run(spec.build(F64), spec.inputs(1, 5, F64))
    model, call = spec.build(BF16), spec.inputs(1, 5, BF16)
    low = run_guided(model, call, method, [given[0].bfloat16()])
    assert low.dtype == run(model, call).dtype
    # What bf16 costs the unguided model, amplified by at most the method's strength per attention.
    assert error(low, truth) < 2 * strength(method) * error(run(model, call), plain) + 1e-2 * strength(method)


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


def test_blocks_and_record(spec: Spec) -> None:
    model, call = spec.build(F32), spec.inputs(2, 5, F32)
    plain = run(model, call)
    with negative_guidance(model, VSF(blocks=(1,)), negative_prompt_embeds=negatives(spec, 3), record=True) as guided:
        assert error(run(model, call), plain) > 1e-6
    suppression = guided.suppression()
    assert suppression.blocks == [1] and suppression.steps == [0]
    w = suppression.share[0, 1]
    assert w.shape[0] == 2 and float(w.min()) > 0 and float(w.max()) < 1


def test_restored_after_an_exception(spec: Spec) -> None:
    model, call = spec.build(F32), spec.inputs(2, 5, F32)
    plain, processors = run(model, call), [m.processor for m in model.modules() if hasattr(m, "processor")]
    for stop in (ValueError, KeyboardInterrupt):
        handle = model.register_forward_hook(lambda *_, stop=stop: (_ for _ in ()).throw(stop()))
        with pytest.raises(stop):
            run_guided(model, call, VSF(), negatives(spec, 3))
        handle.remove()
        after = [m.processor for m in model.modules() if hasattr(m, "processor")]
        assert len(after) == len(processors) and all(a is b for a, b in zip(after, processors, strict=True))
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
        assert torch.equal(run(model, call), plain)


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


@pytest.mark.parametrize("name", ["sd3", "unet"])
def test_fp16(name: str) -> None:
    spec = SPECS[name]
    given = negatives(spec, 3)
    truth = run_guided(spec.build(F64), spec.inputs(1, 5, F64), VSF(), given)
    low = run_guided(spec.build(torch.float16), spec.inputs(1, 5, torch.float16), VSF(), given)
    assert low.dtype == torch.float16 and error(low, truth) < 1e-2
