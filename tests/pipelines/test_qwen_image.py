from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    QwenImageControlNetInpaintPipeline,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
)
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


def vae(channels: int = 4, colors: int = 3) -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=8, z_dim=channels, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.0] * channels, latents_std=[1.0] * channels, input_channels=colors,
    ).eval()  # fmt: skip


def stock(kind: Any = QwenImagePipeline, **more: Any) -> Any:
    torch.manual_seed(0)
    model = qwen_image.build(torch.float32)
    return kind(tiny.scheduler(), vae(), text_encoder(), tiny.tokenizer("qwen"), model, **more)


class TestQwenImage(tiny.PipelineContract):
    call = {"true_cfg_scale": 1.0}
    cfg = {"true_cfg_scale": 4.0, "negative_prompt": "cup"}
    tokens = 8  # with the template's last five, which the pipeline keeps
    grid = (4, 4)

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(), tmp_path_factory.mktemp("qwen"))

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


class TestQwenImageImg2Img(tiny.ShortContract):
    call = {"true_cfg_scale": 1.0, "image": tiny.picture(), "strength": 1.0}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(QwenImageImg2ImgPipeline), tmp_path_factory.mktemp("qwen-img2img"))


class TestQwenImageInpaint(tiny.ShortContract):
    call = {"true_cfg_scale": 1.0, "image": tiny.picture(), "mask_image": tiny.left_half(), "strength": 1.0}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(QwenImageInpaintPipeline), tmp_path_factory.mktemp("qwen-inpaint"))


def controlnet(channels: int = 0) -> QwenImageControlNetModel:
    config = {k: v for k, v in qwen_image.build(torch.float32).config.items() if not k.startswith("_")}
    takes = ("attention_head_dim", "num_attention_heads", "joint_attention_dim", "axes_dims_rope", "in_channels")
    torch.manual_seed(1)
    small = {k: config[k] for k in takes}
    return tiny.noisy(QwenImageControlNetModel(num_layers=1, extra_condition_channels=channels, **small))


class TestQwenImageControlNet(tiny.ShortContract):
    call = {"true_cfg_scale": 1.0, "control_image": tiny.picture()}
    stock_negative = tiny.beside_the_controlnet(tiny.ShortContract.stock_negative)

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        made = stock(QwenImageControlNetPipeline, controlnet=controlnet())
        return tiny.saved(made, tmp_path_factory.mktemp("qwen-controlnet"))


class TestQwenImageControlNetInpaint(tiny.ShortContract):
    """The mask is a further channel of what the control net sees."""

    call = {"true_cfg_scale": 1.0, "control_image": tiny.picture(), "control_mask": tiny.left_half()}
    stock_negative = tiny.beside_the_controlnet(tiny.ShortContract.stock_negative)

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        made = stock(QwenImageControlNetInpaintPipeline, controlnet=controlnet(4))
        return tiny.saved(made, tmp_path_factory.mktemp("qwen-controlnet-inpaint"))

    def draw(self, pipe: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        torch.manual_seed(0)  # the pipeline draws the control picture's latents from here
        return super().draw(pipe, *args, **kwargs)
