from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import PRXTransformer2DModel
from torch import Tensor, nn

from . import Call, Spec, ready


def build(dtype: torch.dtype, pixels: bool = False) -> PRXTransformer2DModel:
    torch.manual_seed(0)
    image: dict[str, Any] = (
        {"in_channels": 3, "patch_size": 4, "bottleneck_size": 8} if pixels else {"in_channels": 4, "patch_size": 2}
    )
    model = PRXTransformer2DModel(
        **image, context_in_dim=16, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=3, axes_dim=[8, 8],
        resolution_embeds=True,
    )  # fmt: skip
    for (
        name,
        parameter,
    ) in model.named_parameters():  # an untrained one is not modulated, so that no block does anything
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2) if name.endswith("weight") else nn.init.constant_(parameter, 0.3)
    return ready(model, dtype)


def inputs(batch: int, tokens: int, dtype: torch.dtype, masked: bool = False) -> Call:
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    mask[:, -2:] = False
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8, generator=g).to(dtype),
        "timestep": torch.full((batch,), 0.5).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "attention_mask": mask if masked else None,
        "return_dict": False,
    }


def replace(call: Call, embeds: Tensor) -> Call:
    return call | {"encoder_hidden_states": embeds, "attention_mask": None}


SPECS = [
    Spec("prx", build, inputs, 16, replace, joint=False, rotary=torch.float32),
    Spec("prx-mask", build, partial(inputs, masked=True), 16, replace, joint=False, rotary=torch.float32),
]
