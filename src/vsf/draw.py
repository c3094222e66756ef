"""From settings to pictures: load a model, draw without and with the negative from the same noise.

Shared by the command line, the demo and the page; prints nothing.
"""

from __future__ import annotations

import inspect
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
    model: str = DEMO, device: str | None = None, dtype: torch.dtype | None = None, download: bool = False
) -> Any:
    """A diffusers pipeline: the embedded model ("demo"), a folder, or an id.

    `device` None takes CUDA where it is there; `dtype` None takes bfloat16 on CUDA, float32 elsewhere and for the demo
    model. An id is looked up in the local cache, and on the network only if `download`. Safetensors weights only.

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
    if not is_folder and (folder.is_absolute() or model.count("/") != 1 or model.startswith((".", "~"))):
        raise ModelError(f"no model folder {model}; give a folder, an id such as owner/name, or {DEMO!r}")
    from diffusers import DiffusionPipeline

    if dtype is None:
        dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    try:
        pipe = DiffusionPipeline.from_pretrained(
            model, dtype=dtype, local_files_only=is_folder or not download, use_safetensors=True
        )
        return pipe.to(place)
    except Exception as error:  # whatever the readers raise: safetensors, json, OSError, KeyError, ValueError
        if not is_folder and not download:
            raise ModelError(
                f"no model folder {model}, and no such model in the local cache; add --download to fetch it"
            ) from error
        raise ModelError(f"the model in {model} cannot be read: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


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
        call["output_type"] = "pil"  # some video pipelines give arrays otherwise
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
        out = pipe(prompt=[request.prompt] * request.n, generator=noise, **call)
        return list(out.frames if hasattr(out, "frames") else out.images)

    if record and not request.guided:
        raise ValueError("a suppression map needs a negative prompt and a method that guides")
    plain = run() if compare or not request.guided else []
    if not request.guided:
        return Drawn(plain, plain if compare else [], None)
    done = 1 if compare else 0
    with negative_guidance(
        pipe, request.guidance, request.negative, max_sequence_length=length, record=record
    ) as guided:
        pictures = run()
        return Drawn(pictures, plain, guided.suppression() if record else None)


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
        **({"extra": dict(request.extra)} if request.extra else {}),
        "model": model,
        "pipeline": type(pipe).__name__,
        "dtype": str(getattr(pipe, "dtype", "")).removeprefix("torch."),
        "device": str(getattr(pipe, "device", "")),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }
