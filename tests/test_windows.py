"""Items of a negative prompt with times of their own: not there at all in every other step."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import vsf.seam
from closeness import close, differs, rounding, same
from composition import pipes
from definition import dense
from pipelines.test_flux import stock as flux
from vsf import CFG, NAG, VSF, negative_guidance
from vsf.arch import family_of
from vsf.encode import encode_negative
from vsf.guide import NothingGuided
from vsf.prompt import Item, format_negative

STEPS = 4


def make(name: str, dtype: torch.dtype = torch.float32) -> Any:
    pipe = flux() if name == "flux" else pipes.make(name)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(dtype)


def draw(pipe: Any, n: int = 1) -> Tensor:
    return pipes.draw(pipe, ["a red bicycle"] * n, tuple(range(n)), num_inference_steps=STEPS)


def guided(pipe: Any, negative: Any, method: Any = None, n: int = 1) -> Tensor:
    with negative_guidance(pipe, method or VSF(3.0, 0.1), negative, max_sequence_length=16):
        return draw(pipe, n)


@pytest.mark.parametrize("layout", ["paper", "upstream"])
@pytest.mark.parametrize("name", ["sd3", "flux", "unet"])
@pytest.mark.parametrize("window", ["[wheels:0.25,0.75]", "[wheels:0.5]", "[wheels::0.3]"])
def test_a_window_of_all_items_is_start_and_stop(name: str, window: str, layout: Any) -> None:
    pipe = make(name)
    start, stop = {"[wheels:0.25,0.75]": (0.25, 0.75), "[wheels:0.5]": (0.5, 1.0), "[wheels::0.3]": (0.0, 0.3)}[window]
    wanted = guided(pipe, "wheels", VSF(3.0, 0.1, layout, start=start, stop=stop))
    assert torch.equal(guided(pipe, window, VSF(3.0, 0.1, layout)), wanted)
    assert not torch.equal(wanted, draw(pipe)) and not torch.equal(wanted, guided(pipe, "wheels"))


@pytest.mark.parametrize("name", ["sd3", "flux", "unet"])
def test_in_every_step_it_is_the_run_without_the_items_that_are_not_there(name: str) -> None:
    """Every call of the model, taken down and made again with the items of that step alone."""
    pipe = make(name)
    model: Any = pipes.model_of(pipe)
    items = [Item("chain, spokes"), Item("wheels", 2.0, 0.25, 0.75), Item("cup", 0.5, 0.5)]
    calls: list[tuple[Any, Any, Tensor]] = []
    given: list[tuple[Any, Any]] = []
    handle = model.register_forward_pre_hook(
        lambda _, a, k: given.append((a, dict(k))), with_kwargs=True, prepend=True
    )
    after = model.register_forward_hook(lambda *seen: calls.append((*given[-1], seen[-1][0].clone())))
    guided(pipe, format_negative(items))
    handle.remove()
    after.remove()
    assert len(calls) == STEPS
    family: Any = family_of(model)
    for step, (args, kwargs, out) in enumerate(calls):
        there = [i._replace(start=0.0, stop=1.0) for i in items if i.start <= step / STEPS < i.stop]
        assert len(there) == (1, 2, 3, 2)[step]
        with torch.no_grad():
            encoded = encode_negative(pipe, family, VSF(), format_negative(there), 16)
        weights = None if encoded.weight is None else [encoded.weight]
        with (
            torch.no_grad(),
            negative_guidance(model, VSF(3.0, 0.1), negative_prompt_embeds=[encoded.tokens], negative_weights=weights),
        ):
            assert torch.equal(model(*args, **kwargs)[0], out)


@pytest.mark.parametrize("name", ["sd3", "unet"])
def test_it_is_the_definition_and_its_keys_are_absent(name: str) -> None:
    pipe = make(name, torch.float64)
    plain, lengths = draw(pipe), list[int]()
    model: Any = pipes.model_of(pipe)
    site: Any = family_of(model).sites(model)[0]  # pyright: ignore[reportOptionalMemberAccess]
    project = site.add_k_proj if name == "sd3" else site.to_k
    hook = project.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    negative = "[wheels:0.25,0.75], [(chain and cup:2):0.5]"
    out = guided(pipe, negative)
    hook.remove()
    base = lengths[0]
    with torch.no_grad():
        wheels, both = (len(encode_negative(pipe, family_of(model), VSF(), t, 16).tokens) for t in ("wheels", "chain and cup"))  # type: ignore  # fmt: skip
    assert lengths == [base, base + wheels, base + wheels + both, base + both]
    with dense() as count:
        wanted = guided(pipe, negative)
    assert count["calls"]
    close(out, wanted, plain, rounding(pipe, torch.float64, STEPS))


def test_windows_per_sample_are_those_of_single_runs() -> None:
    pipe = make("sd3", torch.float64)
    negatives = ["[wheels:0.5], chain:2", "[wheels:0.25,0.75]", None, "cup"]
    together, plain = guided(pipe, negatives, n=4), draw(pipe, 4)
    bound = rounding(pipe, torch.float64, STEPS)
    for i, negative in enumerate(negatives):
        alone = plain[i : i + 1] if negative is None else None
        if negative is not None:
            with negative_guidance(pipe, VSF(3.0, 0.1), negative):
                alone = pipes.draw(pipe, "a red bicycle", (i,), num_inference_steps=STEPS)
            differs(together[i : i + 1], plain[i : i + 1], bound)
        assert alone is not None
        same(together[i : i + 1], alone, bound)


def test_a_window_and_a_range_of_the_guidance_both_count() -> None:
    pipe = make("unet")
    wanted = guided(pipe, "wheels", VSF(3.0, 0.1, start=0.5, stop=0.75))
    assert torch.equal(guided(pipe, "[wheels:0.25,0.75]", VSF(3.0, 0.1, start=0.5)), wanted)
    with pytest.warns(NothingGuided, match="times 0.75 to 1 of an item .* held none of the steps that were guided"):
        out = guided(pipe, "[wheels:0.75], chain:1", VSF(3.0, 0.1, stop=0.5))
    assert torch.equal(out, guided(pipe, "chain", VSF(3.0, 0.1, stop=0.5)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guided(pipe, "[wheels:0.1,0.15], [chain:0.9]")  # each the step that it lies in


def test_a_map_of_the_steps_where_it_is_there() -> None:
    pipe = make("unet")
    with negative_guidance(pipe, VSF(3.0), "[wheels:0.25,0.75]", record=True) as guided:
        draw(pipe)
    assert guided.suppression().steps == [1, 2]


def test_a_cache_does_not_outlive_a_change_of_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, emptied = make("unet"), []
    monkeypatch.setattr(vsf.seam, "forget", lambda model: emptied.append(1))
    for negative, changes in (
        ("chain:1, wheels", 1),
        ("chain:1, [wheels:0.5]", 2),
        ("chain:1, [wheels:0.25,0.75]", 3),
    ):
        emptied.clear()
        with negative_guidance(pipe, VSF(), negative):
            draw(pipe)
            assert len(emptied) == changes


def test_a_compiled_model_takes_other_windows_without_another_graph() -> None:
    torch._dynamo.reset()
    pipe, graphs = make("unet", torch.float64), []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    negatives = ["chain:3, [wheels:0.5]", "[(chain, wheels and cup, spokes:2)::0.5], [wheels:0.5]"]
    wanted = [guided(pipe, negative) for negative in negatives]
    pipe.unet.compile(backend=backend, fullgraph=True)
    for negative, truth in zip(negatives, wanted, strict=True):
        same(guided(pipe, negative), truth, rounding(pipe, torch.float64, STEPS))
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_methods_without_times_refuse_them() -> None:
    pipe = make("sd3")
    for method, instead in ((NAG(), "use VSF, or start and stop"), (CFG(), "use VSF$")):
        with (
            pytest.raises(ValueError, match=f"times of its own .*{type(method).__name__} cannot take.*{instead}"),
            negative_guidance(pipe, method, "[wheels:0.5]"),
        ):
            pass
