"""Which of ComfyUI's models can be guided: where text meets the image in each, and what else has to know of it.

Read in ComfyUI 0.3.64 and 0.33.0. In every joint model there the text stands in front of the image, `[text, image]`, so
the negative is put in front of the prompt and everything behind it stays one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

__all__ = ["FAMILIES", "Family", "check_encoder", "family_of", "supported"]


@contextmanager
def _nothing(model: Any, pass_: Any) -> Iterator[None]:
    yield


def _wan_before(model: Any, given: Mapping[str, Any]) -> None:
    if getattr(model, "img_emb", None) is not None and given.get("clip_fea") is None:
        raise ValueError(
            "this Wan image-to-video model is used without a CLIP vision output, so its attention over the picture goes "
            "to the text instead, where the negative would act twice; connect a clip_vision_output"
        )


def _lumina_before(model: Any, given: Mapping[str, Any]) -> None:
    mask = given.get("attention_mask")
    if isinstance(mask, torch.Tensor) and len(set(mask.sum(1).tolist())) > 1:
        raise ValueError(
            "prompts of different lengths are in one batch, which Lumina 2 cannot be guided with; use CFG 1"
        )
    more = [name for name in ("ref_latents", "ref_contexts", "ref_frames", "direct_context") if given.get(name)]
    if more:
        raise ValueError(
            f"this model was given {', '.join(more)}, which it cannot be guided with; use the prompt alone"
        )


@dataclass(frozen=True)
class Family:
    """One architecture.

    `models` are class names of ComfyUI's diffusion models. `geometry`: "joint" = one attention over `[text, image]`;
    "cross" = attention of the image over the text, which enters as `c_crossattn`; "unet" = the same, where the negative
    joins at the `attn2` patches. `blocks(model)` counts the attentions where text meets the image. `taps(model, pass_)`
    is a context around one forward pass. `late`: the taps bring the negative in, not the text input.
    """

    name: str
    models: tuple[str, ...]
    geometry: Literal["joint", "cross", "unet"]
    blocks: Callable[[Any], int]
    taps: Callable[[Any, Any], Any] = _nothing
    late: bool = False
    #: What becomes of a padded negative: `prepare(base model, tokens [M, N, W], {"noise": the latent})`.
    prepare: Callable[[Any, torch.Tensor, Mapping[str, Any]], torch.Tensor] = lambda base, tokens, given: tokens
    #: Whether the model attends to prompt tokens that the encoder's mask leaves out.
    sees_pads: bool = False
    #: Raises where the arguments of a forward pass do not allow guidance.
    before: Callable[[Any, Mapping[str, Any]], None] = lambda model, given: None
    #: The text encoders whose tokens it takes, as VSF Negative Prompt names them: ComfyUI's keys, in order.
    encoders: tuple[str, ...] = ()
    #: Why this very model cannot be guided all the same, if so.
    unfit: Callable[[Any], str | None] = lambda model: None


def _dual_and_single(model: Any) -> int:
    return len(model.double_blocks) + len(model.single_blocks)


def _unet_blocks(model: Any) -> int:
    return sum(name.endswith(".attn2") for name, _ in model.named_modules())


def _unet_unfit(model: Any) -> str | None:
    video = any(".time_stack." in name for name, _ in model.named_modules())
    return "its text input is a picture, not a prompt" if video else None


def _sd3_unfit(model: Any) -> str | None:
    if getattr(model, "context_processor", None) is not None:
        return "its prompt runs through attention of its own first, where prompt and negative would meet"
    return "it has register tokens" if getattr(model, "register_length", 0) else None


@contextmanager
def _numbered(model: Any, pass_: Any) -> Iterator[None]:
    """Where text tokens are numbered, give the prompt its own numbers, and the negative those it had as the prompt.

    What the ids of this very pass say decides, not the model's name: Flux.1 gives all of its text position 0 (then this
    changes nothing), Flux2, Ovis, Qwen-Image and later Radiance count from the first token, and LongCat moves the image
    behind the text as well. A prompt that is padded in front (Flux2 does, up to 512) ends where all prompts end, and so
    does the negative.
    """

    def reorder(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        ids, frame = args[0], pass_.frame  # [B, negative + copy + prompt + image, axes]
        n, p = frame.n_neg, frame.n_pos
        own, image = ids[:, : n + p], ids[:, n + p :]
        if not image.shape[1]:
            raise ValueError(f"{type(model).__name__} places its text apart from the image; it cannot be guided")
        step = own[:, 1:2] - own[:, :1]
        behind = (step != 0) & (image[:, :1] == n + p)
        image = image - n * behind.to(image)
        first = p - n if pass_.padded_in_front or bool(behind.any()) else 0
        count = partial(torch.arange, device=ids.device)
        prompt = p - frame.n_copy
        place = torch.cat([count(first, first + n), count(prompt, p), count(prompt)])
        text = own[:, place] if first >= 0 else own[:, :1] + place[None, :, None].to(ids) * step
        return (torch.cat([text, image], 1), *args[1:])

    handle = model.pe_embedder.register_forward_pre_hook(reorder)
    try:
        yield
    finally:
        handle.remove()


def _as_a_prompt(base: Any, tokens: torch.Tensor, given: Mapping[str, Any]) -> torch.Tensor:
    """The negative `[M, N, W]` as ComfyUI's own model would hand it on as a prompt (Flux2 pads it in front)."""
    made = base.extra_conds(cross_attn=tokens, pooled_output=None, device=tokens.device, **given)
    return made["c_crossattn"].cond


def _lumina_unfit(model: Any) -> str | None:
    odd = [name for name in ("masked_pad_multiple", "clip_text_pooled_proj") if getattr(model, name, None) is not None]
    return f"it is a variant of Lumina 2 with {' and '.join(odd)}, which these nodes do not know" if odd else None


@contextmanager
def _lumina_stream(model: Any, pass_: Any) -> Iterator[None]:
    """Lumina 2 and Z-Image refine their prompt by attention of its own first and place the image behind it.

    So the negative goes through the same embedder and refiner on its own, and joins the stream in front of each main
    layer. The image's positions do not move; the negative's are such that the image is as far away as it would be if
    the negative were the prompt. Z-Image pads prompts and images to a multiple of 32 with tokens that are seen.
    """
    multiple = getattr(model, "pad_tokens_multiple", None) or 1
    kept: list[torch.Tensor] = []

    def up(n: int) -> int:
        return -(-n // multiple) * multiple

    def begin(x: torch.Tensor, turns: torch.Tensor) -> None:
        frame, patch = pass_.frame, model.patch_size
        frame.n_pos = x.shape[1] - up(-(-pass_.size[0] // patch) * -(-pass_.size[1] // patch))
        stream = model.cap_embedder(pass_.negative.to(x))
        n = stream.shape[1]
        if pass_.guide.method.negative == "padded" and up(n) > n:
            pads = model.cap_pad_token.to(stream).expand(len(stream), up(n) - n, -1)
            stream = torch.cat([stream, pads], 1)
            if frame.neg_bias is not None:
                frame.neg_bias = frame.neg_bias[..., :1].expand(-1, -1, -1, up(n))
            frame.n_neg = up(n)
        ids = torch.zeros(len(turns), stream.shape[1], 3, dtype=torch.float32, device=x.device)
        # The prompt's first position: 0 in Lumina 2 as ComfyUI 0.3.64 has it, 1 in Z-Image and since.
        first = 0 if torch.equal(turns[:, :1], model.rope_embedder(ids[:, :1]).movedim(1, 2).to(turns)) else 1
        ids[..., 0] = torch.arange(stream.shape[1], device=x.device) + first + frame.n_pos - up(n)
        own = model.rope_embedder(ids).movedim(1, 2).to(turns)
        for refiner in model.context_refiner:
            stream = refiner(stream, None, own, transformer_options=pass_.options)
        kept[:] = [stream, own]

    def join(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x, mask, turns, *rest = args  # [B, L, W], [B, L] or None, [B or 1, L, 1, D/2, 2, 2]
        if not kept:
            begin(x, turns)
        x, turns = torch.cat([kept[0].to(x), x], 1), torch.cat([kept[1], turns], 1)
        pass_.length = x.shape[1]
        return (x, mask, turns, *rest), kwargs

    def part(layer: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        kept[0] = output[:, : pass_.frame.n_neg]
        return output[:, pass_.frame.n_neg :]

    handles = []
    try:
        for layer in model.layers:
            handles.append(layer.register_forward_pre_hook(join, with_kwargs=True))
            handles.append(layer.register_forward_hook(part))
        yield
    finally:
        for handle in handles:
            handle.remove()


#: The same T5 is the encoder of several; beside CLIP, whose tokens it does not hand on, it is Flux's.
T5 = ("t5xxl", "l t5xxl")

FAMILIES: tuple[Family, ...] = (
    Family(
        "SD 1.x, SD 2.x, SDXL",
        ("UNetModel",),
        "unet",
        _unet_blocks,
        encoders=("l", "h", "g", "g l"),
        unfit=_unet_unfit,
    ),
    Family(
        "SD3, SD3.5",
        ("OpenAISignatureMMDITWrapper",),
        "joint",
        lambda m: len(m.joint_blocks),
        encoders=("g l t5xxl", "t5xxl"),
        unfit=_sd3_unfit,
    ),
    Family(
        "Flux.1 (dev, schnell, Krea, Kontext, Fill), Flux2 and Klein, LongCat-Image, Ovis-Image",
        ("Flux",),
        "joint",
        _dual_and_single,
        taps=_numbered,
        prepare=_as_a_prompt,
        sees_pads=True,
        encoders=(*T5, "mistral3_24b", "qwen3_4b", "qwen3_8b", "qwen25_7b", "qwen3_2b"),
    ),
    Family(
        "Chroma and Radiance",
        ("Chroma", "ChromaRadiance"),
        "joint",
        _dual_and_single,
        taps=_numbered,
        encoders=T5,
    ),
    Family(
        "Qwen-Image (and Edit)",
        ("QwenImageTransformer2DModel",),
        "joint",
        lambda m: len(m.transformer_blocks),
        taps=_numbered,
        encoders=("qwen25_7b",),
    ),
    Family(
        "Lumina 2, Z-Image",
        ("NextDiT",),
        "joint",
        lambda m: len(m.layers),
        taps=_lumina_stream,
        late=True,
        before=_lumina_before,
        encoders=("gemma2_2b", "qwen3_4b"),
        unfit=_lumina_unfit,
    ),
    Family(
        "Wan 2.1 and 2.2 (text, image, VACE, camera)",
        ("WanModel", "VaceWanModel", "CameraWanModel"),
        "cross",
        lambda m: len(m.blocks) + len(getattr(m, "vace_blocks", ())),
        before=_wan_before,
        encoders=("umt5xxl",),
    ),
    Family("LTX-Video", ("LTXVModel",), "cross", lambda m: len(m.transformer_blocks), encoders=T5),
)


def supported() -> str:
    """What can be guided, in words."""
    return "; ".join(family.name for family in FAMILIES)


def family_of(model: Any) -> Family:
    """The family of a ComfyUI diffusion model.

    Raises:
        ValueError: there is none, or this very model cannot be guided; the message names it and lists what can.
    """
    name = type(model).__name__
    for family in FAMILIES:
        if name in family.models:
            reason = family.unfit(model)
            if reason:
                raise ValueError(f"{name} cannot be guided: {reason}; supported: {supported()}")
            return family
    raise ValueError(f"{name} cannot be guided; supported: {supported()}")


def check_encoder(family: Family, encoder: str | None) -> None:
    """Refuse a negative that was written for another model; None, or an encoder that no family lists, passes.

    Raises:
        ValueError: it was.
    """
    known = {name for other in FAMILIES for name in other.encoders}
    if encoder in known - set(family.encoders):
        raise ValueError(
            f"the negative was encoded by {encoder.replace(' ', ' + ')}, but {family.name} takes "
            f"{' or '.join(name.replace(' ', ' + ') for name in family.encoders)}; use the CLIP that encodes the prompt"
        )
