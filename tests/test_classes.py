"""Every denoiser of diffusers is supported or refused with a reason, in code and docs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from packaging.version import Version

import specs
from vsf import VSF, UnsupportedModel, negative_guidance
from vsf.arch import FAMILIES, REFUSED, family_of, supported

#: What the table was read off.
READ = Version("0.42.1")


def denoisers() -> dict[str, type]:
    """What diffusers exports of its transformers and UNets, and the UNets that lie elsewhere."""
    exported: Any = diffusers
    models = {
        name: kind for name in exported._import_structure["models"]
        if inspect.isclass(kind := getattr(diffusers, name)) and issubclass(kind, diffusers.ModelMixin)
    }  # fmt: skip
    return {
        name: kind for name, kind in models.items()
        if {"transformers", "unets"} & set(kind.__module__.split(".")) or name.startswith("UNet")
    }  # fmt: skip


def blank(kind: Any) -> Any:
    """A model of this class without its parts."""
    model = kind.__new__(kind)
    torch.nn.Module.__init__(model)
    return model


def test_every_denoiser_is_supported_or_refused() -> None:
    unknown = sorted(denoisers().keys() - supported().keys() - REFUSED.keys())
    assert not unknown, f"new in diffusers {diffusers.__version__}: a family, or a row in vsf/arch/refused.py"
    assert not supported().keys() & REFUSED.keys()


@pytest.mark.skipif(Version(diffusers.__version__) < READ, reason="some classes came later")
def test_no_listed_class_is_gone() -> None:
    assert not sorted((supported().keys() | REFUSED.keys()) - denoisers().keys())


@pytest.mark.parametrize("name", sorted(REFUSED.keys() & denoisers().keys()))
def test_who_is_refused_is_told_why(name: str) -> None:
    """And so is one who made a class of it."""
    kind = denoisers()[name]
    for model in (blank(kind), blank(type("Mine", (kind,), {}))):
        assert family_of(model) is None
        with pytest.raises(UnsupportedModel) as refusal, negative_guidance(model, VSF(), "x"):
            pass
        assert f"; {name}: {REFUSED[name]}; supported models: " in str(refusal.value)


def test_every_supported_class_passes_the_contract_by_a_spec() -> None:
    assert {type(spec.build(torch.float32)).__name__ for spec in specs.load().values()} == supported().keys()


def test_every_supported_class_has_its_own_family() -> None:
    for name, kind in denoisers().items():
        if name in supported():
            assert getattr(family_of(blank(kind)), "name", None) == supported()[name]
    assert len(supported()) == sum(len(f.models) for f in FAMILIES)


def test_a_pipeline_says_why_its_model_is_refused() -> None:
    class Pipeline:
        components = {"transformer": blank(diffusers.MochiTransformer3DModel), "vae": torch.nn.Linear(1, 1)}

    words = (
        r"Pipeline \(with MochiTransformer3DModel, Linear\) cannot be guided; MochiTransformer3DModel: not yet: .*;"
    )
    with pytest.raises(UnsupportedModel, match=words), negative_guidance(Pipeline(), VSF(), "x"):
        pass


def test_the_docs_have_every_class() -> None:
    rows = [
        f"| `{name}` | supported | {supported()[name]} |" if name in supported()
        else f"| `{name}` | refused | {REFUSED[name]} |"
        for name in sorted(supported().keys() | REFUSED.keys(), key=str.lower)
    ]  # fmt: skip
    text = (Path(__file__).parents[1] / "docs/models.md").read_text("utf-8")
    found = re.findall(r"^\| `\w+` \| (?:supported|refused) \|.*$", text, re.MULTILINE)
    assert found == rows, "put this into docs/models.md:\n" + "\n".join(rows)
