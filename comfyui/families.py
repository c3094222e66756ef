"""Which of ComfyUI's models can be guided: where text meets the image in each, and what else has to know of it.

Read in ComfyUI 0.3.64 and 0.33.0. In joint models the text stands in front of the image, `[text, image]`, so the negative
is put in front of the prompt and everything behind it stays one piece. HiDream, ERNIE-Image, and HunyuanVideo in 0.3.64
have it the other way round: `[image, prompt, negative]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from .streams import (
    ernie_stream,
    hidream_stream,
    lumina_stream,
    mixed_stream,
    nothing,
    numbered,
    two_texts,
    wan_reference,
)

__all__ = ["FAMILIES", "Family", "check_encoder", "family_of", "supported"]


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
    taps: Callable[[Any, Any], Any] = nothing
    late: bool = False
    #: What becomes of a padded negative: `prepare(base model, tokens [M, N, W], its conditioning's options, the latent)`.
    prepare: Callable[[Any, torch.Tensor, Mapping[str, Any], torch.Tensor], torch.Tensor] = lambda base, tokens, *_: (
        tokens
    )
    #: Where an unpadded negative is prepared as well: how many tokens of what comes out are the text's (None: all).
    real: Callable[[torch.Tensor, Mapping[str, Any]], int | None] | None = None
    #: Whether its text passes through attention of its own before it meets the image; then the taps say where that is.
    refines: bool = False
    #: The texts that the model reads, each with a negative of its own if so wished: the picture's comes first.
    streams: tuple[str, ...] = ("video",)
    #: Whether the text stands in front of the image.
    text_first: Callable[[Any], bool] = lambda model: True
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


#: What text encoders say to a model about their tokens: LTX-2's that they have not been through its connectors yet; Anima's
#: which tokens of another tokenizer they stand for, of which the model makes its text.
NOTES = ("unprocessed_ltxav_embeds", "t5xxl_ids", "t5xxl_weights")


def _as_a_prompt(base: Any, tokens: torch.Tensor, extra: Mapping[str, Any], noise: torch.Tensor) -> torch.Tensor:
    """The negative `[M, N, W]` as ComfyUI's own model would hand it on as a prompt.

    Flux2 pads it in front. LTX-2 runs it through its connectors, which put learned registers behind it, Anima through an
    adapter, which puts zeros behind it.
    """
    notes = {name: extra[name] for name in NOTES if name in extra}
    made = base.extra_conds(cross_attn=tokens, pooled_output=None, device=tokens.device, noise=noise, **notes)
    return made["c_crossattn"].cond


def _before_registers(tokens: torch.Tensor, extra: Mapping[str, Any]) -> int | None:
    return tokens.shape[1] if extra.get("unprocessed_ltxav_embeds") else None


def _before_zeros(tokens: torch.Tensor, extra: Mapping[str, Any]) -> int | None:
    return extra["t5xxl_ids"].shape[-1] if "t5xxl_ids" in extra else None


def _anima_before(model: Any, given: Mapping[str, Any]) -> None:
    if given.get("t5xxl_ids") is not None:  # ComfyUI does so outside of inference mode
        raise ValueError("Anima makes its text inside the model while it is trained; it cannot be guided then")


def _krea_unfit(model: Any) -> str | None:
    return None if hasattr(model, "txtfusion") else "it is another model of that name than Krea 2"


def _image_first(model: Any) -> bool:
    return False


def _hunyuan_text_first(model: Any) -> bool:
    return not getattr(model.double_blocks[0], "flipped_img_txt", False)


def _lumina_unfit(model: Any) -> str | None:
    odd = [name for name in ("masked_pad_multiple", "clip_text_pooled_proj") if getattr(model, name, None) is not None]
    return f"it is a variant of Lumina 2 with {' and '.join(odd)}, which these nodes do not know" if odd else None


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
        taps=numbered,
        prepare=_as_a_prompt,
        sees_pads=True,
        encoders=(*T5, "mistral3_24b", "qwen3_4b", "qwen3_8b", "qwen25_7b", "qwen3_2b"),
    ),
    Family(
        "Chroma and Radiance",
        ("Chroma", "ChromaRadiance"),
        "joint",
        _dual_and_single,
        taps=numbered,
        encoders=T5,
    ),
    Family(
        "Qwen-Image (and Edit)",
        ("QwenImageTransformer2DModel",),
        "joint",
        lambda m: len(m.transformer_blocks),
        taps=numbered,
        encoders=("qwen25_7b",),
    ),
    Family(
        "Lumina 2, Z-Image",
        ("NextDiT",),
        "joint",
        lambda m: len(m.layers),
        taps=lumina_stream,
        late=True,
        refines=True,
        before=_lumina_before,
        encoders=("gemma2_2b", "qwen3_4b"),
        unfit=_lumina_unfit,
    ),
    Family(
        "OmniGen2",
        ("OmniGen2Transformer2DModel",),
        "joint",
        lambda m: len(m.layers),
        taps=lumina_stream,
        late=True,
        refines=True,
        encoders=("qwen25_3b",),
    ),
    Family(
        "Krea 2",
        ("SingleStreamDiT",),
        "joint",
        lambda m: len(m.blocks),
        taps=mixed_stream,
        refines=True,
        sees_pads=True,
        encoders=("qwen3vl_4b",),
        unfit=_krea_unfit,
    ),
    Family(
        "HiDream I1",
        ("HiDreamImageTransformer2DModel",),
        "joint",
        lambda m: len(m.double_stream_blocks) + len(m.single_stream_blocks),
        taps=hidream_stream,
        encoders=("g l llama t5xxl",),
        text_first=_image_first,
    ),
    Family(
        "ERNIE-Image",
        ("ErnieImageModel",),
        "joint",
        lambda m: len(m.layers),
        taps=ernie_stream,
        sees_pads=True,
        encoders=("ministral3_3b",),
        text_first=_image_first,
    ),
    Family(
        "HunyuanVideo and 1.5, HunyuanImage 2.1",
        ("HunyuanVideo",),
        "joint",
        _dual_and_single,
        taps=mixed_stream,
        refines=True,
        encoders=("l llama", "qwen25_7b"),
        text_first=_hunyuan_text_first,
    ),
    Family(
        "Wan 2.1 and 2.2 (text, image, VACE, camera, animate, speech)",
        ("WanModel", "VaceWanModel", "CameraWanModel", "AnimateWanModel", "WanModel_S2V"),
        "cross",
        lambda m: len(m.blocks) + len(getattr(m, "vace_blocks", ())),
        taps=wan_reference,
        before=_wan_before,
        encoders=("umt5xxl",),
    ),
    Family("LTX-Video", ("LTXVModel",), "cross", lambda m: len(m.transformer_blocks), encoders=T5),
    Family(
        "LTX-2, LTX-2.3",
        ("LTXAVModel",),
        "cross",
        lambda m: 2 * len(m.transformer_blocks),
        taps=two_texts,
        prepare=_as_a_prompt,
        real=_before_registers,
        streams=("video", "audio"),
        encoders=("gemma3_12b", "gemma4"),
    ),
    Family(
        "Anima",
        ("Anima",),
        "cross",
        lambda m: len(m.blocks),
        prepare=_as_a_prompt,
        real=_before_zeros,
        before=_anima_before,
        encoders=("qwen3_06b t5xxl",),
    ),
)

#: Models that are asked for and cannot be guided: class name -> why.
REFUSED = {
    "HiDreamO1Transformer": "its text comes as token numbers that it embeds itself, not as a conditioning",
}


def supported() -> str:
    """What can be guided, in words."""
    return "; ".join(family.name for family in FAMILIES)


def family_of(model: Any) -> Family:
    """The family of a ComfyUI diffusion model.

    Raises:
        ValueError: there is none, or this very model cannot be guided; the message names it and lists what can.
    """
    name = type(model).__name__
    found = next((family for family in FAMILIES if name in family.models), None)
    reason = REFUSED.get(name) if found is None else found.unfit(model)
    if found is None or reason:
        raise ValueError(f"{name} cannot be guided{f': {reason}' if reason else ''}; supported: {supported()}")
    return found


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
