"""`vsf models`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from .common import choose

if TYPE_CHECKING:
    from ..presets import Preset


def models(
    name: Annotated[
        str | None, typer.Argument(help="One preset, with the source of every number.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, sources included.")] = False,
) -> None:
    """Settings for the models people ask for, and where each number comes from.

    vsf generate "a red bike" -N wheels --model NAME uses them.
    """
    from ..presets import PRESETS

    chosen = list(PRESETS.values()) if name is None else [PRESETS[choose("preset", name, list(PRESETS))]]
    if as_json:
        print(json.dumps([preset.to_dict() for preset in chosen], indent=1))
    elif name is None:
        _table(chosen)
    else:
        _one(chosen[0])


def _table(presets: list[Preset]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for p in presets:
        status = "published" if p.source["scale"].startswith("published") else "not measured"
        line = Text(f"{p.name:21}", style="bold")
        line.append(
            f" {p.steps:3} steps  cfg {p.guidance_scale:<3g}  scale {p.scale:<3g}  offset {p.offset:<3g}  {p.layout}",
            style="not bold",
        )
        console.print(line, highlight=False)
        parts = [
            f"{p.checkpoint}  {p.pipeline}  (scale {status})",
            *(f"+ LoRA {lo.repo} {lo.strength:g}" for lo in p.loras),
        ]
        parts += ([] if p.few_step else ["not a few-step model"]) + (["needs --image FILE"] if p.needs_image else [])
        for part in parts:
            console.print(Text(f"  {part}", style="dim"), highlight=False, soft_wrap=True)
    console.print("\nNone was measured in this project. The source of every number: vsf models NAME", highlight=False)


def _one(preset: Preset) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", style="dim")
    table.add_row("checkpoint", preset.checkpoint)
    table.add_row("pipeline", preset.pipeline)
    for name in ("steps", "guidance_scale", "scale", "offset"):
        table.add_row(name, f"{getattr(preset, name):g}", preset.source[name])
    table.add_row("layout", preset.layout)
    for lora in preset.loras:
        table.add_row("LoRA", f"{lora.repo}/{lora.file}, strength {lora.strength:g}", preset.source["lora"])
    if preset.scheduler is not None:
        changed = ", ".join(f"{k}={v}" for k, v in preset.scheduler.config.items())
        source = preset.source.get("scheduler") or preset.source.get("flow_shift", "")
        table.add_row("scheduler", f"{preset.scheduler.name} {changed}".strip(), source)
    for name, value in preset.call.items():
        table.add_row(name, str(value), preset.source[name])
    if preset.video:
        table.add_row("frames per second", str(preset.fps), preset.source["fps"])
    if preset.note:
        table.add_row("note", preset.note)
    Console().print(table, highlight=False)
