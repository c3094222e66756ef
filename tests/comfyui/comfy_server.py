"""A real ComfyUI server for tests: own folders, a free loopback port, CPU, and the pack linked in as a user would."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from needs import folder, version

from patience import PATIENCE

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1] / "comfyui"
COMFYUI = os.environ.get("COMFYUI", "")
VERSION = version(COMFYUI) if COMFYUI else ""
#: What this version needs beside the environment, see needs.py.
NEEDS = str(folder(COMFYUI)) if COMFYUI else ""
if NEEDS:
    sys.path.append(NEEDS)


def has(path: str, text: str = "") -> bool:
    """Whether this ComfyUI has a file with this text in it: what a version offers, without importing it."""
    file = Path(COMFYUI) / path
    return bool(COMFYUI) and file.is_file() and text in file.read_text()


#: Flux2 and its kin came with numbered text tokens.
NUMBERS = has("comfy/ldm/flux/model.py", "txt_ids_dims")
Z_IMAGE = has("comfy/ldm/lumina/model.py", "pad_tokens_multiple")
#: A module that has every name, and nothing behind it: ComfyUI imports from these much that its tests here never call.
EMPTY = """def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
"""
#: These have no build for some machines.
STAND_INS = {
    "torchvision": {
        "__init__.py": "from . import ops, transforms\n",
        "ops.py": EMPTY,
        "transforms/__init__.py": "from . import functional\n" + EMPTY,
        "transforms/functional.py": EMPTY,
    },
    "spandrel": {"__init__.py": EMPTY},  # its loader node must be there
    "torchaudio": {
        "__init__.py": "from . import functional, transforms\n",
        "functional.py": EMPTY,
        "transforms.py": EMPTY,
    },
}
#: Found out once: the stand-ins themselves are found later.
MISSING = [package for package in STAND_INS if importlib.util.find_spec(package) is None]
#: transformers asks once whether torchvision is there, and must not find the stand-in.
STARTUP = """
import sys
from transformers.utils.import_utils import is_torchvision_available
is_torchvision_available()
sys.path.append({path!r})
"""


def write_stand_ins(folder: Path) -> Path:
    """A folder for `PYTHONPATH` that offers ComfyUI the modules of STAND_INS that are not installed."""
    for package in MISSING:
        for name, text in STAND_INS[package].items():
            path = folder / "stand_ins" / package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    (folder / "sitecustomize.py").write_text(STARTUP.format(path=str(folder / "stand_ins")))
    return folder


def link(custom_nodes: Path) -> None:
    """Install the pack as who works on it does."""
    (custom_nodes / "vsf").symlink_to(PACK, target_is_directory=True)


class Server:
    def __init__(
        self, comfyui: str, folder: Path, stand_ins: Path, install: Callable[[Path], None] = link
    ) -> None:  # fmt: skip
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        for name in ("custom_nodes", "models", "input", "output", "user", "temp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        install(folder / "custom_nodes")
        (folder / "custom_nodes" / "harness").symlink_to(HERE / "harness_nodes", target_is_directory=True)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(stand_ins), str(HERE), str(HERE.parent), NEEDS]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        self.log = (folder / "log.txt").open("w")
        self.process = subprocess.Popen(
            [
                sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port),
                "--base-directory", str(folder), "--database-url", "sqlite:///:memory:", "--disable-api-nodes",
                "--disable-auto-launch",
            ],
            cwd=comfyui, env=environment, stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.get("/system_stats")
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    self.stop()
                    raise RuntimeError(f"ComfyUI did not start:\n{self.text()[-3000:]}") from None
                time.sleep(0.5)

    def text(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as answer:
            return json.load(answer)

    def text_of(self, path: str) -> str:
        """What is at an address; nothing if there is nothing."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError:
            return ""

    def post(self, path: str, data: Any) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from None
        return json.loads(text) if text else None

    def queue(self, prompt: dict[str, Any]) -> str:
        return self.post("/prompt", {"prompt": prompt, "client_id": str(uuid.uuid4())})["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """The history entry of a prompt that is over: done, failed or interrupted."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.1)
        raise TimeoutError(self.text()[-3000:])

    def run(self, prompt: dict[str, Any]) -> dict[str, list[Path]]:
        """Run a workflow; the files each node saved. RuntimeError with the node's own sentence if it failed."""
        entry = self.wait(self.queue(prompt))
        if entry["status"]["status_str"] != "success":
            errors = [m[1] for m in entry["status"]["messages"] if m[0] == "execution_error"]
            raise RuntimeError(errors[0]["exception_message"] if errors else str(entry["status"]))
        out: dict[str, list[Path]] = {}
        for node, outputs in entry["outputs"].items():
            kinds = [outputs.get("images", []), outputs.get("latents", [])]
            out[node] = [self.folder / f["type"] / f["subfolder"] / f["filename"] for kind in kinds for f in kind]
        return out


def with_tiny_models(prompt: dict[str, Any], name: str, size: int = 64) -> dict[str, Any]:
    """An example workflow with its loaders and text encoders replaced, at a small size, and its latents saved.

    Everything between loaders and decoders, the pack's nodes included, stays as it is in the file.
    """
    prompt = copy.deepcopy(prompt)
    loaders = {"UNETLoader", "CheckpointLoaderSimple", "CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader", "VAELoader"}
    replaced = {k for k, node in prompt.items() if node["class_type"] in loaders}
    for key in replaced:
        del prompt[key]
    prompt["tiny"] = {"class_type": "TinyModel", "inputs": {"name": name}}
    by_input = {"model": 0, "clip": 1, "vae": 2}
    while True:  # LoRA loaders give their model through
        lora = next((k for k, node in prompt.items() if node["class_type"] == "LoraLoaderModelOnly"), None)
        if lora is None:
            break
        del prompt[lora]
        replaced.add(lora)
    for key, node in list(prompt.items()):
        inputs = node["inputs"]
        for what, value in inputs.items():
            if isinstance(value, list) and value[0] in replaced:
                inputs[what] = ["tiny", by_input[what]]
        if node["class_type"] in ("CLIPTextEncode", "VSFNegativePrompt"):
            tokens = 7 if node["class_type"] == "CLIPTextEncode" else 4
            prompt[key] = {"class_type": "TinyText", "inputs": {**inputs, "tokens": tokens}}
        if node["class_type"].startswith("Empty"):
            inputs |= {"width": size, "height": size} | ({"length": 5} if "length" in inputs else {})
        if node["class_type"] == "KSampler":
            inputs["steps"] = min(inputs["steps"], 3)
            prompt[f"latent_{key}"] = {
                "class_type": "SaveLatent", "inputs": {"samples": [key, 0], "filename_prefix": f"latents/{key}"},
            }  # fmt: skip
    return prompt


def nodes_of(prompt: dict[str, Any], kind: str) -> list[str]:
    return [key for key, node in prompt.items() if node["class_type"] == kind]
