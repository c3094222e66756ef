"""The web page needs gradio; without it its tests say so and are skipped."""

from __future__ import annotations

import importlib.util
import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
collect_ignore_glob = [] if importlib.util.find_spec("gradio") else ["test_*.py"]


def pytest_report_header() -> str | None:
    missing = "tests of the web page are skipped: gradio is not installed (the ui extra)"
    return missing if collect_ignore_glob else None
