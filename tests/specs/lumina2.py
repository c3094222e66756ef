from __future__ import annotations

import torch
from diffusers import Lumina2Transformer2DModel

from . import Call, Spec, ready
from .hunyuan_video import replace


def build(dtype: torch.dtype) -> Lumina2Transformer2DModel:
    torch.manual_seed(0)
    return ready(Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, hidden_size=48, num_layers=3, num_refiner_layers=2,
        num_attention_heads=3, num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 6, 6), axes_lens=(64, 16, 16),
        cap_feat_dim=16,
    ), dtype)  # fmt: skip


def inputs(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    """The last sample has a shorter text than the others."""
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    mask[-1, -2:] = 0
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "timestep": torch.full((batch,), 0.5, dtype=dtype),
        "encoder_attention_mask": mask,
        "return_dict": False,
    }


SPECS = [Spec("lumina2", build, inputs, 16, replace)]
