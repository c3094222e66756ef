"""A judge that `vsf judge train` made: by default the small one of the demo world that comes with the package.

That one is Qwen2.5-VL's architecture with 3 million parameters, trained from nothing on pictures of the demo world.
docs/evidence/judge has its figures, and which objects it never saw.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...registry import check, option
from ..run import Answer
from .base import Exhibit, JudgeError
from .calibration import FILE
from .local import LocalJudge

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["TunedJudge", "shipped"]


def shipped() -> Path:
    """The folder of the judge that comes with the package."""
    return Path(str(files("vsf.bench").joinpath("judges/weights/small")))


@dataclass(eq=False)
class TunedJudge:
    """Asks as `LocalJudge` does, with the temperatures and cuts that its folder brings.

    `answer_1`, `answer_2`, `kept`, `quality`: as there. A folder with an adapter says itself which model it is for; `base` is
    another place of that one.

    Raises:
        JudgeError: no such folder, nothing that `vsf judge train` made, its base is not here, or peft is not installed.
        ValueError: a number out of range.
    """

    gives: ClassVar = LocalJudge.gives

    model: str | Path | None = option(
        "a folder that vsf judge train made; else the small judge of the demo world that comes with vsf", None
    )
    _: KW_ONLY
    base: str | Path | None = option("the model that an adapter is for; else the one that it names", None)
    device: str | None = option("cpu, cuda, ...; else a GPU if there is one", None)
    dtype: str | None = option("float32, bfloat16 or float16; else float32 on a CPU and bfloat16 elsewhere", None)
    raw: bool = option("the model's own probabilities, without the temperatures and cuts in its folder", False)
    download: bool = option("fetch the adapter's base from the hub; else it must be in the local cache", False)

    def __post_init__(self) -> None:
        check(self)
        folder = shipped() if self.model is None else Path(str(self.model))
        if not folder.is_dir():
            raise JudgeError(
                f"there is no folder {folder}; the model of a tuned judge is one that vsf judge train made"
            )
        if not (folder / FILE).is_file():
            raise JudgeError(
                f"{folder} is no judge that vsf judge train made: it has no {FILE} (--judge local takes any model)"
            )
        config, base = folder / "adapter_config.json", str(folder)
        adapter = folder if config.is_file() else None
        if adapter is None and self.base is not None:
            raise JudgeError(f"{folder} holds a whole model, for which there is no other base")
        if adapter is not None:
            try:
                base = str(self.base or json.loads(config.read_text("utf-8"))["base_model_name_or_path"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise JudgeError(f"the adapter in {folder} does not say which model it is for ({error})") from error
        self._judge = LocalJudge(
            base, adapter=adapter, device=self.device, dtype=self.dtype, raw=self.raw, download=self.download
        )
        self._name = "vsf-small-judge" if self.model is None else str(folder)
        # Those of an adapter are in the local judge's record; a base in shards, or of the hub, has its name and revision.
        weights = folder / "model.safetensors"
        self._sha256 = sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
        self.calibration = self._judge.calibration

    def about(self) -> dict[str, Any]:
        """As of `LocalJudge`, with the hash of the weights; what comes with the package is not named by where it lies."""
        about = {**self._judge.about(), "kind": "tuned", "weights_sha256": self._sha256}
        return {**about, "model": self._name, "base": None if about["adapter"] is None else about["model"]}

    def read(self, items: Sequence[Exhibit]) -> Iterator[Answer]:
        """Answers in order."""
        return self._judge.read(items)

    def answer(self, picture: Image.Image, question: str, *, asks: str = "other", item: str = "") -> float | None:
        """P(yes), calibrated by `asks`; see `LocalJudge.answer`."""
        return self._judge.answer(picture, question, asks=asks, item=item)
