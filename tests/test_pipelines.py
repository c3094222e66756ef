"""The published pipelines: the stock pipeline inside `negative_guidance`, and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    HunyuanVideoPipeline,
    LongCatImagePipeline,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
)
from torch import Tensor

import tiny_pipelines as parts
import vsf
from closeness import close, differs, follows_stock, rounding, same
from composition import pipes as composed
from pipelines import test_hunyuan_video as hunyuan
from pipelines import test_qwen_image as qwen
from pipelines.test_wan import stock as wan
from specs import flux, hunyuan_video, longcat_ovis, qwen_image
from specs import wan as wan_spec
from tiny import save_tiny
from vsf import CFG, NAG, NASA, VSF, negative_guidance
from vsf.arch import find_models


@dataclass
class Case:
    """A published class, the folder of a tiny stock pipeline, a prompt and a negative it knows, and its call."""

    cls: type
    folder: Path
    stock: str
    call: dict[str, Any]
    off: dict[str, Any]
    words: tuple[str, str] = ("a red bicycle", "wheels")

    def load(self, stock: bool = False) -> Any:
        pipe = (getattr(__import__("diffusers"), self.stock) if stock else self.cls).from_pretrained(self.folder)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(self, pipe: Any, *args: Any, **more: Any) -> Tensor:
        given: dict[str, Any] = {
            "prompt": self.words[0], "num_inference_steps": 2, "output_type": "latent",
            "generator": torch.Generator().manual_seed(3), **self.call, **more,
        }  # fmt: skip
        out = pipe(*args, **{k: v for k, v in given.items() if v is not ...})
        return out.frames if hasattr(out, "frames") else out.images


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("stock")
    save_tiny(root / "sd3")
    torch.manual_seed(0)
    FluxPipeline(
        parts.scheduler(), parts.vae(), parts.clip(), parts.tokenizer("clip"), parts.t5(), parts.tokenizer("t5"),
        flux.build(torch.float32, guidance=True),
    ).save_pretrained(root / "flux")  # fmt: skip
    video = wan(boundary_ratio=0.9, transformer_2=wan_spec.build(torch.float32))
    video.scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    video.save_pretrained(root / "wan")
    torch.manual_seed(0)
    QwenImagePipeline(
        parts.scheduler(), qwen.vae(), qwen.text_encoder(), parts.tokenizer("qwen"), qwen_image.build(torch.float32)
    ).save_pretrained(root / "qwen")
    # The inpainting pipeline takes 16 latent channels only.
    inpaint = StableDiffusion3Pipeline.from_pretrained(root / "sd3")
    for part, names in (("transformer", ("in_channels", "out_channels")), ("vae", ("latent_channels",))):
        old: Any = getattr(inpaint, part)
        setattr(inpaint, part, type(old).from_config(dict(old.config) | dict.fromkeys(names, 16)).eval())
    with torch.no_grad():
        for name, parameter in inpaint.transformer.named_parameters():
            if parameter.ndim > 1 and "pos_embed" not in name:
                parameter.normal_(std=0.2)
    inpaint.save_pretrained(root / "inpaint")
    return {name: root / name for name in ("sd3", "inpaint", "flux", "wan", "qwen")}


CASES = ["sd3", "img2img", "inpaint", "flux", "wan", "qwen"]


def make(name: str, folders: dict[str, Path]) -> Case:
    g = torch.Generator().manual_seed(0)
    bike = "a red bike", "wheels"
    picture = torch.rand(1, 3, 32, 32, generator=g)
    size = {"height": 32, "width": 32, "max_sequence_length": 16}
    off, true_off = {"guidance_scale": 0.0}, {"true_cfg_scale": 1.0}
    sd3 = folders["sd3"]
    return {
        "sd3": Case(vsf.VSFStableDiffusion3Pipeline, sd3, "StableDiffusion3Pipeline", size, off, bike),
        "img2img": Case(
            vsf.VSFStableDiffusion3Img2ImgPipeline, sd3, "StableDiffusion3Img2ImgPipeline",
            size | {"image": picture, "strength": 1.0}, off, bike,
        ),
        "inpaint": Case(
            vsf.VSFStableDiffusion3InpaintPipeline, folders["inpaint"], "StableDiffusion3InpaintPipeline",
            size | {"image": picture, "mask_image": torch.ones(1, 1, 32, 32), "strength": 1.0}, off, bike,
        ),
        "flux": Case(vsf.VSFFluxPipeline, folders["flux"], "FluxPipeline", size | {"height": 16, "width": 16}, true_off),
        "wan": Case(vsf.VSFWanPipeline, folders["wan"], "WanPipeline", size | {"num_frames": 5}, {"guidance_scale": 1.0}),
        "qwen": Case(
            vsf.VSFQwenImagePipeline, folders["qwen"], "QwenImagePipeline", size | {"height": 16, "width": 16}, true_off
        ),
    }[name]  # fmt: skip


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Case:
    return make(request.param, folders)


@pytest.fixture
def sd3(folders: dict[str, Path]) -> Case:
    return make("sd3", folders)


def test_is_the_stock_pipeline_inside_negative_guidance(case: Case) -> None:
    ours, stock = case.load(), case.load(stock=True)
    plain = case.draw(stock, **case.off)
    assert torch.equal(case.draw(ours), plain)  # no negative: nothing is different
    assert torch.equal(case.draw(ours, negative_prompt=""), plain)
    published = VSF(3.0, 0.2, "upstream")
    with negative_guidance(stock, published, case.words[1], max_sequence_length=16):
        wanted = case.draw(stock, **case.off)
    differs(wanted, plain, rounding(stock, passes=2))
    assert torch.equal(case.draw(ours, negative_prompt=case.words[1], scale=3.0, offset=0.2), wanted)
    tuned = VSF(3.0, 0.2, "paper", 0.9, start=0.5, stop=1.0)
    with negative_guidance(stock, tuned, case.words[1], max_sequence_length=16):
        wanted = case.draw(stock, **case.off)
    settings: dict[str, Any] = {"layout": "paper", "normalize": 0.9, "start": 0.5, "stop": 1.0}
    assert torch.equal(case.draw(ours, negative_prompt=case.words[1], scale=3.0, offset=0.2, **settings), wanted)


def test_saves_as_the_stock_pipeline(case: Case, tmp_path: Path) -> None:
    ours = case.load()
    guided = case.draw(ours, negative_prompt=case.words[1])
    ours.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == case.stock and type(ours) is case.cls
    stock = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert type(stock).__name__ == case.stock
    before, after = dict(case.load(stock=True).config), dict(stock.config)
    assert before | {"_name_or_path": ""} == after | {"_name_or_path": ""}
    again = case.cls.from_pretrained(tmp_path / "saved")  # pyright: ignore
    again.set_progress_bar_config(disable=True)
    assert torch.equal(case.draw(again, negative_prompt=case.words[1]), guided)


@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
def test_the_published_example(sd3: Case) -> None:
    pipe = vsf.VSFStableDiffusion3Pipeline.from_pretrained(sd3.folder, torch_dtype=torch.float32).to("cpu")
    pipe.set_progress_bar_config(disable=True)
    image = pipe(
        prompt="a brown table", negative_prompt="cards", guidance_scale=0.0, num_inference_steps=8, scale=3.5, offset=0.1,
        generator=torch.Generator("cpu").manual_seed(19),
    ).images[0]  # fmt: skip
    assert image.size == (32, 32)


def test_made_from_a_stock_pipeline(sd3: Case) -> None:
    stock = sd3.load(stock=True)
    ours = vsf.VSFStableDiffusion3Pipeline.from_pipe(stock)
    assert ours.transformer is stock.transformer
    assert torch.equal(sd3.draw(ours, negative_prompt="wheels"), sd3.draw(sd3.load(), negative_prompt="wheels"))


def test_the_negative_may_stand_in_its_place(sd3: Case) -> None:
    pipe = sd3.load()
    wanted = sd3.draw(pipe, negative_prompt="wheels")
    names = ("prompt", "height", "width", "num_inference_steps")
    positional = ("a red bike", None, None, 32, 32, 2, None, 0.0, "wheels")
    assert torch.equal(sd3.draw(pipe, *positional, **dict.fromkeys(names, ...)), wanted)


def test_inline_negatives(sd3: Case) -> None:
    pipe = sd3.load()
    wanted = sd3.draw(pipe, negative_prompt="wheels:2")
    assert torch.equal(sd3.draw(pipe, prompt="a red bike (wheels:-2)"), wanted)
    assert torch.equal(sd3.draw(pipe, prompt="a red bike (wheels:-2)", prompt_3="a red bike (wheels:-2)"), wanted)
    both = sd3.draw(pipe, negative_prompt="cards, wheels:2")
    differs(both, wanted, rounding(pipe, passes=2))
    assert torch.equal(sd3.draw(pipe, prompt="a red bike (wheels:-2)", negative_prompt="cards"), both)
    seeds = {"generator": [torch.Generator().manual_seed(s) for s in (1, 2)]}
    prompts, own = ["a red bike (wheels:-2)", "a blue house"], ["cards", None]
    mixed = sd3.draw(pipe, prompt=prompts, negative_prompt=own, **seeds)
    seeds = {"generator": [torch.Generator().manual_seed(s) for s in (1, 2)]}
    told = sd3.draw(pipe, prompt=["a red bike", "a blue house"], negative_prompt=["cards, wheels:2", None], **seeds)
    assert torch.equal(mixed, told)
    with pytest.raises(ValueError, match="3 negative prompts for 2"):
        sd3.draw(pipe, prompt=prompts, negative_prompt=["cards"] * 3)


def test_embeddings(sd3: Case) -> None:
    pipe = sd3.load()
    family = find_models(pipe)[0][1]
    embeds = family.encode(pipe, "wheels", False, 16).detach()
    wanted = sd3.draw(pipe, negative_prompt="wheels")
    assert torch.equal(sd3.draw(pipe, negative_prompt_embeds=embeds), wanted)
    assert torch.equal(sd3.draw(pipe, negative_prompt_embeds=embeds[None]), wanted)


def test_bad_calls(sd3: Case) -> None:
    pipe = sd3.load()
    with pytest.raises(ValueError, match="does not use negative_prompt_2"):
        sd3.draw(pipe, negative_prompt="wheels", negative_prompt_2="cards")
    with pytest.raises(ValueError, match="classifier-free"):
        sd3.draw(pipe, negative_prompt="wheels", guidance_scale=4.0)
    with pytest.raises(ValueError, match="scale is nan"):
        sd3.draw(pipe, negative_prompt="wheels", scale=float("nan"))
    with pytest.raises(ValueError, match="both"):
        sd3.draw(pipe, negative_prompt="wheels", negative_prompt_embeds=torch.zeros(2, 16))
    with pytest.raises(TypeError, match="unexpected"):
        sd3.draw(pipe, colour="red")
    with pytest.raises(ValueError, match="prompt is an empty list"):
        sd3.draw(pipe, prompt=[], negative_prompt="wheels")
    with pytest.raises(ValueError, match="scale is nan"):  # also where there is nothing to guide
        sd3.draw(pipe, scale=float("nan"))


# ---------------------------------------------------------------------------------------------------------------------
# Weights in the text


@pytest.fixture
def flux_case(folders: dict[str, Path]) -> Case:
    return make("flux", folders)


def test_every_weighted_item_is_encoded_on_its_own(flux_case: Case) -> None:
    pipe = flux_case.load(stock=True)
    family, method = find_models(pipe)[0][1], VSF(3.0, 0.2)
    wheels, chain, both = (family.encode(pipe, t, False, None).detach() for t in ("wheels", "chain", "wheels, chain"))
    weights = torch.cat([torch.full((len(wheels),), 2.0), torch.ones(len(chain))])

    def draw(**negative: Any) -> Tensor:
        with negative_guidance(pipe, method, **negative):
            return flux_case.draw(pipe)

    items = torch.cat([wheels, chain])
    wanted = draw(negative_prompt_embeds=[items], negative_weights=[weights])
    bound = rounding(pipe, passes=2)
    differs(draw(negative_prompt_embeds=[items]), wanted, bound)  # the weight counts
    # Equal up to rounding, which depends on where in memory a tensor happens to lie.
    for text, given in [
        ("wheels:2, chain", {"negative_prompt_embeds": [items], "negative_weights": [weights]}),
        ("wheels:1, chain", {"negative_prompt_embeds": [items]}),
        ("wheels, chain", {"negative_prompt_embeds": [both]}),
        ("wheels\\, chain:1", {"negative_prompt_embeds": [both]}),
        ("wheels:0, chain", {"negative_prompt_embeds": [chain]}),
    ]:
        same(draw(negative_prompt=text), draw(**given), bound, text)
    differs(draw(negative_prompt_embeds=[both]), draw(negative_prompt_embeds=[items]), bound)
    assert torch.equal(draw(negative_prompt="wheels:0"), flux_case.draw(pipe))


@pytest.mark.filterwarnings("ignore::vsf.NothingGuided")  # what is encoded is not drawn with
@pytest.mark.parametrize("method", [NAG(), NASA(), CFG()], ids=repr)
@pytest.mark.parametrize("text", ["wheels:2", "wheels:1, chain"])
def test_weights_need_a_method_that_has_them(flux_case: Case, method: Any, text: str) -> None:
    pipe = flux_case.load(stock=True)
    refused = pytest.raises(ValueError, match=f"has weights, which {type(method).__name__} cannot take")
    with refused, negative_guidance(pipe, method, text):
        pass
    with negative_guidance(pipe, method, r"wheels\:2"):
        pass


# ---------------------------------------------------------------------------------------------------------------------
# Negatives that are longer than the text encoders take


def words(n: int) -> str:
    return " ".join(["wheels"] * n)


def tiny_unet() -> Any:
    return composed.make("unet")


def tiny_sd3() -> Any:
    return composed.make("sd3")


def tiny_longcat() -> Any:
    words = parts.tokenizer("qwen")
    model = longcat_ovis.longcat(torch.float32, 64)
    pipe = LongCatImagePipeline(parts.scheduler(), parts.vae(16), qwen.text_encoder(), words, words, model)
    pipe.tokenizer_max_length = 24
    return pipe


def tiny_hunyuan() -> Any:
    return HunyuanVideoPipeline(
        hunyuan.llama(), parts.tokenizer("qwen"), hunyuan_video.build(torch.float32), hunyuan.vae(), parts.scheduler(),
        hunyuan.clip(), parts.tokenizer("clip"),
    )  # fmt: skip


#: A pipeline, words that fit, words that do not, what is counted and how much fits, and the length asked for.
#: SD3: CLIP cuts at 77 what T5 takes whole, as it does with prompts. Flux: what CLIP cuts is pooled only.
TOO_LONG: dict[str, tuple[Any, int, int, str, int | None]] = {
    "sd": (tiny_unet, 75, 76, "78 tokens.*StableDiffusionPipeline takes 77", None),
    "sd3": (tiny_sd3, 255, 256, "257 tokens.*StableDiffusion3Pipeline takes 256", None),
    "sd3-short": (tiny_sd3, 75, 76, "78 tokens.*takes 77", 16),
    "flux": ("flux", 511, 512, "513 tokens.*FluxPipeline takes 512", None),
    "flux-short": ("flux", 15, 16, "17 tokens.*FluxPipeline takes 16", 16),
    "wan": ("wan", 511, 512, "513 tokens.*WanPipeline takes 512", None),
    # 34 tokens of template in front, 5 behind; cut by the tokenizer, or (a shorter length) behind the encoder
    "qwen": ("qwen", 1019, 1020, "1059 tokens.*QwenImagePipeline takes 1058", None),
    "longcat": (tiny_longcat, 24, 25, "25 tokens.*LongCatImagePipeline takes 24", None),
    "hunyuan-short": (tiny_hunyuan, 5, 60, "180 tokens.*HunyuanVideoPipeline takes 127", 32),  # CLIP takes all 60
    "qwen-short": ("qwen", 11, 12, "17 tokens.*QwenImagePipeline takes 16", 16),
}


@pytest.mark.filterwarnings("ignore::vsf.NothingGuided")  # what is encoded is not drawn with
@pytest.mark.parametrize("name", list(TOO_LONG))
def test_a_negative_that_would_be_cut_is_refused(name: str, folders: dict[str, Path]) -> None:
    build, fits, cut, says, length = TOO_LONG[name]
    pipe: Any = make(build, folders).load(stock=True) if isinstance(build, str) else build()
    before = dict(vars(pipe))
    for method in (VSF(), NAG()):
        with negative_guidance(pipe, method, words(fits), max_sequence_length=length):
            pass
        refused = pytest.raises(ValueError, match=rf"'wheels wheels.*\.\.\.' is {says}")
        with refused, negative_guidance(pipe, method, ["wheels", words(cut)], max_sequence_length=length):
            pass
    with negative_guidance(pipe, VSF(), f"{words(fits)}:1, {words(fits)}:1", max_sequence_length=length):
        pass  # each item is encoded on its own
    assert all(vars(pipe)[k] is v for k, v in before.items()) and not any(
        m._forward_pre_hooks for m in composed.model_of(pipe).modules()
    )


# ---------------------------------------------------------------------------------------------------------------------
# Offloading of the whole pipeline, text encoders included


def offload_whole(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def offload_layers(pipe: Any) -> None:
    """What `enable_sequential_cpu_offload` does; itself it asks for a device with a number, which a CPU has not."""
    for model in pipe.components.values():
        if isinstance(model, torch.nn.Module):
            cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)


@pytest.mark.parametrize("offload", [offload_whole, offload_layers])
@pytest.mark.parametrize("name", ["sd3", "wan", "flux"])
def test_an_offloaded_pipeline_encodes_and_draws_the_same(name: str, offload: Any, folders: dict[str, Path]) -> None:
    case = make(name, folders)
    negatives: list[Any] = [case.words[1], f"{case.words[1]}:2, cards"]
    methods = [VSF(3.0, 0.2), NAG(4.0)]
    pairs = [(m, n) for m in methods for n in negatives if ":" not in n or isinstance(m, VSF)]
    stock = case.load(stock=True)
    plain, wanted = case.draw(stock, **case.off), []
    for method, negative in pairs:
        with negative_guidance(stock, method, negative, max_sequence_length=16):
            wanted.append(case.draw(stock, **case.off))
    pipe = case.load(stock=True)
    offload(pipe)
    hooks = [getattr(m, "_hf_hook", None) for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    assert any(hooks)
    for (method, negative), truth in zip(pairs, wanted, strict=True):
        with negative_guidance(pipe, method, negative, max_sequence_length=16):
            got = case.draw(pipe, **case.off)
        # Offloading puts the weights elsewhere in memory than the file was mapped to.
        follows_stock(got, truth, case.draw(pipe, **case.off), plain, rounding(pipe, passes=2))
    after = [getattr(m, "_hf_hook", None) for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    assert [type(a) for a in after] == [type(b) for b in hooks]  # offloading whole models renews them after each run


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_a_published_pipeline_is_offloaded_like_any_other(name: str, folders: dict[str, Path]) -> None:
    case = make(name, folders)
    ours, stock = case.load(), case.load(stock=True)
    wanted, plain = case.draw(ours, negative_prompt=case.words[1]), case.draw(stock, **case.off)
    for offload in (offload_whole, offload_layers):
        pipe, alone = case.load(), case.load(stock=True)
        offload(pipe)
        offload(alone)
        got = case.draw(pipe, negative_prompt=case.words[1])
        follows_stock(got, wanted, case.draw(alone, **case.off), plain, rounding(pipe, passes=2))


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_ranges_and_knobs_per_sample_through_the_published_call(name: str, folders: dict[str, Path]) -> None:
    case = make(name, folders)
    pipe = case.load()

    def noise(*numbers: int) -> dict[str, Any]:
        return {"generator": [torch.Generator().manual_seed(n) for n in numbers]}

    both = case.draw(
        pipe, prompt=[case.words[0]] * 2, negative_prompt=case.words[1], scale=(3.0, 6.0), start=(0.0, 0.5),
        stop=(0.5, 1.0), normalize=(0.9, 1.1), **noise(1, 2),
    )  # fmt: skip
    own: list[dict[str, Any]] = [
        {"scale": 3.0, "stop": 0.5, "normalize": 0.9}, {"scale": 6.0, "start": 0.5, "normalize": 1.1}
    ]  # fmt: skip
    for i, knobs in enumerate(own):
        alone = case.draw(pipe, negative_prompt=case.words[1], **knobs, **noise(i + 1))
        plain = case.draw(pipe, **noise(i + 1))
        close(both[i : i + 1], alone, plain, rounding(pipe, passes=2))


# ---------------------------------------------------------------------------------------------------------------------
# What is said where a negative would do nothing, and how CFG takes one


@pytest.mark.parametrize("name", ["sd3", "wan", "flux"])
def test_a_negative_in_the_call_is_not_ignored(name: str, folders: dict[str, Path]) -> None:
    case = make(name, folders)
    pipe = case.load(stock=True)
    refused = pytest.raises(ValueError, match="negative_prompt='wheels'.* give it to negative_guidance instead")
    with refused, negative_guidance(pipe, VSF(), case.words[1]):
        case.draw(pipe, negative_prompt="wheels", **case.off)
    with negative_guidance(pipe, VSF(), case.words[1]):
        wanted = case.draw(pipe, **case.off)
        assert torch.equal(case.draw(pipe, negative_prompt="", **case.off), wanted)


@pytest.mark.parametrize("build", [tiny_unet, tiny_sd3])
def test_cfg_takes_one_negative_for_all_prompts(build: Any) -> None:
    pipe, seeds = build(), (1, 2)
    prompts = ["a red bicycle", "a blue cup"]
    wanted = composed.draw(pipe, prompts, seeds, guidance_scale=3.0, negative_prompt=["wheels"] * 2)
    single = composed.draw(pipe, guidance_scale=3.0, negative_prompt="wheels")
    for negative in ("wheels", ["wheels"], ["wheels", "wheels"]):
        with negative_guidance(pipe, CFG(3.0), negative):
            assert torch.equal(composed.draw(pipe, prompts, seeds), wanted)
            if len(negative) != 2:
                assert torch.equal(composed.draw(pipe), single)
