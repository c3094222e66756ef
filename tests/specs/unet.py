from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel

import definition

from . import Call, Spec, ready

POOLED = 8
KINDS: dict[str, dict[str, Any]] = {
    "sd15": {},
    # Pooled text and image size as conditions of their own, several layers per block.
    "sdxl": {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "transformer_layers_per_block": (2, 1),
        "projection_class_embeddings_input_dim": POOLED + 6 * 8, "use_linear_projection": True,
    },
    # One wide text encoder, projected to the width of the attention; its last token is the pooled text.
    "kolors": {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "encoder_hid_dim": 24,
        "encoder_hid_dim_type": "text_proj", "projection_class_embeddings_input_dim": 24 + 6 * 8,
        "use_linear_projection": True,
    },
    "lcm": {"time_cond_proj_dim": 12},  # guidance scale as a condition of its own
}  # fmt: skip


def build(dtype: torch.dtype, kind: str = "sd15") -> UNet2DConditionModel:
    torch.manual_seed(0)
    return ready(UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        norm_num_groups=8, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **KINDS[kind],
    ), dtype)  # fmt: skip


def inputs(batch: int, tokens: int, dtype: torch.dtype, kind: str = "sd15") -> Call:
    g = torch.Generator().manual_seed(1)
    call: Call = {
        "sample": torch.randn(batch, 4, 8, 8, generator=g).to(dtype),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "return_dict": False,
    }
    if kind == "sdxl":
        pooled = torch.randn(batch, POOLED, generator=g).to(dtype)
        ids = torch.tensor([64, 64, 0, 0, 64, 64], dtype=dtype).expand(batch, -1)
        call["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
    if kind == "lcm":
        call["timestep_cond"] = torch.randn(batch, 12, generator=g).to(dtype)
    return call


SPECS = [
    Spec("unet", build, inputs, 16, definition=definition.unet, joint=False),
    Spec(
        "sdxl", partial(build, kind="sdxl"), partial(inputs, kind="sdxl"), 16, definition=definition.unet, joint=False
    ),
    Spec("lcm", partial(build, kind="lcm"), partial(inputs, kind="lcm"), 16, definition=definition.unet, joint=False),
]
