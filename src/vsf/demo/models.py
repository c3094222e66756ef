"""The demo models: which world each draws, by which pipeline, how it is called, and what is recommended for it.

One world may be drawn by several models. A record is data, so that help texts and pages can be made of it without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..guidance import CFG, NAG, NASA, VSF, Guidance

if TYPE_CHECKING:
    import torch

    from .worlds import World


__all__ = ["MODELS", "DemoModel", "DemoModelError", "Shown", "Theme", "demo_model", "model_of"]


class DemoModelError(RuntimeError):
    """The demo weights are missing or cannot be read."""


@dataclass(frozen=True)
class Shown:
    """A prompt and a negative with one noise that shows them well: for show; how often it works is measured elsewhere."""

    prompt: str
    negative: str
    seed: int


@dataclass(frozen=True)
class Theme:
    """A use of negative prompts, and entries that show it."""

    title: str
    text: str
    entries: tuple[Shown, ...]


@dataclass(frozen=True)
class DemoModel:
    """A trained model of a world.

    Attributes:
        name: what `--model` takes.
        title: what a page calls it.
        world: a name in `vsf.demo.worlds.WORLDS`.
        pipeline: the stock pipeline's class in diffusers.
        network: the class of its transformer.
        folder: its weights, below this package's folder.
        steps: denoising steps it is made for.
        size: width and height in pixels.
        guidance_scale: the pipeline's own, at which it is gated and compared.
        text_length: given to the pipeline in every call: every prompt of the world fits, and pads cost time.
        call: further arguments of the pipeline: num_frames, and width and height where its own are not `size`. What a
            user gives goes before them.
        recommended: what guides it where nothing else is asked for.
        tuned: the best of equally many tries per method on dev cases, by label; `recommended` is not repeated.
        strong: a setting for removing more at more damage.
        sizes: what a page offers; sides are multiples of `multiple` up to `largest`.
        shown: the pictures of `vsf demo show`.
        themes: what else the page's gallery has.
        batch: pictures drawn together in a benchmark.
        fps: frames per second of its clips; None where it draws pictures.
    """

    name: str
    title: str
    world: str
    pipeline: str
    network: str
    folder: str
    steps: int
    size: tuple[int, int]
    guidance_scale: float
    text_length: int
    call: Mapping[str, Any]
    recommended: Guidance
    strong: Guidance
    tuned: Mapping[str, Guidance]
    sizes: tuple[str, ...]
    multiple: int
    largest: int
    shown: tuple[Shown, ...]
    themes: tuple[Theme, ...] = ()
    batch: int = 32
    fps: int | None = None

    @property
    def video(self) -> bool:
        """Whether it draws clips."""
        return self.fps is not None

    @property
    def weights(self) -> Path:
        """Folder of the shipped weights, in the format of the stock pipeline."""
        return Path(str(files("vsf.demo").joinpath(self.folder)))

    @property
    def is_there(self) -> bool:
        """Whether the package came with its weights."""
        return (self.weights / "model_index.json").is_file()

    def of_world(self) -> World:
        """The record of its world."""
        from .worlds import world

        return world(self.world)

    def completed(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call of the pipeline with what it needs besides them."""
        return {**self.call, **call, "max_sequence_length": self.text_length}

    def load(
        self,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        folder: str | Path | None = None,
    ) -> Any:
        """The model as its stock pipeline, without any network access; float32 unless `dtype` is given.

        `folder` is another weights folder than the shipped one. Raises DemoModelError when weights are missing or
        corrupt.
        """
        import diffusers
        import torch

        path = self.weights if folder is None else Path(folder)
        if not (path / "model_index.json").is_file():
            if folder is None:
                raise DemoModelError(
                    f"no demo weights in {path}: reinstall the package or make them with `vsf demo train`"
                )
            raise DemoModelError(f"no model_index.json in {path}: not a folder written by save_pretrained")
        try:
            kind = getattr(diffusers, self.pipeline)
            return kind.from_pretrained(str(path), dtype=dtype or torch.float32, local_files_only=True).to(device)
        except Exception as error:  # whatever the readers raise on damaged files: safetensors, json, OSError, KeyError
            raise DemoModelError(f"the demo weights in {path} cannot be read: {error}") from error


#: The best of twelve on dev cases, before there was `vsf bench sweep` (docs/evidence/bench).
_VSF, _STRONG = VSF(scale=1.5, offset=1.0, stop=0.75), VSF(scale=2.0, offset=0.0, normalize=1.0)
_NAG, _NASA, _CFG = NAG(scale=2.0, tau=1.5, alpha=0.5, stop=0.75), NASA(scale=0.4), CFG(scale=1.5)

MODELS: dict[str, DemoModel] = {
    model.name: model
    for model in (
        DemoModel(
            name="demo",
            title="Demo model, 128 px",
            world="pictures",
            pipeline="StableDiffusion3Pipeline",
            network="SD3Transformer2DModel",
            folder="weights",
            steps=8,
            size=(128, 128),
            guidance_scale=0.0,
            text_length=16,
            call={},
            recommended=_VSF,
            strong=_STRONG,
            tuned={"nag": _NAG, "nasa": _NASA, "cfg": _CFG},
            sizes=("128x128", "96x96", "64x64"),
            multiple=16,
            largest=256,
            shown=(
                Shown("a red bike on grass", "wheels", 2),
                Shown("a blue house on grass", "windows", 10),
                Shown("a yellow face", "glasses", 12),
                Shown("a green tree on grass", "apples", 2),
                Shown("a pink cake in a room", "candles", 8),
                Shown("a red train on grass", "smoke", 5),
                Shown("a brown table in a room", "cards", 2),
                Shown("a red castle at night", "flag", 11),
            ),
            themes=(
                Theme(
                    "Away from a style",
                    "The demo world knows three styles: flat, outlined, and cutout with a white rim. "
                    "Anti-aesthetic prompts (no bokeh, nothing glossy) need a large model.",
                    (
                        Shown("a cat", "cutout", 3),
                        Shown("a house on grass", "outlined", 4),
                        Shown("a robot", "purple, brown", 3),
                    ),
                ),
                Theme(
                    "The same noun in both prompts",
                    "What is left of a thing without itself. Here that is a colour and a rough shape; abstract art "
                    "needs a large model.",
                    (
                        Shown("a red car on grass", "car", 4),
                        Shown("a red car on grass", "car", 5),
                        Shown("a blue cat in a room", "cat", 4),
                        Shown("a face", "face", 6),
                    ),
                ),
            ),
        ),
        DemoModel(
            name="demo-flux",
            title="Demo Flux model, 128 px",
            world="pictures",
            pipeline="FluxPipeline",
            network="FluxTransformer2DModel",
            folder="weights_flux",
            steps=8,
            size=(128, 128),
            guidance_scale=3.0,
            text_length=16,
            call={"width": 128, "height": 128},
            recommended=VSF(scale=3.0, offset=1.0),
            strong=VSF(scale=1.5, offset=0.0),
            # The best of six (VSF), four (NAG), three (NASA) and two (CFG) on dev cases, see docs/evidence/flux.
            tuned={"nag": NAG(scale=4.0, tau=2.5, alpha=0.25), "nasa": _NASA, "cfg": CFG(scale=3.0)},
            sizes=("128x128",),
            multiple=16,
            largest=256,
            shown=(
                Shown("a blue car in the city", "wheels", 0),
                Shown("a yellow face", "glasses", 12),
                Shown("a green tree on grass", "apples", 2),
                Shown("a pink cake in a room", "candles", 8),
            ),
        ),
        DemoModel(
            name="demo-wan",
            title="Demo Wan model, 9 frames of 64 px",
            world="clips",
            pipeline="WanPipeline",
            network="WanTransformer3DModel",
            folder="weights_wan",
            steps=8,
            size=(64, 64),
            guidance_scale=1.0,
            text_length=16,
            call={"width": 64, "height": 64, "num_frames": 9},
            # The best of ten tries of each on twenty dev cases, rounded; docs/evidence/unseen.
            recommended=VSF(scale=5.0, offset=3.7, start=0.25, stop=0.625),
            strong=VSF(scale=3.5, offset=0.1),
            tuned={
                "nag": NAG(scale=2.6, tau=1.3, alpha=0.91, stop=0.75),
                "nasa": NASA(scale=1.03, stop=0.5),
                "cfg": CFG(scale=2.5),
            },
            sizes=("64x64",),
            multiple=16,
            largest=128,
            shown=(
                Shown("a red bike on grass", "wheels", 13),
                Shown("a red castle on grass", "flag", 11),
                Shown("a yellow train", "smoke", 6),
                Shown("a blue boat by the sea", "sail", 3),
            ),
            batch=16,
            fps=8,
        ),
    )
}


def demo_model(name: str) -> DemoModel:
    """The record of a demo model. Raises KeyError with a sentence for an unknown name."""
    if name not in MODELS:
        from ..grammar import unknown

        raise KeyError(unknown("demo model", name, MODELS))
    return MODELS[name]


def model_of(pipe: Any) -> DemoModel | None:
    """The record whose transformer's class and vocabulary this pipeline has: a shipped model, or one trained likewise.

    So also in another pipeline made of its components, such as image to image. Of several, the one whose folder the
    transformer was read from, else the first.
    """
    vocabulary = set(getattr(getattr(pipe, "tokenizer", None), "get_vocab", dict)())
    transformer = getattr(pipe, "transformer", None)
    network, source = type(transformer).__name__, str(getattr(transformer, "config", {}).get("_name_or_path"))
    alike = [m for m in MODELS.values() if network == m.network and vocabulary == set(m.of_world().tokens)]
    return next((m for m in alike if m.weights in Path(source).parents), alike[0] if alike else None)
