from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AllegroPipeline, AutoencoderKLAllegro, DPMSolverMultistepScheduler

import tiny_pipelines as tiny
from specs import allegro
from tiny_videos import VideoContract
from vsf.sizes import sizes_of

# In the scheduler, with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def vae() -> AutoencoderKLAllegro:
    return AutoencoderKLAllegro(
        latent_channels=4, down_block_types=("AllegroDownBlock3D",) * 2, up_block_types=("AllegroUpBlock3D",) * 2,
        block_out_channels=(8, 8), temporal_downsample_blocks=(True, False), temporal_upsample_blocks=(False, True),
        layers_per_block=1, norm_num_groups=4, temporal_compression_ratio=2, sample_size=32,
    ).eval()  # fmt: skip


class TestAllegro(VideoContract):
    call = {"guidance_scale": 1.0, "clean_caption": False}
    tokens = 4
    cli = None  # the autoencoder decodes in tiles of the real model's size alone

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        made: Any = AllegroPipeline
        stock = made(
            tiny.tokenizer("t5"), tiny.t5(), vae(), allegro.build(torch.float32), DPMSolverMultistepScheduler()
        )
        return tiny.saved(stock, tmp_path_factory.mktemp("allegro"))

    def draw(
        self, pipe: Any, prompt: Any = "a red bicycle", seeds: tuple[int, ...] = (0,), **kwargs: Any
    ) -> torch.Tensor:
        """The pipeline ignores `num_videos_per_prompt`."""
        n = kwargs.pop("num_images_per_prompt", 1)
        prompt = prompt if n == 1 else [text for text in prompt for _ in range(n)]
        return super().draw(pipe, prompt, seeds, **kwargs)

    def test_the_sizes_it_takes_are_known(self, pipe: Any) -> None:
        """From the latents, since tiny ones cannot be decoded."""
        sizes = sizes_of(pipe)
        assert sizes.multiple == 8
        for width, height in ((32, 40), (40, 32)):
            sizes.check((width, height))
            assert self.draw(pipe, width=width, height=height).shape[-2:] == (height // 2, width // 2)
        with pytest.raises(ValueError, match="divisible by 8"):
            self.draw(pipe, width=36)
