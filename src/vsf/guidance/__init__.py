"""Methods of negative guidance: frozen dataclasses with one equation each. None of them knows any model."""

from .base import Guidance, Knob, knobs
from .baselines import CFG, NAG, NASA, NoGuidance
from .vsf import VSF

__all__ = ["CFG", "METHODS", "NAG", "NASA", "VSF", "Guidance", "Knob", "NoGuidance", "knobs"]

#: Every method by its name in command lines and records.
METHODS: dict[str, type[Guidance]] = {m.label: m for m in (NoGuidance, VSF, NAG, NASA, CFG)}
