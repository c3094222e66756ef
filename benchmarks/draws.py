"""How long the embedded models take to draw, after loading, with nothing and with what is recommended for each.

    python benchmarks/draws.py             # the table of docs/demo-model.md
    python benchmarks/draws.py --threads 1 --times 5

Drawings with and without guidance take turns, and the first of each is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time

import torch

from vsf import negative_guidance
from vsf.demo.models import MODELS
from vsf.demo.training.loop import machine
from vsf.provenance import versions


def drawn(pipe: object, call: dict[str, object], block: contextlib.AbstractContextManager[object]) -> float:
    """Seconds of one drawing."""
    begun = time.perf_counter()
    with block:
        pipe(**call)  # pyright: ignore[reportCallIssue]
    return time.perf_counter() - begun


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=2, help="threads of a drawing")
    parser.add_argument("--times", type=int, default=15, help="drawings of each kind that are counted")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = ", ".join(f"{name} {version}" for name, version in versions("torch", "diffusers").items())
    print(f"{machine(torch.device('cpu'))}; {about}; seconds, median (fastest to slowest)\n")
    print("| model | draws | unguided | guided |")
    print("|---|---|---|---|")
    for model in MODELS.values():
        pipe, shown = model.load(), model.shown[0]
        pipe.set_progress_bar_config(disable=True)
        call = model.completed(
            {
                "prompt": shown.prompt,
                "num_inference_steps": model.steps,
                "guidance_scale": model.guidance_scale,
                "output_type": "np",
            }
        )
        taken: tuple[list[float], list[float]] = ([], [])
        for i in range(args.times + 1):
            for guided, seconds in enumerate(taken):
                block = (
                    negative_guidance(pipe, model.recommended, shown.negative) if guided else contextlib.nullcontext()
                )
                took = drawn(pipe, call, block)
                if i:
                    seconds.append(took)
        cells = [f"{statistics.median(s):.2f} ({min(s):.2f} to {max(s):.2f})" for s in taken]
        what = f"{model.call['num_frames']} frames of " if model.video else ""
        print(
            f"| `{model.name}` | {what}{model.size[0]} x {model.size[1]} px, {model.steps} steps | {' | '.join(cells)} |"
        )


if __name__ == "__main__":
    main()
