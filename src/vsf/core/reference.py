"""The slow, readable definitions that judge the fast path. Nothing here is shared with it.

Everything is float64 and dense: the full softmax over all keys is written out, values are flipped, masks are whole
matrices. Shapes: queries `[B, H, S, D]`, keys and values `[B, H, K, D]`.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["nag", "nasa", "softmax_attention", "visible", "vsf", "vsf_referenced"]


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """`softmax(q k^T / sqrt(D) + bias) v`, dense, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias, dim=-1) @ v


def vsf(
    q: Tensor,
    k_pos: Tensor,
    v_pos: Tensor,
    k_neg: Tensor,
    v_neg: Tensor,
    scale: Tensor | float,
    offset: Tensor | float,
) -> Tensor:
    """Value Sign Flip: one softmax over `[K+ ; K-]` with bias `-offset` on K-, values `[V+ ; -scale V-]`."""
    k = torch.cat([k_pos, k_neg], 2).double()
    v = torch.cat([v_pos.double(), -scale * v_neg.double()], 2)
    bias = torch.zeros(q.shape[0], 1, 1, k.shape[2], dtype=torch.float64)
    bias[..., k_pos.shape[2] :] -= offset
    return softmax_attention(q, k, v, bias)


def vsf_referenced(
    q: Tensor,
    k_pos: Tensor,
    v_pos: Tensor,
    k_neg: Tensor,
    v_neg: Tensor,
    r: Tensor,
    scale: Tensor | float,
    offset: Tensor | float,
) -> Tensor:
    """Value Sign Flip around `r` `[B, H, S, D]`: the negative's values are `(1 + scale) r - scale V-`."""
    z = vsf(q, k_pos, v_pos, k_neg, v_neg, scale, offset)
    w = vsf(
        q, k_pos, torch.zeros_like(v_pos), k_neg, torch.ones_like(v_neg), -1.0, offset
    )  # the share of the negative
    return z + w * (1 + scale) * r.double()


def nasa(z_pos: Tensor, z_neg: Tensor, scale: Tensor | float) -> Tensor:
    """NASA (arXiv 2412.02687): `Z+ - s Z-`."""
    return z_pos.double() - scale * z_neg.double()


def nag(z_pos: Tensor, z_neg: Tensor, scale: Tensor | float, tau: Tensor | float, alpha: Tensor | float) -> Tensor:
    """NAG (arXiv 2505.21179) on attention outputs `[B, H, S, D]`; the norm is L1 over the merged heads (H and D)."""
    z_pos, z_neg = z_pos.double(), z_neg.double()
    extrapolated = z_pos * scale - z_neg * (scale - 1)
    norm = z_pos.abs().sum((1, 3), keepdim=True)
    ratio = extrapolated.abs().sum((1, 3), keepdim=True) / norm
    clamped = extrapolated * torch.minimum(ratio, torch.as_tensor(tau, dtype=torch.float64)) / ratio
    return alpha * clamped + (1 - alpha) * z_pos


def visible(segments: list[tuple[str, int]], rules: dict[str, str]) -> Tensor:
    """Dense `[L, L]` visibility (True = may be seen) of a sequence of named segments.

    `segments` lists (name, length) in order; `rules[name]` lists the segment names that its rows may see, separated
    by spaces, e.g. `{"image": "image positive", "positive": "image positive", "negative": "image negative"}`.
    """
    names, lengths = [name for name, _ in segments], torch.tensor([length for _, length in segments])
    seen = torch.tensor([[key in rules[row].split() for key in names] for row in names])
    return seen.repeat_interleave(lengths, 0).repeat_interleave(lengths, 1)
