"""Drawing a run: every picture of a plan with a record of how it was made.

A group of pictures (`Plan.chunks`) is drawn together, its pictures are written, each before its record. Whoever is
killed at any moment loses at most the groups in hand; whoever goes on redraws each unfinished group as a whole, because
how samples are grouped decides the last bits of a picture, and writes what is missing of it.

A picture that came out as NaN, or that the model's own safety checker blacked out, is drawn black and its record says
why under "broken". It stays in the run and is judged like any other: the method failed, the judge did not.
"""

from __future__ import annotations

import inspect
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..images import png_bytes, write_whole
from .ablations import guided, make_method
from .cases import CaseSet
from .controls import unrelated
from .run import Plan, Point, Run, RunError, Store, Unit

__all__ = ["MEASURED", "Drawer", "Picture", "begin", "generate", "load", "missing", "write"]

FORMAT = "vsf-record"
VERSION = 1
MEASURED = ("seconds", "peak_memory")
"""Fields of a record that differ from one time to the next; all others are the same when a picture is made again."""

_MEMORY_IS = ("ru_maxrss of the process", "torch.cuda.max_memory_allocated")
_IN_PNG = ("model", "revision", "commit", "weights", "pipeline", "dtype", "device", "versions")

Progress = Callable[[int, int], None]
Group = Sequence[Unit]


@dataclass(frozen=True)
class Picture:
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


def load(plan: Plan, device: str | None = None, download: bool = False) -> Any:
    """The pipeline of a plan: the demo model, a preset (with its scheduler and LoRA), a folder or an id.

    Raises:
        ModelError: it is missing or cannot be read; nothing is fetched unless `download`.
        ValueError: the preset's LoRA cannot be read, or there is no such dtype.
    """
    if not download:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub library is imported
    import torch

    from ..draw import load_model
    from ..presets import PRESETS

    dtype = None if plan.dtype is None else getattr(torch, plan.dtype, None)
    if plan.dtype is not None and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype is {plan.dtype!r}; allowed: float32, bfloat16, float16")
    preset = PRESETS.get(plan.model)
    pipe = load_model(plan.model if preset is None else preset.checkpoint, device, dtype, download, plan.revision)
    if preset is not None:
        preset.prepare(pipe, True, download)
    return pipe


def _git() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from, and whether the package differs from it; None elsewhere."""
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, check=True, text=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an environment inside of another checkout is not ours
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    found = {"vsf": __version__, "python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def _environment() -> dict[str, Any]:
    """Constant in a process."""
    return {"versions": _versions(), "git": _git()}


def _commit(pipe: Any) -> str | None:
    """The hub's commit of a pipeline that was loaded from its cache."""
    for part in getattr(pipe, "components", {}).values():
        name = getattr(getattr(part, "config", None), "_name_or_path", None)
        if found := re.search(r"[\\/]snapshots[\\/]([0-9a-f]{40})(?:[\\/]|$)", str(name)):
            return found[1]
    return None


def _about(pipe: Any, plan: Plan) -> dict[str, Any]:
    """What all pictures of a run have in common."""
    import torch

    from ..demo.evaluate import _weights_hash

    device = torch.device(getattr(pipe, "device", "cpu"))
    cuda = device.type == "cuda"
    return {
        "model": plan.model,
        "revision": plan.revision,
        "commit": _commit(pipe),
        "weights": _weights_hash(pipe),
        "pipeline": type(pipe).__name__,
        "dtype": str(getattr(pipe, "dtype", "")).removeprefix("torch."),
        "device": device.type,
        "hardware": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        # Sums are split among threads, which shows in their last bits.
        "threads": None if cuda else torch.get_num_threads(),
        **_environment(),
    }


# ---------------------------------------------------------------------------------------------------------------
# Pictures


class Drawer:
    """Draws groups of a plan with one pipeline. Writes nothing.

    Raises:
        RunError: a point names no method of ours, or a case has no unrelated negative.
    """

    def __init__(self, plan: Plan, cases: CaseSet, pipe: Any) -> None:
        from ..draw import is_demo

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
        self._is_demo = is_demo(pipe)

    def negative(self, unit: Unit) -> str:
        """The negative prompt of a unit."""
        return self.cases[unit.case].negative if unit.kind == "true" else self._unrelated[unit.case]

    def _call(self, point: Point) -> dict[str, Any]:
        """The pipeline's arguments at a point, but for prompts and noise."""
        plan, extra = self.plan, dict(self.plan.extra)
        steps = plan.steps if point.steps is None else point.steps
        if steps != plan.steps:  # a schedule written out is one for another number of steps
            extra = {k: v for k, v in extra.items() if k not in ("timesteps", "sigmas")}
        scale = plan.guidance_scale if point.guidance_scale is None else point.guidance_scale
        call: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": scale, **extra}
        if plan.size is not None:
            call |= {"width": plan.size[0], "height": plan.size[1]}
        if self._is_demo:
            from ..demo.settings import TEXT_LENGTH

            call["max_sequence_length"] = TEXT_LENGTH
        return call

    def _run(self, point: Point, group: Group, call: Mapping[str, Any]) -> Any:
        import torch

        from ..demo.evaluate import _quiet

        noise = [torch.Generator("cpu").manual_seed(unit.noise_seed) for unit in group]
        prompts = [self.cases[unit.case].prompt for unit in group]
        negatives = [self.negative(unit) for unit in group]
        method = self.methods[point.name]
        # Without guidance the pipeline is stock, its own classifier-free guidance included.
        context = (
            nullcontext()
            if method.negative == "none"
            else guided(self.pipe, method, negatives, max_sequence_length=call.get("max_sequence_length"))
        )
        with _quiet(self.pipe), torch.no_grad(), context:
            return self.pipe(prompt=prompts, generator=noise, **call)

    def check(self, points: Sequence[str]) -> None:
        """Find out whether the model takes these points: a step or two of one picture each, which is thrown away.

        Raises:
            RunError: what the model or the method said.
        """
        import torch

        from ..arch import UnsupportedModel
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
                        if method.negative in ("branch", "pipeline"):
                            unweighted(method, text)
                self._run(point, units, call)
            except torch.OutOfMemoryError as error:
                raise RunError(f"point {name}: out of memory with one picture; try a smaller size or dtype") from error
            except (ValueError, TypeError, RuntimeError, UnsupportedModel) as error:
                raise RunError(f"point {name} cannot be drawn: {error}") from error

    def draw(self, group: Group) -> list[Picture]:
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

    def encode(self, rendered: Rendered) -> list[Picture]:
        """The second half of `draw`: files and records; may run in another thread."""
        point = self.plan.point(rendered.group[0].point)
        method = self.methods[point.name]
        call = self._call(point)
        steps, guidance_scale = call.pop("num_inference_steps"), call.pop("guidance_scale")
        extra = {k: v for k, v in call.items() if k not in ("width", "height")}
        pictures: list[Picture] = []
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
            pictures.append(Picture(unit, png, record, gif))
        return pictures

    @property
    def _fps(self) -> int:
        from ..presets import PRESETS

        return PRESETS[self.plan.model].fps if self.plan.model in PRESETS else 16


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


# ---------------------------------------------------------------------------------------------------------------
# Files


def begin(folder: str | Path, plan: Plan, cases: CaseSet) -> Run:
    """`Run.create`, where a plan of which nothing was drawn yet (a point was refused, say) gives way to another.

    Raises:
        RunError, OSError: as `Run.create`; RunError also while another process draws there.
    """
    folder = Path(folder)
    if (folder / "plan.json").is_file():
        with _alone(folder):
            if not Store(folder / "records").keys():
                (folder / "plan.json").unlink(missing_ok=True)
            return Run.create(folder, plan, cases)
    return Run.create(folder, plan, cases)


def missing(run: Run) -> list[tuple[int, tuple[Unit, ...], frozenset[str]]]:
    """What is still to be drawn: (number of the group, the group, ids of its units without record or picture)."""
    pictures = {f"{path.parent.name}/{path.stem}" for path in (run.folder / "images").glob("*/*.png")}
    done = run.records.keys() & pictures
    groups: list[tuple[int, tuple[Unit, ...], frozenset[str]]] = []
    for number, group in enumerate(run.plan.chunks):
        wanted = frozenset(unit.id for unit in group) - done
        if wanted:
            groups.append((number, group, wanted))
    return groups


def write(run: Run, pictures: Sequence[Picture]) -> None:
    """Write pictures into a run, each before its record, every file whole or not at all.

    Raises:
        RunError: the disk is full, or the folder cannot be written to.
    """
    try:
        for picture in pictures:
            path = run.image(picture.unit)
            path.parent.mkdir(parents=True, exist_ok=True)
            if picture.gif is not None:
                write_whole(path.with_name(f"{picture.unit.name}.gif"), picture.gif)
            write_whole(path, picture.png)
            run.records.put(picture.unit.id, picture.record)
    except OSError as error:
        raise RunError(
            f"cannot write to {run.folder}: {(error.strerror or str(error)).lower()}; what was drawn is kept, and the "
            "same command goes on from there"
        ) from error


def _compare(run: Run, about: Mapping[str, Any], warn: Callable[[str], None]) -> None:
    """Refuse to mix pictures of two models, and say what else is not as it was. Raises RunError."""
    there = next(iter(sorted(run.records.keys())), None)
    if there is None:
        return
    record = run.records.get(there)
    for name, word in (("weights", "weights"), ("pipeline", "pipeline class"), ("dtype", "dtype")):
        if record.get(name) != about[name]:
            raise RunError(
                f"the pictures in {run.folder} were drawn by a model with other {word} ({record.get(name)}, now "
                f"{about[name]}); begin another run"
            )
    changed = [name for name in ("hardware", "device", "threads", "versions") if record.get(name) != about[name]]
    if changed:
        warn(
            f"pictures drawn from now on may differ in their last bits from those in {run.folder}, which were made with "
            f"other {', '.join(changed)}"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process draws a run at a time; the system lets go of the lock whatever happens. Raises RunError."""
    try:
        import fcntl
    except ImportError:  # Windows: two at once do the same work twice, and nothing else
        yield
        return
    try:
        handle = open(folder / ".lock", "wb")  # noqa: SIM115
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {(error.strerror or str(error)).lower()}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"{folder} is being drawn by another process") from error
        yield


def _sweep(run: Run) -> None:
    for name in ("images", "records"):
        for path in (run.folder / name).glob("*/.*.part"):
            path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------
# Runs


def generate(
    run: Run,
    pipe: Any = None,
    *,
    device: str | None = None,
    download: bool = False,
    workers: int = 1,
    ray: str | None = None,
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """Draw what is missing of a run.

    Args:
        pipe: the pipeline, if it is there already; else it is loaded as the plan says, where something is missing.
        device, download: for loading it.
        workers: processes on this machine, each with a model of its own (on CUDA one per GPU in turn); with `ray` the
            number of actors, 1 meaning one per GPU of the cluster.
        ray: the address of a Ray cluster, or "local".
        share: (rank, number of ranks) of this process among several that were started together.
        progress: called with (pictures written, pictures that were missing).
        warn: called with a sentence.

    Raises:
        RunError: a point cannot be drawn (then nothing was), the pictures there come from another model, memory or disk
            ran out, another process draws this run, or workers kept dying.
        ModelError, ValueError: see `load`.
    """
    rank, ranks = share
    groups = [g for g in missing(run) if g[0] % ranks == rank]
    total = sum(len(wanted) for _, _, wanted in groups)
    if not groups:
        return
    done = 0

    def written(pictures: Sequence[Picture]) -> None:
        nonlocal done
        done += len(pictures)
        if progress is not None:
            progress(done, total)

    with _alone(run.folder) if ranks == 1 else nullcontext():
        if Run.open(run.folder).plan.to_dict() != run.plan.to_dict():
            raise RunError(f"{run.folder} got another plan meanwhile")
        if ranks == 1:
            _sweep(run)
        if pipe is None and (workers > 1 or ray is not None):
            from .cluster import draw_on_processes, draw_on_ray

            wanted = {number: names for number, _, names in groups}

            def keep(number: int, pictures: Sequence[Picture]) -> None:
                chosen = [p for p in pictures if p.unit.id in wanted[number]]
                write(run, chosen)
                written(chosen)

            def same(about: Mapping[str, Any]) -> None:
                _compare(run, about, warn)

            numbers, new = [number for number, _, _ in groups], _new_points(run, groups)
            if ray is not None:
                draw_on_ray(run.plan, run.cases, numbers, new, keep, same, ray, workers, download, warn)
            else:
                draw_on_processes(run.plan, run.cases, numbers, new, keep, same, workers, device, download, warn)
            return
        drawer = Drawer(run.plan, run.cases, load(run.plan, device, download) if pipe is None else pipe)
        _compare(run, drawer.about, warn)
        drawer.check(_new_points(run, groups))
        _one_by_one(run, drawer, groups, written)


def _new_points(run: Run, groups: Sequence[tuple[int, Group, frozenset[str]]]) -> list[str]:
    """Points of which nothing was drawn yet, so that nobody knows whether they can be."""
    drawn = run.records.keys()
    known = {key.split("/")[0] for key in drawn}
    return [name for name in dict.fromkeys(group[0].point for _, group, _ in groups) if name not in known]


def _one_by_one(
    run: Run,
    drawer: Drawer,
    groups: Sequence[tuple[int, Group, frozenset[str]]],
    written: Callable[[Sequence[Picture]], None],
) -> None:
    """Draw group after group; a thread encodes and writes one while the next is drawn."""

    def finish(rendered: Rendered, wanted: frozenset[str]) -> list[Picture]:
        pictures = [p for p in drawer.encode(rendered) if p.unit.id in wanted]
        write(run, pictures)
        return pictures

    with ThreadPoolExecutor(1) as writer:
        writing: Future[list[Picture]] | None = None
        for _, group, wanted in groups:
            rendered = drawer.render(group)
            if writing is not None:
                written(writing.result())
            writing = writer.submit(finish, rendered, wanted)
        if writing is not None:
            written(writing.result())
