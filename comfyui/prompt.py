"""The negative prompt: encoded without its padding, since each of its tokens takes part in VSF's sum, and read from a
CONDITIONING. Legend: M prompts, N tokens, W text width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vsf.guidance import Guidance
from vsf.prompt import parse_negative

from .families import Family, check_encoder

__all__ = ["Tokens", "encode_negative", "negative_of", "real_tokens", "unpadded"]

#: The text encoders of the CLIP family, which ComfyUI always pads, and their end-of-text token.
CLIPS = ("l", "g", "h")
END = 49407
#: ComfyUI reads weights of its own in parentheses, and `\(` as one that is text.
_PARENTHESIS = re.compile(r"[()]")


def encode_negative(clip: Any, text: str) -> list[list[Any]]:
    """CONDITIONING of the real tokens of each item of `text` ("wheels:2, chain"; see `vsf.prompt` for the grammar).

    The weights are those of the flipped values and travel with the conditioning; the text itself is encoded at weight 1.
    A chat template (Z-Image, Klein, Qwen-Image) is taken once, around all items of a list: from the encoding of the whole
    list, at weight 1, and of each item its own tokens. The conditioning also says which encoder made it.

    Raises:
        PromptError: the text does not follow the grammar.
        ValueError: there is nothing in it, or an item has times of its own.
    """
    items = [item for item in parse_negative(text) if item.weight > 0]
    if any(item.timed for item in items):
        raise ValueError(
            f"the negative prompt {text!r} has times of its own for an item, which these nodes do not know; set start_percent "
            r"and end_percent of the guidance node, or write \: for a colon that is text"
        )
    if not items:
        raise ValueError("the negative prompt is empty; write what you do not want, or bypass the guidance node")
    clip = unpadded(clip)
    empty = _ids(clip.tokenize("")) if len(items) > 1 else []
    out: list[list[Any]] = []
    before = after = 0
    for item in items:
        encoded, (before, after) = _encode(clip, item.text, empty)
        for embeds, extra in encoded:
            extra = _cut(extra, embeds.shape[1], slice(before, embeds.shape[1] - after))
            if item.weight != 1:
                extra["vsf_weight"] = torch.full((embeds.shape[1] - before - after,), item.weight)
            out.append([embeds[:, before : embeds.shape[1] - after], extra])
    if before or after:
        whole, (before, after) = _encode(clip, ", ".join(item.text for item in items), empty)
        for embeds, extra in whole:
            ends = ([slice(before)] if before else []) + ([slice(embeds.shape[1] - after, None)] if after else [])
            out += [[embeds[:, end], _cut(extra, embeds.shape[1], end)] for end in ends]
    return out


def _encode(clip: Any, text: str, empty: list[int]) -> tuple[list[Any], tuple[int, int]]:
    """The real tokens of `text` as CONDITIONING, and how many of them in front and behind are a chat template's.

    `empty` are the token numbers of a prompt without text: what it shares with the others. Begin and end of a text
    are no template, so that one token at each end is left to each item.
    """
    tokens = clip.tokenize(_PARENTHESIS.sub(r"\\\g<0>", text))
    out = []
    for embeds, extra in clip.encode_from_tokens_scheduled(tokens):
        keep = real_tokens(tokens, embeds.shape[1])
        extra = _cut(dict(extra), len(keep), keep) | {"vsf_encoder": " ".join(sorted(tokens))}
        out.append([embeds[:, keep], extra])
    ids = _ids(tokens) if empty else []
    before, after = _shared(ids, empty), _shared(ids[::-1], empty[::-1])
    if before + after > len(empty):  # what stands behind the text begins as the text does
        before = len(empty) - after
    before = max(0, before - (len(ids) - out[0][0].shape[1])) if ids else 0  # encoders may leave out the beginning
    return out, ((before, after) if max(before, after) > 1 else (0, 0))


def _cut(extra: dict[str, Any], length: int, kept: Any) -> dict[str, Any]:
    """The options of a conditioning of `length` tokens of which only some are `kept`."""
    mask = extra.get("attention_mask")
    if mask is None or mask.shape[-1] != length:
        return dict(extra)
    return {**extra, "attention_mask": mask[..., kept]}


def _ids(tokens: dict[str, Any]) -> list[int]:
    """The numbers of the tokens of an encoder that can have a chat template; -1 for a token that is a picture."""
    [(name, chunks), *others] = tokens.items()
    if others or name in CLIPS:
        return []
    return [token[0] if isinstance(token[0], int) else -1 for chunk in chunks for token in chunk]


def _shared(a: list[int], b: list[int]) -> int:
    """How many numbers the two begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def unpadded(clip: Any) -> Any:
    """A clone of a CLIP whose tokenizers do not pad, where they can be told so."""
    clip = clip.clone()
    for name in _encoders(clip.tokenizer):
        clip.set_tokenizer_option(f"{name}_min_length", 1)
        clip.set_tokenizer_option(f"{name}_min_padding", 0)
    return clip


def _encoders(tokenizer: Any) -> set[str]:
    """The names by which the tokenizers of a CLIP, which hold one another, are told their options."""
    found = {tokenizer.embedding_key} if hasattr(tokenizer, "embedding_key") else set()
    for part in vars(tokenizer).values():
        if hasattr(part, "tokenize_with_weights"):
            found |= _encoders(part)
    return found


def real_tokens(tokens: dict[str, Any], length: int) -> torch.Tensor:
    """Which of the `length` encoded tokens are real, `[length]`; CLIP is causal, so these do not see the pads."""
    keep = torch.ones(length, dtype=torch.bool)
    clips = [tokens[name] for name in CLIPS if name in tokens]
    others = [name for name in tokens if name not in CLIPS]
    if not clips or "llama" in others or (others and len(clips) < 2):  # Flux and others take CLIP's pooled output only
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


@dataclass
class Tokens:
    """The negative prompt: tokens `[M, N, W]` (M = 1, or one per sample), and their weights `[N]` if not all are 1.

    `parts` are the conditionings that it came from, each with the weights of its tokens.
    """

    tokens: Tensor
    weight: Tensor | None = None
    parts: tuple[tuple[Tensor, Mapping[str, Any], Tensor | None], ...] = ()

    @classmethod
    def of(cls, parts: Sequence[tuple[Tensor, Mapping[str, Any], Tensor | None]]) -> Tokens:
        """The negative whose tokens are those of the parts, one behind the other."""
        rows = max(len(tokens) for tokens, *_ in parts)
        tokens = torch.cat([x.repeat(-(-rows // len(x)), 1, 1)[:rows] for x, *_ in parts], 1)
        weight = None
        if any(w is not None for *_, w in parts):
            weight = torch.cat([torch.ones(x.shape[1]) if w is None else w for x, _, w in parts])
        return cls(tokens, weight, tuple(parts))


def _limits(extra: Mapping[str, Any]) -> list[str]:
    """What limits a conditioning to a part of the picture or of the sampling, or weighs it."""
    nothing = {"start_percent": 0.0, "end_percent": 1.0, "strength": 1.0}
    names = ("area", "mask", "control", *nothing)
    return [k for k in names if extra.get(k) is not None and not (k in nothing and extra[k] == nothing[k])]


def negative_of(conditioning: Any, method: Guidance, family: Family) -> Tokens:
    """The tokens of a CONDITIONING that the model would see as text, in the form the method wants them.

    Masked tokens are left out, but not of a padded negative for a model that `sees_pads`; for VSF also trailing zero
    tokens (Wan pads with them) are, because each token of the negative takes part in its sum.

    Raises:
        ValueError: there is no text in it, it is limited to an area, a mask or a range of steps, or weighed by a strength,
            or it is another model's.
    """
    parts: list[tuple[Tensor, Mapping[str, Any], Tensor | None]] = []
    for tokens, extra in conditioning:
        limits = _limits(extra)
        if limits == ["strength"]:
            raise ValueError(
                f"the negative conditioning has strength {extra['strength']:g}, which guidance inside attention does not "
                "know; write weights into VSF Negative Prompt ('wheels:2, chain'), or set the scale of the guidance node"
            )
        if limits:
            raise ValueError(
                f"the negative conditioning is limited by {', '.join(limits)}, which guidance inside attention does not "
                "know; connect the conditioning as it comes from the text encoder"
            )
        check_encoder(family, extra.get("vsf_encoder"))
        if extra.get("conditioning_byt5small") is not None:
            raise ValueError(
                "the negative conditioning has words in quotation marks, which a second encoder reads letter by letter; "
                "guidance does not know it: write the words without the marks"
            )
        if tokens is None or tokens.ndim != 3:
            raise ValueError("the negative conditioning holds no text tokens; connect a text encoder's output")
        seen = None if family.sees_pads and method.negative == "padded" else extra.get("attention_mask")
        weight = extra.get("vsf_weight")
        if seen is not None and seen.shape[-1] == tokens.shape[1]:
            keep = seen.reshape(-1, tokens.shape[1]).bool().any(0)
            tokens, weight = tokens[:, keep], None if weight is None else weight[keep.to(weight.device)]
        filled = tokens.ne(0).any(-1).any(0)
        if method.negative == "tokens":
            last = int(filled.nonzero().amax()) + 1 if bool(filled.any()) else 0
            tokens, weight = tokens[:, :last], None if weight is None else weight[:last]
        if not bool(filled.any()):
            raise ValueError(
                "the negative conditioning is all zeros (is it from ConditioningZeroOut?); connect the text encoder's "
                "output for what you do not want, use VSF Guidance (text), or delete this node"
            )
        parts.append((tokens, extra, weight))
    if not parts:
        raise ValueError("the negative conditioning is empty; connect a text encoder's output")
    if method.negative == "padded" and (len(parts) > 1 or parts[0][2] is not None):
        raise ValueError(
            f"{method.label.upper()} takes one negative prompt without weights: its negative branch is one padded "
            "prompt; encode it with a plain text encoder node, or use VSF"
        )
    return Tokens.of(parts)
