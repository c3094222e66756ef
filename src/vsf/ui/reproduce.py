"""The command line and the Python that draw a picture of the page again, to the bit on the same machine."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

from ..draw import Request
from ..guidance import Guidance, blocks_text, knobs
from ..loading import DEMO
from ..prompt import as_typed
from .model import Options, PageModel

__all__ = ["command_line", "python_code"]


def _values(guidance: Guidance) -> dict[str, Any]:
    """The knobs that differ from the defaults of their class."""
    own = {k: v for k, spec in knobs(guidance).items() if (v := getattr(guidance, k)) != spec.default}
    return own | ({} if guidance.blocks is None else {"blocks": guidance.blocks})


def _word(value: Any) -> str:
    return "none" if value is None else repr(value) if isinstance(value, float) else str(value)


def _option(name: str, value: str) -> str:
    """`--name value`, in the one form that also works for a value that begins with a dash."""
    return f"--{name}={shlex.quote(value)}" if value.startswith("-") else f"--{name} {shlex.quote(value)}"


def command_line(request: Request, options: Options, model: PageModel) -> str:
    """`vsf generate ...`. Every knob of the method is written out, so that no default can change it."""
    prompt = as_typed(request.prompt)
    words = [f"vsf generate {shlex.quote(prompt)}"] if not prompt.startswith("-") else ["vsf generate"]
    lines = [" ".join(words)]
    if request.guided:
        guidance = request.guidance
        lines.append(f"{_option('negative', request.negative or '')} --method {guidance.label}")
        if own := [_option(name, _word(getattr(guidance, name))) for name in knobs(guidance)]:
            own += [f"--blocks {blocks_text(guidance.blocks)}"] if guidance.blocks is not None else []
            lines.append(" ".join(own))
    frames = request.extra.get("num_frames")
    run = [f"--steps {request.steps} --seed {request.seed}"]
    run += [f"--n {request.n}"] if request.n > 1 else []
    run += [f"--size {request.size[0]}x{request.size[1]}"] if request.size else []
    run += [f"--frames {frames}"] if frames is not None else []
    run += [f"--guidance-scale {request.guidance_scale:g}"] if request.guidance_scale != model.guidance_scale else []
    lines.append(" ".join(run))
    if options.model != DEMO:
        own = [_option("model", options.model)]
        own += [_option("model-path", options.model_path)] if options.model_path else []
        own += ["--no-lora"] if options.no_lora else []
        own += ["--download"] if options.download else []
        lines.append(" ".join(own))
    if options.device or options.dtype:
        pairs = (("device", options.device), ("dtype", options.dtype))
        lines.append(" ".join(_option(k, v) for k, v in pairs if v))
    if prompt.startswith("-"):
        lines.append(f"-- {shlex.quote(prompt)}")
    return " \\\n  ".join(lines)


def _python(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def _call(name: str, values: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{k}={_python(v)}' for k, v in values.items())})"


def python_code(request: Request, options: Options, model: PageModel) -> str:
    """The same with the library: a stock pipeline inside `negative_guidance`."""
    many, preset = request.n > 1, options.preset
    call: dict[str, Any] = {"num_inference_steps": request.steps, "guidance_scale": request.guidance_scale}
    call |= request.extra
    if request.size:
        call |= {"width": request.size[0], "height": request.size[1]}
    if model.record is not None:
        call = model.record.completed(call)
    length = call.get("max_sequence_length")
    if model.video:
        call["output_type"] = "pil"
    where = options.model_path or (preset.checkpoint if preset else options.model)
    loading = [_python(where)]
    loading += [f"device={_python(options.device)}"] if options.device else []
    loading += [f"dtype=torch.{options.dtype}"] if options.dtype else []
    loading += ["download=True"] if options.download else []
    label = type(request.guidance).__name__
    lines = ["import torch", ""]
    lines += (
        [f"from vsf import {', '.join(sorted([label, 'negative_guidance'], key=str.lower))}"] if request.guided else []
    )
    lines += ["from vsf import PRESETS"] if preset else []
    lines += ["from vsf.loading import load_model", "", f"pipe = load_model({', '.join(loading)})"]
    if preset:
        lines.append(
            f"PRESETS[{preset.name!r}].prepare(pipe, loras={not options.no_lora}, download={options.download})"
        )
    if many:
        lines.append(f"seeds = range({request.seed}, {request.seed + request.n})")
        lines.append('noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]')
    else:
        lines.append(f'noise = torch.Generator("cpu").manual_seed({request.seed})')
    lines.append(f"settings = {_call('dict', call)}")
    prompt = f"[{request.prompt!r}] * {request.n}" if many else repr(request.prompt)
    result = "frames" if model.video else "images"
    draw = f"{result} = pipe(prompt={prompt}, generator=noise, **settings).{result}"
    if request.guided:
        guidance = request.guidance
        lines.append(f"guidance = {_call(label, _values(guidance))}")
        # Methods that take the negative padded pad it to this length.
        pad = f", max_sequence_length={length}" if length is not None and guidance.label != "cfg" else ""
        lines += [f"with negative_guidance(pipe, guidance, {request.negative!r}{pad}):", f"    {draw}"]
    else:
        lines.append(draw)
    if model.video:
        lines += ["", "from vsf.video import save_video", f'save_video(frames[0], "vsf.gif", {model.fps})']
    elif many:
        lines += ["for seed, image in zip(seeds, images):", '    image.save(f"vsf-{seed}.png")']
    else:
        lines.append('images[0].save("vsf.png")')
    return "\n".join(lines) + "\n"
