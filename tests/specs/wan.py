from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AnyFlowTransformer3DModel,
    ChronoEditTransformer3DModel,
    HeliosTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from torch import Tensor, nn

from . import Call, Spec, ready

TEXT = 512  # what image-to-video models hard-code


def build(dtype: torch.dtype, kind: Any = WanTransformer3DModel, image: bool = False) -> Any:
    torch.manual_seed(0)
    made: Any = kind
    config: dict[str, Any] = {}
    if kind is WanVACETransformer3DModel:
        config = {"vace_layers": [0, 2], "vace_in_channels": 4}
    if image:
        config |= {"image_dim": 12, "added_kv_proj_dim": 32}
    if kind is ChronoEditTransformer3DModel:
        config["rope_max_seq_len"] = 32
    return ready(made(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=3, **config,
    ), dtype)  # fmt: skip


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


def build_animate(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    made: Any = WanAnimateTransformer3DModel
    return ready(made(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=12, latent_channels=4,
        out_channels=4, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=3, image_dim=12, added_kv_proj_dim=32,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, motion_encoder_size=16, motion_style_dim=8,
        motion_dim=4, motion_encoder_dim=8, face_encoder_hidden_dim=8, face_encoder_num_heads=2,
        inject_face_latents_blocks=3,
    ), dtype)  # fmt: skip


def animate(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    """A reference frame and one of the film, whose pose and face are given."""
    g = torch.Generator().manual_seed(3)
    return inputs(batch, tokens, dtype, image=TEXT + 3) | {
        "hidden_states": torch.randn(batch, 12, 2, 4, 4, generator=g).to(dtype),
        "pose_hidden_states": torch.randn(batch, 4, 1, 4, 4, generator=g).to(dtype),
        "face_pixel_values": torch.randn(batch, 3, 1, 16, 16, generator=g).to(dtype),
    }


def build_anyflow(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    made: Any = AnyFlowTransformer3DModel
    return ready(made(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=3,
    ), dtype)  # fmt: skip


def anyflow(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    """From one time to another, latents frame by frame."""
    call = inputs(batch, tokens, dtype)
    return call | {
        "hidden_states": call["hidden_states"].transpose(1, 2),
        "timestep": torch.full((batch, 2), 500.0),
        "r_timestep": torch.full((batch, 2), 250.0),
    }


def build_helios(dtype: torch.dtype, history: bool = False) -> Any:
    torch.manual_seed(0)
    made: Any = HeliosTransformer3DModel
    return ready(made(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=3, rope_dim=(4, 6, 6), guidance_cross_attn=not history,
    ), dtype)  # fmt: skip


def helios(batch: int, tokens: int, dtype: torch.dtype) -> Call:
    """Two frames behind one that was drawn before."""
    g = torch.Generator().manual_seed(3)
    return inputs(batch, tokens, dtype) | {
        "indices_hidden_states": torch.arange(1, 3).expand(batch, -1),
        "indices_latents_history_short": torch.zeros(batch, 1, dtype=torch.int64),
        "latents_history_short": torch.randn(batch, 4, 1, 4, 4, generator=g).to(dtype),
    }


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
    Spec("wan-animate", build_animate, animate, 16, replace_padded, joint=False, padded=pad),
    Spec("helios", build_helios, helios, 16, joint=False),
    Spec("helios-history", partial(build_helios, history=True), helios, 16, joint=False),
    Spec("anyflow", build_anyflow, anyflow, 16, joint=False),
]
