from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

import definition
import vsf.plan
from closeness import close, differs, rounding, same
from test_contract import F32, F64, SPECS, negatives, row, run
from vsf import NAG, NASA, VSF, negative_guidance
from vsf.prompt import (
    Item,
    PromptError,
    describe_negative,
    format_negative,
    join_negatives,
    parse_negative,
    split_prompt,
)

# Texts rich in the characters that mean something, and in colons before digits.
TEXTS = st.text(st.sampled_from("ab 12,:()[]\\-.+é\n"), min_size=1, max_size=12).map(str.strip).filter(bool)
WEIGHTS = st.floats(0, 1e6, allow_nan=False) | st.sampled_from([0.0, 0.5, 1.0, 1.2, 2.0])
TIMES = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda t: t[0] < t[1])
TIMED = st.builds(lambda text, weight, times: Item(text, weight, *times), TEXTS, WEIGHTS, TIMES)
WHOLE = st.builds(lambda text, weight: Item(text, weight), TEXTS, WEIGHTS)
ITEMS = st.lists(WHOLE | TIMED, max_size=4)


@given(ITEMS)
@example([Item("1", 1.0, 0.0, 0.5)])
def test_what_is_written_is_read(items: list[Item]) -> None:
    assert parse_negative(format_negative(items)) == items


@given(st.text(st.characters(exclude_characters=":\\", exclude_categories=("Cs",)), max_size=30))
def test_text_without_weights_is_one_prompt_as_it_is(text: str) -> None:
    assert parse_negative(text) == ([Item(text)] if text.strip() else [])


@given(st.text(st.sampled_from("ab 012,:()[]\\-."), max_size=16))
def test_any_text_is_read_or_refused_with_one_sentence(text: str) -> None:
    try:
        items = parse_negative(text)
    except PromptError as error:
        assert "\n" not in str(error) and re.search(r"at character \d+ of the negative prompt", str(error))
        return
    assert all(item.weight >= 0 and item.text and 0 <= item.start < item.stop <= 1 for item in items)


PROMPTS = TEXTS.map(lambda t: re.sub(r"[,:()\[\]\\]", "", t).strip()).filter(bool)


@given(PROMPTS, st.lists(WHOLE | TIMED, max_size=3))
def test_inline_negatives_leave_the_prompt(prompt: str, items: list[Item]) -> None:
    groups = [f"({format_negative([Item(item.text)])}:-{item.weight!r})" for item in items]
    windows = [f"[{group}:{item.start!r},{item.stop!r}]" for group, item in zip(groups, items, strict=True)]
    inline = " ".join(w if item.timed else g for w, g, item in zip(windows, groups, items, strict=True))
    assert split_prompt(f"{prompt} {inline}" if inline else prompt) == (prompt, items)


@given(
    st.text(st.characters(exclude_characters="\\", exclude_categories=("Cs",)), max_size=30).filter(
        lambda t: ":" not in t
    )
)
def test_prompt_without_inline_negatives_is_unchanged(text: str) -> None:
    assert split_prompt(text) == (text, [])


@given(st.text(st.sampled_from("ab 012,:()[]\\-."), max_size=16))
def test_any_prompt_is_split_or_refused(text: str) -> None:
    try:
        _, items = split_prompt(text)
    except PromptError as error:
        assert re.search(r"character \d+ of the prompt", str(error))
        return
    assert all(item.weight >= 0 and item.text for item in items)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("wheels:2, chain", [("wheels", 2), ("chain", 1)]),
        ("wheels: 2 ,chain:.5,", [("wheels", 2), ("chain", 0.5)]),
        ("(wheels, chain:2), rust", [("wheels, chain", 2), ("rust", 1)]),
        ("wheels:0, chain", [("wheels", 0), ("chain", 1)]),
        (r"a clock at 10\:30", [("a clock at 10:30", 1)]),
        (r"blurry\, ugly:2, rust", [("blurry, ugly", 2), ("rust", 1)]),
        ("style: oil painting, wheels", [("style: oil painting, wheels", 1)]),
        ("at 10:30 in the morning", [("at 10:30 in the morning", 1)]),
        ("a:b:2", [("a:b", 2)]),
        # Times and ratios are text.
        ("ratio 16:9", [("ratio 16:9", 1)]),
        ("a clock at 12:30", [("a clock at 12:30", 1)]),
        ("12:30:15, 1:2.35 (4:3)", [("12:30:15, 1:2.35 (4:3)", 1)]),
        ("a clock (at 12:30)", [("a clock (at 12:30)", 1)]),
        ("(16:9)", [("(16:9)", 1)]),
        ("time: 12:30", [("time: 12:30", 1)]),
        ("until 10:30pm", [("until 10:30pm", 1)]),
        ("a clock at 12:30, wheels:2", [("a clock at 12:30", 1), ("wheels", 2)]),
        ("(a clock at 12:30, a dial:2), rust", [("a clock at 12:30, a dial", 2), ("rust", 1)]),
        ("a clock at 12:30: 2", [("a clock at 12:30", 2)]),  # a space says that it is a weight
        ("route 66: 2, (route 67: .5), v2:.5", [("route 66", 2), ("route 67", 0.5), ("v2", 0.5)]),
        ("car (old), wheels:2", [("car (old)", 1), ("wheels", 2)]),
        ("wheels:2, 7", [("wheels", 2), ("7", 1)]),
        (r"C:\windows", [(r"C:\windows", 1)]),
        ("", []),
        ("  ", []),
        # Times: a window, from when on, up to when, and from one to another.
        ("[snow:0.2,0.6]", [("snow", 1, 0.2, 0.6)]),
        ("[snow:0.2]", [("snow", 1, 0.2, 1)]),
        ("[snow::0.6]", [("snow", 1, 0, 0.6)]),
        ("[snow:rain:.3]", [("snow", 1, 0, 0.3), ("rain", 1, 0.3, 1)]),
        ("[snow:rain:0.2,0.6]", [("snow", 1, 0.2, 0.6), ("rain", 1, 0.6, 1)]),
        ("[a:b::0.2,0.6]", [("a", 1, 0, 0.2), ("b", 1, 0.2, 0.6)]),
        ("[a:b:c:0.2,0.6]", [("a", 1, 0, 0.2), ("b", 1, 0.2, 0.6), ("c", 1, 0.6, 1)]),
        ("[snow:0,1], rust", [("snow", 1), ("rust", 1)]),
        ("rust, [ snow, ice : 0.2 , 0.6 ]", [("rust", 1), ("snow, ice", 1, 0.2, 0.6)]),
        ("[(snow:2), (ice:.5), hail:0.2]", [("snow", 2, 0.2, 1), ("ice", 0.5, 0.2, 1), ("hail", 1, 0.2, 1)]),
        ("[a clock at 12:30: 0.5]", [("a clock at 12:30", 1, 0.5, 1)]),
        (r"[a\:b:0.5]", [("a:b", 1, 0.5, 1)]),
        # What looks like it and is none.
        ("[1-2]", [("[1-2]", 1)]),
        ("[12:30], [16:9]", [("[12:30], [16:9]", 1)]),
        ("[snow], [a|b], a[0.5]", [("[snow], [a|b], a[0.5]", 1)]),
        (r"[snow\:0.2]", [("[snow:0.2]", 1)]),
        ("[snow], wheels:2", [("[snow]", 1), ("wheels", 2)]),
    ],
)
def test_negatives(text: str, items: list[tuple[Any, ...]]) -> None:
    assert parse_negative(text) == [Item(*item) for item in items]


@pytest.mark.parametrize(
    ("text", "at", "why"),
    [
        ("chain, wheels:2x", 15, "'2x'.*not a number"),
        ("wheels:-1", 8, "-1.*0 or more"),
        ("wheels:1e999", 8, "0 or more"),
        ("chain,:2", 8, "no text"),
        ("wheels:1,5", 10, "point"),
        ("old (wheels:2) bike", 5, "commas around it"),
        ("old [wheels:0.2] bike", 5, "commas around it"),
        ("[[wheels::0.6]:0.2]", 2, "brackets do not nest"),
        ("rust, [wheels:3]", 15, "3 .*fractions of all steps from 0 to 1"),
        ("[wheels:0.2,1.5]", 9, "1.5 .*fractions"),
        ("[wheels:-0.2]", 9, "fractions"),
        ("[wheels:0.6,0.2]", 9, "no step lies between the times 0.6 and 0.2"),
        ("[wheels::0]", 10, "no step lies"),
        ("[wheels:0.2-0.6]", 9, r"0.2-0.6.*\[text:0.2,0.6\]"),
        ("[wheels:0.2,0.6", 9, r"\[text:0.2,0.6\]"),
        ("[:0.2]", 3, "no text"),
        ("rust, [a:b:c:0.2]", 7, "3 parts and 1 time"),
        ("[wheels: 2 :0.5]", 9, r"the number 2 .*\(text:2\)"),
        ("[a, (b:2) c:0.5]", 5, "only a part"),
    ],
)
def test_bad_negatives(text: str, at: int, why: str) -> None:
    with pytest.raises(PromptError, match=why) as caught:
        parse_negative(text)
    assert f"at character {at} " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "prompt", "items"),
    [
        ("a bicycle (wheels:-1.2) in the park", "a bicycle in the park", [("wheels", 1.2)]),
        ("a bicycle, (wheels:-1.2), in the park", "a bicycle, in the park", [("wheels", 1.2)]),
        ("(wheels:-1), a bicycle", "a bicycle", [("wheels", 1)]),
        ("a bicycle, (wheels, chain:-2)", "a bicycle", [("wheels, chain", 2)]),
        ("a bicycle (wheels:-1).", "a bicycle.", [("wheels", 1)]),
        ("a (b:-1)(c:-2) d", "a d", [("b", 1), ("c", 2)]),
        ("a (red:1.3) bicycle, 16:9 (4:3)", "a (red:1.3) bicycle, 16:9 (4:3)", []),
        ("a clock (at 12:30) (a clock at 12:30:-2)", "a clock (at 12:30)", [("a clock at 12:30", 2)]),
        (r"a \(wheels:-1\) sign", "a (wheels:-1) sign", []),
        (r"(smile \:\):-2) a face", "a face", [("smile :)", 2)]),
        ("(wheels:-0) a", "a", [("wheels", 0)]),
        ("a bicycle [(wheels:-1.2):0.2,0.6] in the park", "a bicycle in the park", [("wheels", 1.2, 0.2, 0.6)]),
        ("a bicycle, [(wheels:-1)::0.6]", "a bicycle", [("wheels", 1, 0, 0.6)]),
        ("[(snow:-1), (ice:-2):(rain:-3):0.5] a", "a", [("snow", 1, 0, 0.5), ("ice", 2, 0, 0.5), ("rain", 3, 0.5, 1)]),
        ("a [red:blue:0.5] (b:-1) [bicycle]", "a [red:blue:0.5] [bicycle]", [("b", 1)]),
        (r"a \[(wheels:-1):0.5\] sign", "a [:0.5] sign", [("wheels", 1)]),
        ("a [cat (fur:-1) at 12:30] (b:-2): 3 of them", "a [cat at 12:30]: 3 of them", [("fur", 1), ("b", 2)]),
    ],
)
def test_prompts(text: str, prompt: str, items: list[tuple[Any, ...]]) -> None:
    assert split_prompt(text) == (prompt, [Item(*item) for item in items])


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("a ((old) wheels:-2)", 16), ("a (:-2)", 3), ("a (b:-1) and c:-2)", 15), ("x (b:-1e999)", 6),
        ("a [(b:-1) c:0.5]", 3), ("a [(b:-1), (c:2):0.5]", 3), ("a [(b:-1):2]", 3), ("a [(b:-1):0.6,0.2]", 3),
        ("a [(b:-1):0.5", 3), ("a [(b:-1), (c:-1)::0.2-0.6]", 3), ("a [(b:-1):12:30]", 3),
    ],
)  # fmt: skip
def test_bad_prompts(text: str, at: int) -> None:
    with pytest.raises(PromptError, match=f"at character {at} of the prompt"):
        split_prompt(text)


def test_joining() -> None:
    assert join_negatives("blurry, ugly", []) == "blurry, ugly" and join_negatives(None, []) is None
    assert parse_negative(join_negatives("blurry, ugly", [Item("wheels", 1.2), Item("rust", 1, 0.5)]) or "") == [
        Item("blurry, ugly"),
        Item("wheels", 1.2),
        Item("rust", 1, 0.5),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, None),
        ("", None),
        ("wheels", None),
        ("blurry, ugly at 12:30", None),
        ("wheels:2, chain, rust:0", "'wheels' with weight 2, 'chain' with weight 1, without 'rust' (weight 0)"),
        ("year:1", "'year' with weight 1"),
        ("[snow:0.2,0.6]", "'snow' with weight 1 from 0.2 to 0.6 of the steps"),
        ("[1-2] at 16:9", None),
        (r"10\:a", "'10:a' with weight 1"),
    ],
)
def test_what_was_understood_is_said(text: str | None, says: str | None) -> None:
    assert describe_negative(text) == says


def test_what_cannot_be_written() -> None:
    for item in (Item(" "), Item("a", -1), Item("a", float("nan")), Item("a", 1, 0.6, 0.6), Item("a", 1, 0, 1.5)):
        with pytest.raises(PromptError):
            format_negative([item])


# ---------------------------------------------------------------------------------------------------------------------
# Weights in the attention

FAMILIES = [
    name
    for name in ("sd3", "unet", "flux", "wan", "wan-i2v", "qwen", "hunyuan-video", "z-image", "prx")
    if name in SPECS
]
WEIGHT = torch.tensor([2.0, 0.3, 1.0])


def weighted(model, call, embeds, weights, method=None) -> Tensor:  # noqa: ANN001
    with negative_guidance(model, method or VSF(3.5, 0.1), negative_prompt_embeds=embeds, negative_weights=weights):
        return run(model, call)


@pytest.mark.parametrize("name", ["sd3", "unet"])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_weights_equal_the_whole_model_definition(name: str, dtype: torch.dtype) -> None:
    spec, method = SPECS[name], VSF(3.5, 0.1)
    (negative,) = negatives(spec, 3)
    model = spec.build(dtype)
    out = weighted(model, spec.inputs(1, 5, dtype), [negative], [WEIGHT], method)
    with torch.no_grad():
        rule = method.settings() | {"weight": WEIGHT}
        assert spec.definition is not None
        truth = spec.definition(spec.build(F64), spec.inputs(1, 5, F64), negative, rule)
        other = spec.definition(spec.build(F64), spec.inputs(1, 5, F64), negative, method.settings())
    close(out, truth, other, rounding(model, dtype))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("layout", ["paper", "upstream"])
def test_weights_equal_the_dense_definition(name: str, layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS[name]
    model, call, given, method = spec.build(F64), spec.inputs(2, 5, F64), negatives(spec, 3, 4), VSF(3.3, 0.2, layout)
    weights = [WEIGHT, None]
    fast = weighted(model, call, given, weights, method)
    without = weighted(model, call, given, None, method)
    for kind, slow in definition.DENSE.items():
        monkeypatch.setattr(vsf.plan, kind, slow)
    dense = weighted(model, call, given, weights, method)
    bound = rounding(model, F64)
    same(fast, dense, bound)
    differs(fast[:1], without[:1], bound)
    same(fast[1:], without[1:], bound)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_a_ragged_batch_equal_single_runs(name: str) -> None:
    spec = SPECS[name]
    model, call, given = (
        spec.build(F64),
        spec.inputs(4, 5, F64),
        [*negatives(spec, 3, 7), None, *negatives(spec, 1, seed=5)],
    )
    weights = [WEIGHT, torch.linspace(0, 3, 7), None, None]
    together = weighted(model, call, given, weights)
    for i in range(4):
        alone = weighted(model, row(call, i, 4), [given[i]], [weights[i]])
        same(together[i : i + 1], alone, rounding(model, F64))


def test_weights_of_one_change_nothing() -> None:
    spec = SPECS["sd3"]
    model, call, given = spec.build(F32), spec.inputs(1, 5, F32), negatives(spec, 3)
    assert torch.equal(weighted(model, call, given, [torch.ones(3)]), weighted(model, call, given, None))
    assert torch.equal(weighted(model, call, given[0], torch.ones(3)), weighted(model, call, given, None))


@pytest.mark.parametrize("method", [NAG(), NASA()], ids=repr)
def test_methods_without_weights_refuse_them(method) -> None:  # noqa: ANN001
    spec = SPECS["sd3"]
    with pytest.raises(ValueError, match=f"{type(method).__name__} cannot take negative_weights"):
        weighted(spec.build(F32), spec.inputs(1, 5, F32), negatives(spec, 3), [WEIGHT], method)


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ([WEIGHT, WEIGHT], "2 entries for 1"),
        ([WEIGHT[:2]], r"\(2,\) for 3 tokens"),
        ([2.0], "2.0 for 3 tokens"),
        ([-WEIGHT], "0 or more"),
        ([WEIGHT * float("nan")], "NaN"),
    ],
)
def test_bad_weights(weights, why: str) -> None:  # noqa: ANN001
    spec = SPECS["sd3"]
    with pytest.raises(ValueError, match=why):
        weighted(spec.build(F32), spec.inputs(1, 5, F32), negatives(spec, 3), weights)


def test_weights_without_embeddings() -> None:
    with (
        pytest.raises(ValueError, match="wheels:2, chain"),
        negative_guidance(SPECS["sd3"].build(F32), VSF(), "wheels", negative_weights=[WEIGHT]),
    ):
        pass
