"""Textual inversions of several vectors: the pipeline spells a token out as several before it encodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_chroma import stock as chroma
from test_flux import stock as flux
from test_unet import sd, sdxl
from torch import Tensor

from closeness import close, rounding, same
from vsf import VSF, negative_guidance
from vsf.arch import find_models


def learn(pipe: Any, which: str, name: str, vectors: int, seed: int = 0) -> list[int]:
    """Load an embedding of this many vectors for one of the encoders; their token ids."""
    encoder, tokenizer = getattr(pipe, f"text_encoder{which}"), getattr(pipe, f"tokenizer{which}")
    g = torch.Generator().manual_seed(seed)
    vector = torch.randn(vectors, encoder.get_input_embeddings().weight.shape[1], generator=g)
    pipe.load_textual_inversion({name: vector}, text_encoder=encoder, tokenizer=tokenizer)
    names = [name, *(f"{name}_{i}" for i in range(1, vectors))]
    ids = tokenizer.convert_tokens_to_ids(names)
    assert torch.equal(encoder.get_input_embeddings().weight[ids], vector)
    return ids


def clip_states(encoder: Any, ids: list[int], penultimate: bool = False) -> Tensor:
    out = encoder(torch.tensor([[0, *ids, 1]]), output_hidden_states=True)
    return out.hidden_states[-2][0] if penultimate else out.last_hidden_state[0]


def encoded(kind: str) -> tuple[Any, Tensor]:
    """A pipeline that knows "<bad>", and the states of "<bad>" from the encoders themselves."""
    if kind == "sd15":
        pipe = sd().to(torch.float64)
        return pipe, clip_states(pipe.text_encoder, learn(pipe, "", "<bad>", 3))
    if kind in ("sdxl", "sdxl-uneven"):
        pipe = sdxl().to(torch.float64)  # a vector changes less than twenty times what float32 rounds
        first = learn(pipe, "", "<bad>", 3)
        second = learn(pipe, "_2", "<bad>", 3 if kind == "sdxl" else 2, seed=1)
        second += [1] * (len(first) - len(second))  # behind the end token, pads
        states = [clip_states(e, i, True) for e, i in ((pipe.text_encoder, first), (pipe.text_encoder_2, second))]
        return pipe, torch.cat(states, -1)
    pipe, which = (flux(), "_2") if kind == "flux" else (chroma(), "")
    pipe.to(torch.float64)
    ids = learn(pipe, which, "<bad>", 3)
    end = getattr(pipe, f"tokenizer{which}").eos_token_id
    return pipe, getattr(pipe, f"text_encoder{which}")(torch.tensor([[*ids, end]])).last_hidden_state[0]


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed.*:FutureWarning")  # Chroma's own
@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sdxl-uneven", "flux", "chroma"])
def test_every_vector_of_an_embedding_is_in_the_negative(kind: str) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        pipe, truth = encoded(kind)
        pipe.set_progress_bar_config(disable=True)
        family = find_models(pipe)[0][1]
        got = family.encode(pipe, "<bad>", False, None)
        assert got.shape == truth.shape
        same(got, truth, rounding(pipe, torch.float64))
        padded = family.encode(pipe, "<bad>", True, None)
        assert len(padded) > len(truth) or kind == "chroma"

    def draw(**negative: Any) -> Tensor:
        with negative_guidance(pipe, VSF(3.0), **negative):
            return pipe(
                "a red bicycle", num_inference_steps=1, height=16, width=16, output_type="latent", guidance_scale=0.0,
                generator=torch.Generator().manual_seed(0),
            ).images  # fmt: skip

    by_text = draw(negative_prompt="<bad>")
    cut = draw(negative_prompt_embeds=truth[: len(truth) - 2])
    close(by_text, draw(negative_prompt_embeds=truth), cut, rounding(pipe, torch.float64))
    weighted = draw(negative_prompt="<bad>:2")
    factors = torch.full((len(truth),), 2.0)
    again = draw(negative_prompt_embeds=[truth], negative_weights=[factors])
    close(weighted, again, by_text, rounding(pipe, torch.float64))


def test_an_embedding_longer_than_the_encoder_takes_is_refused() -> None:
    pipe = sd()
    learn(pipe, "", "<long>", 80)
    with (
        pytest.raises(ValueError, match="'<long>' is 82 tokens long.*takes 77"),
        negative_guidance(pipe, VSF(), "<long>"),
    ):
        pass
