"""LTX-2 and LTX-2.3 (video with sound)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import Family, Negative, extend_mask

AUDIO = "audio_encoder_hidden_states"
MASKS = ("encoder_attention_mask", "audio_encoder_attention_mask")


class LTX2(Family):
    """Cross attention of the video (`attn2`) and of the sound (`audio_attn2`), each with a text stream of its own.

    The embedding of a token is that of the video stream and that of the audio stream side by side. Blocks are counted
    through the video first: with L layers, 0 to L - 1 are the video's, L to 2 L - 1 the sound's.

    Checked in diffusers 0.42.1: both streams enter token by token; the pipeline's `connectors` run outside the model
    and before it, and put learned registers in the place of pads, behind the real tokens. Registers are seen by the
    model, so a padded negative keeps them, an unpadded one is the real tokens.
    """

    name = "LTX-2"
    models = ("LTX2VideoTransformer3DModel",)
    geometry = "cross"
    pixels = 32
    streams = ("video", "audio")

    def sites(self, model: nn.Module) -> Sequence[nn.Module]:
        blocks: Any = model.transformer_blocks
        return [*(block.attn2 for block in blocks), *(block.audio_attn2 for block in blocks)]

    def width(self, model: nn.Module) -> int:
        config: Any = model.config
        if config.use_prompt_embeddings:
            return 2 * config.caption_channels
        return config.cross_attention_dim + config.audio_cross_attention_dim

    def text(self, call: Mapping[str, Any]) -> Any:
        video, audio = call.get(self.text_argument), call.get(AUDIO)
        if not isinstance(video, Tensor) or not isinstance(audio, Tensor):
            return None
        return video[..., :1].expand(-1, -1, video.shape[-1] + audio.shape[-1])

    def extend(self, call: dict[str, Any], negative: Negative) -> None:
        start = 0
        for stream, name in enumerate((self.text_argument, AUDIO)):
            width = call[name].shape[-1]
            if negative.stream in (None, stream):
                call[name] = torch.cat([call[name], negative.embeds[..., start : start + width]], 1)
                mask = MASKS[stream]
                call[mask] = extend_mask(call.get(mask), negative.embeds.shape[1])
            start += width

    def stream_of(self, model: nn.Module, site: int) -> int:
        blocks: Any = model.transformer_blocks
        return int(site >= len(blocks))

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        given = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        embeds, mask = pipe.encode_prompt(text, do_classifier_free_guidance=False, **given)[:2]
        video, audio, seen = pipe.connectors(embeds, mask, padding_side=pipe.tokenizer.padding_side)
        both = torch.cat([video, audio], -1)[0, seen[0].bool()]
        return both if padded else both[: int(mask[0].sum())]
