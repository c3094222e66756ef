"""`vsf info`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def info(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for bug reports and scripts.")] = False,
) -> None:
    """Versions, devices, the attention kernels in use, supported models, embedded models, and the words they know."""
    facts = _facts()
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("versions", ", ".join(f"{k} {v}" for k, v in facts["versions"].items()))
    for model, folder in facts["demo"].items():
        table.add_row(f"model {model}", folder)
    for device, dtypes in facts["kernels"].items():
        table.add_row(device, facts["devices"][device])
        for dtype, kernel in dtypes.items():
            table.add_row(f"  {dtype}", kernel)
    families: dict[str, list[str]] = {}
    for model, family in facts["supported"].items():
        families.setdefault(family, []).append(model)
    for i, (family, models) in enumerate(sorted(families.items())):
        table.add_row("supported" if i == 0 else "", f"{family}: {', '.join(models)}")
    for world, words in facts["words"].items():
        table.add_row(f"words: {world}", " ".join(words))
    console.print(table, highlight=False)


def _facts() -> dict[str, Any]:
    import platform
    from importlib.metadata import version

    import torch

    from .. import __version__
    from ..arch import supported
    from ..core.attention import kernel_name
    from ..demo.models import MODELS
    from ..demo.worlds import WORLDS, world

    devices = {"cpu": f"{torch.get_num_threads()} threads, {platform.machine()}"}
    if torch.cuda.is_available():
        devices["cuda"] = torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return {
        "versions": {"vsf": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "devices": devices,
        "kernels": {d: {str(t).removeprefix("torch."): kernel_name(d, t) for t in dtypes} for d in devices},
        "supported": supported(),
        "demo": {m.name: str(m.weights) if m.is_there else f"no weights in {m.weights}" for m in MODELS.values()},
        "words": {name: list(world(name).vocabulary) for name in WORLDS},
    }
