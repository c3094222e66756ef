"""What importing costs, what is public, and which way the arrows between the parts point."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vsf

ROOT = Path(vsf.__file__).parent


@pytest.mark.parametrize("code", ["import vsf", "import vsf.cli", "from vsf import VSF, NAG; VSF(2.0), NAG()"])
def test_importing_loads_nothing_heavy(code: str) -> None:
    heavy = "torch", "diffusers", "transformers", "numpy", "PIL", "scipy"
    check = f"import sys; {code}; print([m for m in {heavy} if m in sys.modules])"
    env = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "[]"


def test_public_names_resolve() -> None:
    for name in vsf.__all__:
        assert getattr(vsf, name) is not None
    assert set(vsf.__all__) <= set(dir(vsf))
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        _ = vsf.Nope  # pyright: ignore[reportAttributeAccessIssue]


def _imports(path: Path) -> set[str]:
    """The parts of vsf that a file imports at run time (what is under TYPE_CHECKING does not count)."""
    package = path.relative_to(ROOT.parent).parent.parts
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            full = base + (node.module.split(".") if node.module else [])
            names = [full] if len(full) > 1 else [[*full, alias.name] for alias in node.names]
            found.update(name[1] for name in names if name[0] == "vsf" and len(name) > 1)
        if isinstance(node, ast.Import):
            found.update(a.name.split(".")[1] for a in node.names if a.name.startswith("vsf."))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text("utf-8")))
    return found


@pytest.mark.parametrize(
    ("part", "allowed"),
    [
        ("core", {"core"}),
        ("guidance", {"guidance", "core"}),
        ("arch", {"arch", "guidance", "core"}),
    ],
)
def test_arrows_point_one_way(part: str, allowed: set[str]) -> None:
    for path in (ROOT / part).rglob("*.py"):
        assert _imports(path) <= allowed, path


def test_model_names_appear_in_arch_only() -> None:
    """A method or the seam that asks for a model by name would cost M x N."""
    for path in [*ROOT.glob("core/*.py"), *ROOT.glob("guidance/*.py"), ROOT / "seam.py", ROOT / "guide.py"]:
        code = ast.parse(path.read_text("utf-8"))
        words = {n.id for n in ast.walk(code) if isinstance(n, ast.Name)}
        texts = [n.value for n in ast.walk(code) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        words |= {text for text in texts if " " not in text}
        assert not [w for w in words if "Transformer2D" in w or "UNet2D" in w], path
