"""The suppression map: which part of the picture paid how much attention to the negative prompt."""

import torch

from vsf import VSF, load_demo_pipeline, negative_guidance
from vsf.images import overlay, upscale

pipe = load_demo_pipeline()
guidance = VSF(scale=1.5, offset=1.0, stop=0.75)
with negative_guidance(pipe, guidance, "windows", record=True) as guided:
    noise = torch.Generator().manual_seed(2)
    image = pipe("a blue house", num_inference_steps=8, guidance_scale=0.0, generator=noise).images[0]

suppression = guided.suppression()
for step in suppression.steps:
    print(f"step {step}: {suppression.map(step=step).mean():.1%} of the attention went to the negative")
overlay(upscale(image), suppression.map()[0]).save("map.png")
