"""One picture after the other: a plan's groups drawn with a pipeline, each picture with a record of how it was made.

A picture that came out as NaN, or that the model's own safety checker blacked out, is drawn black and its record says
why under "broken". It stays in the run and is judged like any other: the method failed, the judge did not.
"""

from __future__ import annotations

import inspect
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..draw import schedule_of
from ..guidance import make_method
from ..images import png_bytes
from ..libraries import quiet
from ..loading import named
from ..provenance import environment, hub_commit, weights_hash
from .cases import CaseSet
from .controls import unrelated
from .run import Point, RunError, RunPlan, Unit

__all__ = ["MEASURED", "Drawer", "Group", "Rendered", "UnitFiles", "load"]

FORMAT = "vsf-record"
VERSION = 1
MEASURED = ("seconds", "peak_memory")
"""Fields of a record that differ from one time to the next; all others are the same when a picture is made again."""

_MEMORY_IS = ("ru_maxrss of the process", "torch.cuda.max_memory_allocated")
_IN_PNG = ("model", "revision", "commit", "weights", "pipeline", "dtype", "device", "versions")

Group = Sequence[Unit]


@dataclass(frozen=True)
class UnitFiles:
    """One drawn unit: a PNG file, its record, and for a video all frames as a GIF file."""

    unit: Unit
    png: bytes
    record: Mapping[str, Any]
    gif: bytes | None = None


@dataclass(frozen=True)
class Rendered:
    """What a pipeline gave for a group, `seconds` per picture (the group's time divided by its size)."""

    group: Group
    pictures: Sequence[Any]
    flagged: Sequence[bool]
    seconds: float
    memory: int | None


# ---------------------------------------------------------------------------------------------------------------
# What a picture depends on


def load(plan: RunPlan, device: str | None = None, download: bool = False) -> Any:
    """The pipeline of a plan; see `vsf.loading.load_model`."""
    from ..loading import load_model

    return load_model(plan.model, device, plan.dtype, download, plan.revision)


def _about(pipe: Any, plan: RunPlan) -> dict[str, Any]:
    """What all pictures of a run have in common."""
    import torch

    device = torch.device(getattr(pipe, "device", "cpu"))
    cuda = device.type == "cuda"
    return {
        "model": plan.model,
        "revision": plan.revision,
        "commit": hub_commit(pipe),
        "weights": weights_hash(pipe),
        "pipeline": type(pipe).__name__,
        "dtype": str(getattr(pipe, "dtype", "")).removeprefix("torch."),
        "device": device.type,
        "hardware": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        # Sums are split among threads, which shows in their last bits.
        "threads": None if cuda else torch.get_num_threads(),
        **environment(),
    }


# ---------------------------------------------------------------------------------------------------------------
# Pictures


class Drawer:
    """Draws groups of a plan with one pipeline. Writes nothing.

    Raises:
        RunError: a point names no method of ours, or a case has no unrelated negative.
    """

    def __init__(self, plan: RunPlan, cases: CaseSet, pipe: Any) -> None:
        from ..demo.models import model_of

        self.plan, self.pipe = plan, pipe
        self.cases = {case.id: case for case in cases if case.id in set(plan.cases)}
        try:
            self.methods = {point.name: make_method(point.settings) for point in plan.points}
            self._unrelated = {k: unrelated(c, cases) for k, c in self.cases.items()} if plan.controls else {}
        except (ValueError, TypeError) as error:
            raise RunError(str(error)) from error
        self.about = _about(pipe, plan)
        self.accepted = inspect.signature(type(pipe).__call__).parameters
        self.video = "num_frames" in self.accepted
        self._known = model_of(pipe)

    def negative(self, unit: Unit) -> str:
        """The negative prompt of a unit."""
        return self.cases[unit.case].negative if unit.kind == "true" else self._unrelated[unit.case]

    def _call(self, point: Point) -> dict[str, Any]:
        """The pipeline's arguments at a point, but for prompts and noise."""
        plan = self.plan
        steps = plan.steps if point.steps is None else point.steps
        extra = schedule_of(plan.extra, plan.steps, steps)
        scale = plan.guidance_scale if point.guidance_scale is None else point.guidance_scale
        call: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": scale, **extra}
        if plan.size is not None:
            call |= {"width": plan.size[0], "height": plan.size[1]}
        return call if self._known is None else self._known.completed(call)

    def _run(self, point: Point, group: Group, call: Mapping[str, Any]) -> Any:
        import torch

        from ..guide import negative_guidance

        noise = [torch.Generator("cpu").manual_seed(unit.noise_seed) for unit in group]
        prompts = [self.cases[unit.case].prompt for unit in group]
        negatives = [self.negative(unit) for unit in group]
        method = self.methods[point.name]
        # Without guidance the pipeline is stock, its own classifier-free guidance included.
        context = (
            nullcontext()
            if method.negative == "none"
            else negative_guidance(self.pipe, method, negatives, max_sequence_length=call.get("max_sequence_length"))
        )
        with quiet(self.pipe), torch.no_grad(), context:
            return self.pipe(prompt=prompts, generator=noise, **call)

    def check(self, points: Sequence[str]) -> None:
        """Find out whether the model takes these points: a step or two of one picture each, which is thrown away.

        Raises:
            RunError: what the model or the method said.
        """
        import torch

        from ..encode import unweighted
        from ..prompt import parse_negative

        for name in points:
            point, method = self.plan.point(name), self.methods[name]
            units = [Unit(name, self.plan.cases[0], self.plan.seeds[0], kind) for kind in self.plan.kinds(point)[:1]]
            call = self._call(point)
            if "output_type" in self.accepted:
                call["output_type"] = "latent"
            if not {"timesteps", "sigmas"} & set(call):
                call["num_inference_steps"] = min(2, call["num_inference_steps"])
            try:
                for kind in self.plan.kinds(point) if method.negative != "none" else ():
                    for case in self.plan.cases:
                        text = self.negative(Unit(name, case, 0, kind))
                        parse_negative(text)
                        if method.negative in ("padded", "pipeline"):
                            unweighted(method, text)
                self._run(point, units, call)
            except torch.OutOfMemoryError as error:
                raise RunError(f"point {name}: out of memory with one picture; try a smaller size or dtype") from error
            except (ValueError, TypeError, RuntimeError) as error:
                raise RunError(f"point {name} cannot be drawn: {error}") from error

    def draw(self, group: Group) -> list[UnitFiles]:
        """Draw a group of one point, all from their own noise, and say how. Raises RunError when memory runs out."""
        return self.encode(self.render(group))

    def render(self, group: Group) -> Rendered:
        """The first half of `draw`: what needs the model."""
        import torch

        call = self._call(self.plan.point(group[0].point))
        if "output_type" in self.accepted:
            call["output_type"] = "np"  # rounded by `encode`, after a look for NaN
        cuda = self.about["device"] == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.pipe.device)
        start = time.perf_counter()
        try:
            out = self._run(self.plan.point(group[0].point), group, call)
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"out of memory with {len(group)} pictures at once; begin another run with a smaller --batch or --size"
            ) from error
        seconds = (time.perf_counter() - start) / len(group)
        memory = torch.cuda.max_memory_allocated(self.pipe.device) if cuda else _resident()
        flagged = getattr(out, "nsfw_content_detected", None) or [False] * len(group)
        return Rendered(group, out.frames if self.video else out.images, flagged, seconds, memory)

    def encode(self, rendered: Rendered) -> list[UnitFiles]:
        """The second half of `draw`: files and records; may run in another thread."""
        point = self.plan.point(rendered.group[0].point)
        method = self.methods[point.name]
        call = self._call(point)
        steps, guidance_scale = call.pop("num_inference_steps"), call.pop("guidance_scale")
        extra = {k: v for k, v in call.items() if k not in ("width", "height")}
        pictures: list[UnitFiles] = []
        for unit, picture, flag in zip(rendered.group, rendered.pictures, rendered.flagged, strict=True):
            frames, broken = _frames(picture if self.video else [picture])
            middle = len(frames) // 2
            how = {
                "prompt": self.cases[unit.case].prompt,
                "negative": self.negative(unit) if method.negative != "none" else "",
                "guidance": method.settings(),
                "steps": steps,
                "guidance_scale": guidance_scale,
                "size": list(frames[middle].size),
                **({"extra": extra} if extra else {}),
            }
            settings = {
                **how,
                "vsf": __version__,
                "seed": unit.noise_seed,
                "n": 1,
                **({"frame": middle} if self.video else {}),
                **{k: v for k, v in self.about.items() if k in _IN_PNG},
            }
            png = png_bytes(frames[middle], settings)
            gif = _gif(frames, self._fps) if self.video else None
            record = {
                "format": FORMAT,
                "version": VERSION,
                "unit": unit.id,
                "point": unit.point,
                "case": unit.case,
                "seed": unit.seed,
                "kind": unit.kind,
                **how,
                "noise_seed": unit.noise_seed,
                "group": len(rendered.group),
                "cases": {"name": self.plan.cases_name, "hash": self.plan.cases_hash},
                **self.about,
                "sha256": sha256(png).hexdigest(),
                "video": None if gif is None else {"frames": len(frames), "sha256": sha256(gif).hexdigest()},
                "broken": "the model's safety checker blacked it out" if flag else broken,
                "seconds": rendered.seconds,
                "peak_memory": rendered.memory,
                "peak_memory_is": _MEMORY_IS[self.about["device"] == "cuda"],
            }
            pictures.append(UnitFiles(unit, png, record, gif))
        return pictures

    @property
    def _fps(self) -> int:
        return (known.fps if (known := named(self.plan.model) or self._known) else None) or 16


def _resident() -> int | None:
    """The most memory this process ever held, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _frames(pictures: Any) -> tuple[list[Any], str | None]:
    """Arrays `[H, W, 3]` in [0, 1] as pictures, and what is wrong with them."""
    from PIL import Image

    frames: list[Any] = []
    broken = None
    for picture in pictures:
        if isinstance(picture, Image.Image):
            frames.append(picture.convert("RGB"))
            continue
        array = np.asarray(picture, np.float32)
        if not np.isfinite(array).all():
            broken, array = "NaN or infinite values in the picture", np.zeros_like(array)
        frames.append(Image.fromarray((array * 255).round().astype(np.uint8)))
    if broken:  # one frame is enough
        frames = [Image.new("RGB", frames[0].size) for _ in frames]
    return frames, broken


def _gif(frames: Sequence[Any], fps: int) -> bytes:
    from ..video import save_video

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.gif"
        save_video(frames, path, fps)
        return path.read_bytes()
