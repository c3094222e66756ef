"""What a method of negative guidance is: one equation over two attention outputs, and its knobs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.attention import Attended

__all__ = ["Guidance", "Knob", "knob", "knobs"]

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

    Every method has `start` and `stop`, the range of steps that is guided as fractions of all steps (one number, or one
    per sample), and `blocks`, the numbers of the transformer blocks that are guided (None: all; the same for all
    samples).

    Raises:
        TypeError: a knob is not a number (or, where allowed, a sequence of numbers, one per sample).
        ValueError: a knob is NaN, infinite or out of its range, or `start` > `stop`.
    """

    #: What the method wants to know of the negative prompt: "keys" = attention over the negative's keys alone;
    #: "branch" = attention as in a forward pass with the negative prompt in the place of the positive one;
    #: "pipeline" = nothing here, the pipeline itself takes it.
    negative: ClassVar[Literal["keys", "branch", "pipeline", "none"]] = "keys"
    #: Whether the negative prompt is encoded padded, as the model was trained, or as its real tokens only.
    padded: ClassVar[bool] = False
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

    def values(self, v: Tensor, knob: Mapping[str, Tensor]) -> Tensor:
        """What is done to the negative's values `[B, H, N, D]` before anything attends to them; nothing by default."""
        return v

    @abstractmethod
    def combine(self, pos: Attended, neg: Attended, knob: Mapping[str, Tensor]) -> Tensor:
        """The method's equation.

        `pos` is the unguided attention of the image queries, `neg` that of the negative (see `negative`), both
        `[B, H, S, D]`; `knob` holds the per-sample settings as `[B, 1, 1, 1]`. Returns `[B, H, S, D]`. May overwrite
        `pos.out` where no gradient is needed, if samples without a negative (`neg.lse` = -inf) stay as they are.
        """
