from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

import definition

from . import Call, Spec


def build(dtype: torch.dtype) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        norm_num_groups=8, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).to(dtype).eval().requires_grad_(False)  # fmt: skip


def inputs(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    g = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(batch, 4, 8, 8, generator=g).to(dtype),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "return_dict": False,
    }


SPECS = [Spec("unet", build, inputs, 16, definition=definition.unet, joint=False)]
