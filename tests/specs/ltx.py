from __future__ import annotations

import torch
from diffusers import LTXVideoTransformer3DModel
from torch import Tensor

from . import Call, Spec, ready


def build(dtype: torch.dtype) -> LTXVideoTransformer3DModel:
    torch.manual_seed(0)
    return ready(LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
        num_layers=3, caption_channels=16,
    ), dtype)  # fmt: skip


def inputs(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    mask[:, -2:] = False
    return {
        "hidden_states": torch.randn(batch, 2 * 3 * 4, 8, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "timestep": torch.full((batch,), 500.0),
        "encoder_attention_mask": mask,
        "num_frames": 2,
        "height": 3,
        "width": 4,
        "return_dict": False,
    }


def one_time_per_token(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    """As the image-to-video and condition pipelines call it."""
    times = torch.full((batch, 2 * 3 * 4), 500.0)
    times[:, :12] = 0.0
    return inputs(batch, tokens, dtype) | {"timestep": times}


def replace(call: Call, embeds: Tensor) -> Call:
    return call | {
        "encoder_hidden_states": embeds,
        "encoder_attention_mask": torch.ones(embeds.shape[:2], dtype=torch.bool),
    }


SPECS = [
    Spec("ltx", build, inputs, 16, replace, joint=False),
    Spec("ltx-image", build, one_time_per_token, 16, replace, joint=False),
]
