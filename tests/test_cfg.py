"""CFG runs through the pipeline's own implementation."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vsf import CFG, NoGuidance, NothingGuided, load_demo_pipeline, negative_guidance

PROMPTS, NEGATIVES = ["a red bike", "a blue house"], ["wheels", None]


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = load_demo_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, **more: Any) -> np.ndarray:
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    more = {"guidance_scale": 0.0, "max_sequence_length": 16} | more
    return pipe(PROMPTS, num_inference_steps=2, generator=generators, output_type="np", **more).images


def test_is_the_pipelines_own_guidance(pipe: Any) -> None:
    stock, plain = type(pipe), draw(pipe)
    wanted = draw(pipe, guidance_scale=4.0, negative_prompt=["wheels", ""])
    with negative_guidance(pipe, CFG(4.0), NEGATIVES):
        assert np.array_equal(draw(pipe), wanted)
    assert type(pipe) is stock and np.array_equal(draw(pipe), plain) and not np.array_equal(plain, wanted)


def test_is_private_to_its_thread_and_is_taken_back_after_an_exception(pipe: Any) -> None:
    stock, plain, seen = type(pipe), draw(pipe), []
    with pytest.raises(KeyboardInterrupt), negative_guidance(pipe, CFG(4.0), "wheels"):
        other = threading.Thread(target=lambda: seen.append(draw(pipe)))
        other.start()
        other.join()
        raise KeyboardInterrupt
    assert np.array_equal(seen[0], plain) and type(pipe) is stock


def test_saving_inside_the_context_writes_the_stock_class(pipe: Any, tmp_path: Path) -> None:
    with pytest.warns(NothingGuided, match="did not run"), negative_guidance(pipe, CFG(4.0), "wheels"):
        pipe.save_config(tmp_path)
    assert '"_class_name": "StableDiffusion3Pipeline"' in (tmp_path / "model_index.json").read_text()


def test_bad_input(pipe: Any) -> None:
    with pytest.raises(ValueError, match="needs negative_prompt"), negative_guidance(pipe, CFG()):
        pass
    with pytest.raises(ValueError, match="bare model"), negative_guidance(pipe.transformer, CFG(), "wheels"):
        pass
    with pytest.raises(ValueError, match="as text"), negative_guidance(pipe, CFG(), negative_prompt_embeds=[]):
        pass
    for scale in (0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"CFG\.scale"):
            CFG(scale)
    with pytest.raises(ValueError, match="no start, stop"):
        CFG(start=0.5)
    with pytest.raises(ValueError, match="guidance_scale"), negative_guidance(pipe, NoGuidance(), "wheels"):
        draw(pipe, guidance_scale=4.0)
