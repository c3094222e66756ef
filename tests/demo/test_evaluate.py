"""The measuring chain on painters whose truth is known: a perfect one scores 1, a broken one 0, a vandal no more
than doing nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from rich.console import Console

from vsf import CFG, NoGuidance
from vsf.demo import evaluate as ev
from vsf.demo import world
from vsf.demo.gate import gate_table, run_gate
from vsf.demo.oracle import distort, load_oracle

STEPS = 8


class Method:
    """Stands for any method with settings."""

    def __init__(self, strength=1.0, label="fake"):
        self.strength, self.label = strength, label

    def settings(self):
        return {"method": self.label, "strength": self.strength}


def scene_of(prompt, seed, prior=1.0, without=()):
    """The scene a caption asks for, with what it leaves open drawn at random."""
    rng = np.random.default_rng(seed)
    words = prompt.split()
    name = next(w for w in words if w in world.OBJECTS)
    color = next(w for w in words if w in world.COLORS)
    parts = {w for w in words if w in world.PARTS}
    if "plain" not in words:
        parts |= {p for p in world.TYPICAL[name] if rng.random() < prior}
    background = world.BACKGROUNDS[int(rng.integers(len(world.BACKGROUNDS)))]
    for where in world.BACKGROUNDS:
        probe = world.Scene(name, color, (), where, "flat", 0)
        if world.caption(probe, "bare", rng, True, False).split(name, 1)[1] in prompt:
            background = where
    return world.Scene(name, color, tuple(sorted(parts - set(without))), background, "flat", seed % 2**31)


def painter(paint):
    """A `draw` that makes each picture by itself from (method, prompt, negative, seed)."""

    def draw(pipe, method, prompts, negatives, seeds, steps):
        rows = zip(prompts, negatives, seeds, strict=True)
        return np.stack([paint(method, *row) for row in rows]).astype(np.float32) / 255

    return draw


@painter
def perfect(method, prompt, negative, seed):
    return world.render(scene_of(prompt, seed, without=() if method.label == "none" else (negative,)))


@painter
def vandal(method, prompt, negative, seed):
    """Takes away whatever is typical, no matter what it is told."""
    name = next(w for w in prompt.split() if w in world.OBJECTS)
    return world.render(scene_of(prompt, seed, without=world.TYPICAL[name]))


@painter
def broken(method, prompt, negative, seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3))


@pytest.fixture(scope="module")
def oracle():
    return load_oracle()


@pytest.fixture(scope="module")
def cases():
    return ev.demo_cases("dev", 40)


def run(oracle, cases, draw, method=None, **kwargs):
    return ev.evaluate(None, oracle, method or Method(), cases, draw=draw, **kwargs)


# -- cases


def test_cases_are_held_out_and_dev_and_test_share_none():
    dev, test = ev.demo_cases("dev", 150), ev.demo_cases("test", 200)
    for case in dev + test:
        assert world.split(case.object, case.color, case.background, case.negative) == case.split
    assert not {c.prompt for c in dev} & {c.prompt for c in test}
    assert len({c.id for c in dev}) == 150 and len({c.id for c in test}) == 200


def test_a_case_asks_for_what_it_says(cases):
    for case in cases:
        typical = world.TYPICAL[case.object]
        assert case.negative in typical and case.unrelated not in typical
        assert {case.negative, *case.kept} == set(typical) and case.negative not in case.kept
        words = case.prompt.split()
        assert case.object in words and case.color in words and not set(words) & set(world.PARTS)


def test_cases_spread_over_all_pairs_and_are_seeded():
    pairs = [(c.object, c.negative) for c in ev.demo_cases("test", 60)]
    every = [(o, p) for o, parts in world.TYPICAL.items() for p in parts]
    counts = [pairs.count(pair) for pair in every]
    assert min(counts) >= 1 and max(counts) - min(counts) <= 2
    assert ev.demo_cases("dev", 9, 3) == ev.demo_cases("dev", 9, 3) != ev.demo_cases("dev", 9, 4)


@pytest.mark.parametrize(("split", "n"), [("train", 5), ("dev", 0), ("test", 100_000)])
def test_impossible_cases_are_refused(split, n):
    with pytest.raises(ValueError, match="dev or test|split has 1 to"):
        ev.demo_cases(split, n)


# -- what the figures mean


def test_a_perfect_painter_scores_one(oracle, cases):
    s = run(oracle, cases, perfect).summary()
    for name in ("object_ok", "color_ok", "absent", "retention", "specificity"):
        assert s[name].mean >= 0.98, name
    assert s["absent_unrelated"].mean <= 0.02 and s["joint"].mean >= 0.93 and s["objective"].mean >= 0.93


def test_doing_nothing_keeps_the_part(oracle, cases):
    result = run(oracle, cases, perfect, NoGuidance())
    s = result.summary()
    assert s["absent"].mean <= 0.02 and s["joint"].mean <= 0.02 and s["specificity"].mean == 0
    assert 0.45 <= s["objective"].mean <= 0.51 and s["positive"].mean >= 0.98
    assert len(result.records) == 2 * 2 * len(cases)


def test_broken_pictures_are_no_objects(oracle, cases):
    s = run(oracle, cases, broken).summary()
    assert s["object_ok"].mean <= 0.02 and s["joint"].mean == 0 and s["objective"].mean == 0
    assert s["quality"].mean < 0.1 and s["whole"].mean == 0


def test_a_vandal_is_not_specific(oracle, cases):
    s = run(oracle, cases, vandal).summary()
    assert s["absent"].mean >= 0.98 and abs(s["specificity"].mean) <= 0.02
    assert s["retention"].mean <= 0.02 and s["objective"].mean <= 0.51


def test_a_wrong_colour_counts_against_the_colour_alone(oracle, cases):
    @painter
    def recoloured(method, prompt, negative, seed):
        scene = scene_of(prompt, seed, without=(negative,))
        color = "blue" if scene.color != "blue" else "yellow"
        return world.render(world.Scene(scene.object, color, scene.parts, scene.background, "flat", scene.seed))

    s = run(oracle, cases, recoloured, seeds=(0,)).summary()
    assert s["object_ok"].mean >= 0.97 and s["color_ok"].mean <= 0.02 and s["joint"].mean <= 0.02


def test_quality_counts_in_the_joint_figure(oracle, cases):
    def smeared(*args):
        return distort(perfect(*args), "blur", 0.3)

    sharp, soft = (run(oracle, cases, d, seeds=(0,)).summary() for d in (perfect, smeared))
    assert soft["quality"].mean < sharp["quality"].mean - 0.2
    assert soft["whole"].mean < sharp["whole"].mean - 0.2 and soft["joint"].mean < sharp["joint"].mean - 0.2


# -- how it runs


def test_every_method_and_both_negatives_start_from_the_same_noise(oracle, cases):
    calls = []

    def spy(pipe, method, prompts, negatives, seeds, steps):
        calls.extend(zip(prompts, negatives, seeds, strict=True))
        return perfect(pipe, method, prompts, negatives, seeds, steps)

    run(oracle, cases[:6], spy, Method(1.0), seeds=(0, 5), batch=7)
    first, calls = calls, []
    run(oracle, cases[:6], spy, Method(2.0), seeds=(0, 5), batch=3)
    assert first == calls and len(first) == 24
    true, unrelated = first[:12], first[12:]
    assert [(p, s) for p, _, s in true] == [(p, s) for p, _, s in unrelated]
    assert len({s for _, _, s in true}) == 12
    assert {n for _, n, _ in unrelated} == {c.unrelated for c in cases[:6]}


def test_the_batch_size_does_not_matter(oracle, cases):
    a, b = (run(oracle, cases[:10], perfect, batch=n).records for n in (3, 32))
    assert [r.absent for r in a] == [r.absent for r in b]
    assert np.allclose([r.quality for r in a], [r.quality for r in b], atol=1e-3)


def test_nan_pictures_are_broken_pictures(oracle, cases):
    def nan(pipe, method, prompts, negatives, seeds, steps):
        return np.full((len(prompts), 64, 64, 3), np.nan, np.float32)

    assert run(oracle, cases[:4], nan).summary()["joint"].mean == 0


def test_results_survive_json_and_can_be_judged_again(oracle, cases, tmp_path):
    result = run(oracle, cases, perfect)
    result.to_json(tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text())
    again = ev.EvalResult.from_dict(data)
    assert again == result and again.summary() == result.summary()
    assert data["method"] == {"method": "fake", "strength": 1.0} and data["steps"] == STEPS
    assert {"versions", "oracle_sha256", "model_sha256", "quality_threshold"} <= set(data["provenance"])


def test_real_methods_record_their_defaults(oracle, cases):
    data = run(oracle, cases[:2], perfect, NoGuidance(), seeds=(0,)).to_dict()["method"]
    assert data["method"] == "none" and (data["start"], data["stop"]) == (0.0, 1.0)


def test_tables_render(oracle, cases):
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(ev.eval_table([run(oracle, cases[:5], perfect)], "demo"))
        console.print(gate_table(run_gate(None, oracle, 4, draw=perfect)))
    text = console.export_text()
    assert "fake: strength 1" in text and "specificity" in text and "Gate" in text


@pytest.mark.parametrize("change", [{"seeds": ()}, {"seeds": (1, 1)}, {"batch": 0}, {"steps": 0}])
def test_bad_runs_are_refused(oracle, cases, change):
    with pytest.raises(ValueError):
        run(oracle, cases, perfect, **change)
    with pytest.raises(ValueError):
        run(oracle, [], perfect)


# -- tuning


@painter
def adjustable(method, prompt, negative, seed):
    """Too weak does nothing, too strong takes everything."""
    name = next(w for w in prompt.split() if w in world.OBJECTS)
    gone = () if method.strength < 1 else (negative,) if method.strength < 3 else world.TYPICAL[name]
    return world.render(scene_of(prompt, seed, without=gone))


def test_tuning_finds_the_setting_that_removes_only_what_was_asked(oracle, cases, tmp_path):
    space = {"a": ev.Space(Method, {"strength": [0.0, 2.0, 5.0]}), "b": ev.Space(Method, {"strength": [0.5, 4.0]})}
    result = ev.tune(None, oracle, space, cases[:16], budget=3, draw=adjustable)
    assert result.best["a"].strength == 2.0 and len(result.rows) == 5
    scores = [r["summary"]["objective"]["mean"] for r in result.rows if r["name"] == "a"]
    assert scores == sorted(scores, reverse=True)
    result.to_json(tmp_path / "t.json")
    saved = json.loads((tmp_path / "t.json").read_text())
    assert saved["best"]["a"]["strength"] == 2.0 and saved["objective"] == ev.OBJECTIVE


def test_every_method_gets_the_same_budget():
    big = ev.Space(Method, {"strength": list(range(50)), "label": ["x", "y"]})
    tries = big.settings(12, np.random.default_rng(0))
    assert len(tries) == 12 and len({tuple(t.items()) for t in tries}) == 12
    assert tries == big.settings(12, np.random.default_rng(0)) != big.settings(12, np.random.default_rng(1))


def test_settings_are_never_chosen_on_test_cases(oracle):
    with pytest.raises(ValueError, match="dev cases only"):
        ev.tune(None, oracle, {}, ev.demo_cases("test", 3), budget=1, draw=perfect)


# -- the gate


def with_prior(prior):
    return painter(lambda method, prompt, negative, seed: world.render(scene_of(prompt, seed, prior)))


def test_a_model_of_the_world_passes_the_gate(oracle, tmp_path):
    report = run_gate(None, oracle, 120, draw=with_prior(0.91))
    assert report.passed, [(line.name, str(line.value)) for line in report.lines]
    report.to_json(tmp_path / "g.json")
    data = json.loads((tmp_path / "g.json").read_text())
    assert data["passed"] and len(data["lines"]) == 6 and len(data["pictures"]) == 480


def test_the_gate_stops_models_that_ignore_part_words(oracle):
    def deaf(pipe, method, prompts, negatives, seeds, steps):
        heard = [" ".join(w for w in p.split() if w not in world.PARTS and w != "plain") for p in prompts]
        return with_prior(0.91)(pipe, method, heard, negatives, seeds, steps)

    verdict = {line.name: line.passed for line in run_gate(None, oracle, 68, draw=deaf).lines}
    assert not verdict["typical"] and not verdict["atypical"] and not verdict["plain"]
    assert verdict["unmentioned"] and verdict["object"] and verdict["color"]


def test_the_gate_stops_certain_parts_and_broken_pictures(oracle):
    certain = {line.name: line.passed for line in run_gate(None, oracle, 34, draw=with_prior(1.0)).lines}
    assert not certain["unmentioned"] and certain["typical"]
    assert not {line.name: line.passed for line in run_gate(None, oracle, 17, draw=broken).lines}["object"]


def test_gate_prompts_are_held_out_and_say_what_they_mean(oracle):
    report = run_gate(None, oracle, 34, draw=broken)
    for p in report.pictures:
        words, typical = p["prompt"].split(), world.TYPICAL[p["object"]]
        mentioned = set(words) & set(world.PARTS)
        assert ("plain" in words) == (p["kind"] == "plain")
        if p["kind"] in ("typical", "atypical"):
            assert mentioned == set(p["parts"]) and (p["parts"][0] in typical) == (p["kind"] == "typical")
        else:
            assert not mentioned and set(p["parts"]) == set(typical)
    with pytest.raises(ValueError, match="at least 1"):
        run_gate(None, oracle, 0, draw=broken)


# -- drawing with a stock pipeline


@pytest.fixture(scope="module")
def pipe():
    from vsf.demo.model import Recipe, build_components, build_pipeline

    torch.manual_seed(0)
    components = build_components(Recipe.load())
    torch.nn.init.normal_(components["transformer"].proj_out.weight, std=0.02)
    return build_pipeline(components)


def test_each_picture_depends_on_its_own_noise_only(pipe):
    prompts, seeds = ["a red bike", "a blue cat", "a red bike"], [1, 2, 3]
    together = ev.draw(pipe, NoGuidance(), prompts, ["wheels"] * 3, seeds, 2)
    alone = ev.draw(pipe, NoGuidance(), prompts[1:2], ["wheels"], seeds[1:2], 2)
    assert together.shape == (3, 64, 64, 3) and together.min() >= 0 and together.max() <= 1
    assert np.abs(together[1] - alone[0]).max() < 1e-4
    assert np.abs(together[0] - together[2]).max() > 1e-2


def test_drawing_leaves_the_pipeline_as_it_was(pipe):
    pipe.set_progress_bar_config(desc="mine")
    ev.draw(pipe, CFG(3.0), ["a red bike"], ["wheels"], [1], 1)
    assert pipe._progress_bar_config == {"desc": "mine"}
    del pipe._progress_bar_config
    ev.draw(pipe, NoGuidance(), ["a red bike"], [None], [1], 1)
    assert not hasattr(pipe, "_progress_bar_config")


def test_the_weights_hash_sees_every_weight(pipe, oracle):
    before = ev.provenance(pipe, oracle)["model_sha256"]
    assert before == ev.provenance(pipe, oracle)["model_sha256"]
    bias = next(pipe.vae.parameters())
    with torch.no_grad():
        bias.view(-1)[0] += 1
    assert ev.provenance(pipe, oracle)["model_sha256"] != before
