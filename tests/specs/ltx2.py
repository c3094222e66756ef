from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor

from . import Call, Spec, ready


def build(dtype: torch.dtype, newer: bool = False) -> LTX2VideoTransformer3DModel:
    torch.manual_seed(0)
    config: dict[str, Any] = {"use_prompt_embeddings": False, "cross_attn_mod": True, "audio_cross_attn_mod": True,
              "gated_attn": True, "audio_gated_attn": True, "perturbed_attn": True} if newer else {}  # fmt: skip
    return ready(LTX2VideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=8,
        audio_cross_attention_dim=16, num_layers=2, caption_channels=24, **config,
    ), dtype)  # fmt: skip


def inputs(batch: int, tokens: int, dtype: torch.dtype, newer: bool = False) -> Call:
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    mask[:, -2:] = 0
    video, audio = (32, 16) if newer else (24, 24)
    return {
        "hidden_states": torch.randn(batch, 2 * 3 * 4, 8, generator=g).to(dtype),
        "audio_hidden_states": torch.randn(batch, 5, 4, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, video, generator=g).to(dtype),
        "audio_encoder_hidden_states": torch.randn(batch, tokens, audio, generator=g).to(dtype),
        "timestep": torch.full((batch,), 500.0),
        "sigma": torch.full((batch,), 500.0),
        "encoder_attention_mask": mask,
        "audio_encoder_attention_mask": mask,
        "num_frames": 2,
        "height": 3,
        "width": 4,
        "audio_num_frames": 5,
        "return_dict": False,
    }


def replace(call: Call, embeds: Tensor) -> Call:
    video = call["encoder_hidden_states"].shape[-1]
    mask = torch.ones(embeds.shape[:2], dtype=torch.int64)
    return call | {
        "encoder_hidden_states": embeds[..., :video],
        "audio_encoder_hidden_states": embeds[..., video:],
        "encoder_attention_mask": mask,
        "audio_encoder_attention_mask": mask,
    }


SPECS = [
    Spec("ltx2", build, inputs, 48, replace, joint=False),
    Spec("ltx2-newer", partial(build, newer=True), partial(inputs, newer=True), 48, replace, joint=False),
]
