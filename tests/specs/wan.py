from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from diffusers import (
    ChronoEditTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from torch import Tensor, nn

from . import Call, Spec

TEXT = 512  # what image-to-video models hard-code


def build(dtype: torch.dtype, kind: type[nn.Module] = WanTransformer3DModel, image: bool = False) -> nn.Module:
    torch.manual_seed(0)
    config: dict = {"vace_layers": [0, 2], "vace_in_channels": 4} if kind is WanVACETransformer3DModel else {}
    if image:
        config |= {"image_dim": 12, "added_kv_proj_dim": 32}
    if kind is ChronoEditTransformer3DModel:
        config["rope_max_seq_len"] = 32
    model: nn.Module = kind(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=3, **config,
    )  # fmt: skip
    return model.to(dtype).eval().requires_grad_(False)


def inputs(batch: int, tokens: int, dtype: torch.dtype, vace: bool = False, image: int = 0) -> Call:
    g = torch.Generator().manual_seed(1)
    call: Call = {
        "hidden_states": torch.randn(batch, 4, 2, 4, 4, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(batch, tokens, 16, generator=g).to(dtype),
        "timestep": torch.full((batch,), 500.0),
        "return_dict": False,
    }
    if vace:
        call["control_hidden_states"] = torch.randn(batch, 4, 2, 4, 4, generator=g).to(dtype)
    if image:
        call["encoder_hidden_states"] = pad(call["encoder_hidden_states"])
        call["encoder_hidden_states_image"] = torch.randn(batch, image, 12, generator=g).to(dtype)
    return call


def one_time_per_token(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    """As Wan 2.2 TI2V-5B is called, where the first picture is given."""
    times = torch.full((batch, 2 * 2 * 2), 500.0)
    times[:, :4] = 0.0
    return inputs(batch, tokens, dtype) | {"timestep": times}


def pad(embeds: Tensor) -> Tensor:
    return F.pad(embeds, (0, 0, 0, TEXT - embeds.shape[-2]))


def replace_padded(call: Call, embeds: Tensor) -> Call:
    return call | {"encoder_hidden_states": pad(embeds)}


def image_spec(name: str, kind: type[nn.Module]) -> Spec:
    return Spec(
        name, partial(build, kind=kind, image=True), partial(inputs, image=TEXT + 3), 16, replace_padded,
        joint=False, padded=pad,
    )  # fmt: skip


SPECS = [
    Spec("wan", build, inputs, 16, joint=False),
    Spec("wan-ti2v", build, one_time_per_token, 16, joint=False),
    Spec("wan-vace", partial(build, kind=WanVACETransformer3DModel), partial(inputs, vace=True), 16, joint=False),
    # As many image tokens as text and negative tokens together in some of the tests: they must not be mixed up.
    image_spec("wan-i2v", WanTransformer3DModel),
    Spec("skyreels", partial(build, kind=SkyReelsV2Transformer3DModel), inputs, 16, joint=False),
    image_spec("skyreels-i2v", SkyReelsV2Transformer3DModel),
    image_spec("chronoedit", ChronoEditTransformer3DModel),
]
