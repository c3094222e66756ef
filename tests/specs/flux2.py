from __future__ import annotations

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from . import Call, Spec, grid_ids, ready


def build(dtype: torch.dtype) -> Flux2Transformer2DModel:
    torch.manual_seed(0)
    return ready(Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    ), dtype)  # fmt: skip


def text_ids(batch: int, tokens: int) -> Tensor:
    ids = torch.zeros(batch, tokens, 4, dtype=torch.long)
    ids[..., 3] = torch.arange(tokens)
    return ids


def inputs(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    g = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 16, 4, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "timestep": torch.full((batch,), 0.5),
        "txt_ids": text_ids(batch, tokens),
        "img_ids": grid_ids(4, 4, 4).long().expand(batch, -1, -1),
        "return_dict": False,
    }


def replace(call: Call, embeds: Tensor) -> Call:
    return call | {"encoder_hidden_states": embeds, "txt_ids": text_ids(*embeds.shape[:2])}


SPECS = [Spec("flux2", build, inputs, 16, replace)]
