"""A batch: one negative and one strength per prompt; None leaves a sample alone."""

import torch

from vsf import VSF, load_demo_pipeline, negative_guidance

pipe = load_demo_pipeline()
prompts = ["a red bike", "a yellow face", "a green tree"]
negatives = ["wheels", "glasses", None]
noise = [torch.Generator().manual_seed(i) for i in range(3)]

with negative_guidance(pipe, VSF(scale=(1.5, 2.0, 0.0), offset=1.0), negatives):
    images = pipe(prompts, num_inference_steps=8, guidance_scale=0.0, generator=noise).images

for prompt, image in zip(prompts, images, strict=True):
    image.save(f"{prompt.split()[-1]}.png")
