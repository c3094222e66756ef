"""Which steps are guided: per call or per sample, never none without a word."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, UniPCMultistepScheduler
from torch import Tensor

import vsf.current
import vsf.plan
import vsf.seam
from closeness import close, differs, rounding, same
from composition import pipes
from pipelines.test_wan import stock as wan
from specs import wan as wan_spec
from vsf import NAG, NASA, VSF, Guidance, load_demo_pipeline, negative_guidance
from vsf.guide import NothingGuided

STARTS, STOPS, STEPS = (0.0, 0.5, 0.25, 0.0), (0.5, 1.0, 0.75, 1.0), 4


def seeds(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


def make(name: str) -> Any:
    if name != "demo":
        return pipes.make(name)
    pipe = load_demo_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, name: str, generators: list[torch.Generator], prompt: str = "a red bike") -> Tensor:
    length = {"max_sequence_length": 16} if name != "unet" else {}
    size = {} if name == "demo" else {"height": 16, "width": 16}
    return pipe(
        [prompt] * len(generators), num_inference_steps=STEPS, guidance_scale=0.0, output_type="latent",
        generator=generators, **length, **size,
    ).images  # fmt: skip


METHODS: list[Guidance] = [VSF(3.0, 0.1), VSF(3.0, 0.1, "upstream"), NAG(4.0, 2.5, 0.5), NASA(0.4)]


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("name", ["demo", "unet"])
def test_a_range_per_sample_is_the_range_of_a_single_run(name: str, method: Guidance) -> None:
    pipe = make(name).to(torch.float64)  # NASA changes less than float32 rounds in four steps
    bound = rounding(pipe, torch.float64, STEPS)
    values = {k: v for k, v in method.settings().items() if k != "method"}
    together = type(method)(**{**values, "start": STARTS, "stop": STOPS})
    plain = draw(pipe, name, seeds(4))
    with negative_guidance(pipe, together, "wheels"):
        got = draw(pipe, name, seeds(4))
    for i in range(4):
        alone = type(method)(**{**values, "start": STARTS[i], "stop": STOPS[i]})
        with negative_guidance(pipe, alone, "wheels"):
            wanted = draw(pipe, name, seeds(4)[i : i + 1])
        close(got[i : i + 1], wanted, plain[i : i + 1], bound)
    assert torch.equal(draw(pipe, name, seeds(4)), plain)


def test_equal_ranges_are_the_fast_path() -> None:
    pipe = make("unet")
    masks: list[Any] = []
    pipe.unet.register_forward_pre_hook(lambda *_: masks.append(vsf.current.current_plan(id(pipe.unet))))
    with negative_guidance(pipe, VSF(3.0, start=0.25, stop=0.75), "wheels"):
        wanted = draw(pipe, "unet", seeds(2))
    with negative_guidance(pipe, VSF(3.0, start=(0.25, 0.25), stop=0.75), "wheels"):
        assert torch.equal(draw(pipe, "unet", seeds(2)), wanted)
    assert VSF(start=(0.25, 0.25), stop=0.75).ranges == ((0.25, 0.75),)
    assert all(key[-1] == (True,) for plan in masks for key in plan._batches)  # no sample was ever taken out


def test_ranges_and_negatives_per_sample_mix() -> None:
    pipe = make("unet").to(torch.float64)
    plain = draw(pipe, "unet", seeds(2))
    with negative_guidance(pipe, VSF(3.0, start=(0.0, 0.5), stop=(0.5, 1.0)), ["wheels", None]):
        first = draw(pipe, "unet", seeds(2))
    with negative_guidance(pipe, VSF(3.0, stop=0.5), ["wheels", None]):
        wanted = draw(pipe, "unet", seeds(2))
    bound = rounding(pipe, torch.float64, STEPS)
    same(first, wanted, bound)
    differs(first[:1], plain[:1], bound)
    same(first[1:], plain[1:], bound)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: VSF(start=(0.2, 0.9), stop=0.5), r"start \(0.9\) must not be greater than stop \(0.5\)"),
        (lambda: NAG(start=(0.2, 0.3), stop=(0.5, 0.6, 0.7)), "2 values of start and 3 of stop"),
        (lambda: VSF(start=(0.2, float("nan"))), "start is nan"),
        (lambda: VSF(stop=(0.5, 1.5)), "stop is 1.5"),
        (lambda: VSF(start=()), "empty"),
    ],
)  # fmt: skip
def test_bad_ranges(build: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build()


def test_as_many_ranges_as_samples() -> None:
    pipe = make("unet")
    refused = pytest.raises(
        ValueError, match="3 ranges of start and stop for a batch of 2|3 values of start for a batch"
    )
    with refused, negative_guidance(pipe, VSF(start=(0.0, 0.1, 0.2)), "wheels"):
        draw(pipe, "unet", seeds(2))
    with (
        pytest.raises(ValueError, match="pipeline instead of the model"),
        negative_guidance(pipe.unet, VSF(start=(0.0, 0.5)), negative_prompt_embeds=[torch.zeros(2, 16)]),
    ):
        pass


def test_a_cache_does_not_outlive_a_change_of_the_samples_that_are_guided(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, emptied = make("unet"), []
    monkeypatch.setattr(vsf.seam, "forget", lambda model: emptied.append(1))
    for stop, changes in ((1.0, 1), ((0.5, 1.0), 2)):  # guidance begins; a sample leaves
        emptied.clear()
        with negative_guidance(pipe, VSF(stop=stop), "wheels"):
            draw(pipe, "unet", seeds(2))
            assert len(emptied) == changes


def test_compiled_models_take_other_ranges_without_another_graph() -> None:
    torch._dynamo.reset()
    pipe, graphs = make("unet").to(torch.float64), []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    methods = [VSF(3.0, start=(0.0, 0.5), stop=(0.75, 1.0)), VSF(2.0, start=(0.25, 0.0), stop=(1.0, 0.5))]
    wanted = []
    for method in methods:
        with negative_guidance(pipe, method, "wheels"):
            wanted.append(draw(pipe, "unet", seeds(2)))
    pipe.unet.compile(backend=backend, fullgraph=True)
    for method, truth in zip(methods, wanted, strict=True):
        with negative_guidance(pipe, method, "wheels"):
            same(draw(pipe, "unet", seeds(2)), truth, rounding(pipe, torch.float64, STEPS))
    assert len(graphs) == 1  # some sample is guided in every step
    torch._dynamo.reset()


# -- steps ------------------------------------------------------------------------------------------------------------


def test_image_to_image_counts_its_own_steps() -> None:
    """DDIM does not say where the picture begins: half of the four steps that run are two, and the first two."""
    parts = pipes.make("unet").components | {"requires_safety_checker": False}
    pipe = StableDiffusionImg2ImgPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with negative_guidance(pipe, VSF(stop=0.5), "wheels", record=True) as guided:
        for _ in range(2):
            pipe(
                "a red bicycle", image, strength=0.5, num_inference_steps=8, guidance_scale=0.0, output_type="latent",
                generator=seeds(1),
            )  # fmt: skip
    assert guided.suppression().steps == [0, 1]


def test_steps_are_looked_up_only_where_they_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding the step of a scheduler that does not count reads from the device."""
    pipe, asked = make("unet"), []
    nearest = vsf.plan._nearest
    monkeypatch.setattr(vsf.plan, "_nearest", lambda *a: asked.append(1) or nearest(*a))
    with negative_guidance(pipe, VSF(), "wheels"):
        draw(pipe, "unet", seeds(1))
    assert not asked
    with negative_guidance(pipe, VSF(stop=0.5), "wheels"):
        draw(pipe, "unet", seeds(1))
    assert len(asked) == STEPS


def test_a_range_without_a_step_is_said() -> None:
    pipe = make("unet")
    with (
        pytest.warns(NothingGuided, match="start 0.5 to stop 0.5 held none"),
        negative_guidance(pipe, VSF(start=(0.5, 0.0), stop=(0.5, 1.0)), "wheels"),
    ):
        draw(pipe, "unet", seeds(2))
    with pytest.warns(NothingGuided) as told, negative_guidance(pipe, VSF(start=0.5, stop=0.5), "wheels"):
        pass
    assert len(told) == 1 and "did not run" in str(told[0].message)  # and not that no step lay in the range
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with negative_guidance(pipe, VSF(start=0.5, stop=0.5), None, negative_prompt_embeds=[None]):
            draw(pipe, "unet", seeds(1))  # nothing to guide away from


# -- two models -------------------------------------------------------------------------------------------------------


def two_models(boundary: float) -> Any:
    pipe = wan(boundary_ratio=boundary, transformer_2=wan_spec.build(torch.float32))
    pipe.scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def video(pipe: Any) -> Tensor:
    return pipe(
        "a red bicycle", num_inference_steps=2, height=32, width=32, num_frames=5, guidance_scale=1.0,
        max_sequence_length=16, output_type="latent", generator=seeds(1),
    ).frames  # fmt: skip


@pytest.mark.parametrize("boundary", [0.0, 0.9, 2.0])
def test_a_model_whose_steps_never_come_is_no_error(boundary: float) -> None:
    pipe = two_models(boundary)
    ran: list[str] = []
    pipe.transformer.register_forward_pre_hook(lambda *_: ran.append("high"))
    pipe.transformer_2.register_forward_pre_hook(lambda *_: ran.append("low"))
    with negative_guidance(pipe, VSF(), "wheels"):
        video(pipe)
    assert set(ran) == {0.0: {"high"}, 0.9: {"high", "low"}, 2.0: {"low"}}[boundary]


def test_every_model_that_ran_has_to_be_guided(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = two_models(0.9)
    attention = vsf.plan.Pass.attention

    def only_the_first(self: Any, *args: Any) -> Any:
        return None if self.plan.model is pipe.transformer_2 else attention(self, *args)

    monkeypatch.setattr(vsf.plan.Pass, "attention", only_the_first)
    with (
        pytest.raises(RuntimeError, match="none of its attention was guided"),
        negative_guidance(pipe, VSF(), "wheels"),
    ):
        video(pipe)
