"""IP-adapters, loaded the way the pipelines load them where that is possible at this size."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterTimeImageProjection,
    MultiIPAdapterImageProjection,
)
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from torch import Tensor

from definition import CrossDefinition, _heads
from vsf.core import reference

IMAGE = 12


def load_unet(unet: Any) -> None:
    """With 4 image tokens, as diffusers reads every adapter of this kind."""
    g = torch.Generator().manual_seed(7)
    width, weights, key = unet.config.cross_attention_dim, {}, 1
    modules = dict(unet.named_modules())
    for name in unet.attn_processors:
        if ".attn2." in name:
            hidden = modules[name.removesuffix(".processor")].to_k.out_features
            for which in ("k", "v"):
                weights[f"{key}.to_{which}_ip.weight"] = torch.randn(hidden, width, generator=g)
            key += 2
    projection = ImageProjection(cross_attention_dim=width, image_embed_dim=IMAGE, num_image_text_embeds=4)
    image = {k.replace("image_embeds", "proj"): v for k, v in projection.state_dict().items()}
    unet._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": weights}], low_cpu_mem_usage=False)
    unet.double().requires_grad_(False)
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            setattr(processor, "scale", [0.7])  # noqa: B010  # a list, whatever its type says


def load_flux(model: Any, tokens: int) -> None:
    for block in model.transformer_blocks:
        scale: Any = [0.7]  # a list, whatever its type says
        block.attn.set_processor(FluxIPAdapterAttnProcessor(32, 32, (tokens,), scale))
    projection = ImageProjection(cross_attention_dim=32, image_embed_dim=IMAGE, num_image_text_embeds=tokens)
    model.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
    model.double().requires_grad_(False)


def load_sd3(model: Any, tokens: int) -> None:
    for block in model.transformer_blocks:
        block.attn.set_processor(SD3IPAdapterJointAttnProcessor2_0(32, 16, 8, 24, 0.7))
    model.image_proj = IPAdapterTimeImageProjection(IMAGE, 16, 24, 1, 8, 3, tokens, 2, 8)
    model.double().requires_grad_(False)


class IPDefinition(CrossDefinition):
    """The guided text attention plus the adapter's attention over its image tokens, from the equations."""

    def __init__(self, negative: Tensor, rule: dict[str, Any], adapter: Any) -> None:
        super().__init__(negative, rule)
        self.adapter = adapter

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any, **_: Any) -> Tensor:
        text, (image,) = encoder_hidden_states
        out, attn.to_out[0] = attn.to_out[0], torch.nn.Identity()
        try:
            z = super().__call__(attn, hidden_states, text)
        finally:
            attn.to_out[0] = out
        q = _heads(attn.to_q(hidden_states), attn.heads)
        image = image.flatten(1, -2)  # [B, pictures, tokens, W]
        k, v = (_heads(p[0](image), attn.heads) for p in (self.adapter.to_k_ip, self.adapter.to_v_ip))
        return out(z + self.adapter.scale[0] * reference.softmax_attention(q, k, v).transpose(1, 2).flatten(2))
