"""How well a negative prompt works on the demo world: cases, pictures, verdicts, intervals, tuning.

Every case asks for an object in a plain caption, of which one typical part is unwanted. It is drawn twice from the
same noise: once with the name of that part as the negative, once with the name of an unrelated part. A method that
only damages pictures loses the part in both, so the difference is what the negative *meant*.
"""

from __future__ import annotations

import itertools
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import stats
from . import world
from .oracle import Oracle, Reading
from .settings import STEPS, TEXT_LENGTH

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "OBJECTIVE", "Case", "Draw", "EvalResult", "Record", "Space", "TuneResult", "demo_cases", "describe", "draw",
    "eval_table", "evaluate", "provenance", "tune",
]  # fmt: skip

Draw = Callable[[Any, Any, Sequence[str], Sequence[str | None], Sequence[int], int], NDArray[np.float32]]
"""(pipe, method, prompts, negatives, noise seeds, steps) -> pictures [N, H, W, 3] in [0, 1]."""


# ---------------------------------------------------------------------------------------------------------------
# Cases


@dataclass(frozen=True)
class Case:
    """One question: draw ``prompt`` without ``negative``.

    ``negative`` is a typical part of the object; ``unrelated`` another part, atypical of the object, that nothing asks
    for; ``kept`` are the object's other typical parts. ``id`` names the case within its split.
    """

    id: str
    prompt: str
    negative: str
    unrelated: str
    kept: tuple[str, ...]
    object: str
    color: str
    background: str
    split: str

    def noise_seed(self, seed: int) -> int:
        """Seed of the initial noise: a function of case and seed only, so every method starts from the same noise."""
        return int.from_bytes(sha256(f"{self.id}|{seed}".encode()).digest()[:7], "big")


def demo_cases(split: str, n: int, seed: int = 0, background: bool = True) -> list[Case]:
    """``n`` different cases of a held-out split, spread evenly over the (object, typical part) pairs.

    Only combinations that ``world.split`` puts in ``split`` are used, so "dev" and "test" share none. With
    ``background=False`` the prompt is "a red bike" without "on grass"; such a prompt itself is not unseen in training.

    Raises:
        ValueError: ``split`` is not "dev" or "test", or there are fewer than ``n`` cases.
    """
    if split not in ("dev", "test"):
        raise ValueError(f"cases are drawn from the held-out splits: dev or test, got {split!r}")
    rng = np.random.default_rng([seed, ("dev", "test").index(split)])
    queues: list[list[Case]] = []
    for name, typical in world.TYPICAL.items():
        for part in typical:
            triples = [
                (color, where)
                for color, where in itertools.product(world.COLORS, world.BACKGROUNDS)
                if world.split(name, color, where, part) == split
            ]
            strangers = [p for p in world.PARTS if p not in typical]
            queue: list[Case] = []
            for i in rng.permutation(len(triples)):
                color, where = triples[i]
                scene = world.Scene(name, color, (), where, "flat", 0)
                prompt = world.caption(scene, "bare", rng, background, False)
                kept = tuple(p for p in typical if p != part)
                unrelated = strangers[int(rng.integers(len(strangers)))]
                key = f"{name}/{color}/{where}/{part}{'' if background else '/unnamed'}"
                queue.append(Case(key, prompt, part, unrelated, kept, name, color, where, split))
            queues.append(queue)
    order = rng.permutation(len(queues))
    longest = max(map(len, queues))
    cases = [queues[k][depth] for depth in range(longest) for k in order if depth < len(queues[k])]
    if not 1 <= n <= len(cases):
        raise ValueError(f"the {split} split has 1 to {len(cases)} cases, got n = {n}")
    return cases[:n]


# ---------------------------------------------------------------------------------------------------------------
# Pictures


@contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """No progress bar per batch; the caller's setting comes back."""
    before = getattr(pipe, "_progress_bar_config", None)
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        if before is not None:
            pipe._progress_bar_config = before
        elif hasattr(pipe, "_progress_bar_config"):
            del pipe._progress_bar_config


def draw(
    pipe: Any,
    method: Any,
    prompts: Sequence[str],
    negatives: Sequence[str | None],
    seeds: Sequence[int],
    steps: int,
) -> NDArray[np.float32]:
    """Draw one picture per prompt, each from its own noise seed: [N, H, W, 3] in [0, 1].

    ``method`` is a :class:`vsf.Guidance`.
    """
    import torch

    from ..guide import negative_guidance

    common: dict[str, Any] = {
        "num_inference_steps": steps,
        "generator": [torch.Generator("cpu").manual_seed(s) for s in seeds],
        "max_sequence_length": TEXT_LENGTH,
        "output_type": "np",
    }
    with (
        _quiet(pipe),
        torch.no_grad(),
        negative_guidance(pipe, method, list(negatives), max_sequence_length=TEXT_LENGTH),
    ):
        return pipe(list(prompts), guidance_scale=0.0, **common).images


def provenance(pipe: Any, oracle: Oracle) -> dict[str, Any]:
    """What a figure depends on besides the settings: versions, and hashes of the model's and the oracle's weights."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for name in ("vsf", "torch", "diffusers", "transformers", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            if name == "vsf":
                from .. import __version__

                versions[name] = __version__
    return {
        "versions": versions,
        "machine": platform.machine(),
        "model": type(pipe).__name__,
        "model_sha256": _weights_hash(pipe),
        "oracle_sha256": oracle.fingerprint,
        "quality_threshold": oracle.threshold,
    }


def _weights_hash(pipe: Any) -> str | None:
    """SHA-256 over names and bytes of all tensors of all components; None for something without components."""
    import torch

    components = getattr(pipe, "components", None)
    if not components:
        return None
    digest = sha256()
    for name in sorted(components):
        if isinstance(components[name], torch.nn.Module):
            for key, tensor in sorted(components[name].state_dict().items()):
                digest.update(f"{name}.{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------
# Verdicts


@dataclass(frozen=True)
class Record:
    """What was read in one picture. ``negative`` is "true" or "unrelated"; ``kept`` pairs with the case's ``kept``."""

    case: str
    seed: int
    negative: str
    object: str
    color: str
    object_ok: bool
    color_ok: bool
    part: float
    kept: tuple[float, ...]
    quality: float
    whole: bool

    @property
    def positive(self) -> bool:
        """Object and colour are what the prompt says."""
        return self.object_ok and self.color_ok

    @property
    def absent(self) -> bool:
        """The unwanted part is gone."""
        return self.part < 0.5

    @property
    def joint(self) -> bool:
        """Everything at once: object, colour, part gone, and the picture whole."""
        return self.positive and self.absent and self.whole

    @property
    def intact(self) -> bool:
        """Everything but the removal: what a negative about something else should leave behind."""
        return self.positive and not self.absent and self.whole


@dataclass(frozen=True)
class EvalResult:
    """All records of one method with what is needed to make them again."""

    method: dict[str, Any]
    steps: int
    seeds: tuple[int, ...]
    cases: tuple[Case, ...]
    records: tuple[Record, ...]
    provenance: dict[str, Any]

    def _of(self, negative: str) -> list[Record]:
        return [r for r in self.records if r.negative == negative]

    def per_image(self, name: str) -> tuple[NDArray[np.float64], list[str]]:
        """Values [N] of one figure of :meth:`summary`, in order of (case, seed), and the case of each: for paired
        comparisons of two methods. Retention is given for images whose case has other parts."""
        true, unrelated = self._of("true"), self._of("unrelated")
        ids = [r.case for r in true]
        values: list[float]
        if name == "retention":
            held = [r for r in true if r.kept]
            return np.array([np.mean([p >= 0.5 for p in r.kept]) for r in held], dtype=float), [r.case for r in held]
        if name == "specificity":
            values = [float(t.absent) - float(u.absent) for t, u in zip(true, unrelated, strict=True)]
        elif name == "objective":
            values = [(float(t.joint) + float(u.intact)) / 2 for t, u in zip(true, unrelated, strict=True)]
        elif name.endswith("_unrelated"):
            values = [float(getattr(r, name.removesuffix("_unrelated"))) for r in unrelated]
        else:
            values = [float(getattr(r, name)) for r in true]
        return np.array(values, dtype=float), ids

    def summary(self) -> dict[str, stats.Interval]:
        """Means with 95 % intervals clustered by case.

        object_ok, color_ok, positive (both), absent, joint, whole, quality: with the true negative; retention: share
        of the object's other parts still there; ..._unrelated: the same noise with the unrelated negative;
        specificity: absent - absent_unrelated; objective: see ``OBJECTIVE``.
        """
        result: dict[str, stats.Interval] = {}
        for name in _PROPORTIONS:
            result[name] = stats.cluster_proportion(*self.per_image(name))
        for name in _MEANS:
            values, ids = self.per_image(name)
            if len(values):
                bounds = (-1.0 if name == "specificity" else 0.0, 1.0)
                result[name] = stats.cluster_mean(values, ids, bounds=bounds)
        return result

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: settings, provenance, summary, cases, records."""
        data = asdict(self)
        return {
            "method": data["method"],
            "steps": self.steps,
            "seeds": list(self.seeds),
            "provenance": self.provenance,
            "objective": OBJECTIVE,
            "summary": {k: v.to_dict() for k, v in self.summary().items()},
            "cases": data["cases"],
            "records": data["records"],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EvalResult:
        """The inverse of :meth:`to_dict`; the summary is computed anew."""

        def rows(kind: Any, items: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
            return tuple(kind(**{f.name: _frozen(item[f.name]) for f in fields(kind)}) for item in items)

        return cls(
            dict(data["method"]),
            int(data["steps"]),
            tuple(data["seeds"]),
            rows(Case, data["cases"]),
            rows(Record, data["records"]),
            dict(data["provenance"]),
        )

    def to_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict` to a file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", "utf-8")


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_PROPORTIONS = (
    "object_ok", "color_ok", "positive", "absent", "whole", "joint",
    "object_ok_unrelated", "positive_unrelated", "absent_unrelated", "whole_unrelated",
)  # fmt: skip
_MEANS = ("quality", "quality_unrelated", "specificity", "retention", "objective")

OBJECTIVE = (
    "half of joint (true negative: object and colour recognised, part gone, picture whole) plus half of intact "
    "(unrelated negative, same noise: object and colour recognised, part still there, picture whole)"
)


def _judge(reading: Reading, jobs: Sequence[tuple[Case, int, str]], threshold: float) -> list[Record]:
    objects, colors = reading.objects, reading.colors
    records: list[Record] = []
    for i, (case, seed, negative) in enumerate(jobs):
        at = [world.PARTS.index(p) for p in (case.negative, *case.kept)]
        part, *kept = (round(float(p), 4) for p in reading.part_probs[i, at])
        quality = round(float(reading.quality[i]), 4)
        records.append(
            Record(
                case=case.id,
                seed=seed,
                negative=negative,
                object=objects[i],
                color=colors[i],
                object_ok=objects[i] == case.object,
                color_ok=objects[i] == case.object and colors[i] == case.color,
                part=part,
                kept=tuple(kept),
                quality=quality,
                whole=quality >= threshold,
            )
        )
    return records


def evaluate(
    pipe: Any,
    oracle: Oracle,
    method: Any,
    cases: Sequence[Case],
    seeds: Sequence[int] = (0, 1),
    steps: int = STEPS,
    batch: int = 32,
    *,
    draw: Draw = draw,
    progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Draw every case with its true and its unrelated negative from each seed's noise, and judge the pictures.

    Colour counts only on the right object. ``draw`` can be replaced to judge anything that draws; ``progress`` is
    called with (pictures done, pictures in all).

    Raises:
        ValueError: no cases, no seeds, repeated ones, or a batch or number of steps below 1.
    """
    ids = [case.id for case in cases]
    if not cases or not seeds or len(set(ids)) < len(ids) or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"cases and seeds must be given without repeats, got {len(ids)} cases and seeds {list(seeds)}"
        )
    if batch < 1 or steps < 1:
        raise ValueError(f"batch and steps must be at least 1, got {batch} and {steps}")
    unguided = getattr(method, "label", None) == "none"  # both negatives would give the same picture
    kinds = ("true",) if unguided else ("true", "unrelated")
    jobs = [(case, seed, kind) for kind in kinds for case in cases for seed in seeds]
    records: list[Record] = []
    for start in range(0, len(jobs), batch):
        piece = jobs[start : start + batch]
        pictures = draw(
            pipe,
            method,
            [case.prompt for case, _, _ in piece],
            [case.negative if kind == "true" else case.unrelated for case, _, kind in piece],
            [case.noise_seed(seed) for case, seed, _ in piece],
            steps,
        )
        # A diverging method may give NaN; that is a broken picture, not a reason to stop.
        pictures = np.clip(np.nan_to_num(np.asarray(pictures, dtype=np.float32)), 0, 1)
        records += _judge(oracle.read(pictures), piece, oracle.threshold)
        if progress:
            progress(min(start + batch, len(jobs)), len(jobs))
    if unguided:
        records += [Record(**{**asdict(r), "negative": "unrelated"}) for r in records]
    return EvalResult(
        dict(method.settings()), steps, tuple(seeds), tuple(cases), tuple(records), provenance(pipe, oracle)
    )


def eval_table(results: Sequence[EvalResult], title: str = "") -> Table:
    """A rich table: a row per figure, a column per result."""
    from rich.table import Table

    table = Table(title=title or None)
    table.add_column("")
    for result in results:
        table.add_column(describe(result.method), justify="right")
    summaries = [result.summary() for result in results]
    for name in _SHOWN:
        table.add_row(name.replace("_ok", "").replace("_", " "), *(_cell(s.get(name)) for s in summaries))
    return table


_SHOWN = (
    "object_ok", "color_ok", "positive", "absent", "absent_unrelated", "specificity", "retention", "quality", "whole",
    "joint",
)  # fmt: skip


def _cell(i: stats.Interval | None) -> str:
    return "-" if i is None else f"{i.mean:.3f} [dim]({i.low:.3f} to {i.high:.3f})[/dim]"


def describe(settings: Mapping[str, Any]) -> str:
    """A method's settings in one line, without what is off or left open."""
    skip = {"start": 0.0, "stop": 1.0}
    parts = [
        f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in settings.items()
        if k != "method" and v is not None and skip.get(k) != v
    ]
    return f"{settings['method']}" + (": " + ", ".join(parts) if parts else "")


# ---------------------------------------------------------------------------------------------------------------
# Tuning


@dataclass(frozen=True)
class Space:
    """Settings to try for one method: ``make(**knobs)`` for every combination of ``knobs``, some may be refused."""

    make: Callable[..., Any]
    knobs: Mapping[str, Sequence[Any]]

    def settings(self, budget: int, rng: np.random.Generator) -> list[dict[str, Any]]:
        """The whole grid if it has at most ``budget`` points, else that many of them at random."""
        grid = [dict(zip(self.knobs, values, strict=True)) for values in itertools.product(*self.knobs.values())]
        if len(grid) > budget:
            grid = [grid[i] for i in sorted(rng.choice(len(grid), size=budget, replace=False))]
        return grid


@dataclass(frozen=True)
class TuneResult:
    """Every setting tried with its dev figures, best first within a method; ``best`` is chosen by the objective."""

    best: dict[str, Any]
    rows: list[dict[str, Any]]
    meta: dict[str, Any]

    def to_json(self, path: str | Path) -> None:
        """Write everything to a file."""
        data = {**self.meta, "best": {k: m.settings() for k, m in self.best.items()}, "rows": self.rows}
        Path(path).write_text(json.dumps(data, indent=1) + "\n", "utf-8")


def tune(
    pipe: Any,
    oracle: Oracle,
    method_space: Mapping[str, Space],
    cases: Sequence[Case],
    budget: int,
    seed: int = 0,
    *,
    seeds: Sequence[int] = (0,),
    steps: int = STEPS,
    batch: int = 32,
    draw: Draw = draw,
    progress: Callable[[str, float], None] | None = None,
) -> TuneResult:
    """Choose settings per method on dev cases, every method with the same number of settings to try.

    The objective is ``OBJECTIVE``: it rewards removal only when the picture survives and when an unrelated negative
    removes nothing, so neither doing nothing (about 1/2) nor wrecking pictures (0) wins. Ties go to the setting tried
    first. A method whose grid is smaller than ``budget`` is tried completely.

    Raises:
        ValueError: a case is not of the dev split (settings must never be chosen on test cases), or budget < 1.
    """
    wrong = [case.id for case in cases if case.split != "dev"]
    if wrong:
        raise ValueError(f"settings are chosen on dev cases only; {len(wrong)} are not, the first is {wrong[0]}")
    if budget < 1:
        raise ValueError(f"budget must be at least 1, got {budget}")
    best: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for number, (name, space) in enumerate(method_space.items()):
        found: list[dict[str, Any]] = []
        top = -1.0
        for knobs in space.settings(budget, np.random.default_rng([seed, number])):
            method = space.make(**knobs)
            result = evaluate(pipe, oracle, method, cases, seeds, steps, batch, draw=draw)
            summary = {k: v.to_dict() for k, v in result.summary().items()}
            found.append({"name": name, "method": result.method, "summary": summary})
            score = summary["objective"]["mean"]
            if score > top:
                top, best[name] = score, method
            if progress:
                progress(describe(result.method), float(score))
        rows += sorted(found, key=lambda row: -row["summary"]["objective"]["mean"])
    meta = {
        "objective": OBJECTIVE,
        "budget": budget,
        "seed": seed,
        "seeds": list(seeds),
        "steps": steps,
        "cases": [case.id for case in cases],
        "space": {k: {n: list(v) for n, v in s.knobs.items()} for k, s in method_space.items()},
        "provenance": provenance(pipe, oracle),
    }
    return TuneResult(best, rows, meta)
