"""One resumable optimisation: AdamW with averaged weights, and a checkpoint that is whole at any moment.

Processes that torchrun or `accelerate launch` started share every step: each computes its part of the batch, and they take the
mean of their gradients. The first of them writes.

A step draws its batch and noise from (seed, step) alone, so a run that was killed and went on does the same arithmetic
as one that was not.
"""

from __future__ import annotations

import json
import math
import platform
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...files import json_bytes, whole, write_whole
from .output import loss_curve

Log = list[tuple[int, dict[str, float]]]

#: What a run writes in its folder beside the weights and the cache; nothing else is removed to start over.
_OWN = re.compile(
    r"(recipe|run)\.json|(vae|decoder|stills|transformer|distillation|large|judge)(\.safetensors|-loss\.png|-\d{8}\.png)",
    re.ASCII,
)

_console = Console()


def ranks() -> tuple[int, int]:
    """The number of this process, and how many train together; 0 and 1 where it is alone."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def share(recipe: Any) -> Any:
    """A training's recipe (with `batch`) for one of the processes that share a step.

    Raises ValueError where the batch cannot be parted evenly.
    """
    if recipe.batch % (count := ranks()[1]):
        raise ValueError(f"a batch of {recipe.batch} cannot be parted among {count} processes")
    return replace(recipe, batch=recipe.batch // count)


def _together(parameters: Iterable[nn.Parameter], *figures: float) -> list[float]:
    """Give the gradients their means over all processes; the means of `figures` come back."""
    import torch.distributed as dist

    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat(
        [*(g.reshape(-1) for g in grads), torch.tensor(figures, device=grads[0].device, dtype=grads[0].dtype)]
    )
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for grad, mean in zip(grads, flat[: -len(figures)].split([g.numel() for g in grads]), strict=True):
        grad.copy_(mean.view_as(grad))
    return flat[-len(figures) :].tolist()


def say(text: str) -> None:
    """One line with the time of day, for a log that somebody follows."""
    if ranks()[0]:
        return
    _console.print(f"[{time.strftime('%H:%M:%S')}] {text}", markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: `rows` seen in all, `batch` per step.

    The learning rate rises over `warmup` rows, stays, and falls to 1 % of `lr` over the last `decay` share, linearly or
    by a cosine. A run in its level part can be made longer or shorter by another `rows`. `ema` is per step.
    """

    rows: int
    batch: int
    lr: float
    warmup: int
    fall: Literal["linear", "cosine"]
    decay: float
    weight_decay: float
    ema: float
    compile: bool
    save_minutes: float

    @property
    def steps(self) -> int:
        """Steps in all, at least one."""
        return max(1, self.rows // self.batch)

    def rate(self, step: int, progress: float) -> float:
        """Learning rate of a step, where `progress` 0..1 says how much of the run is behind."""
        rise = min(1.0, (step + 1) * self.batch / max(1, self.warmup))
        left = min(1.0, (1 - progress) / self.decay)
        share = left if self.fall == "linear" else 0.5 * (1 - math.cos(math.pi * left))
        return self.lr * rise * (0.01 + 0.99 * share)


@dataclass
class Standing:
    """Where a run stands: steps done, seconds spent on them, and the means that were logged, by rows seen."""

    step: int
    seconds: float
    log: Log


def save_tensors(path: Path, tensors: dict[str, Tensor], note: dict[str, Any] | None = None) -> None:
    """Write a safetensors file, whole or not at all; `note` travels in its header as JSON."""
    metadata = None if note is None else {"note": json.dumps(note)}
    with whole(path) as part:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, part, metadata)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, each in storage of its own.

    Loaded as they are they stand at any offset of the mapped file, and alignment decides which kernel computes.
    """
    return {name: t.clone() for name, t in load_file(path).items()}


def _note(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("note", "{}"))


class Optimisation:
    """AdamW on the parameters of `model` that want a gradient, with an exponential average of them.

    Everything is in the one file `path`, so that weights, averages and moments are always of the same step. Matrices
    get the weight decay, vectors (biases, norms) and what `undecayed` names do not.

    Raises ValueError where `path` holds the run of another model.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        path: Path,
        undecayed: tuple[str, ...] = (),
        minutes: float | None = None,
    ) -> None:
        """`minutes` ends the run by the time spent on it, in the place of the schedule's rows."""
        from diffusers.training_utils import EMAModel

        self.model, self.schedule, self.path, self.minutes = model, schedule, path, minutes
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        matrices = {name for name, p in self.named.items() if p.ndim > 1 and name not in undecayed}
        groups = [
            {"params": [p for n, p in self.named.items() if n in matrices], "weight_decay": schedule.weight_decay},
            {"params": [p for n, p in self.named.items() if n not in matrices], "weight_decay": 0.0},
        ]
        self._order = [n for n in self.named if n in matrices] + [n for n in self.named if n not in matrices]
        self.optimizer = torch.optim.AdamW(groups, schedule.lr, betas=(0.9, 0.98), fused=True)
        self._ema = EMAModel(self.named.values(), decay=schedule.ema, foreach=True)
        self.at = Standing(0, 0.0, [])
        if path.is_file():
            self._load()

    @property
    def progress(self) -> float:
        """How much of the run is behind, from 0 to 1."""
        if self.minutes is not None:
            return min(1.0, self.at.seconds / (60 * self.minutes))
        return min(1.0, self.at.step / self.schedule.steps)

    @property
    def done(self) -> bool:
        """Whether all steps were made."""
        return self.progress >= 1

    @property
    def rows(self) -> int:
        """Rows seen so far."""
        return self.at.step * self.schedule.batch

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights by parameter name, on the CPU."""
        return {n: p.detach().cpu().clone() for n, p in zip(self.named, self._ema.shadow_params, strict=True)}

    def save(self) -> None:
        """Write the checkpoint."""
        tensors = {f"model.{n}": p for n, p in self.named.items()}
        tensors |= {f"ema.{n}": p for n, p in zip(self.named, self._ema.shadow_params, strict=True)}
        for i, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{self._order[i]}:{key}": value for key, value in values.items()}
        at = self.at
        save_tensors(self.path, tensors, {"step": at.step, "seconds": round(at.seconds, 1), "log": at.log})

    def _load(self) -> None:
        tensors, note = load_tensors(self.path), _note(self.path)
        own = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in self.named.items()}:
            raise ValueError(f"{self.path} is the checkpoint of another model; choose another folder or start over")
        with torch.no_grad():
            for (name, p), average in zip(self.named.items(), self._ema.shadow_params, strict=True):
                p.copy_(own[name])
                average.copy_(tensors[f"ema.{name}"])
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                name, kind = key.removeprefix("adam.").rsplit(":", 1)
                if value.shape == (p := self.named[name]).shape:
                    # The fused step reads both in memory's order, and the parameter may be channels last.
                    value = torch.empty_like(p, dtype=value.dtype).copy_(value)
                state.setdefault(self._order.index(name), {})[kind] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.at = Standing(note["step"], note["seconds"], [(rows, figures) for rows, figures in note["log"]])
        self._ema.optimization_step = self.at.step
        say(f"{self.path.stem}: going on at step {self.at.step}")

    def run(
        self,
        loss: Callable[[int], dict[str, Tensor]],
        report: Callable[[], None] | None = None,
        stop_after: int | None = None,
        before_step: Callable[[], None] | None = None,
    ) -> bool:
        """Make the steps that are left; returns whether all were made.

        `loss(step)` gives named scalars; their sum is minimised. Of several processes each asks for other steps, whose
        batches are parts of the schedule's (`share`). `report` is called after every save, `before_step`
        between the backward pass and the step. Ctrl-C, SIGTERM and `stop_after` steps leave a checkpoint.
        """
        name, plan, begun, first = self.path.stem, self.schedule, time.monotonic(), self.at.step
        rank, count = ranks()
        spent, saved, said = self.at.seconds, begun, begun
        window: list[dict[str, float]] = []
        with _StopSignal() as stop:
            while not self.done and not stop.asked and (stop_after is None or self.at.step - first < stop_after):
                set_rate(self.optimizer, plan.rate(self.at.step, self.progress))
                parts = loss(self.at.step * count + rank)
                torch.stack([*parts.values()]).sum().backward()
                window.append({key: float(value.detach()) for key, value in parts.items()})
                now = time.monotonic()
                if count > 1:
                    means = _together(self.named.values(), stop.asked, spent + now - begun, *window[-1].values())
                    stop.asked, now = means[0] > 0, means[1] + begun - spent
                    window[-1] = dict(zip(parts, means[2:], strict=True))
                if not all(map(math.isfinite, window[-1].values())):
                    raise FloatingPointError(f"{name}: the loss is {window[-1]} at step {self.at.step}")
                if before_step is not None:
                    before_step()
                torch.nn.utils.clip_grad_norm_(self.named.values(), 1.0, foreach=True)
                self.optimizer.step()
                self.optimizer.zero_grad()
                self._ema.step(self.named.values())
                self.at.step, self.at.seconds = self.at.step + 1, spent + now - begun
                if self.at.step % 50 == 0 or self.done:
                    means = {key: round(sum(w[key] for w in window) / len(window), 6) for key in window[0]}
                    self.at.log.append((self.at.step * plan.batch, means))
                    window.clear()
                if now - said > 30 and self.at.log:
                    rate = (self.at.step - first) * plan.batch / (now - begun)
                    shown = " ".join(f"{key} {value:.5f}" for key, value in self.at.log[-1][1].items())
                    say(f"{name} step {self.at.step} ({self.progress:.1%}) {shown} {rate:.0f} rows/s")
                    said = now
                if now - saved > 60 * plan.save_minutes and rank == 0:
                    self.save()
                    if report is not None:
                        report()
                    saved = time.monotonic()
        if rank == 0:
            self.save()
        if stop.asked:
            say(f"{name}: stopped at step {self.at.step}; run again to go on")
            raise KeyboardInterrupt
        if self.done and report is not None and rank == 0:
            report()
        return self.done


def autocast(device: torch.device) -> torch.autocast:
    """bf16 where it is faster than float32: on accelerators, and on processors that multiply it."""
    fast = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


class Compiled:
    """A module under torch.compile, or as it is where compiling fails (no compiler, unsupported platform) or is slow.

    On a processor that has bf16 products but no tiles for them, what inductor makes of this model in bf16 was 14 times
    slower than eager mode.
    """

    def __init__(self, module: nn.Module, enabled: bool, device: torch.device) -> None:
        self.module = module
        if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported():
            enabled = False
        self.call: Callable[..., Any] = torch.compile(module, dynamic=False) if enabled else module
        self.proven = not enabled

    def __call__(self, *args: Tensor) -> Any:
        if self.proven:
            return self.call(*args)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                out = self.call(*args)
                # The backward graph is compiled on its first use, so try it before any real step depends on it.
                total = torch.stack([o.float().sum() for o in out]).sum()
                if total.requires_grad:
                    total.backward()
            self.module.zero_grad()
        except Exception as error:  # inductor raises many types: compiler missing, compile error, unsupported op
            say(f"torch.compile does not work here ({type(error).__name__}); training goes on without it")
            self.module.zero_grad()
            self.call = self.module
        self.proven = True
        return self.call(*args)


class _StopSignal:
    """Lets the step in progress end: an interrupt within it would leave weights and moments of two steps."""

    asked = False

    def __enter__(self) -> _StopSignal:
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, _number: int, _frame: Any) -> None:
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


@dataclass
class TrainingRun:
    """The folder of a training: what recipe it follows, and seconds and figures per phase, kept across interruptions."""

    folder: Path
    notes: dict[str, Any]

    @classmethod
    def open(cls, folder: Path, recipe: dict[str, Any], resume: bool = True) -> TrainingRun:
        """The run in `folder`, new unless it is there; without `resume` what an earlier one left is removed.

        Raises ValueError when it holds a run of another `recipe` (of what of it may not change within a run).
        """
        if not resume and folder.is_dir():
            for path in folder.iterdir():
                if _OWN.fullmatch(path.name):
                    path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        known, kept = folder / "recipe.json", folder / "run.json"
        if known.is_file() and json.loads(known.read_text("utf-8")) != recipe:
            raise ValueError(
                f"{folder} holds a run of another recipe: choose another folder, or start over (--fresh, resume=False)"
            )
        write_whole(known, json_bytes(recipe, 1))
        return cls(folder, json.loads(kept.read_text("utf-8")) if kept.is_file() else {"seconds": {}})

    def note(self, seconds: dict[str, float] | None = None, **figures: Any) -> None:
        """Keep figures; `seconds` are those of phases, in the place of what was known of them."""
        self.notes["seconds"] |= seconds or {}
        self.notes |= figures
        if ranks()[0] == 0:
            write_whole(self.folder / "run.json", json_bytes(self.notes, 1))

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds of a block to those of a phase; said where it took a while."""
        start = time.monotonic()
        yield
        spent = time.monotonic() - start
        self.note({phase: round(self.notes["seconds"].get(phase, 0.0) + spent, 1)})
        if spent > 5:
            say(f"{phase}: {spent:.0f} s")


def learnt(
    run: TrainingRun,
    part: Optimisation,
    loss: Callable[[int], dict[str, Tensor]],
    sheet: Callable[[dict[str, Tensor]], Any],
    stop_after: int | None = None,
    before_step: Callable[[], None] | None = None,
) -> dict[str, Tensor] | None:
    """Make the steps that are left of one part of a run; its averaged weights, or None where it was interrupted.

    `sheet` draws a picture of what averaged weights do, which is left beside every checkpoint.
    """
    name = part.path.stem

    def report() -> None:
        sheet(part.averaged()).save(part.path.with_name(f"{name}-{part.rows:08d}.png"))
        loss_curve(part.at.log, part.path.with_name(f"{name}-loss.png"))

    try:
        done = part.run(loss, report, stop_after, before_step)
    finally:
        counted = {"samples": part.rows} if name == "transformer" else {}
        run.note(seconds={name: round(part.at.seconds, 1)}, **counted)
    return part.averaged() if done else None


def progress_bar() -> Progress:
    """A bar for a phase, where somebody looks at a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=_console, disable=not _console.is_terminal)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def machine(device: torch.device) -> str:
    """What computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        lines = [row.split(":", 1)[1].strip() for row in info.read_text().splitlines() if row.startswith("model name")]
        name = lines[0] if lines else name
    return f"{name}, {torch.get_num_threads()} threads"
