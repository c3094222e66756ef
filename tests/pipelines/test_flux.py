from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor

import tiny_pipelines as tiny
from closeness import differs, rounding
from specs import flux
from test_contract import run, watched
from vsf import NAG, VSF, negative_guidance


def stock(kind: type = FluxPipeline, guidance: bool = True, channels: int = 4, **more: Any) -> Any:
    model: Any = flux.build(torch.float32, guidance)
    if channels != 4:
        torch.manual_seed(0)
        config = {k: v for k, v in model.config.items() if not k.startswith("_")}
        model = FluxTransformer2DModel(**{**config, "in_channels": channels, "out_channels": 4})
    torch.manual_seed(0)
    return kind(
        scheduler=tiny.scheduler(), vae=tiny.vae(), text_encoder=tiny.clip(), tokenizer=tiny.tokenizer("clip"),
        text_encoder_2=tiny.t5(), tokenizer_2=tiny.tokenizer("t5"), transformer=model.eval(), **more,
    )  # fmt: skip


class Flux(tiny.ShortContract):
    def stock_negative(self, pipe: Any, text: str) -> Tensor:
        def encode(prompt: str) -> Any:
            return pipe.encode_prompt(prompt, None, max_sequence_length=self.limit)

        with torch.no_grad():
            return self.draw(
                pipe, None, prompt_embeds=encode(text)[0], pooled_prompt_embeds=encode("a red bicycle")[1]
            )


class TestFlux(Flux, tiny.PipelineContract):
    """Flux-dev and Krea: the guidance scale is an input of the model."""

    cfg = {"true_cfg_scale": 2.0, "negative_prompt": "cup"}
    tokens = 4

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(), tmp_path_factory.mktemp("flux"))


class TestFluxSchnell(TestFlux):
    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(guidance=False), tmp_path_factory.mktemp("schnell"))


class TestFluxImg2Img(Flux):
    call = {"image": tiny.picture(), "strength": 0.9}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(FluxImg2ImgPipeline), tmp_path_factory.mktemp("flux-img2img"))


class TestFluxInpaint(Flux):
    call = {"image": tiny.picture(), "mask_image": tiny.left_half(), "strength": 0.9}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(FluxInpaintPipeline), tmp_path_factory.mktemp("flux-inpaint"))


class TestFluxFill(Flux):
    """The masked picture and the mask are channels of the input: 4 + 4 + 4."""

    call = {"image": tiny.picture(), "mask_image": tiny.left_half()}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(FluxFillPipeline, channels=12), tmp_path_factory.mktemp("flux-fill"))


class TestFluxControl(Flux):
    """Canny and Depth: the control picture is channels of the input."""

    call = {"control_image": tiny.picture()}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(FluxControlPipeline, channels=8), tmp_path_factory.mktemp("flux-control"))


class TestFluxKontext(Flux):
    """The picture to edit is image tokens behind those of the new one."""

    call = {"image": tiny.picture(), "max_area": 256, "_auto_resize": False}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(FluxKontextPipeline), tmp_path_factory.mktemp("flux-kontext"))


# The class itself uses a deprecated name of diffusers.
@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed.*:FutureWarning")
class TestFluxControlNet(Flux):
    call = {"control_image": tiny.picture()}
    stock_negative = tiny.beside_the_controlnet(Flux.stock_negative)

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        config = dict(flux.build(torch.float32).config) | {"num_layers": 1, "num_single_layers": 1}
        net = tiny.noisy(FluxControlNetModel.from_config(config))
        made = stock(FluxControlNetPipeline, guidance=False, controlnet=net)
        return tiny.saved(made, tmp_path_factory.mktemp("flux-controlnet"))


@pytest.mark.parametrize("method", [VSF(), NAG()], ids=repr)
def test_all_57_blocks_are_guided(method: Any) -> None:
    """As many dual and single blocks as Flux-dev and Krea have; each one counts, and block ranges name them."""
    torch.manual_seed(0)
    config = dict(flux.build(torch.float32).config) | {"num_layers": 19, "num_single_layers": 38}
    model: Any = FluxTransformer2DModel.from_config(config)
    model.double().eval().requires_grad_(False)
    call, given = flux.inputs(1, 5, torch.float64), [torch.randn(3, 16)]
    with watched() as calls, negative_guidance(model, method, negative_prompt_embeds=given):
        every = run(model, call)
    assert len(calls) == 57
    plain = run(model, call)
    bound = rounding(model, torch.float64)
    differs(every, plain, bound)
    for block in (0, 18, 19, 56):
        with negative_guidance(model, type(method)(blocks=(block,)), negative_prompt_embeds=given):
            alone = run(model, call)
        rest = tuple(b for b in range(57) if b != block)
        with negative_guidance(model, type(method)(blocks=rest), negative_prompt_embeds=given):
            without = run(model, call)
        differs(alone, plain, bound)
        differs(without, every, bound)
