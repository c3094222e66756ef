"""One way to a pipeline: an embedded model, a preset, a folder, or an id. Torch is imported when something is loaded."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .grammar import first_line, unknown
from .libraries import offline_unless, quiet_libraries

if TYPE_CHECKING:
    import torch

    from .demo.models import DemoModel
    from .guidance import Guidance
    from .presets import Preset

__all__ = ["DEMO", "DTYPES", "ModelError", "OtherPipeline", "load_model", "named", "recommended", "usable_device"]

#: The model where none is named.
DEMO = "demo"
DTYPES = ("float32", "bfloat16", "float16")


class ModelError(RuntimeError):
    """A model is missing, or cannot be read."""


class OtherPipeline(UserWarning):
    """The model that was given in the place of a preset's own is of another kind."""


def named(model: str) -> DemoModel | Preset | None:
    """The record of an embedded model or a preset: steps, guidance_scale, call, video, fps; None for a folder or an id."""
    from .demo.models import MODELS
    from .presets import PRESETS

    return MODELS.get(model) or PRESETS.get(model)


def recommended(model: str) -> Guidance | None:
    """What guides an embedded model or a preset where nothing else is asked for; None for a folder or an id."""
    from .presets import Preset

    known = named(model)
    return known.guidance() if isinstance(known, Preset) else None if known is None else known.recommended


def load_model(
    model: str = DEMO,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    download: bool = False,
    revision: str | None = None,
    path: str | Path | None = None,
    loras: bool = True,
) -> Any:
    """A diffusers pipeline: an embedded model ("demo"), a preset (with its scheduler and LoRA), a folder, or an id.

    `device` None takes CUDA where it is there; `dtype` None takes bfloat16 on CUDA, float32 elsewhere and for
    embedded models. An id is looked up in the local cache, and on the network only if `download`; `revision` is a branch, tag or
    commit of it. `path`: a folder in the place of a preset's checkpoint. `loras` False leaves a preset's LoRA out.
    Safetensors weights only. The libraries' own notices are switched off, and an embedded model on a CPU sets torch to one
    thread, for all of the process, unless OMP_NUM_THREADS is set.

    Raises:
        ModelError: the model is missing or cannot be read, or the device is not there.
        ValueError: there is no such dtype, or the preset's LoRA cannot be read.

    Warns:
        OtherPipeline: `path` holds another kind of pipeline than the preset's.
    """
    offline_unless(download)
    import torch

    from .presets import PRESETS

    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not isinstance(kind, torch.dtype):
        raise ValueError(unknown("dtype", dtype, DTYPES))
    quiet_libraries()
    place = usable_device(device)
    from .demo.models import MODELS, DemoModelError

    if model in MODELS:
        # It is too small to gain by a second thread, which would make every operation wait where a core is busy.
        if place.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)
        try:
            return MODELS[model].load(kind, place)
        except DemoModelError as error:
            raise ModelError(first_line(error)) from error
    preset = PRESETS.get(model)
    where = str(path or (preset.checkpoint if preset else model))
    pipe = _read(where, place, kind, download, revision)
    if preset is not None:
        if type(pipe).__name__ != preset.pipeline:
            warnings.warn(
                f"the preset {preset.name} is for {preset.pipeline}; this is {type(pipe).__name__}", OtherPipeline, 2
            )
        preset.prepare(pipe, loras, download)
    return pipe


def usable_device(device: str | None = None) -> torch.device:
    """A device by its name, None being CUDA where it is there. Raises ModelError where nothing can be put on it."""
    import torch

    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that was not built in
        raise ModelError(f"device {device!r} is not usable here: {first_line(error)}") from error
    return place


def _read(where: str, place: torch.device, kind: torch.dtype | None, download: bool, revision: str | None) -> Any:
    import torch

    folder = Path(where)
    is_folder = folder.is_dir()
    if is_folder and not (folder / "model_index.json").is_file():
        raise ModelError(f"the folder {where} holds no model_index.json, so it is no diffusers pipeline")
    if is_folder and (lacks := _lacks(folder)):
        raise ModelError(f"the model in {where} is not whole: {lacks}")
    if not is_folder and (folder.is_absolute() or where.count("/") != 1 or where.startswith((".", "~"))):
        raise ModelError(f"no model folder {where}; give a folder, an id such as owner/name, or {DEMO!r}")
    from diffusers import DiffusionPipeline

    if kind is None:
        kind = torch.bfloat16 if place.type == "cuda" else torch.float32
    try:
        pipe = DiffusionPipeline.from_pretrained(
            where,
            dtype=kind,
            local_files_only=is_folder or not download,
            use_safetensors=True,
            **({} if revision is None else {"revision": revision}),
        )
        pipe.to(place)
    except Exception as error:  # whatever the readers raise: safetensors, json, OSError, KeyError, ValueError
        if not is_folder and not download:
            raise ModelError(
                f"no model folder {where}, and no such model in the local cache; add --download to fetch it"
            ) from error
        raise ModelError(f"the model in {where} cannot be read: {first_line(error)}") from error
    return pipe


#: A tokenizer needs one of these to know any word.
_VOCABULARY = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)


def _lacks(folder: Path) -> str | None:
    """What a saved pipeline says it has and does not: the libraries' own words for it name no file."""
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        # Everything else in it are settings, or parts that were left out ([null, null]).
        parts = {k: v for k, v in index.items() if isinstance(v, list) and [type(x) for x in v] == [str, str]}
    except (OSError, ValueError, AttributeError):
        return "its model_index.json cannot be read"
    for name, (_, kind) in parts.items():
        files = {f.name for f in (folder / name).iterdir()} if (folder / name).is_dir() else None
        if files is None:
            return f"the folder {name} ({kind}) is missing"
        if "Scheduler" in kind:
            needed = "scheduler_config.json"
        elif "Tokenizer" in kind:
            if not files & set(_VOCABULARY):
                return f"{name} ({kind}) has none of {', '.join(_VOCABULARY)}"
            needed = "tokenizer_config.json"
        elif any(word in kind for word in ("Processor", "Extractor", "Checker")):
            continue
        else:
            if not any(f.endswith(".safetensors") for f in files):
                return f"{name} ({kind}) has no weights (*.safetensors)"
            needed = "config.json"
        if needed not in files:
            return f"{name}/{needed} is missing"
    return None
