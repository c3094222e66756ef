"""The pipeline contract for video pipelines."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import tiny_pipelines as tiny
from vsf import VSF, negative_guidance


class ShortVideoContract(tiny.ShortContract):
    pixels: ClassVar[dict[str, Any]] = {"height": 32, "width": 32, "num_frames": 5}

    def draw(self, pipe: Any, prompt: Any = "a red bicycle", seeds: tuple[int, ...] = (0,), **kwargs: Any) -> Tensor:
        if "num_images_per_prompt" in kwargs:
            kwargs["num_videos_per_prompt"] = kwargs.pop("num_images_per_prompt")
        given: dict[str, Any] = {
            "prompt": prompt, "num_inference_steps": 2, "output_type": "latent",
            "generator": [torch.Generator().manual_seed(s) for s in seeds],
        }  # fmt: skip
        if self.limit is not None:
            given["max_sequence_length"] = self.limit
        return pipe(**given | self.pixels | self.call | kwargs).frames


class VideoContract(ShortVideoContract, tiny.PipelineContract):
    cli: ClassVar[list[str] | None] = ["--size", "32", "--frames", "5"]

    def test_maps_where_the_negative_acts(self, pipe: Any) -> None:
        with negative_guidance(pipe, VSF(3.0), "wheels, chain", record=True) as guided:
            self.draw(pipe)
        suppression = guided.suppression()
        assert suppression.steps == [0, 1]
        if suppression.grid is None:  # packed tokens
            with pytest.raises(ValueError, match="no grid"):
                suppression.map()
        else:
            tokens = next(iter(suppression.share.values()))
            shape, map_ = suppression.grid, suppression.map()
            assert len(shape) == 3 and map_.shape[:2] == (len(tokens), shape[0])
            assert map_[0].numel() == tokens.shape[1] and 0 <= float(map_.min()) < float(map_.max()) <= 1
