"""Drawing a run: same noise for all, everything on record, and nothing lost, doubled or torn whatever happens."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from tiny import save_tiny
from vsf.bench import cluster, drawer
from vsf.bench import generate as g
from vsf.bench.cases import load_cases
from vsf.bench.controls import unrelated
from vsf.bench.drawer import UnitFiles
from vsf.bench.points import parse_points, write_points
from vsf.bench.run import Run, RunError, RunPlan
from vsf.cli import main
from vsf.cli.bench.generate import make_plan
from vsf.cli.common import Problem
from vsf.draw import Request, draw
from vsf.images import guidance_from, read_settings
from vsf.presets import PRESETS
from vsf.provenance import hub_commit

CASES = load_cases("demo")
IDS = tuple(case.id for case in CASES.sample("dev", 3))
TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sums depend on the number of threads; workers have one each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def pipe(model: str) -> Any:
    return drawer.load(RunPlan(model, parse_points(["none"]), IDS, CASES.name, CASES.hash))


def plan(model: str, *texts: str, **changes: Any) -> RunPlan:
    points = parse_points(texts or ["none", "vsf:scale=2", "nag"])
    made = RunPlan(model, points, IDS, CASES.name, CASES.hash, seeds=(0, 1), steps=2, batch=4)
    return replace(made, **changes)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def content(run: Run) -> dict[str, Any]:
    """Every file by name; of a record what does not depend on the clock."""
    found: dict[str, Any] = {}
    for path in run.folder.rglob("*"):
        if path.is_file():
            name = str(path.relative_to(run.folder))
            found[name] = path.read_bytes()
            if name.startswith("records") and path.suffix == ".json":
                found[name] = {k: v for k, v in json.loads(found[name]).items() if k not in drawer.MEASURED}
    return found


@pytest.fixture(scope="module")
def drawn(model: str, pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.create(tmp_path_factory.mktemp("runs") / "drawn", plan(model), CASES)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    g.generate(run, pipe)
    torch.set_num_threads(before)
    return run


# -- pictures and records ---------------------------------------------------------------------------------------------


def test_every_unit_has_its_picture_and_its_record(drawn: Run) -> None:
    units = {unit.id for unit in drawn.plan.units}
    assert drawn.records.keys() == units and not g.missing(drawn)
    assert {f"{p.parent.name}/{p.stem}" for p in (drawn.folder / "images").rglob("*.*")} == units


def test_a_record_holds_what_is_needed_to_make_the_picture_again(drawn: Run, model: str) -> None:
    for unit in drawn.plan.units:
        record = drawn.records.get(unit.id)
        case = drawn.case[unit.case]
        negative = {"true": case.negative, "unrelated": unrelated(case, CASES)}[unit.kind]
        assert record["prompt"] == case.prompt
        assert record["negative"] == (negative if unit.point != "none" else "")
        assert record["guidance"] == json.loads(json.dumps(dict(drawn.plan.point(unit.point).settings)))
        assert (record["unit"], record["seed"], record["noise_seed"]) == (unit.id, unit.seed, unit.noise_seed)
        assert record["sha256"] == sha256(drawn.image(unit).read_bytes()).hexdigest()
        assert record["steps"] == 2 and record["size"] == [32, 32] and record["guidance_scale"] == 0.0
        assert record["model"] == model and record["dtype"] == "float32" and record["device"] == "cpu"
        assert record["cases"] == {"name": CASES.name, "hash": CASES.hash} and record["group"] in (2, 4)
        assert record["broken"] is None and record["seconds"] > 0 and record["peak_memory"] > 10**7
        assert {"vsf", "torch", "diffusers"} <= set(record["versions"]) and len(record["weights"]) == 64
        assert record["git"] is None or (
            len(record["git"]["commit"]) == 40 and isinstance(record["git"]["dirty"], bool)
        )
        assert record["pipeline"] == "StableDiffusion3Pipeline" and record["threads"] == 1


def test_the_commit_of_a_model_from_the_hub_is_on_record() -> None:
    part = SimpleNamespace(config=SimpleNamespace(_name_or_path=f"/c/models--a--b/snapshots/{'0a' * 20}/transformer"))
    here = SimpleNamespace(config=SimpleNamespace(_name_or_path="/models/snapshots/transformer"))
    assert hub_commit(SimpleNamespace(components={"a": None, "b": here, "c": part})) == "0a" * 20
    assert hub_commit(SimpleNamespace(components={"b": here})) is None


def test_a_picture_can_be_drawn_again_from_itself_alone(drawn: Run, pipe: Any) -> None:
    # In a batch of one, so that last bits may differ, but no level by more than one.
    for unit in list(drawn.plan.units)[::5]:
        s = read_settings(drawn.image(unit))
        size = (s["size"][0], s["size"][1])
        request = Request(
            s["prompt"], s["negative"], guidance_from(s), s["steps"], s["seed"], 1, size, s["guidance_scale"]
        )
        again = draw(pipe, request).guided[0]
        assert np.abs(np.asarray(again).astype(int) - pixels(drawn.image(unit))).max() <= 1


def test_vsf_generate_draws_the_picture_again(drawn: Run, model: str, tmp_path: Path) -> None:
    path = drawn.image(next(u for u in drawn.plan.units if u.point.startswith("vsf") and u.kind == "unrelated"))
    s = read_settings(path)
    knobs = [f"--{k}={v}" for k, v in s["guidance"].items() if k not in ("method", "blocks")]
    out = tmp_path / "again.png"
    given = ["--model", model, "--seed", str(s["seed"]), "--steps", str(s["steps"]), "-o", str(out)]
    knobs = [k if not k.endswith("=None") else k.replace("=None", "=none") for k in knobs]
    assert main(["generate", s["prompt"], "-N", s["negative"], *given, *knobs]) == 0
    assert np.abs(pixels(out) - pixels(path)).max() <= 1


def test_all_methods_start_from_the_same_noise(model: str, pipe: Any, tmp_path: Path) -> None:
    run = Run.create(tmp_path, plan(model, "none", "vsf:offset=inf", "nag:scale=1", batch=6), CASES)
    g.generate(run, pipe)
    noises: set[bytes] = set()
    for case in IDS:
        for seed in run.plan.seeds:
            same = [
                pixels(run.image(u)).tobytes() for u in run.plan.units if u.case == case and u.seed == seed
            ]  # neutral settings: what is left is prompt and noise
            assert len(same) == 5 and len(set(same)) == 1
            noises.add(same[0])
    assert len(noises) == len(IDS) * 2


def test_the_plan_decides_steps_and_size_and_a_point_may_differ(model: str, pipe: Any, tmp_path: Path) -> None:
    points = ("none", "longer=none:steps=3", "cfg:scale=2,steps=1,guidance_scale=1.5")
    run = Run.create(tmp_path, plan(model, *points, size=(32, 16), controls=False), CASES)
    g.generate(run, pipe)
    made = {name: run.records.get(f"{name}/{IDS[0]}--0--true") for name in ("none", "longer", run.plan.points[2].name)}
    assert [r["steps"] for r in made.values()] == [2, 3, 1]
    assert [r["guidance_scale"] for r in made.values()] == [0.0, 0.0, 1.5]
    assert pixels(run.image(f"none/{IDS[0]}--0--true")).shape == (16, 32, 3)
    assert all(r["size"] == [32, 16] for r in made.values())


def test_a_broken_picture_is_black_and_its_record_says_so(
    model: str, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = type(pipe.vae).decode

    def tear(self: Any, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out = decode(self, latents, *args, **kwargs)
        if len(latents) > 1:
            out[0][1, 0, 0, 0] = float("nan")
        return out

    monkeypatch.setattr(type(pipe.vae), "decode", tear)
    run = Run.create(tmp_path, plan(model, "none"), CASES)
    g.generate(run, pipe)
    broken = [u for u in run.plan.units if run.records.get(u.id)["broken"]]
    assert broken == [group[1] for group in run.plan.chunks]
    for unit in run.plan.units:
        assert (pixels(run.image(unit)).max() == 0) == (unit in broken)
    assert "NaN" in run.records.get(broken[0].id)["broken"]


def test_a_video_is_a_gif_with_its_middle_frame_beside_it(tmp_path: Path) -> None:
    from pipelines.test_wan import stock

    wan = stock()  # its tiny decoder makes 2 frames of 5, and a quarter of the size
    cases = load_cases("neggen")
    given = RunPlan(
        "owner/wan", parse_points(["none", "vsf"]), (cases.cases[0].id, cases.cases[1].id), cases.name, cases.hash,
        seeds=(0,), steps=1, size=(32, 32), extra={"num_frames": 5}, guidance_scale=1.0, batch=2,
    )  # fmt: skip
    run = Run.create(tmp_path, given, cases)
    g.generate(run, wan)
    for unit in given.units:
        gif = run.image(unit).with_suffix(".gif")
        with Image.open(gif) as video:
            size, moves = video.size, getattr(video, "n_frames", 1) > 1
        record = run.records.get(unit.id)
        assert moves and list(size) == record["size"] == list(pixels(run.image(unit)).shape[1::-1])
        assert record["video"]["frames"] == 2 and record["video"]["sha256"] == sha256(gif.read_bytes()).hexdigest()
        assert record["extra"] == {"num_frames": 5} and read_settings(run.image(unit))["frame"] == 1
    before = content(run)
    run.image(next(given.units)).unlink()
    g.generate(run, wan)
    assert content(run) == before


# -- going on ---------------------------------------------------------------------------------------------------------


def test_only_what_is_missing_is_written_and_it_is_the_same(drawn: Run, pipe: Any, tmp_path: Path) -> None:
    run = Run.create(tmp_path, drawn.plan, CASES)
    g.generate(run, pipe)
    whole = content(run)
    assert whole == content(drawn)
    units = list(run.plan.units)
    run.image(units[1]).unlink()
    run.records.path(units[6].id).unlink()
    (run.folder / "images" / "nag" / ".x.png.1.part").write_bytes(b"half")
    stamps = {p: p.stat().st_mtime_ns for p in run.folder.rglob("*.png")}
    seen: list[tuple[int, int]] = []
    g.generate(run, pipe, progress=lambda done, total: seen.append((done, total)))
    assert content(run) == whole
    touched = {p for p, at in stamps.items() if p.stat().st_mtime_ns != at}
    assert touched == {run.image(units[6])} and seen == [(1, 2), (2, 2)]


def test_a_finished_run_needs_no_model(drawn: Run) -> None:
    run = Run(drawn.folder, replace(drawn.plan), drawn.cases)
    g.generate(run, None, device="nowhere")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL, which Windows does not have")
def test_killed_at_twenty_moments_the_run_is_the_same_as_one_left_alone(model: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("killed.py")), model, str(tmp_path), "7"]
    path = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["ended"] == [0, *[signal.SIGKILL] * 20, 0]
    assert found["left"] > 0  # the last kill came before the end
    assert found["torn"] == [] and found["differ"] == []
    assert found["files"] == 2 * found["units"] + 3  # with plan, cases and lock


def test_a_full_disk_is_one_error_and_the_run_goes_on_later(
    model: str, drawn: Run, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path, drawn.plan, CASES)
    room, whole = 7, g.write_whole

    def full(path: Any, data: bytes) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(g, "write_whole", full)
        with pytest.raises(RunError, match="no space left on device; what was drawn is kept"):
            g.generate(run, pipe)
    assert len(run.records.keys()) == 7
    g.generate(run, pipe)
    assert content(run) == content(drawn)


def test_a_folder_that_cannot_be_written_to_is_one_error(model: str, pipe: Any, tmp_path: Path) -> None:
    run = Run.create(tmp_path, plan(model, "none"), CASES)
    (tmp_path / "images").write_bytes(b"")
    with pytest.raises(RunError, match=f"cannot write to {tmp_path}"):
        g.generate(run, pipe)


# -- refused before anything is drawn -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts, changes, message",
    [
        (["none", "vsf:blocks=0+9"], {}, "point vsf,blocks=0[+]9 cannot be drawn"),
        (["none", "vsf"], {"guidance_scale": 5.0}, "point vsf cannot be drawn: guidance_scale is 5.0"),
        (["none"], {"size": (33, 33)}, "point none cannot be drawn.*33"),
        (["none"], {"extra": {"colour": 1}}, "point none cannot be drawn.*colour"),
        (["none", "nag"], {"cases_name": "weights"}, "point nag cannot be drawn.*weights"),
    ],
)
def test_what_the_model_refuses_is_refused_at_once(
    model: str, pipe: Any, tmp_path: Path, texts: list[str], changes: dict[str, Any], message: str
) -> None:
    cases = CASES
    if changes.get("cases_name") == "weights":  # only the last case has what NAG cannot take
        rows = [case for case in CASES if case.id in IDS]
        rows[2] = replace(rows[2], negative=f"{rows[2].negative}:2")
        cases = replace(CASES, cases=tuple(rows))
        changes = {"cases_hash": cases.hash}
    run = Run.create(tmp_path, plan(model, *texts, **changes), cases)
    with pytest.raises(RunError, match=message):
        g.generate(run, pipe)
    assert run.records.keys() == set() and not (tmp_path / "images").exists()


def test_a_model_that_cannot_be_guided_is_refused_at_once(tmp_path: Path, pipe: Any) -> None:
    class Other:
        components: dict[str, Any] = {}
        device = torch.device("cpu")

        def __call__(self, prompt: Any, generator: Any, **kwargs: Any) -> Any:
            raise AssertionError("not to be called")

    run = Run.create(tmp_path, plan("owner/name", "vsf"), CASES)
    with pytest.raises(RunError, match="point vsf cannot be drawn"):
        g.generate(run, Other())


def test_pictures_of_two_models_are_not_mixed(
    model: str, drawn: Run, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path, drawn.plan, CASES)
    g.generate(run, pipe)
    run.image(next(run.plan.units)).unlink()
    warnings: list[str] = []
    monkeypatch.setattr(drawer, "environment", lambda: {"versions": {"vsf": "0"}, "git": None})
    g.generate(run, pipe, warn=warnings.append)
    assert len(warnings) == 1 and "other versions" in warnings[0]
    run.image(next(run.plan.units)).unlink()
    other = drawer.load(run.plan)
    with torch.no_grad():
        next(other.transformer.parameters()).add_(1)
    with pytest.raises(RunError, match="other weights"):
        g.generate(run, other)


def test_a_run_is_drawn_by_one_process_at_a_time(model: str, pipe: Any, tmp_path: Path) -> None:
    run = Run.create(tmp_path, plan(model, "none"), CASES)
    with g._alone(tmp_path), pytest.raises(RunError, match="drawn by another process"):
        g.generate(run, pipe)
    (tmp_path / "plan.json").write_text(json.dumps(plan(model, "none", steps=5).to_dict()))
    with pytest.raises(RunError, match="another plan meanwhile"):
        g.generate(run, pipe)
    assert not run.records.keys()


# -- several workers --------------------------------------------------------------------------------------------------


def kill_one_after_the_first(run: Run, numbers: list[int], word: str, spread: Callable[..., None]) -> None:
    """Draw with two workers, of which one (a process with that word in its command line) is killed after a group."""
    kept: list[int] = []

    def keep(number: int, pictures: Sequence[UnitFiles]) -> None:
        if not kept:
            children = psutil.Process().children(recursive=True)
            next(p for p in children if word in " ".join(p.cmdline())).kill()
        kept.append(number)
        g.write(run, pictures)

    spread(run.plan, run.cases, numbers, [p.name for p in run.plan.points], keep)
    assert sorted(kept) == numbers


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL, which Windows does not have")
def test_processes_draw_the_same_and_a_killed_one_is_replaced(drawn: Run, tmp_path: Path) -> None:
    run = Run.create(tmp_path, replace(drawn.plan, batch=4), CASES)
    warned: list[str] = []
    kill_one_after_the_first(
        run,
        list(range(len(run.plan.chunks))),
        "spawn_main",
        lambda *a: cluster.draw_on_processes(*a, workers=2, device="cpu", download=False, warn=warned.append),
    )
    assert warned == ["a worker died; all are started again with what is left to draw"]
    ours, theirs = content(run), content(drawn)
    assert ours == {k: v for k, v in theirs.items() if k != ".lock"}


class Deadly(cluster.Worker):
    """A worker that is killed by the group of that number, or while it checks."""

    def check(self, new: Sequence[str]) -> None:
        if self.plan.extra.get("deadly") == "check":
            os.kill(os.getpid(), signal.SIGKILL)

    def draw(self, number: int) -> tuple[int, list[UnitFiles]]:
        if number == self.plan.extra.get("deadly"):
            os.kill(os.getpid(), signal.SIGKILL)
        return number, []


def start_deadly(*given: Any) -> None:
    cluster.Worker = Deadly  # type: ignore[misc]
    cluster._start(*given)


def worst_first(futures: set[Future[Any]]) -> list[Future[Any]]:
    """As `as_completed` may give what is done by then: in any order."""
    return sorted(wait(futures).done, key=lambda future: future.exception() is None)


@pytest.mark.parametrize("deadly", [3, "check"])
def test_work_that_kills_every_worker_ends_the_run_when_the_rest_is_drawn(
    drawn: Run, monkeypatch: pytest.MonkeyPatch, deadly: Any
) -> None:
    pool = cluster.ProcessPoolExecutor
    monkeypatch.setattr(cluster, "as_completed", worst_first)
    monkeypatch.setattr(cluster, "ProcessPoolExecutor", lambda n, ctx, _, given: pool(n, ctx, start_deadly, given))
    kept: list[int] = []
    warned: list[str] = []
    plan = replace(drawn.plan, extra={"deadly": deadly})
    with pytest.raises(RunError, match="3 workers died one after the other"):
        cluster.draw_on_processes(
            plan, CASES, [0, 1, 2, 3], ["new"], lambda n, _: kept.append(n), 1, "cpu", False, warned.append
        )
    assert sorted(kept) == ([0, 1, 2] if deadly == 3 else []) and len(warned) == 2


def test_an_error_of_the_work_itself_ends_the_run_at_once(model: str, tmp_path: Path) -> None:
    run = Run.create(tmp_path, plan(model, "none", "vsf:blocks=0+9"), CASES)
    with pytest.raises(RunError, match="point vsf,blocks=0[+]9 cannot be drawn"):
        g.generate(run, workers=2, device="cpu")
    assert not run.records.keys()


def test_workers_do_not_mix_models_either(model: str, drawn: Run, pipe: Any, tmp_path: Path) -> None:
    run = Run.create(tmp_path, drawn.plan, CASES)
    g.generate(run, pipe)
    weights = run.records.get(next(iter(run.plan.units)).id)["weights"]
    for path in run.folder.glob("records/*/*.json"):
        path.write_text(path.read_text().replace(weights, "0" * 64))
    run.image(list(run.plan.units)[-1]).unlink()
    with pytest.raises(RunError, match="other weights"):
        g.generate(run, workers=2, device="cpu")


RAY = """
import sys, warnings
from pathlib import Path
import test_generate as t
from vsf.bench import cluster
from vsf.bench.run import Run

run = Run.open(sys.argv[1])
t.kill_one_after_the_first(
    run, list(range(len(run.plan.chunks))), "ray::Worker", lambda *a: cluster.draw_on_ray(*a, "local", 2, False)
)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL, which Windows does not have")
def test_ray_draws_the_same_and_a_killed_actor_is_replaced(drawn: Run, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="drawing on a cluster needs ray (vsf[bench])")
    run = Run.create(tmp_path / "run", drawn.plan, CASES)
    paths = [TESTS.parent / "src", TESTS, TESTS / "bench"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "RAY_TMPDIR": "/tmp"}
    command = [sys.executable, "-c", RAY, str(run.folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert content(run) == {k: v for k, v in content(drawn).items() if k != ".lock"}


def test_no_cluster_at_that_address_is_one_error(model: str, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="drawing on a cluster needs ray (value-sign-flip[bench])")
    run = Run.create(tmp_path, plan(model, "none"), CASES)
    with pytest.raises(RunError, match="no Ray cluster at 'nonsense'"):
        g.generate(run, ray="nonsense")


def test_accelerate_launch_shares_the_groups(drawn: Run, model: str, tmp_path: Path) -> None:
    points, folder = tmp_path / "points.json", tmp_path / "run"
    write_points(points, drawn.plan.points)
    given = [
        "--points",
        str(points),
        "--split",
        "dev",
        "--limit",
        "3",
        "--seeds",
        "0-1",
        "--steps",
        "2",
        "--batch",
        "4",
    ]
    # `--cpu` would start a single process; this is how it starts several, which then find no GPU.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m", "vsf"]
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent / "src"), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launch, "bench", "generate", str(folder), "--model", model, *given]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("30 pictures") == done.stdout.count("\n") == 1
    run = Run.open(folder)
    assert run.plan.to_dict() == drawn.plan.to_dict()
    ours, theirs = content(run), content(drawn)
    assert ours == {k: v for k, v in theirs.items() if k != ".lock"}  # which only a single process takes


# -- the command --------------------------------------------------------------------------------------------------------


def test_the_command_begins_and_goes_on(
    drawn: Run, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    command = ["bench", "generate", str(folder)]
    given = ["--model", model, "--split", "dev", "--limit", "3", "--seeds", "0,1", "--steps", "2", "--batch", "4"]
    methods = ["-p", "none", "-p", "vsf:scale=2", "-p", "nag"]
    assert main([*command, *given, *methods]) == 0
    out, err = capsys.readouterr()
    assert out == f"{folder}  (30 pictures: 3 points, 3 cases, 2 seeds, with controls)\n"
    assert err == ""
    assert content(Run.open(folder)) == content(drawn)
    Run.open(folder).image(next(drawn.plan.units)).unlink()
    assert main(command) == 0  # alone
    assert content(Run.open(folder)) == content(drawn)
    before = content(Run.open(folder))
    assert main([*command, *given[:-4], "--steps", "5", *methods]) == 2
    assert "holds a run with other steps, batch; give another folder" in capsys.readouterr().err
    assert content(Run.open(folder)) == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "holds no run; to begin one"),
        (["--limit", "2"], "nothing to compare"),
        (["-p", "vfs"], "did you mean vsf"),
        (["-p", "none", "--cases", "nope"], "no file of cases"),
        (["-p", "none", "--split", "all-of-it"], "unknown split"),
        (["-p", "none", "--seeds", "3-1"], "--seeds is '3-1'"),
        (["-p", "none", "--size", "big"], "--size is 'big'"),
        (["-p", "none", "--dtype", "int8"], "unknown dtype"),
        (["-p", "none", "--points", "gone.json"], "cannot read the points"),
        (["-p", "none", "--model", "owner/gone", "--limit", "1"], "--download"),
        (["-p", "none", "--device", "nowhere", "--limit", "1"], "device 'nowhere'"),
        (["-p", "none", "--model", "sd3.5-large-turbo", "--revision", "x"], "--revision is of an id"),
        (["-p", "vsf:blocks=70", "--limit", "1"], "cannot be drawn"),
    ],
)
def test_every_mistake_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["bench", "generate", str(tmp_path / "run"), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not list(tmp_path.rglob("*.png"))


def test_after_a_refusal_the_same_folder_takes_another_plan(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "generate", str(tmp_path / "run"), "--model", model, "--limit", "1", "--steps", "1"]
    assert main([*command, "-p", "vsf:blocks=70"]) == 2
    assert main([*command, "-p", "vsf:blocks=1"]) == 0
    assert "8 pictures: 1 points" in capsys.readouterr().out


def test_seeds_are_numbers_and_ranges() -> None:
    given = {"point": ["none"], "limit": 1}
    assert make_plan(given)[0].seeds == (0, 1, 2, 3)
    assert make_plan({**given, "seeds": "7, 0-1,5"})[0].seeds == (7, 0, 1, 5)
    for text in ("", "a", "1-", "-1", "3-1", "0-99999", "1.5"):
        with pytest.raises(Problem, match="--seeds"):
            make_plan({**given, "seeds": text})


@pytest.mark.parametrize("name", [name for name, p in PRESETS.items() if not p.needs_image])
def test_a_preset_brings_its_own_settings(name: str) -> None:
    preset = PRESETS[name]
    made, _ = make_plan({"model": name, "point": ["vsf", "none"], "cases": "neggen", "limit": 1})
    assert (made.steps, made.guidance_scale, dict(made.extra)) == (
        preset.steps,
        preset.guidance_scale,
        dict(preset.call),
    )
    assert guidance_from({"guidance": dict(made.points[0].settings)}) == preset.guidance()
    other, _ = make_plan({"model": name, "point": ["vsf"], "steps": preset.steps + 1, "frames": 9})
    assert other.steps == preset.steps + 1 and other.extra["num_frames"] == 9
    assert not {"timesteps", "sigmas"} & set(other.extra)
