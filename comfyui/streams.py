"""How the negative stands beside the prompt inside a model, for the length of one forward pass.

A context `name(model, pass_)` for each kind of model: forward hooks that are gone when it ends. `pass_` is the `Pass` of
guide.py, which is told where the text is. Read in ComfyUI 0.3.64 and 0.33.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch

__all__ = [
    "ernie_stream",
    "hidream_stream",
    "lumina_stream",
    "mixed_stream",
    "nothing",
    "numbered",
    "two_texts",
    "wan_reference",
]


@contextmanager
def nothing(model: Any, pass_: Any) -> Iterator[None]:
    yield


@contextmanager
def wan_reference(model: Any, pass_: Any) -> Iterator[None]:
    """Some Wan models put a reference picture in front of the video: it is guided, but not on the map."""
    reference = pass_.given.get("reference_latent")
    if reference is not None and getattr(model, "ref_conv", None) is not None:
        pass_.behind(math.prod(n // p for n, p in zip(reference.shape[-2:], model.patch_size[1:], strict=True)))
    yield


@contextmanager
def numbered(model: Any, pass_: Any) -> Iterator[None]:
    """Where text tokens are numbered, give the prompt its own numbers, and the negative those it had as the prompt.

    What the ids of this very pass say decides, not the model's name: Flux.1 gives all of its text position 0 (then this
    changes nothing), Flux2, Ovis, Qwen-Image and later Radiance count from the first token, and LongCat moves the image
    behind the text as well. A prompt that is padded in front (Flux2 does, up to 512) ends where all prompts end, and so
    does the negative.
    """

    def reorder(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        ids, frame = args[0], pass_.frame  # [B, negative + copy + prompt + image, axes]
        n, p = frame.n_neg, frame.n_pos
        own, image = ids[:, : n + p], ids[:, n + p :]
        if not image.shape[1]:
            raise ValueError(f"{type(model).__name__} places its text apart from the image; it cannot be guided")
        step = own[:, 1:2] - own[:, :1]
        behind = (step != 0) & (image[:, :1] == n + p)
        image = image - n * behind.to(image)
        first = p - n if pass_.padded_in_front or bool(behind.any()) else 0
        count = partial(torch.arange, device=ids.device)
        prompt = p - frame.n_copy
        place = torch.cat([count(first, first + n), count(prompt, p), count(prompt)])
        text = own[:, place] if first >= 0 else own[:, :1] + place[None, :, None].to(ids) * step
        return (torch.cat([text, image], 1), *args[1:])

    with model.pe_embedder.register_forward_pre_hook(reorder):
        yield


@contextmanager
def lumina_stream(model: Any, pass_: Any) -> Iterator[None]:
    """Lumina 2, Z-Image and OmniGen2 refine their prompt by attention of its own first and place the image behind it.

    So the negative goes through the same embedder and refiner on its own, and joins the stream in front of each main
    layer. The image's positions do not move; the negative's are such that the image is as far away as it would be if
    the negative were the prompt. Z-Image pads prompts and images to a multiple of 32 with tokens that are seen. OmniGen2
    counts its text on all three axes, of which one says how far the image is, and may have reference pictures between.
    """
    multiple = getattr(model, "pad_tokens_multiple", None) or 1
    omnigen = hasattr(model, "time_caption_embed")
    embed = model.time_caption_embed.caption_embedder if omnigen else model.cap_embedder
    turn = model.rope_embedder.rope_embedder if omnigen else model.rope_embedder
    kept: list[torch.Tensor] = []

    def up(n: int) -> int:
        return -(-n // multiple) * multiple

    def begin(x: torch.Tensor, turns: torch.Tensor) -> None:
        frame, patch = pass_.frame, model.patch_size
        if omnigen:
            pass_.behind(x.shape[1] - frame.n_pos - math.prod(pass_.grid))
        else:  # Z-Image's prompt has grown by its pads
            frame.n_pos = x.shape[1] - up(-(-pass_.size[-2] // patch) * -(-pass_.size[-1] // patch))
        stream = embed(pass_.negative.to(x))
        n = stream.shape[1]
        if pass_.guide.method.negative == "padded" and up(n) > n:
            pads = model.cap_pad_token.to(stream).expand(len(stream), up(n) - n, -1)
            stream = torch.cat([stream, pads], 1)
            if frame.neg_bias is not None:
                frame.neg_bias = frame.neg_bias[..., :1].expand(-1, -1, -1, up(n))
            frame.n_neg = up(n)
        ids = torch.zeros(len(turns), stream.shape[1], 3, dtype=torch.float32, device=x.device)
        # The prompt's first position: 0 in Lumina 2 as ComfyUI 0.3.64 has it, 1 in Z-Image and since.
        first = 0 if torch.equal(turns[:, :1], turn(ids[:, :1]).movedim(1, 2).to(turns)) else 1
        count = torch.arange(stream.shape[1], device=x.device)
        ids[..., 0] = count + first + frame.n_pos - up(n)
        if omnigen:
            ids[..., 1:] = count[:, None]
        own = turn(ids).movedim(1, 2).to(turns)
        for refiner in model.context_refiner:
            stream = refiner(stream, None, own, transformer_options=pass_.options)
        kept[:] = [stream, own]

    def join(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x, mask, turns, *rest = args  # [B, L, W], [B, L] or None, [B or 1, L, 1, D/2, 2, 2]
        if not kept:
            begin(x, turns)
        x, turns = torch.cat([kept[0].to(x), x], 1), torch.cat([kept[1], turns], 1)
        pass_.length = x.shape[1]
        return (x, mask, turns, *rest), kwargs

    def part(layer: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        kept[0] = output[:, : pass_.frame.n_neg]
        return output[:, pass_.frame.n_neg :]

    with ExitStack() as hooks:
        for layer in model.layers:
            hooks.enter_context(layer.register_forward_pre_hook(join, with_kwargs=True))
            hooks.enter_context(layer.register_forward_hook(part))
        yield


@contextmanager
def mixed_stream(model: Any, pass_: Any) -> Iterator[None]:
    """Krea 2 and HunyuanVideo mix the tokens of a text before it meets the image, so the negative is mixed on its own.

    HunyuanVideo then puts the letters of quoted words and, in 1.5, what it knows of a start picture beside the text. The
    letters belong to the prompt, the picture to the image. No text of these models has positions, so its parts can be
    moved to where guidance wants them.
    """
    hunyuan = hasattr(model, "txt_in")
    mixer, blocks = (model.txt_in, model.double_blocks) if hunyuan else (model.txtfusion, model.blocks)
    frame, front = pass_.frame, pass_.text_first
    n, p = frame.n_neg, frame.n_pos
    ours, theirs = (slice(n), slice(n, None)) if front else (slice(p, None), slice(p))
    mixed: list[torch.Tensor] = []

    def cut(value: Any, part: slice) -> Any:
        whole = isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[1] == n + p
        return value[:, part] if whole else value

    def split(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own, rest = (
            ([cut(x, part) for x in args], {k: cut(x, part) for k, x in kwargs.items()}) for part in (ours, theirs)
        )
        mixed[:] = [module.forward(*own[0], **own[1])]  # a call would come back to this hook
        return tuple(rest[0]), rest[1]

    def join(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return torch.cat([*mixed, output] if front else [output, *mixed], 1)

    def place(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if pass_.length is not None:  # an earlier block has; the first can be one that another node skips
            return None
        if not hunyuan:
            pass_.length = args[0].shape[1]
            return None
        text, picture = kwargs["txt"], pass_.given.get("clip_fea")
        seen = 0 if picture is None else picture.shape[1]
        letters = text.shape[1] - seen - n - p
        before = seen + (letters if getattr(model, "cond_type_embedding", None) is not None else 0)
        start = before if front else before + p
        negative, prompt = text[:, start : start + n], [text[:, seen:start], text[:, start + n :]]
        parts = [negative, *prompt, text[:, :seen]] if front else [text[:, :start], text[:, start + n :], negative]
        frame.n_pos = p + letters
        pass_.behind(seen + kwargs["img"].shape[1] - math.prod(pass_.grid))  # and behind a reference picture
        pass_.length = text.shape[1] + kwargs["img"].shape[1]
        return args, {**kwargs, "txt": torch.cat(parts, 1)}

    def shift(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """With a start frame, the first tokens of prompt and image, whatever they are, are modulated apart."""
        dims = kwargs.get("modulation_dims")
        if not dims or not front:
            return None
        own = [(first, n if last is None else min(last, n), row) for first, last, row in dims if first < n]
        rest = [(first + n, None if last is None else last + n, row) for first, last, row in dims]
        return args, {**kwargs, "modulation_dims": own + rest}

    handles = [
        *(block.register_forward_pre_hook(shift, with_kwargs=True) for block in getattr(model, "single_blocks", ())),
        mixer.register_forward_pre_hook(split, with_kwargs=True),
        mixer.register_forward_hook(join),
        *(block.register_forward_pre_hook(place, with_kwargs=True) for block in blocks),
    ]
    with ExitStack() as hooks:
        for handle in handles:
            hooks.enter_context(handle)
        yield


@contextmanager
def ernie_stream(model: Any, pass_: Any) -> Iterator[None]:
    """ERNIE-Image has its text behind the image, `[image, prompt, negative]`, and counts on from the text to the image.

    So the image is moved back to where the prompt ends, and the negative to end there as well. (Its rotations mix two
    axes, so that not only distances count: the negative's branch is exact where negative and prompt are of one length.)
    ComfyUI runs this attention without transformer_options: for this pass its code is run with a name for attention that
    brings them.
    """

    def reorder(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        ids, frame = args[0].clone(), pass_.frame  # [B, image + prompt + negative, axes]
        p, n, copy = frame.n_pos, frame.n_neg, frame.n_copy
        image = ids.shape[1] - p - n
        ids[:, :image, 0] -= n
        place = torch.cat([torch.arange(p - copy, p), torch.arange(p - copy), torch.arange(p - n, p)])
        ids[:, image:, 0] = place.to(ids)  # a copy of the negative is behind the prompt
        return (ids, *args[1:])

    # Where another node has put a forward of its own, ours does not come by, and the pass says so in the end.
    every = [layer.self_attention for layer in model.layers]
    modules = [
        module
        for module in every
        if getattr(module.forward, "__func__", None) is type(module).forward
        and "optimized_attention" in type(module).forward.__globals__
    ]
    before = [vars(module).get("forward") for module in modules]
    handle = model.pos_embed.register_forward_pre_hook(reorder)
    try:
        for module in modules:
            own = type(module).forward
            names = own.__globals__
            ours = partial(names["optimized_attention"], transformer_options=pass_.options)
            code = FunctionType(own.__code__, names | {"optimized_attention": ours}, own.__name__, own.__defaults__)
            module.forward = MethodType(code, module)
        yield
    finally:
        handle.remove()
        for module, own in zip(modules, before, strict=True):
            if own is None:
                vars(module).pop("forward", None)
            else:
                module.forward = own


@contextmanager
def hidream_stream(model: Any, pass_: Any) -> Iterator[None]:
    """HiDream reads T5 and, in each block, the last and another layer of Llama: `[image, T5, last, other]`.

    Behind each prompt stands its negative, none with a position, and attention sees the three of them as one text:
    `[image, prompts, negatives]`.
    """
    frame, name = pass_.frame, "encoder_hidden_states_llama3"
    prompt: Any = pass_.given.get(name)  # [B, layers, tokens, width]
    parts = [(extra.get("conditioning_llama3"), weight) for _, extra, weight in pass_.guide.negative.parts]
    if prompt is None or any(llama is None for llama, _ in parts):
        raise ValueError(
            "HiDream reads Llama's tokens as well, but prompt or negative has none; encode both with its CLIP"
        )
    rows = torch.arange(len(prompt))
    negative = torch.cat([llama[rows % len(llama)] for llama, _ in parts], 2).to(prompt)
    pass_.given[name] = torch.cat([*([negative] if frame.n_copy else []), prompt, negative], 2)
    p, n = (frame.n_pos, pass_.given[name].shape[2] - negative.shape[2]), (frame.n_neg, negative.shape[2])
    if frame.weight is not None:
        own = [torch.ones(x.shape[2]) if w is None else w[:1].expand(x.shape[2]) for x, w in parts]
        other = torch.cat(own).to(frame.weight).view(1, 1, -1, 1)
        frame.weight = torch.cat([frame.weight, other, other], 2)
    count = torch.arange(p[0] + n[0] + 2 * (p[1] + n[1]))
    pieces = count.split([p[0], n[0], p[1], n[1], p[1], n[1]])
    pass_.text_order = torch.cat([*pieces[::2], *pieces[1::2]])
    frame.n_pos, frame.n_neg = p[0] + 2 * p[1], n[0] + 2 * n[1]
    if frame.neg_bias is not None:
        frame.neg_bias = frame.neg_bias[..., :1].expand(-1, -1, -1, frame.n_neg)
    beside = pass_.given.get("image_cond")
    if beside is not None:  # the picture to be edited, on the right
        rows, columns = pass_.grid
        wide = -(-(pass_.size[-1] + beside.shape[-1]) // model.patch_size)
        pass_.shown = (torch.arange(rows)[:, None] * wide + torch.arange(columns)).flatten()
    yield


@contextmanager
def two_texts(model: Any, pass_: Any) -> Iterator[None]:
    """LTX-2 attends from the picture to one text and from the sound to another, and from each to the other.

    So which attention is over which text is said by the module that runs it. As on the Python side, the picture's
    attentions are counted first.
    """
    blocks = model.transformer_blocks
    with ExitStack() as hooks:
        for stream, name in enumerate(("attn2", "audio_attn2")):
            for i, block in enumerate(blocks):
                module = getattr(block, name)
                enter = partial(pass_.enter, i + stream * len(blocks), stream)
                hooks.enter_context(module.register_forward_pre_hook(enter))
                hooks.enter_context(module.register_forward_hook(pass_.leave))
        yield
