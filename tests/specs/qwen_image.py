from __future__ import annotations

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from . import Call, Spec, ready


def build(dtype: torch.dtype, layered: bool = False, edit: bool = False) -> QwenImageTransformer2DModel:
    torch.manual_seed(0)
    return ready(QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 4, 8), zero_cond_t=edit, use_layer3d_rope=layered,
        use_additional_t_cond=layered,
    ), dtype)  # fmt: skip


Shapes = tuple[tuple[int, int, int], ...]


def inputs(batch: int, tokens: int, dtype: torch.dtype, shapes: Shapes = ((1, 4, 6),)) -> Call:
    g = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 24 * len(shapes), 16, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "timestep": torch.full((batch,), 0.5),
        "img_shapes": [list(shapes)] * batch,
        "return_dict": False,
    }


def masked(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    mask = torch.ones(batch, tokens, dtype=torch.long)
    mask[0, tokens - 2 :] = 0  # the first sample has the shorter prompt
    return inputs(batch, tokens, dtype) | {"encoder_hidden_states_mask": mask}


def replace(call: Call, embeds: Tensor) -> Call:
    return call | {"encoder_hidden_states": embeds, "encoder_hidden_states_mask": None}


SPECS = [
    Spec("qwen", build, inputs, 16, replace),
    Spec("qwen-mask", build, masked, 16, replace),
    Spec(
        "qwen-edit",
        lambda dtype: build(dtype, edit=True),
        lambda batch, tokens, dtype: inputs(batch, tokens, dtype, ((1, 4, 6), (1, 6, 4))),
        16,
        replace,
    ),
    Spec(
        "qwen-layered",
        lambda dtype: build(dtype, layered=True),
        lambda batch, tokens, dtype: (
            inputs(batch, tokens, dtype, ((1, 4, 6), (1, 4, 6), (1, 4, 6)))
            | {"additional_t_cond": torch.zeros(batch, dtype=torch.long)}
        ),
        16,
        replace,
    ),
]
