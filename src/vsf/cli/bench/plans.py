"""What is drawn: the flags that `vsf bench generate` and `vsf bench sweep` share, and what follows from them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...demo.models import MODELS
from ...grammar import parse_numbers, parse_size
from ...loading import DEMO, DTYPES, named
from ..common import Problem, choose, flag, read_flag
from ..generate import warn_of_unknown_words

if TYPE_CHECKING:
    from ...bench.cases import CaseSet

__all__ = ["plan_flags", "planned", "read_cases"]


def plan_flags(panel: str, limit: str, seeds: str) -> list[inspect.Parameter]:
    """The flags, under a heading; `limit` and `seeds` say what they are where they are not given."""
    models = f"{', '.join(MODELS)}, a preset (see vsf models), a folder, or an id ({next(iter(MODELS))})."
    return [
        flag("cases", str, "neggen, common, demo, or a file (the model's, else demo).", panel),
        flag("limit", int, f"N cases, evenly over their groups: objects or categories ({limit}).", panel, min=1),
        flag("seeds", str, f"Noises of each case: numbers and ranges ({seeds}).", panel, metavar="0-3"),
        flag("model", str, models, panel),
        flag("revision", str, "Branch, tag or commit of an id.", panel),
        flag("steps", int, "Denoising steps (the model's, else 8).", panel, min=1, max=1000),
        flag("guidance_scale", float, "The pipeline's own (the model's, else 0).", panel),
        flag("size", str, "Of a picture (the model's own).", panel, metavar="PIXELS|WxH"),
        flag("frames", int, "Of a video (the model's own).", panel, min=1, max=10_000),
        flag("dtype", str, f"{', '.join(DTYPES)} (bfloat16 on cuda, else float32).", panel),
        flag("batch", int, "Pictures at once (embedded models 32, else 1).", panel, min=1, max=1024),
    ]


def read_cases(name: str) -> CaseSet:
    """A set that comes with vsf, or a file of cases. Raises Problem."""
    from ...bench.cases import load_cases

    try:
        return load_cases(name)
    except (OSError, ValueError) as error:
        raise Problem(str(error)) from error


def planned(
    given: Mapping[str, Any], split: str, limit_seed: int = 0
) -> tuple[CaseSet, tuple[str, ...], dict[str, Any]]:
    """What these flags say, with the settings of the model where it has some.

    Args:
        given: values by the flags' names; "limit" and "seeds" may be left out (all cases; 0-3).
        split: of the cases: dev, test or all.
        limit_seed: decides which cases a limit takes.

    Returns:
        The set, the ids of the cases that are drawn, and the fields that a `RunPlan` and a `Sweep` have in common.

    Raises:
        Problem: they do not go together, or one is not allowed.
    """
    from ...draw import schedule_of
    from ...presets import PRESETS

    model = given.get("model", DEMO)
    known, preset, embedded = named(model), PRESETS.get(model), MODELS.get(model)
    if preset is not None and preset.needs_image:
        raise Problem(f"{preset.name} edits a picture, which the benchmark cannot give it")
    if preset is not None and "revision" in given:
        raise Problem("--revision is of an id; a preset names its own model")
    if "dtype" in given:
        choose("dtype", given["dtype"], DTYPES)
    cases = read_cases(given.get("cases", (embedded or MODELS[DEMO]).of_world().cases))
    choose("split", split, ["dev", "test", "all"])
    chosen = cases.sample(None if split == "all" else split, given.get("limit"), limit_seed)
    if not chosen:
        raise Problem(f"the cases {cases.name!r} have none in the split {split}")
    if embedded is not None:
        texts = [*(case.prompt for case in chosen), *(case.negative for case in chosen)]
        warn_of_unknown_words(embedded.of_world(), *texts)
    own_steps, own_scale = (8, 0.0) if known is None else (known.steps, known.guidance_scale)
    steps = given.get("steps", own_steps)
    extra = {} if known is None else schedule_of(known.call, own_steps, steps)
    if "frames" in given:
        extra["num_frames"] = given["frames"]
    seeds = read_flag(
        lambda text, name: parse_numbers(text, name, "0-3 or 0,2,5-7"), given.get("seeds", "0-3"), "--seeds"
    )
    return (
        cases,
        tuple(case.id for case in chosen),
        {
            "model": model,
            "revision": given.get("revision"),
            "dtype": given.get("dtype"),
            "seeds": tuple(seeds or ()),
            "steps": steps,
            "guidance_scale": given.get("guidance_scale", own_scale),
            "size": read_flag(parse_size, given.get("size"), "--size"),
            "batch": given.get("batch", 1 if embedded is None else embedded.batch),
            "extra": extra,
        },
    )
