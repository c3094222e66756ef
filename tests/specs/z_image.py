from __future__ import annotations

from functools import partial

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor

from . import Call, Spec, ready


def build(dtype: torch.dtype) -> ZImageTransformer2DModel:
    torch.manual_seed(0)
    model = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=3, n_refiner_layers=2, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[4, 6, 6], axes_lens=[160, 16, 16],
    )  # fmt: skip
    for pad in (model.x_pad_token, model.cap_pad_token):  # zeros otherwise
        torch.nn.init.normal_(pad)
    return ready(model, dtype)


def inputs(batch: int, tokens: int, dtype: torch.dtype, more: int = 0, size: tuple[int, int] = (6, 6)) -> Call:
    """Samples of different lengths: `tokens + more`, `tokens + 2 more`, ..."""
    g = torch.Generator().manual_seed(1)
    lengths = [tokens + (i + 1) * more for i in range(batch)]
    return {
        "x": list(torch.randn(batch, 4, 1, *size, generator=g).to(dtype)),
        "t": torch.full((batch,), 0.5, dtype=dtype),
        "cap_feats": [torch.randn(n, 16, generator=g).to(dtype) for n in lengths],
        "return_dict": False,
    }


def replace(call: Call, embeds: Tensor) -> Call:
    return call | {"cap_feats": list(embeds)}


SPECS = [
    Spec("z-image", build, inputs, 16, replace, rotary=torch.float32),
    # Prompts of another padded length than the negatives, and than each other; 32 image tokens, because the pads of
    # an image stay at position 0 when its own position moves, so that distances to them cannot all be kept.
    Spec("z-image-long", build, partial(inputs, more=29, size=(16, 8)), 16, replace, rotary=torch.float32),
]
