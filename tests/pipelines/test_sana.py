from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, SanaPipeline, SanaSprintPipeline, SCMScheduler
from transformers import Gemma2Config, Gemma2Model

import tiny_pipelines as tiny
from specs import sana


def vae() -> AutoencoderDC:
    return AutoencoderDC(
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
        stock = SanaPipeline(tiny.tokenizer("t5"), gemma(), vae(), sana.build(torch.float32), tiny.scheduler())
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
        stock = SanaSprintPipeline(tiny.tokenizer("t5"), gemma(), vae(), model, SCMScheduler())
        return tiny.saved(stock, tmp_path_factory.mktemp("sprint"))
