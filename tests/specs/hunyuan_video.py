from __future__ import annotations

from functools import partial

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor

from . import Call, Spec, ready


def build(dtype: torch.dtype, image: str | None = None) -> HunyuanVideoTransformer3DModel:
    torch.manual_seed(0)
    return ready(HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_single_layers=2, num_refiner_layers=2, patch_size=2, text_embed_dim=16, pooled_projection_dim=12,
        rope_axes_dim=(4, 6, 6), guidance_embeds=True, image_condition_type=image,
    ), dtype)  # fmt: skip


def inputs(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, tokens, dtype=dtype)
    mask[-1, -2:] = 0
    return {
        "hidden_states": torch.randn(batch, 4, 2, 4, 4, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "timestep": torch.full((batch,), 500.0),
        "encoder_attention_mask": mask,
        "pooled_projections": torch.randn(batch, 12, generator=g).to(dtype),
        "guidance": torch.full((batch,), 6000.0, dtype=dtype),
        "return_dict": False,
    }


def replace(call: Call, embeds: Tensor) -> Call:
    mask = call["encoder_attention_mask"].new_ones(embeds.shape[:2])
    return call | {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}


SPECS = [
    Spec("hunyuan-video", build, inputs, 16, replace),
    Spec("hunyuan-video-i2v", partial(build, image="token_replace"), inputs, 16, replace),
]
