"""Perturbed-attention pipelines: every step draws all samples a second time, behind the first, with attention perturbed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    PixArtSigmaPAGPipeline,
    SanaPAGPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLPAGPipeline,
)
from test_sana import gemma
from test_sana import vae as sana_vae
from test_sd3 import stock as sd3
from test_unet import sd, sdxl
from torch import Tensor

import tiny_pipelines as tiny
from closeness import close, differs, rounding, same
from specs import pixart, sana
from test_contract import Swap, fingerprint, untouched
from vsf import VSF, negative_guidance
from vsf.arch import find_models

F32 = torch.float32


def pixart_pipe() -> Any:
    scheduler: Any = DDIMScheduler(clip_sample=False)
    parts = (tiny.tokenizer("t5"), tiny.t5(), tiny.vae(4), pixart.build(F32), scheduler)
    return PixArtSigmaPAGPipeline(*parts)


def sana_pipe() -> Any:
    parts = (tiny.tokenizer("t5"), gemma(), sana_vae(), sana.build(F32), tiny.scheduler())
    return SanaPAGPipeline(*parts, pag_applied_layers="transformer_blocks.0")


PLAIN = {"use_resolution_binning": False, "guidance_scale": 1.0, "max_sequence_length": 16}
PIPES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "sd": (lambda: sd(StableDiffusionPAGPipeline), {"guidance_scale": 0.0}),
    "sdxl": (lambda: sdxl(StableDiffusionXLPAGPipeline), {"guidance_scale": 0.0}),
    "pixart": (pixart_pipe, PLAIN),
    "sana": (sana_pipe, {**PLAIN, "complex_human_instruction": None, "height": 32, "width": 32}),
}


def draw(
    pipe: Any, call: dict[str, Any], prompt: Any = "a red bicycle", seeds: tuple[int, ...] = (1,), **k: Any
) -> Tensor:
    given = {"prompt": prompt, "num_inference_steps": 2, "height": 16, "width": 16, "output_type": "latent"}
    pipe.set_progress_bar_config(disable=True)
    return pipe(**given | call | k, generator=[torch.Generator().manual_seed(s) for s in seeds]).images


@pytest.mark.parametrize("name", list(PIPES))
def test_every_prompt_keeps_its_own_negative(name: str) -> None:
    torch.manual_seed(0)
    pipe, call = PIPES[name][0](), PIPES[name][1]
    prompts, given, seeds = ["a red bicycle", "a blue cup"], ["wheels:2, chain", None], (1, 2)
    limit = call.get("max_sequence_length")
    method = VSF((3.0, 5.0), stop=(1.0, 0.5))

    def guided(negatives: Any, prompt: Any, seeds: tuple[int, ...], method: VSF) -> Tensor:
        with negative_guidance(pipe, method, negatives, max_sequence_length=limit):
            return draw(pipe, call, prompt, seeds)

    plain = draw(pipe, call, prompts, seeds)
    bound = rounding(pipe, passes=2)
    differs(draw(pipe, call, prompts, seeds, pag_scale=0.0), plain, bound)  # or nothing is perturbed
    marks = [(model, fingerprint(model)) for model, _ in find_models(pipe)]
    together = guided(given, prompts, seeds, method)
    alone = guided(given[:1], prompts[:1], seeds[:1], VSF(3.0))
    close(together[:1], alone, plain[:1], bound)
    same(together[1:], plain[1:], bound)
    second = guided([None, "wheels"], prompts, seeds, method)
    same(second[:1], plain[:1], bound)
    only = guided(["wheels"], prompts[1:], seeds[1:], VSF(5.0, stop=0.5))
    close(second[1:], only, plain[1:], bound)
    assert torch.equal(draw(pipe, call, prompts, seeds), plain)
    assert all(untouched(model, before) for model, before in marks)


@pytest.mark.parametrize("name", list(PIPES))
def test_both_halves_are_guided(name: str) -> None:
    torch.manual_seed(0)
    pipe, call = PIPES[name][0](), PIPES[name][1]
    plain = draw(pipe, call)
    if name != "sdxl":  # there the prompt has a pooled embedding beside
        wanted = draw(pipe, call, "wheels, chain")
        with negative_guidance(pipe, Swap(), "wheels, chain", max_sequence_length=call.get("max_sequence_length")):
            close(draw(pipe, call), wanted, plain, rounding(pipe, passes=2))
    with negative_guidance(pipe, VSF(3.0), "wheels, chain", record=True) as guided:
        draw(pipe, call, ["a red bicycle", "a blue cup"], (1, 2))
    assert guided.suppression().map().shape[0] == 2  # of the pictures, not of their perturbed doubles


def test_joint_attention_perturbed_is_refused() -> None:
    pipe, call = sd3(StableDiffusion3PAGPipeline), {"guidance_scale": 0.0, "max_sequence_length": 16}
    refused = pytest.raises(ValueError, match="StableDiffusion3PAGPipeline perturbs the attention.*use pag_scale=0")
    with refused, negative_guidance(pipe, VSF(3.0), "wheels"):
        draw(pipe, call)
    # The pipeline itself leaves its processors on a model when it is interrupted.
    kinds = {type(processor).__name__ for processor in pipe.transformer.attn_processors.values()}
    assert kinds == {"JointAttnProcessor2_0", "PAGJointAttnProcessor2_0"}
    pipe = sd3(StableDiffusion3PAGPipeline)
    with negative_guidance(pipe, VSF(3.0), "wheels"):
        guided, other = (draw(pipe, call, prompt, pag_scale=0.0) for prompt in ("a red bicycle", "wheels"))
    differs(guided, other, rounding(pipe, passes=2))
