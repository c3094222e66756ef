from __future__ import annotations

import torch
from diffusers import BriaTransformer2DModel
from torch import Tensor

from . import Call, Spec, grid_ids, ready


def build(dtype: torch.dtype) -> BriaTransformer2DModel:
    torch.manual_seed(0)
    return ready(BriaTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=[4, 4, 8],
    ), dtype)  # fmt: skip


def inputs(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    g = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 16, 4, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "timestep": torch.full((batch,), 500.0),
        "txt_ids": torch.zeros(tokens, 3),
        "img_ids": grid_ids(4, 4, 3),
        "return_dict": False,
    }


def replace(call: Call, embeds: Tensor) -> Call:
    return call | {"encoder_hidden_states": embeds, "txt_ids": torch.zeros(embeds.shape[1], 3)}


SPECS = [Spec("bria", build, inputs, 16, replace)]
