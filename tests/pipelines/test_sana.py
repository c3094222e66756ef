from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLWan,
    SanaPipeline,
    SanaSprintPipeline,
    SanaVideoPipeline,
    SCMScheduler,
)
from transformers import Gemma2Config, Gemma2Model

import tiny_pipelines as tiny
from specs import sana
from tiny_videos import ShortVideoContract


def vae() -> Any:
    kind: Any = AutoencoderDC
    return kind(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=[1, 1], downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41,
    ).eval()  # fmt: skip


def gemma() -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return Gemma2Model(config).eval()


class TestSana(tiny.PipelineContract):
    call = {"guidance_scale": 1.0, "complex_human_instruction": None, "use_resolution_binning": False,
            "height": 32, "width": 32}  # fmt: skip
    tokens = 4
    cli = None  # the sizes it rounds to are those of the real models
    grid = (16, 16)

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        kind: Any = SanaPipeline
        stock = kind(tiny.tokenizer("t5"), gemma(), vae(), sana.build(torch.float32), tiny.scheduler())
        return tiny.saved(stock, tmp_path_factory.mktemp("sana"))


class TestSanaSprint(tiny.PipelineContract):
    call = {"complex_human_instruction": None, "use_resolution_binning": False, "height": 32, "width": 32}
    cfg = {}  # the pipeline has none: its guidance_scale is an input of the model
    tokens = 4
    cli = None  # the sizes it rounds to are those of the real models
    grid = (16, 16)

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        model = sana.build(torch.float32, sprint=True)
        kind: Any = SanaSprintPipeline
        stock = kind(tiny.tokenizer("t5"), gemma(), vae(), model, SCMScheduler())
        return tiny.saved(stock, tmp_path_factory.mktemp("sprint"))


class TestSanaVideo(ShortVideoContract):
    call = {"guidance_scale": 1.0, "complex_human_instruction": None, "use_resolution_binning": False}
    pixels: ClassVar[dict[str, Any]] = {"height": 32, "width": 32, "frames": 5}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        video = AutoencoderKLWan(
            base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4, dim_mult=[1, 1],
            temperal_downsample=[False],
        ).eval()  # fmt: skip
        kind: Any = SanaVideoPipeline
        stock = kind(tiny.tokenizer("t5"), gemma(), video, sana.build_video(torch.float32), tiny.scheduler())
        return tiny.saved(stock, tmp_path_factory.mktemp("sana-video"))
