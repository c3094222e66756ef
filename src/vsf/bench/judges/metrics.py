"""Measures as judges: how good a picture is without a language model, and how much people would like it.

They answer no question about the case. Quality is between 0 and 1, larger is better; the raw score is in the details.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from ...demo.worlds import FIRST
from ...registry import check, option
from ..cases import Case
from ..run import Answer
from .base import Exhibit, JudgeError, PictureError, loading
from .oracle import load, readings, world_of

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MetricJudge"]

_Measure: TypeAlias = "Callable[[Image.Image, str], tuple[float, float]]"
"""(picture, prompt) -> raw score, quality in [0, 1]."""
_Scored: TypeAlias = "Iterator[tuple[Exhibit, float | str, float]]"
_Scores: TypeAlias = "Callable[[Sequence[Exhibit]], _Scored]"


def _one_by_one(measure: _Measure) -> _Scores:
    def scores(items: Sequence[Exhibit]) -> _Scored:
        for item in items:
            try:
                yield item, *measure(item.picture(), item.case.prompt)
            except PictureError as error:
                yield item, str(error), 0.0

    return scores


def _clip(share: float) -> float:
    """The ends of a range are often approximate; nan stays nan."""
    return min(1.0, max(0.0, share)) if share == share else share


@dataclass(eq=False)
class MetricJudge:
    """Quality of each picture by one measure.

    - "demo": a demo world's own, distance to clean renders (see `vsf.demo.oracle`).
    - "preference": a CLIP-like model (PickScore, HPS, or any with `get_text_features`), `model` being its folder or
      id: the cosine of picture and prompt, moved from [-1, 1] to [0, 1]. Comparable within one model and one prompt.
    - any other name: a measure without reference of the library pyiqa ("clipiqa", "musiq", "niqe", ...), brought to
      [0, 1] by the range that pyiqa gives, turned round where lower is better.

    Raises:
        JudgeError: an unknown measure, a missing package, or no such model here.
    """

    gives: ClassVar = ("quality",)

    metric: str = option("demo, preference (with model), or a name of pyiqa: clipiqa, ...", "demo")
    _: KW_ONLY
    model: str | Path | None = option("folder or id of the scorer, for preference only", None)
    device: str | None = option("cpu, cuda, ...", None)
    download: bool = option("fetch weights; pyiqa fetches its own, and is refused without", False)
    world: str | None = option("the demo world (default: that of the cases)", None)

    def __post_init__(self) -> None:
        check(self)
        metric, device, download = self.metric, self.device or "cpu", self.download
        if (metric == "preference") != (self.model is not None):
            raise JudgeError('a model is given for the measure "preference", and only there')
        self._about: dict[str, Any] = {}
        if metric == "demo":
            self._scores = self._demo()
        elif metric == "preference":
            self._scores = _one_by_one(self._preference(str(self.model), device, download))
        else:
            self._scores = _one_by_one(self._pyiqa(metric, device, download))

    def about(self) -> dict[str, Any]:
        """Which measure, by which weights."""
        model = None if self.model is None else str(self.model)
        return {"kind": "metrics", "version": 1, "metric": self.metric, "model": model, **self._about}

    def refuses(self, case: Case) -> str | None:
        """A demo world's measure: whether the case is of another world."""
        if self.metric != "demo":
            return None
        of = world_of(self.world)
        ours = case.object in of.objects and (case.world or FIRST) == of.name
        return None if ours else "not a case of the demo world"

    def read(self, items: Sequence[Exhibit]) -> Iterator[Answer]:
        """Answers as they are measured."""
        for item, score, quality in self._scores(items):
            if isinstance(score, str):
                yield item.not_judged(score)
            elif not 0 <= quality <= 1:  # also nan
                yield item.not_judged(f"no number: {self.metric} says {score}")
            else:
                yield item.judged(quality=round(quality, 6), details={"score": round(score, 6)})

    def _demo(self) -> _Scores:
        oracle = load(world_of(self.world))
        self._about = {"oracle_sha256": oracle.fingerprint, "threshold": oracle.threshold}

        def scores(items: Sequence[Exhibit]) -> _Scored:
            for item, reading, at in readings(oracle, items):
                quality = reading if isinstance(reading, str) else float(reading.quality[at].mean())
                yield item, quality, quality if isinstance(quality, float) else 0.0

        return scores

    def _preference(self, name: str, device: str, download: bool) -> _Measure:
        import torch
        from transformers import AutoModel, AutoProcessor

        where: dict[str, Any] = {"local_files_only": not download}
        with loading("scorer", name, download):
            processor: Any = AutoProcessor.from_pretrained(name, **where)
            net = AutoModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32, **where)
        if not hasattr(net, "get_text_features"):
            raise JudgeError(
                f"the scorer {name} is a {type(net).__name__}; one with text and image features is needed"
            )
        net = net.to(device).eval()
        self._about = {"architecture": type(net).__name__, "revision": getattr(net.config, "_commit_hash", None)}

        def score(picture: Image.Image, prompt: str) -> tuple[float, float]:
            inputs = processor(text=[prompt], images=[picture], padding=True, truncation=True, return_tensors="pt")
            with torch.inference_mode():
                out = net(**inputs.to(device))
            cosine = float(torch.nn.functional.cosine_similarity(out.text_embeds, out.image_embeds)[0])
            return cosine, _clip((1 + cosine) / 2)

        return score

    def _pyiqa(self, metric: str, device: str, download: bool) -> _Measure:
        import numpy as np

        try:
            import pyiqa  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise JudgeError(
                f'the measure {metric!r} needs the pyiqa package (pip install pyiqa); "demo" and "preference" do not'
            ) from None
        import torch

        if metric not in pyiqa.list_models(metric_mode="NR"):
            raise JudgeError(f"pyiqa has no measure {metric!r} that needs no reference picture")
        if not download:
            raise JudgeError(f"pyiqa fetches the weights of {metric!r} itself; that needs --download")
        net = pyiqa.create_metric(metric, device=torch.device(device))
        try:  # such as "0, 1", "~0, ~100" (about) or "0, ~" (no end)
            low, high = (float(end.strip().lstrip("~")) for end in str(net.score_range).split(","))
        except ValueError:
            raise JudgeError(
                f"{metric!r} has the range {net.score_range!r}, which cannot be brought to 0 to 1; such as clipiqa and musiq can"
            ) from None
        self._about = {"pyiqa": pyiqa.__version__, "score_range": [low, high], "lower_better": net.lower_better}

        def score(picture: Image.Image, prompt: str) -> tuple[float, float]:
            pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 255
            with torch.inference_mode():
                value = float(net(pixels.to(device)))
            share = (value - low) / (high - low)
            return value, _clip(1 - share if net.lower_better else share)

        return score
