"""Training a small judge from nothing, on pictures of a demo world with labels that are true by construction.

Some objects are never drawn, named or asked about in training, and the tokenizer has no word for them; on these the judge is
measured. That a word may be unknown it learns from questions in which the object's name was replaced by an unknown one.

What carries the judge over the first ten thousand pictures, in which the answers to questions stay at chance: "what is it?"
and "what colour is it?", answered by a word; and a head that is thrown away, which says of every image token which parts it sees
(a part is there if any token sees it), and of the picture which object and colour it shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bench.judges.calibration import FILE, Calibration
from ..bench.judges.local import QUALITY, YES_NO_ASKED, LocalJudge
from ..bench.taken import questions
from ..demo.oracle.distort import blur
from ..demo.training.loop import Optimisation, Schedule, TrainingRun, autocast, progress_bar
from ..demo.training.output import loss_curve
from ..demo.worlds import World, world
from ..files import json_bytes, whole, write_whole
from .asking import Asker, fast_on_cpu
from .calibration import fit_calibration
from .labels import Labels, seen
from .small import Shape, build, save
from .train import log_odds
from .world import Drawn, collected, world_labels

__all__ = ["Data", "Recipe", "Scratch", "calibrate", "held_out", "make", "words_of"]

_PART = 1000  # pictures per file: what an interrupted run draws again at most
_NOBODY = "something"  # in no vocabulary
_WHAT, _COLOUR = "What is it?", "What colour is it?"


@dataclass(frozen=True)
class Data:
    """What is drawn, and what of it is held out.

    Attributes:
        world: a demo world.
        pictures: of objects; drawn once and kept, each is seen several times with other questions, flips, blur, noise and shifts.
        strange: pictures of the same parts on bodies and in places of no object (`vsf.demo.pictures.strange`).
        dev, test: objects that are kept out of training: by the first, settings are chosen; on the second, figures reported.
        questions: about each picture.
        unnamed: share of questions in which the object's name is replaced by an unknown word.
        place: tokens of a row, so that every row is of the same length.
        calibrate: pictures of dev on which temperatures and cuts are fitted.
    """

    world: str
    pictures: int
    strange: int
    dev: tuple[str, ...]
    test: tuple[str, ...]
    questions: int
    unnamed: float
    place: int
    calibrate: int


@dataclass(frozen=True)
class Recipe:
    """All that decides what a small judge becomes; `head` weighs the head that is thrown away."""

    seed: int
    head: float
    data: Data
    shape: Shape
    train: Schedule

    @property
    def world(self) -> World:
        return world(self.data.world)

    @property
    def objects(self) -> tuple[str, ...]:
        """Those that are trained on."""
        return tuple(o for o in self.world.objects if o not in (*self.data.dev, *self.data.test))


def words_of(recipe: Recipe) -> set[str]:
    """Words of the questions and answers about what is trained on, for the tokenizer."""
    of = recipe.world
    texts = [f"{word} {_WHAT} {_COLOUR} {QUALITY}" for word in (*of.parts, *of.colors, *recipe.objects)]
    for part in of.parts:
        texts += [seen(part), *questions(of, recipe.objects[0], next(iter(of.colors)), part)]
    keep = "".join(c if c.isalnum() else " " for c in " ".join(texts).lower()).split()
    return set(keep) - {*recipe.data.dev, *recipe.data.test}


Arrays = dict[str, np.ndarray]


def _arrays(recipe: Recipe, drawn: Sequence[Drawn]) -> Arrays:
    of = recipe.world
    gone = [one.labels[0].damage == "object gone" for one in drawn]
    return {
        "pixels": np.stack([one.pixels for one in drawn]),
        "there": np.stack([[part in one.there for part in of.parts] for one in drawn]),
        "object": np.array([of.objects.index(one.scene.object) for one in drawn], np.int16),
        "color": np.array([of.colors.index(one.scene.color) for one in drawn], np.int16),
        "gone": np.array(gone),
        "damage": np.array([{"distorted": 1, "intact": 0, "missing": 0}.get(one.labels[0].damage, -1) for one in drawn], np.int8),
    }  # fmt: skip


def _strange(recipe: Recipe, start: int, count: int) -> Arrays:
    of = recipe.world
    rngs = (np.random.default_rng([recipe.seed, 11, start + i]) for i in range(count))
    drawn = [of.code.strange(rng, recipe.objects, recipe.shape.pixels) for rng in rngs]
    return {
        "pixels": np.stack([one.pixels for one in drawn]),
        "there": np.stack([[part in one.parts for part in of.parts] for one in drawn]),
        "object": np.full(count, -1, np.int16),
        "color": np.full(count, -1, np.int16),
        "gone": np.zeros(count, bool),
        "damage": np.full(count, -1, np.int8),
    }


def _known(recipe: Recipe, start: int, count: int) -> Arrays:
    some: dict[str, Any] = {"objects": recipe.objects, "of": recipe.world, "size": recipe.shape.pixels}
    return _arrays(recipe, list(world_labels(count, recipe.seed, start=start, balanced=True, **some)))


def drawn_pictures(recipe: Recipe, folder: Path) -> Arrays:
    """The recipe's training pictures, kept in `folder` in parts. Raises ValueError where it holds other ones."""
    folder.mkdir(parents=True, exist_ok=True)
    key = {
        "seed": recipe.seed,
        "pixels": recipe.shape.pixels,
        "data": {k: v for k, v in asdict(recipe.data).items() if k in ("world", "dev", "test")},
    }
    note = folder / "pictures.json"
    if note.is_file() and json.loads(note.read_text("utf-8")) != json.loads(json_bytes(key)):
        raise ValueError(f"{folder} holds pictures of another recipe; choose another folder")
    write_whole(note, json_bytes(key))
    jobs: list[tuple[str, Callable[[Recipe, int, int], Arrays], int, int]] = [
        (name, draw, start, min(_PART, total - start))
        for name, draw, total in (("known", _known, recipe.data.pictures), ("strange", _strange, recipe.data.strange))
        for start in range(0, total, _PART)
    ]
    parts: list[Arrays] = []
    with progress_bar() as progress:
        bar = progress.add_task("draw", total=recipe.data.pictures + recipe.data.strange)
        for name, draw, start, count in jobs:
            path = folder / f"{name}-{start:07d}-{count}.npz"
            if not path.is_file():
                arrays: Any = draw(recipe, start, count)
                with whole(path) as part, part.open("wb") as file:
                    np.savez(file, **arrays)
            with np.load(path, allow_pickle=False) as kept:
                parts.append({name: kept[name] for name in kept.files})
            progress.update(bar, advance=count)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class _Head(nn.Module):
    """What the merged image tokens [B, T, D] show: parts by any token, object and colour by their mean."""

    def __init__(self, width: int, of: World) -> None:
        super().__init__()
        self.part = nn.Linear(width, len(of.parts))
        self.object = nn.Linear(width, len(of.objects))
        self.color = nn.Linear(width, len(of.colors))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = tokens.mean(1)
        return self.part(tokens).logsumexp(1) - 3, self.object(mean), self.color(mean)


class Scratch:
    """The training of a small judge in a folder. Its weights, made with what is averaged, are written by `finish`."""

    def __init__(self, recipe: Recipe, folder: Path, pictures: Path | None = None, minutes: float | None = None,
                 resume: bool = True) -> None:  # fmt: skip
        self.recipe, self.folder, self.of = recipe, folder, recipe.world
        same = asdict(replace(recipe, train=replace(recipe.train, rows=0)))
        self.run = TrainingRun.open(folder, json.loads(json_bytes(same)), resume)
        self.net, self.processor = build(recipe.shape, words_of(recipe), recipe.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            head = _Head(recipe.shape.width, self.of)
        self.model = nn.ModuleDict({"judge": self.net, "head": head})
        self.data = drawn_pictures(recipe, pictures or folder / "pictures")
        fast_on_cpu(self.net, recipe.train.compile)
        self.asker = Asker(self.net, self.processor)
        self.head, self.device = head, torch.device("cpu")
        tokens: Any = self.processor.tokenizer.convert_tokens_to_ids
        self.number = {word: tokens(word) for word in (*words_of(recipe), "yes", "no", "good", "poor")}
        self.optimisation = Optimisation(self.model, recipe.train, folder / "judge.safetensors", minutes=minutes)

    # -----------------------------------------------------------------------------------------------------------
    # Batches: a step's are drawn from the seed and its number alone

    def asked(self, row: int, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Questions about a picture of the data with the words that answer them."""
        of, data = self.of, self.data
        known = data["object"][row] >= 0
        name, color = of.objects[data["object"][row]] if known else _NOBODY, of.colors[data["color"][row]]
        gone, there = bool(data["gone"][row]), data["there"][row]
        alike = frozenset().union(*(group for group in of.alike if any(there[of.parts.index(p)] for p in group)))
        have = [part for part, is_there in zip(of.parts, there, strict=True) if is_there]
        lack = [part for part in of.parts if part not in have and part not in alike]
        near = [part for part in of.typical.get(name, ()) if part in lack]

        def pick(some: Sequence[str]) -> str:
            return some[int(rng.integers(len(some)))]

        def part() -> str:
            if have and rng.random() < 0.5:
                return pick(have)
            return pick(near) if near and rng.random() < 0.5 else pick(lack)

        out: list[tuple[str, str]] = []
        damage = int(data["damage"][row])
        if damage >= 0 and rng.random() < 0.15:
            out.append((QUALITY, "poor" if damage else "good"))
        elif known:
            asked_name, asked_color = name, color
            if rng.random() < 0.5 - 0.25 * gone:
                if rng.random() < 0.5:
                    asked_name = pick([o for o in self.recipe.objects if o != name])
                else:
                    asked_color = pick([c for c in of.colors if c != color])
            right = not gone and (asked_name, asked_color) == (name, color)
            out.append(
                (self._question(0, asked_name, asked_color, pick(of.typical[asked_name])), "yes" if right else "no")
            )
        if known and not gone:
            out.append((_WHAT, name) if rng.random() < 0.5 else (_COLOUR, color))
        if not out or out[0][0] != QUALITY:
            kept = part()
            out.append((f"{seen(kept)}{YES_NO_ASKED}", "yes" if kept in have else "no"))
        while len(out) < self.recipe.data.questions - (out[0][0] == QUALITY):  # that one is long
            one = part()
            said = _NOBODY if rng.random() < self.recipe.data.unnamed else name
            out.append((self._question(1, said, color, one), "no" if one in have else "yes"))
        return out

    def _question(self, which: int, name: str, color: str, part: str) -> str:
        text = questions(self.of, name if name != _NOBODY else self.of.objects[0], color, part)[which]
        return (text.replace(self.of.objects[0], _NOBODY) if name == _NOBODY else text) + YES_NO_ASKED

    def batch(self, step: int) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """The model's input, the tokens that answer [Q], and what the pictures show."""
        size = self.recipe.train.batch
        rng = np.random.default_rng([self.recipe.seed, 7, step])
        epoch, at = divmod(step * size, len(self.data["gone"]))
        order = np.random.default_rng([self.recipe.seed, 3, epoch]).permutation(len(self.data["gone"]))
        rows = np.take(order, range(at, at + size), mode="wrap")
        asked = [self.asked(int(row), rng) for row in rows]
        pixels = _varied(self.data["pixels"][rows], rng)
        packed = self.asker.pack(list(pixels), [[text for text, _ in one] for one in asked], self.recipe.data.place)
        answers = torch.tensor([self.number[word] for one in asked for _, word in one])
        gone = torch.from_numpy(self.data["gone"][rows] | (self.data["object"][rows] < 0))
        shown = {
            "part": torch.from_numpy(self.data["there"][rows]).float(),
            "object": torch.from_numpy(self.data["object"][rows]).long().masked_fill(gone, -100),
            "color": torch.from_numpy(self.data["color"][rows]).long().masked_fill(gone, -100),
        }
        return packed, answers, shown

    def loss(self, step: int) -> dict[str, Tensor]:
        packed, answers, shown = self.batch(step)
        with autocast(self.device):
            look = self.asker.look(packed)
            logits = self.asker.logits(packed, look)
            part, thing, color = self.head(torch.stack(list(look.pooler_output)))
        weight = self.recipe.head
        return {
            "answer": F.cross_entropy(logits, answers),
            "part": weight * 4 * F.binary_cross_entropy_with_logits(part.float(), shown["part"]),
            "object": weight * F.cross_entropy(thing.float(), shown["object"]),
            "colour": weight * F.cross_entropy(color.float(), shown["color"]),
        }

    # -----------------------------------------------------------------------------------------------------------

    def train(self, stop_after: int | None = None) -> bool:
        """Make the steps that are left, or some of them; returns whether all were made."""
        torch.manual_seed(self.recipe.seed)
        self.net.train()
        return self.optimisation.run(self.loss, self._report, stop_after)

    def _report(self) -> None:
        loss_curve(self.optimisation.at.log, self.folder / "judge-loss.png")
        self.finish()

    def finish(self) -> Path:
        """Write the judge as it stands, averaged, to FOLDER/weights, which `LocalJudge` reads."""
        net, processor = build(self.recipe.shape, words_of(self.recipe), self.recipe.seed)
        averaged = self.optimisation.averaged()
        net.load_state_dict(
            {k.removeprefix("judge."): v for k, v in averaged.items() if k.startswith("judge.")}, strict=False
        )
        net.tie_weights()
        save(net.half(), processor, self.folder / "weights")
        return self.folder / "weights"


def make(recipe: Recipe, out: Path, *, minutes: float | None = None, resume: bool = True) -> Path:
    """Train a small judge in the folder `out`, where an interrupted run goes on, and calibrate it; gives OUT/weights.

    Its temperature and cut per kind of question are fitted on pictures of the objects in `recipe.data.dev`.

    Raises:
        ValueError: `out` holds a run of another recipe.
        OSError: it cannot be written to; what was written is whole.
    """
    scratch = Scratch(recipe, out, minutes=minutes, resume=resume)
    scratch.train()
    calibrate(recipe, scratch.finish(), scratch.run.notes)
    return out / "weights"


def held_out(recipe: Recipe, part: str, count: int) -> Labels:
    """Labels of the objects that training never sees: "dev" or "test"."""
    objects = {"dev": recipe.data.dev, "test": recipe.data.test}[part]
    drawn = world_labels(count, recipe.seed + 1, objects=objects, of=recipe.world)
    return collected(drawn, f"{recipe.data.world}: {', '.join(objects)}")


def calibrate(recipe: Recipe, folder: Path, notes: dict[str, Any]) -> Calibration:
    """Fit a judge's scales on dev, and write them beside its weights."""
    judge = LocalJudge(folder, device="cpu", mass=0.0)
    labels = held_out(recipe, "dev", recipe.data.calibrate)
    # A judge without a word for an object is not asked for the object.
    pairs = [(label, x) for label, x in log_odds(judge, labels) if label.asks != "object"]
    found = fit_calibration(
        (label for label, _ in pairs), (x for _, x in pairs), recipe=json.loads(json_bytes(asdict(recipe))), **notes
    )
    write_whole(folder / FILE, json_bytes(found.plain(), 1))
    return found


def _varied(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures [N, S, S, 3] as a camera or a decoder might vary them: flipped, a little blurred, noisy, shifted, tinted."""
    n = len(pictures)
    x = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float() / 255
    flip = torch.from_numpy(rng.random(n) < 0.5)
    x = torch.where(flip.view(n, 1, 1, 1), x.flip(3), x)
    x = blur(x, torch.from_numpy(rng.uniform(0, 0.9, n) * (rng.random(n) < 0.5)).float())
    gain = torch.from_numpy(1 + rng.uniform(-0.06, 0.06, (n, 3, 1, 1))).float()
    lift = torch.from_numpy(rng.uniform(-0.04, 0.04, (n, 1, 1, 1))).float()
    noise = torch.from_numpy(rng.normal(size=tuple(x.shape)).astype(np.float32))
    strength = torch.from_numpy((rng.uniform(0, 0.05, n) * (rng.random(n) < 0.5)).astype(np.float32))
    x = x * gain + lift + strength.view(n, 1, 1, 1) * noise
    dy, dx = (int(v) for v in rng.integers(-4, 5, 2))
    side = x.shape[-1]
    x = F.pad(x, (4,) * 4, mode="replicate")[:, :, 4 + dy : 4 + dy + side, 4 + dx : 4 + dx + side]
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
