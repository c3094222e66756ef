from __future__ import annotations

import torch
from diffusers import PixArtTransformer2DModel

from . import Call, Spec
from .ltx import replace


def build(dtype: torch.dtype) -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    return PixArtTransformer2DModel(
        in_channels=4, out_channels=8, num_attention_heads=2, attention_head_dim=16, num_layers=3,
        cross_attention_dim=32, caption_channels=16, sample_size=8, use_additional_conditions=False,
    ).to(dtype).eval().requires_grad_(False)  # fmt: skip


def inputs(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    mask[:, -2:] = 0
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "timestep": torch.full((batch,), 500.0),
        "encoder_attention_mask": mask,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }


SPECS = [Spec("pixart", build, inputs, 16, replace, joint=False)]
