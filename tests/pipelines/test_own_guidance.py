"""A call with guidance of its own is refused, whichever pipeline makes it; what an earlier call did does not count."""

from __future__ import annotations

from typing import Any

import pytest
import test_ltx2
import test_modular
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    LTX2Pipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    UniPCMultistepScheduler,
)
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance, SkipLayerGuidance
from torch import Tensor

import specs.pixart
import tiny_pipelines as tiny
from composition import pipes
from test_contract import fingerprint, untouched
from vsf import VSF, negative_guidance
from vsf.arch import find_models

pytestmark = pytest.mark.filterwarnings("ignore:.*xperimental.*")
REFUSED = "classifier-free guidance"
SIBLINGS: dict[str, Any] = {"sd3": StableDiffusion3Img2ImgPipeline, "unet": StableDiffusionImg2ImgPipeline}


def sibling(pipe: Any, name: str, **parts: Any) -> Any:
    made = SIBLINGS[name].from_pipe(pipe, **parts)
    made.set_progress_bar_config(disable=True)
    return made


def image_to_image(pipe: Any, **more: Any) -> Tensor:
    call: dict[str, Any] = {"image": tiny.picture(), "strength": 1.0, "height": 16, "width": 16} | more
    if "Diffusion3" not in type(pipe).__name__:
        call = {k: v for k, v in call.items() if k not in ("height", "width")}
    length = {"max_sequence_length": 16} if hasattr(pipe, "transformer") else {}
    return pipe(
        "a red bicycle", num_inference_steps=2, output_type="latent", generator=torch.Generator().manual_seed(0),
        **{"guidance_scale": 0.0} | length | call,
    ).images  # fmt: skip


@pytest.mark.parametrize("name", list(SIBLINGS))
def test_a_sibling_made_by_from_pipe(name: str) -> None:
    pipe = pipes.make(name)
    other = sibling(pipe, name)
    model, _ = find_models(pipe)[0]
    plain, before = image_to_image(other), fingerprint(model)
    with negative_guidance(other, VSF(), "wheels"):
        wanted = image_to_image(other)
    with negative_guidance(pipe, VSF(), "wheels"):
        with pytest.raises(ValueError, match=REFUSED):
            image_to_image(other, guidance_scale=4.0)
        assert torch.equal(image_to_image(other), wanted) and not torch.equal(wanted, plain)
    assert untouched(model, before) and torch.equal(image_to_image(other), plain)


@pytest.mark.parametrize("name", list(SIBLINGS))
def test_what_an_earlier_call_did_does_not_count(name: str) -> None:
    pipe = pipes.make(name)
    other = sibling(pipe, name)
    with negative_guidance(other, VSF(), "wheels"):
        wanted = image_to_image(other)
    pipes.draw(pipe, guidance_scale=4.0)
    assert pipe.do_classifier_free_guidance
    with negative_guidance(pipe, VSF(), "wheels"):
        assert torch.equal(image_to_image(other), wanted)
    model = pipes.model_of(pipe)  # nor where the model is called by no pipeline at all
    with torch.no_grad():
        length = {"max_sequence_length": 16} if name == "sd3" else {}
        given = (
            pipe.encode_prompt("wheels", None, None, do_classifier_free_guidance=False, **length)[0][0]
            if name == "sd3"
            else pipe.encode_prompt("wheels", "cpu", 1, False)[0][0]
        )
        call: dict[str, Any] = {"encoder_hidden_states": given[None], "timestep": torch.tensor([500.0])}
        if name == "sd3":
            call |= {"hidden_states": torch.randn(1, 4, 8, 8), "pooled_projections": torch.randn(1, 16)}
        else:
            call |= {"sample": torch.randn(1, 4, 8, 8)}
        plain = model(**call)[0]
        with negative_guidance(pipe, VSF(), "wheels"):
            assert not torch.equal(model(**call)[0], plain)


@pytest.mark.parametrize("name", list(SIBLINGS))
def test_through_the_model_itself(name: str) -> None:
    pipe = pipes.make(name)
    model, family = find_models(pipe)[0]
    with torch.no_grad():
        given = [family.encode(pipe, "wheels", False, None)]
    with negative_guidance(pipe, VSF(), "wheels"):
        wanted = pipes.draw(pipe)
    before = fingerprint(model)
    with negative_guidance(model, VSF(), negative_prompt_embeds=given):
        with pytest.raises(ValueError, match=REFUSED):
            pipes.draw(pipe, guidance_scale=4.0)
        with pytest.raises(ValueError, match="negative_prompt='chain'"):
            pipes.draw(pipe, negative_prompt="chain")
        assert torch.equal(pipes.draw(pipe), wanted)
    assert untouched(model, before)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_one_that_keeps_it_in_a_local_variable_alone() -> None:
    torch.manual_seed(0)
    text = tiny.tokenizer("t5"), tiny.t5(), tiny.vae(4)
    scheduler: Any = DPMSolverMultistepScheduler()
    pipe: Any = PixArtSigmaPipeline(*text, specs.pixart.build(torch.float32), scheduler)
    pipe.set_progress_bar_config(disable=True)
    model, family = find_models(pipe)[0]
    with torch.no_grad():
        given = [family.encode(pipe, "wheels", False, 16)]
    call: dict[str, Any] = {
        "num_inference_steps": 2, "height": 16, "width": 16, "output_type": "latent", "max_sequence_length": 16,
        "use_resolution_binning": False,
    }  # fmt: skip
    with negative_guidance(model, VSF(), negative_prompt_embeds=given):
        with pytest.raises(ValueError, match="do_classifier_free_guidance"):
            pipe("a red bicycle", guidance_scale=4.0, **call)
        pipe("a red bicycle", guidance_scale=1.0, **call)


@pytest.mark.parametrize("name", [n for n in test_modular.CASES if n != "ltx"])
def test_a_guider_of_a_modular_pipeline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        test_modular.wan_encoders, "ftfy", type("_", (), {"fix_text": staticmethod(str)}), raising=False
    )
    case = test_modular.CASES[name]
    _, pipe = test_modular.build(case)
    model, _ = find_models(pipe)[0]
    guiders = [n for n in pipe.components if n.endswith("guider")]
    if not guiders:
        return  # a model that is guidance-distilled: its pipeline has none
    on = type(case.guider)(guidance_scale=4.0)
    pipe.update_components(**dict.fromkeys(guiders, on))
    before = fingerprint(model)
    with (
        pytest.raises(ValueError, match=rf"runs a guidance of its own \(guider is a {type(on).__name__}, 2 passes"),
        negative_guidance(pipe, VSF(), "wheels", max_sequence_length=case.limit),
    ):
        test_modular.draw(pipe, case)
    assert name == "ltx2" or untouched(model, before)  # its guider leaves hooks of its own behind
    if name not in ("wan", "ltx2"):  # as the sentence says; the two cannot do without in diffusers 0.42.1
        pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=1))
        with negative_guidance(pipe, VSF(), "wheels", max_sequence_length=case.limit):
            test_modular.draw(pipe, case)


@pytest.mark.parametrize(
    "guider",
    [
        AdaptiveProjectedGuidance(4.0),
        SkipLayerGuidance(
            1.0, skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0, skip_layer_guidance_layers=[1]
        ),
    ],
    ids=lambda guider: type(guider).__name__,
)
def test_other_guiders(guider: Any) -> None:
    case = test_modular.CASES["sd3"]
    _, pipe = test_modular.build(case)
    pipe.update_components(guider=guider)
    refused = pytest.raises(ValueError, match=rf"guider is a {type(guider).__name__}, 2 passes per step")
    with refused, negative_guidance(pipe.transformer, VSF(), negative_prompt_embeds=[torch.randn(2, 16)]):
        test_modular.draw(pipe, case)


def test_the_other_guidances_of_ltx2() -> None:
    pipe: Any = test_modular.ltx2()
    assert type(pipe).__name__ == LTX2Pipeline.__name__
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = test_ltx2.TestLTX2.call if hasattr(test_ltx2, "TestLTX2") else {}
    call = {"num_inference_steps": 2, "max_sequence_length": 16, "output_type": "latent"} | test_modular.VIDEO | call
    off: dict[str, Any] = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0, "modality_scale": 1.0, "stg_scale": 0.0}
    for more, says in (
        ({"stg_scale": 1.0, "spatio_temporal_guidance_blocks": [1]}, "do_spatio_temporal_guidance.*stg_scale=0"),
        ({"modality_scale": 3.0}, "do_modality_isolation_guidance.*modality_scale=1"),
    ):
        with pytest.raises(ValueError, match=says), negative_guidance(pipe, VSF(), "wheels", max_sequence_length=16):
            pipe("a red bicycle", **call | off | more)


def test_steps_are_those_of_the_pipeline_that_runs() -> None:
    """Of a sibling with a scheduler of its own, one that does not count."""
    pipe = pipes.make("unet")
    pipe.scheduler = UniPCMultistepScheduler()
    other = sibling(pipe, "unet", scheduler=DDIMScheduler(steps_offset=1, clip_sample=False))
    assert other.scheduler is not pipe.scheduler
    method = VSF(start=0.5)
    with negative_guidance(other, method, "wheels"):
        wanted = image_to_image(other)
    with negative_guidance(pipe, method, "wheels"):
        assert torch.equal(image_to_image(other), wanted)
    with negative_guidance(other.unet, VSF(), negative_prompt_embeds=[torch.randn(3, 16)], record=True) as guided:
        image_to_image(other)
    assert guided.suppression().steps == [0, 1]


def test_a_wrapper_around_a_pipeline_is_no_pipeline() -> None:
    pipe = pipes.make("sd3")

    class Studio:
        """Somebody's class, callable, with the model in it."""

        do_classifier_free_guidance = False

        def __init__(self) -> None:
            self.model = pipe.transformer

        def __call__(self, **more: Any) -> Tensor:
            return pipes.draw(pipe, **more)

    studio = Studio()
    with negative_guidance(pipe, VSF(), "wheels"):
        studio()
        with pytest.raises(ValueError, match=REFUSED):
            studio(guidance_scale=4.0)
