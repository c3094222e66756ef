"""Settings for the models people ask for, each number with the place it comes from.

None of these settings was measured in this project: no weights of these models were at hand. A number is either
published (by the authors of VSF, on the model's card, in the documentation of diffusers), or a starting point that
says of itself that it is one. Torch-free, so that a command line can list it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .guidance import VSF

__all__ = ["PRESETS", "LoRA", "Preset", "SchedulerChange"]

README = "published: README of weathon/VSF"
DIFFUSERS = "documentation of diffusers"
DEFAULT = "default of the pipeline class in diffusers 0.42"
OFF = "what switches the pipeline's own classifier-free guidance off"


def card(repo: str) -> str:
    """Where a number comes from: the card of a model."""
    return f"model card of {repo}"


def guess(like: str) -> str:
    """Where a number comes from: nowhere, it is where to start."""
    return f"not measured: a starting point, as for {like}"


@dataclass(frozen=True)
class LoRA:
    """A LoRA from a hub: repository, file, strength; `second`: for the second transformer of a Wan 2.2 pipeline."""

    repo: str
    file: str
    strength: float = 1.0
    second: bool = False


@dataclass(frozen=True)
class SchedulerChange:
    """A scheduler class of diffusers, made from the pipeline's own configuration with these entries changed."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """One model with its settings.

    `guidance_scale` is the pipeline's own (0 or 1 is off; an embedded guidance, as that of Flux-dev, may be more).
    `call` holds further arguments of the pipeline. `few_step` is False for models that are not distilled: they run,
    but without classifier-free guidance their pictures are worse than their authors meant. `needs_image`: the pipeline
    edits a picture, or sets one in motion: `vsf generate --image`. `source` says for every number where it comes from.
    """

    name: str
    checkpoint: str
    pipeline: str
    steps: int
    guidance_scale: float
    scale: float
    offset: float
    source: Mapping[str, str]
    layout: Literal["paper", "upstream"] = "paper"
    loras: tuple[LoRA, ...] = ()
    scheduler: SchedulerChange | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    video: bool = False
    fps: int = 16
    few_step: bool = True
    needs_image: bool = False
    note: str = ""

    def guidance(self) -> VSF:
        """The recommended method."""
        from .guidance import VSF

        return VSF(self.scale, self.offset, self.layout)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""

        def plain(value: Any) -> Any:
            if isinstance(value, (LoRA, SchedulerChange)):
                return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
            if isinstance(value, Mapping):
                return {k: plain(v) for k, v in value.items()}
            return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

        return {f.name: plain(getattr(self, f.name)) for f in fields(self)}

    def prepare(self, pipe: Any, loras: bool = True, download: bool = False) -> None:
        """Give a loaded pipeline the preset's scheduler and (unless `loras` is False) LoRAs.

        LoRA files are looked up in the local cache, and on the network only if `download`. Safetensors only.

        Raises:
            ValueError: the pipeline takes no LoRA, or a LoRA cannot be read.
        """
        if self.scheduler is not None:
            import diffusers

            kind = getattr(diffusers, self.scheduler.name)
            pipe.scheduler = kind.from_config(pipe.scheduler.config, **self.scheduler.config)
        if not loras or not self.loras:
            return
        if not hasattr(pipe, "load_lora_weights"):
            raise ValueError(f"{type(pipe).__name__} takes no LoRA, but the preset {self.name} has one")
        for number, lora in enumerate(self.loras):
            second = {"load_into_transformer_2": True} if lora.second else {}
            try:
                pipe.load_lora_weights(
                    lora.repo,
                    weight_name=lora.file,
                    adapter_name=f"preset_{number}",
                    local_files_only=not download,
                    use_safetensors=True,
                    **second,
                )
            except Exception as error:  # whatever the readers raise
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ValueError(f"the LoRA {lora.repo}/{lora.file} of the preset cannot be read: {first}") from error
        for model, second in (("transformer", False), ("unet", False), ("transformer_2", True)):
            own = {f"preset_{i}": lo.strength for i, lo in enumerate(self.loras) if lo.second == second}
            part = getattr(pipe, model, None)
            if own and part is not None:
                part.set_adapters(list(own), list(own.values()))


def _source(steps: str, guidance_scale: str, scale: str, offset: str, **more: str) -> dict[str, str]:
    return {"steps": steps, "guidance_scale": guidance_scale, "scale": scale, "offset": offset, **more}


def _guessed(steps: str, guidance_scale: str, like: str, **more: str) -> dict[str, str]:
    return _source(steps, guidance_scale, guess(like), guess(like), **more)


_SD35 = "SD3.5-large-turbo in the layout of the paper (weaker than published 3.5, which is upstream's layout)"
_WAN = "Wan 2.1 1.3B with CausVid"
_SDXL = "Wan 2.1 1.3B with CausVid, the only cross-attention model with published settings"
_NOT_DISTILLED = "not a few-step model: it was made to run with classifier-free guidance"
_WAN14 = "Wan 2.1 14B with lightx2v"
_KIJAI = "Kijai/WanVideo_comfy"
_LIGHTNING = "README of ModelTC/Qwen-Image-Lightning"
_XL = "stabilityai/stable-diffusion-xl-base-1.0"
#: shift 3 in training: README of lightx2v/Qwen-Image-Lightning; log(3) = 1.0986...
_LOG3 = 1.0986122886681098
_QWEN_SCHEDULER = SchedulerChange(
    "FlowMatchEulerDiscreteScheduler",
    {
        "base_image_seq_len": 256, "base_shift": _LOG3, "max_image_seq_len": 8192, "max_shift": _LOG3,
        "num_train_timesteps": 1000, "shift": 1.0, "shift_terminal": None, "time_shift_type": "exponential",
        "use_dynamic_shifting": True,
    },
)  # fmt: skip

_ALL = (
    Preset(
        "sd3.5-large-turbo",
        "stabilityai/stable-diffusion-3.5-large-turbo",
        "StableDiffusion3Pipeline",
        steps=8,
        guidance_scale=0.0,
        scale=3.5,
        offset=0.1,
        layout="upstream",
        source=_source(README, README, README, README),
        note="the paper's evaluation used scale 3.3 and 3.8 with offset 0.2",
    ),
    Preset(
        "sd3.5-medium-turbo",
        "stabilityai/stable-diffusion-3.5-medium",
        "StableDiffusion3Pipeline",
        steps=8,
        guidance_scale=1.0,
        scale=3.5,
        offset=0.1,
        layout="upstream",
        loras=(LoRA("tensorart/stable-diffusion-3.5-medium-turbo", "lora_sd3.5m_turbo_8steps.safetensors"),),
        source=_guessed(
            "name of the LoRA file in tensorart/stable-diffusion-3.5-medium-turbo",
            OFF,
            "SD3.5-large-turbo",
            lora="file list of tensorart/stable-diffusion-3.5-medium-turbo; strength 1 is the default of diffusers",
        ),
    ),
    Preset(
        "sd3.5-medium",
        "stabilityai/stable-diffusion-3.5-medium",
        "StableDiffusion3Pipeline",
        steps=40,
        guidance_scale=1.0,
        scale=3.5,
        offset=0.1,
        layout="upstream",
        few_step=False,
        source=_guessed(card("stabilityai/stable-diffusion-3.5-medium"), OFF, "SD3.5-large-turbo"),
        note=_NOT_DISTILLED,
    ),
    Preset(
        "flux-schnell",
        "black-forest-labs/FLUX.1-schnell",
        "FluxPipeline",
        steps=8,
        guidance_scale=0.0,
        scale=6.0,
        offset=0.1,
        layout="upstream",
        call={"max_sequence_length": 256},
        source=_source(
            README,
            README,
            "published: README of weathon/VSF, whose code reaches 19 of the 57 blocks; here all are guided, so expect more",
            "not measured: the published code ignores it for Flux; as for SD3.5-large-turbo",
            max_sequence_length=README,
        ),
        note="the README also shows scale 3.5 and 4",
    ),
    Preset(
        "flux-dev",
        "black-forest-labs/FLUX.1-dev",
        "FluxPipeline",
        steps=32,
        guidance_scale=3.5,
        scale=8.0,
        offset=0.1,
        layout="upstream",
        call={"max_sequence_length": 256},
        source=_source(
            README,
            DEFAULT + " (embedded guidance, not classifier-free; the README's example uses 0)",
            "published: README of weathon/VSF, which says that it does not seem to work there; unmeasured with all blocks",
            "not measured: the published code ignores it for Flux; as for SD3.5-large-turbo",
            max_sequence_length=README,
        ),
        note="guidance-distilled, not step-distilled; open problem of the paper",
    ),
    Preset(
        "flux-kontext",
        "black-forest-labs/FLUX.1-Kontext-dev",
        "FluxKontextPipeline",
        steps=28,
        guidance_scale=2.5,
        scale=6.0,
        offset=0.1,
        layout="upstream",
        needs_image=True,
        source=_guessed(DEFAULT, DIFFUSERS + " (embedded guidance)", "Flux-schnell"),
        note="edits a picture; guidance-distilled, not step-distilled",
    ),
    Preset(
        "flux-fill",
        "black-forest-labs/FLUX.1-Fill-dev",
        "FluxFillPipeline",
        steps=50,
        guidance_scale=30.0,
        scale=6.0,
        offset=0.1,
        layout="upstream",
        needs_image=True,
        source=_guessed(DEFAULT, DEFAULT + " (embedded guidance)", "Flux-schnell"),
        note="fills a masked part of a picture; guidance-distilled, not step-distilled",
    ),
    Preset(
        "flux-krea",
        "black-forest-labs/FLUX.1-Krea-dev",
        "FluxPipeline",
        steps=28,
        guidance_scale=4.5,
        scale=6.0,
        offset=0.1,
        layout="upstream",
        source=_guessed(DEFAULT, "as public code sets the embedded guidance of this checkpoint", "Flux-schnell"),
    ),
    Preset(
        "flux2-klein",
        "black-forest-labs/FLUX.2-klein-4B",
        "Flux2KleinPipeline",
        steps=4,
        guidance_scale=1.0,
        scale=2.0,
        offset=0.1,
        source=_guessed("guide of the model at fal.ai: 4 steps", OFF, _SD35),
    ),
    Preset(
        "wan2.1-1.3b-causvid",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "WanPipeline",
        steps=12,
        guidance_scale=0.0,
        scale=1.7,
        offset=0.2,
        loras=(LoRA(_KIJAI, "Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors", 0.5),),
        scheduler=SchedulerChange("UniPCMultistepScheduler", {"flow_shift": 3.0}),
        call={"height": 480, "width": 832, "num_frames": 81},
        video=True,
        fps=15,
        source=_source(
            README, README, README, README, lora=README, flow_shift="published: script of weathon/VSF",
            height=README, width=README, num_frames=README, fps=README,
        ),
        note="published scales go up to 1.9; known there: high contrast in the first frames",
    ),  # fmt: skip
    Preset(
        "wan2.1-14b-lightx2v",
        "Wan-AI/Wan2.1-T2V-14B-Diffusers",
        "WanPipeline",
        steps=6,
        guidance_scale=0.0,
        scale=0.1,
        offset=0.3,
        loras=(LoRA(_KIJAI, "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors"),),
        scheduler=SchedulerChange("UniPCMultistepScheduler", {"flow_shift": 3.0}),
        call={"height": 480, "width": 832, "num_frames": 81},
        video=True,
        fps=15,
        source=_source(
            "published: weathon/VSF, 6 to 12 steps",
            OFF,
            "published: weathon/VSF, 0.1 or less",
            "published: weathon/VSF, bias -0.3",
            lora="file name as public scripts download it; strength 1 is the default of diffusers",
            flow_shift=guess(_WAN),
            height=guess(_WAN),
            width=guess(_WAN),
            num_frames=guess(_WAN),
            fps=guess(_WAN),
        ),
    ),
    Preset(
        "wan2.2-lightx2v",
        "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        "WanPipeline",
        steps=4,
        guidance_scale=1.0,
        scale=0.1,
        offset=0.3,
        loras=(
            LoRA(
                _KIJAI, "LoRAs/Wan22-Lightning/Wan22_A14B_T2V_HIGH_Lightning_4steps_lora_250928_rank128_fp16.safetensors"
            ),
            LoRA(
                _KIJAI,
                "LoRAs/Wan22-Lightning/Wan22_A14B_T2V_LOW_Lightning_4steps_lora_250928_rank64_fp16.safetensors",
                second=True,
            ),
        ),
        call={"height": 480, "width": 832, "num_frames": 81},
        video=True,
        source=_guessed(
            "name of the LoRA: 4 steps",
            OFF,
            "Wan 2.1 14B with lightx2v",
            lora="file names as public scripts download them; strength 1 is the default of diffusers",
            height=guess(_WAN),
            width=guess(_WAN),
            num_frames=guess(_WAN),
            fps="example of WanPipeline in diffusers",
        ),
        note="two transformers, one LoRA each; both are guided",
    ),
    Preset(
        "wan2.1-i2v-lightx2v",
        "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        "WanImageToVideoPipeline",
        steps=4,
        guidance_scale=1.0,
        scale=0.1,
        offset=0.3,
        loras=(LoRA("lightx2v/Wan2.1-Distill-Loras", "wan2.1_i2v_lora_rank64_lightx2v_4step.safetensors"),),
        call={"height": 480, "width": 832, "num_frames": 81},
        video=True,
        needs_image=True,
        source=_guessed(
            "name of the LoRA file: 4 steps", OFF, _WAN14,
            lora="file list of lightx2v/Wan2.1-Distill-Loras; strength 1 is the default of diffusers", height=DEFAULT,
            width=DEFAULT, num_frames=DEFAULT, fps="example of WanImageToVideoPipeline in diffusers",
        ),
        note="only the attention over the text is guided, not that over the picture",
    ),  # fmt: skip
    Preset(
        "wan2.2-i2v-lightx2v",
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        "WanImageToVideoPipeline",
        steps=4,
        guidance_scale=1.0,
        scale=0.1,
        offset=0.3,
        loras=(
            LoRA(
                "lightx2v/Wan2.2-Distill-Loras", "wan2.2_i2v_A14b_high_noise_lora_rank64_lightx2v_4step_1022.safetensors"
            ),
            LoRA(
                "lightx2v/Wan2.2-Distill-Loras",
                "wan2.2_i2v_A14b_low_noise_lora_rank64_lightx2v_4step_1022.safetensors",
                second=True,
            ),
        ),
        call={"height": 480, "width": 832, "num_frames": 81},
        video=True,
        needs_image=True,
        source=_guessed(
            "name of the LoRA files: 4 steps", OFF, _WAN14,
            lora="file names as public scripts download them; strength 1 is the default of diffusers", height=DEFAULT,
            width=DEFAULT, num_frames=DEFAULT, fps="example of WanImageToVideoPipeline in diffusers",
        ),
        note="two transformers, one LoRA each; both are guided",
    ),  # fmt: skip
    Preset(
        "wan2.1-vace-1.3b",
        "Wan-AI/Wan2.1-VACE-1.3B-diffusers",
        "WanVACEPipeline",
        steps=12,
        guidance_scale=1.0,
        scale=1.7,
        offset=0.2,
        loras=(LoRA(_KIJAI, "Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors", 0.5),),
        scheduler=SchedulerChange("UniPCMultistepScheduler", {"flow_shift": 3.0}),
        call={"height": 480, "width": 832, "num_frames": 81},
        video=True,
        source=_guessed(
            guess(_WAN), OFF, _WAN, lora=guess(_WAN), flow_shift="example of WanVACEPipeline in diffusers: 3 for 480p",
            height=DEFAULT, width=DEFAULT, num_frames=DEFAULT, fps="example of WanVACEPipeline in diffusers",
        ),
        note="from text alone with vsf generate; video, mask and reference images from Python",
    ),  # fmt: skip
    Preset(
        "hunyuan-video",
        "hunyuanvideo-community/HunyuanVideo",
        "HunyuanVideoPipeline",
        steps=30,
        guidance_scale=6.0,
        scale=2.0,
        offset=0.1,
        call={"height": 320, "width": 512, "num_frames": 61},
        video=True,
        fps=15,
        source=_guessed(
            "example of HunyuanVideoPipeline in diffusers", DEFAULT + " (embedded guidance)", _SD35,
            height="example of HunyuanVideoPipeline in diffusers", width="example of HunyuanVideoPipeline in diffusers",
            num_frames="example of HunyuanVideoPipeline in diffusers", fps="example of HunyuanVideoPipeline in diffusers",
        ),
        note="guidance-distilled, not step-distilled",
    ),  # fmt: skip
    Preset(
        "fast-hunyuan",
        "FastVideo/FastHunyuan-diffusers",
        "HunyuanVideoPipeline",
        steps=6,
        guidance_scale=6.0,
        scale=2.0,
        offset=0.1,
        scheduler=SchedulerChange("FlowMatchEulerDiscreteScheduler", {"shift": 17.0}),
        call={"height": 720, "width": 1280, "num_frames": 125},
        video=True,
        fps=24,
        source=_guessed(
            card("FastVideo/FastHunyuan"), "scripts of hao-ai-lab/FastVideo (embedded guidance); the card asks for 6 or more",
            _SD35, scheduler=card("FastVideo/FastHunyuan"), height=card("FastVideo/FastHunyuan"),
            width=card("FastVideo/FastHunyuan"), num_frames=card("FastVideo/FastHunyuan"),
            fps="scripts of hao-ai-lab/FastVideo",
        ),
    ),  # fmt: skip
    Preset(
        "qwen-image-edit-lightning",
        "Qwen/Qwen-Image-Edit",
        "QwenImageEditPipeline",
        steps=8,
        guidance_scale=1.0,
        scale=2.0,
        offset=0.1,
        loras=(LoRA("lightx2v/Qwen-Image-Lightning", "Qwen-Image-Edit-Lightning-8steps-V1.0.safetensors"),),
        scheduler=_QWEN_SCHEDULER,
        call={"true_cfg_scale": 1.0},
        needs_image=True,
        source=_guessed(
            _LIGHTNING, "without meaning for this model", _SD35, true_cfg_scale=_LIGHTNING, lora=_LIGHTNING,
            scheduler=card("lightx2v/Qwen-Image-Lightning"),
        ),
    ),  # fmt: skip
    Preset(
        "qwen-image-edit-2509-lightning",
        "Qwen/Qwen-Image-Edit-2509",
        "QwenImageEditPlusPipeline",
        steps=8,
        guidance_scale=1.0,
        scale=2.0,
        offset=0.1,
        loras=(
            LoRA(
                "lightx2v/Qwen-Image-Lightning",
                "Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-8steps-V1.0-fp32.safetensors",
            ),
        ),
        scheduler=_QWEN_SCHEDULER,
        call={"true_cfg_scale": 1.0},
        needs_image=True,
        source=_guessed(
            _LIGHTNING, "without meaning for this model", _SD35, true_cfg_scale=_LIGHTNING, lora=_LIGHTNING,
            scheduler=card("lightx2v/Qwen-Image-Lightning"),
        ),
    ),  # fmt: skip
    Preset(
        "qwen-image-lightning",
        "Qwen/Qwen-Image",
        "QwenImagePipeline",
        steps=8,
        guidance_scale=1.0,
        scale=2.0,
        offset=0.1,
        loras=(LoRA("lightx2v/Qwen-Image-Lightning", "Qwen-Image-Lightning-8steps-V1.0.safetensors"),),
        scheduler=_QWEN_SCHEDULER,
        call={"true_cfg_scale": 1.0},
        source=_guessed(
            "name of the LoRA file: 8 steps", "without meaning for this model", _SD35, true_cfg_scale=OFF,
            lora=card("lightx2v/Qwen-Image-Lightning"), scheduler=card("lightx2v/Qwen-Image-Lightning"),
        ),
    ),  # fmt: skip
    Preset(
        "z-image-turbo",
        "Tongyi-MAI/Z-Image-Turbo",
        "ZImagePipeline",
        steps=8,
        guidance_scale=0.0,
        scale=2.0,
        offset=0.1,
        source=_guessed("example of ZImagePipeline in diffusers", "example of ZImagePipeline in diffusers", _SD35),
    ),
    Preset(
        "chroma",
        "lodestones/Chroma1-HD",
        "ChromaPipeline",
        steps=35,
        guidance_scale=1.0,
        scale=2.0,
        offset=0.1,
        few_step=False,
        source=_guessed(DEFAULT, OFF, _SD35),
        note=_NOT_DISTILLED + "; its few-step relative Chroma1-Flash is no diffusers pipeline",
    ),
    Preset(
        "ltx-distilled",
        "Lightricks/LTX-Video-0.9.7-distilled",
        "LTXConditionPipeline",
        steps=8,
        guidance_scale=1.0,
        scale=1.7,
        offset=0.2,
        call={
            "timesteps": [1000, 993, 987, 981, 975, 909, 725, 0.03], "decode_timestep": 0.05,
            "decode_noise_scale": 0.025, "image_cond_noise_scale": 0.0, "height": 512, "width": 768, "num_frames": 161,
        },
        video=True,
        fps=24,
        source=_guessed(
            DIFFUSERS, DIFFUSERS, _SDXL, timesteps=DIFFUSERS, decode_timestep=DIFFUSERS, decode_noise_scale=DIFFUSERS,
            image_cond_noise_scale=DIFFUSERS, height=DIFFUSERS, width=DIFFUSERS, num_frames=DIFFUSERS, fps=DIFFUSERS,
        ),
    ),  # fmt: skip
    Preset(
        "ltx-2-distilled",
        "rootonchair/LTX-2-19b-distilled",
        "LTX2Pipeline",
        steps=8,
        guidance_scale=1.0,
        scale=1.7,
        offset=0.2,
        call={
            "sigmas": [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875], "audio_guidance_scale": 1.0,
            "stg_scale": 0.0, "audio_stg_scale": 0.0, "modality_scale": 1.0, "audio_modality_scale": 1.0,
            "height": 512, "width": 768, "num_frames": 121,
        },
        video=True,
        fps=24,
        source=_guessed(
            DIFFUSERS, DIFFUSERS, _SDXL, sigmas=DIFFUSERS + " (DISTILLED_SIGMA_VALUES)", audio_guidance_scale=OFF, stg_scale=OFF,
            audio_stg_scale=OFF, modality_scale=OFF, audio_modality_scale=OFF, height=DIFFUSERS, width=DIFFUSERS,
            num_frames=DIFFUSERS, fps=DIFFUSERS,
        ),
        note="the sound is guided as well, but not written by vsf generate",
    ),  # fmt: skip
    Preset(
        "sd-turbo",
        "stabilityai/sd-turbo",
        "StableDiffusionPipeline",
        steps=4,
        guidance_scale=0.0,
        scale=1.7,
        offset=0.2,
        call={"height": 512, "width": 512},
        source=_guessed(
            card("stabilityai/sd-turbo") + ", 1 to 4", card("stabilityai/sd-turbo"), _SDXL,
            height=card("stabilityai/sd-turbo"), width=card("stabilityai/sd-turbo"),
        ),
    ),  # fmt: skip
    Preset(
        "sd1.5-lcm",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "StableDiffusionPipeline",
        steps=4,
        guidance_scale=1.0,
        scale=1.7,
        offset=0.2,
        loras=(LoRA("latent-consistency/lcm-lora-sdv1-5", "pytorch_lora_weights.safetensors"),),
        scheduler=SchedulerChange("LCMScheduler"),
        source=_guessed(
            card("latent-consistency/lcm-lora-sdv1-5") + ", 2 to 8",
            card("latent-consistency/lcm-lora-sdv1-5") + ", off or 1 to 2", _SDXL, lora="default file name of diffusers",
            scheduler=card("latent-consistency/lcm-lora-sdv1-5"),
        ),
    ),  # fmt: skip
    Preset(
        "sdxl-turbo",
        "stabilityai/sdxl-turbo",
        "StableDiffusionXLPipeline",
        steps=4,
        guidance_scale=0.0,
        scale=1.7,
        offset=0.2,
        call={"height": 512, "width": 512},
        source=_guessed(
            card("stabilityai/sdxl-turbo") + ", 1 to 4", card("stabilityai/sdxl-turbo"), _SDXL,
            height=card("stabilityai/sdxl-turbo"), width=card("stabilityai/sdxl-turbo"),
        ),
    ),  # fmt: skip
    Preset(
        "sdxl-lightning",
        _XL,
        "StableDiffusionXLPipeline",
        steps=4,
        guidance_scale=0.0,
        scale=1.7,
        offset=0.2,
        loras=(LoRA("ByteDance/SDXL-Lightning", "sdxl_lightning_4step_lora.safetensors"),),
        scheduler=SchedulerChange("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        source=_guessed(
            card("ByteDance/SDXL-Lightning"), card("ByteDance/SDXL-Lightning"), _SDXL,
            lora=card("ByteDance/SDXL-Lightning") + ", which prefers its full UNet", scheduler=card("ByteDance/SDXL-Lightning"),
        ),
    ),  # fmt: skip
    Preset(
        "sdxl-lcm",
        _XL,
        "StableDiffusionXLPipeline",
        steps=4,
        guidance_scale=1.0,
        scale=1.7,
        offset=0.2,
        loras=(LoRA("latent-consistency/lcm-lora-sdxl", "pytorch_lora_weights.safetensors"),),
        scheduler=SchedulerChange("LCMScheduler"),
        source=_guessed(
            card("latent-consistency/lcm-sdxl") + ", 2 to 8", card("latent-consistency/lcm-sdxl") + ", off or 1 to 2", _SDXL,
            lora="default file name of diffusers", scheduler=card("latent-consistency/lcm-sdxl"),
        ),
    ),  # fmt: skip
    Preset(
        "sdxl-dmd2",
        _XL,
        "StableDiffusionXLPipeline",
        steps=4,
        guidance_scale=0.0,
        scale=1.7,
        offset=0.2,
        loras=(LoRA("tianweiy/DMD2", "dmd2_sdxl_4step_lora_fp16.safetensors"),),
        scheduler=SchedulerChange("LCMScheduler"),
        call={"timesteps": [999, 749, 499, 249]},
        source=_guessed(
            card("tianweiy/DMD2"), card("tianweiy/DMD2"), _SDXL, lora=card("tianweiy/DMD2"),
            scheduler=card("tianweiy/DMD2"), timesteps=card("tianweiy/DMD2"),
        ),
    ),  # fmt: skip
    Preset(
        "sana-sprint",
        "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
        "SanaSprintPipeline",
        steps=2,
        guidance_scale=4.5,
        scale=1.7,
        offset=0.2,
        source=_guessed(DEFAULT, DEFAULT + " (embedded guidance)", _SDXL),
    ),
    Preset(
        "pixart-lcm",
        "PixArt-alpha/PixArt-LCM-XL-2-1024-MS",
        "PixArtAlphaPipeline",
        steps=4,
        guidance_scale=0.0,
        scale=1.7,
        offset=0.2,
        source=_guessed("as public front ends set it for this checkpoint", OFF, _SDXL),
    ),
    Preset(
        "cogview4",
        "THUDM/CogView4-6B",
        "CogView4Pipeline",
        steps=50,
        guidance_scale=1.0,
        scale=2.0,
        offset=0.1,
        few_step=False,
        source=_guessed(DEFAULT, OFF, _SD35),
        note=_NOT_DISTILLED,
    ),
    Preset(
        "lumina2",
        "Alpha-VLLM/Lumina-Image-2.0",
        "Lumina2Pipeline",
        steps=30,
        guidance_scale=1.0,
        scale=2.0,
        offset=0.1,
        few_step=False,
        source=_guessed(DEFAULT, OFF, _SD35),
        note=_NOT_DISTILLED,
    ),
    Preset(
        "longcat-image",
        "meituan-longcat/LongCat-Image",
        "LongCatImagePipeline",
        steps=50,
        guidance_scale=1.0,
        scale=2.0,
        offset=0.1,
        few_step=False,
        source=_guessed("example of LongCatImagePipeline in diffusers", OFF, _SD35),
        note=_NOT_DISTILLED,
    ),
    Preset(
        "ovis-image",
        "AIDC-AI/Ovis-Image-7B",
        "OvisImagePipeline",
        steps=50,
        guidance_scale=1.0,
        scale=2.0,
        offset=0.1,
        few_step=False,
        source=_guessed("example of OvisImagePipeline in diffusers", OFF, _SD35),
        note=_NOT_DISTILLED,
    ),
    Preset(
        "bria-3.2",
        "briaai/BRIA-3.2",
        "BriaPipeline",
        steps=30,
        guidance_scale=1.0,
        scale=2.0,
        offset=0.1,
        few_step=False,
        source=_guessed(DEFAULT, OFF, _SD35),
        note=_NOT_DISTILLED,
    ),
)

#: All presets by name.
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}
