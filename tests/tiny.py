"""A pipeline of the demo model's kind with random weights: small, fast, and sensitive to its text."""

from __future__ import annotations

from pathlib import Path

import torch

from vsf.demo.model import Recipe, build_components, build_pipeline


def save_tiny(folder: Path) -> Path:
    """Save it with `save_pretrained` and return the folder."""
    recipe = Recipe.load().to_dict()
    recipe["size"] = 32
    recipe["vae"].update(channels=(8, 16, 16), latent_channels=4)
    recipe["text"].update(clip_dim=16)
    recipe["transformer"].update(heads=2, head_dim=16, blocks=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        components = build_components(Recipe.from_dict(recipe))
        with torch.no_grad():
            for name, parameter in components["transformer"].named_parameters():
                if parameter.ndim > 1 and "pos_embed" not in name:
                    parameter.normal_(std=0.2)
    build_pipeline(components).save_pretrained(folder)
    return folder
