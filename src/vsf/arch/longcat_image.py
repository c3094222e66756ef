"""LongCat-Image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import too_long
from .flux import Flux


class LongCatImage(Flux):
    """Like Flux.1; the second and third column of `txt_ids` count the text tokens and restart for the negative.

    Checked in diffusers 0.42.1: no text mask (pads are seen), no pooled embedding; image positions start behind the
    512 text positions whatever the text's length, so they do not move.
    """

    name = "LongCat-Image"
    models = ("LongCatImageTransformer2DModel",)
    counted = (1, 2)

    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        """`max_sequence_length` has no place in this pipeline: its text is always `pipe.tokenizer_max_length` long.

        Raises:
            ValueError: the edit pipeline, which encodes a prompt only together with its picture.
        """
        if hasattr(pipe, "image_processor_vl"):
            raise ValueError(
                f"{type(pipe).__name__} encodes text only together with the picture to edit; encode the negative "
                "yourself and give negative_prompt_embeds"
            )
        embeds = pipe.encode_prompt(text)[0][0]
        # The encoder is causal and masked: real tokens do not see the pads. Quoted text is tokenized by character.
        from diffusers.pipelines.longcat_image.pipeline_longcat_image import split_quotation

        pieces = [piece for part, quoted in split_quotation(text) for piece in (part if quoted else [part])]
        real = sum(len(pipe.tokenizer(piece, add_special_tokens=False).input_ids) for piece in pieces)
        if real > len(embeds):  # the pipeline cuts without asking its tokenizer to
            raise too_long(text, real, len(embeds), type(pipe).__name__)
        if padded:
            return embeds
        return embeds[len(embeds) - real :] if pipe.tokenizer.padding_side == "left" else embeds[:real]
