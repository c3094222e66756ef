"""What tuning a model would take, from its config alone: the model is built without weights (on torch's device "meta").

Parameters are counted; memory and time follow from them by rules of thumb, which are said beside every number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..bench.judges.base import loading
from .train import Tune, adapter

__all__ = ["Estimate", "estimate"]

_GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """Parameters, tokens, memory and work of a tuning.

    Attributes:
        vision, text: parameters of the vision tower and of the language model.
        trained: of the adapter.
        tokens: of a picture with its questions, in the language model; `patches` in the vision tower.
        weights, state, activations: GiB. Weights in bf16; for what is trained, fp32 weights, gradients, two moments and an
            average; activations in bf16 of every layer's input, and of all that one layer keeps (18 widths and 3
            intermediate widths a token), or with that of every layer where nothing is computed again.
        flops: of all steps: 2 per parameter and token forward, as many backward to the activations (frozen weights need
            no gradient of their own), and the forward pass once more where activations are computed again.
    """

    vision: int
    text: int
    trained: int
    tokens: int
    patches: int
    weights: float
    state: float
    activations: float
    flops: float

    @property
    def memory(self) -> float:
        """GiB in all, without what the allocator wastes."""
        return self.weights + self.state + self.activations

    def hours(self, tflops: float) -> float:
        """At so many teraflops a second that are really reached."""
        return self.flops / (tflops * 1e12 * 3600)


def estimate(recipe: Tune, base: str, *, pixels: int = 784, questions: int = 3, words: int = 40,
             download: bool = False) -> Estimate:  # fmt: skip
    """What `tune` would take with pictures of pixels x pixels, so many questions about each, and words (tokens) a question.

    Only the config of `base` is read.

    Raises:
        JudgeError: it is no image-text model, or LoRA finds no layer in it.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForImageTextToText

    with loading("base", base, download):
        config = AutoConfig.from_pretrained(base, local_files_only=not download)
        with init_empty_weights():
            net: Any = AutoModelForImageTextToText.from_config(config)
    net.tie_weights()  # what is shared is counted once
    vision = sum(p.numel() for name, p in net.named_parameters() if "visual" in name or "vision" in name)
    text = sum(p.numel() for p in net.parameters()) - vision
    with init_empty_weights():
        net = adapter(net, recipe, base)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    inner, eye = config.get_text_config(), config.vision_config
    side = round(pixels / eye.patch_size / getattr(eye, "spatial_merge_size", 1))
    patches = (side * getattr(eye, "spatial_merge_size", 1)) ** 2
    tokens = side**2 + questions * words
    rows = recipe.train.batch

    def kept(count: int, width: int, between: int, layers: int) -> float:
        one = 2 * count * (18 * width + 3 * between)
        return (2 * count * width * layers + one) if recipe.checkpointing else one * layers

    activations = kept(rows * tokens, inner.hidden_size, inner.intermediate_size, inner.num_hidden_layers)
    if any("visual" in name or "vision" in name for name, p in net.named_parameters() if p.requires_grad):
        activations += kept(rows * patches, eye.hidden_size, eye.intermediate_size, eye.num_hidden_layers)
    logits = 4 * rows * questions * inner.vocab_size * 3  # what is read of them: fp32, with its softmax and gradient
    work = 2 * (text * tokens + vision * patches) * recipe.train.rows
    return Estimate(
        vision, text, trained, tokens, patches,
        weights=2 * (vision + text) / _GIB, state=20 * trained / _GIB, activations=(activations + logits) / _GIB,
        flops=work * (3 if recipe.checkpointing else 2),
    )  # fmt: skip
