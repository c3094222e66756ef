from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, LTXPipeline

import tiny_pipelines as tiny
from specs import ltx
from tiny_videos import VideoContract


def vae() -> AutoencoderKLLTXVideo:
    return AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5, patch_size=1, patch_size_t=1,
    ).eval()  # fmt: skip


class TestLTX(VideoContract):
    call = {"guidance_scale": 1.0}
    tokens = 4

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        stock = LTXPipeline(tiny.scheduler(), vae(), tiny.t5(), tiny.tokenizer("t5"), ltx.build(torch.float32))
        return tiny.saved(stock, tmp_path_factory.mktemp("ltx"))
