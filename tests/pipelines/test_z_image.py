from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

import tiny_pipelines as tiny
from specs import z_image
from test_contract import error, run
from vsf import VSF, negative_guidance


def text_encoder() -> Qwen3Model:
    config = Qwen3Config(
        vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return Qwen3Model(config).eval()


class TestZImage(tiny.PipelineContract):
    call = {"guidance_scale": 0.0, "height": 32, "width": 32}
    grid = (16, 16)
    tokens = 11  # <|im_start|> user \n | wheels , chain | <|im_end|> \n <|im_start|> assistant \n

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        stock = ZImagePipeline(
            tiny.scheduler(), tiny.vae(4), text_encoder(), tiny.tokenizer("qwen"), z_image.build(torch.float32)
        )
        return tiny.saved(stock, tmp_path_factory.mktemp("z-image"))

    def draw(self, pipe: Any, prompt: Any = "a red bicycle", *args: Any, **kwargs: Any) -> Tensor:
        # The pipeline writes its chat template into the list it is given.
        return super().draw(pipe, list(prompt) if isinstance(prompt, list) else prompt, *args, **kwargs)


def test_residuals_of_a_controlnet_meet_only_image_and_prompt() -> None:
    model, call = z_image.build(torch.float64), z_image.inputs(1, 5, torch.float64)
    residual = {0: torch.randn(1, 64, 32, dtype=torch.float64)}  # 9 image and 5 text tokens, both padded to 32
    plain = run(model, call | {"controlnet_block_samples": residual})
    given = {"negative_prompt_embeds": [torch.randn(3, 16)]}
    with negative_guidance(model, VSF(scale=3.0), **given):
        assert error(run(model, call | {"controlnet_block_samples": residual}), plain) > 1e-5
    with negative_guidance(model, VSF(blocks=()), **given):
        assert error(run(model, call | {"controlnet_block_samples": residual}), plain) < 1e-12


def test_nested_inputs_are_refused() -> None:
    model, call = z_image.build(torch.float32), z_image.inputs(1, 5, torch.float32)
    nested = call | {"x": [call["x"]], "cap_feats": [call["cap_feats"]]}
    with (
        pytest.raises(ValueError, match="a list of tensors, one per sample"),
        negative_guidance(model, VSF(), negative_prompt_embeds=[torch.randn(3, 16)]),
    ):
        run(model, nested)
