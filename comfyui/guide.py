"""One guided model: its negative joins the text of each forward pass, and an attention override does the rest.

Everything goes through ComfyUI's own seams. A wrapper around `apply_model` lengthens the text and hands the model a
copy of `transformer_options` with an `optimized_attention_override` that knows this one forward pass; when the pass is
over nothing of it is left, also after an interrupt. The override slices queries, keys and values with the geometries of
`vsf.core.geometry` and calls the attention function that was chosen (sage, flash, xformers, torch), or the override that was
there already, for the big unguided part. Legend: B batch, H heads, P prompt tokens, N negative tokens, W text width.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vsf.core.attention import Attended, additive, attend, log_sum_exp
from vsf.core.geometry import Frame, cross_attention, joint_attention
from vsf.guidance import Guidance, blocks_text, knobs

from .families import FAMILIES, Family, family_of
from .maps import POSITIVE, Record, grid_of, of_picture
from .prompt import Tokens, negative_of

__all__ = ["KEY", "Guide", "guide_model"]

#: Under this name everything is put on the model, and the record is attached to it.
KEY = "vsf"
#: CLIP's prompts come in chunks of this many tokens.
CHUNK = 77


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

    def __init__(
        self, guide: Guide, frames: list[Frame], negative: Tensor, size: tuple[int, ...], step: int,
        given: Mapping[str, Any], text_first: bool, grid: tuple[int, ...] | None,
    ) -> None:  # fmt: skip
        self.guide, self.frames, self.negative, self.size, self.step = guide, frames, negative, size, step
        self.frame = frames[0]  # of the attention at hand: a model with two texts can have two negatives
        self.given, self.text_first = given, text_first  # what else the model is given
        self.n_neg = sum(frame.n_neg for frame in frames)
        self.grid = grid  # how many tokens the picture has along each axis of its latent, where the model says so
        # Which of the image's tokens are on the map: others can be a reference picture's.
        self.shown: slice | Tensor = slice(0, None if grid is None else math.prod(grid))
        self.ids: list[Any] = []  # of the positive conditionings in this pass
        self.options: dict[str, Any] = {}
        self.previous: Callable[..., Tensor] | None = None
        self.length: int | None = None  # of the joint attention
        self.text_order: Tensor | None = None  # where the text's tokens are to stand behind the image's, if elsewhere
        self.met = 0  # attentions that were guided
        self.site, self.stream = 0, 0  # which attention is at hand, and over which text, where the modules say so
        self.entered: set[int] = set()  # the texts that were attended to, where they do
        self.text_next = False  # the next attention is the one over the text
        self.self_done = False
        self.padded_in_front = False  # the prompt was, by the model

    # -- what ComfyUI calls ---------------------------------------------------------------------------------------

    def attention(
        self, func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None,
        attn_precision: Any = None, skip_reshape: bool = False, skip_output_reshape: bool = False, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """An `optimized_attention_override`: `[B, S, H D]` (or `[B, H, S, D]` with `skip_reshape`) in and out."""

        def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, split: bool, whole: bool) -> Tensor:
            call = func if self.previous is None else partial(self.previous, func)
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
        order = None if self.text_order is None else self._order(q)
        if order is not None:
            q, k, v = (x[:, :, order] for x in (q, k, v))
        out = self._guided(q, k, v, self._mask(q, k, mask), self._kernel(func, plain), kwargs.get("scale"))
        if order is not None:
            out = out[:, :, order.argsort()]
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

    def behind(self, n: int) -> None:
        """The picture's own tokens stand behind n others that count as image."""
        if self.grid is not None:
            self.shown = slice(n, n + math.prod(self.grid))

    def enter(self, site: int, stream: int, *_: Any) -> None:
        """A module is about to attend to the text of a stream."""
        self.site, self.stream, self.text_next = site, stream, True
        self.frame = self.frames[min(stream, len(self.frames) - 1)]
        self.entered.add(stream)

    def leave(self, *_: Any) -> None:
        """It has, or another node did in its place."""
        self.text_next = False

    # -- inside ---------------------------------------------------------------------------------------------------

    def _over_text(self, queries: int, keys: int) -> bool:
        """Whether this attention is one where text meets the image."""
        family, text = self.guide.family, self.frame.n_pos + self.n_neg
        if family.geometry == "unet" or len(family.streams) > 1:
            mine, self.text_next = self.text_next and keys == text, False
            return mine
        if family.geometry == "cross":
            if keys != text:
                return False
            if queries == keys:  # as many image tokens as text tokens: in each block self-attention comes first
                self.self_done = not self.self_done
                return not self.self_done
            return True
        if self.length is None and not family.refines:
            self.length = keys  # the first attention is joint in all of these
        return queries == keys == self.length and keys > text

    def _order(self, q: Tensor) -> Tensor:
        """Of the tokens of `[image, text]`, in the order that guidance wants them."""
        assert self.text_order is not None
        image = q.shape[2] - len(self.text_order)
        return torch.cat([torch.arange(image), self.text_order + image]).to(q.device)

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
        if missing != self.n_neg:
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
            return Attended(out, log_sum_exp(q, k, additive(mask, q.dtype), scale))

        return kernel

    def _guided(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kernel: Any, scale: float | None = None
    ) -> Tensor:
        method, site = self.guide.method, self.site if self.entered else self.met
        self.met += 1
        active = method.blocks is None or site in method.blocks
        # The map is of the picture, not of the sound.
        record = self._recorder(site) if active and self.guide.record.on and self.stream == 0 else None
        frame = self.frame.on(q.device)
        if frame is not self.frame:  # a copy that was made before a tap placed the text
            frame = replace(frame, n_pos=self.frame.n_pos)
        if self.guide.family.geometry == "joint":
            return joint_attention(frame, q, k, v, mask, scale, active, record, self.text_first, kernel)
        if len(self.frames) > 1:  # the negatives of all texts are here, of which this one has its own
            p, n = frame.n_pos, frame.n_neg
            start = p + sum(other.n_neg for other in self.frames[: self.stream])
            k, v = (torch.cat([x[:, :, :p], x[:, :, start : start + n]], 2) for x in (k, v))
            mask = None if mask is None else torch.cat([mask[..., :p], mask[..., start : start + n]], -1)
        return cross_attention(frame, q, k, v, mask, scale, active, record, kernel=kernel)

    def _recorder(self, site: int) -> Callable[[Tensor], None]:
        def record(w: Tensor) -> None:
            rows = self.frame.guided
            w = (w if rows is None else w[rows.flatten().to(w.device)])[:, self.shown]
            self.guide.record.add(self.step, site, w, self.ids)

        return record


@dataclass
class Guide:
    """What one guidance node puts on its model: the method, and the negative (None: the sampler's own).

    `sound` is another negative for the sound, where the model reads a text for it (None: the same).
    """

    method: Guidance
    given: Tokens | None
    family: Family
    sites: int
    record: Record
    sound: Tokens | None = None
    fresh: bool = True  # no forward pass of this sampling was guided yet
    sampled: Tokens | None = None  # the negative of this sampling
    #: The negatives as the model's blocks take them, in this sampling; each device of several can be at work.
    made: dict[tuple[torch.device, torch.dtype], list[Tokens]] = field(default_factory=dict)

    @property
    def negative(self) -> Tokens:
        """The negative in force.

        Raises:
            RuntimeError: it is the sampler's own, and nothing is being sampled.
        """
        negative = self.sampled or self.given
        if negative is None:
            raise RuntimeError(
                "the model from the guidance node takes the sampler's own negative, but was run without a sampler; "
                "connect a negative to the guidance node"
            )
        return negative

    def sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """A wrapper around one sampling."""
        self.fresh = True
        self.record.share.clear()
        self.record.size = ()
        self.record.parts.clear()
        self.made.clear()
        if self.given is None and not self.method.neutral:
            self.sampled = self._of_sampler(executor.class_obj)
        try:
            return executor(*args, **kwargs)
        finally:
            self.fresh, self.sampled = True, None
            self.made.clear()

    def _of_sampler(self, guider: Any) -> Tokens:
        """The sampler's own negative conditioning; a ControlNet on it is for the sampler's own pass."""
        conds = guider.conds.get("negative")
        if conds is None:
            raise ValueError(
                f"this sampler ({type(guider).__name__}) has no negative of its own; connect one to the guidance node"
            )
        pairs = [(cond.get("cross_attn"), {k: v for k, v in cond.items() if k != "control"}) for cond in conds]
        return negative_of(pairs, self.method, self.family)

    def conditionings(
        self, executor: Any, model: Any, conds: Any, x: Tensor, sigma: Tensor, options: Any, *rest: Any
    ) -> Any:  # fmt: skip
        """A wrapper around the forward passes of all conditionings at one noise level, where w is recorded."""
        self.record.begin(model, conds[POSITIVE], x, sigma, options)
        return executor(model, conds, x, sigma, options, *rest)

    def apply_model(
        self, executor: Any, x: Tensor, t: Tensor, c_concat: Any = None, c_crossattn: Any = None, control: Any = None,
        transformer_options: Mapping[str, Any] | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """A wrapper around one forward pass."""
        options = dict(transformer_options or {})
        rows = self._rows(options, len(x))
        if rows is None or self.method.neutral or not self._in_range(options, t, executor.class_obj.model_sampling):
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        text = self._text(c_crossattn)
        base = executor.class_obj
        model = base.diffusion_model
        self.family.before(model, kwargs)
        negatives = self._negatives(base, text, x)
        frames = [self._frame(text, negative, rows) for negative in negatives]
        tokens = [
            self.method.embeddings(
                negative.tokens[torch.arange(len(rows)) % len(negative.tokens)],  # ComfyUI repeats it in turn, too
                {name: value.flatten(1)[..., None] for name, value in frame.knob.items()},
            )
            for negative, frame in zip(negatives, frames, strict=True)
        ]
        front = self.family.text_first(model)
        size = tuple(x.shape[2:])
        grid = grid_of(model, size)
        pass_ = Pass(self, frames, tokens[0], size, self._step(options), kwargs, front, grid)
        pass_.padded_in_front = not bool(text[:, 0].any())
        if self.record.on:
            self.record.size = self.record.size or tuple(of_picture(base, x).shape)
            kinds = options.get("cond_or_uncond") or [POSITIVE]
            ids = options.get("uuids") or [None] * len(kinds)
            pass_.ids = [name for name, kind in zip(ids, kinds, strict=True) if kind == POSITIVE]
        joint, late, n = self.family.geometry == "joint", self.family.late, pass_.n_neg
        if joint and self.method.appends:
            text = torch.cat([text, *tokens] if late else [*tokens, text], 1)
            pass_.frame.n_copy, pass_.frame.n_pos = n, pass_.frame.n_pos + n
            _lengthen(kwargs, n, not late)
        if not (joint and late) and self.family.geometry != "unet":
            text = torch.cat([*tokens, text] if joint and front else [text, *tokens], 1)
        if self.family.refines and not late:
            _lengthen(kwargs, n, front)
        self._install(options, pass_)
        with self.family.taps(model, pass_):
            out = executor(x, t, c_concat, text, control, options, **kwargs)
        self._check(pass_, options)
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

    def _check(self, pass_: Pass, options: Mapping[str, Any]) -> None:
        """The first guided pass of a sampling must have met each block: never a silent no-op.

        Later passes may skip blocks (caches, skip-layer guidance), and so may nodes that replace whole blocks.
        """
        skipping = bool(options.get("patches_replace", {}).get("dit"))
        sites, texts = pass_.met, len(self.family.streams)
        wanted = self.sites * (len(pass_.entered) or texts) // texts  # a video without sound has one text
        if self.fresh and sites != wanted and (sites == 0 or not skipping):
            raise RuntimeError(
                f"{sites} of {wanted} attention blocks of this model ({self.family.name}) could be guided: another "
                "node has replaced the others, or this version of ComfyUI runs them without transformer_options. "
                "Remove that node, or update ComfyUI"
            )
        self.fresh = False

    def _in_range(self, options: Mapping[str, Any], t: Tensor, sampling: Any) -> bool:
        """Whether this noise level is guided, by the schedule in force now: a node behind this one may have set it."""
        sigma = float(options.get("sigmas", t).flatten()[0])
        return (
            float(sampling.percent_to_sigma(self.method.stop))
            <= sigma
            <= float(sampling.percent_to_sigma(self.method.start))
        )

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
        if not isinstance(text, Tensor) or text.ndim != 3:
            raise ValueError("the positive conditioning holds no text tokens; connect a text encoder's output")
        return text

    def _negatives(self, base: Any, text: Tensor, noise: Tensor) -> list[Tokens]:
        """The negatives as the model's blocks take them, like the prompt `text` `[B, P, W]`: one, or one for each text."""
        made = self.made.get((text.device, text.dtype))
        if made is None:
            given = [self.negative, *([] if self.sound is None else [self.sound])]
            made = [self._prepared(base, negative, text, noise) for negative in given]
            self.made[text.device, text.dtype] = made
        for negative in made:
            if negative.tokens.shape[-1] != text.shape[-1]:
                raise ValueError(
                    f"the negative conditioning is {negative.tokens.shape[-1]} wide and the positive one {text.shape[-1]}; "
                    "encode both with the same CLIP"
                )
        return made

    def _prepared(self, base: Any, negative: Tokens, text: Tensor, noise: Tensor) -> Tokens:
        family, padded = self.family, self.method.negative == "padded"
        if not padded and family.real is None:
            return replace(negative, tokens=negative.tokens.to(text))
        parts = []
        for tokens, extra, weight in negative.parts:
            try:
                made = family.prepare(base, tokens.to(text), extra, noise).to(text)
            except RuntimeError as error:
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    raise  # which ComfyUI has an answer to
                raise ValueError(
                    f"the model can make no text of the negative conditioning, which is {tokens.shape[-1]} wide ({error}); "
                    "encode prompt and negative with the same CLIP"
                ) from error
            if not padded and family.real is not None:
                made = made[:, : family.real(tokens, extra)]
            if weight is not None and len(weight) != made.shape[1]:  # it is the same for all tokens of an item
                weight = weight[:1].expand(made.shape[1])
            parts.append((made, extra, weight))
        return Tokens.of(parts)

    def _frame(self, text: Tensor, negative: Tokens, rows: Tensor) -> Frame:
        n = negative.tokens.shape[1]
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
        weight = negative.weight
        weight = None if weight is None else weight.to(device, wide).view(1, 1, -1, 1)
        guided = None if all_rows else rows.to(device).view(-1, 1, 1, 1)
        return Frame(self.method, text.shape[1], n, knob, bias, None, guided, weight)


def _lengthen(kwargs: dict[str, Any], n: int, front: bool = False) -> None:
    """Say to the model that its prompt is n tokens longer, behind or in `front` of it."""
    if isinstance(kwargs.get("num_tokens"), (int, float)):
        kwargs["num_tokens"] += n
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        kwargs["attention_mask"] = F.pad(mask, (n, 0) if front else (0, n), value=1)


def _warn_of_merges(model: Any, clone: Any = None) -> None:
    """Warn where a merge node takes this model as its second one: of that, ComfyUI reads the weights alone.

    Also a callback for clones of the model, which do not take it over by themselves.
    """
    model = model if clone is None else clone
    here = weakref.ref(model)

    def get_key_patches(filter_prefix: str | None = None) -> Any:
        owner: Any = here()
        if filter_prefix:  # only merges ask for a part
            logging.warning(
                "VSF: a node takes only the weights of a guided model, as ModelMerge nodes do with their second model; its "
                "guidance is lost there. Put the guidance node behind the merge"
            )
        return type(owner).get_key_patches(owner, filter_prefix)

    model.get_key_patches = get_key_patches


def guide_model(
    model: Any, method: Guidance, conditioning: Any = None, record: bool = False, sound: Any = None
) -> Any:  # fmt: skip
    """A clone of a ComfyUI MODEL that is guided by `method`; the one given stays as it is.

    Without `conditioning` the negative is that of the sampler which runs the model. With `sound` another one is for the
    sound of a video.

    Raises:
        ValueError: see `family_of`; a conditioning or the block numbers do not fit, or the model is guided already.
    """
    inner = model.get_model_object("diffusion_model")
    family = family_of(inner)
    if model.get_attachment(KEY) is not None:
        raise ValueError(
            "this model already comes from a guidance node of this pack; use one, and write several negatives into it"
        )
    sites = family.blocks(inner)
    if method.blocks is not None and max(method.blocks, default=0) >= sites:
        raise ValueError(f"blocks is {blocks_text(method.blocks)}; this model has blocks 0 to {sites - 1}")
    if sound is not None and len(family.streams) == 1:
        raise ValueError(
            f"a negative for the sound was given, but {family.name} reads no text for a sound; models that do: "
            + "; ".join(other.name for other in FAMILIES if len(other.streams) > 1)
        )
    negative, heard = (None if x is None else negative_of(x, method, family) for x in (conditioning, sound))
    guide = Guide(method, negative, family, sites, Record(record), heard)
    guided = model.clone()
    guided.add_wrapper_with_key("apply_model", KEY, guide.apply_model)
    guided.add_wrapper_with_key("outer_sample", KEY, guide.sample)
    if record:
        guided.add_wrapper_with_key("calc_cond_batch", KEY, guide.conditionings)
    guided.add_callback_with_key("on_clone", KEY, _warn_of_merges)
    _warn_of_merges(guided)
    guided.set_attachments(KEY, guide)
    return guided
