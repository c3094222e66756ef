"""Encode a negative prompt without its padding: each token of the negative takes part in VSF's sum."""

from __future__ import annotations

from typing import Any

import torch

from vsf.prompt import parse_negative

__all__ = ["encode_negative", "real_tokens", "unpadded"]

#: The text encoders of the CLIP family, which ComfyUI always pads, and their end-of-text token.
CLIPS = ("l", "g", "h")
END = 49407
#: Encoders that can be told not to pad, by their name in the tokenizer's options.
PADDED = ("t5xxl", "pile_t5xl", "t5base", "mt5xl", "umt5xxl", "gemma2_2b", "qwen25_7b", "qwen25_3b", "llama")


def encode_negative(clip: Any, text: str) -> list[list[Any]]:
    """CONDITIONING of the real tokens of each item of `text` ("wheels:2, chain"; see `vsf.prompt` for the grammar).

    The weights are those of the flipped values and travel with the conditioning; the text itself is encoded at weight 1.

    Raises:
        PromptError: the text does not follow the grammar.
        ValueError: there is nothing in it.
    """
    items = [item for item in parse_negative(text) if item.weight > 0]
    if not items:
        raise ValueError("the negative prompt is empty; write what you do not want, or bypass the guidance node")
    clip = unpadded(clip)
    out: list[list[Any]] = []
    for item in items:
        tokens = clip.tokenize(item.text)
        for embeds, extra in clip.encode_from_tokens_scheduled(tokens):
            keep = real_tokens(tokens, embeds.shape[1])
            extra = dict(extra)
            if extra.get("attention_mask") is not None:
                mask = extra["attention_mask"]
                extra["attention_mask"] = mask[..., keep] if mask.shape[-1] == len(keep) else mask
            if item.weight != 1:
                extra["vsf_weight"] = torch.full((int(keep.sum()),), item.weight)
            out.append([embeds[:, keep], extra])
    return out


def unpadded(clip: Any) -> Any:
    """A clone of a CLIP whose tokenizers do not pad, where they can be told so."""
    clip = clip.clone()
    for name in PADDED:
        clip.set_tokenizer_option(f"{name}_min_length", 1)
        clip.set_tokenizer_option(f"{name}_min_padding", 0)
    return clip


def real_tokens(tokens: dict[str, Any], length: int) -> torch.Tensor:
    """Which of the `length` encoded tokens are real, `[length]`; CLIP is causal, so these do not see the pads."""
    keep = torch.ones(length, dtype=torch.bool)
    clips = [tokens[name] for name in CLIPS if name in tokens]
    others = [name for name in tokens if name not in CLIPS]
    if not clips or (others and len(clips) < 2):  # Flux and others take CLIP's pooled output only
        return keep
    at = 0
    for chunk in zip(*clips, strict=False):
        real = max(_end(part) for part in chunk)
        keep[at + real : at + len(chunk[0])] = False
        at += len(chunk[0])
        if at >= length:
            break
    return keep


def _end(chunk: list[Any]) -> int:
    ids = [token[0] if isinstance(token[0], int) else -1 for token in chunk]
    return ids.index(END) + 1 if END in ids else len(ids)
