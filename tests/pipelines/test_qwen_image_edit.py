"""Editing pictures: their tokens stand in the prompt and beside the picture that is drawn."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from diffusers import (
    QwenImageEditInpaintPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageLayeredPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
    pipeline_qwenimage_layered,
)
from PIL import Image
from test_qwen_image import text_encoder, vae
from transformers import BatchFeature, Qwen2VLImageProcessor

import tiny_pipelines as tiny
from closeness import close, differs, rounding
from specs import qwen_image
from test_contract import Swap
from vsf import negative_guidance

PAD = "<|image_pad|>"


class Processor:
    """Stands for Qwen2VLProcessor, which cannot be made without torchvision: its tokenizer and its image processor."""

    def __init__(self) -> None:
        self.tokenizer = tiny.tokenizer("qwen")
        self.tokenizer.add_special_tokens({"additional_special_tokens": ["<|vision_start|>", "<|vision_end|>", PAD]})
        self.image = Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 56})

    def __call__(self, text: list[str], images: Any = None, **given: Any) -> BatchFeature:
        seen: dict[str, Any] = {}
        if images is not None:
            images = images if isinstance(images, list) else [images]
            seen = dict(self.image(images=images * (len(text) if len(images) == 1 else 1), return_tensors="pt"))
            pads = iter(PAD * (int(grid.prod()) // 4) for grid in seen["image_grid_thw"])
            text = ["".join(next(pads) if part == PAD else part for part in _parts(t)) for t in text]
        return BatchFeature({**self.tokenizer(text, **given), **seen})


def _parts(text: str) -> list[str]:
    pieces = text.split(PAD)
    return [part for piece in pieces[:-1] for part in (piece, PAD)] + pieces[-1:]


class TestQwenImageEdit(tiny.ShortContract):
    kind: type = QwenImageEditPipeline
    where: Any = pipeline_qwenimage_edit
    size: Any = (16, 16, None)
    call = {"true_cfg_scale": 1.0, "image": Image.effect_noise((16, 16), 80).convert("RGB")}
    limit = 96

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(self.where, "calculate_dimensions", lambda area, ratio: self.size)  # a million pixels

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls) -> Any:
        torch.manual_seed(0)
        encoder, processor = text_encoder(), Processor()
        ids = processor.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>", PAD])
        encoder.config.vision_start_token_id, encoder.config.vision_end_token_id, encoder.config.image_token_id = ids
        made = cls.kind(
            tiny.scheduler(),
            vae(),
            encoder,
            processor.tokenizer,
            processor,
            qwen_image.build(torch.float32, edit=True),
        )
        prefix = made.prompt_template_encode.split("{}")[0].replace("<|vision_start|><|image_pad|><|vision_end|>", "")
        made.prompt_template_encode_start_idx = len(processor.tokenizer(prefix).input_ids)
        made.set_progress_bar_config(disable=True)
        return made

    def test_swapping_the_branches_draws_the_negative_prompt(self, pipe: Any) -> None:
        """The negative is encoded together with the picture here, as the stock pipeline encodes every prompt; left to
        `negative_guidance` it is encoded alone."""
        wanted, seen = self.draw(pipe, "wheels, chain"), []
        encode = pipe.encode_prompt

        def keep(*args: Any, **kwargs: Any) -> Any:
            seen.append(encode(*args, **kwargs)[0][0].detach())
            return encode(*args, **kwargs)

        pipe.encode_prompt = keep
        try:
            self.draw(pipe, "wheels, chain")
        finally:
            del pipe.encode_prompt
        with negative_guidance(pipe, Swap(), negative_prompt_embeds=[seen[0]]):
            swapped = self.draw(pipe)
        close(swapped, wanted, self.draw(pipe), rounding(pipe, passes=2))

    def test_the_picture_counts(self, pipe: Any) -> None:
        other: dict[str, Any] = {"image": self.two() if isinstance(self.call["image"], list) else self.two()[0]}
        with negative_guidance(pipe, tiny.VSF(3.0), "wheels, chain"):
            ours, theirs = self.draw(pipe), self.draw(pipe, **other)
        differs(ours, theirs, rounding(pipe, passes=2))

    @staticmethod
    def two() -> list[Image.Image]:
        return [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]


class TestQwenImageEditPlus(TestQwenImageEdit):
    """Several pictures, each with a name in the prompt."""

    kind = QwenImageEditPlusPipeline
    where = pipeline_qwenimage_edit_plus
    size = (16, 16)
    call = {"true_cfg_scale": 1.0, "image": [Image.effect_noise((16, 16), s).convert("RGB") for s in (40, 80)]}


class TestQwenImageEditInpaint(TestQwenImageEdit):
    kind = QwenImageEditInpaintPipeline
    where = pipeline_qwenimage_edit_inpaint
    call = TestQwenImageEdit.call | {"mask_image": tiny.left_half(), "strength": 1.0}


class TestQwenImageLayered(tiny.ShortContract):
    """A picture is taken apart into layers with an alpha channel; each is image tokens of its own. The prompt, which
    describes the whole picture, is encoded without it."""

    call = {"true_cfg_scale": 1.0, "image": Image.effect_noise((16, 16), 80).convert("RGBA"), "layers": 2}
    pixels: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pipeline_qwenimage_layered, "calculate_dimensions", lambda area, ratio: (16, 16))

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls) -> Any:
        torch.manual_seed(0)
        encoder, channels = text_encoder(), 8  # a picture of 4 would be taken for latents
        processor: Any = Processor()
        config = dict(qwen_image.build(torch.float32, layered=True).config)
        model: Any = QwenImageTransformer2DModel.from_config(
            config | {"in_channels": 4 * channels, "out_channels": channels}
        )
        made = QwenImageLayeredPipeline(
            tiny.scheduler(), vae(channels, 4), encoder, processor.tokenizer, processor, model.eval()
        )
        made.set_progress_bar_config(disable=True)
        return made

    def draw(self, pipe: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        kept: list[torch.Tensor] = []

        def keep(pipe: Any, step: int, time: Any, now: dict[str, Any]) -> dict[str, Any]:
            kept.append(now["latents"])
            return {}

        # Asked for latents, the pipeline of diffusers 0.42.1 fails.
        super().draw(pipe, *args, output_type="pt", callback_on_step_end=keep, **kwargs)
        return kept[-1]
