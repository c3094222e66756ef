"""Which of ComfyUI's models can be guided: where text meets the image in each, and what else has to know of it.

Read in ComfyUI 0.3.64. In every joint model there the text stands in front of the image, `[text, image]`, so the
negative is put in front of the prompt and everything behind it stays one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

__all__ = ["FAMILIES", "Family", "UnsupportedModel", "family_of", "supported"]


class UnsupportedModel(ValueError):
    """The model cannot be guided; the message names it and lists what can."""


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
    #: Raises where the arguments of a forward pass do not allow guidance.
    before: Callable[[Any, Mapping[str, Any]], None] = lambda model, given: None
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
def _qwen_positions(model: Any, pass_: Any) -> Iterator[None]:
    """Qwen-Image numbers its text tokens in order: give the prompt its own positions, and the negative the same start."""

    def reorder(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        ids, frame = args[0], pass_.frame  # [B, negative + copy + prompt + image, 3]
        text = frame.n_neg + frame.n_pos
        prompt = frame.n_pos - frame.n_copy
        own = ids[:, :text]
        rows = [own[:, : frame.n_neg], own[:, prompt : frame.n_pos], own[:, :prompt], ids[:, text:]]
        return (torch.cat(rows, 1), *args[1:])

    handle = model.pe_embedder.register_forward_pre_hook(reorder)
    try:
        yield
    finally:
        handle.remove()


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
        if pass_.guide.method.padded and up(n) > n:
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


FAMILIES: tuple[Family, ...] = (
    Family("SD 1.x, SD 2.x, SDXL", ("UNetModel",), "unet", _unet_blocks, unfit=_unet_unfit),
    Family("SD3, SD3.5", ("OpenAISignatureMMDITWrapper",), "joint", lambda m: len(m.joint_blocks), unfit=_sd3_unfit),
    Family("Flux (dev, schnell, Krea, Kontext, Fill)", ("Flux",), "joint", _dual_and_single),
    Family("Chroma", ("Chroma", "ChromaRadiance"), "joint", _dual_and_single),
    Family(
        "Qwen-Image (and Edit)",
        ("QwenImageTransformer2DModel",),
        "joint",
        lambda m: len(m.transformer_blocks),
        taps=_qwen_positions,
    ),
    Family(
        "Lumina 2, Z-Image",
        ("NextDiT",),
        "joint",
        lambda m: len(m.layers),
        taps=_lumina_stream,
        late=True,
        before=_lumina_before,
        unfit=_lumina_unfit,
    ),
    Family(
        "Wan 2.1 and 2.2 (text, image, VACE, camera)",
        ("WanModel", "VaceWanModel", "CameraWanModel"),
        "cross",
        lambda m: len(m.blocks) + len(getattr(m, "vace_blocks", ())),
        before=_wan_before,
    ),
    Family("LTX-Video", ("LTXVModel",), "cross", lambda m: len(m.transformer_blocks)),
)


def supported() -> str:
    """What can be guided, in words."""
    return "; ".join(family.name for family in FAMILIES)


def family_of(model: Any) -> Family:
    """The family of a ComfyUI diffusion model.

    Raises:
        UnsupportedModel: there is none, or this very model cannot be guided.
    """
    name = type(model).__name__
    for family in FAMILIES:
        if name in family.models:
            reason = family.unfit(model)
            if reason:
                raise UnsupportedModel(f"{name} cannot be guided: {reason}; supported: {supported()}")
            return family
    raise UnsupportedModel(f"{name} cannot be guided; supported: {supported()}")
