"""Step caches of diffusers beside guidance: what they keep, they keep for the guidance they were filled under."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers import hooks
from torch import Tensor

from closeness import close, differs, rounding, same
from composition import METHOD, SPECS, make
from definition import dense
from pipelines import test_wan as wan
from test_contract import negatives, run
from vsf import VSF, negative_guidance

STEPS = 4
#: What the callbacks are told: FasterCache needs two steps outside its range before it may skip.
TIME = [900, 850, 500, 400]


class Clock:
    now = TIME[0]

    def __call__(self) -> int:
        return self.now


def pyramid(model: Any, clock: Clock) -> None:
    kinds = ("spatial", "temporal", "cross")
    every: dict[str, Any] = {f"{kind}_attention_block_skip_range": 2 for kind in kinds}
    every |= {f"{kind}_attention_timestep_skip_range": (0, 1000) for kind in kinds}
    names = ("blocks", "layers", "context_refiner")  # the last: where the negative goes through a second time
    config = hooks.PyramidAttentionBroadcastConfig(
        **every, current_timestep_callback=clock, spatial_attention_block_identifiers=names
    )
    hooks.apply_pyramid_attention_broadcast(model, config)


def faster(model: Any, clock: Clock) -> None:
    config = hooks.FasterCacheConfig(
        spatial_attention_timestep_skip_range=(0, 700), temporal_attention_timestep_skip_range=(0, 700),
        current_timestep_callback=clock, is_guidance_distilled=True, attention_weight_callback=lambda _: 0.5,
    )  # fmt: skip
    hooks.apply_faster_cache(model, config)


def taylor(model: Any, clock: Clock) -> None:
    # With the default patterns, which are those of attention modules in blocks at the top.
    config = hooks.TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=2, taylor_factors_dtype=torch.float64
    )
    hooks.apply_taylorseer_cache(model, config)


def magnitude(model: Any, clock: Clock) -> None:
    config = hooks.MagCacheConfig(
        threshold=1e9, retention_ratio=0.25, num_inference_steps=STEPS, mag_ratios=torch.ones(STEPS)
    )
    hooks.apply_mag_cache(model, config)


def first_block(model: Any, clock: Clock) -> None:
    hooks.apply_first_block_cache(model, hooks.FirstBlockCacheConfig(threshold=1e9))


CACHES: dict[str, Callable[[Any, Clock], None]] = {
    "pyramid": pyramid, "faster": faster, "taylor": taylor, "magnitude": magnitude, "first-block": first_block
}  # fmt: skip
#: Where diffusers 0.42.1 itself can run them and skips something; "flux" and "wan" have more of the first-block cache
#: in test_composition.py.
MODELS = {
    "pyramid": ["flux", "sd3", "qwen", "hunyuan-video", "z-image", "lumina2", "cogview4", "wan", "wan-i2v", "unet", "ltx2"],
    "faster": ["flux", "sd3", "qwen", "hunyuan-video", "wan", "wan-i2v", "sana"],
    "taylor": ["flux", "qwen", "hunyuan-video", "chroma", "ltx2"],
    "magnitude": ["flux", "sd3", "qwen", "hunyuan-video", "cogview4", "wan", "wan-i2v", "ltx", "pixart"],
    "first-block": ["qwen", "hunyuan-video", "cogview4", "wan-i2v", "ltx"],
}  # fmt: skip
BOTH = [(cache, name) for cache, names in MODELS.items() for name in names]


class Cached:
    """A model with a step cache, run step by step."""

    def __init__(self, name: str, cache: str | None) -> None:
        self.name, self.model, self.clock = name, SPECS[name].build(torch.float64), Clock()
        if cache is not None:
            CACHES[cache](self.model, self.clock)

    def plain(self, first: int = 0, last: int = STEPS) -> list[Tensor]:
        out: list[Tensor] = []
        for step in range(first, last):
            self.clock.now, call = TIME[step], make(self.name)()
            for argument in {"hidden_states", "sample", "x"} & set(call):
                x = call[argument]
                call[argument] = [t * (1 + 0.1 * step) for t in x] if isinstance(x, list) else x * (1 + 0.1 * step)
            with self.model.cache_context("cond") if hasattr(self.model, "cache_context") else nullcontext():  # pyright: ignore
                out.append(run(self.model, call))
        return out

    def guided(self, negative: Tensor | None, first: int = 0, last: int = STEPS) -> list[Tensor]:
        with negative_guidance(self.model, METHOD, negative_prompt_embeds=[negative]):
            return self.plain(first, last)


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("cache", "name"), BOTH)
def test_a_cache_keeps_what_the_guided_attention_gave(cache: str, name: str) -> None:
    (negative,) = negatives(SPECS[name], 3)
    out, plain = Cached(name, cache).guided(negative), Cached(name, cache).plain()
    exact = Cached(name, None).guided(negative)
    bound = rounding(SPECS[name].build(torch.float64), torch.float64, STEPS)
    same(out[0], exact[0], bound)
    differs(torch.stack(out), torch.stack(exact), bound)  # or the cache was not used
    with dense():
        for got, wanted, unguided in zip(out, Cached(name, cache).guided(negative), plain, strict=True):
            close(got, wanted, unguided, bound)


@pytest.mark.parametrize(("cache", "name"), BOTH)
def test_a_cache_does_not_outlive_its_guidance(cache: str, name: str) -> None:
    one, other = negatives(SPECS[name], 3, 6)
    fresh, plain = {n: Cached(name, cache).guided(n) for n in (one, other)}, Cached(name, cache).plain()
    assert equal(Cached(name, cache).guided(None), plain)
    used = Cached(name, cache)
    for negative in (one, other, one):  # no reset by hand anywhere: another negative, another length, none
        assert equal(used.guided(negative), fresh[negative])
        assert equal(used.plain(), plain)
    # In the middle of a picture as well, where some caches can only go on: what is kept is computed anew.
    exact = Cached(name, None)
    bound = rounding(exact.model, torch.float64, STEPS)
    assert torch.equal(used.guided(one, 0, 3)[0], fresh[one][0])
    same(used.plain(3)[0], exact.plain(3)[0], bound)
    used.plain(0, 3)
    same(used.guided(other, 3)[0], exact.guided(other, 3)[0], bound)


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_a_cache_for_classifier_free_guidance_is_refused(name: str) -> None:
    model = SPECS[name].build(torch.float64)
    hooks.apply_faster_cache(model, hooks.FasterCacheConfig(current_timestep_callback=Clock()))
    refused = pytest.raises(ValueError, match="FasterCache for classifier-free guidance.*is_guidance_distilled=True")
    with refused, negative_guidance(model, METHOD, negative_prompt_embeds=negatives(SPECS[name], 3)):
        pass


@pytest.mark.parametrize("part", [(0.0, 1.0), (0.3, 0.7)])
def test_sea_cache_over_a_run(part: tuple[float, float]) -> None:
    """It wants to be told of the steps, which the pipeline does; also where guidance stops in the middle."""
    pipe = wan.stock()
    pipe.set_progress_bar_config(disable=True)

    def draw() -> Tensor:
        out: Any = pipe(
            "a red bicycle", num_inference_steps=6, height=32, width=32, num_frames=5, guidance_scale=1.0,
            output_type="latent", max_sequence_length=16, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return out.frames

    def guided() -> Tensor:
        with negative_guidance(pipe, VSF(3.5, start=part[0], stop=part[1]), "wheels, chain"):
            return draw()

    exact, exact_plain = guided(), draw()
    pipe.transformer.enable_cache(hooks.SeaCacheConfig(threshold=1e9))
    plain, out = draw(), guided()
    bound = rounding(pipe, passes=6)
    differs(plain, exact_plain, bound)  # or the cache was not used
    differs(out, exact, bound)
    with dense():
        close(out, guided(), plain, bound)
    assert torch.equal(draw(), plain) and torch.equal(guided(), out)
