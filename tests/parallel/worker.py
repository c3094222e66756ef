"""One of two processes that share a model: `worker.py RANK FOLDER`. Writes what it drew to FOLDER/RANK.safetensors, and what
was refused to FOLDER/RANK.json.

Beside them the same without parallelism, computed here as well, so that the tests compare within a process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import diffusers.hooks.tensor_parallel as tensor_parallel
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, TensorParallelConfig
from diffusers.models.attention_dispatch import attention_backend
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh

from specs import flux, ltx, ltx2, qwen_image, wan
from vsf import NAG, NASA, VSF, negative_guidance
from vsf.arch import family_of

F64 = torch.float64
METHODS: dict[str, Any] = {
    "vsf": VSF(3.5, 0.1), "normalized": VSF(4.0, 0.1, normalize=1.0), "upstream": VSF(3.3, 0.2, "upstream"),
    "nasa": NASA(0.4), "nag": NAG(4.0, 1.2, 0.5),
}  # fmt: skip


@torch.no_grad()
def draw(spec: Any, model: Any, method: Any = None, record: bool = False) -> torch.Tensor:
    call, g = spec.inputs(2, 6, F64), torch.Generator().manual_seed(2)
    if method is None:
        return model(**call)[0]
    given = [torch.randn(n, spec.width, generator=g) for n in (4, 3)]
    given = [spec.padded(n) if method.negative == "padded" else n for n in given]
    with negative_guidance(model, method, negative_prompt_embeds=given, record=record):
        return model(**call)[0]


def main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.accelerator.device_count = lambda: 1  # diffusers divides by it, also on a CPU
    out: dict[str, torch.Tensor] = {}
    said: dict[str, str] = {}

    def attempt(name: str, *args: Any, **kwargs: Any) -> None:
        try:
            draw(*args, **kwargs)
        except ValueError as error:
            said[name] = str(error)

    def both(name: str, spec: Any, enable: Any, methods: Any) -> Any:
        alone, shared = spec.build(F64), spec.build(F64)
        enable(shared)
        family: Any = family_of(shared)
        family.sites(shared)[-1].to_q.register_forward_hook(
            lambda *seen: out.update({f"{name}/queries": torch.tensor(seen[2].shape)})
        )
        for label in (None, *methods):
            method = None if label is None else METHODS[label]
            out[f"{name}/{label}/alone"] = draw(spec, alone, method).contiguous()
            out[f"{name}/{label}/shared"] = draw(spec, shared, method).contiguous()
        return shared

    wan_spec, i2v_spec = ({s.name: s for s in wan.SPECS}[name] for name in ("wan", "wan-i2v"))
    context = ContextParallelConfig(
        ulysses_degree=2, mesh=init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
    )
    with attention_backend("native"):
        cross = both("wan", wan_spec, lambda m: m.enable_parallelism(config=context), METHODS)
        both("wan-i2v", i2v_spec, lambda m: m.enable_parallelism(config=context), ["vsf", "nag"])
        attempt("context, record", wan_spec, cross, VSF(), record=True)
        for spec in (ltx.SPECS[0], ltx2.SPECS[0], qwen_image.SPECS[0]):
            shared = spec.build(F64)
            shared.enable_parallelism(config=context)
            attempt(f"context, {spec.name}", spec, shared, VSF())

    # Diffusers has tensor parallelism on accelerators only; what it does there is torch's, which runs here, too.
    tensor_parallel._SUPPORTED_TP_DEVICES = ("cpu",)
    tensors = TensorParallelConfig(mesh=init_device_mesh("cpu", (2,)))
    per_head = [label for label in METHODS if label != "nag"]
    for spec in (flux.SPECS[0], qwen_image.SPECS[0]):
        joint = both(f"tensor, {spec.name}", spec, lambda m: m.enable_parallelism(config=tensors), per_head)
        attempt(f"tensor, {spec.name}, nag", spec, joint, NAG())
        attempt(f"tensor, {spec.name}, record", spec, joint, VSF(), record=True)
    save_file(out, folder / f"{rank}.safetensors")
    (folder / f"{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
