"""`vsf ui`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ..demo.models import MODELS
from ..libraries import install, offline_unless
from ..loading import DEMO, DTYPES
from .common import Problem, choose, opt, say, warn

_MODEL = "Model"


def ui(
    model: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(MODELS)}, a preset (see vsf models), a folder, or an id (owner/name).",
            metavar="MODEL",
            rich_help_panel=_MODEL,
        ),
    ] = DEMO,
    port: Annotated[int | None, opt("Port (default: from 7860 up; 0: any).", min=0, max=65535)] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None, opt("One more name to be reached by, such as that of a proxy (can be given again).")
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Also a public address, through gradio's tunnel.")] = False,
    label: Annotated[Path | None, opt("A benchmark's run directory: adds a tab for blind labelling.")] = None,
    device: Annotated[str | None, opt("cpu, cuda, ... (default: cuda if there).", panel=_MODEL)] = None,
    dtype: Annotated[
        str | None, opt(f"{', '.join(DTYPES)} (default: bfloat16 on cuda, else float32).", panel=_MODEL)
    ] = None,
    model_path: Annotated[Path | None, opt("The folder to load a preset's model from.", panel=_MODEL)] = None,
    no_lora: Annotated[
        bool, typer.Option("--no-lora", help="Leave a preset's LoRA out.", rich_help_panel=_MODEL)
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch an id from its hub.", rich_help_panel=_MODEL)
    ] = False,
) -> None:
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
    offline_unless(download)
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    for name in ("torchao", "torch.utils._pytree", "httpx"):  # they announce themselves between our lines
        logging.getLogger(name).setLevel(logging.ERROR)
    options = dict(
        model=model, device=device, dtype=dtype, download=download, no_lora=no_lora,
        model_path=None if model_path is None else str(model_path), label=None if label is None else str(label),
    )  # fmt: skip
    exposed = "everyone who can reach this address can draw with this machine"
    serve_page(
        lambda ui: ui.build(ui.Options(**options)), exposed, host=host, port=port, share=share, hosts=allow_host or ()
    )


def serve_page(make: Callable[[Any], Any], exposed: str, **where: Any) -> None:
    """Serve a page until somebody says stop; `make` gets the module `vsf.ui`, `exposed` is said where others can reach it.

    Raises:
        Problem: gradio is missing, or the page or the address cannot be had.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    from ..ui.folder import remove_folder
    from ..ui.stop import until_told

    with until_told(remove_folder, leave=True):
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise Problem(f"the page needs gradio: {install('ui')}") from error
        from .. import ui
        from ..loading import ModelError

        if where["host"] not in ("127.0.0.1", "localhost", "::1") or where.get("share"):
            warn(exposed)
        try:
            ui.serve(make(ui), **where, started=lambda it: print(f"vsf ui: {it}   (Ctrl+C stops it)", flush=True))
        except (ModelError, ValueError, OSError) as error:
            raise Problem(str(error)) from error
    with suppress(OSError):  # the terminal may be gone
        say("stopped")
