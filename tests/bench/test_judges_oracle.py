"""Judging as an act of its own: resumable, blind, and exact on the demo world."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from judging import add_picture, drawn, make_run, parts_of
from patience import PATIENCE
from vsf.bench.judges import JudgeError, OracleJudge, exhibits, judge_run, tally
from vsf.bench.run import Run, RunError
from vsf.cli import main
from vsf.demo.oracle import load_oracle
from vsf.images import read_settings


@pytest.fixture(scope="module")
def oracle():
    return load_oracle()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run")


def answers(run: Run, name: str = "oracle") -> dict[str, str]:
    store = run.answers(name)
    return {key: store.path(key).read_text() for key in store.keys()}  # noqa: SIM118


class Echo:
    """A judge that says yes, and remembers what it was shown."""

    def __init__(self, stop_after: int | None = None, refuse: bool = False) -> None:
        self.seen: list = []
        self.stop_after, self.refuse = stop_after, refuse

    def about(self):
        return {"kind": "echo", "version": 1}

    def read(self, items):
        for item in items:
            if self.stop_after is not None and len(self.seen) >= self.stop_after:
                raise JudgeError("no further")
            self.seen.append(item)
            usage = {"usage": {"requests": 2}}
            yield item.not_judged("shy: of you", usage) if self.refuse else item.judged(answer_1=True, details=usage)


# -- the oracle ---------------------------------------------------------------------------------------------------------


def test_the_oracle_says_what_was_drawn(run, oracle):
    done = judge_run(run, OracleJudge(oracle), "oracle")
    units = drawn(run)
    assert (done.judged, done.waiting, done.undrawn, done.not_judged) == (len(units), 0, 0, {})
    for answer in run.judged("oracle"):
        unit = next(u for u in units if u.id == answer.unit)
        case = run.case[unit.case]
        shown = parts_of(unit, case)
        others = [part in shown for part in ("x", *shown) if part != "x"]
        assert answer.answer_1 is True and answer.identity is True
        assert answer.answer_2 is (case.part not in shown), answer
        assert answer.kept == (1.0 if len(others) > (case.part in shown) else 0.0), answer
        assert answer.quality is not None and answer.quality > 0.5
    about = run.judge("oracle")
    assert about["threshold"] == oracle.threshold and about["oracle_sha256"] == oracle.fingerprint


def test_a_wrong_colour_is_the_object_but_not_the_case(run, oracle):
    unit = drawn(run)[0]
    case = run.case[unit.case]
    other = next(c for c in ("red", "blue") if c != case.color)
    from vsf.demo import pictures as world

    scene = world.Scene(case.object, other, parts_of(unit, case), case.background, "flat", 3)
    add_picture(run, unit, Image.fromarray(world.render(scene)))
    judge_run(run, OracleJudge(oracle), "oracle")
    answer = next(a for a in run.judged("oracle") if a.unit == unit.id)
    assert answer.identity is True and answer.answer_1 is False


def test_a_wreck_is_no_success_by_its_missing_part(run, oracle):
    unit = next(u for u in drawn(run) if u.point == "vsf" and u.kind == "true")
    with Image.open(run.image(unit)) as image:
        wreck = image.convert("RGB").filter(ImageFilter.GaussianBlur(9))
    add_picture(run, unit, wreck)
    judge_run(run, OracleJudge(oracle), "oracle")
    answer = next(a for a in run.judged("oracle") if a.unit == unit.id)
    assert answer.quality < oracle.threshold and answer.answer_1 is False


def test_an_answer_depends_on_its_own_picture_only(run, oracle):
    judge = OracleJudge(oracle)
    todo = exhibits(run, drawn(run))
    together = {a.unit: a for a in judge.read(todo)}
    assert len(together) == len(todo)
    for chosen in (todo[:1], todo[3:10], list(reversed(todo))):
        for answer in judge.read(chosen):
            assert answer == together[answer.unit]


def test_a_case_of_another_world_and_a_damaged_picture_are_not_judged(run, oracle):
    first, second, third = drawn(run)[:3]
    run.image(first).write_bytes(run.image(first).read_bytes()[:300])
    run.image(second).unlink()
    run.image(third).write_text("GIF89a no picture")
    done = judge_run(run, OracleJudge(oracle), "oracle")
    assert sum(done.not_judged.values()) == 3 and done.judged == len(drawn(run)) - 3
    for answer in run.judged("oracle"):
        if answer.unit in (first.id, second.id, third.id):
            assert answer.status == "not judged" and answer.reason and answer.answer_2 is None
    foreign = [replace(i, case=replace(i.case, part=None)) for i in exhibits(run, drawn(run))[:2]]
    assert [a.reason for a in OracleJudge(oracle).read(foreign)] == ["not a case of the demo world"] * 2


def test_the_weights_are_checked(tmp_path):
    with pytest.raises(JudgeError, match="are needed"):
        OracleJudge(tmp_path)


# -- the act --------------------------------------------------------------------------------------------------------------


def test_only_what_is_drawn_and_unanswered_is_asked(tmp_path):
    run = make_run(tmp_path / "run", draw=lambda unit: unit.seed == 0)
    judge = Echo()
    done = judge_run(run, judge, "echo")
    assert done.undrawn == done.judged == len(judge.seen) and done.waiting == 0
    judge_run(run, judge, "echo")
    assert len(judge.seen) == done.judged
    for unit in run.plan.units:
        if unit.seed:
            add_picture(run, unit)
    assert tally(run, "echo").waiting == done.judged
    judge_run(Run.open(run.folder), judge, "echo")
    asked = [item.unit for item in judge.seen]
    assert len(asked) == len(set(asked)) == len(list(run.plan.units))


def test_methods_come_mixed_in_a_seeded_order(run):
    def order(seed, units=None):
        return [item.unit for item in exhibits(run, units or run.plan.units, seed)]

    assert order(0) == order(0, list(reversed(list(run.plan.units)))) and order(0) != order(1)
    assert sorted(order(0)) == sorted(order(1))
    half = [u for u in run.plan.units if u.seed]
    assert [u for u in order(0) if u in {h.id for h in half}] == order(0, half)
    points = [unit.split("/")[0] for unit in order(0)]
    changes = sum(a != b for a, b in zip(points, points[1:], strict=False))
    assert changes > len(points) / 3


def test_what_may_leave_says_nothing_about_the_method(run):
    todo = exhibits(run, run.plan.units)
    assert len({item.id for item in todo}) == len(todo)
    assert {i.id for i in todo}.isdisjoint(i.id for i in exhibits(run, run.plan.units, seed=1))
    for item in todo[:6]:
        assert read_settings(item.image)["unit"] == item.unit  # the file says it,
        assert b"guidance" not in item.png() and item.unit.encode() not in item.png()  # what is sent does not
        assert item.picture().info == {}
    by_pixels: dict[bytes, set[bytes]] = {}
    for item in todo:
        by_pixels.setdefault(np.asarray(item.picture()).tobytes(), set()).add(item.png())
    assert all(len(same) == 1 for same in by_pixels.values()) and len(by_pixels) < len(todo)


def test_a_judge_that_stops_keeps_what_it_said_and_goes_on(run):
    with pytest.raises(JudgeError, match="no further"):
        judge_run(run, Echo(stop_after=5), "echo")
    assert tally(run, "echo").judged == 5
    rest = Echo()
    judge_run(run, rest, "echo")
    assert len(rest.seen) == len(drawn(run)) - 5


def test_not_judged_is_kept_with_its_reason_and_asked_again_only_when_wanted(run):
    n = len(drawn(run))
    done = judge_run(run, Echo(refuse=True), "echo")
    assert done.judged == 0 and done.not_judged == {"shy": n} and done.spent == {"requests": 2 * n}
    answer = next(run.judged("echo"))
    assert answer.reason == "shy: of you" and answer.answer_1 is None and answer.quality is None
    idle = Echo()
    judge_run(run, idle, "echo")
    assert not idle.seen
    done = judge_run(run, Echo(), "echo", retry=True)
    assert done.judged == n and not done.not_judged and done.spent == {"requests": 4 * n}


def test_judges_stand_side_by_side_and_a_name_belongs_to_one(run, oracle):
    judge_run(run, Echo(), "echo")
    judge_run(run, OracleJudge(oracle), "oracle")
    assert run.judges() == ["echo", "oracle"]
    before = answers(run, "echo")
    with pytest.raises(RunError, match="another 'echo'.*kind"):
        judge_run(run, OracleJudge(oracle), "echo")
    assert answers(run, "echo") == before
    with pytest.raises(RunError, match="named"):
        judge_run(run, Echo(), "../escape")


def test_a_judge_cannot_answer_twice_or_for_others(run):
    class Twice(Echo):
        def read(self, items):
            yield items[0].judged(answer_1=True)
            yield items[0].judged(answer_1=False)

    with pytest.raises(RuntimeError, match="no longer asked"):
        judge_run(run, Twice(), "twice")
    assert next(run.judged("twice")).answer_1 is True


# -- kill -9 ----------------------------------------------------------------------------------------------------------------

_PARENT = """
import os, signal, sys
from pathlib import Path
from vsf.bench import run as files
from vsf.bench.judges import OracleJudge, judge_run
from vsf.demo.oracle import load_oracle
oracle = load_oracle()

def die_at(moment, count):
    seen, replace, write_whole = 0, os.replace, files.write_whole
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    def replacing(source, target):
        nonlocal seen
        seen += 1
        if seen == count and moment == "before":
            die()
        replace(source, target)
        if seen == count and moment == "after":
            die()
    def writing(path, data):
        if seen + 1 == count and moment == "half":
            path.with_name(f".{path.name}.x.part").write_bytes(data[: len(data) // 2])
            die()
        write_whole(path, data)
    os.replace, files.write_whole = replacing, writing

for line in sys.stdin:
    moment, count, folder = line.rstrip().split(" ", 2)
    child = os.fork()
    if child == 0:
        die_at(moment, int(count))
        judge_run(files.Run.open(folder), OracleJudge(oracle), "oracle")
        os._exit(0)
    print(int(os.WIFSIGNALED(os.waitpid(child, 0)[1])), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL, which Windows does not have")
def test_killed_at_twenty_random_moments_it_says_the_same(tmp_path):
    """A parent with everything imported forks judges, which are killed at a random file: before, within or after it.

    Moments are counted in files and not in seconds, so that they are the same on a busy machine.
    """
    run, calm = (make_run(tmp_path / name, cases=4, seeds=range(4)) for name in ("run", "calm"))
    rng = random.Random(7)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    counts: list[int] = []
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdin and parent.stdout

        def judge(which: Run, moment: str = "never", count: int = 0) -> bool:
            """Whether it was killed."""
            parent.stdin.write(f"{moment} {count} {which.folder}\n")
            parent.stdin.flush()
            return parent.stdout.readline().strip() == "1"

        assert not judge(calm)
        expected = answers(calm)
        assert len(expected) == len(drawn(calm))
        for _ in range(20):
            # The first file says who judges; there are always more left than are counted to here.
            assert judge(run, rng.choice(("before", "half", "after")), rng.randint(1, 4))
            now = answers(run)
            assert all(expected[key] == text for key, text in now.items())  # whole or not there
            counts.append(len(now))
        assert len(expected) > counts[-1] > counts[0]
        assert not judge(run)
        parent.stdin.close()
        assert parent.wait(PATIENCE) == 0
    assert answers(run) == expected
    assert run.judge("oracle") == calm.judge("oracle")


# -- the command --------------------------------------------------------------------------------------------------------------


def test_the_command_judges_and_says_what_it_did(run, capsys):
    assert main(["bench", "judge", str(run.folder), "--judge", "oracle"]) == 0
    out, err = capsys.readouterr()
    assert out == f"oracle: {len(drawn(run))} judged, 0 not judged\n" and err == ""
    assert main(["bench", "judge", str(run.folder), "--name", "again"]) == 0
    assert run.judges() == ["again", "oracle"] and answers(run, "again") == answers(run)


@pytest.mark.parametrize(
    ("arguments", "say"),
    [
        (["--judge", "orakel"], "did you mean oracle"),
        (["--judge", "oracle", "--model", "x"], "--model is no option of the judge oracle"),
        (["--judge", "local"], "needs --model"),
        (["--judge", "local", "--model", "x", "--metric", "demo"], "--metric is no option of the judge local"),
        (["--judge", "human"], "vsf bench label"),
        (["--name", "a/b"], "named 'a/b'"),
        (["--judge", "metrics", "--metric", "preference"], "a model is given"),
    ],
)
def test_bad_options_are_one_sentence_and_nothing_is_judged(run, capsys, arguments, say):
    assert main(["bench", "judge", str(run.folder), *arguments]) == 2
    out, err = capsys.readouterr()
    assert say in err and err.count("\n") == 1 and not out and run.judges() == []


def test_no_run_is_one_sentence(tmp_path, capsys):
    assert main(["bench", "judge", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_pictures_that_a_judge_cannot_judge_at_all_are_refused_before_it_begins(tmp_path, capsys):
    from bench_runs import make_run as other_run
    from bench_runs import point

    run = other_run(tmp_path / "other", [point("none"), point("vsf")], {})
    assert main(["bench", "judge", str(run.folder)]) == 2
    err = capsys.readouterr().err
    assert "the judge oracle cannot judge 6 of 6 cases (case-0: not a case of the demo world)" in err
    assert err.count("\n") == 1 and not (run.folder / "judges").exists()
