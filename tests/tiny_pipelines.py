"""Stock pipelines of tiny random components with real tokenizers, and what every guided one has to fulfil."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from test_contract import Swap, error
from vsf import NAG, VSF, negative_guidance
from vsf.arch import find_models

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


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A word tokenizer with the special tokens, the length and the template of "t5", "clip", "qwen" or "glm"."""
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


def t5() -> T5EncoderModel:
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
    """The pipeline as it comes back from disk."""
    pipe.save_pretrained(folder)
    again = type(pipe).from_pretrained(folder)
    again.set_progress_bar_config(disable=True)
    return again


class PipelineContract:
    """Inherit and give a `pipe` fixture (module scope)."""

    #: What every call is given, and what turns real classifier-free guidance on.
    call: ClassVar[dict[str, Any]] = {}
    cfg: ClassVar[dict[str, Any]] = {"guidance_scale": 4.0}
    #: Tokens of "wheels, chain" without pads.
    tokens: ClassVar[int]
    #: `max_sequence_length` given to the pipeline and to the guidance.
    limit: ClassVar[int | None] = 16
    #: Rows and columns of image tokens.
    grid: ClassVar[tuple[int, int]] = (8, 8)

    def draw(self, pipe: Any, prompt: Any = "a red bicycle", seeds: tuple[int, ...] = (0,), **kwargs: Any) -> Tensor:
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        length = {} if self.limit is None else {"max_sequence_length": self.limit}
        out = pipe(
            **{"prompt": prompt, "num_inference_steps": 2, "height": 16, "width": 16, "output_type": "latent"}
            | {"generator": generators} | length | self.call | kwargs
        )  # fmt: skip
        return out.images

    def stock_negative(self, pipe: Any, text: str) -> Tensor:
        """The stock pipeline with the negative as its prompt, but with the prompt's pooled embedding."""
        return self.draw(pipe, text)

    def test_guides_and_restores(self, pipe: Any) -> None:
        plain = self.draw(pipe)
        for method in (VSF(3.0), VSF(3.0, layout="upstream"), NAG(4.0)):
            with negative_guidance(pipe, method, "wheels, chain", max_sequence_length=self.limit):
                guided = self.draw(pipe)
            assert bool(guided.isfinite().all()) and error(guided, plain) > 1e-4
        assert torch.equal(self.draw(pipe), plain)

    def test_maps_where_the_negative_acts(self, pipe: Any) -> None:
        with negative_guidance(pipe, VSF(3.0), "wheels, chain", record=True) as guided:
            self.draw(pipe)
        suppression = guided.suppression()
        assert suppression.steps == [0, 1] and suppression.map().shape == (1, *self.grid)

    @pytest.mark.parametrize("negative", [None, "", " "])
    def test_empty_negative_is_bit_equal(self, pipe: Any, negative: str | None) -> None:
        plain = self.draw(pipe)
        with negative_guidance(pipe, VSF(3.0), [negative]):
            assert torch.equal(self.draw(pipe), plain)

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
        assert error(together[2:], plain[2:]) < 1e-5  # not guided
        assert error(together[:2], other[:2]) < 1e-5  # does not depend on its neighbour's negative
        assert error(other[2:], plain[2:]) > 1e-4 and error(together[:2], plain[:2]) > 1e-4

    def test_swapping_the_branches_draws_the_negative_prompt(self, pipe: Any) -> None:
        wanted = self.stock_negative(pipe, "wheels, chain")
        with negative_guidance(pipe, Swap(), "wheels, chain", max_sequence_length=self.limit):
            swapped = self.draw(pipe)
        assert error(swapped, wanted) < 1e-3 * error(self.draw(pipe), wanted)

    def test_unpadded_negative_is_its_real_tokens(self, pipe: Any) -> None:
        family = find_models(pipe)[0][1]
        with torch.no_grad():
            short = family.encode(pipe, "wheels, chain", False, None)
            wanted = (self.tokens, family.width(pipe.transformer))
            assert tuple(short.shape) == wanted, (tuple(short.shape), wanted)
            assert error(short, family.encode(pipe, "wheels, chain", False, 64)) < 1e-6
            assert family.encode(pipe, "wheels, chain", True, self.limit).shape[0] >= self.tokens

    def test_own_guidance_of_the_pipeline_is_refused(self, pipe: Any) -> None:
        if not self.cfg:
            return
        before = [m.processor for m in pipe.transformer.modules() if hasattr(m, "processor")]
        with pytest.raises(ValueError, match="classifier-free"), negative_guidance(pipe, VSF(), "wheels"):
            self.draw(pipe, **self.cfg)
        after = [m.processor for m in pipe.transformer.modules() if hasattr(m, "processor")]
        assert all(a is b for a, b in zip(after, before, strict=True))
