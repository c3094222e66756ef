"""The negative prompts of a context: what was given, checked and encoded, and its form at one batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .arch import Family
from .encode import Encoded, encode_negative
from .guidance import Guidance, knobs

__all__ = ["Batch", "Negatives", "given_negatives", "repeated", "says_something", "texts_of"]

#: Negatives of a compiled model are padded to a multiple of this many tokens.
BUCKET = 16


class Negatives(NamedTuple):
    """The negatives `[n, W]`, one for all or one per prompt or sample (None: no negative), the weights `[n]` of their
    tokens (None: all are 1), and the windows of these, fractions of all steps (None: the whole run)."""

    embeds: Sequence[Tensor | None]
    weights: Sequence[Tensor | None]
    windows: Sequence[tuple[tuple[float, float], ...] | None] = (None,)

    @property
    def distinct(self) -> tuple[tuple[float, float], ...]:
        """The windows there are, in order."""
        return tuple(sorted({window for own in self.windows for window in own or ()}))

    def at(self, held: Mapping[tuple[float, float], bool]) -> Negatives:
        """Those tokens whose window holds in a step; a negative without any is none."""
        if not held or all(held.values()):
            return self
        size = len(self.embeds)
        embeds, weights = list(self.embeds), repeated(self.weights, size, "negative prompts")
        for i, windows in enumerate(repeated(self.windows, size, "negative prompts")):
            x, weight = embeds[i], weights[i]
            if x is not None and windows is not None:
                keep = torch.tensor([held[window] for window in windows])
                embeds[i] = x[keep.to(x.device)] if bool(keep.any()) else None
                weights[i] = None if weight is None else weight[keep]
        return Negatives(embeds, weights)


class Batch(NamedTuple):
    """The negatives and the method's knobs at one batch size. B samples, N tokens of the longest negative, width W."""

    embeds: Tensor  # [B, N, W], 0 where there is no token
    keep: Tensor  # [B, N] bool: which tokens are real
    ragged: bool  # whether `keep` has to be heeded
    guided: Tensor | None  # [B, 1, 1, 1] bool: which samples have a negative; None: all
    knob: dict[str, Tensor]  # [B, 1, 1, 1] each
    weight: Tensor | None  # [B, 1, N, 1]: weight of each token; None: all 1

    @classmethod
    def of(
        cls,
        given: Negatives,
        method: Guidance,
        text: Tensor,
        active: Sequence[bool] = (True,),
        padded: bool = False,
        model: str = "the model",
        room: int = 0,
    ) -> Batch | None:
        """For a batch whose positive text is `text` `[B, P, W]` (only shape, dtype and device are read); None if no
        sample has a negative, or the method changes nothing.

        `active`: whether guidance is on, for all or per prompt or sample. `padded`: lengths in steps of `BUCKET` with room
        for `room` tokens at least, and always a mask, so that another negative is not another compiled graph.

        Raises:
            ValueError: the number of negatives, ranges or knob values does not divide B, or a width is not W.
        """
        size = text.shape[0]
        negatives = repeated(given.embeds, size, "negative prompts")
        longest = max((len(n) for n in negatives if n is not None), default=0)
        # A sample outside its range of steps is one without a negative.
        rows = zip(negatives, repeated(list(active), size, "ranges of start and stop"), strict=True)
        negatives = [n if on else None for n, on in rows]
        real = [n for n in negatives if n is not None]
        if not real or method.neutral:
            return None
        if padded:
            longest = max(longest, room)
            longest += -longest % BUCKET
        embeds = text.new_zeros(size, longest, text.shape[-1])
        keep = torch.zeros(size, longest, dtype=torch.bool, device=text.device)
        for row, negative in enumerate(negatives):
            if negative is not None:
                if negative.shape[1] != text.shape[-1]:
                    raise ValueError(
                        f"the negative embeddings are {negative.shape[1]} wide; {model} was given text of width "
                        f"{text.shape[-1]}"
                    )
                embeds[row, : len(negative)] = negative.to(text)
                keep[row, : len(negative)] = True
        wide = torch.float64 if text.dtype == torch.float64 else torch.float32
        knob: dict[str, Tensor] = {}
        for name, spec in knobs(method).items():
            value = getattr(method, name)
            if spec.per_sample and value is not None:
                values = repeated(list(value) if isinstance(value, tuple) else [value], size, f"values of {name}")
                if name in ("start", "stop"):
                    continue
                knob[name] = torch.tensor(values, dtype=wide, device=text.device).view(size, 1, 1, 1)
        embeds = method.embeddings(embeds, {name: value.flatten(1)[..., None] for name, value in knob.items()})
        guided = keep.any(1).view(size, 1, 1, 1) if padded or len(real) < size else None
        weight = _weight(given.weights, size, longest, text.device, wide)
        return cls(embeds, keep, padded or not bool(keep.all()), guided, knob, weight)

    def twice(self) -> Batch:
        """For a batch that holds all samples a second time, behind the first."""
        doubled: Any = [torch.cat([x, x]) if isinstance(x, Tensor) else x for x in self]
        return Batch(*doubled)._replace(knob={name: torch.cat([x, x]) for name, x in self.knob.items()})


def _weight(
    weights: Sequence[Tensor | None], size: int, longest: int, device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    """The weights of the negative tokens `[B, 1, N, 1]`; None if all are 1."""
    if all(w is None for w in weights):
        return None
    weight = torch.ones(size, 1, longest, 1, dtype=dtype)
    for row, own in enumerate(repeated(weights, size, "negative prompts")):
        if own is not None:
            weight[row, 0, : len(own), 0] = own
    return weight.to(device)


def says_something(negative: Any) -> bool:
    """Whether a negative (text, embeddings, or a list of either) is more than nothing."""
    if isinstance(negative, (list, tuple)):
        return any(map(says_something, negative))
    return bool(negative.strip()) if isinstance(negative, str) else negative is not None


def repeated(values: Sequence[Any], size: int, what: str) -> list[Any]:
    """One per sample from one for all, one per prompt (`num_images_per_prompt`), or one per sample."""
    if size % len(values):
        raise ValueError(f"{len(values)} {what} for a batch of {size}; give one for all, or one per prompt or sample")
    return [v for v in values for _ in range(size // len(values))]


def given_negatives(
    pipe: Any,
    family: Family,
    width: int,
    method: Guidance,
    prompt: Any,
    embeds: Any,
    weights: Any,
    max_sequence_length: int | None,
) -> Negatives:
    """What `negative_guidance` was given, checked, and encoded where it is text.

    Raises:
        TypeError, ValueError: it does not fit; see `negative_guidance`.
    """
    if prompt is not None and embeds is not None:
        raise ValueError("both negative_prompt and negative_prompt_embeds were given; give one of them")
    if method.negative == "none":
        return Negatives([None], [None])
    if weights is not None and embeds is None:
        raise ValueError(
            'negative_weights needs negative_prompt_embeds; in a text, write weights as "wheels:2, chain"'
        )
    if embeds is not None:
        given = list(embeds) if isinstance(embeds, (list, tuple)) else [embeds]
        if not given:
            raise ValueError("negative_prompt_embeds is empty; give a list of [n, d] tensors")
        for x in given:
            if x is not None and not (isinstance(x, Tensor) and x.ndim == 2):
                shape = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
                raise ValueError(f"negative_prompt_embeds holds {shape}; allowed: a list of tensors [n, {width}]")
            if x is not None and x.shape[1] != width:
                raise ValueError(
                    f"negative_prompt_embeds is {x.shape[1]} wide; this model takes text of width {width}"
                )
            if x is not None and not bool(torch.isfinite(x).all()):
                raise ValueError("negative_prompt_embeds holds NaN or infinite values")
        negatives = [None if x is None or len(x) == 0 else x.detach() for x in given]
        return Negatives(negatives, _given_weights(method, given, weights))
    if prompt is None:
        raise ValueError(f"{type(method).__name__} needs negative_prompt or negative_prompt_embeds")
    prompts = texts_of(prompt)
    if isinstance(pipe, nn.Module):
        if not any(p and p.strip() for p in prompts):
            return Negatives([None] * len(prompts), [None])
        raise ValueError("a bare model cannot encode text; give negative_prompt_embeds, or the pipeline instead")
    known: dict[str, Encoded] = {}
    with torch.no_grad():
        for text in prompts:
            if text and text.strip() and text not in known:
                known[text] = encode_negative(pipe, family, method, text, max_sequence_length)
    encoded = [known.get(text or "", Encoded(None, None, None)) for text in prompts]
    return Negatives([e.tokens for e in encoded], [e.weight for e in encoded], [e.windows for e in encoded])


def texts_of(prompt: Any) -> list[str | None]:
    """The negative prompts, one for all or one per prompt or sample."""
    if not isinstance(prompt, (str, list, tuple)):
        raise TypeError(f"negative_prompt is {prompt!r}; allowed: a string, or one string or None per sample")
    prompts: list[str | None] = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("negative_prompt is an empty list; give a string, or one string or None per sample")
    for text in prompts:
        if text is not None and not isinstance(text, str):
            raise TypeError(
                f"negative_prompt holds {text!r}; allowed: strings, or None for a sample that is not guided"
            )
    return prompts


def _given_weights(method: Guidance, embeds: list[Tensor | None], weights: Any) -> list[Tensor | None]:
    if weights is None:
        return [None]
    if method.negative != "tokens":
        name = type(method).__name__
        raise ValueError(f"{name} cannot take negative_weights: its negative branch is one padded prompt")
    given = [weights] if isinstance(weights, Tensor) else list(weights)
    if len(given) != len(embeds):
        raise ValueError(f"negative_weights has {len(given)} entries for {len(embeds)} in negative_prompt_embeds")
    for w, x in zip(given, embeds, strict=True):
        n = 0 if x is None else len(x)
        if w is not None and not (isinstance(w, Tensor) and tuple(w.shape) == (n,)):
            shape = f"a tensor of shape {tuple(w.shape)}" if isinstance(w, Tensor) else repr(w)
            raise ValueError(f"negative_weights holds {shape} for {n} tokens; allowed: a tensor ({n},), or None")
        if w is not None and not bool((w.isfinite() & (w >= 0)).all()):
            raise ValueError("negative_weights holds negative, NaN or infinite values; allowed: 0 or more")
    return [None if w is None else w.detach().double().cpu() for w in given]
