from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from . import Call, Spec, grid_ids, ready


def build(dtype: torch.dtype, guidance: bool = False) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return ready(FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=guidance,
    ), dtype)  # fmt: skip


def inputs(batch: int, tokens: int, dtype: torch.dtype, guidance: bool = False, reference: bool = False) -> Call:
    g = torch.Generator().manual_seed(1)
    image = 32 if reference else 16
    ids = grid_ids(4, 4, 3)
    if reference:  # as Kontext: a second image, told apart by the first column
        ids = torch.cat([ids, ids + torch.tensor([1.0, 0, 0])])
    return {
        "hidden_states": torch.randn(batch, image, 4, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "pooled_projections": torch.randn(batch, 16, generator=g).to(dtype),
        "timestep": torch.full((batch,), 0.5),
        "guidance": torch.full((batch,), 3.5) if guidance else None,
        "txt_ids": torch.zeros(tokens, 3),
        "img_ids": ids,
        "return_dict": False,
    }


def replace(call: Call, embeds: Tensor) -> Call:
    return call | {"encoder_hidden_states": embeds, "txt_ids": torch.zeros(embeds.shape[1], 3)}


SPECS = [
    Spec("flux", build, inputs, 16, replace),
    Spec(
        "flux-dev-kontext",
        lambda dtype: build(dtype, guidance=True),
        lambda batch, tokens, dtype: inputs(batch, tokens, dtype, guidance=True, reference=True),
        16,
        replace,
    ),
]
