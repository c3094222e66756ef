"""Joint attention written out: one dense softmax per picture, with a table of who sees what.

Slow and plain on purpose. It shares the text encoding and the way in and out of the model with `vsf.guide`, and none
of its attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..arch import UnsupportedModel, find_models, unwrap
from ..arch.sd3 import SD3
from ..guide import Guided, negative_guidance
from ..seam import current_plan
from .ablations import Ablation, Dense

__all__ = ["dense_attention", "dense_guidance"]


def dense_attention(
    method: Ablation, q: Tensor, k: Tensor, v: Tensor, n_pos: int, keep: Tensor, scale: Tensor, offset: Tensor,
    weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """softmax(q [k; k-]^T / sqrt(D) + bias) [v; -scale v-], in which the bias holds the table of the method.

    Args:
        method: its `sees` is the table; with `flips_embedding` the values stay as they are.
        q, k, v: `[B, H, S, D]` with S = image + positive + negative tokens, in this order.
        n_pos: number of positive tokens.
        keep: `[B, N]` bool, which of the N negative tokens are real.
        scale, offset: `[B, 1, 1, 1]`.
        weight: `[B, 1, N, 1]`, factors on the flipped values; None: all 1.

    Returns:
        `[B, H, S, D]` in the dtype of q.
    """
    n_neg = keep.shape[1]
    n_image = q.shape[2] - n_pos - n_neg
    # Keys: image, positive, negative, and once more the negative, flipped.
    k_neg, v_neg = k[:, :, -n_neg:], v[:, :, -n_neg:]
    keys = torch.cat([k, k_neg], 2)
    flipped = v_neg if method.flips_embedding else -scale.to(v.dtype) * v_neg
    values = torch.cat([v, flipped if weight is None else flipped * weight.to(v.dtype)], 2)
    size = {"image": n_image, "positive": n_pos, "negative": n_neg, "flipped": n_neg}

    bias = torch.zeros(q.shape[0], 1, q.shape[2], keys.shape[2], dtype=scale.dtype, device=q.device)
    rows = bias.split([n_image, n_pos, n_neg], 2)
    for name, row in zip(("image", "positive", "negative"), rows, strict=True):
        for other, block in zip(size, row.split(list(size.values()), 3), strict=True):
            if other not in method.sees[name].split():
                block.fill_(-torch.inf)
            elif other in ("negative", "flipped"):
                block.masked_fill_(~keep[:, None, None], -torch.inf)
                if other == "flipped":
                    block.sub_(offset)
    scores = q @ keys.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias
    return (scores.softmax(-1).to(values.dtype) @ values).to(q.dtype)


def _attention(
    plan: Any, site: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, kernel: Any
) -> Tensor | None:
    """`Plan.attention` of `vsf.guide`, dense."""
    frame, method = plan.frame, plan.method
    if frame is None or frame.last == site:  # the second: an adapter's own attention
        return None
    if mask is not None or scale not in (None, q.shape[-1] ** -0.5):
        raise ValueError("the ablations know no attention mask and no other scale than 1 / sqrt(head size)")
    frame.last, plan.reached = site, True
    here, keep = frame.on(q.device), frame.negative.keep.to(q.device)
    offset = here.knob["offset"]
    if method.blocks is not None and site not in method.blocks:
        method, offset = Dense(), torch.full_like(offset, torch.inf)  # the streams run on, apart
    return dense_attention(method, q, k, v, frame.n_pos, keep, here.knob["scale"], offset, here.weight)


@contextmanager
def dense_guidance(pipe: Any, method: Ablation, *args: Any, **options: Any) -> Iterator[Guided]:
    """`vsf.negative_guidance` for an `Ablation`: the same arguments, the same way in and out of the model.

    Raises:
        UnsupportedModel: not a model of Stable Diffusion 3.
        ValueError, TypeError, RuntimeError: as `vsf.negative_guidance`.
    """
    outer, family = find_models(pipe)[0]
    if not isinstance(family, SD3):
        raise UnsupportedModel(
            f"{type(pipe).__name__} has the attention of {family.name}; the ablation {method.label} runs on "
            f"{SD3.name} only ({', '.join(SD3.models)})"
        )
    with negative_guidance(pipe, method, *args, **options) as inside:
        plan: Any = current_plan(id(unwrap(outer)))
        plan.attention = partial(_attention, plan)
        if method.flips_embedding:
            given, scales = plan.negatives, method.scale if isinstance(method.scale, tuple) else (method.scale,)
            size = math.lcm(len(scales), len(given))  # as few as hold both, each for equally many samples
            at = [(given[i * len(given) // size], scales[i * len(scales) // size]) for i in range(size)]
            plan.negatives = [None if x is None else -s * x for x, s in at]
        yield inside
