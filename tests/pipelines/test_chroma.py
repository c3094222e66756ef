from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import ChromaPipeline
from torch import Tensor

import tiny_pipelines as tiny
from specs import chroma

# The class itself uses a deprecated name of diffusers.
pytestmark = pytest.mark.filterwarnings("ignore:.*FluxPosEmbed.*:FutureWarning")


def stock() -> Any:
    torch.manual_seed(0)
    return ChromaPipeline(tiny.scheduler(), tiny.vae(), tiny.t5(), tiny.tokenizer("t5"), chroma.build(torch.float32))


class TestChroma(tiny.PipelineContract):
    call = {"guidance_scale": 0.0}
    tokens = 4

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(), tmp_path_factory.mktemp("chroma"))

    def stock_negative(self, pipe: Any, text: str) -> Tensor:
        # What the mask shows: diffusers dims the other pads instead of hiding them, which the guidance does not copy.
        return self.draw(pipe, text, max_sequence_length=self.tokens + 1)
