from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

import tiny_pipelines as tiny
from closeness import differs, rounding
from specs import unet
from vsf.arch import find_models

sentencepiece = pytest.importorskip("sentencepiece")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # the text encoder has a part in TorchScript
    from diffusers import KolorsImg2ImgPipeline, KolorsPipeline
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer


def tokenizer(folder: Path) -> Any:
    """Of one token a letter."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([tiny.TEXTS]), model_writer=made, vocab_size=64, model_type="char",
        hard_vocab_limit=False, minloglevel=2,
    )  # pyright: ignore  # fmt: skip
    (folder / "tokenizer.model").write_bytes(made.getvalue())
    return ChatGLMTokenizer(str(folder / "tokenizer.model"))


def text_encoder(words: int) -> ChatGLMModel:
    config = ChatGLMConfig(
        num_layers=3, padded_vocab_size=words, hidden_size=24, ffn_hidden_size=16, kv_channels=8, num_attention_heads=3,
        seq_length=512, original_rope=True, multi_query_attention=True, multi_query_group_num=1,
    )  # fmt: skip
    model = ChatGLMModel(config, empty_init=False)
    for parameter in model.parameters():  # of which it leaves some as they were in memory
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def stock(folder: Path, kind: Any = KolorsPipeline) -> Any:
    torch.manual_seed(0)
    words = tokenizer(folder)
    return kind(
        tiny.vae(4), text_encoder(words.vocab_size), words, unet.build(torch.float32, "kolors"),
        DDIMScheduler(steps_offset=1, clip_sample=False),
    )  # fmt: skip


class Kolors(tiny.ShortContract):
    call = {"guidance_scale": 0.0}
    limit = None  # it is taken and not used: always 256

    def stock_negative(self, pipe: Any, text: str) -> Tensor:
        # The image-to-image pipeline of diffusers 0.42.1 forgets the pooled embedding that it is given.
        encode = pipe.encode_prompt
        pipe.encode_prompt = lambda prompt, *args, **own: (
            encode(text, *args, **own)[0],
            *encode(prompt, *args, **own)[1:],
        )
        try:
            return self.draw(pipe)
        finally:
            del pipe.encode_prompt


class TestKolors(Kolors, tiny.PipelineContract):
    """The tokenizer pads in front, and the model sees the pads of its prompt."""

    tokens = 2 + 14  # [gMASK] sop and letters, of which the first is the space before
    grid = (16, 16)

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        folder = tmp_path_factory.mktemp("kolors")
        return tiny.saved(stock(folder), folder)

    def test_the_real_tokens_stand_behind_the_pads(self, pipe: Any) -> None:
        family = find_models(pipe)[0][1]
        with torch.no_grad():
            short, padded = (family.encode(pipe, "wheels, chain", whole, None) for whole in (False, True))
        assert len(padded) == 256
        assert torch.equal(short, padded[-self.tokens :])
        differs(short, padded[: self.tokens], rounding(pipe))


class TestKolorsImg2Img(Kolors):
    call = {"guidance_scale": 0.0, "image": tiny.picture(), "strength": 1.0}

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        folder = tmp_path_factory.mktemp("kolors-img2img")
        return tiny.saved(stock(folder, KolorsImg2ImgPipeline), folder)
