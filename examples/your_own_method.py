"""A method is one equation: subclass Guidance, and it works on every supported model."""

from dataclasses import dataclass

from vsf import Guidance, load_demo_pipeline, negative_guidance


@dataclass(frozen=True)
class Project(Guidance):
    """Take away the component of Z+ along Z-, per query and head: no knobs at all."""

    label = "project"

    def combine(self, at, knob):
        z, n = at.unguided.out, at.negative.out
        along = (z * n).sum(-1, keepdim=True).clamp_min(0) / n.square().sum(-1, keepdim=True).clamp_min(1e-6)
        return z - along * n


pipe = load_demo_pipeline()
with negative_guidance(pipe, Project(), "snow"):
    pipe("a purple mountain", num_inference_steps=8, guidance_scale=0.0).images[0].save("mountain.png")
