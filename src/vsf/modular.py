"""A block for the modular pipelines of diffusers: encode the negative, and run other blocks under guidance.

    blocks = NegativeGuidanceStep(QwenImageAutoBlocks())
    pipe = blocks.init_pipeline("Qwen/Qwen-Image")
    pipe.load_components()
    pipe(prompt="a bicycle", negative="wheels", scale=3.5, output="images")

It is `negative_guidance` around what is inside it, no more. As a folder that diffusers' own loader reads: `save_block`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from diffusers import __version__ as diffusers_version
from diffusers import modular_pipelines
from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

from .core.suppression import Suppression
from .files import json_bytes, write_whole
from .guidance import VSF, Guidance, knobs
from .guide import negative_guidance
from .negatives import says_something

__all__ = ["NegativeGuidanceStep", "save_block"]

_TEXT = str | list[str | None]
_OWN = (
    InputParam("negative", _TEXT, description="what should not be there; one for all, or one per prompt"),
    InputParam("negative_embeds", description="instead of text: [n, W], or a list of such, real tokens only"),
    InputParam("audio_negative", _TEXT, description="what should not be heard (LTX-2), where that is not `negative`"),
    InputParam("method", Guidance, description="another method than VSF, with its settings, such as NAG(scale=4)"),
    *(InputParam(name, description=f"of VSF: {spec.help}") for name, spec in knobs(VSF).items()),
    InputParam("guided_blocks", description="of VSF: the numbers of the model's blocks that are guided"),
    InputParam("record", bool, default=False, description="keep where the negative acted, as `suppression`"),
)


class NegativeGuidanceStep(SequentialPipelineBlocks):
    """The blocks in it, run under `negative_guidance`.

    Args:
        inner: the blocks of a whole modular pipeline, or those that denoise. Those of a pipeline whose text step is
            elsewhere find it, as long as it is in the pipeline that runs them.

    Inputs beside those of the blocks (all optional): `negative`, `negative_embeds`, `audio_negative`, the settings of `VSF`
    (`scale`, `offset`, `layout`, `normalize`, `start`, `stop`, `guided_blocks`) or a `method`, and `record`. Without a
    negative the blocks run as if they stood alone, bit for bit. The guider of the pipeline must be off (scale 1).

    Outputs beside theirs: `suppression`, the `Suppression` of a run with `record`; None where no step was guided.

    Raises:
        ValueError: an input of the blocks has the name of one of these; and when it runs: there are no blocks in it, both
            settings and a method are given, or what `negative_guidance` refuses.
    """

    def __init__(self, inner: ModularPipelineBlocks | None = None) -> None:
        super().__init__()
        if inner is not None:
            self.sub_blocks["guided"] = inner
        taken = {own.name for own in _OWN} & {param.name for param in super().inputs}  # pyright: ignore[reportAttributeAccessIssue]
        if taken:
            raise ValueError(
                f"these blocks have inputs named {', '.join(sorted(taken))}, which the guidance has as well"
            )

    @property
    def description(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return "Encodes the negative prompt and runs the blocks inside under VSF (or another method), in one pass per step."

    @property
    def inputs(self) -> list[Any]:
        return [*_OWN, *super().inputs]

    @property
    def required_inputs(self) -> list[str]:
        return list(super().required_inputs) if self.sub_blocks else []

    @property
    def intermediate_outputs(self) -> list[Any]:
        own = OutputParam("suppression", Suppression, description="where the negative acted, with `record`")
        return [*super().intermediate_outputs, own]

    def __call__(self, pipeline: Any, state: Any) -> tuple[Any, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not self.sub_blocks:
            raise ValueError(
                f"{type(self).__name__} has no blocks to guide; make it as {type(self).__name__}(blocks) with those of a "
                "modular pipeline, or those that denoise"
            )
        given: dict[str, Any] = {own.name: state.get(own.name) for own in _OWN}
        names = {name: name for name in knobs(VSF)} | {"guided_blocks": "blocks"}
        settings = {names[name]: given[name] for name in names if given[name] is not None}
        method = given["method"]
        if method is not None and settings:
            raise ValueError(f"both a method and {', '.join(settings)} of VSF were given; set them in the method")
        negatives = [given[name] for name in ("negative", "negative_embeds", "audio_negative")]
        record = bool(given["record"])
        state.set("suppression", None)
        if not says_something(negatives):
            return super().__call__(pipeline, state)
        text, embeds, audio = negatives
        with negative_guidance(
            pipeline, VSF(**settings) if method is None else method, "" if text is None and embeds is None else text,
            negative_prompt_embeds=embeds, audio_negative_prompt=audio,
            max_sequence_length=state.get("max_sequence_length"), record=record,
        ) as guided:  # fmt: skip
            pipeline, state = super().__call__(pipeline, state)
        if record:
            with suppress(ValueError):  # nothing was guided: the picture is not lost for it
                state.set("suppression", guided.suppression())
        return pipeline, state


_BLOCK = '''"""{what} under guidance away from a negative prompt; needs value-sign-flip."""

{imports}from vsf.modular import NegativeGuidanceStep


class NegativeGuidance(NegativeGuidanceStep):
    """See `vsf.modular.NegativeGuidanceStep` for its inputs."""
{body}'''


def save_block(folder: str | Path, inner: type[ModularPipelineBlocks] | None = None) -> None:
    """Write `block.py` and `modular_config.json`, which diffusers' loader reads, into a folder that is there.

    Args:
        folder: where to. That of a saved modular pipeline becomes one that `ModularPipeline.from_pretrained` loads guided.
        inner: the class of diffusers whose blocks are guided, such as `QwenImageAutoBlocks`. None: the block is empty, and
            takes them when it is loaded.

    Diffusers runs the code of such a folder only with `trust_remote_code=True`, also where it lies on this machine; what it
    runs is the ten lines of `block.py`. Who has the package installed can do without: `NegativeGuidanceStep(blocks)`.

    Raises:
        ValueError: `inner` is not a class that diffusers has under its name.
        OSError: the folder is missing or cannot be written to.
    """
    imports = body = ""
    if inner is not None:
        name = getattr(inner, "__name__", repr(inner))
        if getattr(modular_pipelines, name, None) is not inner:
            raise ValueError(f"{name} is not a class of diffusers.modular_pipelines, so block.py could not import it")
        imports = f"from diffusers.modular_pipelines import {name}\n"
        body = f'\n    block_classes = [{name}]\n    block_names = ["guided"]\n'
    what = "The blocks inside" if inner is None else inner.__name__
    config = {
        "_class_name": "NegativeGuidance",
        "_diffusers_version": diffusers_version,
        "auto_map": {"ModularPipelineBlocks": "block.NegativeGuidance"},
    }
    write_whole(Path(folder) / "block.py", _BLOCK.format(what=what, imports=imports, body=body).encode())
    write_whole(Path(folder) / "modular_config.json", json_bytes(config, 2))
