"""Points as text and as files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsf.bench.points import parse_point, parse_points, read_points, write_points
from vsf.bench.run import Point, RunError
from vsf.demo.models import MODELS
from vsf.guidance import CFG, EVERY, METHODS, NAG, VSF, make_method
from vsf.guidance.variants import ABLATIONS
from vsf.presets import PRESETS


@pytest.mark.parametrize(
    "text, name, method",
    [
        ("none", "none", METHODS["none"]()),
        ("vsf:scale=1.5,offset=1,stop=0.75", "vsf,scale=1.5,offset=1,stop=0.75", VSF(1.5, 1.0, stop=0.75)),
        (" vsf : ", "vsf", VSF()),
        ("best=vsf:layout=upstream, normalize=none", "best", VSF(layout="upstream")),
        ("vsf:offset=inf,blocks=0+2", "vsf,offset=inf,blocks=0+2", VSF(offset=math.inf, blocks=(0, 2))),
        ("vsf:blocks=0-2+7,stop=0.5", "vsf,blocks=0-2+7,stop=0.5", VSF(blocks=(0, 1, 2, 7), stop=0.5)),
        ("vsf:blocks=all,normalize=1.5", "vsf,blocks=all,normalize=1.5", VSF(normalize=1.5)),
        ("a=b=nag:scale=3", "a=b", NAG(3.0)),
        ("cfg:scale=2", "cfg,scale=2", CFG(2.0)),
    ],
)
def test_a_text_is_a_method_with_a_name(text: str, name: str, method: Any) -> None:
    point = parse_point(text)
    assert point.name == name
    assert make_method(point.settings) == method


@pytest.mark.parametrize("label", EVERY)
def test_every_method_and_variant_can_be_a_point(label: str) -> None:
    point = parse_point(label)
    assert point == Point(label, EVERY[label]().settings())


def test_steps_and_guidance_scale_belong_to_the_pipeline() -> None:
    point = parse_point("x=cfg:scale=3,steps=28,guidance_scale=3.5")
    assert (point.steps, point.guidance_scale) == (28, 3.5) and "steps" not in point.settings


def test_vsf_starts_from_what_is_recommended_for_the_model() -> None:
    assert make_method(parse_point("vsf", "demo").settings) == MODELS["demo"].recommended
    assert make_method(parse_point("vsf:scale=9", "demo").settings).scale == 9.0  # type: ignore[attr-defined]
    preset = next(iter(PRESETS.values()))
    assert make_method(parse_point("vsf", preset.name).settings) == preset.guidance()
    assert make_method(parse_point("vsf", "owner/name").settings) == VSF()
    assert make_method(parse_point("nag", "demo").settings) == NAG()
    late = make_method(parse_point("vsf:start=0.8", "demo").settings)  # behind the end of the recommended range
    assert late == replace(MODELS["demo"].recommended, start=0.8, stop=1.0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "unknown method"),
        ("vfs", "did you mean vsf"),
        ("=vsf", "named ''"),
        ("a/b=vsf", "letters, digits"),
        ("vsf:scal=1", "has no setting scal; it has scale, .*did you mean scale?"),
        ("vsf:scale", "'scale' is not NAME=VALUE"),
        ("vsf:scale=", "allowed: a number"),
        ("vsf:scale=big", "allowed: a number"),
        ("vsf:normalize=big", "allowed: a number, or none"),
        ("vsf:scale=-1", "0 to 10000"),
        ("vsf:scale=nan", "0 to 10000"),
        ("vsf:layout=mine", "paper, upstream"),
        ("vsf:scale=1,scale=2", "twice"),
        ("vsf:blocks=3-1", "ends before it begins"),
        ("vsf:blocks=none", "numbers and ranges such as 0-18,24, or all"),
        ("vsf:start=0.9,stop=0.1", "start"),
        ("vsf:steps=0", "whole number from 1"),
        ("vsf:steps=1.5", "whole number from 1"),
        ("vsf:guidance_scale=inf", "from 0 to 1000"),
        ("nasa:tau=1", "method nasa has no setting tau; it has scale"),
        ("cfg:stop=0.5", "no start, stop"),
        ("cfg:blocks=1", "method cfg has no setting blocks; it has scale"),
        ("none:scale=0.5", "it has none"),
    ],
)
def test_what_is_no_point_is_refused_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        parse_points([text])


def test_two_points_with_one_name_are_refused() -> None:
    with pytest.raises(RunError, match="two points are named 'VSF'"):
        parse_points(["vsf", "VSF=vsf:scale=2"])


@given(
    st.floats(0, 100),
    st.one_of(st.just(math.inf), st.floats(-50, 50)),
    st.one_of(st.none(), st.floats(0, 5)),
    st.one_of(st.none(), st.lists(st.integers(0, 50), max_size=3, unique=True).map(tuple)),
    st.one_of(st.none(), st.integers(1, 99)),
)
def test_a_file_gives_back_the_points_exactly(tmp_path_factory, scale, offset, normalize, blocks, steps) -> None:
    method = VSF(scale, offset, normalize=normalize, blocks=blocks)
    points = (Point("a", method.settings(), steps, 1.5), *parse_points(["none", *ABLATIONS]))
    path = tmp_path_factory.getbasetemp() / "points.json"
    write_points(path, points, {"objective": 0.5, "bound": math.inf})
    again = read_points(path)
    assert again == points and make_method(again[0].settings) == method


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: "", "cannot be read"),
        (lambda d: "[]", "no file of points"),
        (lambda d: json.dumps(d | {"version": 2}), "no file of points"),
        (lambda d: json.dumps(d | {"points": []}), "holds no points"),
        (lambda d: json.dumps(d | {"points": 5}), "cannot be read"),
        (lambda d: json.dumps(d | {"points": d["points"] * 2}), "two points are named"),
        (lambda d: json.dumps(d | {"points": [{"name": "a"}]}), "cannot be read"),
        (lambda d: json.dumps(d | {"points": [{"name": "a", "settings": {"method": "vfs"}}]}), "vfs"),
        (lambda d: json.dumps(d | {"points": [{"name": "a", "settings": {"method": "vsf", "scale": -1}}]}), "scale"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "points.json"
    write_points(path, parse_points(["vsf"]))
    path.write_text(change(json.loads(path.read_bytes())))
    with pytest.raises(RunError, match=message):
        read_points(path)
    with pytest.raises(RunError, match="No such file"):
        read_points(tmp_path / "gone.json")
