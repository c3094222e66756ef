from __future__ import annotations

from functools import partial

import torch
from diffusers import PixArtTransformer2DModel

from . import Call, Spec, ready
from .ltx import replace


def build(dtype: torch.dtype, alpha: bool = False) -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    return ready(PixArtTransformer2DModel(
        in_channels=4, out_channels=8, num_attention_heads=3, attention_head_dim=16, num_layers=3,
        cross_attention_dim=48, caption_channels=16, sample_size=8, use_additional_conditions=alpha,
    ), dtype)  # fmt: skip


def inputs(batch: int, tokens: int, dtype: torch.dtype, alpha: bool = False) -> Call:
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    mask[:, -2:] = 0
    size = {
        "resolution": torch.full((batch, 2), 64.0),
        "aspect_ratio": torch.ones(batch, 1),
    }  # PixArt-alpha at 1024 px
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "timestep": torch.full((batch,), 500.0),
        "encoder_attention_mask": mask,
        "added_cond_kwargs": {k: v.to(dtype) if alpha else None for k, v in size.items()},
        "return_dict": False,
    }


SPECS = [
    Spec("pixart", build, inputs, 16, replace, joint=False),
    Spec("pixart-alpha", partial(build, alpha=True), partial(inputs, alpha=True), 16, replace, joint=False),
]
