"""Every mistake gives one clear error and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import specs
from test_contract import negatives, run
from test_lifecycle import fingerprint
from vsf import NAG, VSF, NothingGuided, UnsupportedModel, negative_guidance

SPEC = specs.load()["sd3"]


WRONG: Any = VSF  # for values of types that it does not take


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: WRONG(float("nan")), ValueError, "scale is nan"),
        (lambda: WRONG(-1.0), ValueError, "scale is -1"),
        (lambda: WRONG(float("inf")), ValueError, "scale is inf"),
        (lambda: WRONG("strong"), TypeError, "'strong'"),
        (lambda: WRONG(True), TypeError, "True"),
        (lambda: WRONG((1.0, float("nan"))), ValueError, "scale is nan"),
        (lambda: WRONG(()), ValueError, "empty"),
        (lambda: WRONG(offset=float("nan")), ValueError, "offset is nan"),
        (lambda: WRONG(start=0.7, stop=0.3), ValueError, "start"),
        (lambda: WRONG(stop=1.5), ValueError, "stop is 1.5"),
        (lambda: WRONG(layout="papre"), ValueError, "paper, upstream"),
        (lambda: WRONG(normalize=-1.0), ValueError, "normalize"),
        (lambda: WRONG(blocks=(-1,)), ValueError, "blocks"),
        (lambda: WRONG(blocks=(True,)), ValueError, "blocks"),
        (lambda: WRONG(blocks=3), ValueError, "blocks is 3; allowed: a sequence"),
        (lambda: WRONG(blocks="0-3"), ValueError, "blocks is '0-3'; allowed: a sequence"),
        (lambda: NAG(alpha=2.0), ValueError, "alpha is 2"),
    ],
)  # fmt: skip
def test_bad_knobs(build: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        build()


GOOD = negatives(SPEC, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"negative_prompt": "wheels", "negative_prompt_embeds": GOOD}, ValueError, "both"),
        ({}, ValueError, "needs negative_prompt"),
        ({"negative_prompt": "wheels"}, ValueError, "bare model"),
        ({"negative_prompt": []}, ValueError, "empty list"),
        ({"negative_prompt": [3]}, TypeError, "holds 3"),
        ({"negative_prompt": 5}, TypeError, "negative_prompt is 5; allowed: a string"),
        ({"negative_prompt": {"wheels": 2}}, TypeError, "negative_prompt is .*; allowed: a string"),
        ({"negative_prompt_embeds": GOOD, "max_sequence_length": 0}, ValueError, "max_sequence_length is 0; allowed"),
        ({"negative_prompt_embeds": GOOD, "max_sequence_length": "long"}, ValueError, "max_sequence_length is 'long'"),
        ({"negative_prompt_embeds": []}, ValueError, "empty"),
        ({"negative_prompt_embeds": [torch.zeros(3, 17)]}, ValueError, "17 wide.*width 16"),
        ({"negative_prompt_embeds": [torch.zeros(1, 3, 16)]}, ValueError, r"shape \(1, 3, 16\)"),
        ({"negative_prompt_embeds": [torch.full((3, 16), float("nan"))]}, ValueError, "NaN"),
        ({"negative_prompt_embeds": GOOD * 3}, ValueError, "3 negative prompts for a batch of 2"),
        ({"guidance": VSF(scale=(1.0, 2.0, 3.0)), "negative_prompt_embeds": GOOD}, ValueError, "3 values of scale"),
        ({"guidance": VSF(start=0.5), "negative_prompt_embeds": GOOD}, ValueError, "pipeline"),
        ({"guidance": VSF(blocks=(9,)), "negative_prompt_embeds": GOOD}, ValueError, "names 9; .* 3 blocks, .*blocks 0 to 2"),
        ({"guidance": VSF(start=(0.0, 0.5)), "negative_prompt_embeds": GOOD}, ValueError, "pipeline"),
        ({"guidance": "vsf", "negative_prompt_embeds": GOOD}, TypeError, "allowed: a method"),
        ({"guidance": NAG(), "negative_prompt_embeds": GOOD, "record": True}, ValueError, "not for NAG"),
    ],
)  # fmt: skip
def test_bad_arguments_leave_the_model_untouched(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    model, call = SPEC.build(torch.float32), SPEC.inputs(2, 5, torch.float32)
    plain, before = run(model, call), fingerprint(model)
    with pytest.raises(error, match=says), negative_guidance(model, **{"guidance": VSF(), **arguments}):
        run(model, call)
    assert fingerprint(model) == before
    assert torch.equal(run(model, call), plain)


def test_an_unknown_model_is_named_with_what_is_supported() -> None:
    class MyModel(torch.nn.Module):
        pass

    class MyPipeline:
        components = {"transformer": MyModel()}

    for what in (MyModel(), MyPipeline()):
        with (
            pytest.raises(UnsupportedModel, match=r"MyModel.*SD3Transformer2DModel"),
            negative_guidance(what, VSF(), "x"),
        ):
            pass
    with pytest.raises(UnsupportedModel, match="str"), negative_guidance("a pipeline", VSF(), "x"):
        pass


def test_suppression_without_record() -> None:
    model = SPEC.build(torch.float32)
    with negative_guidance(model, VSF(), negative_prompt_embeds=GOOD) as guided:
        run(model, SPEC.inputs(2, 5, torch.float32))
    with pytest.raises(ValueError, match="record=True"):
        guided.suppression()
    nothing_ran = pytest.warns(NothingGuided, match="did not run")
    with nothing_ran, negative_guidance(model, VSF(), negative_prompt_embeds=GOOD, record=True) as guided:
        pass
    with pytest.raises(ValueError, match="no guided step ran"):
        guided.suppression()


def test_a_batch_of_nothing() -> None:
    model, call = SPEC.build(torch.float32), SPEC.inputs(1, 5, torch.float32)
    nothing = {k: v[:0] if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    refused = pytest.raises(ValueError, match="was called for no sample at all")
    with refused, negative_guidance(model, VSF(), negative_prompt_embeds=GOOD):
        run(model, nothing)
