"""Tiny random-weight models of ComfyUI's real classes. Imported with ComfyUI on the path only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from comfy_server import NUMBERS, Z_IMAGE
from torch import Tensor


@dataclass(frozen=True)
class Tiny:
    """`config` names a class of comfy.supported_models, `unet` its model's arguments; shapes without the batch."""

    config: str
    unet: dict[str, Any]
    latent: tuple[int, ...]
    width: int
    pooled: int | None = None
    tokens: int = 7
    extra: dict[str, Any] = field(default_factory=dict)
    patch: int = 2  # of the image
    numbered: str = (
        ""  # where the text's positions count from: the "start" of the prompt, or so that they "end" with it
    )


FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 16, "context_in_dim": 24,
    "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6],
    "theta": 10000, "qkv_bias": True, **({"patch_size": 2, "txt_ids_dims": []} if NUMBERS else {}),
}  # fmt: skip
CHROMA = {
    **{k: v for k, v in FLUX.items() if k != "vec_in_dim"}, "image_model": "chroma", "in_channels": 64, "out_channels": 64,
    "in_dim": 64, "out_dim": 32, "hidden_dim": 16, "n_layers": 1, **({"vec_in_dim": None} if NUMBERS else {}),
}  # fmt: skip
RADIANCE = {
    **CHROMA, "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 2, "nerf_hidden_size": 8,
    "nerf_mlp_ratio": 2, "nerf_depth": 1, "nerf_max_freqs": 4, "nerf_tile_size": 0, "nerf_final_head_type": "linear",
    "nerf_embedder_dtype": torch.float32,
}  # fmt: skip
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1], "num_heads": 2, "num_head_channels": -1, "context_dim": 24,
    "use_spatial_transformer": True, "legacy": False, "use_temporal_attention": False,
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 48, "out_dim": 16, "num_heads": 2, "ffn_dim": 64, "num_layers": 2,
    "patch_size": (1, 2, 2), "freq_dim": 16, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
    "in_dim": 16, "text_dim": 24,
}  # fmt: skip

TINY: dict[str, Tiny] = {
    "sd15": Tiny("SD15", {**UNET, "use_linear_in_transformer": False, "adm_in_channels": None}, (4, 8, 8), 24),
    "sdxl": Tiny(
        "SDXL",
        # 64 channels per head are fixed here
        {
            **UNET, "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 2816,
            "model_channels": 64, "channel_mult": [1, 1], "transformer_depth": [0, 2], "transformer_depth_output": [0, 0, 2, 2],
        },
        (4, 8, 8),
        24,
        1280,
    ),
    "sd3": Tiny(
        "SD3",
        {
            "in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 2, "input_size": None, "adm_in_channels": 16,
            "context_embedder_config": {
                "target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 128},
            },
            "num_patches": 36, "pos_embed_max_size": 6, "pos_embed_scaling_factor": None, "qk_norm": "rms",
            "x_block_self_attn_layers": [0],
        },
        (16, 8, 8),
        24,
        16,
    ),
    "flux": Tiny("FluxSchnell", {**FLUX, "guidance_embed": False}, (16, 8, 6), 24, 16),
    "chroma": Tiny("Chroma", CHROMA, (16, 8, 6), 24, 16),
    "qwen": Tiny(
        "QwenImage",
        {
            "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 24, "axes_dims_rope": (4, 6, 6),
        },
        (16, 1, 8, 6),
        24,
        numbered="start",
    ),
    "lumina2": Tiny(
        "Lumina2",
        {
            "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 48, "cap_feat_dim": 24, "n_layers": 2,
            "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 1, "qk_norm": True, "axes_dims": [8, 8, 8],
            "axes_lens": [64, 64, 64], "multiple_of": 16,
        },
        (16, 8, 6),
        24,
    ),
    "zimage": Tiny("Lumina2", {}, (16, 8, 6), 24),  # see below
    "wan": Tiny("WAN21_T2V", WAN, (16, 3, 8, 6), 24),
    "wan_i2v": Tiny("WAN21_I2V", {**WAN, "model_type": "i2v", "in_dim": 36}, (16, 3, 8, 6), 24),
    "vace": Tiny(
        "WAN21_Vace", {**WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96}, (16, 3, 8, 6), 24
    ),
    "ltx": Tiny(
        "LTXV",
        {
            "image_model": "ltxv", "num_layers": 2, "attention_head_dim": 24, "num_attention_heads": 2,
            "cross_attention_dim": 48, "caption_channels": 24, "in_channels": 128,
        },
        (128, 2, 4, 4),
        24,
    ),
    "hunyuan": Tiny(  # not supported
        "HunyuanVideo",
        {
            "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2],
            "vec_in_dim": 16, "context_in_dim": 24, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
            "depth_single_blocks": 1, "axes_dim": [4, 6, 6], "theta": 256, "qkv_bias": True, "guidance_embed": False,
            "byt5": False, "meanflow": False,
            **({"use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False} if NUMBERS else {}),
        },
        (16, 3, 8, 6),
        24,
        16,
    ),
}  # fmt: skip


if NUMBERS:
    TINY |= {
        "flux2": Tiny(
            "Flux2",
            {
                **FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None,
                "axes_dim": [4, 4, 4, 4], "qkv_bias": False, "ops_bias": False, "global_modulation": True,
                "mlp_silu_act": True, "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3],
                "guidance_embed": False,
            },
            (128, 4, 3),
            24,
            tokens=512,  # Klein's encoder pads to this many; Flux2 pads in front where there are fewer
            patch=1,
            numbered="start",
        ),
        "longcat": Tiny(
            "LongCatImage",
            {**FLUX, "vec_in_dim": None, "txt_ids_dims": [1, 2], "guidance_embed": False},
            (16, 8, 6),
            24,
            numbered="end",
        ),
        "ovis": Tiny(
            "FluxSchnell",
            {**FLUX, "txt_ids_dims": [1, 2], "txt_norm": True, "yak_mlp": True, "vec_in_dim": None, "guidance_embed": False},
            (16, 8, 6),
            24,
            numbered="start",
        ),
        "radiance": Tiny(
            "ChromaRadiance", {**RADIANCE, "use_x0": False, "use_sequential_txt_ids": False}, (3, 8, 6), 24, 16
        ),
        "radiance_numbered": Tiny(
            "ChromaRadiance", {**RADIANCE, "use_x0": True, "use_sequential_txt_ids": True}, (3, 8, 6), 24, 16,
            numbered="start",
        ),
    }  # fmt: skip
else:
    TINY["radiance"] = Tiny("ChromaRadiance", RADIANCE, (3, 8, 6), 24, 16)
if Z_IMAGE:
    TINY["zimage"] = replace(
        TINY["lumina2"],
        unet={
            **TINY["lumina2"].unet, "z_image_modulation": True, "pad_tokens_multiple": 8, "dim": 256, "n_heads": 8,
            "n_kv_heads": 8, "axes_dims": [8, 12, 12],
        },
    )  # fmt: skip


def z_image(model: Any) -> None:
    """Make a tiny Lumina 2 take its tokens as Z-Image does, which ComfyUI 0.3.64 does not have yet.

    Prompt and image are each padded to a multiple with a learned token that is seen; the prompt begins at position 1
    and the image behind the padded prompt; pads of the image stay at position 0.
    """
    import comfy.ldm.lumina.model

    class NextDiT(comfy.ldm.lumina.model.NextDiT):
        pad_tokens_multiple = 8

        def patchify_and_embed(
            self, x: Tensor, cap_feats: Tensor, cap_mask: Any, t: Tensor, num_tokens: int, transformer_options: Any
        ) -> Any:
            batch, _, height, width = x.shape
            size = self.patch_size
            image = torch.nn.functional.unfold(x, size, stride=size).unflatten(1, (x.shape[1], size * size))
            image = self.x_embedder(image.permute(0, 3, 2, 1).flatten(2))
            text = self.filled(cap_feats, self.cap_pad_token)
            at = torch.zeros(batch, text.shape[1] + image.shape[1], 3)
            at[:, : text.shape[1], 0] = torch.arange(1, text.shape[1] + 1)
            at[:, text.shape[1] :, 0] = text.shape[1] + 1
            grid = torch.meshgrid(torch.arange(height // size), torch.arange(width // size), indexing="ij")
            at[:, text.shape[1] :, 1:] = torch.stack(grid, -1).flatten(0, 1).float()
            image = self.filled(image, self.x_pad_token)
            at = torch.nn.functional.pad(at, (0, 0, 0, text.shape[1] + image.shape[1] - at.shape[1]))
            turns = self.rope_embedder(at).movedim(1, 2)
            for layer in self.context_refiner:
                text = layer(text, None, turns[:, : text.shape[1]], transformer_options=transformer_options)
            for layer in self.noise_refiner:
                image = layer(image, None, turns[:, text.shape[1] :], t, transformer_options=transformer_options)
            whole = torch.cat([text, image], 1)
            return whole, None, [(height, width)] * batch, [text.shape[1]] * batch, turns

        def filled(self, stream: Tensor, token: Tensor) -> Tensor:
            return torch.cat([stream, token.expand(len(stream), -stream.shape[1] % self.pad_tokens_multiple, -1)], 1)

    model.diffusion_model.__class__ = NextDiT
    for name in ("x_pad_token", "cap_pad_token"):
        setattr(model.diffusion_model, name, torch.nn.Parameter(torch.empty(1, model.diffusion_model.dim)))


def model_of(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A MODEL (ComfyUI's ModelPatcher) of the tiny model, with random weights that let every part be felt."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    tiny = TINY[name]
    config = getattr(comfy.supported_models, tiny.config)({**(tiny.unet or TINY["lumina2"].unet)})
    config.unet_config["dtype"] = dtype
    model = config.get_model({}, device="cpu")
    if not tiny.unet:
        z_image(model)
    generator = torch.Generator().manual_seed(seed)
    own = model.diffusion_model
    for label, parameter in [*own.named_parameters(), *own.named_buffers()]:
        if not parameter.is_floating_point() or not parameter.numel():
            continue
        values = torch.randn(parameter.shape, generator=generator)
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
        if "attn2.to_out" in label or "attn2.to_v" in label:  # or text would be little beside convolutions
            scale *= 4
        parameter.data = (values * scale + (1.0 if parameter.ndim == 1 else 0.0) * 0.5).to(dtype)
        parameter.requires_grad_(False)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def conditioning(name: str, seed: int, tokens: int | None = None) -> list[list[Any]]:
    """A CONDITIONING of random tokens."""
    tiny = TINY[name]
    generator = torch.Generator().manual_seed(1000 + seed)
    n = tiny.tokens if tokens is None else tokens
    extra: dict[str, Any] = dict(tiny.extra)
    if tiny.pooled is not None:
        extra["pooled_output"] = torch.randn(1, tiny.pooled, generator=generator)
    if name in ("ltx", "lumina2", "zimage"):
        extra["attention_mask"] = torch.ones(1, n, dtype=torch.long)
    return [[torch.randn(1, n, tiny.width, generator=generator), extra]]


def noise_of(name: str, batch: int = 1, seed: int = 0, size: tuple[int, ...] | None = None) -> Tensor:
    """A latent of pure noise."""
    generator = torch.Generator().manual_seed(2000 + seed)
    return torch.randn(batch, *(size or TINY[name].latent), generator=generator)
