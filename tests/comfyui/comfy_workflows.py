"""The example workflows: each is written down once, here, and made into ComfyUI's API form and its graph form.

`python comfy_workflows.py http://127.0.0.1:8188` writes them anew; a test says when the files are not what this makes.
"""

from __future__ import annotations

import json
import sys
import urllib.request
import uuid
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[2] / "comfyui"
FOLDER = PACK / "example_workflows"
#: The front end lists it as a node that can be added to any graph.
BLUEPRINT = PACK / "subgraphs" / "Sample with a negative prompt (VSF).json"

#: A node: its class, its inputs by name (a link is `("node", slot)`), and a title if not its own.
Graph = dict[str, tuple[str, dict[str, Any], str | None]]

PROMPT = "a red bicycle leaning against a brick wall"
NEGATIVE = "wheels"


def _graph(
    loaders: Graph, model: tuple[str, int], clip: tuple[str, int], vae: tuple[str, int], empty: tuple[str, dict[str, Any]],
    guidance: dict[str, Any], sampler: dict[str, Any], save: tuple[str, dict[str, Any]], prompt: str = PROMPT,
) -> Graph:  # fmt: skip
    """Without and with guidance from the same noise, and the map of where the negative acted."""
    defaults = {"layout": "paper", "normalize": 0.0, "start_percent": 0.0, "end_percent": 1.0, "blocks": ""}
    run = {"seed": 1, "cfg": 1.0, "denoise": 1.0, **sampler}
    name, options = save

    def branch(suffix: str, model: tuple[str, int], label: str) -> Graph:
        links = {"model": model, "positive": ("prompt", 0), "negative": ("off", 0), "latent_image": ("noise", 0)}
        return {
            f"sample{suffix}": ("KSampler", links | run, f"KSampler, {label}"),
            f"decode{suffix}": ("VAEDecode", {"samples": (f"sample{suffix}", 0), "vae": vae}, None),
            f"save{suffix}": (
                name, {"images": (f"decode{suffix}", 0), "filename_prefix": f"VSF/{label}", **options}, label.capitalize(),
            ),
        }  # fmt: skip

    return {
        **loaders,
        "prompt": ("CLIPTextEncode", {"clip": clip, "text": prompt}, "What you want"),
        "negative": ("VSFNegativePrompt", {"clip": clip, "text": NEGATIVE}, "What you do not want"),
        "off": ("ConditioningZeroOut", {"conditioning": ("prompt", 0)}, "Unused at CFG 1"),
        "noise": (*empty, None),
        "guide": (
            "VSFGuidance", {"model": model, "negative": ("negative", 0), **defaults, **guidance, "record": True}, None,
        ),
        **branch("", ("guide", 0), "with guidance"),
        **branch("_plain", model, "without guidance"),
        "map": (
            "VSFSuppressionMap",
            {
                "model": ("guide", 0), "latent": ("sample", 0), "image": ("decode", 0), "step": -1, "block": -1,
                "brightest": 0.0, "strength": 0.6,
            },
            None,
        ),
        "save_map": (
            name, {"images": ("map", 0), "filename_prefix": "VSF/where the negative acts", **options}, "Where it acts",
        ),
    }  # fmt: skip


def _vae(file: str) -> Graph:
    return {"vae": ("VAELoader", {"vae_name": file}, None)}


def _unet(file: str) -> Graph:
    return {"model": ("UNETLoader", {"unet_name": file, "weight_dtype": "default"}, None)}


def _clip(file: str, kind: str) -> Graph:
    return {"clip": ("CLIPLoader", {"clip_name": file, "type": kind, "device": "default"}, None)}


def _lora(file: str, strength: float) -> Graph:
    inputs = {"model": ("model", 0), "lora_name": file, "strength_model": strength}
    return {"lora": ("LoraLoaderModelOnly", inputs, None)}


IMAGE = ("SaveImage", {})
EULER = {"sampler_name": "euler", "scheduler": "simple"}

#: Settings are those of the presets of the same name in vsf.presets; file names are those ComfyUI's own examples use.
WORKFLOWS: dict[str, Graph] = {
    "flux-schnell": _graph(
        {
            **_unet("flux1-schnell.safetensors"),
            "clip": (
                "DualCLIPLoader",
                {
                    "clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp8_e4m3fn.safetensors", "type": "flux",
                    "device": "default",
                },
                None,
            ),
            **_vae("ae.safetensors"),
        },
        ("model", 0), ("clip", 0), ("vae", 0),
        ("EmptySD3LatentImage", {"width": 1024, "height": 1024, "batch_size": 1}),
        {"scale": 6.0, "offset": 0.1, "layout": "upstream"}, {"steps": 8, **EULER}, IMAGE,
    ),
    "sd3.5-turbo": _graph(
        {
            "model": ("CheckpointLoaderSimple", {"ckpt_name": "sd3.5_large_turbo.safetensors"}, None),
            "clip": (
                "TripleCLIPLoader",
                {
                    "clip_name1": "clip_l.safetensors", "clip_name2": "clip_g.safetensors",
                    "clip_name3": "t5xxl_fp8_e4m3fn.safetensors",
                },
                None,
            ),
        },
        ("model", 0), ("clip", 0), ("model", 2),
        ("EmptySD3LatentImage", {"width": 1024, "height": 1024, "batch_size": 1}),
        {"scale": 3.5, "offset": 0.1, "layout": "upstream"},
        {"steps": 8, "sampler_name": "euler", "scheduler": "sgm_uniform"}, IMAGE,
    ),
    "wan": _graph(
        {
            **_unet("wan2.1_t2v_1.3B_fp16.safetensors"),
            **_lora("Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors", 0.5),
            "shift": ("ModelSamplingSD3", {"model": ("lora", 0), "shift": 3.0}, None),
            **_clip("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan"),
            **_vae("wan_2.1_vae.safetensors"),
        },
        ("shift", 0), ("clip", 0), ("vae", 0),
        ("EmptyHunyuanLatentVideo", {"width": 832, "height": 480, "length": 81, "batch_size": 1}),
        {"scale": 1.7, "offset": 0.2}, {"steps": 12, "sampler_name": "uni_pc", "scheduler": "simple"},
        ("SaveAnimatedWEBP", {"fps": 16.0, "lossless": False, "quality": 85, "method": "default"}),
        "a red bicycle rolls down a street",
    ),
    "sdxl-turbo": _graph(
        {"model": ("CheckpointLoaderSimple", {"ckpt_name": "sd_xl_turbo_1.0_fp16.safetensors"}, None)},
        ("model", 0), ("model", 1), ("model", 2),
        ("EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 1}),
        {"scale": 1.7, "offset": 0.2}, {"steps": 4, "sampler_name": "euler_ancestral", "scheduler": "sgm_uniform"}, IMAGE,
    ),
    "qwen-image-lightning": _graph(
        {
            **_unet("qwen_image_fp8_e4m3fn.safetensors"),
            **_lora("Qwen-Image-Lightning-8steps-V1.0.safetensors", 1.0),
            "shift": ("ModelSamplingAuraFlow", {"model": ("lora", 0), "shift": 3.0}, None),
            **_clip("qwen_2.5_vl_7b_fp8_scaled.safetensors", "qwen_image"),
            **_vae("qwen_image_vae.safetensors"),
        },
        ("shift", 0), ("clip", 0), ("vae", 0),
        ("EmptySD3LatentImage", {"width": 1328, "height": 1328, "batch_size": 1}),
        {"scale": 2.0, "offset": 0.1}, {"steps": 8, **EULER}, IMAGE,
    ),
    "z-image-turbo": _graph(
        {
            **_unet("z_image_turbo_bf16.safetensors"),
            "shift": ("ModelSamplingAuraFlow", {"model": ("model", 0), "shift": 3.0}, None),
            **_clip("qwen_3_4b.safetensors", "lumina2"),
            **_vae("ae.safetensors"),
        },
        ("shift", 0), ("clip", 0), ("vae", 0),
        ("EmptySD3LatentImage", {"width": 1024, "height": 1024, "batch_size": 1}),
        {"scale": 2.0, "offset": 0.1}, {"steps": 8, **EULER}, IMAGE,
    ),
}  # fmt: skip


_WAN = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/"
_QWEN = "https://huggingface.co/Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files/"
_Z = "https://huggingface.co/Comfy-Org/z_image_turbo/resolve/main/split_files/"
#: Where each file is, and the folder under ComfyUI's models that it goes into.
MODELS = {
    address.rsplit("/", 1)[1]: (address, folder)
    for folder, addresses in {
        "checkpoints": (
            "https://huggingface.co/stabilityai/stable-diffusion-3.5-large-turbo/resolve/main/sd3.5_large_turbo.safetensors",
            "https://huggingface.co/stabilityai/sdxl-turbo/resolve/main/sd_xl_turbo_1.0_fp16.safetensors",
        ),
        "diffusion_models": (
            "https://huggingface.co/Comfy-Org/flux1-schnell/resolve/main/flux1-schnell.safetensors",
            _WAN + "diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors",
            _QWEN + "diffusion_models/qwen_image_fp8_e4m3fn.safetensors",
            _Z + "diffusion_models/z_image_turbo_bf16.safetensors",
        ),
        "loras": (
            "https://huggingface.co/Kijai/WanVideo_comfy/resolve/main/"
            "Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors",
            "https://huggingface.co/lightx2v/Qwen-Image-Lightning/resolve/main/Qwen-Image-Lightning-8steps-V1.0.safetensors",
        ),
        "text_encoders": (
            "https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main/clip_l.safetensors",
            "https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main/t5xxl_fp8_e4m3fn.safetensors",
            "https://huggingface.co/Comfy-Org/stable-diffusion-3.5-fp8/resolve/main/text_encoders/clip_g.safetensors",
            _WAN + "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
            _QWEN + "text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors",
            _Z + "text_encoders/qwen_3_4b.safetensors",
        ),
        "vae": (
            "https://huggingface.co/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/ae.safetensors",
            _WAN + "vae/wan_2.1_vae.safetensors",
            _QWEN + "vae/qwen_image_vae.safetensors",
        ),
    }.items()
    for address in addresses
}
NOTE = """## A negative prompt at CFG 1

The same noise is drawn twice: without guidance, and with **VSF Guidance**, which keeps what *What you do not want* says out of
the picture. The third picture shows where the negative acted.

- Nothing changes: raise *scale*, or lower *offset*.
- The picture breaks: lower *scale*, or set *normalize* to about 1.
- Right-click a node for its help page.

Files, and the folder in ComfyUI's *models* that each goes into:

"""


def files_of(given: dict[str, Any]) -> list[dict[str, str]]:
    """The files that a node with these inputs loads, as the front end wants them to offer a download."""
    names = [value for value in given.values() if isinstance(value, str) and value in MODELS]
    return [{"name": name, "url": MODELS[name][0], "directory": MODELS[name][1]} for name in names]


def note_of(graph: Graph) -> str:
    """What the note in a workflow says."""
    files = [file for _, given, _ in graph.values() for file in files_of(given)]
    return NOTE + "".join(f"- {file['directory']}: [{file['name']}]({file['url']})\n" for file in files)


def demo_graph(prompt: str, negative: str, seed: int) -> Graph:
    """The embedded demo model, loaded by the harness's own nodes, with the same nodes of the pack."""
    graph = _graph(
        {"model": ("DemoModel", {}, None)}, ("model", 0), ("model", 1), ("model", 2), ("DemoLatent", {}),
        {"scale": 2.0, "offset": 0.0}, {"steps": 16, **EULER, "seed": seed}, IMAGE,
    )  # fmt: skip
    graph["prompt"] = ("DemoText", {"clip": ("model", 1), "text": prompt, "padded": True}, "What you want")
    graph["negative"] = ("DemoText", {"clip": ("model", 1), "text": negative, "padded": False}, "What you do not want")
    return graph


def api_form(graph: Graph) -> dict[str, Any]:
    """What the server's /prompt takes."""
    number = {key: str(i) for i, key in enumerate(graph, 1)}

    def value(x: Any) -> Any:
        return [number[x[0]], x[1]] if isinstance(x, tuple) else x

    return {
        number[key]: {
            "class_type": kind,
            "inputs": {name: value(x) for name, x in inputs.items()},
            **({"_meta": {"title": title}} if title else {}),
        }
        for key, (kind, inputs, title) in graph.items()
    }


def _depth(graph: Graph, key: str) -> int:
    links = [x[0] for x in graph[key][1].values() if isinstance(x, tuple)]
    return 1 + max((_depth(graph, link) for link in links), default=-1)


def graph_form(graph: Graph, info: dict[str, Any], note: str = "") -> dict[str, Any]:
    """What the front end opens; `info` is the server's /object_info, for the order of inputs and widgets.

    A `note` is shown left of the nodes.
    """
    number = {key: i for i, key in enumerate(graph, 1)}
    nodes: dict[str, dict[str, Any]] = {}
    links: list[list[Any]] = []
    heights: dict[int, int] = {}
    for order, (key, (kind, given, title)) in enumerate(graph.items()):
        declared = {**info[kind]["input"].get("required", {}), **info[kind]["input"].get("optional", {})}
        sockets, widgets = [], []
        for name, (type_, *more) in declared.items():
            options = more[0] if more else {}
            if isinstance(type_, list) or type_ in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                widgets.append(given[name] if name in given else options.get("default"))
                if options.get("control_after_generate"):
                    widgets.append("fixed")
            else:
                sockets.append({"name": name, "type": type_, "link": None})
        texts = sum(bool(more and more[0].get("multiline")) for _, *more in declared.values())
        outputs = zip(info[kind]["output"], info[kind]["output_name"], strict=True)
        outputs = (
            [] if kind.startswith("Save") else outputs
        )  # newer versions hand the pictures on; nothing takes them here
        column = _depth(graph, key)
        size = [330, 60 + 24 * (len(sockets) + len(widgets)) + 60 * texts]
        if kind.startswith("Save"):
            size = [330, 250]
        top = heights.get(column, 60)
        heights[column] = top + size[1] + 70
        nodes[key] = {
            "id": number[key], "type": kind, "pos": [60 + 400 * column, top], "size": size, "flags": {}, "order": order,
            "mode": 0, "inputs": sockets,
            "outputs": [{"name": name, "type": type_, "links": []} for type_, name in outputs],
            "properties": {"Node name for S&R": kind}, "widgets_values": widgets, **({"title": title} if title else {}),
        }  # fmt: skip
        if files_of(given):
            nodes[key]["properties"]["models"] = files_of(given)
    if note:
        nodes["note"] = {
            "id": len(nodes) + 1, "type": "MarkdownNote", "pos": [-380, 60], "size": [380, 440], "flags": {},
            "order": len(nodes), "mode": 0, "inputs": [], "outputs": [], "properties": {}, "widgets_values": [note],
            "title": "About this workflow",
        }  # fmt: skip
    for key, (_, given, _) in graph.items():
        for at, socket in enumerate(nodes[key]["inputs"]):
            source = given.get(socket["name"])
            if source is None:
                continue
            link = len(links) + 1
            socket["link"] = link
            nodes[source[0]]["outputs"][source[1]]["links"].append(link)
            links.append([link, number[source[0]], source[1], number[key], at, socket["type"]])
    return {
        "last_node_id": len(nodes), "last_link_id": len(links), "nodes": list(nodes.values()), "links": links, "groups": [],
        "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


def blueprint(info: dict[str, Any]) -> dict[str, Any]:
    """A subgraph that stands in the place of a sampler: model and prompts in; the picture, and where the negative acted, out."""
    inner: Graph = {
        "guide": (
            "VSFTextGuidance",
            {
                "text": "", "scale": 2.0, "offset": 0.1, "layout": "paper", "normalize": 0.0, "start_percent": 0.0,
                "end_percent": 1.0, "blocks": "", "record": True,
            },
            None,
        ),
        "sample": ("KSampler", {"model": ("guide", 0), "seed": 1, "steps": 8, "cfg": 1.0, **EULER, "denoise": 1.0}, None),
        "decode": ("VAEDecode", {"samples": ("sample", 0)}, None),
        "map": (
            "VSFSuppressionMap",
            {
                "model": ("guide", 0), "latent": ("sample", 0), "image": ("decode", 0), "step": -1, "block": -1,
                "brightest": 0.0, "strength": 0.6,
            },
            None,
        ),
    }  # fmt: skip
    #: Name and type of each socket, and the node and input (or output) behind it; several where it feeds several.
    sockets = {
        "model": ("MODEL", [("guide", "model")]),
        "clip": ("CLIP", [("guide", "clip")]),
        "vae": ("VAE", [("decode", "vae")]),
        "positive": ("CONDITIONING", [("sample", "positive"), ("sample", "negative")]),
        "latent_image": ("LATENT", [("sample", "latent_image")]),
    }
    made = {"image": ("IMAGE", "decode"), "map": ("IMAGE", "map")}
    shown = [("guide", "text"), ("guide", "scale"), ("sample", "seed"), ("sample", "steps")]
    form, title = graph_form(inner, info), BLUEPRINT.stem
    nodes = dict(zip(inner, form["nodes"], strict=True))
    links = [
        {"id": id, "origin_id": a, "origin_slot": i, "target_id": b, "target_slot": j, "type": kind}
        for id, a, i, b, j, kind in form["links"]
    ]

    def connect(origin: tuple[int, int], target: tuple[int, int], kind: str) -> int:
        links.append(
            {
                "id": len(links) + 1, "origin_id": origin[0], "origin_slot": origin[1], "target_id": target[0],
                "target_slot": target[1], "type": kind,
            }
        )  # fmt: skip
        return len(links)

    def socket(name: str, kind: str, ids: list[int], side: int, row: int) -> dict[str, Any]:
        own = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{title}/{name}"))
        return {"id": own, "name": name, "type": kind, "linkIds": ids, "label": name, "pos": [side, 80 + 20 * row]}

    inputs, outputs = [], []
    for row, (name, (kind, targets)) in enumerate(sockets.items()):
        ids = []
        for key, to in targets:
            at = next(i for i, x in enumerate(nodes[key]["inputs"]) if x["name"] == to)
            ids.append(connect((-10, row), (nodes[key]["id"], at), kind))
            nodes[key]["inputs"][at]["link"] = ids[-1]
        inputs.append(socket(name, kind, ids, -60, row))
    for row, (name, (kind, key)) in enumerate(made.items()):
        ids = [connect((nodes[key]["id"], 0), (-20, row), kind)]
        nodes[key]["outputs"][0]["links"].append(ids[0])
        outputs.append(socket(name, kind, ids, 1700, row))
    own = str(uuid.uuid5(uuid.NAMESPACE_OID, title))
    return {
        "last_node_id": len(nodes) + 1, "last_link_id": 0, "links": [], "groups": [], "config": {}, "extra": {},
        "version": 0.4,
        "nodes": [
            {
                "id": len(nodes) + 1, "type": own, "pos": [0, 0], "size": [400, 260], "flags": {}, "order": 0, "mode": 0,
                "inputs": [{"name": name, "type": kind, "link": None} for name, (kind, _) in sockets.items()],
                "outputs": [{"name": name, "type": kind, "links": []} for name, (kind, _) in made.items()],
                "properties": {"proxyWidgets": [[str(nodes[key]["id"]), name] for key, name in shown]},
                "widgets_values": [], "title": title,
            }
        ],
        "definitions": {
            "subgraphs": [
                {
                    "id": own, "version": 1, "revision": 0, "config": {}, "name": title,
                    "state": {
                        "lastGroupId": 0, "lastNodeId": len(nodes) + 1, "lastLinkId": len(links), "lastRerouteId": 0,
                    },
                    "inputNode": {"id": -10, "bounding": [-120, 60, 120, 140]},
                    "outputNode": {"id": -20, "bounding": [1680, 60, 120, 80]},
                    "inputs": inputs, "outputs": outputs, "widgets": [], "nodes": form["nodes"], "groups": [],
                    "links": links, "extra": {}, "category": "advanced/guidance",
                    "description": "Samples at CFG 1 with a negative prompt inside attention, and draws where it acted.",
                }
            ]
        },
    }  # fmt: skip


def files(info: dict[str, Any]) -> dict[Path, str]:
    """Every example file with its text, and the blueprint."""
    out = {BLUEPRINT: json.dumps(blueprint(info), indent=1) + "\n"}
    for name, graph in WORKFLOWS.items():
        for path, form in (
            (FOLDER / f"{name}.json", graph_form(graph, info, note_of(graph))),
            (FOLDER / "api" / f"{name}.json", api_form(graph)),
        ):
            out[path] = json.dumps(form, indent=1) + "\n"
    return out


if __name__ == "__main__":
    with urllib.request.urlopen(sys.argv[1] + "/object_info") as answer:
        made = files(json.load(answer))
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
