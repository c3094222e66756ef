from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from diffusers import (
    AnyFlowPipeline,
    AutoencoderKLWan,
    FlowMapEulerDiscreteScheduler,
    HeliosPipeline,
    HeliosScheduler,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanAnimatePipeline,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
    WanVideoToVideoPipeline,
)
from diffusers.pipelines.helios import pipeline_helios
from diffusers.pipelines.wan import pipeline_wan_animate, pipeline_wan_i2v, pipeline_wan_vace, pipeline_wan_video2video
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

import tiny_pipelines as tiny
from closeness import differs, rounding
from specs import wan
from test_contract import fingerprint, run, untouched, watched
from tiny_videos import ShortVideoContract, VideoContract
from vsf import VSF, negative_guidance


def vae(true_to_size: bool = False) -> AutoencoderKLWan:
    """A small one that decodes only, or one that shrinks space by 8 and time by 4, as pictures to start from need."""
    size: dict[str, Any] = {"dim_mult": [1, 1], "temperal_downsample": [False]}
    if true_to_size:
        size = {"dim_mult": [1, 1, 1, 1], "temperal_downsample": [False, True, True]}
    return AutoencoderKLWan(
        base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4, **size
    ).eval()


@pytest.fixture(autouse=True)
def _without_ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    """These pipelines ask for ftfy, which mends broken text; there is none here."""
    wans = pipeline_wan_i2v, pipeline_wan_vace, pipeline_wan_video2video, pipeline_wan_animate
    for module in (*wans, pipeline_helios):
        monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)


def stock(**more: Any) -> WanPipeline:
    torch.manual_seed(0)
    encoder, model = tiny.t5(), wan.build(torch.float32)
    return WanPipeline(tiny.tokenizer("t5"), encoder, vae(), tiny.scheduler(shift=3.0), transformer=model, **more)


class TestWan(VideoContract):
    call = {"guidance_scale": 1.0}
    tokens = 4

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny.saved(stock(), tmp_path_factory.mktemp("wan"))


class TestWan22(VideoContract):
    """Two transformers, for the noisy and for the clean steps."""

    call = {"guidance_scale": 1.0}
    cfg = {"guidance_scale": 4.0}
    tokens = 4

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        second = wan.build(torch.float32)
        with torch.no_grad():
            second.proj_out.weight.mul_(-1)  # pyright: ignore
        made = stock(transformer_2=second, boundary_ratio=0.9)
        made.scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
        return tiny.saved(made, tmp_path_factory.mktemp("wan22"))

    def test_both_transformers_are_guided(self, pipe: Any) -> None:
        with negative_guidance(pipe, VSF(3.0), "wheels, chain", record=True) as guided:
            self.draw(pipe)
            assert all(type(m.blocks[0].attn2.processor).__name__.startswith("Guided")
                       for m in (pipe.transformer, pipe.transformer_2))  # fmt: skip
        assert guided.suppression().steps == [0, 1]


def pictures(n: int) -> list[Image.Image]:
    rows = torch.randint(0, 255, (n, 32, 32, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return [Image.fromarray(row.numpy()) for row in rows]


def transformer(seed: int, kind: Any = WanTransformer3DModel, **config: Any) -> Any:
    """Like that of the spec, with channels for the picture to start from."""
    small = {k: v for k, v in wan.build(torch.float32, kind).config.items() if not k.startswith("_")}
    torch.manual_seed(seed)
    return kind(**small | config).eval().requires_grad_(False)


class TestWanVACE(ShortVideoContract):
    """Guided in the blocks of the control branch, too."""

    call = {"guidance_scale": 1.0, "video": pictures(5), "mask": [Image.new("L", (32, 32), 255)] * 5}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        model = transformer(0, WanVACETransformer3DModel, vace_in_channels=2 * 4 + 64)
        made = WanVACEPipeline(
            tiny.tokenizer("t5"), tiny.t5(), vae(True), tiny.scheduler(shift=3.0), transformer=tiny.noisy(model)
        )
        return tiny.saved(made, tmp_path_factory.mktemp("wan-vace"))

    def draw(self, pipe: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        # The pipeline takes no list of generators.
        return super().draw(pipe, *args, **{"generator": torch.Generator().manual_seed(0)} | kwargs)

    def test_both_branches_are_guided(self, pipe: Any) -> None:
        with watched() as calls, negative_guidance(pipe, VSF(3.0), "wheels, chain"):
            self.draw(pipe, num_inference_steps=1)
        assert len(calls) == len(pipe.transformer.blocks) + len(pipe.transformer.vace_blocks)


class TestWanVideoToVideo(ShortVideoContract):
    call = {"guidance_scale": 1.0, "video": pictures(5), "strength": 1.0}
    pixels: ClassVar[dict[str, Any]] = {"height": 32, "width": 32}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        torch.manual_seed(0)
        encoder, model = tiny.t5(), wan.build(torch.float32)
        made = WanVideoToVideoPipeline(tiny.tokenizer("t5"), encoder, model, vae(True), tiny.scheduler(shift=3.0))
        return tiny.saved(made, tmp_path_factory.mktemp("wan-v2v"))


def looks() -> tuple[CLIPImageProcessor, CLIPVisionModel]:
    """An image encoder and what prepares pictures for it."""
    config = CLIPVisionConfig(
        hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    return processor, CLIPVisionModel(config).eval()


class TestWan21ImageToVideo(ShortVideoContract):
    """With an image encoder, whose tokens stand in front of the text."""

    call = {"guidance_scale": 1.0, "image": pictures(1)[0]}
    limit = wan.TEXT

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        model = transformer(0, in_channels=12, out_channels=4, image_dim=12, added_kv_proj_dim=32)
        made = WanImageToVideoPipeline(
            tiny.tokenizer("t5"), tiny.t5(), vae(True), tiny.scheduler(shift=3.0), *looks(), model
        )
        return tiny.saved(made, tmp_path_factory.mktemp("wan21-i2v"))

    def test_the_negative_does_not_leak_into_the_image_branch(self, pipe: Any) -> None:
        seen: list[torch.Tensor] = []
        handles = [
            layer.register_forward_hook(lambda module, args, out: seen.append(args[0]))
            for block in pipe.transformer.blocks
            for layer in (block.attn2.add_k_proj, block.attn2.add_v_proj)
        ]
        self.draw(pipe)
        n = len(seen)
        with negative_guidance(pipe, VSF(3.0), "wheels, chain"):
            self.draw(pipe)
        for handle in handles:
            handle.remove()
        tokens = (8 // 4) ** 2 + 1
        assert n == 2 * 2 * len(pipe.transformer.blocks) and len(seen) == 2 * n
        assert all(a.shape[1] == tokens and torch.equal(a, b) for a, b in zip(seen[:n], seen[n:], strict=True))


class TestWan22ImageToVideo(ShortVideoContract):
    """Two transformers, the picture in the channels of their input alone."""

    call = {"guidance_scale": 1.0, "image": pictures(1)[0]}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        first, second = (transformer(seed, in_channels=12, out_channels=4) for seed in (0, 1))
        made = WanImageToVideoPipeline(
            tiny.tokenizer("t5"), tiny.t5(), vae(True), tiny.scheduler(shift=3.0), transformer=first,
            transformer_2=second, boundary_ratio=0.9,
        )  # fmt: skip
        return tiny.saved(made, tmp_path_factory.mktemp("wan22-i2v"))

    def test_both_transformers_are_guided_and_restored(self, pipe: Any) -> None:
        models = [pipe.transformer, pipe.transformer_2]
        before, ran = [fingerprint(m) for m in models], []
        handles = [m.register_forward_hook(lambda m, *_: ran.append(m)) for m in models]
        with watched() as calls, negative_guidance(pipe, VSF(3.0), "wheels, chain"):
            self.draw(pipe)
        for handle in handles:
            handle.remove()
        assert ran == models and len(calls) == sum(len(m.blocks) for m in models)
        assert all(untouched(m, b) for m, b in zip(models, before, strict=True))


class TestAnyFlow(VideoContract):
    call = {"guidance_scale": 1.0}
    tokens = 4

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        model = wan.build_anyflow(torch.float32)
        made = AnyFlowPipeline(tiny.tokenizer("t5"), tiny.t5(), model, vae(), FlowMapEulerDiscreteScheduler())
        return tiny.saved(made, tmp_path_factory.mktemp("anyflow"))


# In the scheduler, with numpy 2.
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
class TestHelios(ShortVideoContract):
    """Two chunks of frames, each over all steps, the second with the first as its history."""

    call = {"guidance_scale": 1.0, "num_latent_frames_per_chunk": 2, "num_frames": 10, "history_sizes": [4, 2, 1]}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        model = wan.build_helios(torch.float32)
        made = HeliosPipeline(tiny.tokenizer("t5"), tiny.t5(), vae(True), HeliosScheduler(stages=1), model)
        return tiny.saved(made, tmp_path_factory.mktemp("helios"))


class TestWanAnimate(ShortVideoContract):
    """With an image encoder, a pose and a face for every frame."""

    call = {
        "guidance_scale": 1.0, "image": pictures(1)[0], "pose_video": pictures(5), "face_video": pictures(5),
        "segment_frame_length": 5,
    }  # fmt: skip
    pixels: ClassVar[dict[str, Any]] = {"height": 32, "width": 32}
    limit = wan.TEXT

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        kind: Any = WanAnimatePipeline
        made = kind(
            tiny.tokenizer("t5"),
            tiny.t5(),
            vae(True),
            tiny.scheduler(shift=3.0),
            *looks(),
            wan.build_animate(torch.float32),
        )
        return tiny.saved(made, tmp_path_factory.mktemp("wan-animate"))


class TestSkyReelsForcing(ShortVideoContract):
    """Every frame has a scheduler of its own."""

    call: ClassVar = {"guidance_scale": 1.0, "num_frames": 5, "base_num_frames": 5}
    tokens = 4

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        model = wan.build(torch.float32, SkyReelsV2Transformer3DModel)
        scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
        made = SkyReelsV2DiffusionForcingPipeline(tiny.tokenizer("t5"), tiny.t5(), model, vae(True), scheduler)
        return tiny.saved(made, tmp_path_factory.mktemp("skyreels-forcing"))

    @pytest.mark.parametrize("asked", [{"record": True}, {"stop": 0.5}, {"negative": "[wheels:0.5]"}])
    def test_there_are_no_steps_to_ask_for(self, pipe: Any, asked: dict[str, Any]) -> None:
        stop = asked.get("stop", 1.0)
        with (
            pytest.raises(ValueError, match="has every frame at a step of its own"),
            negative_guidance(
                pipe, VSF(3.0, stop=stop), asked.get("negative", "wheels"), record=asked.get("record", False)
            ),
        ):
            self.draw(pipe)


@pytest.mark.parametrize("kind", [WanTransformer3DModel, SkyReelsV2Transformer3DModel])
@pytest.mark.parametrize("fused", [False, True])
def test_image_branch_never_sees_the_negative(kind: type, fused: bool) -> None:
    """As many image tokens as prompt and negative together: only the order of the calls tells them apart."""
    model: Any = wan.build(torch.float64, kind, image=True)
    if fused:
        for block in model.blocks:
            block.attn2.fuse_projections()
    call = wan.inputs(2, 7, torch.float64, image=wan.TEXT + 3)
    seen: list[torch.Tensor] = []
    attention = model.blocks[0].attn2
    keys = attention.to_added_kv if fused else attention.add_k_proj
    handle = keys.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    plain = run(model, call)
    with negative_guidance(model, VSF(3.0), negative_prompt_embeds=[torch.randn(3, 16)]):
        guided = run(model, call)
    handle.remove()
    differs(guided, plain, rounding(model, torch.float64))
    assert seen[0].shape[1] == wan.TEXT + 3 and torch.equal(seen[0], seen[1])
    assert torch.equal(run(model, call), plain)
