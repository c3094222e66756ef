"""A vision-language model on this machine as a judge: Qwen2.5-VL, or any image-text-to-text model of transformers.

Nothing is generated. A question ends in "Answer yes or no.", and the answer is read from the model's next-token
probabilities: P(yes) = p(yes tokens) / (p(yes tokens) + p(no tokens)). That gives a probability instead of a word, is
deterministic, and cannot be cut off or malformed. What the two words share of all probability is noted as `mass`: a
model that wanted to say something else is not judged by the crumbs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..run import Answer
from .base import Item, JudgeError, PictureError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["LocalJudge"]

PROMPT_VERSION = 1

_YES_NO = ("yes", "no")
_GOOD_POOR = ("good", "poor")
_QUALITY = (
    "Whatever this picture shows or lacks, how well is it made? Think of distortions, artefacts, noise and blur. "
    "Answer good or poor."
)


class LocalJudge:
    """Asks one question at a time and compares the probabilities of two words.

    `answer_1`, `answer_2`: P(yes) >= 0.5 to the case's questions. `kept`: the share of the kept parts with
    P(yes) >= 0.5 to "Can you see PART in this picture?". `quality`: P(good) against P(poor), as in Q-Bench (Wu et al.
    2023, arXiv 2309.14181). All probabilities are in the details; they are the model's own and not calibrated.

    Args:
        model: a folder, or an id of the hub.
        adapter: folder of a LoRA adapter of peft (safetensors), such as a fine-tuned judge.
        device: "cpu", "cuda", ...; a GPU if there is one.
        dtype: "float32", "bfloat16", ...; by default float32 on a CPU and bfloat16 elsewhere.
        revision: of an id.
        download: whether an id may be fetched from the hub; otherwise it must be in the local cache.
        mass: the least share of all probability that the two words must have together.

    Raises:
        JudgeError: no such model here, no image-text-to-text model, or weights that are not safetensors.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        adapter: str | Path | None = None,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        download: bool = False,
        mass: float = 0.1,
    ) -> None:
        import inspect

        import torch
        from transformers import AutoModelForImageTextToText

        self.name, self.revision, self.mass = str(model), revision, mass
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = dtype or ("float32" if self.device == "cpu" else "bfloat16")
        kind = getattr(torch, self.dtype, None)
        if not isinstance(kind, torch.dtype):
            raise JudgeError(f"unknown dtype {self.dtype!r}; allowed: float32, bfloat16, float16")
        where: dict[str, Any] = {"local_files_only": not download, "revision": revision}
        try:
            self.processor = _processor(self.name, **where)
            loaded = AutoModelForImageTextToText.from_pretrained(self.name, dtype=kind, use_safetensors=True, **where)
            net: Any = loaded
        except Exception as error:  # files of other people: there is no list of what they raise
            hint = "" if download or Path(self.name).exists() else "; an id is fetched with --download"
            raise JudgeError(f"the judge {self.name} cannot be loaded: {_line(error)}{hint}") from error
        if not getattr(self.processor, "chat_template", None):
            raise JudgeError(f"the judge {self.name} cannot be asked: it has no chat template")
        # Of a picture's hundreds of tokens only the last one's logits are of interest.
        last = "logits_to_keep" in inspect.signature(net.forward).parameters
        self._options = {"use_cache": False, **({"logits_to_keep": 1} if last else {})}
        self._architecture = type(net).__name__
        self.adapter = None if adapter is None else str(adapter)
        self._adapter_sha256 = None
        if adapter is not None:
            net, self._adapter_sha256 = _adapt(net, Path(adapter))
        self.net = net.to(self.device).eval()
        self._words: dict[tuple[str, str], list[list[int]]] = {
            pair: [self._tokens(word) for word in pair] for pair in (_YES_NO, _GOOD_POOR)
        }
        if any(set(first) & set(second) for first, second in self._words.values()):
            raise JudgeError(f"the judge {self.name} begins yes and no, or good and poor, with the same token")

    def about(self) -> dict[str, Any]:
        """Model, adapter, precision and what is asked."""
        return {
            "kind": "local",
            "model": self.name,
            "revision": self.revision or getattr(self.net.config, "_commit_hash", None),
            "architecture": self._architecture,
            "adapter": self.adapter,
            "adapter_sha256": self._adapter_sha256,
            "dtype": self.dtype,
            "mass": self.mass,
            "prompt_version": PROMPT_VERSION,
        }

    def read(self, items: Sequence[Item]) -> Iterator[Answer]:
        """Answers in order."""
        for item in items:
            yield self._answer(item)

    def _answer(self, item: Item) -> Answer:
        try:
            picture = item.picture()
        except PictureError as error:
            return item.not_judged(str(error))
        questions = {
            "answer_1": (f"{item.case.question_1} Answer yes or no.", _YES_NO),
            "answer_2": (f"{item.case.question_2} Answer yes or no.", _YES_NO),
            "quality": (_QUALITY, _GOOD_POOR),
        } | {f"kept:{p}": (f"Can you see {p} in this picture? Answer yes or no.", _YES_NO) for p in item.kept}
        chance: dict[str, float] = {}
        for name, (question, words) in questions.items():
            chance[name], mass = self.probability(picture, question, words)
            if not mass >= self.mass:  # also for nan
                return item.not_judged(
                    f"no answer: {mass:.3f} of the probability is on {' or '.join(words)} to the question for {name}"
                )
        parts = [chance[f"kept:{part}"] >= 0.5 for part in item.kept]
        return item.judged(
            answer_1=chance["answer_1"] >= 0.5,
            answer_2=chance["answer_2"] >= 0.5,
            quality=round(chance["quality"], 6),
            kept=sum(parts) / len(parts) if parts else None,
            details={"probabilities": {name: round(p, 6) for name, p in chance.items()}},
        )

    def probability(
        self, picture: Image.Image, question: str, words: tuple[str, str] = _YES_NO
    ) -> tuple[float, float]:
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
        first, second = (float(p[tokens].sum()) for tokens in self._words[words])
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


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


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

    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise JudgeError(f"no adapter in {folder}: adapter_config.json and adapter_model.safetensors are needed")
    try:
        from peft import PeftModel
    except ImportError:
        raise JudgeError("an adapter needs the peft package: pip install peft") from None
    try:
        adapted = PeftModel.from_pretrained(net, str(folder), local_files_only=True, use_safetensors=True)
    except Exception as error:
        raise JudgeError(f"the adapter in {folder} cannot be used: {_line(error)}") from error
    return adapted, sha256(weights.read_bytes()).hexdigest()
