from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    ZImageControlNetInpaintPipeline,
    ZImageControlNetModel,
    ZImageControlNetPipeline,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
    ZImageOmniPipeline,
    ZImagePipeline,
)
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

import tiny_pipelines as tiny
from closeness import differs, rounding, same
from specs import z_image
from test_contract import run
from vsf import VSF, negative_guidance


def text_encoder() -> Qwen3Model:
    config = Qwen3Config(
        vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return Qwen3Model(config).eval()


def stock(kind: Any = ZImagePipeline, **more: Any) -> Any:
    torch.manual_seed(0)
    model = z_image.build(torch.float32)
    return kind(tiny.scheduler(), tiny.vae(4), text_encoder(), tiny.tokenizer("qwen"), model, **more)


class TestZImage(tiny.PipelineContract):
    call = {"guidance_scale": 0.0, "height": 32, "width": 32}
    grid = (16, 16)
    tokens = 11  # <|im_start|> user \n | wheels , chain | <|im_end|> \n <|im_start|> assistant \n

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(), tmp_path_factory.mktemp("z-image"))

    def draw(self, pipe: Any, prompt: Any = "a red bicycle", *args: Any, **kwargs: Any) -> Tensor:
        # The pipeline writes its chat template into the list it is given.
        return super().draw(pipe, list(prompt) if isinstance(prompt, list) else prompt, *args, **kwargs)


#: 64 image tokens; fewer would be padded, and their pads stay at position 0 when the image's own position moves.
START: dict[str, Any] = {"guidance_scale": 0.0, "image": tiny.picture()}


class TestZImageImg2Img(tiny.ShortContract):
    call = START | {"strength": 1.0}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(ZImageImg2ImgPipeline), tmp_path_factory.mktemp("z-image-img2img"))


class TestZImageInpaint(tiny.ShortContract):
    call = START | {"mask_image": tiny.left_half(), "strength": 1.0}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(ZImageInpaintPipeline), tmp_path_factory.mktemp("z-image-inpaint"))


def controlnet(channels: int, refiner: Any) -> ZImageControlNetModel:
    torch.manual_seed(1)
    made = ZImageControlNetModel(
        control_layers_places=[0, 2], control_refiner_layers_places=[0, 1], control_in_dim=channels, dim=32,
        add_control_noise_refiner=refiner, n_refiner_layers=2, n_heads=2, n_kv_heads=2,
    )  # fmt: skip
    return tiny.noisy(made)


class TestZImageControlNet(tiny.ShortContract):
    """The control net refines the caption with layers that it shares with the transformer."""

    call = {"guidance_scale": 0.0, "control_image": tiny.picture()}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls) -> Any:
        made = stock(ZImageControlNetPipeline, controlnet=controlnet(4, None))
        made.set_progress_bar_config(disable=True)
        return made

    def stock_negative(self, pipe: Any, text: str) -> Tensor:
        """As in a guided run the control net sees the prompt, and what it adds to a caption's tokens is not for the
        negative's."""
        seen: list[Any] = []

        def keep(_: Any, args: tuple[Any, ...]) -> None:
            seen.append(args[2])

        def put(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (*args[:2], seen[0], *args[3:])

        def image_alone(_: Any, args: Any, out: dict[int, Tensor]) -> dict[int, Tensor]:
            return {
                block: residual.index_fill(1, torch.arange(64, residual.shape[1]), 0)
                for block, residual in out.items()
            }

        handle = pipe.controlnet.register_forward_pre_hook(keep)
        self.draw(pipe)
        handle.remove()
        handles = [pipe.controlnet.register_forward_pre_hook(put), pipe.controlnet.register_forward_hook(image_alone)]
        out = self.draw(pipe, text)
        for handle in handles:
            handle.remove()
        return out


class TestZImageControlNetInpaint(TestZImageControlNet):
    call = TestZImageControlNet.call | {"image": tiny.picture(), "mask_image": tiny.left_half()}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls) -> Any:
        made = stock(ZImageControlNetInpaintPipeline, controlnet=controlnet(9, "control_noise_refiner"))
        made.set_progress_bar_config(disable=True)
        return made


def test_residuals_of_a_controlnet_meet_only_image_and_prompt() -> None:
    model, call = z_image.build(torch.float64), z_image.inputs(1, 5, torch.float64)
    residual = {0: torch.randn(1, 64, 32, dtype=torch.float64)}  # 9 image and 5 text tokens, both padded to 32
    plain, bound = run(model, call | {"controlnet_block_samples": residual}), rounding(model, torch.float64)
    given = [torch.randn(3, 16)]
    with negative_guidance(model, VSF(scale=3.0), negative_prompt_embeds=given):
        differs(run(model, call | {"controlnet_block_samples": residual}), plain, bound)
    with negative_guidance(model, VSF(blocks=()), negative_prompt_embeds=given):
        same(run(model, call | {"controlnet_block_samples": residual}), plain, bound)


def test_nested_inputs_are_refused() -> None:
    model, call = z_image.build(torch.float32), z_image.inputs(1, 5, torch.float32)
    nested = call | {"x": [call["x"]], "cap_feats": [call["cap_feats"]]}
    with (
        pytest.raises(ValueError, match="a list of tensors, one per sample"),
        negative_guidance(model, VSF(), negative_prompt_embeds=[torch.randn(3, 16)]),
    ):
        run(model, nested)


def test_omni_is_refused_in_a_sentence() -> None:
    """Its prompts are lists of pieces, one before and one after each reference picture."""
    pipe = stock(ZImageOmniPipeline, siglip=None, siglip_processor=None)
    with (
        pytest.raises(ValueError, match="ZImageOmniPipeline encodes a prompt as several pieces around its pictures"),
        negative_guidance(pipe, VSF(3.0), "wheels"),
    ):
        pass
