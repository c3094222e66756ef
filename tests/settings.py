"""The suite as it runs on other machines: under other instruction sets, thread counts and alignments.

    python tests/settings.py                          # every setting, every test
    python tests/settings.py --only sse41 shift-16 -- tests/test_contract.py -k sd3

Each setting is one pytest run in a process of its own. Prints a line for each as it ends, with what failed, and at the
end a table in Markdown; exits with 1 if a test failed.
What a setting changes is which kernels compute, and so in which order sums are taken; see CONTRIBUTING.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "aten-avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "aten-scalar": {"ATEN_CPU_CAPABILITY": "default"},
    "onednn-avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "onednn-sse41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "mkl-avx2": {"MKL_CBWR": "AVX2"},
    "mkl-compatible": {"MKL_CBWR": "COMPATIBLE"},
    "threads-2": {"OMP_NUM_THREADS": "2"},
    "threads-4": {"OMP_NUM_THREADS": "4"},
    "shift-16": {"VSF_TEST_SHIFT": "16"},
    "shift-32": {"VSF_TEST_SHIFT": "32"},
    "shift-48": {"VSF_TEST_SHIFT": "48"},
    "oldest": {
        "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE",
        "OMP_NUM_THREADS": "2", "VSF_TEST_SHIFT": "48",
    },
}  # fmt: skip
ROOT = Path(__file__).parent.parent
NAMES = sorted({name for values in SETTINGS.values() for name in values})
COUNT = re.compile(r"(\d+) (failed|passed|skipped|errors?)\b")


@dataclass(frozen=True)
class Result:
    """What one pytest run said: `failed` counts errors too, `output` is all of it."""

    passed: int
    failed: int
    skipped: int
    seconds: float
    code: int
    output: str


def run(values: dict[str, str], arguments: list[str]) -> Result:
    """One pytest run; one thread unless the setting says otherwise."""
    env = {k: v for k, v in os.environ.items() if k not in NAMES} | {"OMP_NUM_THREADS": "1"} | values
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    start = time.monotonic()
    done = subprocess.run(
        command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    seconds = time.monotonic() - start
    last = [line for line in done.stdout.splitlines() if COUNT.search(line)][-1:]
    counts = {kind.rstrip("s"): int(n) for n, kind in COUNT.findall("".join(last))}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    return Result(counts.get("passed", 0), failed, counts.get("skipped", 0), seconds, done.returncode, done.stdout)


def table(results: dict[str, Result]) -> str:
    """In Markdown, for CONTRIBUTING."""
    lines = ["| setting | variables | passed | failed | skipped | seconds |", "|---|---|---|---|---|---|"]
    for name, r in results.items():
        variables = " ".join(f"`{k}={v}`" for k, v in SETTINGS[name].items()) or "none"
        lines.append(f"| {name} | {variables} | {r.passed} | {r.failed} | {r.skipped} | {r.seconds:.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME",
                        help=f"of {', '.join(SETTINGS)}")  # fmt: skip
    parser.add_argument("pytest", nargs="*", help="files and options for pytest, after --")
    given = parser.parse_args()
    results: dict[str, Result] = {}
    for name in given.only:
        r = results[name] = run(SETTINGS[name], given.pytest)
        print(f"{name}: {r.passed} passed, {r.failed} failed, {r.skipped} skipped in {r.seconds:.0f} s", flush=True)
        if r.code:
            lines = [x for x in r.output.splitlines() if x.startswith(("FAILED", "ERROR"))]
            print(*(lines or r.output.splitlines()[-20:]), sep="\n", flush=True)
    print("", table(results), sep="\n")
    return int(any(r.code for r in results.values()))


if __name__ == "__main__":
    sys.exit(main())
