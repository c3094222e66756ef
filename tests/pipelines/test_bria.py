from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import BriaPipeline

import tiny_pipelines as tiny
from specs import bria


class TestBria(tiny.PipelineContract):
    call = {"guidance_scale": 0.0}
    tokens = 4

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        stock = BriaPipeline(bria.build(torch.float32), tiny.scheduler(), tiny.vae(), tiny.t5(), tiny.tokenizer("t5"))
        return tiny.saved(stock, tmp_path_factory.mktemp("bria"))
