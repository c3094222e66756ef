from __future__ import annotations

from functools import partial

import torch
from diffusers import SanaTransformer2DModel, SanaVideoTransformer3DModel

from . import Call, Spec, ready
from .ltx import replace


def build(dtype: torch.dtype, sprint: bool = False) -> SanaTransformer2DModel:
    torch.manual_seed(0)
    config = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"} if sprint else {}
    return ready(SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=3,
        num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=16,
        sample_size=8, patch_size=1, **config,
    ), dtype)  # fmt: skip


def build_video(dtype: torch.dtype) -> SanaVideoTransformer3DModel:
    torch.manual_seed(0)
    return ready(SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=3,
        num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=16,
        sample_size=8, patch_size=(1, 2, 2),
    ), dtype)  # fmt: skip


def inputs(batch: int, tokens: int, dtype: torch.dtype, sprint: bool = False) -> Call:
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    mask[:, -2:] = 0
    call = {
        "hidden_states": torch.randn(batch, 4, 8, 8, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "timestep": torch.full((batch,), 500.0),
        "encoder_attention_mask": mask,
        "return_dict": False,
    }
    return call | {"guidance": torch.full((batch,), 0.45, dtype=dtype)} if sprint else call


def video(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    g = torch.Generator().manual_seed(1)
    return inputs(batch, tokens, dtype) | {"hidden_states": torch.randn(batch, 4, 2, 4, 4, generator=g).to(dtype)}


SPECS = [
    Spec("sana", build, inputs, 16, replace, joint=False, sums=torch.float32),
    Spec(
        "sana-sprint",
        partial(build, sprint=True),
        partial(inputs, sprint=True),
        16,
        replace,
        joint=False,
        sums=torch.float32,
    ),
    Spec("sana-video", build_video, video, 16, replace, joint=False, sums=torch.float32),
]
