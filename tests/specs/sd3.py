from __future__ import annotations

import torch
from diffusers import SD3Transformer2DModel

import definition

from . import Call, Spec, ready


def build(dtype: torch.dtype, dual: bool = False) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return ready(SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=16, caption_projection_dim=32, pooled_projection_dim=16,
        pos_embed_max_size=8, qk_norm="rms_norm", dual_attention_layers=(0, 1) if dual else (),
    ), dtype)  # fmt: skip


def inputs(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    g = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "pooled_projections": torch.randn(batch, 16, generator=g).to(dtype),
        "timestep": torch.full((batch,), 500.0),
        "return_dict": False,
    }


SPECS = [
    Spec("sd3", build, inputs, 16, definition=definition.sd3),
    Spec("sd3-dual", lambda dtype: build(dtype, dual=True), inputs, 16, definition=definition.sd3),
]
