from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import PRXPipeline, PRXPixelPipeline
from transformers import Qwen3Config, Qwen3Model, T5GemmaModuleConfig
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

import tiny_pipelines as tiny
from specs import prx

pytestmark = pytest.mark.filterwarnings(
    "ignore:`LoraLoaderMixin` is deprecated:FutureWarning"
)  # diffusers' own use of it


def text_encoder() -> Any:
    made: Any = T5GemmaModuleConfig
    config = made(
        vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, pad_token_id=0, bos_token_id=1, eos_token_id=1,
        initializer_range=0.3, dropout_rate=0.0, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    return T5GemmaEncoder(config).eval()


class TestPRX(tiny.PipelineContract):
    call = {"guidance_scale": 1.0, "use_resolution_binning": False, "tokenizer_max_length": 16}
    limit = None  # under a name of its own
    tokens = 4
    cli = None  # the text encoder is not among the classes that a saved pipeline may name

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls) -> Any:
        torch.manual_seed(0)
        made: Any = PRXPipeline
        pipe = made(prx.build(torch.float32), tiny.scheduler(), text_encoder(), tiny.tokenizer("t5"), tiny.vae(4))
        pipe.set_progress_bar_config(disable=True)
        return pipe


class TestPRXPixel(TestPRX):
    """In pixels, without an autoencoder; any language model is its text encoder."""

    call = {"guidance_scale": 1.0, "use_resolution_binning": False}
    grid = (4, 4)
    tokens = 3  # Qwen's tokenizer puts no end to a text

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls) -> Any:
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, initializer_range=0.3,
        )  # fmt: skip
        made: Any = PRXPixelPipeline
        encoder: Any = Qwen3Model(config).eval()
        pipe = made(
            prx.build(torch.float32, pixels=True),
            tiny.scheduler(),
            encoder,
            tiny.tokenizer("qwen"),
            prompt_max_tokens=16,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe
