"""Modular pipelines: the negative is encoded by the pipeline's own text block."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import diffusers.modular_pipelines as modular
import pytest
import test_flux
import test_flux2
import test_ltx
import test_ltx2
import test_qwen_image
import test_sd3
import test_unet
import test_wan
import test_z_image
import torch
from diffusers import (
    Flux2KleinPipeline,
    Flux2Pipeline,
    LTX2Pipeline,
    LTXPipeline,
    QwenImagePipeline,
    ZImagePipeline,
)
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.guiders.ltx2_guidance import LTX2Guidance
from diffusers.modular_pipelines.flux2.encoders import Flux2TextEncoderStep
from diffusers.modular_pipelines.wan import encoders as wan_encoders
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

import specs.ltx
import specs.ltx2
import specs.qwen_image
import specs.z_image
import tiny_pipelines as tiny
from closeness import close, differs, rounding, same
from test_contract import Swap, fingerprint, untouched
from vsf import NAG, VSF, negative_guidance
from vsf.arch import find_models
from vsf.encode import encode_negative

F32 = torch.float32
SIDE = {"height": 16, "width": 16}
VIDEO = {"height": 32, "width": 32, "num_frames": 5}
# The guiders of modular pipelines announce that they are experimental.
pytestmark = pytest.mark.filterwarnings("ignore:.*xperimental.*")


def klein() -> Any:
    encoder = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=28, **test_flux2.SMALL)).eval()
    parts = (tiny.scheduler(), test_flux2.vae(), encoder, tiny.tokenizer("qwen"), test_flux2.transformer(False))
    return Flux2KleinPipeline(*parts, is_distilled=True)


def flux2() -> Any:
    encoder: Any = MistralForCausalLM(MistralConfig(num_hidden_layers=30, **test_flux2.SMALL)).eval()
    parts = (tiny.scheduler(), test_flux2.vae(), encoder, tiny.tokenizer("qwen"), test_flux2.transformer(True))
    return Flux2Pipeline(*parts)


def qwen() -> Any:
    encoder, model = test_qwen_image.text_encoder(), specs.qwen_image.build(F32)
    return QwenImagePipeline(tiny.scheduler(), test_qwen_image.vae(), encoder, tiny.tokenizer("qwen"), model)


def z_image() -> Any:
    parts = (test_z_image.text_encoder(), tiny.tokenizer("qwen"), specs.z_image.build(F32))
    return ZImagePipeline(tiny.scheduler(), tiny.vae(4), *parts)


def ltx() -> Any:
    return LTXPipeline(tiny.scheduler(), test_ltx.vae(), tiny.t5(), tiny.tokenizer("t5"), specs.ltx.build(F32))


def ltx2() -> Any:
    vaes = (test_ltx2.vae(), test_ltx2.audio_vae())
    text = (test_ltx2.text_encoder(), tiny.tokenizer("t5"), test_ltx2.connectors())
    return LTX2Pipeline(tiny.scheduler(), *vaes, *text, specs.ltx2.build(F32), test_ltx2.vocoder())


class Case(NamedTuple):
    name: str
    stock: Callable[[], Any]
    call: dict[str, Any]
    limit: int | None = 16
    guider: Any = ClassifierFreeGuidance(guidance_scale=1.0)


CASES = {
    "flux": Case("FluxModularPipeline", test_flux.stock, SIDE),
    "sd3": Case("StableDiffusion3ModularPipeline", test_sd3.stock, SIDE),
    "sdxl": Case("StableDiffusionXLModularPipeline", test_unet.sdxl, SIDE, None),
    "klein": Case("Flux2KleinModularPipeline", klein, SIDE, 24),
    "flux2": Case("Flux2ModularPipeline", flux2, SIDE, 160),
    "qwen": Case("QwenImageModularPipeline", qwen, SIDE),
    "z-image": Case("ZImageModularPipeline", z_image, {"height": 32, "width": 32}),
    # These two cannot run in diffusers 0.42.1 without classifier-free guidance of their own: the text step of the one
    # and the denoising of the other ask for unconditional embeddings. So they are encoded with only.
    "wan": Case("WanModularPipeline", test_wan.stock, VIDEO, guider=ClassifierFreeGuidance(guidance_scale=5.0)),
    "ltx": Case("LTXModularPipeline", ltx, VIDEO),
    "ltx2": Case("LTX2ModularPipeline", ltx2, VIDEO, guider=LTX2Guidance()),
}


@pytest.fixture(autouse=True)
def _without_ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wan_encoders, "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)


def build(case: Case) -> tuple[Any, Any]:
    """A stock pipeline and the modular one of the same parts, without classifier-free guidance."""
    torch.manual_seed(0)
    stock = case.stock()
    made = getattr(modular, case.name)()
    parts: dict[str, Any] = {k: v for k, v in stock.components.items() if k in made.components and v is not None}
    parts |= {
        name: case.guider for name in made.components if name.endswith("guider")
    }  # LTX-2: one more for the sound
    if hasattr(stock, "system_message"):
        stock.system_message = Flux2TextEncoderStep.DEFAULT_SYSTEM_MESSAGE  # the same words on one line
    made.update_components(**parts)
    made.set_progress_bar_config(disable=True)
    return stock, made


def draw(pipe: Any, case: Case, prompt: str = "a red bicycle", **more: Any) -> Tensor:
    limit = {} if case.limit is None else {"max_sequence_length": case.limit}
    given = {"prompt": prompt, "num_inference_steps": 2, "output_type": "pt", "output": "latents"}
    return pipe(**given | case.call | limit | more, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", list(CASES))
def test_the_negative_is_encoded_as_the_stock_pipeline_encodes_it(name: str) -> None:
    case = CASES[name]
    stock, pipe = build(case)
    family = find_models(pipe)[0][1]
    for method in (VSF(), NAG()):
        for text in ("wheels, chain", "wheels:2, chain")[: 2 if isinstance(method, VSF) else 1]:
            with torch.no_grad():
                got, weights, _ = encode_negative(pipe, family, method, text, case.limit)
                wanted, weighed, _ = encode_negative(stock, family, method, text, case.limit)
            assert got is not None and wanted is not None and got.shape == wanted.shape
            # Up to rounding, which depends on where in memory a tensor happens to lie.
            same(got, wanted, rounding(pipe), text)
            assert weights is weighed is None or torch.equal(weights, weighed)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("wan", "ltx")])
def test_a_modular_pipeline_is_guided_by_a_text(name: str) -> None:
    case = CASES[name]
    _, pipe = build(case)
    plain = draw(pipe, case)
    models = [(model, fingerprint(model)) for model, _ in find_models(pipe)]
    with negative_guidance(pipe, VSF(3.0), "wheels, chain", max_sequence_length=case.limit):
        guided = draw(pipe, case)
    assert bool(guided.isfinite().all())
    differs(guided, plain, rounding(pipe, passes=2))
    with negative_guidance(pipe, VSF(3.0), ""):
        assert torch.equal(draw(pipe, case), plain)
    assert torch.equal(draw(pipe, case), plain) and all(untouched(model, before) for model, before in models)
    if name not in ("flux", "sd3", "sdxl"):  # there the prompt has a pooled embedding beside
        wanted = draw(pipe, case, "wheels, chain")
        with negative_guidance(pipe, Swap(), "wheels, chain", max_sequence_length=case.limit):
            close(draw(pipe, case), wanted, plain, rounding(pipe, passes=2))


def test_what_a_modular_pipeline_cannot_encode_is_said() -> None:
    case = CASES["qwen"]
    _, pipe = build(case)
    refused = pytest.raises(ValueError, match="is 17 tokens long.*QwenImageModularPipeline takes 16")
    with refused, negative_guidance(pipe, VSF(), " ".join(["wheels"] * 12), max_sequence_length=16):
        pass
    pipe.update_components(text_encoder=None)
    refused = pytest.raises(ValueError, match="QwenImageModularPipeline has no text_encoder, .*negative_prompt_embeds")
    with refused, negative_guidance(pipe, VSF(), "wheels"):
        pass


@pytest.mark.filterwarnings("ignore::vsf.NothingGuided")  # what is encoded is not drawn with
def test_a_modular_pipeline_without_a_text_step_wants_embeddings() -> None:
    steps = modular.QwenImageAutoBlocks()
    del steps.sub_blocks["text_encoder"]
    pipe = steps.init_pipeline()
    pipe.update_components(transformer=specs.qwen_image.build(F32))
    refused = pytest.raises(ValueError, match="has no step that encodes a prompt alone; give negative_prompt_embeds")
    with refused, negative_guidance(pipe, VSF(), "wheels"):
        pass
    with negative_guidance(pipe, VSF(), negative_prompt_embeds=torch.ones(3, 16)):
        pass


def test_an_edit_pipeline_that_encodes_a_picture_wants_embeddings() -> None:
    pipe = modular.QwenImageEditModularPipeline()
    pipe.update_components(transformer=specs.qwen_image.build(F32))
    refused = pytest.raises(ValueError, match="has no step that encodes a prompt alone; give negative_prompt_embeds")
    with refused, negative_guidance(pipe, VSF(), "wheels"):
        pass
