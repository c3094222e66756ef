from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import CogView4Pipeline
from transformers import GlmConfig, GlmModel

import tiny_pipelines as tiny
from specs import cogview4


class TestCogView4(tiny.PipelineContract):
    call = {"guidance_scale": 1.0}
    tokens = 5

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        config = GlmConfig(
            vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8, pad_token_id=0, eos_token_id=0, initializer_range=0.5,
        )  # fmt: skip
        encoder, model = GlmModel(config).eval(), cogview4.build(torch.float32)
        stock = CogView4Pipeline(tiny.tokenizer("glm"), encoder, tiny.vae(4), model, tiny.scheduler())
        return tiny.saved(stock, tmp_path_factory.mktemp("cogview4"))
