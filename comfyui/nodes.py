"""The nodes: their inputs come from the knobs of the methods, their work is in `guide.py` and `maps.py`.

Each node is described once, as plain data; `v3()` makes ComfyUI's current node classes of it and `v1()` the older ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vsf.guidance import NAG, NASA, VSF, Guidance, Knob, knobs

from . import maps
from .families import supported
from .guide import KEY, guide_model
from .prompt import encode_negative

__all__ = ["NODES", "Input", "Node", "parse_blocks", "v1", "v3"]

CATEGORY = "model_patches/negative guidance"


@dataclass(frozen=True)
class Input:
    """One input: `kind` is ComfyUI's type; the rest is what its widget needs."""

    name: str
    kind: str
    help: str
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    multiline: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Node:
    """One node: `run(**inputs)` returns its outputs in order."""

    id: str
    title: str
    help: str
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, str], ...]  # (type, name)
    run: Callable[..., tuple[Any, ...]]


#: What a knob is called in ComfyUI, where that differs.
NAMES = {"start": "start_percent", "stop": "end_percent"}
#: The farthest end of a widget's range; knobs go further, to infinity.
WIDEST = 100.0


def _of_knob(spec: Knob) -> Input:
    name, help = NAMES.get(spec.name, spec.name), spec.help
    if spec.name in NAMES:
        help += " (of the noise schedule, as elsewhere in ComfyUI)"
    if spec.choices:
        return Input(name, "COMBO", help, spec.default, choices=spec.choices)
    low, high = max(spec.minimum, -WIDEST), min(spec.maximum, WIDEST)
    default = spec.default
    if spec.optional and default is None:
        default, help = 0.0, help + "; 0 = off"
    return Input(name, "FLOAT", help, default, low, high, spec.step)


def parse_blocks(text: str) -> tuple[int, ...] | None:
    """`"0-18, 20"` as block numbers; None (all) if there is nothing in it.

    Raises:
        ValueError: it is something else; the message shows the form.
    """
    if not text.strip():
        return None
    blocks: list[int] = []
    for part in text.split(","):
        ends = [end.strip() for end in part.split("-")]
        if len(ends) > 2 or not all(end.isdecimal() for end in ends) or int(ends[0]) > int(ends[-1]):
            raise ValueError(
                f"blocks holds {part.strip()!r}; allowed: numbers and ranges such as '0-18, 20', or nothing"
            )
        blocks += range(int(ends[0]), int(ends[-1]) + 1)
    return tuple(blocks)


def _method(cls: type[Guidance], given: dict[str, Any]) -> Guidance:
    settings = {}
    for name, spec in knobs(cls).items():
        value = given[NAMES.get(name, name)]
        settings[name] = None if spec.optional and value == 0 else value
    return cls(**settings, blocks=parse_blocks(given["blocks"]))


def _guidance(cls: type[Guidance], title: str, help: str) -> Node:
    # The first knobs in sight are the method's own; start and stop are the base class's and come first in it.
    specs = sorted(knobs(cls).values(), key=lambda spec: spec.name in NAMES)
    wanted = "the real tokens only: use VSF Negative Prompt" if not cls.padded else "from a plain text encoder node"
    inputs = [
        Input("model", "MODEL", "the model to guide; whatever patched it before stays"),
        Input("negative", "CONDITIONING", f"what you do not want ({wanted})"),
        *map(_of_knob, specs),
        Input(
            "blocks", "STRING", "the attention blocks that are guided, in the order they run, such as '0-18, 20'; "
            "nothing = all", "",
        ),
    ]  # fmt: skip
    if cls is VSF:
        inputs.append(Input("record", "BOOLEAN", "keep what VSF Suppression Map draws", False))

    def run(model: Any, negative: Any, record: bool = False, **given: Any) -> tuple[Any, ...]:
        return (guide_model(model, _method(cls, given), negative, record),)

    return Node(f"{cls.__name__}Guidance", title, help, tuple(inputs), (("MODEL", "model"),), run)


def _map(
    model: Any, latent: Any, step: int, block: int, brightest: float, strength: float, image: Any = None
) -> tuple[Any, ...]:
    guide = model.get_attachment(KEY)
    if guide is None:
        raise ValueError("this model is not guided; connect the model that comes from VSF Guidance")
    if not isinstance(guide.method, VSF):
        raise ValueError(f"a suppression map is defined for VSF, not for {type(guide.method).__name__}")
    return (maps.draw(maps.suppression(guide.record, step, block), brightest, image, strength),)


NODES: tuple[Node, ...] = (
    _guidance(
        VSF,
        "VSF Guidance",
        "Value Sign Flip: a negative prompt inside attention, for few-step models at CFG 1. Supported: " + supported(),
    ),
    _guidance(NAG, "NAG Guidance", "Normalized Attention Guidance, for comparison. Supported: " + supported()),
    _guidance(NASA, "NASA Guidance", "Negative-Away Steer Attention, for comparison. Supported: " + supported()),
    Node(
        "VSFNegativePrompt",
        "VSF Negative Prompt",
        "Encodes a negative prompt without its padding, each of its items on its own: 'wheels:2, chain'.",
        (
            Input("clip", "CLIP", "the text encoder that encodes the positive prompt too"),
            Input("text", "STRING", "what you do not want; 'wheels:2, chain' weighs its items", "", multiline=True),
        ),
        (("CONDITIONING", "negative"),),
        lambda clip, text: (encode_negative(clip, text),),
    ),
    Node(
        "VSFSuppressionMap",
        "VSF Suppression Map",
        "Where and how strongly the negative acted: its share of attention, averaged over heads.",
        (
            Input("model", "MODEL", "the model from VSF Guidance, with 'record' on"),
            Input("latent", "LATENT", "what the sampler made with it"),
            Input("step", "INT", "a step of the sampler; -1 = the mean of all", -1, -1, 10_000, 1),
            Input("block", "INT", "an attention block; -1 = the mean of all", -1, -1, 10_000, 1),
            Input("brightest", "FLOAT", "the share that is drawn brightest; 0 = the largest there is", 0.0, 0.0, 1.0, 0.01),
            Input("strength", "FLOAT", "how much of the picture the colours cover", 0.6, 0.0, 1.0, 0.05),
            Input("image", "IMAGE", "the picture to draw it over", optional=True),
        ),
        (("IMAGE", "map"),),
        _map,
    ),
)  # fmt: skip


def v3() -> list[type]:
    """The nodes in ComfyUI's current schema."""
    from comfy_api.latest import io  # pyright: ignore[reportMissingImports]

    types = {
        "MODEL": io.Model,
        "CONDITIONING": io.Conditioning,
        "CLIP": io.Clip,
        "LATENT": io.Latent,
        "IMAGE": io.Image,
    }
    widgets = {"FLOAT": io.Float, "INT": io.Int}

    def input_of(spec: Input) -> Any:
        common = {"tooltip": spec.help, "optional": spec.optional}
        if spec.kind in types:
            return types[spec.kind].Input(spec.name, **common)
        if spec.kind == "COMBO":
            return io.Combo.Input(spec.name, options=list(spec.choices), default=spec.default, **common)
        if spec.kind == "BOOLEAN":
            return io.Boolean.Input(spec.name, default=spec.default, **common)
        if spec.kind == "STRING":
            return io.String.Input(spec.name, default=spec.default, multiline=spec.multiline, **common)
        limits = {"min": spec.minimum, "max": spec.maximum, "step": spec.step}
        return widgets[spec.kind].Input(spec.name, default=spec.default, **limits, **common)

    def make(node: Node) -> type:
        def define_schema(cls: Any) -> Any:
            return io.Schema(
                node_id=node.id, display_name=node.title, category=CATEGORY, description=node.help,
                inputs=[input_of(spec) for spec in node.inputs],
                outputs=[types[kind].Output(display_name=name) for kind, name in node.outputs],
            )  # fmt: skip

        def execute(cls: Any, **given: Any) -> Any:
            return io.NodeOutput(*node.run(**given))

        body = {"define_schema": classmethod(define_schema), "execute": classmethod(execute), "__doc__": node.help}
        return type(node.id, (io.ComfyNode,), body)

    return [make(node) for node in NODES]


def v1() -> tuple[dict[str, type], dict[str, str]]:
    """The nodes for versions of ComfyUI without that schema: `NODE_CLASS_MAPPINGS` and the names shown."""

    def entry(spec: Input) -> tuple[Any, dict[str, Any]]:
        shown: dict[str, Any] = {"tooltip": spec.help}
        if spec.kind == "COMBO":
            return list(spec.choices), shown | {"default": spec.default}
        if spec.default is not None:
            shown["default"] = spec.default
        limits = {"min": spec.minimum, "max": spec.maximum, "step": spec.step}
        shown |= {name: value for name, value in limits.items() if value is not None}
        return spec.kind, shown | ({"multiline": True} if spec.multiline else {})

    def make(node: Node) -> type:
        def input_types(cls: Any) -> dict[str, Any]:
            both: dict[str, Any] = {"required": {}, "optional": {}}
            for spec in node.inputs:
                both["optional" if spec.optional else "required"][spec.name] = entry(spec)
            return both

        def run(self: Any, **given: Any) -> tuple[Any, ...]:
            return node.run(**given)

        body = {
            "INPUT_TYPES": classmethod(input_types),
            "RETURN_TYPES": tuple(kind for kind, _ in node.outputs),
            "RETURN_NAMES": tuple(name for _, name in node.outputs),
            "FUNCTION": "run", "CATEGORY": CATEGORY, "DESCRIPTION": node.help, "run": run,
        }  # fmt: skip
        return type(node.id, (), body)

    return {node.id: make(node) for node in NODES}, {node.id: node.title for node in NODES}
