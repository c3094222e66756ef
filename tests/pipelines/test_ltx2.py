from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    LTX2ConditionPipeline,
    LTX2ImageToVideoPipeline,
    LTX2Pipeline,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

import tiny_pipelines as tiny
from closeness import close, rounding, same
from composition import pipes
from definition import dense
from specs import ltx2
from tiny_videos import ShortVideoContract, VideoContract
from vsf import CFG, NAG, VSF, negative_guidance
from vsf.arch import find_models


def vae() -> AutoencoderKLLTX2Video:
    return AutoencoderKLLTX2Video(
        latent_channels=8, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
        decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,),
        upsample_factor=(1,), patch_size=1, patch_size_t=1,
    ).eval()  # fmt: skip


def audio_vae() -> AutoencoderKLLTX2Audio:
    return AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
    ).eval()


def vocoder() -> LTX2Vocoder:
    return LTX2Vocoder(
        in_channels=16, hidden_channels=8, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], output_sampling_rate=16000,
    ).eval()  # fmt: skip


def text_encoder() -> Gemma3ForConditionalGeneration:
    config = Gemma3Config(
        text_config={
            "vocab_size": 96, "hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8,
            "num_attention_heads": 2, "num_key_value_heads": 1,
        },
        vision_config={
            "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 8, "patch_size": 4,
        },
        mm_tokens_per_image=4,
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(config).eval()


def connectors() -> LTX2TextConnectors:
    return LTX2TextConnectors(
        caption_channels=24, text_proj_in_factor=3, video_connector_num_attention_heads=3,
        video_connector_attention_head_dim=8, video_connector_num_layers=1, video_connector_num_learnable_registers=8,
        audio_connector_num_attention_heads=3, audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=8, connector_rope_base_seq_len=32,
    ).eval()  # fmt: skip


#: Everything off that needs passes of its own.
ONE_PASS: dict[str, Any] = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0, "stg_scale": 0.0, "audio_stg_scale": 0.0,
    "modality_scale": 1.0, "audio_modality_scale": 1.0, "use_cross_timestep": False}  # fmt: skip


def stock(kind: Any = LTX2Pipeline) -> Any:
    torch.manual_seed(0)
    tokenizer = tiny.tokenizer("t5")
    tokenizer.padding_side = "left"  # Gemma's; some of the pipelines remember it from the beginning
    return kind(
        tiny.scheduler(), vae(), audio_vae(), text_encoder(), tokenizer, connectors(),
        ltx2.build(torch.float32), vocoder(),
    )  # fmt: skip


class TestLTX2(VideoContract):
    call = ONE_PASS
    cfg = {"audio_guidance_scale": 3.0}
    cli = None  # takes the preset: sound has a guidance of its own, which is on by default
    tokens = 4

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(), tmp_path_factory.mktemp("ltx2"))

    def test_unpadded_negative_is_its_real_tokens(self, pipe: Any) -> None:
        """The registers that stand for pads are what real tokens see in the connectors, and come behind them."""
        family = find_models(pipe)[0][1]
        with torch.no_grad():
            short = family.encode(pipe, "wheels, chain", False, 16)
            padded = family.encode(pipe, "wheels, chain", True, 16)
        assert short.shape == (self.tokens, family.width(pipe.transformer)) and len(padded) == 16
        assert torch.equal(padded[: self.tokens], short)


class TestNegativesOfTheirOwn:
    """Of the video and of the sound."""

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls) -> Any:
        pipe = stock()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(self, pipe: Any, method: Any = None, *negative: Any, **named: Any) -> torch.Tensor:
        """The latents of the video, and behind them those of the sound."""
        with ExitStack() as stack:
            if method is not None:
                stack.enter_context(negative_guidance(pipe, method, *negative, max_sequence_length=16, **named))
            n = max((len(x) for x in [*negative, *named.values()] if isinstance(x, list)), default=1)
            drawn = pipe(
                ["a red bicycle"] * n, num_inference_steps=2, output_type="latent", max_sequence_length=16, height=32,
                width=32, num_frames=5, generator=[torch.Generator().manual_seed(i) for i in range(n)], **ONE_PASS,
            )  # fmt: skip
        return torch.cat([drawn.frames.flatten(1), drawn.audio.flatten(1)], 1)

    @pytest.mark.parametrize("method", [VSF, NAG])
    def test_one_of_them_alone_is_the_guidance_of_its_blocks(self, pipe: Any, method: Any) -> None:
        layers = len(pipe.transformer.transformer_blocks)
        video, audio = range(layers), range(layers, 2 * layers)
        both, seen = self.draw(pipe, method(), "wheels"), self.draw(pipe, method(blocks=video), "wheels")
        heard = self.draw(pipe, method(blocks=audio), "wheels")
        assert torch.equal(self.draw(pipe, method(), "wheels", audio_negative_prompt="wheels"), both)
        assert torch.equal(self.draw(pipe, method(), "wheels", audio_negative_prompt=""), seen)
        assert torch.equal(self.draw(pipe, method(), "", audio_negative_prompt="wheels"), heard)
        assert torch.equal(self.draw(pipe, method(), audio_negative_prompt="wheels"), heard)
        plain = self.draw(pipe)
        assert len({tuple(x.flatten().tolist()) for x in (both, seen, heard, plain)}) == 4
        assert torch.equal(self.draw(pipe, method(), "", audio_negative_prompt=""), plain)

    def test_each_is_among_its_own_keys(self, pipe: Any) -> None:
        block, lengths = pipe.transformer.transformer_blocks[0], dict[str, list[int]]()
        hooks = [
            attention.to_k.register_forward_pre_hook(
                lambda _, args, name=name: lengths.setdefault(name, []).append(args[0].shape[1])
            )
            for name, attention in (("video", block.attn2), ("audio", block.audio_attn2))
        ]
        self.draw(pipe, VSF(), "wheels", audio_negative_prompt="chain and spokes, [cup:0.5]")
        for hook in hooks:
            hook.remove()
        # A word and the end of its text are two tokens.
        assert lengths == {"video": [18, 18], "audio": [20, 22]}

    @pytest.mark.parametrize("method", [VSF(3.0, 0.1), NAG()], ids=["vsf", "nag"])
    def test_they_are_the_definition(self, pipe: Any, method: Any) -> None:
        mine = pipe.to(torch.float64)
        texts: Any = (
            ("wheels and chain", "spokes") if isinstance(method, NAG) else ("wheels:2, [cup:0.5]", "spokes and chain")
        )
        out = self.draw(mine, method, texts[0], audio_negative_prompt=texts[1])
        with dense() as count:
            wanted = self.draw(mine, method, texts[0], audio_negative_prompt=texts[1])
        assert count["calls"]
        bound = rounding(mine, torch.float64, 2)
        close(out, wanted, self.draw(mine), bound)
        # Samples with one, the other, both and none of them.
        given = [texts[0], None, texts[0], None], [None, texts[1], texts[1], None]
        together = self.draw(mine, method, given[0], audio_negative_prompt=given[1])
        for i, (video, audio) in enumerate(zip(*given, strict=True)):
            if i < 3:
                with negative_guidance(
                    mine, method, video or "", audio_negative_prompt=audio or "", max_sequence_length=16
                ):
                    alone = self._one(mine, i)
            else:
                alone = self._one(mine, i)
            same(together[i : i + 1], alone, bound)
        pipe.to(torch.float32)

    def _one(self, pipe: Any, seed: int) -> torch.Tensor:
        drawn = pipe(
            "a red bicycle", num_inference_steps=2, output_type="latent", max_sequence_length=16, height=32, width=32,
            num_frames=5, generator=torch.Generator().manual_seed(seed), **ONE_PASS,
        )  # fmt: skip
        return torch.cat([drawn.frames.flatten(1), drawn.audio.flatten(1)], 1)

    def test_where_there_is_no_sound(self, pipe: Any) -> None:
        with pytest.raises(ValueError, match="audio_negative_prompt is for models with a text of the sound"):
            negative_guidance(pipes.make("sd3"), VSF(), "wheels", audio_negative_prompt="hum").__enter__()
        with pytest.raises(ValueError, match="CFG hands one negative_prompt to the pipeline"):
            negative_guidance(pipe, CFG(), "wheels", audio_negative_prompt="hum").__enter__()


class TestLTX2ImageToVideo(ShortVideoContract):
    """The picture's tokens have a time of their own: they are clean from the beginning."""

    call = ONE_PASS | {"image": tiny.picture(32), "image_crf": 0}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(LTX2ImageToVideoPipeline), tmp_path_factory.mktemp("ltx2-i2v"))


class TestLTX2Condition(ShortVideoContract):
    """Pictures at any place of the video; all but that of its beginning are tokens beside it."""

    call = ONE_PASS | {"conditions": [LTX2VideoCondition(255 * tiny.picture(32), i, 0.8, 0) for i in (0, 1)]}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(LTX2ConditionPipeline), tmp_path_factory.mktemp("ltx2-condition"))
