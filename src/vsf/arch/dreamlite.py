"""DreamLite (mobile: distilled, without classifier-free guidance)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .unet import UNet


class DreamLite(UNet):
    """Cross attention in every `attn2`, as in Stable Diffusion; some blocks have no attention of the image to itself.

    Checked in diffusers 0.42.1: the text is projected token by token, pads are masked; all queries of a layer share one head
    of keys, which the processor repeats. Beside the picture stands another one, the one to edit or none, in the same rows of
    the latent, so the image's tokens are on no grid of the picture's. `DreamLitePipeline` draws every picture with
    classifier-free guidance, which cannot be switched off; `DreamLiteMobilePipeline` has none.
    """

    name = "DreamLite"
    models = ("DreamLiteUNetModel",)
    always_guided = ("DreamLitePipeline",)

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        """The text as it is: the pipelines put "[Generate]: " before a prompt and nothing before a negative. The template is
        that without a picture, also where one is edited; one prompt is never padded."""
        embeds, mask = pipe.encode_prompt(
            "generate",
            [text],
            pipe._execution_device,
            pipe.text_encoder.dtype,
            max_sequence_length=max_sequence_length or 200,
        )
        return embeds[0, mask[0].bool()]

    def grid(self, model: nn.Module, call: Mapping[str, Any]) -> tuple[int, ...] | None:
        return None
