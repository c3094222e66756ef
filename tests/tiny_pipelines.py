"""Stock pipelines of tiny random components with real tokenizers, and what every guided one has to fulfil."""

from __future__ import annotations

import copy
import inspect
import io
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from PIL import Image, ImageSequence
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from closeness import close, differs, rounding, same
from definition import dense
from test_contract import Swap, fingerprint, untouched
from vsf import CFG, NAG, VSF, Guidance, negative_guidance
from vsf.arch import find_models
from vsf.cli import main
from vsf.loading import load_model
from vsf.sizes import sizes_of

#: Words, single marks and newlines are one token each; so Qwen-Image's template is 34 tokens up to the prompt, as it
#: is with the real tokenizer.
PATTERN = r"\n|\w+|[^\w\s]"
TEXTS = """a red bicycle in the park, blue cup on table: wheels and chain; spokes. system user assistant
Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the
objects and background: think"""
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{{ m.content[0].text }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WIDTH = 16


def tokenizer(kind: str) -> Any:
    """A word tokenizer with the special tokens, the length and the template of "t5", "clip", "qwen" or "glm".

    Any (as below), since pipelines name other classes than those they take.
    """
    special = {
        "t5": ["<pad>", "</s>", "<unk>"],
        "clip": ["<|startoftext|>", "<|endoftext|>", "<unk>"],
        "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"],
        "glm": ["<|endoftext|>", "[gMASK]", "<sop>", "<unk>"],
    }[kind]
    words = sorted(set(re.findall(PATTERN, TEXTS + "\n")))
    vocab = {word: i for i, word in enumerate([*special, *words])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True)
    frame = {"t5": "$A </s>", "clip": "<|startoftext|> $A <|endoftext|>", "glm": "[gMASK] <sop> $A"}.get(kind)
    if frame is not None:
        core.post_processor = processors.TemplateProcessing(frame, special_tokens=[(s, vocab[s]) for s in special])
    pad = "<pad>" if kind == "t5" else "<|endoftext|>"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token=pad, eos_token="</s>" if kind == "t5" else pad,
        additional_special_tokens=special, model_max_length=77 if kind == "clip" else 512,
        padding_side="left" if kind == "glm" else "right",
    )  # fmt: skip
    if kind == "qwen":
        fast.chat_template = CHAT
    return fast


def t5() -> Any:
    return T5EncoderModel(
        T5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=2, num_heads=2, dropout_rate=0.0)
    ).eval()


def clip() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=WIDTH, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def vae(channels: int = 1) -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8,), latent_channels=channels, norm_num_groups=4, layers_per_block=1,
        shift_factor=0.0, scaling_factor=1.0).eval()  # fmt: skip


def scheduler(**config: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**config)


def saved(pipe: Any, folder: Path) -> Any:
    """The pipeline as `--model FOLDER` loads it."""
    pipe.save_pretrained(folder)
    again = load_model(str(folder), "cpu", torch.float32)
    assert type(again) is type(pipe)
    again.set_progress_bar_config(disable=True)
    return again


def noisy(net: Any, std: float = 0.3) -> Any:
    """A net that has learnt something: what is zero in the beginning (a control net's outlets) is not zero."""
    g = torch.Generator().manual_seed(3)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=std, generator=g)
    return net.eval().requires_grad_(False)


def picture(size: int = 16) -> Tensor:
    """A picture to start from, `[1, 3, size, size]`."""
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(5))


def left_half(size: int = 16) -> Tensor:
    """A mask for inpainting, `[1, 1, size, size]`."""
    return (torch.arange(size) < size // 2).float().expand(1, 1, size, size)


def beside_the_controlnet(stock_negative: Any) -> Any:
    """`stock_negative` where the control net goes on seeing the prompt, as it does in a guided run."""

    def draw(self: Any, pipe: Any, text: str) -> Tensor:
        seen: list[Tensor] = []

        def keep(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
            seen.append(kwargs["encoder_hidden_states"])

        def put(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, kwargs | {"encoder_hidden_states": seen[0]}

        for hook, act in ((keep, lambda: self.draw(pipe)), (put, lambda: stock_negative(self, pipe, text))):
            handle = pipe.controlnet.register_forward_pre_hook(hook, with_kwargs=True)
            try:
                out = act()
            finally:
                handle.remove()
        return out

    return draw


def pixels(path: Any) -> list[Image.Image]:
    """The frames of a picture file."""
    with Image.open(path) as image:
        return [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]


class ShortContract:
    """What every guided pipeline fulfils. Inherit and give a `pipe` fixture (class scope)."""

    #: What every call is given.
    call: ClassVar[dict[str, Any]] = {}
    #: The size it is asked for; a pipeline may take that of its picture instead.
    pixels: ClassVar[dict[str, Any]] = {"height": 16, "width": 16}
    #: `max_sequence_length` given to the pipeline and to the guidance.
    limit: ClassVar[int | None] = 16
    methods: ClassVar[list[Guidance]] = [VSF(3.0), VSF(3.0, layout="upstream"), NAG(4.0)]

    def draw(self, pipe: Any, prompt: Any = "a red bicycle", seeds: tuple[int, ...] = (0,), **kwargs: Any) -> Tensor:
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        length = {} if self.limit is None else {"max_sequence_length": self.limit}
        out = pipe(
            **{"prompt": prompt, "num_inference_steps": 2, "output_type": "latent", "generator": generators}
            | self.pixels | length | self.call | kwargs
        )  # fmt: skip
        return out.images

    def stock_negative(self, pipe: Any, text: str) -> Tensor:
        """The stock pipeline with the negative as its prompt, but with the prompt's pooled embedding."""
        return self.draw(pipe, text)

    def test_guides_and_restores(self, pipe: Any) -> None:
        plain = self.draw(pipe)
        marks = [(model, fingerprint(model)) for model, _ in find_models(pipe)]
        for method in self.methods:
            with negative_guidance(pipe, method, "wheels, chain", max_sequence_length=self.limit):
                guided = self.draw(pipe)
            assert bool(guided.isfinite().all())
            differs(guided, plain, rounding(pipe, passes=2))
        assert torch.equal(self.draw(pipe), plain)
        assert all(untouched(model, before) for model, before in marks)

    @pytest.mark.parametrize("negative", [None, "", " "])
    def test_empty_negative_is_bit_equal(self, pipe: Any, negative: str | None) -> None:
        plain = self.draw(pipe)
        with negative_guidance(pipe, VSF(3.0), [negative]):
            assert torch.equal(self.draw(pipe), plain)

    def test_swapping_the_branches_draws_the_negative_prompt(self, pipe: Any) -> None:
        wanted = self.stock_negative(pipe, "wheels, chain")
        with negative_guidance(pipe, Swap(), "wheels, chain", max_sequence_length=self.limit):
            swapped = self.draw(pipe)
        close(swapped, wanted, self.draw(pipe), rounding(pipe, passes=2))

    @pytest.mark.parametrize("method", [VSF(3.0), VSF(3.0, layout="upstream")], ids=["ours", "upstream"])
    def test_equals_the_dense_definition(self, pipe: Any, method: Guidance) -> None:
        """Whatever the pipeline puts beside the prompt (a picture, a mask, residuals), the equation is the same."""
        with negative_guidance(pipe, method, "wheels, chain", max_sequence_length=self.limit):
            guided = self.draw(pipe)
            with dense() as count:
                wanted = self.draw(pipe)
        assert count["calls"] > 0
        close(guided, wanted, self.draw(pipe), rounding(pipe, passes=2))


class PipelineContract(ShortContract):
    """And what can be tried only where a prompt alone is drawn from."""

    #: What turns real classifier-free guidance on.
    cfg: ClassVar[dict[str, Any]] = {"guidance_scale": 4.0}
    #: Tokens of "wheels, chain" without pads.
    tokens: ClassVar[int]
    #: Rows and columns of image tokens.
    grid: ClassVar[tuple[int, int]] = (8, 8)
    #: Options for `vsf generate`; None: the pipeline needs arguments that it cannot give.
    cli: ClassVar[list[str] | None] = ["--size", "16"]

    def test_maps_where_the_negative_acts(self, pipe: Any) -> None:
        with negative_guidance(pipe, VSF(3.0), "wheels, chain", record=True) as guided:
            self.draw(pipe)
        suppression = guided.suppression()
        assert suppression.steps == [0, 1] and suppression.map().shape == (1, *self.grid)

    def test_batch_with_different_negatives(self, pipe: Any) -> None:
        prompts, seeds = ["a red bicycle", "a blue cup on the table"], (1, 2, 3, 4)
        with negative_guidance(pipe, VSF(3.0), ["wheels, chain", None]):
            together = self.draw(pipe, prompts, seeds, num_images_per_prompt=2)
            assert len(together) == 4
            first = self.draw(pipe, prompts, seeds, num_images_per_prompt=2)
        assert torch.equal(first, together)
        with negative_guidance(pipe, VSF(3.0), ["wheels, chain", "wheels"]):
            other = self.draw(pipe, prompts, seeds, num_images_per_prompt=2)
        plain = self.draw(pipe, prompts, seeds, num_images_per_prompt=2)
        bound = rounding(pipe, passes=2)
        same(together[2:], plain[2:], bound)  # not guided
        same(together[:2], other[:2], bound)  # does not depend on its neighbour's negative
        differs(other[2:], plain[2:], bound)
        differs(together[:2], plain[:2], bound)

    def test_the_sizes_it_takes_are_known(self, pipe: Any) -> None:
        def shown(size: tuple[int, int]) -> tuple[int, ...] | None:
            try:
                return self.draw(pipe, width=size[0], height=size[1], output_type="np")[0].shape[-3:-1][::-1]
            except (ValueError, IndexError, RuntimeError):
                return None

        sizes = sizes_of(pipe)
        one, longest = sizes.multiple, sizes.longest
        some = -(-16 // one) * one
        least = shown((some, some))
        assert least is not None and least[0] == least[1]
        other = some + one if some < longest else some - one
        for size in ((some, other), (other, some)):
            sizes.check(size)
            # Tiny autoencoders do not enlarge as the pipeline believes.
            assert shown(size) == tuple(side * least[0] // some for side in size)
        for wrong in {(some + one // 2, some), (some, some + one // 2)} - {(some, some)}:
            # Nothing is refused that the pipeline draws.
            assert shown(wrong) != wrong
            with pytest.raises(ValueError, match=f"takes multiples of {one} up to {longest} pixels a side"):
                sizes.check(wrong)
        if longest <= 512:
            assert shown((longest, some)) and not shown((longest + one, some))

    def test_unpadded_negative_is_its_real_tokens(self, pipe: Any) -> None:
        family = find_models(pipe)[0][1]
        with torch.no_grad():
            short = family.encode(pipe, "wheels, chain", False, None)
            wanted = (self.tokens, family.width(find_models(pipe)[0][0]))
            assert tuple(short.shape) == wanted, (tuple(short.shape), wanted)
            same(short, family.encode(pipe, "wheels, chain", False, 64), rounding(pipe))
            assert family.encode(pipe, "wheels, chain", True, self.limit).shape[0] >= self.tokens

    @pytest.mark.parametrize("kinds", [("text_encoder",), ("text_encoder", "tokenizer")])
    def test_a_text_needs_the_encoders(self, pipe: Any, kinds: tuple[str, ...]) -> None:
        """Freeing them behind the prompt's embeddings is common; the negative's are then wanted, too."""
        freed = copy.copy(pipe)
        names = [name for name in pipe.components if name.startswith(kinds)]
        for name in names:
            setattr(freed, name, None)
        refused = pytest.raises(ValueError, match="has no text_encoder.*give negative_prompt_embeds")
        with refused as caught, negative_guidance(freed, VSF(), "wheels"):
            pass
        assert all(name in str(caught.value) for name in names)
        with negative_guidance(freed, VSF(), ""):
            pass
        assert all(getattr(pipe, name) is not None for name in names)

    def test_a_negative_in_the_call_is_not_ignored(self, pipe: Any) -> None:
        family = find_models(pipe)[0][1]
        with torch.no_grad():
            embeds = family.encode(pipe, "wheels, chain", True, self.limit)[None]
        names = [n for n in inspect.signature(type(pipe).__call__).parameters if n.startswith("negative_")]
        # What a pipeline wants beside its embeddings; without guidance of its own it never looks at their contents.
        beside = {n: torch.ones(1, 8) for n in names if "pooled" in n} | {
            n: torch.ones(embeds.shape[:2]) for n in names if "mask" in n
        }
        for name in names:
            if name.startswith("negative_prompt") and name not in beside:
                call: dict[str, Any] = {name: embeds} | beside if "embeds" in name else {name: "wheels"}
                says = f"with {name}=.* give it to negative_guidance instead|Cannot forward both"  # the pipeline's own
                refused = pytest.raises(ValueError, match=says)
                with refused, negative_guidance(pipe, VSF(3.0), "chain"):
                    self.draw(pipe, **call)

    def test_own_guidance_of_the_pipeline_is_refused(self, pipe: Any) -> None:
        if not self.cfg:
            return
        model = find_models(pipe)[0][0]
        before = fingerprint(model)
        with pytest.raises(ValueError, match="classifier-free"), negative_guidance(pipe, VSF(), "wheels"):
            self.draw(pipe, **self.cfg)
        assert untouched(model, before)

    def test_cfg_is_the_pipelines_own(self, pipe: Any) -> None:
        names = inspect.signature(type(pipe).__call__).parameters
        scale = "true_cfg_scale" if "true_cfg_scale" in names else "guidance_scale"
        if "negative_prompt" not in names:
            with pytest.raises(ValueError, match="no classifier-free"), negative_guidance(pipe, CFG(4.0), "wheels"):
                pass
            return
        plain, wanted = self.draw(pipe), self.draw(pipe, **{scale: 4.0, "negative_prompt": "wheels"})
        with negative_guidance(pipe, CFG(4.0), "wheels"):
            assert torch.equal(self.draw(pipe), wanted)
        differs(wanted, plain, rounding(pipe, passes=2))
        assert torch.equal(self.draw(pipe), plain)

    def test_the_command_line_draws_from_its_folder(self, pipe: Any, tmp_path: Path) -> None:
        if self.cli is None:
            return
        out = tmp_path / (
            "vsf.gif" if "num_frames" in inspect.signature(type(pipe).__call__).parameters else "vsf.png"
        )
        call = ["generate", "a red bicycle", "-N", "wheels", "--model", pipe.config._name_or_path, "--steps", "2"]
        assert main([*call, "--device", "cpu", "--scale", "8", "-o", str(out), *self.cli]) == 0
        guided = out.read_bytes()
        assert main([*call, "--device", "cpu", "--method", "none", "-o", str(out), *self.cli]) == 0
        ours, plain = pixels(io.BytesIO(guided)), pixels(out)
        assert [p.size for p in ours] == [p.size for p in plain]
        assert any(a.tobytes() != b.tobytes() for a, b in zip(ours, plain, strict=True))
