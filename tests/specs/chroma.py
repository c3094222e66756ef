from __future__ import annotations

import warnings

import torch
from diffusers import ChromaTransformer2DModel
from torch import Tensor

from . import Call, Spec, grid_ids, ready


def build(dtype: torch.dtype) -> ChromaTransformer2DModel:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the class itself uses a deprecated name of diffusers
        model = ChromaTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 4, 8), approximator_num_channels=8,
            approximator_hidden_dim=32, approximator_layers=1,
        )  # fmt: skip
    return ready(model, dtype)


def inputs(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    g = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 16, 4, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "timestep": torch.full((batch,), 0.5).to(dtype),
        "txt_ids": torch.zeros(tokens, 3),
        "img_ids": grid_ids(4, 4, 3),
        "return_dict": False,
    }


def masked(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    mask = torch.ones(batch, tokens + 16, dtype=dtype)
    mask[:, tokens - 2 : tokens] = 0
    return inputs(batch, tokens, dtype) | {"attention_mask": mask}


def replace(call: Call, embeds: Tensor) -> Call:
    mask = call.get("attention_mask")
    mask = None if mask is None else torch.ones(len(embeds), embeds.shape[1] + 16, dtype=mask.dtype)
    return call | {
        "encoder_hidden_states": embeds, "txt_ids": torch.zeros(embeds.shape[1], 3), "attention_mask": mask,
    }  # fmt: skip


SPECS = [Spec("chroma", build, inputs, 16, replace), Spec("chroma-mask", build, masked, 16, replace)]
