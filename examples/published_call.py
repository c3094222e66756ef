"""The published call signature, as a thin subclass of the stock pipeline."""

from vsf import VSFStableDiffusion3Pipeline, load_demo_pipeline

# With real weights: VSFStableDiffusion3Pipeline.from_pretrained("...").to("cuda")
pipe = VSFStableDiffusion3Pipeline(**load_demo_pipeline().components)
image = pipe(
    prompt="a brown table",
    negative_prompt="cards",
    guidance_scale=0.0,
    num_inference_steps=8,
    scale=2.5,
    offset=0.1,
).images[0]
image.save("table.png")
