"""How the libraries around us behave: whether they reach for the network, and what they say. Torch-free to import."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["DISTRIBUTION", "install", "offline_unless", "quiet", "quiet_libraries"]

#: What the package index calls this package; `vsf` is another project's name there.
DISTRIBUTION = "value-sign-flip"


def install(extra: str) -> str:
    """The command that installs this package with an extra, for the error that misses one of its packages."""
    return f'pip install "{DISTRIBUTION}[{extra}]"'


def offline_unless(download: bool) -> None:
    """Keep the hub's library off the network unless asked; before it is imported, which is when it looks."""
    if not download:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def quiet_libraries() -> None:
    """No progress bars and notices of the model libraries between ours."""
    import logging as python_logging
    import warnings

    # Optional packages that announce at import what they could not load.
    for name in ("torchao", "torch.utils._pytree"):
        python_logging.getLogger(name).setLevel(python_logging.ERROR)
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """No progress bar per batch; the caller's setting comes back."""
    before = getattr(pipe, "_progress_bar_config", None)
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        if before is not None:
            pipe._progress_bar_config = before
        elif hasattr(pipe, "_progress_bar_config"):
            del pipe._progress_bar_config
