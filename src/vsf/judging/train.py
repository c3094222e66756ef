"""Tuning a vision-language model to judge: LoRA on labels, answered by one token.

The loss is on one token of each question, rows share a picture's tokens, and an interrupted run has to end where an
uninterrupted one does; so this is the loop of the demo models (`vsf.demo.training.loop`), not trl's trainer, of which nothing
but its collator would be left. The adapter is peft's, written as peft writes it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bench.judges.base import JudgeError
from ..bench.judges.calibration import FILE
from ..bench.judges.local import YES_NO, YES_NO_ASKED, LocalJudge
from ..demo.training.loop import Optimisation, Schedule, TrainingRun, say
from ..demo.training.output import loss_curve
from ..files import json_bytes, write_whole
from ..grammar import first_line
from ..libraries import install
from .asking import Asker
from .calibration import fit_calibration
from .labels import Label, Labels, LabelsError
from .splits import part, split

__all__ = ["Tune", "Tuned", "adapter", "log_odds", "parted", "tune"]


@dataclass(frozen=True)
class Tune:
    """All that decides what a judge is tuned to.

    Attributes:
        rank, alpha, dropout, targets: of LoRA; `targets` is "all-linear" or the names of layers.
        dev, test: objects that are kept out of training; where none is named, 15 % of all objects each, by a hash.
        evaluate: steps from one look at the dev labels to the next.
        patience: looks without a smaller loss on them before it stops.
        checkpointing: whether activations are computed again in the backward pass instead of kept.
        train: `rows` and `batch` count pictures, each with all of its questions.
    """

    seed: int
    rank: int
    alpha: float
    dropout: float
    targets: str | tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]
    evaluate: int
    patience: int
    checkpointing: bool
    train: Schedule


@dataclass(frozen=True)
class Tuned:
    """What a tuning left: the adapter's folder, the parts of the labels, and mean losses on dev, before and best."""

    folder: Path
    parts: Mapping[str, Labels]
    before: float
    best: float


def parted(labels: Labels, recipe: Tune) -> dict[str, Labels]:
    """Labels as "train", "dev" and "test", of which no two share an object; those that say "cannot tell" are left out.

    Raises:
        LabelsError: several annotators, too few objects, or a part without both answers to a kind of question.
    """
    if len(labels.annotators) > 1:
        names = ", ".join(labels.annotators)
        raise LabelsError(
            f"labels of {names}: one answer to a question is needed; choose an annotator, or settle them"
        )
    known = labels.only(label for label in labels if label.answer is not None)
    if not (recipe.dev or recipe.test):
        return split(known, {"train": 0.7, "dev": 0.15, "test": 0.15}, recipe.seed)
    groups = {label.group for label in known}
    if both := sorted({*recipe.dev} & {*recipe.test}):
        raise LabelsError(f"in dev and in test, which must not share an object: {', '.join(both)}")
    if unknown := sorted({*recipe.dev, *recipe.test} - groups):
        raise LabelsError(f"no label is about {', '.join(unknown)}, which the recipe holds out")
    of = dict.fromkeys(groups, "train") | dict.fromkeys(recipe.dev, "dev") | dict.fromkeys(recipe.test, "test")
    return part(known, of, ("train", "dev", "test"))


def _pictures(labels: Labels) -> list[tuple[str, list[Label]]]:
    """The labels of each picture, in order of appearance."""
    of: dict[str, list[Label]] = {}
    for label in labels:
        of.setdefault(label.image, []).append(label)
    return list(of.items())


def _weights(labels: Labels) -> dict[tuple[str, bool | None], float]:
    """So that yes and no weigh alike in every kind of question, and the mean weight is 1."""
    of = Counter((label.asks, label.answer) for label in labels)
    kinds = Counter(asks for asks, _ in of)
    total = Counter(label.asks for label in labels)
    return {key: total[key[0]] / (kinds[key[0]] * count) for key, count in of.items()}


class _Reader:
    """Losses and log-odds of labels under a model."""

    def __init__(self, judge: LocalJudge, net: Any, labels: Labels) -> None:
        self.asker, self.labels, self.device = Asker(net, judge.processor), labels, judge.device
        self.yes, self.no = judge.words[YES_NO]

    def __call__(self, batch: Sequence[tuple[str, list[Label]]]) -> tuple[Tensor, Tensor]:
        """-log P(right word) of all words [Q], and log P(yes) - log P(no) [Q]."""
        pictures = [self.labels.picture(image) for image, _ in batch]
        packed = self.asker.pack(pictures, [[label.question + YES_NO_ASKED for label in some] for _, some in batch])
        logits = self.asker.logits({name: value.to(self.device) for name, value in packed.items()})
        yes, no = logits[:, self.yes].logsumexp(1), logits[:, self.no].logsumexp(1)
        right = torch.tensor([bool(label.answer) for _, some in batch for label in some], device=yes.device)
        return logits.logsumexp(1) - torch.where(right, yes, no), yes - no


def log_odds(judge: LocalJudge, labels: Labels, net: Any = None, batch: int = 16) -> Iterator[tuple[Label, float]]:
    """Each label with the model's own log-odds of yes, before any calibration; pictures are read in groups."""
    read, pictures = _Reader(judge, judge.net if net is None else net, labels), _pictures(labels)
    for start in range(0, len(pictures), batch):
        group = pictures[start : start + batch]
        with torch.inference_mode():
            _, odds = read(group)
        yield from zip((label for _, some in group for label in some), odds.tolist(), strict=True)


def tune(
    recipe: Tune, base: str, labels: Labels, out: Path, *, device: str | None = None, dtype: str | None = None,
    download: bool = False, resume: bool = True, stop_after: int | None = None,
) -> Tuned | None:  # fmt: skip
    """Tune `base` on labels, in the folder `out`, where an interrupted run goes on; the adapter comes to OUT/adapter.

    The adapter with the least loss on dev is kept, and its temperature and cut per kind of question are fitted there. With
    `stop_after` it ends after so many steps, and gives None unless it is done.

    Raises:
        LabelsError: labels that cannot be parted, or a picture that cannot be read.
        JudgeError: `base` is no image-text model, or cannot be asked.
        ValueError: `out` holds a run of another recipe, base or labels.
        OSError: it cannot be written to; what was written is whole.
    """
    parts = parted(labels, recipe)
    for image in labels.images:  # before hours are spent
        labels.picture(image)
    judge = LocalJudge(base, device=device, dtype=dtype, download=download)
    torch.manual_seed(recipe.seed)
    net = adapter(judge.net, recipe, base)
    known = {**asdict(recipe), "base": base, "labels": fingerprint(labels)}
    run = TrainingRun.open(out, json.loads(json_bytes(known)), resume)  # from here on something is written
    if not resume:
        shutil.rmtree(out / "adapter", ignore_errors=True)
    read, weights = _Reader(judge, net, labels), _weights(parts["train"])
    pictures, dev, size = _pictures(parts["train"]), _pictures(parts["dev"]), recipe.train.batch
    optimisation = Optimisation(net, replace(recipe.train, compile=False), out / "judge.safetensors")

    def loss(step: int) -> dict[str, Tensor]:
        epoch, at = divmod(step * size, len(pictures))
        order = np.random.default_rng([recipe.seed, epoch]).permutation(len(pictures))
        batch = [pictures[i] for i in np.take(order, range(at, at + size), mode="wrap")]
        torch.manual_seed((recipe.seed << 32) + step)  # dropout
        each, _ = read(batch)
        weight = torch.tensor([weights[label.asks, label.answer] for _, some in batch for label in some])
        return {"answer": (each * weight.to(each.device)).mean()}

    def look() -> float:
        net.eval()
        with torch.inference_mode():
            losses = [read(dev[i : i + size])[0] for i in range(0, len(dev), size)]
        net.train()
        return float(torch.cat(losses).mean())

    seen: list[list[float]] = run.notes.get("dev", [])  # (step, loss on dev)
    begun = optimisation.at.step

    def stale() -> bool:
        best = min(range(len(seen)), key=lambda i: seen[i][1])
        return len(seen) - 1 - best >= recipe.patience

    net.train()
    while True:
        step = optimisation.at.step
        if step % recipe.evaluate == 0 or optimisation.done:
            if step not in [at for at, _ in seen]:
                now = look()
                # The adapter first: killed in between, the same is done again.
                if not seen or now < min(at[1] for at in seen):
                    _save(net, optimisation, base, out / "adapter")
                seen.append([step, now])
                run.note(dev=seen)
                say(f"dev loss {now:.4f} at step {step}")
            if optimisation.done or stale():
                break
        left = recipe.evaluate - step % recipe.evaluate
        if stop_after is not None:
            if step - begun >= stop_after:
                return None
            left = min(left, stop_after - (step - begun))
        optimisation.run(loss, stop_after=left)
    loss_curve(optimisation.at.log, out / "judge-loss.png")
    best = LocalJudge(base, adapter=out / "adapter", device=device, dtype=dtype, download=download)
    pairs = list(log_odds(best, parts["dev"]))
    record = {
        "base": base, "recipe": asdict(recipe), "steps": optimisation.at.step, "dev": seen,
        "groups": {name: sorted({label.group for label in part}) for name, part in parts.items()},
        "data": known["labels"],
    }  # fmt: skip
    fitted = fit_calibration((label for label, _ in pairs), (x for _, x in pairs), **record)
    write_whole(out / "adapter" / FILE, json_bytes(fitted.plain(), 1))
    return Tuned(out / "adapter", parts, seen[0][1], min(loss for _, loss in seen))


def adapter(net: Any, recipe: Tune, base: str) -> Any:
    """A model with a fresh LoRA adapter by peft, all else frozen. Raises JudgeError: no peft, or no layer of these names."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise JudgeError(f"tuning a judge needs the peft package: {install('judge')}") from None
    targets: Any = recipe.targets if isinstance(recipe.targets, str) else list(recipe.targets)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, target_modules=targets  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    try:
        adapted = get_peft_model(net, config)
    except ValueError as error:
        raise JudgeError(f"LoRA finds no layer {recipe.targets} in {base}: {first_line(error)}") from error
    if recipe.checkpointing:
        net.gradient_checkpointing_enable({"use_reentrant": False})
        net.enable_input_require_grads()
    return adapted


def fingerprint(labels: Labels) -> dict[str, Any]:
    """What labels these are: their number and the hash of all of them."""
    rows = sorted(json.dumps(asdict(label), sort_keys=True) for label in labels)
    return {"labels": len(rows), "sha256": sha256("\n".join(rows).encode()).hexdigest()}


def _save(net: Any, optimisation: Optimisation, base: str, folder: Path) -> None:
    """The averaged adapter as peft writes it, whole or not at all."""
    own = {name: p.detach().clone() for name, p in optimisation.named.items()}
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    averaged = optimisation.averaged()
    try:
        with torch.no_grad():
            for name, p in optimisation.named.items():
                p.copy_(averaged[name])
        net.peft_config["default"].base_model_name_or_path = base
        net.save_pretrained(part, safe_serialization=True)
    finally:
        with torch.no_grad():
            for name, p in optimisation.named.items():
                p.copy_(own[name])
    (part / "README.md").unlink(missing_ok=True)  # peft's, with nothing filled in
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
