from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import (
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)
from test_unet import half_clip
from torch import Tensor
from transformers import CLIPTextModelWithProjection

import tiny_pipelines as tiny
from closeness import differs, rounding
from specs import sd3
from vsf import VSF, negative_guidance
from vsf.arch import find_models


def stock(kind: type = StableDiffusion3Pipeline, dual: bool = False, channels: int = 4, **more: Any) -> Any:
    model: Any = sd3.build(torch.float32, dual)
    if channels != 4:  # the inpainting pipeline takes 16 only
        torch.manual_seed(0)
        model = SD3Transformer2DModel.from_config(
            dict(model.config) | {"in_channels": channels, "out_channels": channels}
        )
    clips = [half_clip(seed, CLIPTextModelWithProjection) for seed in (1, 2)]
    torch.manual_seed(0)
    return kind(
        model.eval(), tiny.scheduler(), tiny.vae(channels), clips[0], tiny.tokenizer("clip"), clips[1],
        tiny.tokenizer("clip"), tiny.t5(), tiny.tokenizer("t5"), **more,
    )  # fmt: skip


class SD3(tiny.ShortContract):
    call = {"guidance_scale": 0.0}

    def stock_negative(self, pipe: Any, text: str) -> Tensor:
        own = {
            "prompt_2": None,
            "prompt_3": None,
            "do_classifier_free_guidance": False,
            "max_sequence_length": self.limit,
        }
        with torch.no_grad():
            negative = pipe.encode_prompt(text, **own)[0]
            pooled = pipe.encode_prompt("a red bicycle", **own)[2]
        return self.draw(pipe, None, prompt_embeds=negative, pooled_prompt_embeds=pooled)


class TestSD3(SD3, tiny.PipelineContract):
    tokens = 5 + 4  # CLIP with start and end, T5 with end
    grid = (8, 8)

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(), tmp_path_factory.mktemp("sd3"))

    def test_without_t5_the_negative_is_clips_tokens(self, pipe: Any) -> None:
        """diffusers puts zeros in the place of T5's tokens; the prompt's are padding, the negative has none."""
        small = copy.copy(pipe)
        small.text_encoder_3 = None
        family = find_models(pipe)[0][1]
        with torch.no_grad():
            clip = family.encode(pipe, "wheels, chain", False, None)[:5]
            for tokenizer in (pipe.tokenizer_3, None):
                small.tokenizer_3 = tokenizer
                assert torch.equal(family.encode(small, "wheels, chain", False, None), clip)
                assert family.encode(small, "wheels, chain", True, 16).shape[0] == 77 + 16
        with negative_guidance(small, VSF(3.0), "wheels, chain"):
            guided = self.draw(small)
        assert bool(guided.isfinite().all())
        differs(guided, self.draw(small), rounding(small, passes=2))


class TestSD35Medium(TestSD3):
    """With the second, image-only attention of SD3.5-medium."""

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(dual=True), tmp_path_factory.mktemp("sd35-medium"))


class TestSD3Img2Img(SD3):
    call = {"guidance_scale": 0.0, "image": tiny.picture(), "strength": 0.9}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(StableDiffusion3Img2ImgPipeline), tmp_path_factory.mktemp("sd3-img2img"))


class TestSD3Inpaint(SD3):
    call = {"guidance_scale": 0.0, "image": tiny.picture(), "mask_image": tiny.left_half(), "strength": 0.9}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        made = stock(StableDiffusion3InpaintPipeline, channels=16)
        return tiny.saved(made, tmp_path_factory.mktemp("sd3-inpaint"))


class TestSD3ControlNet(SD3):
    call = {"guidance_scale": 0.0, "control_image": tiny.picture()}
    stock_negative = tiny.beside_the_controlnet(SD3.stock_negative)

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        config = dict(sd3.build(torch.float32).config)
        net = SD3ControlNetModel.from_config({**config, "num_layers": 2, "extra_conditioning_channels": 0})
        made = stock(StableDiffusion3ControlNetPipeline, controlnet=tiny.noisy(net))
        return tiny.saved(made, tmp_path_factory.mktemp("sd3-controlnet"))

    def draw(self, pipe: Any, *args: Any, **kwargs: Any) -> Tensor:
        torch.manual_seed(0)  # the pipeline draws the control picture's latents from here
        return super().draw(pipe, *args, **kwargs)
