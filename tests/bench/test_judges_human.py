"""People as judges: blind, resumable, each for themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from judging import add_picture, drawn, make_run
from vsf.bench.judges import LabelSession
from vsf.bench.judges.human import Question
from vsf.bench.run import Run, Unit
from vsf.bench.tables import Results
from vsf.cli import main

#: The choices that `say` makes: yes, no, good, left.
SAID = (0, 1, 0, 0)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run", cases=2, seeds=(0, 1))


def say(session: LabelSession, visitor: str, question: Question, said: tuple[int, ...] = SAID) -> None:
    """Answer by what kind of question it is: the first, the second, quality, preference."""
    first, second = question.text.startswith("Is there"), question.side and "Good" not in question.choices
    session.answer(visitor, question.key, said[0 if first else 1 if second else 2 if question.side else 3])


def pair_of(session: LabelSession, visitor: str, said: tuple[int, ...] = SAID) -> list[Question]:
    """Answer all questions of the open pair."""
    asked: list[Question] = []
    while (question := session.next(visitor)) is not None and (not asked or question.done == asked[0].done):
        asked.append(question)
        say(session, visitor, question, said)
    return asked


def all_of(session: LabelSession, visitor: str, said: tuple[int, ...] = SAID) -> list[list[Question]]:
    return list(iter(lambda: pair_of(session, visitor, said), []))


def stored(run: Run, judge: str) -> list[dict[str, Any]]:
    """What is kept of the pairs, in the order in which they were answered."""
    files = (run.folder / "judges" / judge / "pairs").rglob("*.json")
    return sorted((json.loads(p.read_bytes()) for p in files), key=lambda pair: pair["n"])


def test_every_picture_is_asked_about_once_side_by_side_with_one_of_the_same_case_and_noise(run: Run):
    shown = all_of(LabelSession(run), "anna")
    pairs = stored(run, "human-anna")
    assert len(pairs) == len(shown) and [pair["n"] for pair in pairs] == list(range(len(shown)))
    units = {unit.id for unit in drawn(run)}
    asked = [unit for pair in pairs for unit in pair["asked"]]
    assert sorted(asked) == sorted(units) == sorted(a.unit for a in run.judged("human-anna"))
    for pair, questions in zip(pairs, shown, strict=True):
        left, right = Unit.parse(pair["left"]), Unit.parse(pair["right"])
        assert left != right and (left.case, left.seed, left.kind) == (right.case, right.seed, right.kind)
        sides = [side for side, unit in (("left", left), ("right", right)) if unit.id in pair["asked"]]
        assert [q.side for q in questions] == [side for side in sides for _ in range(3)] + [""]
        case = run.case[left.case]
        assert [q.text for q in questions[:2]] == [case.question_1, case.question_2]
        assert {(q.prompt, q.negative) for q in questions} == {(case.prompt, case.negative)}
        assert {q.total for q in questions} == {len(shown)} and {q.done for q in questions} == {pair["n"]}
    assert run.judge("human-anna")["kind"] == "human"
    answer = next(run.judged("human-anna"))
    assert (answer.answer_1, answer.answer_2, answer.quality) == (True, False, 1.0)


def test_sides_and_order_are_hidden_and_differ_between_visitors_and_seeds(tmp_path: Path):
    run = make_run(tmp_path / "run", cases=10, seeds=(0, 1))

    def order(visitor: str, seed: int = 0) -> list[tuple[str, str]]:
        all_of(LabelSession(run, f"human{seed}", seed), visitor)
        return [(pair["left"], pair["right"]) for pair in stored(run, f"human{seed}-{visitor}")]

    anna, bert = order("anna"), order("bert")
    assert anna != bert and anna != order("anna", 1)
    lefts = [left.split("/")[0] for left, _ in anna]
    for method in ("none", "vsf", "nag"):
        times = sum(method in [unit.split("/")[0] for unit in pair] for pair in anna)
        assert 0.2 < lefts.count(method) / times < 0.8
    cases = [Unit.parse(left).case for left, _ in anna]
    changes = sum(a != b for a, b in zip(cases, cases[1:], strict=False))
    assert changes > len(anna) / 2  # cases come mixed, too


def test_a_question_names_no_method_file_or_unit(run: Run):
    session = LabelSession(run)
    while (question := session.next("anna")) is not None:
        assert question.left.info == {} and (question.right is None or question.right.info == {})
        text = json.dumps([v for v in vars(question).values() if isinstance(v, (str, tuple, int))])
        words = ("vsf", "nag", "none", "unrelated", str(run.folder), *(case.id for case in run.cases))
        assert not any(word in text for word in words)
        say(session, "anna", question)


def test_it_goes_on_where_it_stopped(run: Run):
    first = LabelSession(run)
    pair_of(first, "anna"), pair_of(first, "anna")
    waiting = first.next("anna")
    say(first, "anna", waiting)  # of a pair that is not finished, nothing is kept
    again = LabelSession(Run.open(run.folder))
    question = again.next("anna")
    assert question == waiting and question.done == 2
    assert len(all_of(again, "Anna ")) == question.total - 2  # names are taken as people write them
    assert again.next("anna") is None and LabelSession(run).next("anna") is None


def test_visitors_are_separate(run: Run):
    session = LabelSession(run)
    pair_of(session, "anna")
    bert = session.next("bert")
    assert bert.done == 0
    with pytest.raises(ValueError, match="not open"):
        session.answer("anna", bert.key, 0)
    pair_of(session, "bert", (1, 0, 2, 2))
    assert run.judges() == ["human-anna", "human-bert"]
    assert all(a.answer_1 for a in run.judged("human-anna")) and not any(a.answer_1 for a in run.judged("human-bert"))


def test_undo_takes_back_the_last_answer_and_then_pairs_also_after_a_restart(run: Run):
    session = LabelSession(run)
    firsts = [pair_of(session, "anna")[0] for _ in range(3)]
    before, pairs = run.answers("human-anna").keys(), stored(run, "human-anna")
    opened = session.next("anna")
    say(session, "anna", opened)
    session.undo("anna")
    assert session.next("anna") == opened and run.answers("human-anna").keys() == before
    session.undo("anna")
    assert session.next("anna") == firsts[2]
    assert before - run.answers("human-anna").keys() == set(pairs[2]["asked"])
    again = LabelSession(run)
    for first in (firsts[1], firsts[0]):
        again.undo("anna")
        assert again.next("anna") == first
    assert not run.answers("human-anna").keys()
    again.undo("anna")  # nothing is left to take back
    assert again.next("anna") == firsts[0] and len(all_of(again, "anna")) == firsts[0].total
    assert len({a.unit for a in run.judged("human-anna")}) == len(drawn(run))


def test_preferences_are_kept_beside_the_answers(run: Run):
    session = LabelSession(run)
    for choice in range(3):
        pair_of(session, "anna", (0, 1, 0, choice))
    assert [pair["preference"] for pair in stored(run, "human-anna")] == ["left", "same", "right"]


def test_who_cannot_tell_one_thing_has_said_the_others(run: Run):
    session = LabelSession(run)
    all_of(session, "anna", (0, 2, 1, 0)), all_of(session, "bert", (2, 2, 2, 0))
    for answer in run.judged("human-anna"):
        assert (answer.status, answer.answer_1, answer.answer_2, answer.quality) == ("judged", True, None, 0.5)
        assert answer.details["cannot tell"] == ["answer_2"] and set(answer.details["seconds"]) == {
            "answer_1",
            "answer_2",
            "quality",
        }
    for answer in run.judged("human-bert"):
        assert (answer.status, answer.answer_1, answer.answer_2, answer.quality) == ("judged", None, None, 0.0)
    results = Results([run], "human-anna")
    for point in results.points:
        said = results.scores(point)
        assert (said["positive"].mean, said["quality"].mean) == (1.0, 0.5) and "negative" not in said


def test_an_answer_that_is_none_and_one_given_twice_are_refused(run: Run):
    session = LabelSession(run)
    question = session.next("anna")
    before = sorted(p.name for p in run.folder.rglob("*"))
    for key, choice, words in (
        ("another", 0, "not open"),
        (question.key, 3, "3 answers"),
        (question.key, -1, "3 answers"),
    ):
        with pytest.raises(ValueError, match=words):
            session.answer("anna", key, choice)
    assert sorted(p.name for p in run.folder.rglob("*")) == before and session.next("anna") == question
    session.answer("anna", question.key, 0)
    with pytest.raises(ValueError, match="not open any more"):
        session.answer("anna", question.key, 0)


def test_a_full_disk_loses_the_last_answer_alone(run: Run, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    session = LabelSession(run)
    with monkeypatch.context() as patch:
        patch.setattr("vsf.bench.run.Store.put", full)
        with pytest.raises(OSError):
            pair_of(session, "anna")
    question = session.next("anna")
    assert question.side == "" and question.done == 0
    pair_of(session, "anna")
    assert len(stored(run, "human-anna")) == 1


@pytest.mark.parametrize("name", ["", "../anna", "a" * 25, "an na", "änna", None])
def test_visitors_have_plain_names(run: Run, name: Any):
    with pytest.raises(ValueError, match="letters or digits"):
        LabelSession(run).next(name)


def test_one_picture_alone_and_a_run_that_grows(tmp_path: Path):
    run = make_run(tmp_path / "run", cases=2, seeds=(0,), methods=("vsf", "nag"), draw=lambda u: u.point == "vsf")
    session = LabelSession(run)
    first = pair_of(session, "anna")
    assert first[0].right is None and [q.side for q in first] == ["left"] * 3  # nothing to prefer it to
    all_of(session, "anna")
    session.undo("anna")
    assert session.next("anna") is not None
    all_of(session, "anna")
    for unit in run.plan.units:
        add_picture(run, unit)
    more = all_of(session, "anna")
    assert more and all(len(questions) == 4 for questions in more)  # the new ones, beside those already answered
    assert {a.unit for a in run.judged("human-anna")} == {u.id for u in run.plan.units}


def test_a_lost_picture_is_one_sentence(run: Run):
    session = LabelSession(run)
    for path in run.folder.rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="the picture cannot be read"):
        session.next("anna")


def test_the_command_says_no_plainly(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "label", str(tmp_path)]) == 2
    assert main(["bench", "label", str(run.folder), "--name", "a b"]) == 2
    for path in run.folder.glob("records/*/*"):
        path.unlink()
    assert main(["bench", "label", str(run.folder)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and "holds no run" in errors[0] and "--name is 'a b'" in errors[1]
    assert "no pictures yet" in errors[2]


def test_seconds_are_not_made_up(run: Run):
    """The server was restarted while the page showed a question: how long it was looked at is not known."""
    shown, session = LabelSession(run).next("anna"), LabelSession(run)
    assert shown is not None
    session.answer("anna", shown.key, 0)
    while (question := session.next("anna")) is not None and question.done == 0:
        session.answer("anna", question.key, 0)
    said = list(run.judged("human-anna"))
    count = sum(getattr(a, name) is not None for a in said for name in ("answer_1", "answer_2", "quality"))
    assert sum(len(answer.details.get("seconds", {})) for answer in said) == count - 1
