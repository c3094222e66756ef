"""Exact attention that also returns its log-sum-exp, on whatever kernel the device would have used anyway.

Shapes: B batch, H heads, S queries, K keys, D head size. Queries `[B, H, S, D]`, keys and values `[B, H, K, D]`,
log-sum-exp `[B, H, S]`. `lse` is the natural log of the sum over keys of `exp(q.k * scale + bias)`; it is -inf for a
query that may see no key at all.

With the log-sum-exp two attentions over disjoint keys can be merged exactly into the attention over all of them
(`merge`), which is what lets guidance leave the unguided call untouched and add a small one beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Attended", "attend", "attend_few", "kernel_name", "merge"]

#: Queries per slice where log-sum-exp has to be computed beside a kernel that does not return it.
SLICE = 1024


class Attended(NamedTuple):
    """An attention output `out` `[B, H, S, D]` and its log-sum-exp `lse` `[B, H, S]` (fp32, or fp64 for fp64 inputs)."""

    out: Tensor
    lse: Tensor


def _cpu_flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Attended:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, False, attn_mask=bias, scale=scale
    )
    return Attended(out, lse)


def _cuda_flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Attended:
    # The fused kernel wants head sizes in steps of 8; F.scaled_dot_product_attention pads in the same way.
    size = q.shape[-1]
    scale = size**-0.5 if scale is None else scale
    q, k, v = (F.pad(x, (0, -size % 8)) for x in (q, k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False, scale=scale)[:2]
    return Attended(out[..., :size], lse)


def _cuda_efficient(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Attended:
    if bias is not None:
        # This kernel reads the bias in aligned vectors: pad the storage, expand the view, as F.sdpa does.
        size = bias.shape[-1]
        bias = F.pad(bias, (0, -size % 16))[..., :size].expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, 0.0, False, scale=scale)[:2]
    return Attended(out, lse[..., : q.shape[2]])  # the kernel pads lse to a multiple of 32 queries


def _cuda_cudnn(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Attended:
    out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, bias, True, 0.0, False, False, scale=scale)[
        :2
    ]
    return Attended(out, lse.reshape(*q.shape[:3]))


def _any_device(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Attended:
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return Attended(out, log_sum_exp(q, k, bias, scale))


Kernel = Callable[[Tensor, Tensor, Tensor, "Tensor | None", "float | None"], Attended]

#: (device type, what torch would choose) -> the same kernel, asked for its log-sum-exp. Everything else takes the
#: fallback: torch's own call, plus the log-sum-exp in slices of queries, so that no [S, K] matrix is ever held.
KERNELS: dict[tuple[str, str], tuple[str, Kernel]] = {
    ("cpu", "FLASH_ATTENTION"): ("aten flash for cpu", _cpu_flash),
    ("cuda", "FLASH_ATTENTION"): ("aten flash", _cuda_flash),
    ("cuda", "EFFICIENT_ATTENTION"): ("aten memory-efficient", _cuda_efficient),
    ("cuda", "CUDNN_ATTENTION"): ("aten cudnn", _cuda_cudnn),
}
FALLBACK: tuple[str, Kernel] = ("scaled_dot_product_attention + sliced log-sum-exp", _any_device)
# The values of torch.nn.attention.SDPBackend, as torch._fused_sdp_choice returns them.
_CHOICE = {0: "MATH", 1: "FLASH_ATTENTION", 2: "EFFICIENT_ATTENTION", 3: "CUDNN_ATTENTION"}


@torch.compiler.assume_constant_result
def _probe(device: str, dtype: torch.dtype, size: int, masked: bool) -> int:
    """What torch would choose for tensors of this kind; used while tracing, where it cannot be asked about tensors."""
    x = torch.zeros(1, 1, 64, size, device=device, dtype=dtype)
    bias = torch.zeros(1, 1, 1, 64, device=device, dtype=dtype) if masked else None
    return torch._fused_sdp_choice(x, x, x, bias, 0.0, False)


def _kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> tuple[str, Kernel]:
    if q.device.type not in ("cpu", "cuda"):
        return FALLBACK
    if torch.compiler.is_compiling():
        choice = _probe(q.device.type, q.dtype, q.shape[-1], bias is not None)
    else:
        choice = torch._fused_sdp_choice(q, k, v, bias, 0.0, False, scale=scale)
    return KERNELS.get((q.device.type, _CHOICE.get(choice, "?")), FALLBACK)


def kernel_name(device: str | torch.device, dtype: torch.dtype, head_size: int = 64) -> str:
    """The kernel that `attend` uses for tensors of this device and dtype, in words."""
    x = torch.zeros(1, 1, 16, head_size, device=device, dtype=dtype)
    return _kernel(x, x, x, None, None)[0]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Attended:
    """Softmax attention of `q` `[B, H, S, D]` over `k`, `v` `[B, H, K, D]` with its log-sum-exp.

    `bias` is added to the scores and broadcasts to `[B, H, S, K]` (boolean: True may be seen). `scale` defaults to
    `D**-0.5`. The output is bit-equal to `F.scaled_dot_product_attention` on the same arguments, because it is the
    same kernel.
    """
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=q.dtype).masked_fill(~bias, float("-inf"))
    if k.shape[1] != q.shape[1]:  # grouped-query attention: the fused kernels want the heads spelt out
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return _kernel(q, k, v, bias, scale)[1](q, k, v, bias, scale)


def attend_few(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Attended:
    """`attend` for few keys, written out as two matrix products.

    A fused kernel gains nothing there, and this one takes any bias on any device. Queries without a single visible
    key get output 0 and log-sum-exp -inf (the fused kernels disagree about that case).
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    factor = float(q.shape[-1] ** -0.5 if scale is None else scale)
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (
        (q @ (k * factor).transpose(-1, -2)) if q.dtype == wide else (q @ k.transpose(-1, -2)).to(wide) * factor
    )
    if bias is not None:
        if bias.dtype == torch.bool:
            scores = scores.masked_fill(~bias, float("-inf"))
        else:
            scores = scores + bias
    top = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(wide).min)
    share = (scores - top).exp_()
    total = share.sum(-1, keepdim=True)
    out = (share / total.clamp_min(torch.finfo(wide).tiny)).to(v.dtype) @ v
    return Attended(out, (top + total.log()).squeeze(-1))


def log_sum_exp(q: Tensor, k: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Log-sum-exp over keys, `[B, H, S]`, in slices of queries."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    factor = float(q.shape[-1] ** -0.5 if scale is None else scale)
    parts: list[Tensor] = []
    for start in range(0, q.shape[2], SLICE):
        scores = (q[:, :, start : start + SLICE].to(wide) * factor) @ k.to(wide).transpose(-1, -2)
        if bias is not None:
            scores = scores + (bias if bias.shape[-2] == 1 else bias[..., start : start + SLICE, :])
        parts.append(scores.logsumexp(-1))
    return torch.cat(parts, -1)


def merge(a: Attended, b: Attended) -> Attended:
    """The attention over the keys of `a` and of `b` together, exactly, from the two attentions over each alone.

    `out = a.out + sigmoid(b.lse - a.lse) (b.out - a.out)`. At least one of the two must see a key.
    """
    share = torch.sigmoid(b.lse - a.lse).unsqueeze(-1).to(a.out.dtype)
    return Attended(torch.lerp(a.out, b.out, share), torch.logaddexp(a.lse, b.lse))
