from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import Lumina2Pipeline
from torch import Tensor
from transformers import Gemma2Config, Gemma2Model

import tiny_pipelines as tiny
from specs import lumina2


class TestLumina2(tiny.PipelineContract):
    call = {"guidance_scale": 1.0, "height": 64, "width": 64}
    tokens = 4
    grid = (4, 4)
    limit = 48

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        config = Gemma2Config(
            vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8,
        )  # fmt: skip
        stock = Lumina2Pipeline(
            lumina2.build(torch.float32), tiny.scheduler(), tiny.vae(4), Gemma2Model(config).eval(),
            tiny.tokenizer("t5"),
        )  # fmt: skip
        return tiny.saved(stock, tmp_path_factory.mktemp("lumina2"))

    def stock_negative(self, pipe: Any, text: str) -> Tensor:
        """Without the system prompt, as the pipeline encodes its own negatives."""
        _, _, embeds, mask = pipe.encode_prompt("", True, negative_prompt=[text], max_sequence_length=self.limit)
        return self.draw(pipe, None, prompt_embeds=embeds, prompt_attention_mask=mask)
