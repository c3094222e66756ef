"""What an endpoint says of a word: probabilities where it gives them, else the word; over real HTTP."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from PIL import Image

pytest.importorskip("openai", reason="needs the extra bench")

import test_judges_api as http
from test_judges_api import judge, kept_of, pauses, reply, serving, verdict

from judging import drawn, make_run
from vsf.bench.endpoint import BadReply
from vsf.bench.judges import JudgeError, exhibits, judge_run
from vsf.bench.judges.spoken import booleans, chosen
from vsf.judging import from_run

__all__ = ["pauses"]  # a fixture: the key is set, and waits are not sat out

YES_NO = ("yes", "no")


def token(text: str, **others: float) -> dict:
    """A token of a reply with the probabilities of what might have stood there."""
    every = {text: 0.0, **others} if others else {}
    listed = [{"token": t, "logprob": math.log(p) if p else -9999.0} for t, p in every.items()]
    return {"token": text, "logprob": -0.1, "top_logprobs": listed}


def said(*tokens: dict, **choice) -> str:
    text = "".join(t["token"] for t in tokens)
    return json.dumps(reply(text, logprobs={"content": list(tokens)}, **choice))


# -- reading --------------------------------------------------------------------------------------------------------------


def test_a_word_is_weighed_against_the_other_word_alone():
    one = token("No", yes=0.25, Yes=0.15, **{" no": 0.05, "No": 0.15, "n": 0.05, "maybe": 0.35})
    assert chosen(said(one), YES_NO) == (pytest.approx(0.40 / 0.65), True)
    # What comes before is no word, and what comes after does not count; a reply that is cut off after it is one.
    after = token("x", yes=1.0)
    assert chosen(said(token(" "), one, after, finish_reason="length"), YES_NO)[0] == pytest.approx(0.40 / 0.65)


def test_without_probabilities_the_word_counts():
    for text, p in (("Yes.", 1.0), (" no", 0.0), ("YES, there is", 1.0), ("<|im_start|>no", 0.0)):
        assert chosen(json.dumps(reply(text)), YES_NO) == (p, False)
    # Alternatives without either word say nothing about them.
    assert chosen(said(token("no", maybe=0.5)), YES_NO) == (0.0, False)
    assert chosen(said({"token": "yes", "logprob": -0.1}), YES_NO) == (1.0, False)


@pytest.mark.parametrize("text", ["", "maybe", "nothing", "yesterday", "not sure", json.dumps(["yes"])])
def test_neither_word_is_no_answer(text):
    with pytest.raises(BadReply, match="neither yes nor no"):
        chosen(json.dumps(reply(text)), YES_NO)


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": [{"message": null}]}',
        '{"choices": [{"message": {"content": 3}}]}',
    ],
)
def test_what_is_no_reply_is_no_answer(broken):
    with pytest.raises(BadReply, match="no message"):
        chosen(broken, YES_NO)
    assert booleans(broken, ("answer_1",)) == {}


@pytest.mark.parametrize(
    "content",
    [3, "yes", [3], [{"token": 3}], [{"token": "yes", "top_logprobs": [3, {}, {"token": "yes", "logprob": "x"}]}],
     [{"token": "yes", "top_logprobs": [{"token": "yes", "logprob": 5.0}]}], None],
)  # fmt: skip
def test_probabilities_that_are_none_leave_the_word(content):
    assert chosen(json.dumps(reply("yes", logprobs={"content": content})), YES_NO) == (1.0, False)


def pieces(text: str, size: int = 3) -> list[dict]:
    return [token(text[i : i + size]) for i in range(0, len(text), size)]


def test_the_booleans_of_an_object_are_found_in_its_tokens():
    """However it is cut into tokens, and whatever the reasoning says of itself."""
    first, second = token(" true", **{" true": 0.7, " false": 0.2}), token("f", **{"t": 0.6, "f": 0.3})
    head = pieces('{"reasoning": "I write \\"answer_1\\":')
    head += [token(" true", **{" true": 0.1, " false": 0.9}), *pieces(' and mean it", "answer_1":')]
    reply_ = said(*head, first, *pieces(', "answer_2" : '), second, *pieces('alse, "quality": 0.5}'))
    got = booleans(reply_, ("answer_1", "answer_2", "answer_3"))
    assert got == {"answer_1": pytest.approx(0.7 / 0.9), "answer_2": pytest.approx(0.6 / 0.9)}
    assert booleans(json.dumps(reply("{}")), ("answer_1",)) == {}


# -- judging --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", cases=1, seeds=(0,), methods=("none",))


def test_probabilities_count_instead_of_the_word_that_was_written(run):
    def behave(body, before):
        assert body["logprobs"] is True and body["top_logprobs"] == 20
        text = json.dumps(verdict(kept_of(body)))
        at = text.index("true"), text.index("false")
        cut = [*pieces(text[: at[0]]), token("true", true=0.4, false=0.5), *pieces(text[at[0] + 4 : at[1]])]
        cut += [token("false", true=0.9, false=0.05), *pieces(text[at[1] + 5 :])]
        return json.loads(said(*cut))

    with serving(behave) as server:
        assert judge_run(run, judge(server, logprobs=True), "api").judged == len(drawn(run))
    for answer in run.judged("api"):  # the server wrote true and false
        assert (answer.answer_1, answer.answer_2) == (False, True)
        assert answer.details["probabilities"] == {"answer_1": round(0.4 / 0.9, 6), "answer_2": round(0.9 / 0.95, 6)}
    yes = [label.yes for label in from_run(run, ["api"]) if label.asks == "object"]
    assert yes and yes == pytest.approx([0.4 / 0.9] * len(yes), abs=1e-6)


def test_who_is_not_asked_for_probabilities_or_has_none_answers_as_before(run):
    for name, asked in (("plain", False), ("none", True)):
        with serving(http.good) as server:
            judge_run(run, judge(server, logprobs=asked), name)
        assert all(("logprobs" in body) is asked for body in server.bodies)
        for answer in run.judged(name):
            assert (answer.answer_1, answer.answer_2) == (True, False) and "probabilities" not in answer.details


def words(server, **given):
    return judge(server, words=True, logprobs=True, **given)


@pytest.fixture
def picture_first(monkeypatch):
    """The server's own reading of a request, for one that has the picture before the question and no schema."""
    found = http.picture_of

    def picture_of(body):
        return found({"messages": [None, {"content": [None, body["messages"][0]["content"][0]]}]})

    monkeypatch.setattr(http, "picture_of", picture_of)
    monkeypatch.setattr(http, "kept_of", lambda body: [])


def test_one_question_at_a_time_as_a_local_judge_asks(run, picture_first, tmp_path):
    def behave(body, before):
        (turn,) = body["messages"]
        image, text = turn["content"]
        assert image["type"] == "image_url" and "response_format" not in body and body["max_completion_tokens"] == 1
        if "missing" in text["text"]:
            return json.loads(said(token("no", yes=0.3, no=0.1), finish_reason="length"))
        return reply("good" if "good or poor" in text["text"] else "yes", finish_reason="length")

    with serving(behave) as server:
        judged = words(server, max_tokens=1, cache=tmp_path / "cache")
        item = exhibits(run, drawn(run))[0]
        estimate = judged.estimate([item])
        answer = next(iter(judged.read([item])))
        count = server.count
        assert next(iter(judged.read([item]))).details["cached"] is True and server.count == count
        assert judged.answer(Image.new("RGB", (8, 8)), "Are wheels missing?") == pytest.approx(0.75)
        assert judged.answer(Image.new("RGB", (8, 8)), "Is it red?") == 1.0
    assert item.kept and count == estimate.requests == 3 + len(item.kept) == answer.details["usage"]["requests"]
    assert (answer.answer_1, answer.answer_2, answer.quality, answer.kept) == (True, True, 1.0, 1.0)
    assert answer.details["probabilities"] == {"answer_2": 0.75}
    asked = [body["messages"][0]["content"][1]["text"] for body in server.bodies[:count]]
    assert (
        asked[0] == f"{item.case.question_1} Answer yes or no."
        and asked[1] == f"{item.case.question_2} Answer yes or no."
    )
    assert asked[3] == f"Can you see {item.kept[0]} in this picture? Answer yes or no."
    assert judged.about()["words"] is True and "words" not in judge(server).about()


def test_what_is_neither_word_or_no_endpoint_is_no_answer(run, picture_first):
    item = exhibits(run, drawn(run))[0]
    with serving(lambda body, before: reply("who knows")) as server:
        answer = next(iter(words(server, attempts=2).read([item])))
        assert answer.status == "not judged" and "neither yes nor no" in (answer.reason or "")
        assert words(server).answer(Image.new("RGB", (8, 8)), "Is it?") is None
    refused = 401, {"error": {"message": "who are you"}}
    with serving(lambda body, before: refused) as server, pytest.raises(JudgeError, match="refuses the key"):
        words(server).answer(Image.new("RGB", (8, 8)), "Is it?")
    down = 500, {"error": {"message": "down"}}  # no answer of the judge's, so none is kept
    with serving(lambda body, before: down) as server, pytest.raises(JudgeError, match="down"):
        words(server, attempts=1).answer(Image.new("RGB", (8, 8)), "Is it?")
    bare = replace(item, kept=())
    with serving(lambda body, before: reply("poor" if "poor" in json.dumps(body) else "no")) as server:
        answer = next(iter(words(server).read([bare])))
    assert (answer.answer_1, answer.quality, answer.kept) == (False, 0.0, None) and server.count == 3
