"""Stock SD3 and Stable Diffusion pipelines of tiny components, with and without ControlNet."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import tiny_pipelines as tiny
from specs import sd3, unet


def _clip(seed: int) -> CLIPTextModelWithProjection:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config).eval()


def make(name: str, control: bool = False) -> Any:
    torch.manual_seed(0)
    if name == "sd3":
        model: Any = sd3.build(torch.float32)
        parts: list[Any] = [
            model, tiny.scheduler(), tiny.vae(4), _clip(1), tiny.tokenizer("clip"), _clip(2), tiny.tokenizer("clip"),
            tiny.t5(), tiny.tokenizer("t5"),
        ]  # fmt: skip
        if control:
            config = {**model.config, "num_layers": 2, "extra_conditioning_channels": 0, "dual_attention_layers": ()}
            net = tiny.noisy(SD3ControlNetModel.from_config(config))
            pipe: Any = StableDiffusion3ControlNetPipeline(*parts, controlnet=net)
        else:
            pipe = StableDiffusion3Pipeline(*parts)
    else:
        model = unet.build(torch.float32)
        scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
        parts = [tiny.vae(4), tiny.clip(), tiny.tokenizer("clip"), model]
        if control:
            net = tiny.noisy(ControlNetModel.from_unet(model, conditioning_embedding_out_channels=(4,)))
            kind: Any = StableDiffusionControlNetPipeline
            pipe = kind(*parts, net, scheduler, None, None, requires_safety_checker=False)
        else:
            kind = StableDiffusionPipeline
            pipe = kind(*parts, scheduler, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model_of(pipe: Any) -> Any:
    return getattr(pipe, "transformer", None) or pipe.unet


def draw(pipe: Any, prompt: Any = "a red bicycle", seeds: tuple[int, ...] = (0,), **kwargs: Any) -> Tensor:
    length = {"max_sequence_length": 16} if hasattr(pipe, "transformer") else {}
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    out = pipe(
        **{"prompt": prompt, "num_inference_steps": 2, "height": 16, "width": 16, "output_type": "latent"}
        | {"generator": generators, "guidance_scale": 0.0} | length | kwargs
    )  # fmt: skip
    return out.images
