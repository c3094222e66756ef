from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogView3PlusPipeline

import tiny_pipelines as tiny
from specs import cogview3plus


class TestCogView3Plus(tiny.PipelineContract):
    call = {"guidance_scale": 1.0}
    tokens = 4

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        model = cogview3plus.build(torch.float32)
        made: Any = CogView3PlusPipeline
        stock = made(
            tiny.tokenizer("t5"), tiny.t5(), tiny.vae(4), model, CogVideoXDDIMScheduler(rescale_betas_zero_snr=True)
        )
        return tiny.saved(stock, tmp_path_factory.mktemp("cogview3plus"))
