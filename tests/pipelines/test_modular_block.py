"""The block for modular pipelines: it is `negative_guidance` around the pipeline of the same blocks, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers.modular_pipelines as modular
import diffusers.utils.dynamic_modules_utils as dynamic
import pytest
import torch
from diffusers.modular_pipelines import ModularPipeline, ModularPipelineBlocks
from test_modular import CASES, build, draw

from vsf import NAG, VSF, Suppression, negative_guidance
from vsf.modular import NegativeGuidanceStep, save_block

EXAMPLE = Path(__file__).parents[2] / "examples" / "modular_block"
pytestmark = pytest.mark.filterwarnings("ignore:.*xperimental.*")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Diffusers copies the code it loads into a cache of the user."""
    import sys

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        del sys.modules[name]


def share(pipe: Any, plain: Any) -> None:
    """Give a pipeline the components of another, but what it made itself."""
    made = {k: v for k, v in pipe.components.items() if v is not None and not k.endswith("guider")}
    pipe.update_components(**{k: v for k, v in plain.components.items() if v is not None and k not in made})


def guided_by(blocks: Any, plain: Any) -> Any:
    """A pipeline of these blocks with the components of a stock modular one."""
    pipe = blocks.init_pipeline()
    share(pipe, plain)
    assert type(pipe) is type(plain)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("wan", "ltx")])
def test_it_is_the_guidance_around_the_stock_pipeline(name: str) -> None:
    case = CASES[name]
    _, stock = build(case)
    plain = draw(stock, case)
    with negative_guidance(stock, VSF(3.0, 0.2), "wheels:2, chain", max_sequence_length=case.limit):
        wanted = draw(stock, case)
    whole = guided_by(NegativeGuidanceStep(stock.blocks), stock)
    assert torch.equal(draw(whole, case), plain) and torch.equal(draw(whole, case, negative=" "), plain)
    assert torch.equal(draw(whole, case, negative="wheels:2, chain", scale=3.0, offset=0.2), wanted)
    assert not torch.equal(wanted, plain)
    # Around the blocks that denoise alone, with the text step beside it.
    blocks = stock.blocks
    blocks.sub_blocks["denoise"] = NegativeGuidanceStep(blocks.sub_blocks["denoise"])
    part = guided_by(blocks, stock)
    assert torch.equal(draw(part, case, negative="wheels:2, chain", scale=3.0, offset=0.2), wanted)
    assert torch.equal(draw(part, case), plain)
    assert torch.equal(draw(stock, case), plain)


def test_other_methods_embeddings_and_maps() -> None:
    case = CASES["qwen"]
    _, stock = build(case)
    pipe = guided_by(NegativeGuidanceStep(stock.blocks), stock)
    with negative_guidance(stock, NAG(5.0), "wheels", max_sequence_length=16):
        wanted = draw(stock, case)
    assert torch.equal(draw(pipe, case, negative="wheels", method=NAG(5.0)), wanted)
    tokens = torch.randn(3, stock.transformer.config.joint_attention_dim, generator=torch.Generator().manual_seed(1))
    with negative_guidance(stock, VSF(blocks=(1,), stop=0.5), negative_prompt_embeds=tokens, record=True) as guided:
        wanted = draw(stock, case)
    state: Any = draw(pipe, case, negative_embeds=tokens, guided_blocks=(1,), stop=0.5, record=True, output=None)
    assert torch.equal(state.get("latents"), wanted)
    found = state.get("suppression")
    assert isinstance(found, Suppression) and found.share.keys() == guided.suppression().share.keys()
    assert all(torch.equal(found.share[at], share) for at, share in guided.suppression().share.items())


def test_a_map_of_nothing_costs_no_picture() -> None:
    case = CASES["qwen"]
    _, stock = build(case)
    pipe, plain = guided_by(NegativeGuidanceStep(stock.blocks), stock), draw(stock, case)
    for negative in ("", "wheels:0"):
        state: Any = draw(pipe, case, negative=negative, record=True, output=None)
        assert torch.equal(state.get("latents"), plain) and state.get("suppression") is None


def test_the_sound_has_a_negative_of_its_own() -> None:
    case = CASES["ltx2"]
    _, stock = build(case)
    pipe = guided_by(NegativeGuidanceStep(stock.blocks), stock)
    with negative_guidance(stock, VSF(), audio_negative_prompt="wheels", max_sequence_length=16):
        wanted = draw(stock, case)
    assert torch.equal(draw(pipe, case, audio_negative="wheels"), wanted)


def test_diffusers_loads_the_block_from_a_folder() -> None:
    case = CASES["z-image"]
    _, stock = build(case)
    with negative_guidance(stock, VSF(3.0), "wheels", max_sequence_length=case.limit):
        wanted = draw(stock, case)
    block = ModularPipelineBlocks.from_pretrained(str(EXAMPLE), trust_remote_code=True, inner=stock.blocks)
    assert isinstance(block, NegativeGuidanceStep)
    assert torch.equal(draw(guided_by(block, stock), case, negative="wheels", scale=3.0), wanted)
    with pytest.raises(ValueError, match="trust_remote_code"):
        ModularPipelineBlocks.from_pretrained(str(EXAMPLE), trust_remote_code=False)
    empty = ModularPipelineBlocks.from_pretrained(str(EXAMPLE), trust_remote_code=True)
    with pytest.raises(ValueError, match="NegativeGuidance has no blocks to guide"):
        empty.init_pipeline()(negative="wheels")


def test_the_block_in_the_repository_is_what_is_written(tmp_path: Path) -> None:
    save_block(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == {
        p.name: p.read_bytes() for p in EXAMPLE.iterdir() if p.is_file()
    }


def test_a_saved_pipeline_is_loaded_with_its_guidance(tmp_path: Path) -> None:
    case = CASES["z-image"]
    _, stock = build(case)
    with negative_guidance(stock, VSF(3.0), "wheels", max_sequence_length=case.limit):
        wanted = draw(stock, case)
    folder = tmp_path / "pipeline"
    folder.mkdir()
    stock.save_pretrained(str(folder), overwrite_modular_index=True)
    save_block(folder, modular.ZImageAutoBlocks)
    with pytest.raises(ValueError, match="trust_remote_code"):  # and not the same pipeline unguided
        ModularPipeline.from_pretrained(str(folder))
    pipe = ModularPipeline.from_pretrained(str(folder), trust_remote_code=True)
    assert isinstance(pipe.blocks, NegativeGuidanceStep) and type(pipe) is type(stock)
    pipe.load_components(torch_dtype=torch.float32)
    share(pipe, stock)  # what is no component that can be saved
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(draw(pipe, case, negative="wheels", scale=3.0), wanted)


def test_what_is_refused(tmp_path: Path) -> None:
    case = CASES["qwen"]
    _, stock = build(case)
    pipe = guided_by(NegativeGuidanceStep(stock.blocks), stock)
    with pytest.raises(ValueError, match="both a method and scale of VSF were given"):
        draw(pipe, case, negative="wheels", method=NAG(), scale=2.0)
    with pytest.raises(ValueError, match="these blocks have inputs named .*negative"):
        NegativeGuidanceStep(NegativeGuidanceStep(stock.blocks))
    with pytest.raises(ValueError, match="NegativeGuidanceStep is not a class of diffusers"):
        save_block(tmp_path, NegativeGuidanceStep)
