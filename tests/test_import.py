"""What importing costs, what is public, and which way the arrows between the parts point."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vsf

ROOT = Path(vsf.__file__).parent
COMFYUI = Path(__file__).parents[1] / "comfyui"


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


# -- arrows -----------------------------------------------------------------------------------------------------------

#: What still points the wrong way or in a circle. It may only shrink: what is mended has to be taken off.
AGAINST: set[str] = set()
CIRCLES: list[set[str]] = []
#: Names that are not for others, and are taken by others all the same.
PRIVATE: set[str] = set()


def _modules(root: Path, name: str) -> dict[str, Path]:
    """Every module below a package's folder, by its dotted name."""
    found: dict[str, Path] = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join((name, *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


FILES = _modules(ROOT, "vsf")


def _imported(name: str, path: Path) -> set[tuple[str, str]]:
    """(module, name in it) that a module imports at run time, in its functions too; what only types need is left out."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[tuple[str, str]] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.update((module, alias.name) for alias in node.names)
        if isinstance(node, ast.Import):
            found.update((alias.name, "") for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text("utf-8")))
    return found


def _arrows(files: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules of vsf that it imports. A name of a package counts as the package, a submodule as itself."""
    return {
        name: {sub if (sub := f"{module}.{item}") in FILES else module for module, item in _imported(name, path)}
        & set(FILES) - {name}
        for name, path in files.items()
    }


ARROWS = _arrows(FILES)


def _part(module: str) -> str:
    """The folder or file of the package that a module belongs to; "" for the package itself, which imports lazily."""
    return module.partition(".")[2].partition(".")[0]


def _floors() -> list[str]:
    """The parts in the order of DESIGN.md: each may import those before it."""
    table = (COMFYUI.parent / "DESIGN.md").read_text("utf-8").split("holds every file to it:\n\n")[1].split("\n\n")[0]
    return [part for line in table.splitlines() for part in line.split()[1:]]


def test_every_part_has_its_floor() -> None:
    floors = _floors()
    assert len(set(floors)) == len(floors)
    assert set(floors) == {_part(name) for name in FILES} - {""}, "DESIGN.md has the table"


def test_arrows_point_down() -> None:
    height = {part: i for i, part in enumerate(["", *_floors()])}
    against = {
        f"{name} -> {other}" for name, others in ARROWS.items() for other in others
        if height[_part(other)] > height[_part(name)]
    }  # fmt: skip
    assert against == AGAINST


@pytest.mark.parametrize(
    ("part", "allowed"), [("core", ""), ("guidance", "core grammar"), ("arch", "core"), ("grammar", ""), ("files", "")]
)
def test_the_lowest_floors_take_little(part: str, allowed: str) -> None:
    taken = {_part(other) for name, others in ARROWS.items() if _part(name) == part for other in others}
    assert taken <= {part, *allowed.split()}


def test_nobody_imports_the_command_line() -> None:
    for name, others in ARROWS.items():
        assert _part(name) in ("cli", "__main__") or not [o for o in others if _part(o) == "cli"], name


def _circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """The largest sets of modules that all reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            new = arrows[ahead.pop()] - seen
            seen |= new
            ahead += new
        return seen

    reach = {name: reached(name) for name in arrows}
    found = [{other for other in reach[name] if name in reach[other]} for name in arrows if name in reach[name]]
    return [circle for i, circle in enumerate(found) if circle not in found[:i]]


def test_no_file_imports_itself_by_a_detour() -> None:
    assert _circles({"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": set()}) == [{"b", "c"}]
    assert _circles(ARROWS) == CIRCLES


def test_private_names_stay_at_home() -> None:
    files = {**FILES, **_modules(COMFYUI, "comfyui")}
    taken = {
        f"{name}: {item}"
        for name, path in files.items()
        for module, item in _imported(name, path)
        if module.split(".")[0] in ("vsf", "comfyui") and item.startswith("_") and not item.endswith("__")
    }
    assert taken == PRIVATE


def test_the_nodes_take_plain_torch_only() -> None:
    """What ComfyUI's nodes import of vsf, and what that imports: the parts that `bundle.py` copies, and no more."""
    files = _modules(COMFYUI, "comfyui")
    wanted = {module for others in _arrows(files).values() for module in others}
    while more := {other for name in wanted for other in ARROWS[name]} - wanted:
        wanted |= more
    bundled = {part.removesuffix(".py") for part in _bundle().PARTS} - {"__init__"}
    assert {_part(name) for name in wanted} == bundled == {"core", "guidance", "grammar", "prompt"}


def _bundle() -> Any:
    spec = importlib.util.spec_from_file_location("bundle", COMFYUI / "bundle.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_model_names_appear_in_arch_only() -> None:
    """A method or the seam that asks for a model by name would cost M x N."""
    for path in [
        *ROOT.glob("core/*.py"),
        *ROOT.glob("guidance/*.py"),
        *(ROOT / f"{name}.py" for name in ("seam", "processors", "plan", "guide")),
    ]:
        code = ast.parse(path.read_text("utf-8"))
        words = {n.id for n in ast.walk(code) if isinstance(n, ast.Name)}
        texts = [n.value for n in ast.walk(code) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        words |= {text for text in texts if " " not in text}
        assert not [w for w in words if "Transformer2D" in w or "UNet2D" in w], path


def test_the_clone_itself_is_no_package() -> None:
    """Its `__init__.py` is for ComfyUI. Imported by pytest, a clone in a folder called vsf would stand for the package."""
    root = Path(__file__).resolve().parents[1]
    assert (root / "__init__.py").is_file()
    loaded = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    assert str(root / "__init__.py") not in loaded
