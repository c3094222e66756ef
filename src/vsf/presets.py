"""Settings for the models people ask for, each number with the place it comes from: `presets.toml`, read and applied.

Torch-free, so that a command line can list it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from .files import read_toml
from .grammar import first_line

if TYPE_CHECKING:
    from .guidance import VSF

__all__ = ["PRESETS", "LoRA", "Preset", "SchedulerChange"]


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
        return json.loads(json.dumps(asdict(self)))

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
                what = f"the LoRA {lora.repo}/{lora.file} of the preset"
                raise ValueError(f"{what} cannot be read: {first_line(error)}") from error
        for model, second in (("transformer", False), ("unet", False), ("transformer_2", True)):
            own = {f"preset_{i}": lo.strength for i, lo in enumerate(self.loras) if lo.second == second}
            part = getattr(pipe, model, None)
            if own and part is not None:
                part.set_adapters(list(own), list(own.values()))


def _preset(row: dict[str, Any], sources: Mapping[str, str], schedulers: Mapping[str, Any]) -> Preset:
    """A preset from its table: names of schedulers and sources looked up, `"several, numbers"` of one source parted."""
    given = {name: sources.get(text, text) for names, text in row["source"].items() for name in names.split(", ")}
    scheduler = schedulers[row["scheduler"]] if "scheduler" in row else None
    if scheduler is not None:  # TOML has no null
        config = {k: None if v == "none" else v for k, v in scheduler.get("config", {}).items()}
        scheduler = SchedulerChange(scheduler["name"], config)
    loras = tuple(LoRA(**lora) for lora in row.get("loras", ()))
    return Preset(**{**row, "source": given, "scheduler": scheduler, "loras": loras})


def _read() -> dict[str, Preset]:
    data = read_toml((files("vsf") / "presets.toml").read_text("utf-8"))
    return {row["name"]: _preset(row, data["sources"], data["schedulers"]) for row in data["preset"]}


#: All presets by name.
PRESETS: dict[str, Preset] = _read()
