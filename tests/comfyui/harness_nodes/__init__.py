"""Nodes that the test server has in the place of loaders: tiny random models, and text made of a seed."""

from __future__ import annotations

import zlib
from typing import Any

import comfy_tiny as tiny
import torch
from comfy_demo import DemoLatent, DemoModel, DemoText


class TinyModel:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": ("STRING", {})}}

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "run"
    CATEGORY = "test"

    def run(self, name: str) -> tuple[Any, ...]:
        return tiny.model_of(name), name, TinyVAE()


class TinyVAE:
    """Channels 0 to 2 as a picture."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        samples = samples if samples.ndim == 5 else samples[:, :, None]
        pixels = samples[:, :3].movedim(1, -1).sigmoid()
        pixels = pixels.repeat_interleave(8, 2).repeat_interleave(8, 3)
        return pixels[:, 0] if pixels.shape[1] == 1 else pixels


class TinyText:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip": ("CLIP",), "text": ("STRING", {}), "tokens": ("INT", {"default": 7})}}

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "run"
    CATEGORY = "test"

    def run(self, clip: str, text: str, tokens: int) -> tuple[Any, ...]:
        return (tiny.conditioning(clip, zlib.crc32(text.encode()) % 1000, tokens),)


class Halve:
    """Somebody else's patch: an attention override, in the slot that ours uses too."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "run"
    CATEGORY = "test"

    def run(self, model: Any) -> tuple[Any, ...]:
        def override(func: Any, *args: Any, **kwargs: Any) -> Any:
            return func(*args, **kwargs) * 0.5

        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        return (model,)


NODE_CLASS_MAPPINGS = {
    "TinyModel": TinyModel, "TinyText": TinyText, "Halve": Halve, "DemoModel": DemoModel, "DemoText": DemoText,
    "DemoLatent": DemoLatent,
}  # fmt: skip
