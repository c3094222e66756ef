from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

import tiny_pipelines as tiny
from specs import hunyuan_video
from tiny_videos import VideoContract


def vae() -> Any:
    kind: Any = AutoencoderKLHunyuanVideo
    return kind(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        mid_block_add_attention=True,
    ).eval()  # fmt: skip


def llama() -> LlamaModel:
    config = LlamaConfig(
        vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0,
    )  # fmt: skip
    return LlamaModel(config).eval()


def clip() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=12, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


class TestHunyuanVideo(VideoContract):
    cfg = {"true_cfg_scale": 4.0, "negative_prompt": "cup"}
    limit = 64

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        stock = HunyuanVideoPipeline(
            llama(), tiny.tokenizer("qwen"), hunyuan_video.build(torch.float32), vae(), tiny.scheduler(shift=7.0),
            clip(), tiny.tokenizer("clip"),
        )  # fmt: skip
        # The template and how much of it is cut off belong to the real tokenizer.
        made = tiny.saved(stock, tmp_path_factory.mktemp("hunyuan"))
        template = made.encode_prompt.__defaults__[1]["template"]
        cls.tokens = len(made.tokenizer(template.format("wheels, chain")).input_ids) - 95
        return made

    def stock_negative(self, pipe: Any, text: str) -> Tensor:
        embeds, _, mask = pipe.encode_prompt(text, max_sequence_length=self.limit)
        pooled = pipe.encode_prompt("a red bicycle", max_sequence_length=self.limit)[1]
        return self.draw(pipe, None, prompt_embeds=embeds, pooled_prompt_embeds=pooled, prompt_attention_mask=mask)
