"""A vision-language model on this machine as a judge: Qwen2.5-VL, or any image-text-to-text model of transformers.

Nothing is generated. A question ends in "Answer yes or no.", and the answer is read from the model's next-token
probabilities: P(yes) = p(yes tokens) / (p(yes tokens) + p(no tokens)). That gives a probability instead of a word, is
deterministic, and cannot be cut off or malformed. What the two words share of all probability is noted as `mass`: a
model that wanted to say something else is not judged by the crumbs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...grammar import first_line
from ...libraries import install
from ...registry import check, option
from ..run import Answer
from .base import Exhibit, JudgeError, PictureError, loading
from .calibration import Calibration

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["LocalJudge"]

PROMPT_VERSION = 1

YES_NO_ASKED = " Answer yes or no."
"""How every question about yes and no ends."""

YES_NO = ("yes", "no")
_GOOD_POOR = ("good", "poor")
_ASKS = {"answer_1": "object", "answer_2": "missing", "kept": "kept"}
QUALITY = (
    "Whatever this picture shows or lacks, how well is it made? Think of distortions, artefacts, noise and blur. "
    "Answer good or poor."
)


@dataclass(eq=False)
class LocalJudge:
    """Asks one question at a time and compares the probabilities of two words.

    `answer_1`, `answer_2`: P(yes) >= 0.5 to the case's questions. `kept`: the share of the kept parts with
    P(yes) >= 0.5 to "Can you see PART in this picture?". `quality`: P(good) against P(poor), as in Q-Bench (Wu et al.
    2023, arXiv 2309.14181). All probabilities are in the details. They are the model's own, unless a file `judge.json` lies
    beside its weights (or the adapter's), as `vsf judge train` writes it: then each kind of question has a temperature and a cut,
    if not `raw`.

    Raises:
        JudgeError: no such model here, no image-text-to-text model, or weights that are not safetensors.
        ValueError: a number out of range.
    """

    gives: ClassVar = ("answer_1", "answer_2", "quality", "kept")

    model: str | Path = option("a folder, or an id of the hub")
    _: KW_ONLY
    adapter: str | Path | None = option(
        "folder of a LoRA adapter of peft (safetensors), such as a fine-tuned judge", None
    )
    device: str | None = option("cpu, cuda, ...; else a GPU if there is one", None)
    dtype: str | None = option("float32, bfloat16 or float16; else float32 on a CPU and bfloat16 elsewhere", None)
    revision: str | None = option("of an id", None)
    download: bool = option("fetch an id from the hub; else it must be in the local cache", False)
    raw: bool = option("the model's own probabilities, without the temperatures and cuts in its folder", False)
    mass: float = option("least share of all probability that the two words must have together", 0.1, low=0, high=1)

    def __post_init__(self) -> None:
        check(self)
        import inspect

        import torch
        from transformers import AutoModelForImageTextToText

        self.name, revision = str(self.model), self.revision
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = self.dtype or ("float32" if self.device == "cpu" else "bfloat16")
        kind = getattr(torch, self.dtype, None)
        if not isinstance(kind, torch.dtype):
            raise JudgeError(f"unknown dtype {self.dtype!r}; allowed: float32, bfloat16, float16")
        where: dict[str, Any] = {"local_files_only": not self.download, "revision": revision}
        with loading("judge", self.name, self.download):
            self.processor = _processor(self.name, **where)
            loaded = AutoModelForImageTextToText.from_pretrained(self.name, dtype=kind, use_safetensors=True, **where)
            net: Any = loaded
        if not getattr(self.processor, "chat_template", None):
            raise JudgeError(f"the judge {self.name} cannot be asked: it has no chat template")
        # Of a picture's hundreds of tokens only the last one's logits are of interest.
        last = "logits_to_keep" in inspect.signature(net.forward).parameters
        self._options = {"use_cache": False, **({"logits_to_keep": 1} if last else {})}
        self._architecture = type(net).__name__
        self._adapter_sha256 = None
        if self.adapter is not None:
            net, self._adapter_sha256 = _adapt(net, Path(self.adapter))
        folder = Path(self.name if self.adapter is None else self.adapter)
        self.calibration = Calibration() if self.raw else Calibration.read(folder)
        self.net = net.to(self.device).eval()
        self.words: dict[tuple[str, str], list[list[int]]] = {
            pair: [self._tokens(word) for word in pair] for pair in (YES_NO, _GOOD_POOR)
        }
        if any(set(first) & set(second) for first, second in self.words.values()):
            raise JudgeError(f"the judge {self.name} begins yes and no, or good and poor, with the same token")

    def about(self) -> dict[str, Any]:
        """Model, adapter, precision and what is asked."""
        return {
            "kind": "local",
            "model": self.name,
            "revision": self.revision or getattr(self.net.config, "_commit_hash", None),
            "architecture": self._architecture,
            "adapter": None if self.adapter is None else str(self.adapter),
            "adapter_sha256": self._adapter_sha256,
            "dtype": self.dtype,
            "mass": self.mass,
            "calibration": self.calibration.about(),
            "prompt_version": PROMPT_VERSION,
        }

    def read(self, items: Sequence[Exhibit]) -> Iterator[Answer]:
        """Answers in order."""
        for item in items:
            yield self._answer(item)

    def _answer(self, item: Exhibit) -> Answer:
        try:
            picture = item.picture()
        except PictureError as error:
            return item.not_judged(str(error))
        questions = {
            "answer_1": (item.case.question_1 + YES_NO_ASKED, YES_NO),
            "answer_2": (item.case.question_2 + YES_NO_ASKED, YES_NO),
            "quality": (QUALITY, _GOOD_POOR),
        } | {f"kept:{p}": (f"Can you see {p} in this picture?{YES_NO_ASKED}", YES_NO) for p in item.kept}
        chance: dict[str, float] = {}
        unclear: dict[str, str] = {}
        for name, (question, words) in questions.items():
            p, mass = self.probability(picture, question, words)
            if mass >= self.mass:  # not for nan
                chance[name] = self.calibration(p, _ASKS.get(name.partition(":")[0], ""))
            else:
                unclear[name] = f"{mass:.3f} of the probability is on {' or '.join(words)}"
        if not chance:
            name, why = next(iter(unclear.items()))
            return item.not_judged(f"no answer: {why} to the question for {name}")
        yes = {name: p >= 0.5 for name, p in chance.items()}
        parts = [yes.get(f"kept:{part}") for part in item.kept]
        return item.judged(
            answer_1=yes.get("answer_1"),
            answer_2=yes.get("answer_2"),
            quality=round(chance["quality"], 6) if "quality" in chance else None,
            kept=None if None in parts or not parts else sum(map(bool, parts)) / len(parts),
            details={"probabilities": {name: round(p, 6) for name, p in chance.items()}}
            | ({"cannot tell": unclear} if unclear else {}),
        )

    def answer(self, picture: Image.Image, question: str, *, asks: str = "other", item: str = "") -> float | None:
        """P(yes) against P(no), calibrated by `asks`; None where the two have less than `mass`. `item` is not used."""
        p, mass = self.probability(picture, question + YES_NO_ASKED)
        return self.calibration(p, asks) if mass >= self.mass else None  # not for nan

    def probability(self, picture: Image.Image, question: str, words: tuple[str, str] = YES_NO) -> tuple[float, float]:
        """Probability of the first word against the second, and what both have of all probability."""
        import torch

        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.device, self.net.dtype)
        with torch.inference_mode():
            logits = self.net(**inputs, **self._options).logits[0, -1].float()
        p = logits.softmax(0).cpu()
        first, second = (float(p[tokens].sum()) for tokens in self.words[words])
        total = first + second
        return (first / total if total > 0 else 0.5), total

    def _tokens(self, word: str) -> list[int]:
        """First tokens of a word in the ways in which a model may write it. Raises JudgeError."""
        tokenizer = self.processor.tokenizer
        found: set[int] = set()
        for text in (word, word.capitalize(), word.upper(), f" {word}", f" {word.capitalize()}"):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            # A leading space may be a token of its own, which would say nothing about the word.
            ids = [i for i in ids if tokenizer.decode([i]).strip()]
            if ids:
                found.add(ids[0])
        if not found:
            raise JudgeError(f"the judge {self.name} has no token for {word!r}")
        return sorted(found)


def _processor(model: str, **where: Any) -> Any:
    """The model's processor; without its part for videos where torchvision is missing, which only that part needs."""
    from importlib.util import find_spec

    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    if find_spec("torchvision") is not None:
        return AutoProcessor.from_pretrained(model, **where)
    stock: Any = PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(model, **where)), None)
    if stock is None or not any("video" in name for name in stock.get_attributes()):
        return AutoProcessor.from_pretrained(model, **where)

    class WithoutVideo(stock):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in stock.get_attributes() if "video" not in name]

    WithoutVideo.__name__ = stock.__name__
    return WithoutVideo.from_pretrained(model, **where)


def _adapt(net: Any, folder: Path) -> tuple[Any, str]:
    """The model with a LoRA adapter, and the hash of the adapter's weights. Raises JudgeError."""
    from hashlib import sha256

    if not folder.is_dir():
        raise JudgeError(f"there is no folder {folder} with an adapter")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise JudgeError(f"no adapter in {folder}: adapter_config.json and adapter_model.safetensors are needed")
    try:
        from peft import PeftModel
    except ImportError:
        raise JudgeError(f"an adapter needs the peft package: {install('judge')}") from None
    try:
        adapted = PeftModel.from_pretrained(net, str(folder), local_files_only=True, use_safetensors=True)
    except Exception as error:
        raise JudgeError(f"the adapter in {folder} cannot be used: {first_line(error)}") from error
    return adapted, sha256(weights.read_bytes()).hexdigest()
