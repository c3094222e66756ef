"""ComfyUI nodes for negative prompts inside attention: VSF, and NAG and NASA for comparison."""

from .locate import locate

locate()

from . import nodes  # noqa: E402

#: Help pages: docs/<node id>.md in it.
WEB_DIRECTORY = "./web"

try:
    from comfy_api.latest import ComfyExtension  # pyright: ignore[reportMissingImports]
except ImportError:  # a version of ComfyUI without the current schema
    NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = nodes.v1()
else:

    class VSFExtension(ComfyExtension):
        async def get_node_list(self) -> list[type]:
            return nodes.v3()

    async def comfy_entrypoint() -> VSFExtension:
        return VSFExtension()
