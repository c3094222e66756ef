from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLFlux2,
    Flux2KleinInpaintPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

import tiny_pipelines as tiny
from specs import flux2
from vsf import VSF, negative_guidance

SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 4, "max_position_embeddings": 1024,
}  # fmt: skip


def transformer(guidance: bool) -> Flux2Transformer2DModel:
    torch.manual_seed(0)
    return Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=guidance,
    ).eval()  # fmt: skip


def vae() -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), block_out_channels=(8,),
        layers_per_block=1, latent_channels=1, norm_num_groups=4,
    ).eval()  # fmt: skip


def klein(kind: Any = Flux2KleinPipeline) -> Any:
    torch.manual_seed(0)
    encoder = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=28, **SMALL)).eval()
    return kind(tiny.scheduler(), vae(), encoder, tiny.tokenizer("qwen"), transformer(False))


class TestKlein(tiny.PipelineContract):
    call = {"guidance_scale": 1.0}
    tokens = 11  # <|im_start|> user \n wheels , chain <|im_end|> \n <|im_start|> assistant \n
    limit = 24

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(klein(), tmp_path_factory.mktemp("klein"))


class TestKleinInpaint(tiny.ShortContract):
    """The picture (and one to take things from) is image tokens beside the new one."""

    call = {
        "guidance_scale": 1.0, "image": tiny.picture(), "mask_image": tiny.left_half(), "strength": 1.0,
        "image_reference": tiny.picture().flip(-1),
    }  # fmt: skip
    limit = 24

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(klein(Flux2KleinInpaintPipeline), tmp_path_factory.mktemp("klein-inpaint"))


class TestFlux2(tiny.PipelineContract):
    cfg = {}  # the pipeline has none
    tokens = 13 + len(re.findall(tiny.PATTERN, SYSTEM_MESSAGE))
    limit = 160

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        encoder: Any = MistralForCausalLM(MistralConfig(num_hidden_layers=30, **SMALL)).eval()
        stock = Flux2Pipeline(tiny.scheduler(), vae(), encoder, tiny.tokenizer("qwen"), transformer(True))
        return tiny.saved(stock, tmp_path_factory.mktemp("flux2"))


def test_key_value_cache_is_refused() -> None:
    model, call = flux2.build(torch.float32), flux2.inputs(1, 5, torch.float32)
    with (
        pytest.raises(ValueError, match="kv_cache_mode='extract'"),
        negative_guidance(model, VSF(), negative_prompt_embeds=[torch.randn(3, 16)]),
    ):
        model(**call, kv_cache_mode="extract", num_ref_tokens=4)
