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
    audio: tuple[int, ...] = ()  # the latent of its sound


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
    "wan_camera": Tiny(
        "WAN21_Camera",
        {**WAN, "model_type": "camera", "in_dim": 32, "in_dim_control_adapter": 1},
        (16, 3, 8, 6),
        24,
        extra={"camera_conditions": torch.linspace(-1, 1, 3 * 64 * 48).sin().view(1, 1, 3, 64, 48)},
    ),
    "wan_animate": Tiny(
        "WAN22_Animate",
        {**WAN, "model_type": "animate", "in_dim": 36, "num_layers": 5},  # every fifth block looks at the face
        (16, 3, 8, 6),
        24,
        extra={"face_video_pixels": torch.linspace(-1, 1, 3 * 2 * 64).view(1, 3, 2, 8, 8)},
    ),
    "wan_s2v": Tiny(
        "WAN22_S2V",
        {**WAN, "model_type": "s2v", "audio_inject_layers": [0], "audio_dim": 8, "num_audio_token": 2},
        (16, 3, 8, 6),
        24,
        extra={
            "audio_embed": torch.linspace(-1, 1, 25 * 8 * 12).sin().view(1, 25, 8, 12),
            "reference_latents": [torch.linspace(-1, 1, 16 * 48).cos().view(1, 16, 1, 8, 6)],
        },
    ),
    "omnigen2": Tiny(
        "Omnigen2",
        {
            "image_model": "omnigen2", "in_channels": 16, "hidden_size": 48, "num_layers": 2, "num_refiner_layers": 1,
            "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16, "axes_dim_rope": (8, 8, 8), "text_feat_dim": 24,
        },
        (16, 8, 6),
        24,
    ),
    "hidream": Tiny(
        "HiDream",
        {
            "image_model": "hidream", "patch_size": 2, "in_channels": 16, "num_layers": 2, "num_single_layers": 2,
            "attention_head_dim": 16, "num_attention_heads": 2, "caption_channels": [24, 24], "text_emb_dim": 16,
            "num_routed_experts": 0, "axes_dims_rope": (4, 6, 6), "llama_layers": [0, 1, 2, 2],
        },
        (16, 8, 6),
        24,
        16,
    ),
    "pixart": Tiny(  # not supported
        "PixArtAlpha",
        {"image_model": "pixart_alpha", "hidden_size": 32, "depth": 1, "num_heads": 2, "caption_channels": 24},
        (4, 8, 8),
        24,
    ),
    "hunyuan": Tiny(
        "HunyuanVideo",
        {
            "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2],
            "vec_in_dim": 16, "context_in_dim": 24, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2,
            "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 256, "qkv_bias": True, "guidance_embed": False,
            "byt5": False, "meanflow": False,
            **({"use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False} if NUMBERS else {}),
        },
        (16, 3, 8, 6),
        24,
        16,
    ),
}  # fmt: skip

TINY["hunyuanimage"] = Tiny(
    "HunyuanImage21",
    {**TINY["hunyuan"].unet, "vec_in_dim": None, "byt5": True, "patch_size": [2, 2], "axes_dim": [8, 8], "in_channels": 64,
     "out_channels": 64},
    (64, 8, 6),
    24,
)  # fmt: skip
#: An LTX-2 whose text is what its connectors make of it, and one whose connectors take what the encoder makes.
LTX2 = {
    "image_model": "ltxav", "num_layers": 2, "attention_head_dim": 24, "num_attention_heads": 2, "cross_attention_dim": 48,
    "caption_channels": 24, "in_channels": 128, "audio_attention_head_dim": 16, "audio_num_attention_heads": 2,
    "audio_cross_attention_dim": 32, "connector_attention_head_dim": 12, "connector_num_attention_heads": 2,
    "connector_num_layers": 1,
}  # fmt: skip

if NUMBERS:
    TINY["hunyuan15"] = Tiny(
        "HunyuanVideo15",
        {
            **TINY["hunyuan"].unet, "vec_in_dim": None, "byt5": True, "use_cond_type_embedding": True, "vision_in_dim": 12,
            "in_channels": 65, "out_channels": 32,
        },
        (32, 3, 8, 6),
        24,
        16,
    )  # fmt: skip
    TINY |= {
        "ltx2": Tiny("LTXAV", LTX2, (128, 2, 4, 4), 48, audio=(8, 5, 16)),
        "ltx23": Tiny(
            "LTXAV",
            {
                **LTX2, "caption_proj_before_connector": True, "caption_projection_first_linear": False,
                "cross_attention_adaln": True, "apply_gated_attention": True, "connector_attention_head_dim": 24,
                "audio_connector_attention_head_dim": 16, "connector_apply_gated_attention": True,
            },
            (128, 2, 4, 4),
            80,
            audio=(8, 5, 16),
        ),
        "krea2": Tiny(
            "Krea2",
            {
                "image_model": "krea2", "features": 32, "tdim": 16, "txtdim": 8, "heads": 2, "kvheads": 1, "multiplier": 1,
                "layers": 2, "txtlayers": 3, "txtheads": 2, "txtkvheads": 1,
            },
            (16, 1, 8, 6),
            24,
        ),
        "ernie": Tiny(
            "ErnieImage",
            {
                "image_model": "ernie", "hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 48,
                "text_in_dim": 24, "rope_axes_dim": (4, 6, 6),
            },
            (128, 4, 3),
            24,
        ),
        "anima": Tiny(
            "Anima",
            {
                "image_model": "anima", "max_img_h": 16, "max_img_w": 16, "max_frames": 4, "in_channels": 16,
                "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 48, "num_blocks": 2,
                "num_heads": 2, "crossattn_emb_channels": 24, "pos_emb_cls": "rope3d", "use_adaln_lora": True,
                "adaln_lora_dim": 8,
            },
            (16, 1, 8, 10),
            24,
        ),
    }  # fmt: skip
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


class Motion(torch.nn.Module):
    """In the place of Wan Animate's encoder of faces, whose size is no argument of the model."""

    def get_motion(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(2)[..., :16].flatten(1)  # [frames, 48]


class Face(torch.nn.Module):
    def forward(self, motion: Tensor) -> Tensor:
        return torch.stack([motion, -motion], 2)  # [B, frames, tokens, width]


def small_adapter(model: Any) -> None:
    """Anima's adapter of text, whose size is no argument of the model."""
    import comfy.ldm.anima.model
    import comfy.ops

    sizes = {"source_dim": 16, "target_dim": 24, "model_dim": 16, "num_layers": 2, "num_heads": 2}
    adapter = comfy.ldm.anima.model.LLMAdapter(**sizes, operations=comfy.ops.disable_weight_init)
    model.diffusion_model.llm_adapter = adapter


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
    if name == "anima":
        small_adapter(model)
    if name == "wan_animate":
        model.diffusion_model.motion_encoder, model.diffusion_model.face_encoder = Motion(), Face()
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
    if name in ("ltx", "lumina2", "zimage", "omnigen2"):
        extra["attention_mask"] = torch.ones(1, n, dtype=torch.long)
    if name == "hidream":  # all layers of Llama, of another number of tokens
        extra["conditioning_llama3"] = torch.randn(1, 3, n - 1, tiny.width, generator=generator)
    return [[torch.randn(1, n, tiny.width, generator=generator), extra]]


def noise_of(name: str, batch: int = 1, seed: int = 0, size: tuple[int, ...] | None = None) -> Any:
    """A latent of pure noise; of a video with sound, both."""
    generator = torch.Generator().manual_seed(2000 + seed)
    picture = torch.randn(batch, *(size or TINY[name].latent), generator=generator)
    if not TINY[name].audio:
        return picture
    from comfy.nested_tensor import NestedTensor

    generator.manual_seed(4000 + seed)  # the first sample's is the same in every batch
    return NestedTensor([picture, torch.randn(batch, *TINY[name].audio, generator=generator)])
