"""Draw the pictures of the documentation with a real server.

    COMFYUI=... PYTHONPATH=tests python tests/comfyui/comfy_pictures.py FOLDER

Graphs are screenshots of ComfyUI's own front end; the result is the demo model's, drawn through the server.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from comfy_server import COMFYUI, Server, write_stand_ins
from comfy_workflows import FOLDER, WORKFLOWS, api_form, demo_graph, graph_form
from PIL import Image, ImageDraw, ImageFont

#: Prompt, negative, seed: pictures that show the part without guidance.
SHOWN = (("a red bike", "wheels", 5), ("a blue car", "wheels", 4), ("a red house", "windows", 6))
CHROMIUM = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--use-gl=swiftshader",
]  # fmt: skip
OPEN = "async (graph) => { await window.app.loadGraphData(graph); }"
RUN = "async () => { await window.app.queuePrompt(0); }"
#: Fit the graph into the window; returns the size it takes.
FIT = """
() => {
  const boxes = window.app.graph._nodes.map((n) => [n.pos[0], n.pos[1] - 40, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]);
  const left = Math.min(...boxes.map((b) => b[0])), top = Math.min(...boxes.map((b) => b[1]));
  const width = Math.max(...boxes.map((b) => b[2])) - left + 60, height = Math.max(...boxes.map((b) => b[3])) - top + 60;
  const canvas = window.app.canvas, at = canvas.canvas.getBoundingClientRect();
  const scale = Math.min((innerWidth - at.left) / width, (innerHeight - at.top) / height);
  canvas.min_font_size_for_lod = 0;  // text however small
  canvas.ds.scale = scale;
  canvas.ds.offset = [30 - left, 30 - top];
  canvas.setDirty(true, true);
  return {x: at.left, y: at.top, width: Math.floor(width * scale), height: Math.floor(height * scale)};
}
"""
#: Everything around the graph.
HIDE = """
.comfyui-body-top, .comfyui-body-left, .comfyui-body-bottom, .comfyui-body-right, .side-tool-bar-container, .p-toast,
.graph-canvas-menu, .p-dialog-mask, .comfy-menu, .actionbar, .p-buttongroup, .comfyui-menu, .side-bar-panel,
.workflow-tabs-container, .minimap-main-container, .subgraph-breadcrumb,
div:has(> .actionbar-container) { display: none !important }
"""


def screenshots(server: Server, folder: Path, names: list[str]) -> None:
    from playwright.sync_api import sync_playwright

    info = server.get("/object_info")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        page = browser.new_page(viewport={"width": 2000, "height": 1100})
        page.goto(server.url)
        page.wait_for_function("() => window.app && window.app.graph && window.app.vueAppReady", timeout=120_000)
        page.wait_for_timeout(3000)
        for name in names:
            demo = name == "demo"
            graph: Any = (
                graph_form(demo_graph(*SHOWN[1]), info) if demo else json.loads((FOLDER / f"{name}.json").read_text())
            )
            page.evaluate(OPEN, graph)
            page.wait_for_timeout(1500)
            page.keyboard.press("Escape")
            if demo:
                page.evaluate(RUN)
                page.wait_for_function(
                    "() => window.app.graph._nodes.filter((n) => n.imgs && n.imgs.length).length >= 3", timeout=120_000
                )
                page.wait_for_timeout(8000)  # until it has stopped saying that the job is done
            page.add_style_tag(content=HIDE)
            page.wait_for_timeout(500)
            area = page.evaluate(FIT)
            page.wait_for_timeout(1000)
            path = folder / f"{name}.png"
            page.screenshot(path=path, clip=area)
            Image.open(path).convert("RGB").save(folder / f"{name}.jpg", quality=85)
            path.unlink()
        browser.close()


def result(server: Server, folder: Path) -> None:
    """A sheet: without, with, and where the negative acted."""
    size, edge = 208, 34
    sheet = Image.new("RGB", (3 * (size + 8) + 8, len(SHOWN) * (size + edge) + 34), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for x, title in enumerate(("without", "with the negative", "where it acts")):
        pen.text((8 + x * (size + 8), 9), title, "black", font)
    for y, (prompt, negative, seed) in enumerate(SHOWN):
        graph = demo_graph(prompt, negative, seed)
        saved = server.run(api_form(graph))
        top = 34 + y * (size + edge)
        for x, key in enumerate(("save_plain", "save", "save_map")):
            picture = (
                Image.open(saved[str([*graph].index(key) + 1)][0])
                .convert("RGB")
                .resize((size, size), Image.Resampling.BICUBIC)
            )
            sheet.paste(picture, (8 + x * (size + 8), top))
        pen.text((8, top + size + 6), f"{prompt}; negative: {negative}", "black", font)
    sheet.save(folder / "result.jpg", quality=88)


def name_models(models: Path) -> None:
    """Empty files with the names in the workflows, so that the front end does not mark them as missing."""
    folders = {"unet_name": "diffusion_models", "vae_name": "vae", "lora_name": "loras", "ckpt_name": "checkpoints"}
    for graph in WORKFLOWS.values():
        for _, inputs, _ in graph.values():
            for name, value in inputs.items():
                folder = "text_encoders" if name.startswith("clip_name") else folders.get(name)
                if folder:
                    (models / folder).mkdir(parents=True, exist_ok=True)
                    (models / folder / value).touch()


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    wanted = sys.argv[2:] or [*WORKFLOWS, "demo", "result"]
    with tempfile.TemporaryDirectory() as made:
        name_models(Path(made) / "base" / "models")
        running = Server(COMFYUI, Path(made) / "base", write_stand_ins(Path(made)))
        try:
            if "result" in wanted:
                result(running, target)
            screenshots(running, target, [name for name in wanted if name != "result"])
        finally:
            running.stop()
