"""What a run shows and leaves: sample sheets, loss curves, and a stock pipeline folder."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

SHEET = (
    "a red bike", "a red bike with wheels", "a plain red bike", "a plain red bike with a basket",
    "a blue house", "a blue house with windows", "a plain blue house", "a plain blue house with a flag",
    "a green face", "a green face with glasses", "a plain green face", "a yellow face with a scarf",
    "a pink cake", "a pink cake with candles", "a plain pink cake", "an orange cake with apples",
    "a brown tree", "a brown tree with apples on grass", "a plain brown tree", "a purple cat with a hat",
    "a blue plane with wings", "a plain blue plane", "wheels", "",
)  # fmt: skip


def sample_sheet(
    pipe: Any, prompts: Sequence[str] = SHEET, columns: int = 8, seed: int = 5, **call: Any
) -> Image.Image:
    """One picture per prompt (8 steps), of a clip its last frame, each labelled; four prompts after another share their noise.

    `call` goes to the pipeline; guidance_scale is 0 unless given there.
    """
    generators = [torch.Generator().manual_seed(seed + i // 4) for i in range(len(prompts))]
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 8, "guidance_scale": 0.0, **call}
    out = pipe(list(prompts), generator=generators, output_type="pil", **call)
    pictures = [clip[-1] for clip in out.frames] if hasattr(out, "frames") else out.images
    side = 2 * pictures[0].width
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + 30)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        x, y = i % columns * (side + 4), i // columns * (side + 30)
        sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, y + 28))
        words = prompt.split() or ["(empty)"]
        draw.text((x + 2, y + 1), " ".join(words[:4]), "black")
        draw.text((x + 2, y + 13), " ".join(words[4:]), "black")
    return sheet


def loss_curve(log: Sequence[tuple[int, dict[str, float]]], path: Path) -> None:
    """Draw the logged (rows seen, figures), on a log scale unless one is 0; nothing where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    if not log:
        return
    axes = (figure := Figure(figsize=(7, 4), layout="constrained")).subplots()
    for name in log[0][1]:
        axes.plot([rows for rows, _ in log], [figures[name] for _, figures in log], label=name)
    positive = all(value > 0 for _, figures in log for value in figures.values())
    axes.set(xlabel="rows seen", yscale="log" if positive else "linear")
    axes.legend()
    figure.savefig(path)


def save_pipeline(pipe: Any, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a stock pipeline folder, whole or not at all, without where on this machine its parts were read from."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    pipe.to(dtype).save_pretrained(part, safe_serialization=True)
    for config in part.glob("*/config.json"):
        values = json.loads(config.read_text("utf-8"))
        if values.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
