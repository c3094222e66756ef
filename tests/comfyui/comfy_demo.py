"""The embedded demo model in ComfyUI's own SD3 class, so that a real workflow draws something with a meaning.

Imported with ComfyUI on the path only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch


class Times64(int):
    """A number that gives `width` when it is multiplied: ComfyUI's class computes its width as 64 x heads."""

    width: int

    def __new__(cls, value: int, width: int) -> Times64:
        made = super().__new__(cls, value)
        made.width = width
        return made

    def __rmul__(self, other: int) -> int:
        return self.width

    __mul__ = __rmul__

    def __deepcopy__(self, memo: Any) -> Times64:
        return self


@lru_cache(maxsize=1)
def pipeline() -> Any:
    from vsf import load_demo_pipeline

    return load_demo_pipeline()


def demo_model() -> Any:
    """A MODEL (ComfyUI's ModelPatcher) with the demo model's weights."""
    import comfy.latent_formats
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils

    transformer = pipeline().transformer
    config = transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    unet = {
        "in_channels": config.in_channels, "patch_size": config.patch_size, "out_channels": config.out_channels,
        "depth": Times64(config.num_attention_heads, width), "num_blocks": config.num_layers, "input_size": None,
        "adm_in_channels": config.pooled_projection_dim,
        "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": config.joint_attention_dim, "out_features": width},
        },
        "num_patches": config.pos_embed_max_size**2, "pos_embed_max_size": config.pos_embed_max_size,
        "pos_embed_scaling_factor": None, "qk_norm": "rms", "x_block_self_attn_layers": [],
    }  # fmt: skip
    made = comfy.supported_models.SD3(unet)
    made.unet_config["dtype"] = torch.float32
    model = made.get_model({}, device="cpu")
    for module in model.diffusion_model.modules():
        if hasattr(module, "num_heads"):
            module.num_heads = config.num_attention_heads
    names = comfy.utils.mmdit_to_diffusers({"depth": Times64(config.num_layers, width)})
    missing, unexpected = model.diffusion_model.load_state_dict(_renamed(transformer, names), strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    model.requires_grad_(False)
    model.latent_format = comfy.latent_formats.LatentFormat()  # no scale and shift of SD3's own autoencoder
    model.latent_format.latent_channels = config.in_channels
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def _renamed(transformer: Any, names: dict[str, Any]) -> dict[str, torch.Tensor]:
    """diffusers' weights under ComfyUI's names: one to one, or (name, (0, first row, rows), change) for pieces."""
    whole: dict[str, torch.Tensor] = {}
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for name, weight in transformer.state_dict().items():
        target = names.get(name)
        if isinstance(target, str):
            whole[target] = weight.float()
        elif target is not None:
            change = target[2] if len(target) > 2 else lambda x: x
            at = 0 if target[1] is None else target[1][1]
            pieces.setdefault(target[0], {})[at] = change(weight.float())
    return whole | {name: torch.cat([part for _, part in sorted(parts.items())]) for name, parts in pieces.items()}


class DemoModel:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "run"
    CATEGORY = "VSF demo"

    def run(self) -> tuple[Any, ...]:
        return demo_model(), pipeline(), DemoVAE()


class DemoText:
    """Padded as the model was trained, or the real tokens only."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip": ("CLIP",), "text": ("STRING", {}), "padded": ("BOOLEAN", {"default": True})}}

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "run"
    CATEGORY = "VSF demo"

    def run(self, clip: Any, text: str, padded: bool) -> tuple[Any, ...]:
        from vsf.arch.sd3 import SD3
        from vsf.demo.models import MODELS

        embeds, _, pooled, _ = clip.encode_prompt(
            text, text, text, do_classifier_free_guidance=False, max_sequence_length=MODELS["demo"].text_length
        )
        if not padded:
            embeds = SD3().encode(clip, text, False, None)[None]
        return ([[embeds.float(), {"pooled_output": pooled.float()}]],)


class DemoLatent:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "run"
    CATEGORY = "VSF demo"

    def run(self) -> tuple[Any, ...]:
        config = pipeline().transformer.config
        return ({"samples": torch.zeros(1, config.in_channels, config.sample_size, config.sample_size)},)


class DemoVAE:
    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        vae = pipeline().vae
        with torch.no_grad():
            pixels = vae.decode((samples / vae.config.scaling_factor + vae.config.shift_factor).to(vae.dtype)).sample
        pixels = torch.nn.functional.interpolate(pixels.float(), scale_factor=2, mode="bicubic")  # to be seen well
        return (pixels / 2 + 0.5).clamp(0, 1).movedim(1, -1)
