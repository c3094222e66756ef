"""Clips are judged in all their frames, and the figures of their time say what was drawn."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_runs import cases, draw, point, says
from PIL import Image

from vsf.bench.answers import read_answers, write_answers
from vsf.bench.cases import CaseSet, load_cases
from vsf.bench.judges import JUDGES, judge_run
from vsf.bench.judges.base import PictureError, read_clip
from vsf.bench.run import Answer, Point, Run, RunPlan, Unit
from vsf.bench.tables import Results
from vsf.demo import clips
from vsf.video import save_video

CASES = [case for case in load_cases("clips") if case.part == "wheels" and case.object in ("bike", "car", "train")][:3]


def clip_of(unit: Unit, case: Any) -> np.ndarray:
    """Without guidance wheels in all frames; "vsf" has none; "nag" has them in the last three; "nasa" stands still."""
    own = tuple(sorted(clips.WORLD.typical[case.object]))
    whole = clips.Scene(case.object, case.color, own, case.background, "flat", unit.seed)
    bare = replace(whole, parts=tuple(part for part in own if part != "wheels"))
    drawn = clips.render(whole)
    if unit.kind == "unrelated" or unit.point == "none":
        return drawn
    without = clips.render(bare)
    if unit.point == "vsf":
        without[-1] = np.random.default_rng(0).integers(0, 256, without[-1].shape)  # and the last frame is destroyed
        return without
    return np.concatenate([without[:6], drawn[6:]]) if unit.point == "nag" else np.repeat(without[:1], 9, 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    some = CaseSet("clips", "Apache-2.0", tuple(CASES))
    points = tuple(point(name) for name in ("none", "vsf", "nag", "nasa"))
    plan = RunPlan("demo", points, tuple(case.id for case in some), some.name, some.hash, (0, 1), True)
    run = Run.create(tmp_path_factory.mktemp("clips") / "run", plan, some)
    draw(run)
    for unit in run.plan.units:
        frames = [Image.fromarray(frame) for frame in clip_of(unit, run.case[unit.case])]
        frames[4].save(run.image(unit))
        save_video(frames, run.image(unit).with_suffix(".gif"), 8)
        run.records.put(unit.id, {**run.records.get(unit.id), "video": {"frames": 9, "sha256": "0"}})
    judge_run(run, JUDGES.make("oracle", {"world": "clips"}), "oracle")
    return run


def test_a_part_is_missing_if_it_is_in_no_frame(run: Run) -> None:
    for answer in run.judged("oracle"):
        unit = Unit.parse(answer.unit)
        gone = unit.kind == "true" and unit.point == "nasa"  # what "vsf" drew ends in noise, in which there are none
        assert answer.status == "judged" and len(answer.details["object"]) == 9
        if unit.point != "vsf":
            assert answer.identity and answer.answer_1 and answer.answer_2 is gone, answer
        assert answer.flicker == pytest.approx(1 / 8 if (unit.point, unit.kind) == ("nag", "true") else 0), answer
        if unit.point == "vsf" and unit.kind == "true":
            assert answer.answer_2 and not answer.identity and answer.ends is not None and answer.ends < -0.3


def test_the_figures_of_time(run: Run, tmp_path: Path) -> None:
    results = Results.load([run])
    got = {name: {m: i.mean for m, i in results.scores(name).items()} for name in results.points}
    assert got["none"]["motion"] == 1 and got["nasa"]["motion"] == 0 and 0.7 < got["nag"]["motion"] < 1
    assert [got[name]["negative"] for name in got] == [0, 1, 0, 1]
    assert got["nag"]["flicker"] == pytest.approx(1 / 8) and got["none"]["flicker"] == 0
    assert got["vsf"]["ends"] < -0.3 and abs(got["none"]["ends"]) < 0.2
    write_answers(tmp_path / "a.csv.gz", [run], "oracle")
    again = Results.load(read_answers(tmp_path / "a.csv.gz"))
    assert {name: {m: i.mean for m, i in again.scores(name).items()} for name in again.points} == got


def test_motion_is_not_compared_where_nothing_was_drawn_without_guidance(run: Run) -> None:
    results = Results.load([run])
    del results.points["none"]
    assert "motion" not in results.scores("nag") and "flicker" in results.scores("nag")


def test_motion_is_compared_with_the_same_model_s(tmp_path: Path) -> None:
    """And not with that of another one whose run comes first."""
    some, moves = cases(3), {"quick": (0.4, 0.2), "slow": (0.1, 0.1)}
    runs = []
    for model, (plain, guided) in moves.items():
        points = (point("none"), Point("cfg", point("none").settings, guidance_scale=4.0), point("vsf"))
        plan = RunPlan(model, points, tuple(c.id for c in some), some.name, some.hash, (0,), False)
        run = Run.create(tmp_path / model, plan, some)
        draw(run)
        store = run.set_judge("oracle", {"kind": "made"})
        for unit in plan.units:
            motion = {"none": plain, "cfg": plain / 2, "vsf": guided}[unit.point]
            store.put(unit.id, asdict(Answer(unit.id, **says(motion=motion))))
        runs.append(run)
    results = Results.load(runs)
    got = {name: results.scores(name)["motion"].mean for name in results.points}
    assert got == {"none": 1, "cfg": 1, "vsf": 0.5, "none@slow": 1, "cfg@slow": 1, "vsf@slow": 1}


def test_equal_frames_are_one_in_the_file_and_read_as_many(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    for frames in ([red] * 5, [red, red, blue, blue, blue, red], [red, blue, red]):
        save_video(frames, tmp_path / "a.gif", 7)
        read = read_clip(tmp_path / "a.gif", len(frames))
        assert [f.getpixel((0, 0)) for f in read] == [f.getpixel((0, 0)) for f in frames]
    with pytest.raises(PictureError, match="3 frames for 4"):
        read_clip(tmp_path / "a.gif", 4)
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(PictureError, match="cannot be read"):
        read_clip(tmp_path / "a.gif", 3)
    with pytest.raises(PictureError, match="cannot be read"):
        read_clip(tmp_path / "none.gif", 3)
