from __future__ import annotations

import gc
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest
import torch

import shifting

if "VSF_TEST_SHIFT" in os.environ:
    shifting.install(os.environ["VSF_TEST_SHIFT"])


# Nothing fails because an example took long: hypothesis allows 200 ms for one, unless told otherwise. The same examples
# everywhere; --hypothesis-profile=search looks for new ones.
for name, more in {"patient": {"derandomize": True}, "search": {"max_examples": 5000}}.items():
    hypothesis.settings.register_profile(
        name, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], **more
    )
hypothesis.settings.load_profile("patient")


class NoPackage:
    """The project's `__init__.py` is for ComfyUI: pytest must not import it, as a package of the name of the clone's folder.

    A plugin, because the hooks of this file itself are not asked about folders above it.
    """

    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == Path(__file__).parents[1] else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(NoPackage())


def pytest_report_header() -> str:
    """Under which of the settings of `tests/settings.py` this run is, in its first lines."""
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "OMP_NUM_THREADS", "VSF_TEST_SHIFT")
    said = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return f"numerics: {' '.join(said) or 'default'}; {torch.backends.cpu.get_cpu_capability()}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What each part of a run took: a folder, or a file of those that lie in none; seconds of all workers together."""
    took: defaultdict[str, float] = defaultdict(float)
    for report in (r for kind in terminalreporter.stats.values() for r in kind if isinstance(r, pytest.TestReport)):
        path = Path(report.nodeid.partition("::")[0])
        took[path.stem.removeprefix("test_") if path.parent.name == "tests" else path.parent.name] += report.duration
    if len(took) > 1:
        terminalreporter.write_line(
            "seconds: " + ", ".join(f"{part} {n:.0f}" for part, n in sorted(took.items(), key=lambda x: -x[1]))
        )


def pytest_collection_finish() -> None:
    """What was imported is garbage for nobody: collections, which some tests ask for, need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _kernels() -> dict[str, object]:
    """What decides, for the whole process, which kernels torch takes."""
    return {
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
        "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "onednn": torch.backends.mkldnn.enabled,
    }


@pytest.fixture(autouse=True)
def _for_the_next() -> Iterator[None]:
    """Nothing that a test chose for the whole process stays for the next one, in whatever order they run.

    `set_attention_backend` of diffusers chooses for every model of the process, so that is taken back; what torch
    itself is left with has to be as it was.
    """
    before = _kernels()
    yield
    if dispatch := sys.modules.get("diffusers.models.attention_dispatch"):
        dispatch._AttentionBackendRegistry.set_active_backend(
            dispatch.AttentionBackendName(dispatch.DIFFUSERS_ATTN_BACKEND)
        )
    assert _kernels() == before, "a test left other kernels chosen than it found"
