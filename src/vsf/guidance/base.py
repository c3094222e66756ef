"""What a method of negative guidance is: one equation over attention outputs, and its knobs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..grammar import did_you_mean, parse_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.geometry import Pieces

__all__ = ["Guidance", "describe", "Knob", "blocks_text", "knob", "knobs", "parse_blocks", "read_settings", "settable"]

PerSample = float | tuple[float, ...]


@dataclass(frozen=True)
class Knob:
    """One setting of a method: the single source for CLI flags, sliders and node inputs.

    `low`, `high` are the range offered to people; `minimum`, `maximum` are the limits that are enforced.
    """

    name: str
    default: Any
    help: str
    low: float = 0.0
    high: float = 1.0
    step: float = 0.05
    minimum: float = 0.0
    maximum: float = 10_000.0
    per_sample: bool = False
    choices: tuple[str, ...] = ()
    optional: bool = False
    infinite: bool = False


def knob(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field that carries its `Knob` description."""
    return field(default=default, metadata={"knob": {"help": help, **limits}})


def knobs(method: type[Guidance] | Guidance) -> dict[str, Knob]:
    """The knobs of a method by name, in order."""
    return {f.name: Knob(f.name, f.default, **f.metadata["knob"]) for f in fields(method) if "knob" in f.metadata}


def parse_blocks(text: str, name: str = "blocks") -> tuple[int, ...] | None:
    """Block numbers from "0-18,24" (`vsf.grammar.parse_numbers`), in order and each once; None for "all" and for nothing.

    Raises:
        ValueError: something else; the message calls it `name`.
    """
    if text.strip().lower() in ("", "all"):
        return None
    return tuple(sorted(set(parse_numbers(text, name, "0-18,24, or all"))))


def blocks_text(blocks: Iterable[int] | None) -> str:
    """The text that `parse_blocks` reads as these blocks; "none" for no block at all, which it cannot read."""
    if blocks is None:
        return "all"
    runs: list[list[int]] = []
    for block in sorted(set(blocks)):
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) or "none"


def settable(method: type[Guidance]) -> tuple[str, ...]:
    """The settings of a method that do something: its knobs, and `blocks`."""
    range = ("start", "stop")  # fields of every method, also of those that run in the pipeline
    own = sorted(knobs(method), key=range.__contains__)
    if method.negative in ("tokens", "padded"):
        return (*own, "blocks")
    return tuple(name for name in own if method.negative == "pipeline" and name not in range)


def read_settings(
    method: type[Guidance], given: Mapping[str, str], spell: Callable[[str], str] = str
) -> dict[str, Any]:
    """The values of a method's settings from what was typed; `spell` is how a setting is written there.

    A number, a word where there is a choice, "none" or "off" where it may be off, and for `blocks` see `parse_blocks`.

    Raises:
        ValueError: a setting that the method does not have, or text that is no value.
    """
    own, allowed, values = knobs(method), settable(method), dict[str, Any]()
    for name, text in given.items():
        if name not in own and name not in allowed:
            has = ", ".join(map(spell, allowed)) or "none"
            hint = did_you_mean(name, allowed)
            raise ValueError(f"method {method.label} has no setting {spell(name)}; it has {has}{hint}")
        if name == "blocks":
            values[name] = parse_blocks(text, spell(name))
        elif own[name].choices:
            values[name] = text  # the method itself says what is allowed
        elif own[name].optional and text.lower() in ("none", "off"):
            values[name] = None
        else:
            try:
                values[name] = float(text)
            except ValueError:
                also = ", or none" if own[name].optional else ""
                raise ValueError(f"{spell(name)} is {text!r}; allowed: a number{also}") from None
    return values


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        try:
            value = value.item()  # pyright: ignore[reportAttributeAccessIssue]  # numpy and torch scalars
        except (AttributeError, ValueError, RuntimeError):
            raise TypeError from None
    return float(value)


@dataclass(frozen=True)
class Guidance(ABC):
    """Base of all methods. Subclasses are frozen dataclasses whose `combine` is the method's equation.

    A method says what it wants: the attentions that its equation names (see `combine`), which rows see what (`sees`), how
    the negative is encoded (`negative`), and what is done to its embeddings and values. It knows no model.

    Every method has `start` and `stop`, the range of steps that is guided as fractions of all steps (one number, or one
    per sample), and `blocks`, the numbers of the transformer blocks that are guided (None: all; the same for all
    samples).

    Raises:
        TypeError: a knob is not a number (or, where allowed, a sequence of numbers, one per sample).
        ValueError: a knob is NaN, infinite or out of its range, or `start` > `stop`.
    """

    #: How the method takes the negative prompt: "tokens" = encoded as its real tokens, weights allowed; "padded" = as the
    #: model was trained on prompts; "pipeline" = the pipeline itself takes it; "none" = not at all.
    negative: ClassVar[Literal["tokens", "padded", "pipeline", "none"]] = "tokens"
    #: Joint attention: the keys that each group of rows attends to. "guided", which comes last, is `combine`. The rows of
    #: image and positive text always see image and positive text. (In cross attention there are image rows only.)
    sees: ClassVar[Mapping[str, str]] = {
        "image": "image positive guided",
        "positive": "image positive",
        "negative": "image negative",
    }
    #: Whether a head's output is made of that head alone, so that heads can be shared out over devices.
    per_head: ClassVar[bool] = True
    #: Whether `share` is defined, so that a suppression map can be recorded.
    has_map: ClassVar[bool] = False
    #: The name in command lines and records.
    label: ClassVar[str] = ""

    start: PerSample = field(
        default=0.0, kw_only=True,
        metadata={"knob": {"help": "first guided step, as a fraction of all steps", "maximum": 1.0, "per_sample": True}},
    )  # fmt: skip
    stop: PerSample = field(
        default=1.0, kw_only=True,
        metadata={"knob": {"help": "where guidance ends, as a fraction of all steps", "maximum": 1.0, "per_sample": True}},
    )  # fmt: skip
    blocks: tuple[int, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, spec in knobs(self).items():
            value = getattr(self, name)
            if spec.choices:
                if value not in spec.choices:
                    raise ValueError(f"{type(self).__name__}.{name} is {value!r}; allowed: {', '.join(spec.choices)}")
                continue
            if value is None and spec.optional:
                continue
            object.__setattr__(self, name, self._checked(spec, value))
        for start, stop in self.ranges:
            if start > stop:
                raise ValueError(f"{type(self).__name__}: start ({start}) must not be greater than stop ({stop})")
        if self.blocks is not None:
            blocks = self.blocks
            blocks = tuple(blocks) if isinstance(blocks, Iterable) and not isinstance(blocks, str) else (None,)
            if not all(isinstance(b, int) and not isinstance(b, bool) and b >= 0 for b in blocks):
                raise ValueError(
                    f"{type(self).__name__}.blocks is {self.blocks!r}; allowed: a sequence of block numbers from 0 up"
                )
            object.__setattr__(self, "blocks", blocks)

    def _checked(self, spec: Knob, value: Any) -> Any:
        where = f"{type(self).__name__}.{spec.name}"
        if (
            spec.per_sample
            and isinstance(value, Iterable)
            and not isinstance(value, str)
            and getattr(value, "ndim", 1)
        ):
            values = tuple(self._checked(replace(spec, per_sample=False), v) for v in value)
            if not values:
                raise ValueError(f"{where} is an empty sequence; give one number, or one per sample")
            return values
        try:
            number = _number(value)
        except TypeError:
            many = " or one number per sample" if spec.per_sample else ""
            raise TypeError(f"{where} is {value!r}; allowed: a number{many}") from None
        finite = math.isfinite(number) or (spec.infinite and number == math.inf)
        if not finite or not spec.minimum <= number <= spec.maximum:
            limits = [f"from {spec.minimum:g} up"] if spec.minimum > -math.inf else ["finite numbers"]
            limits = [f"{spec.minimum:g} to {spec.maximum:g}"] if spec.maximum < math.inf else limits
            raise ValueError(f"{where} is {number}; allowed: {limits[0]}{', or inf' if spec.infinite else ''}")
        return number

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """`(start, stop)` per sample; a single pair where it is the same for all.

        Raises:
            ValueError: different numbers of values.
        """
        starts, stops = (x if isinstance(x, tuple) else (x,) for x in (self.start, self.stop))
        n = max(len(starts), len(stops))
        if {len(starts), len(stops)} - {1, n}:
            raise ValueError(
                f"{type(self).__name__}: {len(starts)} values of start and {len(stops)} of stop; give as many, or one"
            )
        pairs = tuple(zip(starts * (n // len(starts)), stops * (n // len(stops)), strict=True))
        return pairs if len(set(pairs)) > 1 else pairs[:1]

    @property
    def neutral(self) -> bool:
        """Whether these settings leave every model as it is. Then nothing is done at all, so that it is so bit by bit."""
        return False

    def _all(self, name: str, value: float) -> bool:
        given = getattr(self, name)
        return all(v == value for v in (given if isinstance(given, tuple) else (given,)))

    def settings(self) -> dict[str, Any]:
        """Every knob with its value, defaults included, as plain data for records."""
        return {"method": self.label} | {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def appends(self) -> bool:
        """Whether the negative prompt is also appended, as it is, to the positive one (joint attention only)."""
        return False

    def embeddings(self, x: Tensor, knob: Mapping[str, Tensor]) -> Tensor:
        """What is done to the negative's embeddings `[B, N, W]` before the model sees them; nothing by default.

        `knob` holds the per-sample settings as `[B, 1, 1]`.
        """
        return x

    def values(self, v: Tensor, knob: Mapping[str, Tensor]) -> Tensor:
        """What is done to the negative's values `[B, H, N, D]` before anything guided attends to them; nothing by default."""
        return v

    def share(self, at: Pieces, knob: Mapping[str, Tensor]) -> Tensor:
        """The share of attention that goes to the negative, `[B, H, S, 1]`, where the method has one (`has_map`)."""
        raise TypeError(f"{type(self).__name__} has no share of attention that goes to the negative")

    @abstractmethod
    def combine(self, at: Pieces, knob: Mapping[str, Tensor]) -> Tensor:
        """The method's equation.

        `at` has the attentions of the guided rows, each computed only if it is asked for: `at.unguided` (the model's own),
        `at.negative` (over the negative alone), `at.branch` (as if the negative were the prompt) and `at.positive` (over
        the positive text alone), each with `.out` `[B, H, S, D]` and `.lse` `[B, H, S]`. `knob` holds the per-sample
        settings as `[B, 1, 1, 1]`. Returns `[B, H, S, D]`. May overwrite `at.unguided.out` where no gradient is needed, if
        samples without a negative (`at.negative.lse` = -inf) stay as they are.
        """


def describe(settings: Mapping[str, Any]) -> str:
    """A method's settings in one line, without what is off or left open."""
    skip = {"start": 0.0, "stop": 1.0}
    parts = [
        f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in settings.items()
        if k != "method" and v is not None and skip.get(k) != v
    ]
    return f"{settings['method']}" + (": " + ", ".join(parts) if parts else "")
