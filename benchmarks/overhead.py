"""What guidance costs: seconds and peak memory of one model forward, guided over unguided, in one run.

    python benchmarks/overhead.py --markdown docs/performance.md   # regenerates the page
    python benchmarks/overhead.py --models wan --rounds 2 --pairs 2
    python benchmarks/overhead.py --layers 38 --device cuda

Widths, token counts and text lengths are those of the real checkpoints at their native resolution; weights are
random, layers as many as asked for. A machine's speed drifts, so nothing is compared across time: in every round each
method runs once, each round begins with another one, and a method's ratio is formed with the unguided run of its own
round. What the target is about, VSF over no guidance, is measured again in pairs of neighbouring runs that begin with
each of the two in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, WanTransformer3DModel
from torch import Tensor

import vsf.plan
from vsf import NAG, NASA, VSF, negative_guidance
from vsf.arch.base import Frame
from vsf.core.attention import kernel_name

NEGATIVE = 12  # real tokens of a short negative prompt


def sd3(layers: int, dtype: torch.dtype, device: str) -> tuple[Any, dict[str, Any], int, int]:
    """SD3.5-large at 1024 px: 4096 image tokens, 77 CLIP + 256 T5 tokens."""
    with torch.device(device):
        model: Any = SD3Transformer2DModel(
            sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=layers, attention_head_dim=64,
            num_attention_heads=38, joint_attention_dim=4096, caption_projection_dim=2432, pooled_projection_dim=2048,
            pos_embed_max_size=192, qk_norm="rms_norm",
        )  # fmt: skip
        call = {
            "hidden_states": torch.randn(1, 16, 128, 128, dtype=dtype),
            "encoder_hidden_states": torch.randn(1, 333, 4096, dtype=dtype),
            "pooled_projections": torch.randn(1, 2048, dtype=dtype),
            "timestep": torch.tensor([500.0]),
        }
    return model.to(dtype), call, 4096, 333


def flux(layers: int, dtype: torch.dtype, device: str) -> tuple[Any, dict[str, Any], int, int]:
    """Flux.1 schnell at 1024 px: 4096 image tokens, 256 T5 tokens; a layer is one dual and one single block."""
    with torch.device(device):
        model: Any = FluxTransformer2DModel(num_layers=layers, num_single_layers=layers)
        ids = torch.zeros(64, 64, 3)
        ids[..., 1] += torch.arange(64)[:, None]
        ids[..., 2] += torch.arange(64)
        call = {
            "hidden_states": torch.randn(1, 4096, 64, dtype=dtype),
            "encoder_hidden_states": torch.randn(1, 256, 4096, dtype=dtype),
            "pooled_projections": torch.randn(1, 768, dtype=dtype),
            "timestep": torch.tensor([0.5]),
            "img_ids": ids.flatten(0, 1),
            "txt_ids": torch.zeros(256, 3),
        }
    return model.to(dtype), call, 4096, 256


def wan(layers: int, dtype: torch.dtype, device: str) -> tuple[Any, dict[str, Any], int, int]:
    """Wan 2.1 1.3B at 480x832: on a GPU 81 frames (32760 tokens), on a CPU 17 frames (7800); 512 text tokens."""
    frames = 21 if device.startswith("cuda") else 5
    with torch.device(device):
        model: Any = WanTransformer3DModel(
            num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=layers
        )
        call = {
            "hidden_states": torch.randn(1, 16, frames, 60, 104, dtype=dtype),
            "encoder_hidden_states": torch.randn(1, 512, 4096, dtype=dtype),
            "timestep": torch.tensor([500]),
        }
    return model.to(dtype), call, frames * 1560, 512


MODELS: dict[str, Callable[..., tuple[Any, dict[str, Any], int, int]]] = {"sd3": sd3, "flux": flux, "wan": wan}


#: The ratios to stay below: seconds, bytes.
TARGET = {"sd3": (1.03, 1.02), "flux": (1.03, 1.02), "wan": (1.02, 1.02)}


def dense_mask(
    frame: Frame,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    active: bool = True,
    record: Any = None,
    text_first: bool = False,
    **_: Any,
) -> Tensor:
    """VSF the way of the public code: flipped copies of keys and values, one call, one dense [L, L + N] mask."""
    n, p, length = frame.n_neg, frame.n_pos, q.shape[2]
    image = slice(n + p, length) if text_first else slice(0, length - n - p)
    negative = slice(0, n) if text_first else slice(length - n, length)
    positive = slice(n, n + p) if text_first else slice(length - n - p, length - n)
    alpha, beta = float(frame.knob["scale"][0]), float(frame.knob["offset"][0])
    bias = q.new_zeros(length, length + n)
    bias[image, negative] = bias[positive, negative] = bias[negative, positive] = -torch.inf
    bias[positive, length:] = bias[negative, length:] = -torch.inf
    bias[image, length:] = -beta
    k = torch.cat([k, k[:, :, negative]], 2)
    v = torch.cat([v, -alpha * v[:, :, negative]], 2)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, bias)


def dense_cross_mask(frame: Frame, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *_: Any, **__: Any) -> Tensor:
    """The same for cross attention: values flipped where they are, one call, one dense [S, P + N] mask."""
    p, alpha, beta = frame.n_pos, float(frame.knob["scale"][0]), float(frame.knob["offset"][0])
    bias = q.new_zeros(q.shape[2], k.shape[2])
    bias[:, p:] = -beta
    v = torch.cat([v[:, :, :p], -alpha * v[:, :, p:]], 2)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, bias)


@contextlib.contextmanager
def public_code() -> Iterator[None]:
    """Put the dense masks in the place of the merge."""
    saved = vsf.plan.joint_attention, vsf.plan.cross_attention
    vsf.plan.joint_attention, vsf.plan.cross_attention = dense_mask, dense_cross_mask  # type: ignore[assignment]
    try:
        yield
    finally:
        vsf.plan.joint_attention, vsf.plan.cross_attention = saved


def peak_bytes(run: Callable[[], Any], device: str) -> int:
    """Most bytes held at a time by one run beyond what was held before it."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as prof:
        run()
    held = peak = 0
    profiler: Any = prof.profiler
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def seconds(run: Callable[[], Any], device: str) -> float:
    """Wall seconds of one run."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def measure(
    name: str, layers: int, rounds: int, pairs: int, dtype: torch.dtype, device: str, methods: list[str]
) -> dict[str, Any]:
    """All methods on one model, in turns."""
    torch.manual_seed(0)
    model, call, image, text = MODELS[name](layers, dtype, device)
    short = [torch.randn(NEGATIVE, 4096, dtype=dtype, device=device)]
    padded = [torch.randn(text, 4096, dtype=dtype, device=device)]  # NAG, NASA and CFG take it padded

    def forward() -> Any:
        return model(**call, return_dict=False)

    def guided(method: Any, embeds: Any) -> Callable[[], Any]:
        def run() -> None:
            with negative_guidance(model, method, negative_prompt_embeds=embeds):
                forward()

        return run

    def dense() -> None:
        with public_code():
            guided(VSF(), short)()

    runs: dict[str, Callable[[], Any]] = {
        "none": forward,
        "VSF": guided(VSF(), short),
        "VSF, normalize": guided(VSF(normalize=1.0), short),
        "NAG": guided(NAG(), padded),
        "NASA": guided(NASA(), padded),
        "CFG": lambda: (forward(), forward()),
        "VSF, dense mask": dense,
    }
    runs = {m: run for m, run in runs.items() if m == "none" or not methods or m in methods}
    for run in runs.values():  # the first run of each warms up
        run()
    order = list(runs)
    times: dict[str, list[float]] = {m: [] for m in runs}
    for turn in range(rounds):
        for method in order[turn % len(order) :] + order[: turn % len(order)]:
            times[method].append(seconds(runs[method], device))
    ratios = {m: [t / n for t, n in zip(times[m], times["none"], strict=True)] for m in runs}
    for turn in range(pairs if "VSF" in runs else 0):
        pair = {m: seconds(runs[m], device) for m in (("none", "VSF"), ("VSF", "none"))[turn % 2]}
        ratios["VSF"].append(pair["VSF"] / pair["none"])
        for method, spent in pair.items():
            times[method].append(spent)
    peaks = {m: peak_bytes(run, device) for m, run in runs.items()}
    rows = {
        method: {
            "seconds": statistics.median(times[method]),
            "ratio": statistics.median(ratios[method]),
            "quartiles": quartiles(ratios[method]),
            "range": [min(ratios[method]), max(ratios[method])],
            "runs": len(ratios[method]),
            "peak_memory_ratio": peaks[method] / peaks["none"],
        }
        for method in runs
    }
    return {"model": name, "about": MODELS[name].__doc__, "layers": layers, "image_tokens": image, "text_tokens": text,
            "negative_tokens": NEGATIVE, "dtype": str(dtype).removeprefix("torch."), "rounds": rounds, "pairs": pairs,
            "kernel": kernel_name(device, dtype, 64 if name == "sd3" else 128), "rows": rows}  # fmt: skip


def quartiles(values: list[float]) -> list[float]:
    """First and third quartile, between which half of the values lie."""
    if len(values) < 2:
        return [values[0], values[0]]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def machine(device: str) -> str:
    """The machine in words."""
    import diffusers

    name = torch.cuda.get_device_name() if device.startswith("cuda") else _cpu()
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, Python {platform.python_version()}"
    return f"{name}, {torch.get_num_threads()} threads, {versions}"


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def markdown(results: list[dict[str, Any]], where: str) -> str:
    """The results as a page."""
    lines = ["# What guidance costs", "",
             f"One model forward, guided over unguided, in one run. Machine: {where}.",
             "Regenerate with `python benchmarks/overhead.py --markdown docs/performance.md`.", "",
             "## VSF against its targets", "",
             "| model | time ratio: median (middle half) | target | peak memory ratio | target |", "|---|---|---|---|---|"]  # fmt: skip  # noqa: E501
    for r in results:
        if (x := r["rows"].get("VSF")) is not None:
            time, memory = TARGET[r["model"]]
            lines.append(
                f"| {r['model']} | {_ratio(x)} | {time:.2f}: {_verdict(x['ratio'], time)} "
                f"| {x['peak_memory_ratio']:.3f} | {memory:.2f}: {_verdict(x['peak_memory_ratio'], memory)} |"
            )
    for r in results:
        lines += ["", f"## {r['model']}: {r['about']}", "",
                  f"{r['layers']} layer(s), {r['dtype']}, {r['image_tokens']} image + {r['text_tokens']} text + "
                  f"{r['negative_tokens']} negative tokens (NAG, NASA and CFG: padded to {r['text_tokens']}), "
                  f"{r['rounds']} rounds, {r['pairs']} pairs of VSF and none, kernel: {r['kernel']}", "",
                  "| method | seconds (median) | time ratio: median (middle half; all) | peak memory ratio |",
                  "|---|---|---|---|"]  # fmt: skip
        lines += [
            f"| {m} | {x['seconds']:.3f} | {_ratio(x, whole=True)} | {x['peak_memory_ratio']:.3f} |"
            for m, x in r["rows"].items()
        ]
    return "\n".join([*lines, ""])


def _ratio(row: dict[str, Any], whole: bool = False) -> str:
    if row["range"] == [1.0, 1.0]:
        return "1"
    spread = [row["quartiles"], row["range"]] if whole else [row["quartiles"]]
    return f"{row['ratio']:.3f} ({'; '.join(f'{low:.3f}-{high:.3f}' for low, high in spread)})"


def _verdict(value: float, target: float) -> str:
    return "met" if value <= target else "missed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=[], help="only these, beside none")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="runs of every method")
    parser.add_argument("--pairs", type=int, default=10, help="further runs of none and VSF side by side")
    parser.add_argument("--dtype", choices=["bfloat16", "float32", "float16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    if args.rounds < 1 or args.pairs < 0:
        parser.error("--rounds must be 1 or more and --pairs 0 or more")
    dtype = getattr(torch, args.dtype)
    results = []
    for name in args.models:
        start = time.perf_counter()
        results.append(measure(name, args.layers, args.rounds, args.pairs, dtype, args.device, args.methods))
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    page = markdown(results, machine(args.device))
    print(page)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(args.device), "results": results}, indent=1))
    if args.markdown:
        text = args.markdown.read_text() if args.markdown.exists() else ""
        # What stands below this line in the page is written by hand and stays.
        notes = text[text.index("## Notes") :] if "## Notes" in text else ""
        args.markdown.write_text(page + ("\n" + notes if notes else ""))


if __name__ == "__main__":
    main()
