"""English texts of the nodes as ComfyUI's translations have them, which all other languages follow.

`PYTHONPATH=src:tests python tests/comfyui/comfy_locales.py` writes locales/en anew; a test says when that is not what this
makes, or when a language lacks a text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "comfyui" / "locales"


def english(nodes: Any) -> dict[str, Any]:
    """What locales/en/nodeDefs.json holds; `nodes` are the pack's descriptions of its nodes."""
    return {
        node.id: {
            "display_name": node.title,
            "description": node.help,
            "inputs": {spec.name: {"name": spec.name, "tooltip": spec.help} for spec in node.inputs},
            "outputs": {str(i): {"name": name, "tooltip": help} for i, (_, name, help) in enumerate(node.outputs)},
        }
        for node in nodes
    }


def text(made: dict[str, Any]) -> str:
    """As the file."""
    return json.dumps(made, ensure_ascii=False, indent=2) + "\n"


if __name__ == "__main__":
    from conftest import load_pack

    path = FOLDER / "en" / "nodeDefs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(english(load_pack().nodes.NODES)))
