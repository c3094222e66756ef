from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, DreamLiteMobilePipeline, DreamLitePipeline
from PIL import Image
from test_qwen_image_edit import PAD, Processor
from transformers import BatchFeature, Qwen3VLConfig, Qwen3VLForConditionalGeneration

import tiny_pipelines as tiny
from closeness import differs, rounding, same
from specs import dreamlite
from test_contract import fingerprint, untouched
from vsf import VSF, negative_guidance
from vsf.sizes import sizes_of


class Pictures(Processor):
    """And says which tokens are a picture's."""

    def __call__(self, *args: Any, **given: Any) -> BatchFeature:
        made = super().__call__(*args, **given)
        made["mm_token_type_ids"] = (made["input_ids"] == self.tokenizer.convert_tokens_to_ids(PAD)).int()
        return made


def text_encoder(processor: Processor) -> Any:
    ids = {name: processor.tokenizer.convert_tokens_to_ids(token) for name, token in (
        ("image_token_id", PAD), ("vision_start_token_id", "<|vision_start|>"), ("vision_end_token_id", "<|vision_end|>"),
    )}  # fmt: skip
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": 128, "hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024, "initializer_range": 0.3,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 24, "patch_size": 14,
            "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
        },
        **ids,
    )  # fmt: skip
    return Qwen3VLForConditionalGeneration(config).eval()


def stock(kind: Any = DreamLiteMobilePipeline) -> Any:
    torch.manual_seed(0)
    processor = Pictures()
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=4,
    ).eval()  # fmt: skip
    scheduler = tiny.scheduler(use_dynamic_shifting=True)
    pipe = kind(text_encoder(processor), processor.tokenizer, None, vae, dreamlite.build(torch.float32), scheduler)
    pipe.processor = processor
    pipe.set_progress_bar_config(disable=True)
    return pipe


class TestDreamLite(tiny.PipelineContract):
    cfg = {}
    cli = None  # it takes no list of prompts
    tokens = 8  # with the template's last five, which the pipeline keeps

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls) -> Any:
        return stock()

    def stock_negative(self, pipe: Any, text: str) -> torch.Tensor:
        """A negative has no "[Generate]: " in front of it, in the pipeline that takes one."""
        encode = pipe.encode_prompt
        pipe.encode_prompt = lambda mode, prompts, *args, **kwargs: encode(mode, [text], *args, **kwargs)
        try:
            return self.draw(pipe)
        finally:
            del pipe.encode_prompt

    def test_maps_where_the_negative_acts(self, pipe: Any) -> None:
        with negative_guidance(pipe, VSF(3.0), "wheels, chain", record=True) as guided:
            self.draw(pipe)
        assert guided.suppression().steps == [0, 1]
        with pytest.raises(ValueError, match="no grid"):
            guided.suppression().map()

    def test_batch_with_different_negatives(self, pipe: Any) -> None:
        plain = self.draw(pipe, seeds=(1, 2), num_images_per_prompt=2)
        with negative_guidance(pipe, VSF(3.0), ["wheels, chain", None]):
            one = self.draw(pipe, seeds=(1, 2), num_images_per_prompt=2)
        with negative_guidance(pipe, VSF(3.0), ["wheels, chain", "wheels"]):
            two = self.draw(pipe, seeds=(1, 2), num_images_per_prompt=2)
        bound = rounding(pipe, passes=2)
        same(one[:1], two[:1], bound)
        same(one[1:], plain[1:], bound)
        differs(one[:1], plain[:1], bound)
        differs(two[1:], plain[1:], bound)

    def test_the_sizes_it_takes_are_known(self, pipe: Any) -> None:
        sizes = sizes_of(pipe)
        for size in ((16, 24), (24, 16)):
            sizes.check(size)
            shown = self.draw(pipe, width=size[0], height=size[1], output_type="np")
            assert shown.shape[1:3] == size[::-1]
        with pytest.raises(ValueError, match="takes multiples of 8"):
            sizes.check((20, 16))

    def test_a_picture_that_is_edited(self, pipe: Any) -> None:
        picture = Image.new("RGB", (16, 16), "red")
        plain = self.draw(pipe, image=picture)
        with negative_guidance(pipe, VSF(3.0), "wheels, chain"):
            guided = self.draw(pipe, image=picture)
        differs(guided, plain, rounding(pipe, passes=2))
        assert torch.equal(self.draw(pipe, image=picture), plain) and not torch.equal(plain, self.draw(pipe))

    def test_the_pipeline_with_guidance_of_its_own_is_refused(self) -> None:
        pipe = stock(DreamLitePipeline)
        before, plain = fingerprint(pipe.unet), self.draw(pipe)
        refused = pytest.raises(
            ValueError, match="DreamLitePipeline runs classifier-free guidance .* cannot be switched off"
        )
        with refused, negative_guidance(pipe, VSF(), "wheels"):
            self.draw(pipe)
        assert untouched(pipe.unet, before) and torch.equal(self.draw(pipe), plain)
