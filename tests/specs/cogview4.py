from __future__ import annotations

import torch
from diffusers import CogView4Transformer2DModel
from torch import Tensor

from . import Call, Spec, ready


def build(dtype: torch.dtype) -> CogView4Transformer2DModel:
    torch.manual_seed(0)
    return ready(CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=4,
        text_embed_dim=16, time_embed_dim=8, condition_dim=4, rope_axes_dim=(16, 16), sample_size=8,
    ), dtype)  # fmt: skip


def inputs(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    g = torch.Generator().manual_seed(1)
    sizes = torch.full((batch, 2), 64.0).to(dtype)
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "timestep": torch.full((batch,), 500.0),
        "original_size": sizes,
        "target_size": sizes,
        "crop_coords": torch.zeros_like(sizes),
        "return_dict": False,
    }


def masked(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    mask = torch.ones(batch, tokens)
    mask[:, :2] = 0
    return inputs(batch, tokens, dtype) | {"attention_mask": mask}


def replace(call: Call, embeds: Tensor) -> Call:
    return call | {"encoder_hidden_states": embeds, "attention_mask": None}


SPECS = [Spec("cogview4", build, inputs, 16, replace), Spec("cogview4-mask", build, masked, 16, replace)]
