"""Makes a clone of this project a node pack of ComfyUI: it hands on what the folder `comfyui` offers. Not part of the package."""

from . import comfyui

globals().update(
    {name: value for name, value in vars(comfyui).items() if name.isupper() or name == "comfy_entrypoint"}
)
WEB_DIRECTORY = "./comfyui/web"
