"""The nodes: their inputs come from the knobs of the methods, their work is in `guide.py` and `maps.py`.

Each node is described once, as plain data; `v3()` makes ComfyUI's current node classes of it and `v1()` the older ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from vsf.guidance import NAG, NASA, VSF, Guidance, Knob, knobs, parse_blocks

from . import maps
from .families import supported
from .guide import KEY, guide_model
from .prompt import encode_negative

__all__ = ["NODES", "RENAMED", "Input", "Node", "v1", "v3"]

CATEGORY = "advanced/guidance"


@dataclass(frozen=True)
class Input:
    """One input: `kind` is ComfyUI's type; the rest is what its widget needs. `advanced`: rarely used."""

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
    advanced: bool = False


@dataclass(frozen=True)
class Node:
    """One node: `run(**inputs)` returns its outputs in order."""

    id: str
    title: str
    help: str
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, str, str], ...]  # (type, name, help)
    run: Callable[..., tuple[Any, ...]]
    aliases: tuple[str, ...] = ()  # what else it is looked for as
    deprecated: bool = False


#: What a knob is called in ComfyUI, where that differs, and what it means there.
NAMES = {"start": "start_percent", "stop": "end_percent"}
HELP = {
    "start": "where guidance begins on the noise schedule: 0 = pure noise, 1 = the finished picture. Not a fraction of the "
    "number of steps; the schedule counts that is in force when the sampler runs, whatever set it",
    "stop": "where guidance ends on the noise schedule: 0 = pure noise, 1 = the finished picture",
}
#: Knobs that are rarely turned.
ADVANCED = ("layout", "normalize", "tau", *NAMES)
#: The farthest end of a widget's range; knobs go further, to infinity.
WIDEST = 100.0


def _of_knob(spec: Knob) -> Input:
    name, help, advanced = NAMES.get(spec.name, spec.name), HELP.get(spec.name, spec.help), spec.name in ADVANCED
    if spec.choices:
        return Input(name, "COMBO", help, spec.default, choices=spec.choices, advanced=advanced)
    low, high = max(spec.minimum, -WIDEST), min(spec.maximum, WIDEST)
    default = spec.default
    if spec.optional and default is None:
        default, help = 0.0, help + "; 0 = off"
    return Input(name, "FLOAT", help, default, low, high, spec.step, advanced=advanced)


def _method(cls: type[Guidance], given: dict[str, Any]) -> Guidance:
    settings = {}
    for name, spec in knobs(cls).items():
        value = given[NAMES.get(name, name)]
        settings[name] = None if spec.optional and value == 0 else value
    return cls(**settings, blocks=parse_blocks(given["blocks"]))


#: Where the negative comes from: a conditioning, or text that the node encodes itself.
CONDITIONING = Input(
    "negative", "CONDITIONING",
    "what you do not want ({}); not connected: the negative of the sampler itself, which must not be zeroed out",
    optional=True,
)  # fmt: skip
TEXT = (
    Input("clip", "CLIP", "the text encoder that encodes the positive prompt too"),
    Input("text", "STRING", "what you do not want; 'wheels:2, chain' weighs its items", "", multiline=True),
)
#: Another negative for the sound, of both kinds.
_SOUND = (
    "what the sound of a video is not to have, for models that read a text for it (LTX-2); {}: the picture's negative"
)
AUDIO_CONDITIONING = Input("audio_negative", "CONDITIONING", _SOUND.format("not connected"), optional=True)
AUDIO_TEXT = Input("audio_text", "STRING", _SOUND.format("nothing"), "", optional=True, advanced=True)
GUIDED = (("MODEL", "model", "the guided model; connect it to the sampler, at CFG 1"),)
NEGATIVE = "negative prompt", "cfg 1", "distilled", "negpip"


def _guidance(cls: type[Guidance], title: str, help: str, aliases: tuple[str, ...], text: bool = False) -> Node:
    # The first knobs in sight are the method's own; start and stop are the base class's and come first in it.
    specs = sorted(knobs(cls).values(), key=lambda spec: spec.name in NAMES)
    wanted = (
        "the real tokens only: use VSF Negative Prompt"
        if cls.negative == "tokens"
        else "from a plain text encoder node"
    )
    inputs = [
        Input("model", "MODEL", "the model to guide; whatever patched it before stays"),
        *(TEXT if text else (replace(CONDITIONING, help=CONDITIONING.help.format(wanted)),)),
        *map(_of_knob, specs),
        Input(
            "blocks", "STRING", "the attention blocks that are guided, in the order they run, such as '0-18, 20'; "
            "nothing = all", "", advanced=True,
        ),
    ]  # fmt: skip
    inputs.append(AUDIO_TEXT if text else AUDIO_CONDITIONING)
    if cls.has_map:
        inputs.append(Input("record", "BOOLEAN", "keep what VSF Suppression Map draws", False))

    def run(
        model: Any, negative: Any = None, record: bool = False, audio_negative: Any = None, audio_text: str = "",
        **given: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        if text:
            clip = given.pop("clip")
            negative = encode_negative(clip, given.pop("text"))
            audio_negative = encode_negative(clip, audio_text) if audio_text.strip() else None
        return (guide_model(model, _method(cls, given), negative, record, audio_negative),)

    id = f"VSF{cls.__name__.removeprefix('VSF')}{'Text' if text else ''}Guidance"
    return Node(id, title, help, tuple(inputs), GUIDED, run, (*aliases, *NEGATIVE))


def _map(
    model: Any, latent: Any, step: int, block: int, brightest: float, strength: float, image: Any = None
) -> tuple[Any, ...]:
    guide = model.get_attachment(KEY)
    if guide is None:
        raise ValueError("this model is not guided; connect the model that comes from VSF Guidance")
    if not guide.method.has_map:
        raise ValueError(f"a suppression map is defined for VSF, not for {type(guide.method).__name__}")
    return (maps.draw(maps.suppression(guide.record, step, block), brightest, image, strength),)


_VSF = "Value Sign Flip: a negative prompt inside attention, for few-step models at CFG 1"
_VSF_NAMES = ("value sign flip", "attention guidance")

NODES: tuple[Node, ...] = (
    _guidance(VSF, "VSF Guidance", f"{_VSF}. Supported: {supported()}", _VSF_NAMES),
    _guidance(
        VSF, "VSF Guidance (text)", f"{_VSF}, encoded by this node without its padding. Supported: {supported()}",
        _VSF_NAMES, text=True,
    ),
    _guidance(
        NAG, "NAG Guidance", f"Normalized Attention Guidance, for comparison. Supported: {supported()}",
        ("nag", "normalized attention guidance"),
    ),
    _guidance(
        NASA, "NASA Guidance", f"Negative-Away Steer Attention, for comparison. Supported: {supported()}",
        ("nasa", "negative-away steer attention"),
    ),
    Node(
        "VSFNegativePrompt",
        "VSF Negative Prompt",
        "Encodes a negative prompt without its padding, each of its items on its own: 'wheels:2, chain'.",
        TEXT,
        (("CONDITIONING", "negative", "the real tokens of the text and their weights, for VSF Guidance"),),
        lambda clip, text: (encode_negative(clip, text),),
        ("negative prompt", "negpip", "clip text encode negative"),
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
        (("IMAGE", "map", "the share in colours, over the picture where one is connected"),),
        _map,
        ("attention map", "heatmap", "where the negative acts"),
    ),
)  # fmt: skip

#: Nodes that had other names before, which other packs have too: old name -> new one.
RENAMED = {"NAGGuidance": "VSFNAGGuidance", "NASAGuidance": "VSFNASAGuidance"}


def _with_old_names(taken: Any) -> list[Node]:
    """The nodes, and again under their old names, as far as those are not `taken`: another pack's node goes before ours.

    ComfyUI 0.33 can also replace nodes as it reads a graph, but fails where a graph has no titles, as those of scripts.
    """
    by_id = {node.id: node for node in NODES}
    old = [
        replace(by_id[new], id=name, deprecated=True, aliases=()) for name, new in RENAMED.items() if name not in taken
    ]
    return [*NODES, *old]


def v3() -> list[type]:
    """The nodes in ComfyUI's current schema."""
    from comfy_api.latest import io  # pyright: ignore[reportMissingImports]
    from nodes import NODE_CLASS_MAPPINGS  # pyright: ignore  # ComfyUI's own module of that name

    knows_advanced = "advanced" in inspect.signature(io.Input.__init__).parameters
    knows_aliases = "search_aliases" in {own.name for own in fields(io.Schema)}
    types = {
        "MODEL": io.Model,
        "CONDITIONING": io.Conditioning,
        "CLIP": io.Clip,
        "LATENT": io.Latent,
        "IMAGE": io.Image,
    }
    widgets = {"FLOAT": io.Float, "INT": io.Int}

    def input_of(spec: Input) -> Any:
        common: dict[str, Any] = {"tooltip": spec.help, "optional": spec.optional}
        if spec.kind in types:
            return types[spec.kind].Input(spec.name, **common)
        if spec.advanced and knows_advanced:
            common["advanced"] = True
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
                outputs=[types[kind].Output(display_name=name, tooltip=help) for kind, name, help in node.outputs],
                is_deprecated=node.deprecated,
                **({"search_aliases": list(node.aliases)} if knows_aliases else {}),
            )  # fmt: skip

        def execute(cls: Any, **given: Any) -> Any:
            return io.NodeOutput(*node.run(**given))

        body = {"define_schema": classmethod(define_schema), "execute": classmethod(execute), "__doc__": node.help}
        return type(node.id, (io.ComfyNode,), body)

    return [make(node) for node in _with_old_names(NODE_CLASS_MAPPINGS)]


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
            "RETURN_TYPES": tuple(kind for kind, *_ in node.outputs),
            "RETURN_NAMES": tuple(name for _, name, _ in node.outputs),
            "OUTPUT_TOOLTIPS": tuple(help for *_, help in node.outputs),
            "FUNCTION": "run", "CATEGORY": CATEGORY, "DESCRIPTION": node.help, "DEPRECATED": node.deprecated, "run": run,
        }  # fmt: skip
        return type(node.id, (), body)

    every = _with_old_names(())
    return {node.id: make(node) for node in every}, {node.id: node.title for node in every}
