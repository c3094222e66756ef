"""What the page knows of its model before it is loaded: what it draws, its presets, and its limits."""

from __future__ import annotations

import gc
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..demo.models import MODELS
from ..draw import schedule_of
from ..guidance import METHODS, Guidance
from ..loading import DEMO, ModelError
from ..presets import PRESETS
from ..sizes import Sizes

if TYPE_CHECKING:
    from ..demo.models import DemoModel
    from ..presets import Preset

__all__ = ["Choice", "Limits", "Options", "PageModel", "describe_model", "load"]


@dataclass(frozen=True)
class Options:
    """What `vsf ui` was started with; the names are those of its options."""

    model: str = DEMO
    device: str | None = None
    dtype: str | None = None
    download: bool = False
    model_path: str | None = None
    no_lora: bool = False
    label: str | None = None

    @property
    def preset(self) -> Preset | None:
        """The preset that `model` names, if it names one."""
        return PRESETS.get(self.model)


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask of one request."""

    steps: int = 50
    pictures: int = 8
    side: int = 2048
    frames: int = 257
    characters: int = 500


@dataclass(frozen=True)
class Choice:
    """One entry of the preset list: the method with its knobs, and the steps (None: as they are)."""

    name: str
    guidance: Guidance
    steps: int | None = None


@dataclass(frozen=True)
class PageModel:
    """A model as the page sees it: `record` where it is an embedded one.

    `extra` are further arguments of the pipeline, `fps` is for videos.
    """

    name: str
    record: DemoModel | None
    video: bool
    steps: int
    guidance_scale: float
    defaults: Mapping[str, Guidance]
    choices: tuple[Choice, ...]
    sizes: tuple[str, ...]
    allowed: Sizes = Sizes()
    extra: Mapping[str, Any] = field(default_factory=dict)
    own_steps: int | None = None  # the steps that `timesteps` in `extra` were made for
    fps: int = 16
    methods: tuple[str, ...] = tuple(METHODS)
    limits: Limits = Limits()

    def extra_for(self, steps: int) -> dict[str, Any]:
        """The pipeline's further arguments; a fixed schedule goes with its own number of steps only."""
        return schedule_of(self.extra, self.own_steps, steps)


def _embedded(record: DemoModel) -> PageModel:
    best = record.recommended
    choices = (
        Choice(f"{best.label.upper()}, recommended", best, record.steps),
        Choice(f"{record.strong.label.upper()}, strong", record.strong, record.steps),
        *(Choice(f"{label.upper()}, tuned here", guidance, record.steps) for label, guidance in record.tuned.items()),
    )
    return PageModel(
        record.title,
        record,
        record.video,
        record.steps,
        record.guidance_scale,
        {**_plain_defaults(), **record.tuned, best.label: best},
        choices,
        record.sizes,
        Sizes(record.multiple, record.largest),
        record.call,
        record.steps,
        record.fps or PageModel.fps,
    )


def _plain_defaults() -> dict[str, Guidance]:
    return {label: method() for label, method in METHODS.items()}


def describe_model(options: Options) -> PageModel:
    """The page's view of a model; reads the pipeline's name, not its weights.

    Raises:
        ModelError: no such model here, or one that this page cannot draw with.
    """
    if options.model in MODELS:
        return _embedded(MODELS[options.model])
    preset = options.preset
    if preset is not None and preset.needs_image:
        raise ModelError(f"{preset.name} edits a picture, which the page cannot give it; use it from Python")
    where = options.model_path or (preset.checkpoint if preset else options.model)
    name = _pipeline_name(where, options.download) or (preset.pipeline if preset else "")
    video = preset.video if preset else "num_frames" in _arguments(name)
    defaults = _plain_defaults()
    near = [preset] if preset else [p for p in PRESETS.values() if options.model == p.checkpoint or name == p.pipeline]
    choices = tuple(Choice(p.name, p.guidance(), p.steps) for p in near if p.video == video)
    if preset is not None:
        defaults["vsf"] = preset.guidance()
    sides = ("512x512", "768x768", "1024x1024", "1024x768", "768x1024")
    return PageModel(
        options.model if preset else Path(options.model).name,
        None,
        video,
        preset.steps if preset else 8,
        preset.guidance_scale if preset else 0.0,
        defaults,
        choices,
        ("832x480", "480x832") if video else sides,
        Sizes(8, Limits.side),
        dict(preset.call) if preset else {},
        preset.steps if preset else None,
        preset.fps if preset else 16,
    )


def _arguments(pipeline: str) -> Mapping[str, Any]:
    import diffusers

    kind = getattr(diffusers, pipeline, None)
    return {} if kind is None else inspect.signature(kind.__call__).parameters


def _pipeline_name(where: str, download: bool) -> str | None:
    """The class of the pipeline in a folder or in the local cache; None where only loading it can tell."""
    folder = Path(where)
    index: str | None = str(folder / "model_index.json") if folder.is_dir() else None
    if index is None:
        if folder.is_absolute() or where.count("/") != 1 or where.startswith((".", "~")):
            raise ModelError(
                f"no model folder {where}; give a preset, a folder, an id such as owner/name, or {DEMO!r}"
            )
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(where, "model_index.json")
        index = found if isinstance(found, str) else None
        if index is None and not download:
            raise ModelError(
                f"no model folder {where}, and no such model in the local cache; add --download to fetch it"
            )
        if index is None:
            return None
    try:
        name = json.loads(Path(index).read_text("utf-8"))["_class_name"]
    except FileNotFoundError as error:
        raise ModelError(f"the folder {where} holds no model_index.json, so it is no diffusers pipeline") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the model_index.json of {where} cannot be read") from error
    return str(name)


def load(options: Options) -> Any:
    """The pipeline, as the command line loads it; with all else that is there by then, it is no garbage from now on.

    Libraries and model are 600,000 objects, and a collector that goes through them stops the drawing for a third of a second.

    Raises:
        ModelError, ValueError: it cannot be read; the message is one sentence.
    """
    from ..loading import load_model

    pipe = load_model(
        options.model, options.device, options.dtype, options.download,
        path=options.model_path, loras=not options.no_lora,
    )  # fmt: skip
    gc.collect()
    gc.freeze()
    return pipe
