"""The example workflows on a real ComfyUI server, through its HTTP API."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_server import COMFYUI, NUMBERS, PACK, Server, has, nodes_of, with_tiny_models, write_stand_ins
from comfy_workflows import BLUEPRINT, FOLDER, WORKFLOWS, api_form, demo_graph, files
from PIL import Image
from safetensors.torch import load_file

from patience import PATIENCE

TINY = {
    "flux-schnell": "flux",
    "sd3.5-turbo": "sd3",
    "wan": "wan",
    "sdxl-turbo": "sdxl",
    "qwen-image-lightning": "qwen",
    "z-image-turbo": "zimage",
}


#: The pack goes by its folder's name, or by its project's.
PROJECTS = ("comfyui-vsf", "value-sign-flip")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    running = Server(COMFYUI, folder / "base", write_stand_ins(folder))
    yield running
    running.stop()


def example(name: str) -> dict[str, Any]:
    return with_tiny_models(json.loads((FOLDER / "api" / f"{name}.json").read_text()), TINY[name])


def latent(files: dict[str, list[Path]], sampler: str) -> torch.Tensor:
    return load_file(files[f"latent_{sampler}"][0])["latent_tensor"]


def samplers(prompt: dict[str, Any]) -> tuple[str, str]:
    """The guided one and the plain one."""
    guide = nodes_of(prompt, "VSFGuidance")[0]
    both = nodes_of(prompt, "KSampler")
    guided = next(k for k in both if prompt[k]["inputs"]["model"][0] == guide)
    return guided, next(k for k in both if k != guided)


def without_guidance(prompt: dict[str, Any]) -> dict[str, Any]:
    """The same workflow as if the node had been bypassed: what is connected to it goes on behind it."""
    prompt = copy.deepcopy(prompt)
    guide = nodes_of(prompt, "VSFGuidance")[0]
    before = prompt.pop(guide)["inputs"]["model"]
    for key in nodes_of(prompt, "VSFSuppressionMap"):
        del prompt[key]
    for key, node in list(prompt.items()):
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == guide:
                node["inputs"][name] = before
            elif isinstance(value, list) and value[0] not in prompt:
                prompt.pop(key, None)
    return prompt


def another_seed(prompt: dict[str, Any], seed: int) -> dict[str, Any]:
    """So that the server computes anew and does not answer from its cache."""
    prompt = copy.deepcopy(prompt)
    for key in nodes_of(prompt, "KSampler"):
        prompt[key]["inputs"]["seed"] = seed
    return prompt


def test_the_nodes_are_there_in_the_current_schema(server: Server) -> None:
    info = server.get("/object_info")
    guidance = info["VSFGuidance"]["input"]["required"]
    assert guidance["scale"][1] | {"tooltip": ""} == {
        "default": 3.5, "min": 0.0, "max": 100.0, "step": 0.1, "tooltip": "",
    }  # fmt: skip
    nodes = {"VSFTextGuidance", "VSFNAGGuidance", "VSFNASAGuidance", "VSFNegativePrompt", "VSFSuppressionMap"}
    assert nodes <= set(info)
    assert all(info[name]["category"] == "advanced/guidance" and info[name]["output_tooltips"][0] for name in nodes)
    assert "negative" in info["VSFGuidance"]["input"]["optional"]
    if NUMBERS:  # the schema of that version knows these
        assert "nag" in info["VSFNAGGuidance"]["search_aliases"] and "cfg 1" in info["VSFGuidance"]["search_aliases"]
        assert guidance["blocks"][1]["advanced"] and not guidance["scale"][1].get("advanced")
    assert "Cannot import" not in "\n".join(line for line in server.text().splitlines() if "vsf" in line.lower())


def test_the_nodes_speak_other_languages(server: Server) -> None:
    spoken = server.get("/i18n")
    titles = {
        language: spoken[language]["nodeDefs"]["VSFGuidance"]["display_name"] for language in ("zh", "ja", "ko", "de")
    }
    assert len(set(titles.values())) == 4 and all("VSF" in title for title in titles.values())


@pytest.mark.skipif(not has("app/subgraph_manager.py"), reason="this ComfyUI has no blueprints")
def test_the_blueprint_is_offered(server: Server) -> None:
    offered = server.get("/global_subgraphs")
    [number] = [number for number, entry in offered.items() if entry["name"] == BLUEPRINT.stem]
    entry = server.get(f"/global_subgraphs/{number}")
    assert json.loads(entry["data"])["definitions"]["subgraphs"][0]["name"] == BLUEPRINT.stem


def test_the_example_files_are_current(server: Server) -> None:
    for path, text in files(server.get("/object_info")).items():
        assert path.read_text() == text, f"run: python tests/comfyui/comfy_workflows.py {server.url}"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_example(server: Server, name: str) -> None:
    """It runs; guidance acts; the map is a picture; bypassing the node is bit-equal to the branch without it."""
    prompt = example(name)
    guided, plain = samplers(prompt)
    saved = server.run(prompt)
    assert not torch.equal(latent(saved, guided), latent(saved, plain))
    assert torch.isfinite(latent(saved, guided)).all()
    pictures = [k for k in saved if prompt[k]["class_type"].startswith("Save") and not k.startswith("latent")]
    assert len(pictures) == 3 and all(path.stat().st_size > 100 for k in pictures for path in saved[k])
    bypassed = server.run(without_guidance(prompt))
    assert torch.equal(latent(bypassed, guided), latent(saved, plain))


def test_two_workflows_in_turn(server: Server) -> None:
    one, other = example("flux-schnell"), example("wan")
    first = [latent(server.run(another_seed(p, 7)), samplers(p)[0]) for p in (one, other)]
    server.post("/free", {"unload_models": True, "free_memory": True})
    second = [latent(server.run(another_seed(p, 7)), samplers(p)[0]) for p in (other, one)]
    assert torch.equal(first[0], second[1]) and torch.equal(first[1], second[0])


def test_an_interrupt_does_not_touch_what_follows(server: Server) -> None:
    prompt = another_seed(example("sd3.5-turbo"), 11)
    expected = server.run(prompt)
    guided, plain = samplers(prompt)
    long = another_seed(prompt, 12)
    for key in (guided, plain):
        long[key]["inputs"]["steps"] = 5000
    prompt_id = server.queue(long)
    end = time.monotonic() + PATIENCE
    while not server.get("/queue")["queue_running"] and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1.5)
    server.post("/interrupt", {})
    entry = server.wait(prompt_id)
    assert "execution_interrupted" in [m[0] for m in entry["status"]["messages"]]
    server.post("/free", {"unload_models": True, "free_memory": True})  # also forgets cached results
    again = server.run(prompt)
    assert torch.equal(latent(again, guided), latent(expected, guided))
    assert torch.equal(latent(again, plain), latent(expected, plain))


def test_a_batch_and_another_patch(server: Server) -> None:
    prompt = example("flux-schnell")
    guided, plain = samplers(prompt)
    guide, empty = nodes_of(prompt, "VSFGuidance")[0], nodes_of(prompt, "EmptySD3LatentImage")[0]
    prompt[empty]["inputs"]["batch_size"] = 2
    bare = latent(server.run(prompt), guided)
    prompt["halve"] = {"class_type": "Halve", "inputs": {"model": prompt[guide]["inputs"]["model"]}}
    prompt[guide]["inputs"]["model"] = prompt[plain]["inputs"]["model"] = ["halve", 0]
    patched = server.run(prompt)
    assert bare.shape[0] == 2
    assert not torch.equal(latent(patched, guided), bare)
    assert not torch.equal(latent(patched, guided), latent(patched, plain))


@pytest.mark.parametrize("kind", ["VSFNAGGuidance", "VSFNASAGuidance", "NAGGuidance", "NASAGuidance"])
def test_the_other_methods(server: Server, kind: str) -> None:
    """Also by the names that they had before."""
    prompt = example("sdxl-turbo")
    guided, plain = samplers(prompt)
    guide = nodes_of(prompt, "VSFGuidance")[0]
    given = prompt[guide]["inputs"]
    info = server.get("/object_info")
    new = kind if kind.startswith("VSF") else f"VSF{kind}"
    settings = {k: v[1]["default"] for k, v in info[new]["input"]["required"].items() if k != "model"}
    assert info[kind].get("deprecated", False) == (kind != new)
    prompt[guide] = {
        "class_type": kind, "inputs": {"model": given["model"], "negative": given["negative"], **settings}
    }  # fmt: skip
    for key in nodes_of(prompt, "VSFSuppressionMap"):
        prompt = {k: v for k, v in prompt.items() if k != key and [key, 0] not in v["inputs"].values()}
    saved = server.run(prompt)
    assert not torch.equal(latent(saved, guided), latent(saved, plain))


def test_one_node_takes_the_sampler_s_negative(server: Server) -> None:
    """A template with a negative prompt needs one node between model and sampler."""
    prompt = example("sd3.5-turbo")
    guided, plain = samplers(prompt)
    guide = nodes_of(prompt, "VSFGuidance")[0]
    expected = latent(server.run(prompt), guided)
    prompt[guided]["inputs"]["negative"] = prompt[guide]["inputs"].pop("negative")
    assert torch.equal(latent(server.run(prompt), guided), expected)


def test_errors_are_sentences(server: Server) -> None:
    prompt = example("flux-schnell")
    guide, tiny = nodes_of(prompt, "VSFGuidance")[0], nodes_of(prompt, "TinyModel")[0]
    prompt[tiny]["inputs"]["name"] = "pixart"
    prompt[samplers(prompt)[1]]["inputs"]["model"] = [guide, 0]  # which is not to run
    with pytest.raises(RuntimeError, match="PixArtMS cannot be guided; supported: SD 1.x"):
        server.run(prompt)
    prompt = example("flux-schnell")
    prompt[guide]["inputs"]["blocks"] = "2-"
    with pytest.raises(RuntimeError, match="blocks is '2-'; allowed: numbers and ranges"):
        server.run(prompt)
    prompt = example("flux-schnell")
    prompt[guide]["inputs"]["record"] = False
    with pytest.raises(RuntimeError, match="switch on 'record'"):
        server.run(prompt)
    prompt = example("flux-schnell")
    off = nodes_of(prompt, "ConditioningZeroOut")[0]
    prompt[guide]["inputs"]["negative"] = [off, 0]
    with pytest.raises(RuntimeError, match="all zeros"):
        server.run(prompt)


def test_the_demo_model_draws_a_bike_without_its_wheels(server: Server) -> None:
    """Trained weights in ComfyUI's own class: the picture has a meaning, and so has the map."""
    graph = demo_graph("a blue car", "wheels", 4)
    saved = server.run(api_form(graph))
    plain, guided, where = (
        np.asarray(Image.open(saved[str([*graph].index(key) + 1)][0]).convert("RGB"), float)
        for key in ("save_plain", "save", "save_map")
    )
    assert plain.shape == guided.shape == where.shape == (256, 256, 3)

    def tyres(picture: np.ndarray) -> int:
        return int((picture.max(-1) < 60).sum())

    assert tyres(plain) > 1000 and tyres(guided) < tyres(plain) / 3
    changed = np.abs(plain - guided).mean(-1)
    bright = np.abs(where - guided).mean(-1)  # the colours that the map puts over the picture
    assert np.corrcoef(changed.ravel(), bright.ravel())[0, 1] > 0.2


# -- ways to install ----------------------------------------------------------------------------------------------------


def clone(custom_nodes: Path) -> None:
    """What `git clone` puts there: every file of the project that git does not ignore."""
    root = PACK.parent
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=root, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file() or (root / name).is_symlink():
            target = custom_nodes / "value-sign-flip" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, target, follow_symlinks=False)


def bundled(custom_nodes: Path) -> None:
    subprocess.run([sys.executable, str(PACK / "bundle.py"), str(custom_nodes / "vsf")], check=True)


def archive(custom_nodes: Path) -> None:
    """What the registry sends: the bundled folder, packed, and unpacked under the name of the project."""
    made = custom_nodes.parent / "made"
    subprocess.run([sys.executable, str(PACK / "bundle.py"), str(made)], check=True)
    packed = shutil.make_archive(str(custom_nodes.parent / "node"), "zip", made)
    shutil.unpack_archive(packed, custom_nodes / "comfyui-vsf")


@pytest.mark.parametrize("install", [clone, bundled, archive])
def test_ways_to_install(tmp_path: Path, install: Callable[[Path], None]) -> None:
    """The nodes are there, their help pages, translations and blueprint are, and one of them runs."""
    running = Server(COMFYUI, tmp_path / "base", write_stand_ins(tmp_path), install)
    try:
        info = running.get("/object_info")
        assert {"VSFGuidance", "VSFNegativePrompt", "VSFSuppressionMap"} <= set(info)
        names = [p.name for p in (tmp_path / "base" / "custom_nodes").iterdir() if p.name != "harness"]
        for node in (name for name in info if name.startswith("VSF")):
            pages = [running.text_of(f"/extensions/{name}/docs/{node}.md") for name in (*names, *PROJECTS)]
            assert any(pages), f"{node} has no help page"
        assert "VSF" in running.get("/i18n")["ja"]["nodeDefs"]["VSFGuidance"]["display_name"]
        if has("app/subgraph_manager.py"):
            assert BLUEPRINT.stem in [entry["name"] for entry in running.get("/global_subgraphs").values()]
        prompt = example("flux-schnell")
        guided, plain = samplers(prompt)
        saved = running.run(prompt)
        assert not torch.equal(latent(saved, guided), latent(saved, plain))
    finally:
        running.stop()
