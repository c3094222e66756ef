"""Contexts nest, are private to their thread, and leave nothing behind, whatever happens inside."""

from __future__ import annotations

import contextlib
import gc
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.transformers import transformer_flux
from torch import Tensor

import specs
import vsf.current
import vsf.guide
import vsf.seam
from closeness import differs, rounding, same
from test_contract import negatives, run
from vsf import NAG, VSF, Guidance, load_demo_pipeline, negative_guidance
from vsf.arch import find_models

SPECS = specs.load()
STRONG: list[Guidance] = [VSF(3.5), VSF(6.0, 0.0, normalize=1.0), VSF(3.0, layout="upstream"), NAG(4.0, 2.5, 0.5)]


def fingerprint(model: Any) -> list[Any]:
    """Everything a context could leave on a model."""
    return [
        (name, getattr(m, "processor", None), len(m._forward_pre_hooks), len(m._forward_hooks), sorted(vars(m)))
        for name, m in model.named_modules()
    ]


@pytest.mark.filterwarnings("ignore::vsf.NothingGuided")  # in most of them nothing runs
def test_a_thousand_random_sequences_leave_the_model_as_it_was() -> None:
    rng = random.Random(0)
    for spec in (SPECS["sd3"], SPECS["unet"]):
        model, call = spec.build(torch.float32), spec.inputs(1, 5, torch.float32)
        plain, before = run(model, call), fingerprint(model)
        given = [negatives(spec, n, seed=n)[0] for n in (1, 3, 4)]
        truth = {(i, j): guided_once(model, call, m, g) for i, m in enumerate(STRONG) for j, g in enumerate(given)}

        class Stop(Exception):
            pass

        def act(depth: int, model: Any = model, call: Any = call, truth: Any = truth, given: Any = given) -> None:
            i, j = rng.randrange(len(STRONG)), rng.randrange(len(given))
            with negative_guidance(model, STRONG[i], negative_prompt_embeds=[given[j]]):
                if depth < 3 and rng.random() < 0.5:
                    act(depth + 1)
                if rng.random() < 0.15:
                    assert torch.equal(run(model, call), truth[i, j])
                if rng.random() < 0.2:
                    raise (KeyboardInterrupt if rng.random() < 0.5 else Stop)

        def sequence(act: Any = act, stop: Any = Stop) -> None:
            with contextlib.suppress(KeyboardInterrupt, stop):
                act(0)

        for number in range(500):
            if number % 10 == 0:
                threads = [threading.Thread(target=sequence) for _ in range(2)]
                for t in threads:
                    t.start()
                sequence()
                for t in threads:
                    t.join()
            else:
                sequence()
        assert fingerprint(model) == before
        assert torch.equal(run(model, call), plain)


def guided_once(model: Any, call: Any, method: Guidance, negative: Tensor) -> Tensor:
    with negative_guidance(model, method, negative_prompt_embeds=[negative]):
        return run(model, call)


@pytest.mark.parametrize("name", ["sd3", "unet"])
def test_threads_do_not_see_each_other(name: str) -> None:
    spec = SPECS[name]
    model, call = spec.build(torch.float32), spec.inputs(1, 5, torch.float32)
    methods: list[Guidance | None] = [None, VSF(3.5), NAG(4.0, 2.5, 0.5)]
    (negative,) = negatives(spec, 3)
    wanted = [run(model, call) if m is None else guided_once(model, call, m, negative) for m in methods]
    start, wrong = threading.Barrier(len(methods)), []

    def work(i: int) -> None:
        start.wait()
        for _ in range(15):
            method = methods[i]
            out = run(model, call) if method is None else guided_once(model, call, method, negative)
            if not torch.equal(out, wanted[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(methods))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_the_innermost_context_counts_and_the_outer_one_returns() -> None:
    spec = SPECS["sd3"]
    model, call = spec.build(torch.float32), spec.inputs(1, 5, torch.float32)
    (negative,) = negatives(spec, 3)
    outer, inner = guided_once(model, call, VSF(2.0), negative), guided_once(model, call, VSF(5.0), negative)
    with negative_guidance(model, VSF(2.0), negative_prompt_embeds=[negative]):
        with negative_guidance(model, VSF(5.0), negative_prompt_embeds=[negative]):
            assert torch.equal(run(model, call), inner)
        assert torch.equal(run(model, call), outer)


def test_contexts_on_two_models_nest() -> None:
    a, b = SPECS["sd3"], SPECS["unet"]
    models = [(s, s.build(torch.float32), s.inputs(1, 5, torch.float32), negatives(s, 3)[0]) for s in (a, b)]
    wanted = [guided_once(m, c, VSF(3.0), n) for _, m, c, n in models]
    (_, m0, c0, n0), (_, m1, c1, n1) = models
    with (
        negative_guidance(m0, VSF(3.0), negative_prompt_embeds=[n0]),
        negative_guidance(m1, VSF(3.0), negative_prompt_embeds=[n1]),
    ):
        assert torch.equal(run(m0, c0), wanted[0]) and torch.equal(run(m1, c1), wanted[1])


@pytest.mark.parametrize("other_thread", [False, True])
def test_a_collected_generator_restores_the_model(other_thread: bool) -> None:
    spec = SPECS["sd3"]
    model, call = spec.build(torch.float32), spec.inputs(1, 5, torch.float32)
    plain, before = run(model, call), fingerprint(model)

    def pictures() -> Iterator[Tensor]:
        with negative_guidance(model, VSF(), negative_prompt_embeds=negatives(spec, 3)):
            while True:
                yield run(model, call)

    held = [pictures()]
    assert not torch.equal(next(held[0]), plain)
    if other_thread:
        t = threading.Thread(target=held.clear)
        t.start()
        t.join()
    held.clear()
    gc.collect()
    assert fingerprint(model) == before
    assert torch.equal(run(model, call), plain)


@pytest.mark.parametrize("act", ["guide.enter", "Install.enter", "Install.put", "seam._set_processor"])
@pytest.mark.parametrize("after", [0, 1])
def test_an_interrupt_while_entering_leaves_nothing(act: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted right before (0) or right after (1) each act of entering."""
    spec = SPECS["sd3"]
    model, call = spec.build(torch.float32), spec.inputs(1, 5, torch.float32)
    plain, before = run(model, call), fingerprint(model)
    owner: Any = {"guide": vsf.guide, "seam": vsf.seam, "Install": vsf.seam.Install}[act.split(".")[0]]
    name = act.split(".")[1]
    real = getattr(owner, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        if after:
            real(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt), negative_guidance(model, VSF(), negative_prompt_embeds=negatives(spec, 3)):
        pass
    assert fingerprint(model) == before
    assert torch.equal(run(model, call), plain)
    guided_once(model, call, VSF(), negatives(spec, 3)[0])
    assert fingerprint(model) == before


def test_nothing_of_a_forward_pass_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS["sd3"]
    model = spec.build(torch.float32)
    with negative_guidance(model, VSF(), negative_prompt_embeds=negatives(spec, 3)):
        run(model, spec.inputs(1, 5, torch.float32))
        assert vsf.current.current_plan(id(model)).frame is None


@pytest.mark.parametrize(
    ("start", "stop", "guided"),
    [(0, 1, 4), (0.9, 1, 1), (0, 0.1, 1), (0.5, 0.75, 1), (0.25, 0.75, 2), (0.3, 0.6, 2)],
)
def test_start_and_stop_name_steps(start: float, stop: float, guided: int) -> None:
    pipe = load_demo_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with negative_guidance(pipe, VSF(start=start, stop=stop), "wheels", record=True) as seen:
        pipe("a red bike", num_inference_steps=4, guidance_scale=0.0, max_sequence_length=16, output_type="latent")
    assert len({step for step, _ in seen._share}) == guided


def test_a_block_with_cross_attention_only_is_guided_too() -> None:
    """Where `attn1` takes the text as well, a negative that is switched off must not reach the image through it."""
    torch.manual_seed(0)
    config = dict(SPECS["unet"].build(torch.float32).config) | {"only_cross_attention": True}
    model: Any = UNet2DConditionModel.from_config(config)
    model.eval().requires_grad_(False)
    call = SPECS["unet"].inputs(1, 5, torch.float32)
    given = negatives(SPECS["unet"], 3)
    plain = run(model, call)
    assert torch.equal(guided_once(model, call, VSF(3.0, float("inf")), given[0]), plain)
    differs(guided_once(model, call, VSF(3.0), given[0]), plain, rounding(model))


# -- what was put in the place of a processor's globals ---------------------------------------------------------------


def test_a_monkey_patch_made_after_a_guided_run_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS["flux"]
    model, call = spec.build(torch.float32), spec.inputs(1, 5, torch.float32)
    (negative,) = negatives(spec, 3)
    before = guided_once(model, call, VSF(3.0), negative)
    kinds = guided_classes(model, call, negative)
    rotary = transformer_flux.apply_rotary_emb
    with monkeypatch.context() as patch:
        patch.setattr(transformer_flux, "apply_rotary_emb", lambda x, *_, **__: 0.5 * x)
        patched = guided_once(model, call, VSF(3.0), negative)
        fresh = spec.build(torch.float32)
        assert torch.equal(patched, guided_once(fresh, call, VSF(3.0), negative))
        differs(patched, before, rounding(model))
    assert transformer_flux.apply_rotary_emb is rotary
    assert torch.equal(guided_once(model, call, VSF(3.0), negative), before)
    # The same classes as at first: a compiled graph would still be valid.
    assert kinds and kinds == guided_classes(model, call, negative)


def guided_classes(model: Any, call: dict[str, Any], negative: Tensor) -> list[type]:
    with negative_guidance(model, VSF(3.0), negative_prompt_embeds=[negative]):
        run(model, call)
        kinds = [type(getattr(m, "processor", None)) for m in model.modules()]
    return [kind for kind in kinds if kind.__name__.startswith("Guided")]


@pytest.mark.parametrize(("name", "owner"), [("sd3", F), ("unet", F), ("flux", transformer_flux), ("flux", F)])
def test_an_attention_function_that_somebody_put_in_place_is_used(
    name: str, owner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPECS[name]
    model, call = spec.build(torch.float64), spec.inputs(1, 5, torch.float64)
    (negative,) = negatives(spec, 3)
    wanted = guided_once(model, call, VSF(3.0), negative)
    function = "scaled_dot_product_attention" if owner is F else "dispatch_attention_fn"
    real, calls = getattr(owner, function), []

    def theirs(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, function, theirs)
    got = guided_once(model, call, VSF(3.0), negative)
    same(got, wanted, rounding(model, torch.float64))
    assert len(calls) >= len(find_models(model)[0][1].sites(model))


def test_copies_of_a_model_in_other_threads_are_refused() -> None:
    spec = SPECS["sd3"]
    model = torch.nn.DataParallel(spec.build(torch.float32))
    compiled = torch.compile(model, backend="eager")
    before = fingerprint(model)
    for wrapped in (model, compiled):
        with (
            pytest.raises(
                ValueError, match=r"SD3Transformer2DModel is wrapped in torch.nn.DataParallel.*use one process"
            ),
            negative_guidance(wrapped, VSF(), negative_prompt_embeds=negatives(spec, 3)),
        ):
            pass
    assert fingerprint(model) == before
