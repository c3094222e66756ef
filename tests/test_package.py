"""What the package is called where it is installed from: `vsf` is another project's name on the package index."""

from __future__ import annotations

import re
from pathlib import Path

from vsf.files import read_toml
from vsf.libraries import DISTRIBUTION, install

ROOT = Path(__file__).parents[1]
PROJECT = read_toml((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
TEXTS = [
    path
    for path in (
        *ROOT.glob("*.md"),
        *(p for d in ("src", "comfyui", "docs", "examples") for p in (ROOT / d).rglob("*")),
    )
    if path.suffix in (".py", ".md", ".toml", ".html") and "evidence" not in path.parts
]


def test_one_name() -> None:
    assert PROJECT["name"] == DISTRIBUTION != "vsf"
    extras = PROJECT["optional-dependencies"]
    for name in re.findall(r"install\('(\w+)'\)", "".join(p.read_text("utf-8") for p in TEXTS if p.suffix == ".py")):
        assert name in extras, install(name)
    own = [d for packages in extras.values() for d in packages if "[" in d and re.match(r"vsf|value", d)]
    assert own and all(d.startswith(DISTRIBUTION + "[") for d in own)


def test_nobody_is_sent_to_the_other_project() -> None:
    wrong = re.compile(r"\bvsf\[|pip install[^\n`]*[ \"']vsf\b")
    assert len(TEXTS) > 100 and not [path for path in TEXTS if wrong.search(path.read_text("utf-8"))]
    assert wrong.search("pip install -U vsf") and wrong.search('"vsf[ui]"')


def test_the_nodes_ask_for_the_package() -> None:
    assert f"install --no-deps {DISTRIBUTION}'" in (ROOT / "comfyui" / "locate.py").read_text("utf-8")
