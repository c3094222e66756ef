from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import tiny_pipelines as tiny
from specs import qwen_image
from vsf.arch.qwen_image import PICTURE, QwenImage


def text_encoder() -> Qwen2_5_VLForConditionalGeneration:
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 96, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
            "fullatt_block_indexes": [0],
        },
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def vae() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip


class TestQwenImage(tiny.PipelineContract):
    call = {"true_cfg_scale": 1.0}
    cfg = {"true_cfg_scale": 4.0, "negative_prompt": "cup"}
    tokens = 8  # with the template's last five, which the pipeline keeps
    grid = (4, 4)

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        stock = QwenImagePipeline(
            tiny.scheduler(), vae(), text_encoder(), tiny.tokenizer("qwen"), qwen_image.build(torch.float32)
        )
        return tiny.saved(stock, tmp_path_factory.mktemp("qwen"))

    def test_the_template_ends_where_the_pipeline_cuts_it(self, pipe: Any) -> None:
        prefix = pipe.prompt_template_encode.split("{}")[0]
        assert len(pipe.tokenizer(prefix).input_ids) == pipe.prompt_template_encode_start_idx

    @torch.no_grad()
    def test_the_edit_template_is_used_without_its_picture(self, pipe: Any) -> None:
        plain, template = QwenImage().encode(pipe, "wheels", False, None), pipe.prompt_template_encode
        with_picture = template.replace("{}", PICTURE + "{}")
        try:
            pipe.prompt_template_encode = with_picture
            assert torch.equal(QwenImage().encode(pipe, "wheels", False, None), plain)
            assert pipe.prompt_template_encode == with_picture
        finally:
            pipe.prompt_template_encode = template
