from __future__ import annotations

from typing import Any

import torch
from diffusers import LongCatImageTransformer2DModel, OvisImageTransformer2DModel
from torch import Tensor

from . import Call, Spec, grid_ids, ready

SMALL: dict[str, Any] = {
    "patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": [4, 4, 8],
}  # fmt: skip


def longcat(dtype: torch.dtype, channels: int = 4) -> LongCatImageTransformer2DModel:
    torch.manual_seed(0)
    return ready(LongCatImageTransformer2DModel(**{**SMALL, "in_channels": channels}), dtype)


def ovis(dtype: torch.dtype) -> OvisImageTransformer2DModel:
    torch.manual_seed(0)
    return ready(OvisImageTransformer2DModel(out_channels=4, **SMALL), dtype)


def text_ids(tokens: int) -> Tensor:
    return torch.arange(tokens)[:, None] * torch.tensor([0.0, 1.0, 1.0])


def inputs(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    g = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 16, 4, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "timestep": torch.full((batch,), 0.5),
        "txt_ids": text_ids(tokens),
        "img_ids": grid_ids(4, 4, 3) + torch.tensor([1.0, 32, 32]),
        "return_dict": False,
    }


def replace(call: Call, embeds: Tensor) -> Call:
    return call | {"encoder_hidden_states": embeds, "txt_ids": text_ids(embeds.shape[1])}


SPECS = [Spec("longcat", longcat, inputs, 16, replace), Spec("ovis", ovis, inputs, 16, replace)]
