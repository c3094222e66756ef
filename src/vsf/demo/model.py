"""The embedded demo model: stock diffusers and transformers classes at tiny size.

Nothing here is needed to *load* the model: the weights folder is an ordinary diffusers folder, and
`StableDiffusion3Pipeline.from_pretrained` reads it. This module says what is in it and how it is assembled.

The text side is made so that padding says nothing. The CLIP stand-ins have one layer, of which Stable Diffusion 3 uses
the input (`hidden_states[-2]`): the word embeddings. Their position embeddings and projections are zero, so word order
and the pooled vector carry nothing. The T5 stand-in has no layer: its output is the RMS-normed word embedding. The pad
embedding is zero in all three, so every pad token is the same zero vector; in MMDiT, where text has no positions, n
equal keys are one key with log(n) added to its logit, which is how training treats them.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .models import DemoModelError, demo_model
from .training.recipes import from_dict, read_recipe
from .worlds import FIRST, PAD, UNKNOWN, world

__all__ = [
    "PAD", "UNKNOWN", "DemoModelError", "Recipe", "build_components", "build_pipeline", "build_tokenizer",
    "load_demo_pipeline",
]  # fmt: skip

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusion3Pipeline

CLIP_LENGTH = 16


@dataclass(frozen=True)
class DataRecipe:
    """Pictures to make: `rows` in all, captions of at most `words` words, rendered by `workers` processes."""

    rows: int
    words: int
    workers: int


@dataclass(frozen=True)
class VaeRecipe:
    """The autoencoder; `samples` pictures seen, then `decoder_samples` by the decoder alone on noisy latents."""

    channels: tuple[int, ...]
    latent_channels: int
    samples: int
    batch: int
    lr: float
    kl: float
    edge: float
    decoder_samples: int
    decoder_noise: float
    decoder_mask_weight: float


@dataclass(frozen=True)
class TextRecipe:
    """The text tables; width of each CLIP stand-in, the joint width is twice that."""

    clip_dim: int
    pretrain_steps: int


@dataclass(frozen=True)
class TransformerRecipe:
    """The MMDiT: width heads x head_dim, `patch` latents per token side."""

    heads: int
    head_dim: int
    blocks: int
    patch: int


@dataclass(frozen=True)
class TrainRecipe:
    """Flow-matching training; `samples` and `warmup` count rows, `ema` is per step."""

    samples: int
    batch: int
    lr: float
    warmup: int
    weight_decay: float
    ema: float
    mask_weight: float
    aux_weight: float
    pad_free: float
    time_mean: float
    time_std: float
    time_uniform: float
    compile: bool
    report_minutes: float


@dataclass(frozen=True)
class DistillRecipe:
    """Guidance distillation: `samples` rows on the teacher's predictions under guidance of this scale (0 rows: none)."""

    samples: int
    guidance: float
    lr: float
    ema: float


@dataclass(frozen=True)
class LargeRecipe:
    """An autoencoder of `size` pixels for the latents of the first one (0 samples: none), made from `rows` pictures.

    The loss weighs 1 + `mask_weight` x part mask. Of the latents that are decoded the share `predicted` is what the finished
    model makes of noise levels up to `sigma`; on the others is noise of at most `noise` of their standard deviation.
    """

    seed: int
    size: int
    rows: int
    channels: tuple[int, ...]
    samples: int
    batch: int
    lr: float
    warmup: int
    ema: float
    edge: float
    mask_weight: float
    noise: float
    predicted: float
    sigma: float
    save_minutes: float


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the demo model, as read from a recipe file."""

    seed: int
    size: int
    data: DataRecipe
    vae: VaeRecipe
    text: TextRecipe
    transformer: TransformerRecipe
    train: TrainRecipe
    distill: DistillRecipe
    large: LargeRecipe

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Build from nested dicts. Raises ValueError naming every unknown or missing key."""
        return from_dict(cls, values)

    @classmethod
    def load(cls, path: str | Path | None = None) -> Recipe:
        """Read a recipe file, by default the one the shipped weights were made with."""
        return read_recipe(cls, "sd3", path)

    def to_dict(self) -> dict[str, Any]:
        """The same as nested plain dicts."""
        return asdict(self)

    @property
    def latent_size(self) -> int:
        """Side of the latent grid."""
        return self.size // 2 ** (len(self.vae.channels) - 1)

    @property
    def joint_dim(self) -> int:
        """Width of a text token as the transformer sees it."""
        return 2 * self.text.clip_dim


def build_tokenizer(max_length: int, of: str = FIRST) -> Any:
    """A word-level tokenizer over the vocabulary of a world, by its name; adds no begin or end token.

    Ids: 0 is the pad, 1 any unknown word, then the vocabulary in sorted order.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase, Replace
    from tokenizers.normalizers import Sequence as Normalizers
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(world(of).tokens)}
    core = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    core.normalizer = Normalizers([Lowercase(), Replace(Regex(r"[^\w\s]"), " ")])  # pyright: ignore[reportAttributeAccessIssue]
    core.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, unk_token=UNKNOWN, model_max_length=max_length
    )


def build_autoencoder(channels: tuple[int, ...], latent_channels: int, size: int) -> Any:
    """An untrained autoencoder of pictures of `size` pixels, which halves them before each of `channels` but the first."""
    from diffusers import AutoencoderKL

    levels = len(channels)
    # diffusers annotates these tuples as if they had one element
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * levels,  # pyright: ignore[reportArgumentType]
        block_out_channels=channels,  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=size,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    ).eval()


def build_components(recipe: Recipe) -> dict[str, Any]:
    """Untrained components of a `StableDiffusion3Pipeline`, by the names its constructor uses."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    levels = len(recipe.vae.channels)
    if recipe.size % (2 ** (levels - 1) * recipe.transformer.patch):
        raise ValueError(f"size {recipe.size} is not a multiple of {2 ** (levels - 1) * recipe.transformer.patch}")
    clip_dim, n_words = recipe.text.clip_dim, len(world(FIRST).tokens)

    def clip() -> CLIPTextModelWithProjection:
        config = CLIPTextConfig(
            vocab_size=n_words,
            hidden_size=clip_dim,
            intermediate_size=clip_dim,
            projection_dim=clip_dim,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=CLIP_LENGTH,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
        model = CLIPTextModelWithProjection(config).eval()
        state = model.state_dict()
        for name, tensor in state.items():
            if name.endswith(("position_embedding.weight", "text_projection.weight")):
                tensor.zero_()
            if name.endswith("token_embedding.weight"):
                tensor.normal_(std=0.5)[0] = 0
        return model

    t5 = T5EncoderModel(
        T5Config(vocab_size=n_words, d_model=2 * clip_dim, d_kv=16, d_ff=32, num_layers=0, num_heads=4, pad_token_id=0)
    ).eval()
    with torch.no_grad():
        t5.shared.weight.normal_()[0] = 0
    width = recipe.transformer.heads * recipe.transformer.head_dim
    transformer = SD3Transformer2DModel(
        sample_size=recipe.latent_size,
        patch_size=recipe.transformer.patch,
        in_channels=recipe.vae.latent_channels,
        out_channels=recipe.vae.latent_channels,
        num_layers=recipe.transformer.blocks,
        attention_head_dim=recipe.transformer.head_dim,
        num_attention_heads=recipe.transformer.heads,
        joint_attention_dim=recipe.joint_dim,
        caption_projection_dim=width,
        pooled_projection_dim=2 * clip_dim,
        pos_embed_max_size=recipe.latent_size,
        qk_norm="rms_norm",
    ).eval()
    # adaLN-zero (Peebles and Xie 2023): every block starts as the identity; diffusers leaves this to the trainer.
    for name, parameter in transformer.named_parameters():
        if re.search(r"(norm1(_context)?|norm_out)\.linear\.|^proj_out\.", name):
            torch.nn.init.zeros_(parameter)
    return {
        "tokenizer": build_tokenizer(CLIP_LENGTH),
        "tokenizer_2": build_tokenizer(CLIP_LENGTH),
        "tokenizer_3": build_tokenizer(256),
        "text_encoder": clip(),
        "text_encoder_2": clip(),
        "text_encoder_3": t5,
        "vae": build_autoencoder(recipe.vae.channels, recipe.vae.latent_channels, recipe.size),
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def build_pipeline(components: dict[str, Any]) -> StableDiffusion3Pipeline:
    """A stock pipeline from `build_components`."""
    from diffusers import StableDiffusion3Pipeline

    return StableDiffusion3Pipeline(**components)


def load_demo_pipeline(
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    folder: str | Path | None = None,
    *,
    model: str = "demo",
) -> Any:
    """A demo model as its stock pipeline, without any network access; "demo" is a `StableDiffusion3Pipeline`.

    `dtype` is float32 unless given; `folder` is another weights folder than the shipped one; `model` a name in
    `vsf.demo.models.MODELS`, which also says what it is made for ("demo": 128 px, 8 steps, guidance_scale 0).

    Raises:
        DemoModelError: the weights are missing or corrupt.
        KeyError: an unknown model.
    """
    return demo_model(model).load(dtype, device, folder)
