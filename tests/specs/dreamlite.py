from __future__ import annotations

from functools import partial

import torch
from diffusers import DreamLiteUNetModel

from . import Call, Spec, ready


def build(dtype: torch.dtype) -> DreamLiteUNetModel:
    torch.manual_seed(0)
    return ready(DreamLiteUNetModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteCrossAttnNoSelfAttnUpBlock2D"),
        attention_head_dim=(2, 4), cross_attention_dim=16, encoder_hid_dim=24, encoder_hid_dim_type="text_proj_rms",
        addition_embed_type="time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=16,
        use_linear_projection=True, ff_mult=2,
    ), dtype)  # fmt: skip


def inputs(batch: int, tokens: int, dtype: torch.dtype, masked: bool = False) -> Call:
    """The latent of the picture, and beside it that of the one to edit."""
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    if masked:
        mask[:, -2:] = 0
    return {
        "sample": torch.randn(batch, 4, 8, 16, generator=g).to(dtype),
        "timestep": torch.full((batch,), 500.0).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 24, generator=g).to(dtype),
        "encoder_attention_mask": mask,
        "added_cond_kwargs": {"time_ids": torch.tensor([[64.0, 64.0]], dtype=dtype).expand(batch, -1)},
        "return_dict": False,
    }


def replace(call: Call, embeds: torch.Tensor) -> Call:
    return call | {
        "encoder_hidden_states": embeds,
        "encoder_attention_mask": torch.ones(embeds.shape[:2], dtype=torch.int64),
    }


SPECS = [
    Spec("dreamlite", build, inputs, 24, replace, joint=False),
    Spec("dreamlite-mask", build, partial(inputs, masked=True), 24, replace, joint=False),
]
