"""Whole-model float64 definitions, written from the equations and the papers' row tables, block by block.

They use the models' own linear layers and norms and nothing of vsf but its float64 reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import vsf.plan
from vsf import NAG, NASA, VSF
from vsf.core import reference

Rule = dict[str, Any]

#: Which keys each group of rows sees, and with "guided" the negative's flipped copy: of the paper's ablations as in the
#: table in docs/bench/ablations.md, and of VSF that guides the text as well.
TABLES = {
    "vsf-no-isolation": {
        "image": "image positive guided", "positive": "image positive guided", "negative": "image positive negative",
    },
    "vsf-no-duplication": {"image": "image positive guided", "positive": "image positive", "negative": "image guided"},
    "vsf-text": {
        "image": "image positive guided", "positive": "image positive guided", "negative": "image negative",
    },
    "vsf-no-isolation-no-duplication": dict.fromkeys(("image", "positive", "negative"), "image positive guided"),
}  # fmt: skip


def guided(
    rule: Rule, q: Tensor, own: tuple[Tensor, Tensor], neg: tuple[Tensor, Tensor], branch: tuple[Tensor, Tensor]
) -> Tensor:
    """The method's definition for image queries `q`: `own` = keys and values they see unguided, `neg` = the
    negative's keys and values alone, `branch` = those of the negative branch."""
    if rule["method"] == "vsf":
        weight = torch.as_tensor(rule.get("weight", 1.0), dtype=torch.float64)  # of each negative token
        z = reference.vsf(q, *own, neg[0], neg[1] * weight.reshape(1, 1, -1, 1), rule["scale"], rule["offset"])
        if rule.get("normalize") is not None:
            plain = reference.softmax_attention(q, *own)
            z = z * (rule["normalize"] * plain.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True)).clamp(max=1)
        return z
    z_pos, z_neg = reference.softmax_attention(q, *own), reference.softmax_attention(q, *branch)
    if rule["method"] == "nag":
        return reference.nag(z_pos, z_neg, rule["scale"], rule["tau"], rule["alpha"])
    return reference.nasa(z_pos, z_neg, rule["scale"])


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def sd3(model: Any, call: dict[str, Any], negative: Tensor, rule: Rule, upstream: bool = False) -> Tensor:
    """SD3 (batch of one, model in float64) with three explicit streams: image, positive, negative."""
    x = model.pos_embed(call["hidden_states"])
    temb = model.time_text_embed(call["timestep"], call["pooled_projections"])
    text = call["encoder_hidden_states"]
    if upstream:
        text = torch.cat([text, negative[None].to(text)], 1)
    pos, neg = model.context_embedder(text), model.context_embedder(negative[None].to(text))
    for block in model.transformer_blocks:
        attn = block.attn
        h = attn.heads
        nx, gate, shift_mlp, scale_mlp, gate_mlp, *second = block.norm1(x, emb=temb)
        streams = []
        for c in (pos, neg):
            if block.context_pre_only:
                streams.append((block.norm1_context(c, temb), None))
            else:
                normed, *rest = block.norm1_context(c, emb=temb)
                streams.append((normed, rest))
        qi, ki, vi = (
            attn.norm_q(_heads(attn.to_q(nx), h)),
            attn.norm_k(_heads(attn.to_k(nx), h)),
            _heads(attn.to_v(nx), h),
        )
        text_qkv = [
            (
                attn.norm_added_q(_heads(attn.add_q_proj(c), h)),
                attn.norm_added_k(_heads(attn.add_k_proj(c), h)),
                _heads(attn.add_v_proj(c), h),
            )
            for c, _ in streams
        ]
        (qp, kp, vp), (qn, kn, vn) = text_qkv
        own = (torch.cat([ki, kp], 2), torch.cat([vi, vp], 2))
        branch = (torch.cat([ki, kn], 2), torch.cat([vi, vn], 2))
        zi = guided(rule, qi, own, (kn, vn), branch)
        zp, zn = reference.softmax_attention(qp, *own), reference.softmax_attention(qn, *branch)
        zi, zp, zn = (z.transpose(1, 2).flatten(2) for z in (zi, zp, zn))
        x = x + gate.unsqueeze(1) * attn.to_out[0](zi)
        if block.use_dual_attention:
            (nx2, gate2), a2 = second, block.attn2
            q2, k2, v2 = (
                a2.norm_q(_heads(a2.to_q(nx2), h)),
                a2.norm_k(_heads(a2.to_k(nx2), h)),
                _heads(a2.to_v(nx2), h),
            )
            z2 = reference.softmax_attention(q2, k2, v2).transpose(1, 2).flatten(2)
            x = x + gate2.unsqueeze(1) * a2.to_out[0](z2)
        x = x + gate_mlp.unsqueeze(1) * block.ff(block.norm2(x) * (1 + scale_mlp[:, None]) + shift_mlp[:, None])
        if not block.context_pre_only:
            evolved = []
            for c, z, (_, (gate_c, shift_c, scale_c, gate_mlp_c)) in zip((pos, neg), (zp, zn), streams, strict=True):
                c = c + gate_c.unsqueeze(1) * attn.to_add_out(z)
                normed = block.norm2_context(c) * (1 + scale_c[:, None]) + shift_c[:, None]
                evolved.append(c + gate_mlp_c.unsqueeze(1) * block.ff_context(normed))
            pos, neg = evolved
    x = model.proj_out(model.norm_out(x, temb))
    p, size = model.config.patch_size, call["hidden_states"].shape[-1]
    n = size // p
    return x.reshape(1, n, n, p, p, -1).permute(0, 5, 1, 3, 2, 4).reshape(1, -1, size, size)


class CrossDefinition:
    """An `attn2` processor in float64 from the definition; the negative enters as an attribute, not as an input."""

    def __init__(self, negative: Tensor, rule: Rule) -> None:
        self.negative, self.rule = negative, rule

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        h = attn.heads
        q = _heads(attn.to_q(hidden_states), h)
        own = _heads(attn.to_k(encoder_hidden_states), h), _heads(attn.to_v(encoder_hidden_states), h)
        negative = self.negative[None].to(hidden_states)
        neg = _heads(attn.to_k(negative), h), _heads(attn.to_v(negative), h)
        return attn.to_out[0](guided(self.rule, q, own, neg, neg).transpose(1, 2).flatten(2))


def unet(model: Any, call: dict[str, Any], negative: Tensor, rule: Rule) -> Tensor:
    """The UNet (batch of one, model in float64) with every `attn2` replaced by the definition."""
    before = dict(model.attn_processors)
    model.set_attn_processor(
        {name: CrossDefinition(negative, rule) if ".attn2." in name else p for name, p in before.items()}
    )
    try:
        return model(**call)[0]
    finally:
        model.set_attn_processor(before)


def _dense(
    frame: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    names: list[tuple[str, int]],
    rows: dict[str, str],
) -> Tensor:
    """Every row group by its own dense softmax over the columns it may see."""
    owner = [name for name, n in names for _ in range(n)]
    at = {name: torch.tensor([i for i, o in enumerate(owner) if o == name], dtype=torch.long) for name, _ in names}
    batch, heads = q.shape[:2]
    bias = torch.zeros(batch, heads, q.shape[2], k.shape[2], dtype=torch.float64)
    if mask is not None:
        mask = (
            torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, float("-inf"))
            if mask.dtype == torch.bool
            else mask
        )
        bias = bias + mask
    if frame.neg_bias is not None:
        bias[..., at["negative"]] = bias[..., at["negative"]] + frame.neg_bias
    if frame.pos_bias is not None:
        bias[..., at["positive"]] = bias[..., at["positive"]] + frame.pos_bias
    queries = at if len(rows) > 1 else {"image": torch.arange(q.shape[2])}
    out = torch.zeros(batch, heads, q.shape[2], v.shape[-1], dtype=torch.float64)

    def attention(row: str, columns: str, flip: bool = False, of: Tensor | None = None) -> Tensor:
        """Over these columns' values, or `of` others; `flip`: the negative's are flipped, their scores less the offset."""
        index = torch.cat([at[c] for c in columns.split()])
        values, extra = (v if of is None else of).double().clone(), bias[:, :, queries[row]].clone()
        if flip:
            if of is None and frame.method.label != "vsf-embedding-flip":
                values[:, :, at["negative"]] *= -frame.knob["scale"].double()
            if of is None and frame.weight is not None:
                values[:, :, at["negative"]] *= frame.weight
            extra[..., at["negative"]] -= frame.knob["offset"].double()
        visible = reference.visible(names, {name: columns for name, _ in names})[0]
        extra = extra.masked_fill(~visible, float("-inf"))[..., index]
        return reference.softmax_attention(q[:, :, queries[row]], k[:, :, index], values[:, :, index], extra)

    table = {row: columns.removesuffix(" guided") for row, columns in rows.items()}
    for row, columns in table.items():
        out[:, :, queries[row]] = attention(row, columns)
    before = out.clone()
    for row in [row for row, columns in rows.items() if columns.endswith(" guided")]:
        method, knob = frame.method, {n: t.double() for n, t in frame.knob.items()}
        own, plain = table[row], before[:, :, queries[row]]
        if isinstance(method, VSF):
            z = attention(row, own + " negative", flip=True)
            if method.label == "vsf-referenced":  # flipped around the attention over the positive text
                ones = torch.zeros_like(v, dtype=torch.float64)
                ones[:, :, at["negative"]] = 1.0
                w = attention(row, own + " negative", flip=True, of=ones)
                z = z + w * (1 + knob["scale"]) * attention(row, "positive")
            if method.normalize is not None:
                longest = knob["normalize"] * plain.norm(dim=-1, keepdim=True)
                z = z * (longest / z.norm(dim=-1, keepdim=True)).clamp(max=1)
        else:
            z_neg = attention(row, own.replace("positive", "negative"))
            if isinstance(method, NAG):
                z = reference.nag(plain, z_neg, knob["scale"], knob["tau"], knob["alpha"])
            elif isinstance(method, NASA):
                z = reference.nasa(plain, z_neg, knob["scale"])
            else:
                z = z_neg
        out[:, :, queries[row]] = z if frame.guided is None else torch.where(frame.guided, z, plain)
    return out.to(q.dtype)


def joint(
    frame: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    active: bool = True,
    record: Any = None,
    text_first: bool = False,
    kernel: Any = None,
) -> Tensor:
    """The row table of joint attention, dense."""
    image = q.shape[2] - frame.n_pos - frame.n_neg
    names = [("image", image), ("positive", frame.n_pos), ("negative", frame.n_neg)]
    rows = {"image": "image positive guided", "positive": "image positive", "negative": "image negative"}
    rows = TABLES.get(frame.method.label, rows) if active else {**rows, "image": "image positive"}
    q = q if scale is None else q * (scale * q.shape[-1] ** 0.5)
    return _dense(frame, q, k, v, mask, names[::-1] if text_first else names, rows)


def cross(
    frame: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    active: bool = True,
    record: Any = None,
    kernel: Any = None,
) -> Tensor:
    """The row table of cross attention, dense."""
    q = q if scale is None else q * (scale * q.shape[-1] ** 0.5)
    names = [("positive", frame.n_pos), ("negative", frame.n_neg)]
    return _dense(frame, q, k, v, mask, names, {"image": "positive guided" if active else "positive"})


def keys(
    frame: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    active: bool = True,
    record: Any = None,
    kernel: Any = None,
) -> Tensor:
    """The row table of an image that sees text and itself, dense."""
    q = q if scale is None else q * (scale * q.shape[-1] ** 0.5)
    names = [("negative", frame.n_neg), ("positive", frame.n_pos), ("image", q.shape[2])]
    return _dense(frame, q, k, v, mask, names, {"image": "image positive guided" if active else "image positive"})


#: Of the three geometries, by the names that `vsf.plan` has for them.
DENSE = {"joint_attention": joint, "cross_attention": cross, "keys_attention": keys}


@contextmanager
def dense() -> Iterator[dict[str, int]]:
    """Every guided attention by the dense, masked, float64 softmax of the row tables; counts them."""
    fast, count = {name: getattr(vsf.plan, name) for name in DENSE}, {"calls": 0}

    def counted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def attention(*args: Any, **kwargs: Any) -> Tensor:
            count["calls"] += 1
            return function(*args, **kwargs)

        return attention

    for name, slow in DENSE.items():
        setattr(vsf.plan, name, counted(slow))
    try:
        yield count
    finally:
        for name, real in fast.items():
            setattr(vsf.plan, name, real)
