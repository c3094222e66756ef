"""`vsf ui`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Problem, choose, say, warn
from .generate import DTYPES

_MODEL = "Model"


def ui(
    model: Annotated[
        str,
        typer.Option(
            help="demo, a preset (see vsf models), a folder, or an id (owner/name).", metavar="MODEL", rich_help_panel=_MODEL
        ),
    ] = "demo",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port (default: from 7860 up; 0: any).", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    share: Annotated[bool, typer.Option("--share", help="Also a public address, through gradio's tunnel.")] = False,
    label: Annotated[
        Path | None, typer.Option(help="A benchmark's run directory: adds a tab for blind labelling.", show_default=False)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ... (default: cuda if there).", show_default=False, rich_help_panel=_MODEL)
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(DTYPES)} (default: bfloat16 on cuda, else float32).", show_default=False,
                     rich_help_panel=_MODEL),
    ] = None,
    model_path: Annotated[
        Path | None,
        typer.Option(help="The folder to load a preset's model from.", show_default=False, rich_help_panel=_MODEL),
    ] = None,
    no_lora: Annotated[bool, typer.Option("--no-lora", help="Leave a preset's LoRA out.", rich_help_panel=_MODEL)] = False,
    download: Annotated[bool, typer.Option("--download", help="Fetch an id from its hub.", rich_help_panel=_MODEL)] = False,
) -> None:  # fmt: skip
    """Open a web page to draw with: without and with the negative, and where it acted.

    [bold]Examples[/bold]

    vsf ui

    vsf ui --model sd3.5-large-turbo --model-path ./sd35 --port 8000
    """
    from ..presets import PRESETS

    if model not in PRESETS and (model_path is not None or no_lora):
        raise Problem(
            f"{'--no-lora' if model_path is None else '--model-path'} goes with a preset; --model is {model!r}"
        )
    if model_path is not None and not model_path.is_dir():
        raise Problem(f"--model-path is {model_path}, which is no folder")
    if dtype is not None:
        choose("dtype", dtype, DTYPES)
    if not download:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub library is imported
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    for name in ("torchao", "torch.utils._pytree", "httpx"):  # they announce themselves between our lines
        logging.getLogger(name).setLevel(logging.ERROR)
    _start(
        dict(
            model=model, device=device, dtype=dtype, download=download, no_lora=no_lora,
            model_path=None if model_path is None else str(model_path), label=None if label is None else str(label),
        ),
        host, port, share,
    )  # fmt: skip


def _start(options: dict[str, Any], host: str, port: int | None, share: bool) -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise Problem('the page needs gradio: pip install "vsf[ui]"') from error
    from ..draw import ModelError
    from ..ui import Options, build, serve

    try:
        page = build(Options(**options))
    except (ModelError, ValueError) as error:
        raise Problem(str(error)) from error
    if host not in ("127.0.0.1", "localhost", "::1") or share:
        warn("everyone who can reach this address can draw with this machine")
    try:
        serve(page, host, port, share, lambda address: print(f"vsf ui: {address}   (Ctrl+C stops it)", flush=True))
    except OSError as error:
        raise Problem(f"cannot listen at {host}:{port if port is not None else '7860 to 7959'}: {error}") from error
    say("stopped")
