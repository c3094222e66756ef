"""What a family of diffusers models is: where its attention is, in which order its tokens stand, how text enters.

It knows no method. Legend: B batch, P positive text tokens, N negative text tokens, W text embedding width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core.geometry import Frame

__all__ = [
    "Family", "GuidedPass", "MaskedCross", "Negative", "Tap", "append_masked", "count_tokens", "extend_mask", "too_long",
]  # fmt: skip


@dataclass
class GuidedPass(Frame):
    """A forward pass of a diffusers model: its frame, and what taps keep from one to the next."""

    negative: Negative | None = None
    call: Mapping[str, Any] = field(default_factory=dict)  # the model's arguments by name as given
    kept: Any = None
    #: The next attention of a guided module is not over the text.
    skip: bool = False
    #: The site guided last: a second attention of the same site is an adapter's own, not the one over the text.
    last: int = -1
    #: Whether gradients were on when it began.
    grad: bool = False
    #: Where each text of the model has a negative of its own: a frame for each (None: not guided there).
    streams: tuple[GuidedPass | None, ...] = ()


@dataclass
class Negative:
    """The negative prompt of a batch as the model's text input: `embeds` `[B, N, W]`, `keep` `[B, N]` bool.

    `copy`: this is the copy that `layout="upstream"` adds to the prompt, so its positions go on behind the prompt's;
    otherwise the positions of the negative restart where the prompt's start. `padded`: it was encoded as the model was
    trained on prompts, so that the model's own pads belong to it. `stream`: the text of the model that it joins, by its
    number in `Family.streams`; None: all.
    """

    embeds: Tensor
    keep: Tensor
    copy: bool = False
    padded: bool = False
    stream: int | None = None


@dataclass(frozen=True)
class Tap:
    """A pair of forward hooks on a submodule; they run only inside a guided forward pass of the model.

    `before(pass_, args, kwargs)` may return new `(args, kwargs)`, `after(pass_, args, output)` a new output.
    """

    module: nn.Module
    before: Callable[[GuidedPass, tuple[Any, ...], dict[str, Any]], Any] | None = None
    after: Callable[[GuidedPass, tuple[Any, ...], Any], Any] | None = None


def extend_mask(mask: Tensor | None, n: int, ahead: bool = False) -> Tensor | None:
    """A mask `[B, P]` (1 = visible) or bias `[B, 1, P]` (0 = visible) with `n` more visible columns behind or `ahead`.

    Which of the negative tokens are real is added in the attention itself.
    """
    if mask is None:
        return None
    more = mask.new_full((*mask.shape[:-1], n), 1 if mask.ndim == 2 else 0)
    return torch.cat([more, mask] if ahead else [mask, more], -1)


def append_masked(call: dict[str, Any], negative: Negative) -> None:
    """Lengthen a text that is a prefix with a mask: real negative tokens directly behind the real positive ones."""
    text = torch.cat([call["encoder_hidden_states"], negative.embeds], 1)
    mask = torch.cat([call["encoder_attention_mask"], negative.keep.to(call["encoder_attention_mask"])], 1)
    order = torch.argsort((~mask.bool()).int(), dim=1, stable=True)
    call["encoder_hidden_states"] = text.gather(1, order[..., None].expand(-1, -1, text.shape[-1]))
    call["encoder_attention_mask"] = mask.gather(1, order)


def count_tokens(pipe: Any, tokenizer: Any, text: str, limit: int | None = None) -> int:
    """The tokens of a text as the pipeline reads it, special tokens included, and at most `limit` (the tokenizer's)."""
    spell_out = getattr(pipe, "maybe_convert_prompt", None)  # textual inversions of several vectors
    text = text if spell_out is None else spell_out(text, tokenizer)
    return len(tokenizer(text, truncation=True, max_length=limit or tokenizer.model_max_length).input_ids)


def too_long(text: str, tokens: int, limit: int, who: str) -> ValueError:
    """The error for a negative of which only the first `limit` of its `tokens` would be read."""
    short = text if len(text) <= 50 else text[:47].rstrip() + "..."
    return ValueError(
        f"the negative prompt {short!r} is {tokens} tokens long, counted with special tokens and template; {who} takes "
        f"{limit}; shorten it, or (VSF) give its parts weights, as in 'a:1, b:1', since each part is encoded on its own"
    )


class Family(ABC):
    """One architecture. Subclasses are stateless; see `docs/adding-a-model.md`."""

    #: Name in messages, and the class names of the models it serves.
    name: ClassVar[str]
    models: ClassVar[tuple[str, ...]]
    #: How text meets the image: in an attention of its own, as keys before the image's in the image's attention, or in one of
    #: both together, and which of the two comes first there.
    geometry: ClassVar[Literal["cross", "keys", "image_first", "text_first"]]
    #: The argument of the model's forward that carries the text `[B, P, W]`.
    text_argument: ClassVar[str] = "encoder_hidden_states"
    #: The argument with a mask or bias over the text, in which negative tokens are visible ones.
    mask_argument: ClassVar[str | None] = None
    #: The model's lists of blocks, in order (one that it lacks is left out), and the attention in each block.
    blocks: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    attention: ClassVar[str] = "attn"
    #: What the width of the text embeddings is called in the model's config.
    text_width: ClassVar[str] = "joint_attention_dim"
    #: For a family with taps: whether they bring the negative tokens in, so that `extend` does not.
    late: ClassVar[bool] = True
    #: The tokenizers that, in pipelines with several, serve the pooled embedding alone, which stays the positive
    #: prompt's: what they cut off a negative is not missed.
    pooled: ClassVar[tuple[str, ...]] = ()
    #: The texts of a model that has several, which may have a negative of its own each (LTX-2: video and audio).
    streams: ClassVar[tuple[str, ...]] = ()
    #: The pipelines that draw everything with classifier-free guidance, whatever they are given.
    always_guided: ClassVar[tuple[str, ...]] = ()
    #: Whether the pipelines pack 2 x 2 latents into one before the model sees them.
    packed: ClassVar[bool] = False
    #: What the pipelines demand of the sides of a picture whatever the autoencoder is: multiples of so many pixels.
    pixels: ClassVar[int] = 1

    def sites(self, model: nn.Module) -> Sequence[nn.Module]:
        """The attention modules where text meets the image, one per block, in order."""
        return [getattr(block, self.attention) for blocks in self.blocks for block in getattr(model, blocks, ())]

    def width(self, model: nn.Module) -> int:
        """W, the width of the text embeddings the model takes."""
        return getattr(model.config, self.text_width)

    @abstractmethod
    def encode(self, pipe: Any, text: str, padded: bool, max_sequence_length: int | None) -> Tensor:
        """Encode one negative prompt with the pipeline's own encoders to `[N, W]`.

        What the pipeline's tokenizers cut off is noticed by the caller (`vsf.encode`); a pipeline that cuts in another
        way needs a check here (`too_long`).

        Not `padded`: real tokens only. `padded`: as the pipeline encodes a prompt, with `max_sequence_length` where
        the pipeline has such an argument (its default if None).
        """

    def stream_of(self, model: nn.Module, site: int) -> int:
        """Which of `streams` the attention number `site` is over."""
        return 0

    def stride(self, model: nn.Module) -> int:
        """How many latents a token of the image covers along a side."""
        patch = 2 if self.packed else getattr(model.config, "patch_size", 1)
        return int(patch[-1] if isinstance(patch, (tuple, list)) else patch)

    def longest(self, model: nn.Module) -> int | None:
        """How many tokens of the image may stand along a side; None: any number."""
        return None

    def taps(self, model: nn.Module) -> Sequence[Tap]:
        """Where negative tokens cannot simply join the text inputs: the hooks that bring them in further down.

        If this is not empty and the family is `late`, `extend` is called only to lengthen the positive prompt itself
        (`layout="upstream"`), and the taps put the tokens of `GuidedPass.negative` behind the positive ones. The model's
        own attention mask need not know of them: their columns are made visible (`neg_bias` hides the missing ones).
        """
        return ()

    def extend(self, call: dict[str, Any], negative: Negative) -> None:
        """Add the negative tokens to the text inputs in `call` (the model's forward arguments by name), in place."""
        text = call[self.text_argument]
        ahead = self.geometry in ("text_first", "keys")
        order = [negative.embeds, text] if ahead else [text, negative.embeds]
        call[self.text_argument] = torch.cat(order, 1)
        if self.mask_argument in call:
            call[self.mask_argument] = extend_mask(call[self.mask_argument], negative.embeds.shape[1], ahead)

    def text(self, call: Mapping[str, Any]) -> Any:
        """The positive text `[B, P, W]`, of which only shape, dtype and device are read; no tensor if it is unfit."""
        text = call.get(self.text_argument)
        if isinstance(text, list) and all(isinstance(t, Tensor) for t in text):  # one per sample
            return torch.nn.utils.rnn.pad_sequence(text, batch_first=True)
        return text

    def grid(self, model: nn.Module, call: Mapping[str, Any]) -> tuple[int, ...] | None:
        """`(height, width)`, or `(frames, height, width)`, of the image's token grid (or of a multiple of it), where the
        model has one."""
        x = call.get("hidden_states", call.get("sample"))
        return tuple(x.shape[2:]) if isinstance(x, Tensor) and x.ndim in (4, 5) else None


class MaskedCross(Family):
    """A transformer whose blocks have one cross attention over the text, `attn2`, with a mask over the text."""

    geometry = "cross"
    mask_argument = "encoder_attention_mask"
    attention = "attn2"

    def width(self, model: nn.Module) -> int:
        config: Any = model.config
        return config.caption_channels or config.cross_attention_dim
