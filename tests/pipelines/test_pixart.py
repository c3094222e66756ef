from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline

import tiny_pipelines as tiny
from specs import pixart

# In the scheduler, with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


class TestPixArtSigma(tiny.PipelineContract):
    kind: type = PixArtSigmaPipeline
    call = {"guidance_scale": 1.0, "use_resolution_binning": False}
    tokens = 4
    cli = None  # the sizes it rounds to are those of the real models

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        stock = cls.kind(
            tiny.tokenizer("t5"), tiny.t5(), tiny.vae(4), pixart.build(torch.float32), DPMSolverMultistepScheduler()
        )
        return tiny.saved(stock, tmp_path_factory.mktemp("pixart"))


class TestPixArtAlpha(TestPixArtSigma):
    kind = PixArtAlphaPipeline
