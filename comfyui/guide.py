"""One guided model: its negative joins the text of each forward pass, and an attention override does the rest.

Everything goes through ComfyUI's own seams. A wrapper around `apply_model` lengthens the text and hands the model a
copy of `transformer_options` with an `optimized_attention_override` that knows this one forward pass; when the pass is
over nothing of it is left, also after an interrupt. The override slices queries, keys and values with the geometries of
`vsf.arch.base` and calls the attention function that was chosen (sage, flash, xformers, torch), or the override that was
there already, for the big unguided part. Legend: B batch, H heads, P prompt tokens, N negative tokens, W text width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vsf.arch.base import Frame, cross_attention, joint_attention
from vsf.core.attention import Attended, attend, log_sum_exp
from vsf.guidance import VSF, Guidance, knobs

from .families import Family, family_of

__all__ = ["KEY", "Guide", "Record", "guide_model", "negative_of"]

#: Under this name everything is put on the model, and the record is attached to it.
KEY = "vsf"
#: ComfyUI's number for the positive prompt in `cond_or_uncond`.
POSITIVE = 0
#: CLIP's prompts come in chunks of this many tokens.
CHUNK = 77


@dataclass
class Negative:
    """The negative prompt: tokens `[M, N, W]` (M = 1, or one per sample), and their weights `[N]` if not all are 1."""

    tokens: Tensor
    weight: Tensor | None = None


@dataclass
class Record:
    """w, the share of attention that goes to the negative, of the last sampling: `share[step, block]` is `[B, S]`."""

    on: bool = False
    steps: int = 0
    size: tuple[int, ...] = ()  # of the latent: ..., height, width
    share: dict[tuple[int, int], Tensor] = field(default_factory=dict)


def negative_of(conditioning: Any, method: Guidance) -> Negative:
    """The tokens of a CONDITIONING that the model would see as text, in the form the method wants them.

    Masked tokens are left out; for VSF also trailing zero tokens (Wan pads with them) are, because each token of the
    negative takes part in its sum.

    Raises:
        ValueError: there is no text in it, or it is limited to an area, a mask or a range of steps.
    """
    parts: list[Tensor] = []
    weights: list[Tensor | None] = []
    for tokens, extra in conditioning:
        limits = [k for k in ("area", "mask", "start_percent", "end_percent", "control") if extra.get(k) is not None]
        if limits:
            raise ValueError(
                f"the negative conditioning is limited by {', '.join(limits)}, which guidance inside attention does not "
                "know; connect the conditioning as it comes from the text encoder"
            )
        if tokens is None or tokens.ndim != 3:
            raise ValueError("the negative conditioning holds no text tokens; connect a text encoder's output")
        seen = extra.get("attention_mask")
        weight = extra.get("vsf_weight")
        if seen is not None and seen.shape[-1] == tokens.shape[1]:
            keep = seen.reshape(-1, tokens.shape[1]).bool().any(0)
            tokens, weight = tokens[:, keep], None if weight is None else weight[keep.to(weight.device)]
        filled = tokens.ne(0).any(-1).any(0)
        if not method.padded:
            last = int(filled.nonzero().amax()) + 1 if bool(filled.any()) else 0
            tokens, weight = tokens[:, :last], None if weight is None else weight[:last]
        if not bool(filled.any()):
            raise ValueError(
                "the negative conditioning is all zeros (is it from ConditioningZeroOut?); connect the text encoder's "
                "output for what you do not want, or delete this node"
            )
        parts.append(tokens)
        weights.append(weight)
    if not parts:
        raise ValueError("the negative conditioning is empty; connect a text encoder's output")
    if method.negative == "branch" and (len(parts) > 1 or any(w is not None for w in weights)):
        raise ValueError(
            f"{method.label.upper()} takes one negative prompt without weights: its negative branch is one padded "
            "prompt; encode it with a plain text encoder node, or use VSF"
        )
    rows = max(len(p) for p in parts)
    tokens = torch.cat([p.repeat(-(-rows // len(p)), 1, 1)[:rows] for p in parts], 1)
    if all(w is None for w in weights):
        return Negative(tokens)
    ones = [torch.ones(p.shape[1]) if w is None else w for p, w in zip(parts, weights, strict=True)]
    return Negative(tokens, torch.cat(ones))


def _repeats(row: Tensor) -> int:
    """How often a prompt `[P, W]` was repeated by ComfyUI to batch it with a longer one."""
    chunks = len(row) // CHUNK
    for times in range(chunks, 1, -1):
        if chunks % times == 0 and len(row) % CHUNK == 0:
            pieces = row.unflatten(0, (times, len(row) // times))
            if bool((pieces == pieces[:1]).all()):
                return times
    return 1


class Pass:
    """One guided forward pass."""

    def __init__(self, guide: Guide, frame: Frame, negative: Tensor, size: tuple[int, ...], step: int) -> None:
        self.guide, self.frame, self.negative, self.size, self.step = guide, frame, negative, size, step
        self.options: dict[str, Any] = {}
        self.previous: Callable[..., Tensor] | None = None
        self.length: int | None = None  # of the joint attention
        self.site = 0
        self.text_next = False  # the next attention is the one over the text
        self.self_done = False

    # -- what ComfyUI calls ---------------------------------------------------------------------------------------

    def attention(
        self, func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None,
        attn_precision: Any = None, skip_reshape: bool = False, skip_output_reshape: bool = False, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """An `optimized_attention_override`: `[B, S, H D]` (or `[B, H, S, D]` with `skip_reshape`) in and out."""

        def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, split: bool, whole: bool) -> Tensor:
            call = func if self.previous is None else self._chained(func)
            return call(
                q, k, v, heads, mask=mask, attn_precision=attn_precision, skip_reshape=split,
                skip_output_reshape=whole, **kwargs,
            )  # fmt: skip

        if kwargs.pop("enable_gqa", False):  # newer versions leave this to the kernel
            q, k, v = (
                x if skip_reshape else x.unflatten(-1, (-1, q.shape[-1] // heads)).transpose(1, 2) for x in (q, k, v)
            )
            k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
            skip_reshape = True
        if not self._over_text(q.shape[2 if skip_reshape else 1], k.shape[2 if skip_reshape else 1]):
            return plain(q, k, v, mask, skip_reshape, skip_output_reshape)
        if not skip_reshape:  # [B, S, H D], and keys and values of SD3 as [B, S, H, D]
            q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
        out = self._guided(q, k, v, self._mask(q, k, mask), self._kernel(func, plain), kwargs.get("scale"))
        return out if skip_output_reshape else out.transpose(1, 2).flatten(2)

    def attn2_patch(self, n: Tensor, context: Tensor, value: Tensor | None, extra: Any) -> Any:
        """UNet: the negative joins here, behind whatever other patches made of the prompt."""
        tokens = self.negative.to(context)
        self.frame.n_pos = context.shape[1]
        self.text_next = True
        value = context if value is None else value
        return n, torch.cat([context, tokens], 1), torch.cat([value, tokens], 1)

    def attn2_replace(self, other: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """UNet: another node replaced this attention (an IP-adapter): keep what it adds."""

        def replaced(q: Tensor, k: Tensor, v: Tensor, extra: Any) -> Tensor:
            heads, p = extra["n_heads"], self.frame.n_pos
            self.text_next = False
            theirs = other(q, k[:, :p], v[:, :p], extra)
            q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
            plain = attend(q, k[:, :, :p], v[:, :, :p])
            guided = self._guided(q, k, v, None, lambda *_: Attended(plain.out.clone(), plain.lse))
            return theirs + (guided - plain.out).transpose(1, 2).flatten(2).to(theirs)

        return replaced

    # -- inside ---------------------------------------------------------------------------------------------------

    def _chained(self, func: Callable[..., Tensor]) -> Callable[..., Tensor]:
        assert self.previous is not None
        previous = self.previous
        return lambda *args, **kwargs: previous(func, *args, **kwargs)

    def _over_text(self, queries: int, keys: int) -> bool:
        """Whether this attention is one where text meets the image."""
        family, text = self.guide.family, self.frame.n_pos + self.frame.n_neg
        if family.geometry == "unet":
            mine, self.text_next = self.text_next and keys == text, False
            return mine
        if family.geometry == "cross":
            if keys != text:
                return False
            if queries == keys:  # as many image tokens as text tokens: in each block self-attention comes first
                self.self_done = not self.self_done
                return not self.self_done
            return True
        if self.length is None and not family.late:
            self.length = keys  # the first attention is joint in all of these
        return queries == keys == self.length and keys > text

    def _mask(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor | None:
        """The model's own mask as `[., ., ., keys]`, with the negative visible where the model did not know of it."""
        if mask is None:
            return None
        if mask.ndim == 2:
            by_key = mask.shape[0] == q.shape[0] and mask.shape[0] != q.shape[2]
            mask = mask[:, None, None] if by_key else mask[None, None]
        elif mask.ndim == 3:
            mask = mask[:, None]
        missing = k.shape[2] - mask.shape[-1]
        if missing == 0:
            return mask
        if missing != self.frame.n_neg:
            raise ValueError(f"an attention mask over {mask.shape[-1]} tokens for {k.shape[2]}; it cannot be guided")
        joint = self.guide.family.geometry == "joint"
        pad = [missing, 0] if joint else [0, missing]
        if joint and mask.shape[-2] != 1:
            pad += [missing, 0]
        return F.pad(mask, pad, value=mask.dtype == torch.bool)  # True, or 0 in a bias

    def _kernel(self, func: Callable[..., Tensor], plain: Any) -> Any:
        """The unguided attention with its log-sum-exp: from the kernel where it is torch's own, else beside it."""
        if self.previous is None and getattr(func, "__name__", "") == "attention_pytorch":
            return attend

        def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Attended:
            out = plain(q, k, v, mask, True, True)
            if mask is not None and mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
            return Attended(out, log_sum_exp(q, k, mask, scale))

        return kernel

    def _guided(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kernel: Any, scale: float | None = None
    ) -> Tensor:
        method, site = self.guide.method, self.site
        self.site += 1
        active = method.blocks is None or site in method.blocks
        record = self._recorder(site) if active and self.guide.record.on and isinstance(method, VSF) else None
        frame = self.frame.on(q.device)
        frame.n_pos = self.frame.n_pos
        if frame.neg_bias is not None:  # as the kernels want it
            frame.neg_bias = frame.neg_bias.to(q.dtype)
        if self.guide.family.geometry == "joint":
            return joint_attention(frame, q, k, v, mask, scale, active, record, text_first=True, kernel=kernel)
        return cross_attention(frame, q, k, v, mask, scale, active, record, kernel=kernel)

    def _recorder(self, site: int) -> Callable[[Attended, Attended], None]:
        def record(pos: Attended, neg: Attended) -> None:
            method = self.guide.method
            assert isinstance(method, VSF)
            w = method.share(pos, neg, self.frame.on(pos.lse.device).knob).squeeze(-1).mean(1)
            rows = self.frame.guided
            w = w if rows is None else w[rows.flatten().to(w.device)]
            self.guide.record.share[self.step, site] = w.float().cpu()

        return record


@dataclass
class Guide:
    """What one guidance node puts on its model: the method, the negative and the range of noise levels."""

    method: Guidance
    negative: Negative
    family: Family
    sites: int
    first_sigma: float
    last_sigma: float
    record: Record
    fresh: bool = True  # no forward pass of this sampling was guided yet

    def sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """A wrapper around one sampling."""
        self.fresh = True
        self.record.share.clear()
        try:
            return executor(*args, **kwargs)
        finally:
            self.fresh = True

    def apply_model(
        self, executor: Any, x: Tensor, t: Tensor, c_concat: Any = None, c_crossattn: Any = None, control: Any = None,
        transformer_options: Mapping[str, Any] | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """A wrapper around one forward pass."""
        options = dict(transformer_options or {})
        rows = self._rows(options, len(x))
        if rows is None or self.method.neutral or not self._in_range(options, t):
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        text = self._text(c_crossattn)
        tokens = self._tokens(text, rows)
        frame = self._frame(text, tokens.shape[1], rows)
        pass_ = Pass(self, frame, tokens, tuple(x.shape[-2:]), self._step(options))
        self.record.size = tuple(x.shape)
        joint, late = self.family.geometry == "joint", self.family.late
        if joint and isinstance(self.method, VSF) and self.method.layout == "upstream":
            text = torch.cat([text, tokens] if late else [tokens, text], 1)
            frame.n_copy, frame.n_pos = tokens.shape[1], frame.n_pos + tokens.shape[1]
            _lengthen(kwargs, tokens.shape[1])
        if joint and not late:
            text = torch.cat([tokens, text], 1)
        elif self.family.geometry == "cross":
            text = torch.cat([text, tokens], 1)
        self._install(options, pass_)
        model = executor.class_obj.diffusion_model
        self.family.before(model, kwargs)
        with self.family.taps(model, pass_):
            out = executor(x, t, c_concat, text, control, options, **kwargs)
        self._check(pass_.site, options)
        return out

    def _install(self, options: dict[str, Any], pass_: Pass) -> None:
        """`options` is a copy of the model's; what is nested in it is copied before it is changed."""
        pass_.options = options
        pass_.previous = options.get("optimized_attention_override")
        options["optimized_attention_override"] = pass_.attention
        if self.family.geometry == "unet":
            patches = dict(options.get("patches", {}))
            patches["attn2_patch"] = [*patches.get("attn2_patch", ()), pass_.attn2_patch]
            replaced = dict(options.get("patches_replace", {}))
            if replaced.get("attn2"):
                replaced["attn2"] = {key: pass_.attn2_replace(fn) for key, fn in replaced["attn2"].items()}
            options["patches"], options["patches_replace"] = patches, replaced

    def _check(self, sites: int, options: Mapping[str, Any]) -> None:
        """The first guided pass of a sampling must have met each block: never a silent no-op.

        Later passes may skip blocks (caches, skip-layer guidance), and so may nodes that replace whole blocks.
        """
        skipping = bool(options.get("patches_replace", {}).get("dit"))
        if self.fresh and sites != self.sites and (sites == 0 or not skipping):
            raise RuntimeError(
                f"{sites} of {self.sites} attention blocks of this model ({self.family.name}) could be guided: another "
                "node has replaced the others, or this version of ComfyUI runs them without transformer_options. "
                "Remove that node, or update ComfyUI"
            )
        self.fresh = False

    def _in_range(self, options: Mapping[str, Any], t: Tensor) -> bool:
        sigma = float(options.get("sigmas", t).flatten()[0])
        return self.last_sigma <= sigma <= self.first_sigma

    def _step(self, options: Mapping[str, Any]) -> int:
        """The step that the sampler is at, for the record."""
        schedule, now = options.get("sample_sigmas"), options.get("sigmas")
        if schedule is None or now is None:
            return 0
        return int((schedule.flatten().cpu() - now.flatten()[0].cpu()).abs()[:-1].argmin())

    @staticmethod
    def _rows(options: Mapping[str, Any], size: int) -> Tensor | None:
        """Which samples are to be guided, `[B]`; None if none is (the pass is for the sampler's own negative)."""
        kinds = options.get("cond_or_uncond") or [POSITIVE]
        rows = torch.tensor([kind == POSITIVE for kind in kinds]).repeat_interleave(size // len(kinds))
        return rows if bool(rows.any()) else None

    def _text(self, text: Any) -> Tensor:
        width = self.negative.tokens.shape[-1]
        if not isinstance(text, Tensor) or text.ndim != 3:
            raise ValueError("the positive conditioning holds no text tokens; connect a text encoder's output")
        if text.shape[-1] != width:
            raise ValueError(
                f"the negative conditioning is {width} wide and the positive one {text.shape[-1]}; encode both with the "
                "same CLIP"
            )
        return text

    def _tokens(self, text: Tensor, rows: Tensor) -> Tensor:
        """The negative of each sample `[B, N, W]`; ComfyUI repeats a conditioning in turn over its batch."""
        given = self.negative.tokens.to(text)
        return given[torch.arange(len(rows)) % len(given)]

    def _frame(self, text: Tensor, n: int, rows: Tensor) -> Frame:
        device = text.device
        wide = torch.float64 if text.dtype == torch.float64 else torch.float32
        knob = {
            name: torch.full((len(rows), 1, 1, 1), float(getattr(self.method, name)), dtype=wide, device=device)
            for name, spec in knobs(self.method).items()
            if spec.per_sample and getattr(self.method, name) is not None
        }
        all_rows = bool(rows.all())
        bias = None
        if not all_rows:
            # Finite, but enough for a share of exactly 0: kernels disagree about queries that see no key at all.
            shift = torch.where(rows, 0.0, -1e4)
            if self.family.geometry == "unet":  # repeating a prompt adds to its log-sum-exp
                times = [_repeats(row) if guided else 1 for row, guided in zip(text, rows.tolist(), strict=True)]
                shift += torch.tensor(times, dtype=shift.dtype).log()
            bias = shift.to(device, wide).view(-1, 1, 1, 1).expand(-1, 1, 1, n)
        weight = self.negative.weight
        weight = None if weight is None else weight.to(device, wide).view(1, 1, -1, 1)
        guided = None if all_rows else rows.to(device).view(-1, 1, 1, 1)
        return Frame(self.method, text.shape[1], n, knob, bias, None, guided, weight)


def _lengthen(kwargs: dict[str, Any], n: int) -> None:
    """Say to the model that its prompt is n tokens longer."""
    if isinstance(kwargs.get("num_tokens"), (int, float)):
        kwargs["num_tokens"] += n
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        kwargs["attention_mask"] = F.pad(mask, (0, n), value=1)


def guide_model(model: Any, method: Guidance, conditioning: Any, record: bool = False) -> Any:
    """A clone of a ComfyUI MODEL that is guided by `method`; the one given stays as it is.

    Raises:
        UnsupportedModel: see `family_of`.
        ValueError: the conditioning or the block numbers do not fit, or the model is guided already.
    """
    inner = model.get_model_object("diffusion_model")
    family = family_of(inner)
    if model.get_attachment(KEY) is not None:
        raise ValueError(
            "this model already comes from a guidance node of this pack; use one, and write several negatives into it"
        )
    sites = family.blocks(inner)
    if method.blocks is not None and max(method.blocks, default=0) >= sites:
        raise ValueError(f"blocks is {method.blocks}; this model has blocks 0 to {sites - 1}")
    sampling = model.get_model_object("model_sampling")
    guide = Guide(
        method, negative_of(conditioning, method), family, sites,
        float(sampling.percent_to_sigma(method.start)), float(sampling.percent_to_sigma(method.stop)), Record(record),
    )  # fmt: skip
    guided = model.clone()
    guided.add_wrapper_with_key("apply_model", KEY, guide.apply_model)
    guided.add_wrapper_with_key("outer_sample", KEY, guide.sample)
    guided.set_attachments(KEY, guide)
    return guided
