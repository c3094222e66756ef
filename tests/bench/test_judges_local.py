"""A vision-language model on this machine, and measures, as judges: the real classes at tiny size."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from closeness import differs, rounding, same
from judging import drawn, make_run
from tiny_vlm import save_tiny_vlm
from vsf.bench.judges import JudgeError, LocalJudge, MetricJudge, OracleJudge, exhibits, judge_run
from vsf.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny-judge")


@pytest.fixture(scope="module")
def judge(folder) -> LocalJudge:
    return LocalJudge(folder, device="cpu", mass=0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("local") / "run", cases=2, seeds=(0,))


def colour(name: str) -> Image.Image:
    return Image.new("RGB", (64, 64), name)


# -- a local model --------------------------------------------------------------------------------------------------------


def test_it_is_the_real_model_with_the_real_processor(judge):
    assert judge.about()["architecture"] == "Qwen2_5_VLForConditionalGeneration"
    assert type(judge.processor).__name__ == "Qwen2_5_VLProcessor"
    assert judge.about()["dtype"] == "float32" and json.dumps(judge.about())


def test_a_probability_is_the_share_of_yes_among_yes_and_no(judge):
    question = "Is there a bike? Answer yes or no."
    got, mass = judge.probability(colour("red"), question)
    content = [{"type": "image", "image": colour("red")}, {"type": "text", "text": question}]
    inputs = judge.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    text = judge.processor.tokenizer.decode(inputs["input_ids"][0])
    assert text.endswith("<|im_start|>assistant\n") and question in text and text.count("<|image_pad|>") == 4
    with torch.no_grad():
        p = judge.net.double()(**{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()})
    p = p.logits[0, -1].softmax(0)
    judge.net.float()
    number = judge.processor.tokenizer.convert_tokens_to_ids
    yes, no = (p[[number(a), number(a.upper())]].sum() for a in "yn")
    wanted = torch.stack([yes / (yes + no), yes + no])
    same(torch.tensor([got, mass]), wanted, rounding(judge.net))


def test_pictures_and_questions_matter_and_answers_repeat(judge):
    def ask(name: str, question: str) -> torch.Tensor:
        return torch.tensor(judge.probability(colour(name), question))

    answer, bound = ask("red", "Is it red?"), rounding(judge.net)
    assert torch.equal(answer, ask("red", "Is it red?"))
    differs(ask("blue", "Is it red?"), answer, bound, 20.0)
    differs(ask("red", "Is it a bike?"), answer, bound, 20.0)


def test_every_picture_is_answered_alone_as_in_company(judge, run):
    done = judge_run(run, judge, "local")
    assert done.judged == len(drawn(run)) and not done.not_judged
    alone = exhibits(run, drawn(run))[4]
    again = next(iter(judge.read([alone])))
    stored = next(a for a in run.judged("local") if a.unit == alone.unit)
    assert again == stored
    chance = stored.details["probabilities"]
    assert stored.answer_1 is (chance["answer_1"] >= 0.5) and stored.answer_2 is (chance["answer_2"] >= 0.5)
    assert stored.quality == chance["quality"] and 0 <= stored.quality <= 1 and stored.identity is None
    parts = [chance[f"kept:{part}"] >= 0.5 for part in alone.kept]
    assert parts and stored.kept == sum(parts) / len(parts)


def test_words_become_answers(judge, run, monkeypatch):
    """With the model's voice replaced: yes to what is there, no to what is missing, good."""
    said = []

    def speak(picture, question, words=("yes", "no")):
        said.append((question, words))
        return (0.9, 0.8) if "with or without" in question or words[0] == "good" else (0.2, 0.7)

    monkeypatch.setattr(judge, "probability", speak)
    item = exhibits(run, drawn(run))[0]
    answer = next(iter(judge.read([item])))
    assert (answer.answer_1, answer.answer_2, answer.quality, answer.kept) == (True, False, 0.9, 0.0)
    asked = [question for question, _ in said]
    assert asked[0].startswith(item.case.question_1) and asked[1].startswith(item.case.question_2)
    assert len(asked) == 3 + len(item.kept) and all(part in q for part, q in zip(item.kept, asked[3:], strict=True))
    assert next(iter(judge.read([replace(item, kept=())]))).kept is None


def test_a_model_that_says_something_else_is_not_judged_by_the_crumbs(folder, run):
    strict = LocalJudge(folder, device="cpu", mass=0.9)
    answer = next(iter(strict.read(exhibits(run, drawn(run)))))
    assert answer.status == "not judged" and answer.answer_1 is None and "of the probability" in (answer.reason or "")


def test_crumbs_of_one_question_leave_the_other_answers(judge, run, monkeypatch):
    item = exhibits(run, drawn(run))[0]
    assert item.kept
    unclear: list[str] = []

    def speak(picture, question, words=("yes", "no")):
        return 0.9, 0.0 if any(text in question for text in unclear) else 0.5

    monkeypatch.setattr(judge, "probability", speak)
    monkeypatch.setattr(judge, "mass", 0.1)
    for word, field in (
        (item.case.question_2, "answer_2"), (item.case.question_1, "answer_1"), (item.kept[0], "kept"),
        ("how well is it made", "quality"),
    ):  # fmt: skip
        unclear[:] = [word if field != "kept" else f"Can you see {word}"]
        answer = next(iter(judge.read([item])))
        fields = {"answer_1": True, "answer_2": True, "quality": 0.9, "kept": 1.0} | {field: None}
        assert answer.status == "judged" and {f: getattr(answer, f) for f in fields} == fields
        assert "of the probability is on" in next(iter(answer.details["cannot tell"].values()))
    unclear[:] = ["Answer"]
    assert next(iter(judge.read([item]))).status == "not judged"


def test_a_damaged_picture_is_not_judged(judge, run, tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    item = replace(exhibits(run, drawn(run))[0], image=tmp_path / "x.png")
    assert next(iter(judge.read([item]))).reason.startswith("the picture cannot be read")


def test_an_adapter_changes_the_judge_and_is_part_of_what_it_is(folder, judge, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForImageTextToText

    net = AutoModelForImageTextToText.from_pretrained(folder)
    adapted = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    adapted.save_pretrained(tmp_path / "lora")
    tuned = LocalJudge(folder, adapter=tmp_path / "lora", device="cpu", mass=0.0)
    question = "Is there a bike? Answer yes or no."
    ours, plain = (torch.tensor(j.probability(colour("red"), question)) for j in (tuned, judge))
    differs(ours, plain, rounding(judge.net), 20.0)
    about = tuned.about()
    assert len(about["adapter_sha256"]) == 64 and about["architecture"] == judge.about()["architecture"]
    assert judge.about()["adapter"] is None and about != judge.about()
    (tmp_path / "lora" / "adapter_model.safetensors").rename(tmp_path / "lora" / "adapter_model.bin")
    with pytest.raises(JudgeError, match="adapter_model.safetensors are needed"):
        LocalJudge(folder, adapter=tmp_path / "lora", device="cpu")


@pytest.mark.parametrize("where", ["{}/gone", "./gone", "../gone/too", "~/gone", "a/b/c", "gone/", ".\\gone"])
def test_a_folder_that_is_not_there_is_named(tmp_path, where, folder):
    given = where.format(tmp_path)
    for download in (False, True):  # nothing is fetched under such a name
        for make in (
            lambda: LocalJudge(given, download=download),  # noqa: B023
            lambda: MetricJudge("preference", model=given, download=download),  # noqa: B023
        ):
            with pytest.raises(JudgeError, match="no folder") as caught:
                make()
            assert given in str(caught.value) and "Repo id" not in str(caught.value)
    with pytest.raises(JudgeError, match="no folder"):
        LocalJudge(folder, adapter=given, device="cpu")


def test_what_cannot_be_loaded_is_one_sentence(folder, tmp_path):
    with pytest.raises(JudgeError, match="cannot be loaded"):
        LocalJudge(tmp_path)
    with pytest.raises(JudgeError, match="--download"):
        LocalJudge("some-org/some-judge")
    with pytest.raises(JudgeError, match="unknown dtype"):
        LocalJudge(folder, dtype="float3")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(JudgeError, match="safetensors"):
        LocalJudge(copy)
    (copy / "pytorch_model.bin").rename(copy / "model.safetensors")
    (copy / "chat_template.json").unlink()
    with pytest.raises(JudgeError, match="no chat template"):
        LocalJudge(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "clip"}))
    with pytest.raises(JudgeError, match="cannot be loaded"):
        LocalJudge(copy)


def test_the_command_judges_with_a_local_model(folder, tmp_path, capsys):
    run = make_run(tmp_path / "run", cases=1, seeds=(0,), methods=("none",))
    arguments = ["bench", "judge", str(run.folder), "--judge", "local", "--device", "cpu", "--model"]
    assert main([*arguments, str(folder)]) == 0
    out = capsys.readouterr().out
    # An untrained model hardly ever wants to say yes or no.
    assert out.startswith("local-tiny-judge: 0 judged, 1 not judged") and "1 x no answer" in out
    assert main([*arguments, str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# -- measures ---------------------------------------------------------------------------------------------------------------


def test_the_worlds_own_distance_is_a_judge_of_quality(run):
    judge = MetricJudge()
    todo = exhibits(run, drawn(run))
    quality = {a.unit: a.quality for a in OracleJudge().read(todo)}
    for answer in judge.read(todo):
        assert answer.quality == quality[answer.unit] and answer.status == "judged"
        assert answer.answer_1 is answer.answer_2 is answer.kept is answer.identity is None
    assert judge.about()["threshold"] == OracleJudge().about()["threshold"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from tiny_vlm import tokenizer

    words = tokenizer()
    folder = tmp_path_factory.mktemp("clip") / "tiny-scorer"
    end = words.convert_tokens_to_ids("<|im_end|>")
    text = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "eos_token_id": end, "bos_token_id": None, "pad_token_id": end}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    words.model_max_length = 77
    words.save_pretrained(folder)
    size = {"shortest_edge": 32}
    CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_preference_is_the_cosine_of_picture_and_prompt(clip, run):
    judge = MetricJudge("preference", model=clip)
    answers = list(judge.read(exhibits(run, drawn(run))[:4]))
    for answer in answers:
        assert answer.quality == pytest.approx((1 + answer.details["score"]) / 2)
        assert -1 <= answer.details["score"] <= 1 and answer.answer_1 is None
    assert len({a.quality for a in answers}) > 1 and judge.about()["architecture"] == "CLIPModel"


def test_a_scorer_is_given_and_scores(clip, folder):
    for given, say in (
        ({"metric": "preference"}, "a model is given"),
        ({"metric": "demo", "model": clip}, "a model is given"),
        ({"metric": "preference", "model": "some-org/scorer"}, "--download"),
        ({"metric": "preference", "model": clip / "nothing"}, "there is no folder"),
    ):
        with pytest.raises(JudgeError, match=say):
            MetricJudge(**given)  # pyright: ignore[reportArgumentType]


def fake_pyiqa(score_range="~0, ~100", lower_better=False, value=25.0):
    class Net:
        def __init__(self) -> None:
            self.score_range, self.lower_better = score_range, lower_better
            self.seen: list[torch.Tensor] = []

        def __call__(self, picture: torch.Tensor) -> torch.Tensor:
            self.seen.append(picture)
            return torch.tensor([[value]])

    net = Net()
    module = SimpleNamespace(
        __version__="9",
        net=net,
        list_models=lambda metric_mode: {"NR": ["musiq"]}[metric_mode],
        create_metric=lambda name, device: net,
    )
    return module


@pytest.mark.parametrize(
    ("range", "lower", "value", "quality"),
    [("~0, ~100", False, 25.0, 0.25), ("0, 1", False, 0.4, 0.4), ("1, 5", True, 2.0, 0.75), ("0, 1", False, 1.2, 1.0)],
)
def test_a_measure_of_pyiqa_is_brought_to_one_scale(run, monkeypatch, range, lower, value, quality):
    fake = fake_pyiqa(range, lower, value)
    monkeypatch.setitem(sys.modules, "pyiqa", fake)
    judge = MetricJudge("musiq", download=True)
    item = exhibits(run, drawn(run))[0]
    answer = next(iter(judge.read([item])))
    assert answer.quality == pytest.approx(quality) and answer.details["score"] == pytest.approx(value)
    seen = fake.net.seen[0]
    assert seen.shape == (1, 3, 64, 64)
    # Divided by 255 and multiplied again: two roundings.
    assert np.allclose(
        seen[0].permute(1, 2, 0) * 255, np.asarray(item.picture()), rtol=np.finfo(np.float32).eps, atol=0
    )
    assert judge.about()["pyiqa"] == "9"


def test_a_measure_that_gives_no_number_has_not_judged(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", fake_pyiqa(value=float("nan")))
    answer = next(iter(MetricJudge("musiq", download=True).read(exhibits(run, drawn(run)))))
    assert answer.status == "not judged" and answer.reason.startswith("no number") and answer.quality is None


def test_measures_that_are_not_there_are_one_sentence(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(JudgeError, match="pip install pyiqa"):
        MetricJudge("musiq")
    monkeypatch.setitem(sys.modules, "pyiqa", fake_pyiqa("0, ~"))
    with pytest.raises(JudgeError, match="no measure 'lpips'"):
        MetricJudge("lpips", download=True)
    with pytest.raises(JudgeError, match="--download"):
        MetricJudge("musiq")
    with pytest.raises(JudgeError, match="cannot be brought"):
        MetricJudge("musiq", download=True)


def test_the_command_measures(run, capsys):
    assert main(["bench", "judge", str(run.folder), "--judge", "metrics"]) == 0
    assert capsys.readouterr().out.startswith(f"metrics: {len(drawn(run))} judged")
    assert main(["bench", "judge", str(run.folder), "--judge", "metrics", "--metric", "musiq"]) == 2
    assert "pyiqa" in capsys.readouterr().err
