"""Flux.2 and Flux.2 Klein."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Negative
from .flux import Flux


class Flux2(Flux):
    """Like Flux.1, with parallel single-stream blocks that run on one `[text, image]` sequence.

    Checked in diffusers 0.42.1: the fourth column of `txt_ids` counts the text tokens from 0, so it restarts for the
    negative; `txt_ids` comes with a batch axis, of which the model reads the first sample; text and image tokens of
    the single blocks share one modulation. The model has no text mask: where a pipeline pads, the pads are seen.

    Raises:
        ValueError: the key-value cache of reference images is in use (Klein KV): it attends in pieces that do not
            line up with the rows of the negative.
    """

    name = "Flux.2"
    models = ("Flux2Transformer2DModel",)
    counted = (3,)

    def extend(self, call: dict[str, Any], negative: Negative) -> None:
        if call.get("kv_cache_mode") is not None:
            raise ValueError(
                f"Flux.2 runs with kv_cache_mode={call['kv_cache_mode']!r} (reference images through a key-value "
                "cache), which cannot be guided; use Flux2KleinPipeline instead of its KV variant"
            )
        super().extend(call, negative)

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        """All real tokens, the chat template's among them: they are part of every prompt the model was trained on.

        The text encoders run with a mask, so encoding at the exact length is encoding without pads.
        """
        length = max_sequence_length or 512
        if not padded:
            length = min(length, self._tokens(pipe, text))
        return pipe.encode_prompt(text, max_sequence_length=length)[0][0]

    def _tokens(self, pipe: Any, text: str) -> int:
        system = getattr(pipe, "system_message", None)
        if system is not None:  # not Klein; a processor with its own message format
            from diffusers.pipelines.flux2.pipeline_flux2 import format_input

            messages = format_input(prompts=[text], system_message=system)
            chat = {"add_generation_prompt": False, "tokenize": True, "return_dict": True}
            return len(pipe.tokenizer.apply_chat_template(messages, **chat)["input_ids"][0])
        message = [{"role": "user", "content": text}]
        chat = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return len(pipe.tokenizer(pipe.tokenizer.apply_chat_template(message, **chat)).input_ids)
