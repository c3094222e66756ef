from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2Pipeline
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

import tiny_pipelines as tiny
from specs import ltx2
from tiny_videos import VideoContract
from vsf.arch import find_models


def vae() -> AutoencoderKLLTX2Video:
    return AutoencoderKLLTX2Video(
        latent_channels=8, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
        decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,),
        upsample_factor=(1,), patch_size=1, patch_size_t=1,
    ).eval()  # fmt: skip


def audio_vae() -> AutoencoderKLLTX2Audio:
    return AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
    ).eval()


def vocoder() -> LTX2Vocoder:
    return LTX2Vocoder(
        in_channels=16, hidden_channels=8, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], output_sampling_rate=16000,
    ).eval()  # fmt: skip


def text_encoder() -> Gemma3ForConditionalGeneration:
    config = Gemma3Config(
        text_config={
            "vocab_size": 96, "hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8,
            "num_attention_heads": 2, "num_key_value_heads": 1,
        },
        vision_config={
            "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 8, "patch_size": 4,
        },
        mm_tokens_per_image=4,
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(config).eval()


def connectors() -> LTX2TextConnectors:
    return LTX2TextConnectors(
        caption_channels=24, text_proj_in_factor=3, video_connector_num_attention_heads=3,
        video_connector_attention_head_dim=8, video_connector_num_layers=1, video_connector_num_learnable_registers=8,
        audio_connector_num_attention_heads=3, audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=8, connector_rope_base_seq_len=32,
    ).eval()  # fmt: skip


class TestLTX2(VideoContract):
    call = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0, "stg_scale": 0.0, "audio_stg_scale": 0.0,
            "modality_scale": 1.0, "audio_modality_scale": 1.0, "use_cross_timestep": False}  # fmt: skip
    cfg = {"audio_guidance_scale": 3.0}
    cli = None  # takes the preset: sound has a guidance of its own, which is on by default
    tokens = 4

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        stock = LTX2Pipeline(
            tiny.scheduler(), vae(), audio_vae(), text_encoder(), tiny.tokenizer("t5"), connectors(),
            ltx2.build(torch.float32), vocoder(),
        )  # fmt: skip
        return tiny.saved(stock, tmp_path_factory.mktemp("ltx2"))

    def test_unpadded_negative_is_its_real_tokens(self, pipe: Any) -> None:
        """The registers that stand for pads are what real tokens see in the connectors, and come behind them."""
        family = find_models(pipe)[0][1]
        with torch.no_grad():
            short = family.encode(pipe, "wheels, chain", False, 16)
            padded = family.encode(pipe, "wheels, chain", True, 16)
        assert short.shape == (self.tokens, family.width(pipe.transformer)) and len(padded) == 16
        assert torch.equal(padded[: self.tokens], short)
