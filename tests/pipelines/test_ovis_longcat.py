from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import LongCatImagePipeline, OvisImagePipeline
from test_qwen_image import text_encoder
from transformers import Qwen3Config, Qwen3Model

import tiny_pipelines as tiny
from specs import longcat_ovis
from vsf import VSF, negative_guidance
from vsf.arch import find_models


class TestOvis(tiny.PipelineContract):
    call = {"guidance_scale": 1.0}
    limit = 20
    tokens = 9  # the three, five of the template's end, and one that the real tokenizer joins with its neighbour

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8,
        )  # fmt: skip
        encoder, model = Qwen3Model(config).eval(), longcat_ovis.ovis(torch.float32)
        stock = OvisImagePipeline(tiny.scheduler(), tiny.vae(), encoder, tiny.tokenizer("qwen"), model)
        return tiny.saved(stock, tmp_path_factory.mktemp("ovis"))


class TestLongCat(tiny.PipelineContract):
    call = {"guidance_scale": 1.0, "enable_prompt_rewrite": False}
    limit = None  # the pipeline's own, always
    tokens = 3

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        words = tiny.tokenizer("qwen")
        stock = LongCatImagePipeline(
            tiny.scheduler(), tiny.vae(16), text_encoder(), words, words, longcat_ovis.longcat(torch.float32, 64)
        )  # fmt: skip
        pipe = tiny.saved(stock, tmp_path_factory.mktemp("longcat"))
        pipe.tokenizer_max_length = 24
        return pipe

    def test_quoted_text_is_counted_by_character(self, pipe: Any) -> None:
        with torch.no_grad():
            assert find_models(pipe)[0][1].encode(pipe, "wheels 'a b'", False, None).shape[0] == 5  # wheels ' a b '

    def test_text_for_the_edit_pipeline_is_refused(self, pipe: Any) -> None:
        pipe.image_processor_vl = None
        try:
            with pytest.raises(ValueError, match="negative_prompt_embeds"), negative_guidance(pipe, VSF(), "wheels"):
                pass
        finally:
            del pipe.image_processor_vl
