"""From settings to pictures: draw without and with the negative from the same noise.

Shared by the command line, the demo and the page; prints nothing.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import __version__
from .guidance import Guidance, NoGuidance
from .provenance import versions

if TYPE_CHECKING:
    from .core.suppression import Suppression

__all__ = ["Drawn", "Request", "draw", "schedule_of", "settings_of"]


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


def schedule_of(call: Mapping[str, Any], own_steps: int | None, steps: int) -> dict[str, Any]:
    """A model's further arguments at so many steps: a schedule written out goes with its own number of steps only."""
    return {k: v for k, v in call.items() if steps == own_steps or k not in ("timesteps", "sigmas")}


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
        ValueError: a size that the model does not take, a setting the pipeline refuses, or `record` for something else
            than VSF with a negative.
        UnsupportedModel: the pipeline cannot be guided.
    """
    import torch

    from .demo.models import model_of
    from .guide import negative_guidance
    from .sizes import sizes_of

    sizes_of(pipe).check(request.size, type(pipe).__name__)
    accepted = inspect.signature(type(pipe).__call__).parameters
    call: dict[str, Any] = {"num_inference_steps": request.steps, "guidance_scale": request.guidance_scale}
    call |= request.extra
    if request.size is not None:
        call |= {"width": request.size[0], "height": request.size[1]}
    if "output_type" in accepted:
        call["output_type"] = "np"  # what the pipelines make PIL pictures of, where NaN would become black
    if known := model_of(pipe):
        call = known.completed(call)
    length = call.get("max_sequence_length")
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
        out = pipe(prompt=[request.prompt] * request.n, generator=noise if request.n > 1 else noise[0], **call)
        return [
            _as_pil(x, request.seed + i) for i, x in enumerate(out.frames if hasattr(out, "frames") else out.images)
        ]

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
        "versions": {k: v for k, v in versions().items() if k in ("torch", "diffusers", "transformers")},
    }
