"""From settings to pictures: load a model, draw without and with the negative from the same noise.

Shared by the command line, the demo and the page; prints nothing.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .guidance import Guidance, NoGuidance

if TYPE_CHECKING:
    import torch

    from .guide import Suppression

__all__ = ["DEMO", "Drawn", "ModelError", "Request", "draw", "is_demo", "load_model", "settings_of"]

#: The name of the embedded model where a folder or an id is asked for.
DEMO = "demo"


class ModelError(RuntimeError):
    """A model is missing, or cannot be read."""


@dataclass(frozen=True)
class Request:
    """What to draw. `negative` None or "": nothing to guide away from. `size` (width, height), None: the model's own.

    Picture i of `n` is drawn from the noise of `seed + i`, whatever `n` is. `extra`: further arguments of the
    pipeline.
    """

    prompt: str
    negative: str | None = None
    guidance: Guidance = NoGuidance()
    steps: int = 8
    seed: int = 0
    n: int = 1
    size: tuple[int, int] | None = None
    guidance_scale: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, low, high in (("steps", 1, 1000), ("n", 1, 256), ("seed", 0, 2**63 - 257)):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; allowed: a whole number from {low} to {high}")
        if self.size is not None and not all(isinstance(s, int) and 8 <= s <= 8192 for s in self.size):
            raise ValueError(f"size is {self.size[0]}x{self.size[1]}; allowed: 8 to 8192 pixels a side")
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; allowed: a number from 0 up")

    @property
    def guided(self) -> bool:
        """Whether anything is guided at all."""
        return bool(self.negative and self.negative.strip()) and self.guidance.negative != "none"


@dataclass(frozen=True)
class Drawn:
    """Pictures of one request, one per seed: `plain` without guidance (empty unless asked for), `guided` as asked.

    A video is the list of its frames.
    """

    guided: list[Any]
    plain: list[Any]
    suppression: Suppression | None


def load_model(
    model: str = DEMO,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    download: bool = False,
    revision: str | None = None,
) -> Any:
    """A diffusers pipeline: the embedded model ("demo"), a folder, or an id.

    `device` None takes CUDA where it is there; `dtype` None takes bfloat16 on CUDA, float32 elsewhere and for the demo
    model. An id is looked up in the local cache, and on the network only if `download`; `revision` is a branch, tag or
    commit of it. Safetensors weights only.

    Raises:
        ModelError: the model is missing or cannot be read, or the device is not there.
    """
    import torch

    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that was not built in
        raise ModelError(f"device {device!r} is not usable here: {_first_line(error)}") from error
    if model == DEMO:
        from .demo.model import DemoModelError, load_demo_pipeline

        try:
            return load_demo_pipeline(dtype, place)
        except DemoModelError as error:
            raise ModelError(_first_line(error)) from error
    folder = Path(model)
    is_folder = folder.is_dir()
    if is_folder and not (folder / "model_index.json").is_file():
        raise ModelError(f"the folder {model} holds no model_index.json, so it is no diffusers pipeline")
    if is_folder and (lacks := _lacks(folder)):
        raise ModelError(f"the model in {model} is not whole: {lacks}")
    if not is_folder and (folder.is_absolute() or model.count("/") != 1 or model.startswith((".", "~"))):
        raise ModelError(f"no model folder {model}; give a folder, an id such as owner/name, or {DEMO!r}")
    from diffusers import DiffusionPipeline

    if dtype is None:
        dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    try:
        pipe = DiffusionPipeline.from_pretrained(
            model,
            dtype=dtype,
            local_files_only=is_folder or not download,
            use_safetensors=True,
            **({} if revision is None else {"revision": revision}),
        )
        return pipe.to(place)
    except Exception as error:  # whatever the readers raise: safetensors, json, OSError, KeyError, ValueError
        if not is_folder and not download:
            raise ModelError(
                f"no model folder {model}, and no such model in the local cache; add --download to fetch it"
            ) from error
        raise ModelError(f"the model in {model} cannot be read: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    # "... from one of:" says nothing without what follows.
    return " ".join(lines[:3] if lines[0].endswith(":") else lines[:1]).rstrip(".")


#: A tokenizer needs one of these to know any word.
_VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


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


def is_demo(pipe: Any) -> bool:
    """Whether this pipeline speaks the demo world's vocabulary (the embedded model, or one trained likewise)."""
    from .demo.model import PAD, UNKNOWN, known_words

    tokenizer = getattr(pipe, "tokenizer", None)
    return tokenizer is not None and set(tokenizer.get_vocab()) == {PAD, UNKNOWN, *known_words()}


def draw(
    pipe: Any,
    request: Request,
    compare: bool = False,
    record: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Drawn:
    """Draw a request; with `compare` also without guidance, from the same noise.

    `progress` is called with (steps done, steps in all). `record` keeps the suppression map (VSF only).

    Raises:
        ValueError: a setting the pipeline refuses, or `record` for something else than VSF with a negative.
        UnsupportedModel: the pipeline cannot be guided.
    """
    import torch

    from .guide import negative_guidance

    accepted = inspect.signature(type(pipe).__call__).parameters
    call: dict[str, Any] = {"num_inference_steps": request.steps, "guidance_scale": request.guidance_scale}
    call |= request.extra
    if request.size is not None:
        call |= {"width": request.size[0], "height": request.size[1]}
    if "output_type" in accepted:
        call["output_type"] = "np"  # what the pipelines make PIL pictures of, where NaN would become black
    length = call.get("max_sequence_length")
    if is_demo(pipe):
        from .demo.settings import TEXT_LENGTH

        length = call["max_sequence_length"] = TEXT_LENGTH
    runs, done = (2 if compare and request.guided else 1), 0

    def on_step(_pipe: Any, step: int, _time: Any, state: dict[str, Any]) -> dict[str, Any]:
        if progress is not None:
            progress(done * request.steps + step + 1, runs * request.steps)
        return state

    if "callback_on_step_end" in accepted:
        call["callback_on_step_end"] = on_step
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(disable=True)

    def run() -> list[Any]:
        noise = [torch.Generator("cpu").manual_seed(request.seed + i) for i in range(request.n)]
        try:
            out = pipe(prompt=[request.prompt] * request.n, generator=noise if request.n > 1 else noise[0], **call)
        except ValueError as error:
            multiple = re.search(r"divisible by (\d+)", str(error))
            if multiple is None or request.size is None:
                raise
            size = "{}x{}".format(*request.size)
            raise ValueError(f"size is {size}; {type(pipe).__name__} takes multiples of {multiple[1]} pixels") from error
        return [_as_pil(x, request.seed + i) for i, x in enumerate(out.frames if hasattr(out, "frames") else out.images)]

    if record and not request.guided:
        raise ValueError("a suppression map needs a negative prompt and a method that guides")
    if not request.guided:
        plain = run()
        return Drawn(plain, plain if compare else [], None)
    # Guided first: what it refuses, it refuses before anything was drawn.
    with negative_guidance(
        pipe, request.guidance, request.negative, max_sequence_length=length, record=record
    ) as guided:
        pictures = run()
    done = 1
    return Drawn(pictures, run() if compare else [], guided.suppression() if record else None)


def _as_pil(picture: Any, seed: int) -> Any:
    """One picture, or the frames of a video, as PIL from what a pipeline gives."""
    import numpy as np

    if not isinstance(picture, np.ndarray):
        return picture
    if np.isnan(picture).any():
        raise ValueError(
            f"the picture of seed {seed} holds values that are not numbers (NaN), so it is not kept: the model overflowed; "
            "use bfloat16 or float32 instead of float16, or weaker settings"
        )
    from diffusers.image_processor import VaeImageProcessor

    frames = VaeImageProcessor.numpy_to_pil(picture)
    return frames if picture.ndim == 4 else frames[0]


def _named(value: Any) -> Any:
    """A picture by where it came from; everything else as it is."""
    return value.info.get("from", "a picture") if hasattr(value, "tobytes") and hasattr(value, "info") else value


def settings_of(request: Request, model: str, pipe: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Everything needed to make the pictures again, as plain data; `size` is that of the pictures drawn."""
    from importlib.metadata import version

    guidance = (request.guidance if request.guided else NoGuidance()).settings()
    return {
        "vsf": __version__,
        "prompt": request.prompt,
        "negative": request.negative or "",
        "guidance": guidance,
        "steps": request.steps,
        "seed": request.seed,
        "n": request.n,
        "size": list(size),
        "guidance_scale": request.guidance_scale,
        **({"extra": {k: _named(v) for k, v in request.extra.items()}} if request.extra else {}),
        "model": model,
        "pipeline": type(pipe).__name__,
        "dtype": str(getattr(pipe, "dtype", "")).removeprefix("torch."),
        "device": str(getattr(pipe, "device", "")),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }
