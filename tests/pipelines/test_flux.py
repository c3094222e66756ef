from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor

import tiny_pipelines as tiny
from specs import flux


class TestFlux(tiny.PipelineContract):
    cfg = {"true_cfg_scale": 2.0, "negative_prompt": "cup"}
    tokens = 4

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        stock = FluxPipeline(
            tiny.scheduler(), tiny.vae(), tiny.clip(), tiny.tokenizer("clip"), tiny.t5(), tiny.tokenizer("t5"),
            flux.build(torch.float32, guidance=True),
        )  # fmt: skip
        return tiny.saved(stock, tmp_path_factory.mktemp("flux"))

    def stock_negative(self, pipe: Any, text: str) -> Tensor:
        embeds = pipe.encode_prompt(text, max_sequence_length=self.limit)[0]
        pooled = pipe.encode_prompt("a red bicycle", max_sequence_length=self.limit)[1]
        return self.draw(pipe, None, prompt_embeds=embeds, pooled_prompt_embeds=pooled)
