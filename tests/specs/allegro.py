from __future__ import annotations

from typing import Any

import torch
from diffusers import AllegroTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
from torch import Tensor

from . import Call, Spec, ready

FRAMES, SIDE, HEAD = 2, 4, 12


def build(dtype: torch.dtype) -> AllegroTransformer3DModel:
    torch.manual_seed(0)
    return ready(AllegroTransformer3DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=3, num_attention_heads=2, attention_head_dim=HEAD,
        cross_attention_dim=2 * HEAD, caption_channels=16, sample_height=8, sample_width=8, sample_frames=4,
    ), dtype)  # fmt: skip


def positions() -> tuple[Any, Any]:
    """As the pipeline makes them: frequencies by axis, and where on each every token stands."""
    made = get_3d_rotary_pos_embed_allegro(
        embed_dim=HEAD, crops_coords=((0, 0), (SIDE, SIDE)), grid_size=(SIDE, SIDE), temporal_size=FRAMES,
        interpolation_scale=(2.2, 2.0, 2.0),
    )  # fmt: skip
    places = torch.cartesian_prod(*(grid.long() for grid in made[3:])).T.reshape(3, 1, -1).contiguous()
    return made[:3], tuple(places)


def inputs(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    mask[:, -2:] = 0
    return {
        "hidden_states": torch.randn(batch, 4, FRAMES, 2 * SIDE, 2 * SIDE, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, 1, tokens, 16, generator=g).to(dtype),
        "encoder_attention_mask": mask,
        "timestep": torch.full((batch,), 500),
        "image_rotary_emb": positions(),
        "return_dict": False,
    }


def replace(call: Call, embeds: Tensor) -> Call:
    mask = torch.ones(embeds.shape[:2], dtype=torch.int64)
    return call | {"encoder_hidden_states": embeds.unsqueeze(1), "encoder_attention_mask": mask}


SPECS = [Spec("allegro", build, inputs, 16, replace, joint=False)]
