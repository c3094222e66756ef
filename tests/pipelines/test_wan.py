from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

import tiny_pipelines as tiny
from specs import wan
from test_contract import error, run
from tiny_videos import VideoContract
from vsf import VSF, negative_guidance


def vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False], latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()  # fmt: skip


def stock(**more: Any) -> WanPipeline:
    torch.manual_seed(0)
    encoder, model = tiny.t5(), wan.build(torch.float32)
    return WanPipeline(tiny.tokenizer("t5"), encoder, vae(), tiny.scheduler(shift=3.0), transformer=model, **more)


class TestWan(VideoContract):
    call = {"guidance_scale": 1.0}
    tokens = 4

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(), tmp_path_factory.mktemp("wan"))


class TestWan22(VideoContract):
    """Two transformers, for the noisy and for the clean steps."""

    call = {"guidance_scale": 1.0}
    cfg = {"guidance_scale": 4.0}
    tokens = 4

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        second = wan.build(torch.float32)
        with torch.no_grad():
            second.proj_out.weight.mul_(-1)  # pyright: ignore
        made = stock(transformer_2=second, boundary_ratio=0.9)
        made.scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
        return tiny.saved(made, tmp_path_factory.mktemp("wan22"))

    def test_both_transformers_are_guided(self, pipe: Any) -> None:
        with negative_guidance(pipe, VSF(3.0), "wheels, chain", record=True) as guided:
            self.draw(pipe)
            assert all(m.blocks[0].attn2.processor.__class__.__name__.startswith("Guided")
                       for m in (pipe.transformer, pipe.transformer_2))  # fmt: skip
        assert guided.suppression().steps == [0, 1]


@pytest.mark.parametrize("kind", [WanTransformer3DModel, SkyReelsV2Transformer3DModel])
@pytest.mark.parametrize("fused", [False, True])
def test_image_branch_never_sees_the_negative(kind: type, fused: bool) -> None:
    """As many image tokens as prompt and negative together: only the order of the calls tells them apart."""
    model: Any = wan.build(torch.float64, kind, image=True)
    if fused:
        for block in model.blocks:
            block.attn2.fuse_projections()
    call = wan.inputs(2, 7, torch.float64, image=wan.TEXT + 3)
    seen: list[torch.Tensor] = []
    attention = model.blocks[0].attn2
    keys = attention.to_added_kv if fused else attention.add_k_proj
    handle = keys.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    plain = run(model, call)
    with negative_guidance(model, VSF(3.0), negative_prompt_embeds=[torch.randn(3, 16)]):
        guided = run(model, call)
    handle.remove()
    assert error(guided, plain) > 1e-5
    assert seen[0].shape[1] == wan.TEXT + 3 and torch.equal(seen[0], seen[1])
    assert torch.equal(run(model, call), plain)
