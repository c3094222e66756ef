"""Exact attention that also returns its log-sum-exp, on whatever kernel the device would have used anyway.

Shapes: B batch, H heads, S queries, K keys, D head size. Queries `[B, H, S, D]`, keys and values `[B, H, K, D]`,
log-sum-exp `[B, H, S]`. `lse` is the natural log of the sum over keys of `exp(q.k * scale + bias)`; it is -inf for a
query that may see no key at all.

With the log-sum-exp two attentions over disjoint keys can be merged exactly into the attention over all of them
(`merge`), which is what lets guidance leave the unguided call untouched and add a small one beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "Attend", "Attended", "additive", "attend", "attend_few", "differentiable", "kernel_name", "log_sum_exp", "merge",
]  # fmt: skip

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


#: q, k, v, bias or mask, scale -> output and log-sum-exp.
Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None", "float | None"], Attended]

#: (device type, what torch would choose) -> the same kernel, asked for its log-sum-exp. Everything else takes the
#: fallback: torch's own call, plus the log-sum-exp in slices of queries, so that no [S, K] matrix is ever held.
KERNELS: dict[tuple[str, str], tuple[str, Attend]] = {
    ("cpu", "FLASH_ATTENTION"): ("aten flash for cpu", _cpu_flash),
    ("cuda", "FLASH_ATTENTION"): ("aten flash", _cuda_flash),
    ("cuda", "EFFICIENT_ATTENTION"): ("aten memory-efficient", _cuda_efficient),
    ("cuda", "CUDNN_ATTENTION"): ("aten cudnn", _cuda_cudnn),
}
FALLBACK: tuple[str, Attend] = ("scaled_dot_product_attention + sliced log-sum-exp", _any_device)
# The values of torch.nn.attention.SDPBackend, as torch._fused_sdp_choice returns them.
_CHOICE = {0: "MATH", 1: "FLASH_ATTENTION", 2: "EFFICIENT_ATTENTION", 3: "CUDNN_ATTENTION"}


@torch.compiler.assume_constant_result
def _probe(device: str, dtype: torch.dtype, size: int, masked: bool) -> int:
    """What torch would choose for tensors of this kind; used while tracing, where it cannot be asked about tensors."""
    x = torch.zeros(1, 1, 64, size, device=device, dtype=dtype)
    bias = torch.zeros(1, 1, 1, 64, device=device, dtype=dtype) if masked else None
    return torch._fused_sdp_choice(x, x, x, bias, 0.0, False)


def _kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> tuple[str, Attend]:
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


def _autocasts(x: Tensor) -> bool:
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def _uncast(x: Tensor) -> AbstractContextManager[object]:
    """Where scores are computed: `torch.autocast` would round them to its dtype, whatever that of the queries is."""
    return torch.autocast(x.device.type, enabled=False) if _autocasts(x) else nullcontext()


def _as_autocast(x: Tensor) -> Tensor:
    """As `torch.autocast` hands a tensor to `F.scaled_dot_product_attention`; it does not know the kernels themselves."""
    return x.to(torch.get_autocast_dtype(x.device.type)) if x.dtype != torch.float64 else x


@overload
def additive(mask: Tensor, dtype: torch.dtype) -> Tensor: ...
@overload
def additive(mask: None, dtype: torch.dtype) -> None: ...
def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A boolean mask (True may be seen) as a bias on the scores, 0 or -inf; a bias, or None, as it is."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Attended:
    """Softmax attention of `q` `[B, H, S, D]` over `k`, `v` `[B, H, K, D]` with its log-sum-exp.

    `bias` is added to the scores and broadcasts to `[B, H, S, K]` (boolean: True may be seen). `scale` defaults to
    `D**-0.5`. The output is bit-equal to `F.scaled_dot_product_attention` on the same arguments, because it is the
    same kernel; under `torch.autocast`, too.
    """
    if _autocasts(q):
        q, k, v = (_as_autocast(x) for x in (q, k, v))
        bias = bias if bias is None or bias.dtype == torch.bool else _as_autocast(bias)
    bias = additive(bias, q.dtype)
    if k.shape[1] != q.shape[1]:  # grouped-query attention: the fused kernels want the heads spelt out
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    out, lse = _kernel(q, k, v, bias, scale)[1](q, k, v, bias, scale)
    return Attended(out, differentiable(lse, q, k, bias, scale))


def attend_few(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Attended:
    """`attend` for few keys, written out as two matrix products.

    A fused kernel gains nothing there, and this one takes any bias on any device. Queries without a single visible
    key get output 0 and log-sum-exp -inf (the fused kernels disagree about that case). Under `torch.autocast` the
    scores are computed in the dtype of the queries all the same, and the output is in that of the values.
    """
    with _uncast(q):
        return _few(q, k, v, bias, scale)


def _few(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Attended:
    if not q.dtype == k.dtype == v.dtype:  # as autocast may leave them
        dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
        q, k, v = (x.to(dtype) for x in (q, k, v))
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    factor = float(q.shape[-1] ** -0.5 if scale is None else scale)
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ (k * factor).transpose(-1, -2)) if q.dtype == wide else (q @ k.transpose(-1, -2)).to(wide) * factor
    if bias is not None:
        scores = scores + additive(bias, wide)
    top = scores.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(wide).min)
    share = (scores - top).exp_()
    total = share.sum(-1, keepdim=True)
    out = (share / total.clamp_min(torch.finfo(wide).tiny)).to(v.dtype) @ v
    if torch.is_grad_enabled():  # the slope of log at 0 is inf, and 0 * inf is what a sample without keys would give
        return Attended(
            out, torch.where(total > 0, top + total.clamp_min(torch.finfo(wide).tiny).log(), -torch.inf).squeeze(-1)
        )
    return Attended(out, (top + total.log()).squeeze(-1))


def log_sum_exp(q: Tensor, k: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Log-sum-exp over keys, `[B, H, S]`, in slices of queries."""
    with torch.no_grad(), _uncast(q):
        parts = [scores.logsumexp(-1) for _, scores in _scores(q, k, bias, scale)]
    return differentiable(torch.cat(parts, -1), q, k, bias, scale)


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, scale: float | None) -> Iterator[tuple[slice, Tensor]]:
    """The scores `[B, H, rows, K]` of `SLICE` queries at a time, and which queries these are."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    factor = float(q.shape[-1] ** -0.5 if scale is None else scale)
    for start in range(0, q.shape[2], SLICE):
        rows = slice(start, start + SLICE)
        scores = (q[:, :, rows].to(wide) * factor) @ k.to(wide).transpose(-1, -2)
        yield rows, scores if bias is None else scores + (bias if bias.shape[-2] == 1 else bias[..., rows, :])


class _LogSumExp(torch.autograd.Function):
    """A log-sum-exp that is known already, with its gradient: a kernel gives the number alone."""

    @staticmethod
    def forward(ctx: Any, lse: Tensor, q: Tensor, k: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
        ctx.save_for_backward(lse, q, k, bias)
        ctx.scale = scale
        return lse.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        lse, q, k, bias = ctx.saved_tensors
        factor = float(q.shape[-1] ** -0.5 if ctx.scale is None else ctx.scale)
        of_q: list[Tensor] = []
        of_k = torch.zeros_like(k, dtype=lse.dtype)
        for rows, scores in _scores(q, k, bias, ctx.scale):
            of = (scores - lse[:, :, rows, None]).exp() * grad[:, :, rows, None]  # the softmax, weighted
            of = of.masked_fill(lse[:, :, rows, None].isneginf(), 0.0)
            of_q.append(of @ k.to(of) * factor)
            of_k += of.transpose(-1, -2) @ q[:, :, rows].to(of) * factor
        return None, torch.cat(of_q, 2).to(q.dtype), of_k.to(k.dtype), None, None


def differentiable(lse: Tensor, q: Tensor, k: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    """The log-sum-exp `lse` of this attention with its gradient, where there is to be one.

    Fused kernels give none for it, so a gradient through the share of the negative would be lost unnoticed.
    """
    if not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)):
        return lse
    return _LogSumExp.apply(lse.detach(), q, k, bias, scale)  # pyright: ignore[reportReturnType]


def merge(a: Attended, b: Attended) -> Attended:
    """The attention over the keys of `a` and of `b` together, exactly, from the two attentions over each alone.

    `out = a.out + sigmoid(b.lse - a.lse) (b.out - a.out)`, in the dtype of `a`. At least one of the two must see a key.
    """
    share = torch.sigmoid(b.lse - a.lse).unsqueeze(-1).to(a.out.dtype)
    return Attended(torch.lerp(a.out, b.out.to(a.out.dtype), share), torch.logaddexp(a.lse, b.lse))
