"""A picture without and with a negative prompt, from the same noise. Runs offline on the embedded model."""

import torch

from vsf import VSF, load_demo_pipeline, negative_guidance

pipe = load_demo_pipeline()
call = {"num_inference_steps": 8, "guidance_scale": 0.0, "max_sequence_length": 16}

without = pipe("a red bike on grass", generator=torch.Generator().manual_seed(1), **call).images[0]
with negative_guidance(pipe, VSF(scale=1.5, offset=1.0, stop=0.75), negative_prompt="wheels"):
    guided = pipe("a red bike on grass", generator=torch.Generator().manual_seed(1), **call).images[0]

without.save("without.png")
guided.save("with.png")
