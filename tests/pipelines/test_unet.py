from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import tiny_pipelines as tiny
from specs import unet


def half_clip(seed: int, kind: type = CLIPTextModel) -> Any:
    """One of SDXL's two text encoders, whose widths add up to the UNet's."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=unet.POOLED, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return kind(config).eval()


def sd(kind: type = StableDiffusionPipeline, model: str = "sd15", scheduler: Any = None) -> Any:
    torch.manual_seed(0)
    return kind(
        vae=tiny.vae(4), text_encoder=tiny.clip(), tokenizer=tiny.tokenizer("clip"),
        unet=unet.build(torch.float32, model), scheduler=scheduler or DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl(kind: Any = StableDiffusionXLPipeline) -> Any:
    torch.manual_seed(0)
    takes = inspect.signature(kind.__init__).parameters
    more = {"requires_aesthetics_score": False} if "requires_aesthetics_score" in takes else {}
    return kind(
        vae=tiny.vae(4), text_encoder=half_clip(1), text_encoder_2=half_clip(2, CLIPTextModelWithProjection),
        tokenizer=tiny.tokenizer("clip"), tokenizer_2=tiny.tokenizer("clip"), unet=unet.build(torch.float32, "sdxl"),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), add_watermarker=False, **more,
    )  # fmt: skip


class TestSD15(tiny.PipelineContract):
    call = {"guidance_scale": 0.0}
    limit = None
    tokens = 5
    grid = (16, 16)

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(sd(), tmp_path_factory.mktemp("sd15"))


class TestLCM(tiny.PipelineContract):
    """A UNet that takes the guidance scale as an input of its own, and a scheduler that adds noise between steps."""

    cfg = {}  # the pipeline has none
    limit = None
    tokens = 5
    grid = (16, 16)

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        made = sd(LatentConsistencyModelPipeline, "lcm", LCMScheduler(clip_sample=False))
        return tiny.saved(made, tmp_path_factory.mktemp("lcm"))


class TestSDXL(tiny.PipelineContract):
    """Pooled text and picture size as conditions of their own; the pooled text stays the prompt's."""

    call = {"guidance_scale": 0.0}
    limit = None
    tokens = 5
    grid = (16, 16)

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(sdxl(), tmp_path_factory.mktemp("sdxl"))

    def stock_negative(self, pipe: Any, text: str) -> Tensor:
        with torch.no_grad():
            negative = pipe.encode_prompt(text, do_classifier_free_guidance=False)[0]
            pooled = pipe.encode_prompt("a red bicycle", do_classifier_free_guidance=False)[2]
        return self.draw(pipe, None, prompt_embeds=negative, pooled_prompt_embeds=pooled)


START: dict[str, Any] = {"image": tiny.picture(), "strength": 1.0, "height": ..., "width": ...}


class TestSD15Img2Img(tiny.ShortContract):
    call = {"guidance_scale": 0.0} | START
    limit = None

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(sd(StableDiffusionImg2ImgPipeline), tmp_path_factory.mktemp("sd15-img2img"))


class TestSDXLImg2Img(tiny.ShortContract):
    call = {"guidance_scale": 0.0} | START
    limit = None
    stock_negative = TestSDXL.stock_negative

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(sdxl(StableDiffusionXLImg2ImgPipeline), tmp_path_factory.mktemp("sdxl-img2img"))


class TestSDXLInpaint(tiny.ShortContract):
    call = {"guidance_scale": 0.0, "image": tiny.picture(), "mask_image": tiny.left_half(), "strength": 1.0}
    limit = None
    stock_negative = TestSDXL.stock_negative

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(sdxl(StableDiffusionXLInpaintPipeline), tmp_path_factory.mktemp("sdxl-inpaint"))
