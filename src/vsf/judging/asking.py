"""Many questions about many pictures in one forward pass, answered by the probabilities of the next token.

Questions about one picture share its tokens: a row is the picture's prefix and then all its questions, a mask keeps them apart,
and each has the positions that it has alone. So a picture is computed once, however many questions are asked about it, and what
is answered is what each question is answered alone (up to the order of sums).
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Asker", "by_length", "fast_on_cpu"]


class Asker:
    """Asks a model of Qwen2.5-VL's classes packed rows, and any other vision-language model one row a question.

    Args:
        net: the model, also with an adapter of peft.
        packs: whether rows are packed, where that is to be decided.
    """

    def __init__(self, net: Any, processor: Any, packs: bool | None = None) -> None:
        self.net, self.processor = net, processor
        self._known: dict[tuple[str, tuple[int, ...]], tuple[list[int], Tensor]] = {}
        base = net.get_base_model() if hasattr(net, "get_base_model") else net
        self._inner = base.model
        self.packs = base.config.model_type == "qwen2_5_vl" if packs is None else packs
        self._cuts = "logits_to_keep" in signature(base.forward).parameters
        if self.packs:
            self._image, self._seen = base.config.image_token_id, base.config.vision_end_token_id
            if base.config.vision_config._attn_implementation == "sdpa":
                by_length(base)

    def question(self, text: str, grid: tuple[int, ...]) -> tuple[list[int], Tensor]:
        """Tokens of a whole turn about a picture of a grid [t, h, w], and their positions [3, L]."""
        key = text, grid
        if key not in self._known:
            content = [{"type": "image"}, {"type": "text", "text": text}]
            turn = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            number = grid[0] * grid[1] * grid[2] // self.processor.image_processor.merge_size**2
            token = self.processor.image_token
            ids = torch.tensor([self.processor.tokenizer(turn.replace(token, token * number)).input_ids])
            place, _ = self._inner.get_rope_index(
                ids, mm_token_type_ids=(ids == self._image).int(), image_grid_thw=torch.tensor([grid]),
                attention_mask=torch.ones_like(ids),
            )  # fmt: skip
            self._known[key] = ids[0].tolist(), place[:, 0]
        return self._known[key]

    def pack(
        self, pictures: Sequence[Any], questions: Sequence[Sequence[str]], place_for: int = 0
    ) -> dict[str, Tensor]:
        """The model's input for pictures (of any size) and questions about each, and "at": (row, place) of the answers [Q, 2].

        Rows have `place_for` tokens, or as many as the longest needs.
        """
        if not self.packs:
            return self._rows(pictures, questions)
        seen = self.processor.image_processor(images=list(pictures), return_tensors="pt")
        rows: list[tuple[list[int], list[Tensor], list[int]]] = []
        at: list[tuple[int, int]] = []
        for row, (grid, texts) in enumerate(zip(seen["image_grid_thw"].tolist(), questions, strict=True)):
            ids: list[int] = []
            places: list[Tensor] = []
            segment: list[int] = []
            for number, text in enumerate(texts, 1):
                own, place = self.question(text, tuple(grid))
                start = len(own) - own[::-1].index(self._image)
                start += own[start] == self._seen
                if not ids:
                    ids, places, segment = own[:start], [place[:, :start]], [0] * start
                elif own[:start] != ids[:start]:
                    raise ValueError("the chat template of this model puts the question before the picture")
                ids += own[start:]
                places.append(place[:, start:])
                segment += [number] * (len(own) - start)
                at.append((row, len(ids) - 1))
            rows.append((ids, places, segment))
        longest = max(place_for, *(len(ids) for ids, _, _ in rows))
        pad = self.processor.tokenizer.pad_token_id
        tokens = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _, _ in rows])
        segments = torch.tensor([segment + [-1] * (longest - len(segment)) for _, _, segment in rows])
        where = torch.stack([F.pad(torch.cat(p, 1), (0, longest - len(ids))) for ids, p, _ in rows], 1)
        same = (segments[:, None] == segments[:, :, None]) | (segments == 0)[:, None]
        mask = same & torch.ones(longest, longest, dtype=torch.bool).tril()
        return {
            "input_ids": tokens, "attention_mask": mask[:, None], "position_ids": where, "at": torch.tensor(at),
            "pixel_values": seen["pixel_values"], "image_grid_thw": seen["image_grid_thw"],
        }  # fmt: skip

    def _rows(self, pictures: Sequence[Any], questions: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        turns = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]
            for picture, texts in zip(pictures, questions, strict=True) for text in texts
        ]  # fmt: skip
        self.processor.tokenizer.padding_side = "left"
        batch = self.processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True},
        )  # fmt: skip
        last = batch["input_ids"].shape[1] - 1
        return {**batch, "at": torch.tensor([(row, last) for row in range(len(turns))])}

    def look(self, batch: dict[str, Tensor]) -> Any:
        """What the vision tower makes of the pictures; its `pooler_output` has the image tokens of each [T, D]."""
        return self._inner.get_image_features(batch["pixel_values"], batch["image_grid_thw"], return_dict=True)

    def logits(self, batch: dict[str, Tensor], look: Any = None) -> Tensor:
        """Logits of the token after each question [Q, vocabulary]."""
        row, place = batch["at"].unbind(1)
        kept, which = place.unique(return_inverse=True) if self._cuts else (0, place)
        inputs: dict[str, Any] = {k: v for k, v in batch.items() if k != "at"}
        if look is not None:
            del inputs["pixel_values"]
            inputs["mm_encoder_outputs"] = {"image": look}
        keep = {"logits_to_keep": kept} if self._cuts else {}
        return self.net(**inputs, use_cache=False, **keep).logits[row, which].float()


def by_length(net: Any, text: str | None = None) -> None:
    """Let the vision tower attend in pictures of one size at once; its own loop takes one picture at a time.

    `text` is the implementation of the language model's attention: the one it has, or "plain".
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("flash_by_length", _by_length)
    AttentionInterface.register("plain", _plain)
    AttentionMaskInterface.register("plain", sdpa_mask)
    net.set_attn_implementation({"vision_config": "flash_by_length"} | ({"text_config": text} if text else {}))


def fast_on_cpu(net: Any, compile: bool) -> None:
    """Train in bf16 on a processor: attention as two products (the fused one's backward pass is the larger part of a step
    there), the patches of a picture in float32 (the same of its convolution), and blocks compiled where that works."""
    by_length(net, "plain")
    patches = net.model.visual.patch_embed
    stock = patches.forward

    def in_float32(pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, enabled=False):
            return stock(pixels)

    patches.forward = in_float32
    if compile:
        for block in (*net.model.visual.blocks, *net.model.language_model.layers):
            block.compile(dynamic=False)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    score = q @ k.transpose(-1, -2) * scale
    if mask is not None:
        score = score.masked_fill(~mask, torch.finfo(score.dtype).min)
    return score.softmax(-1).to(v.dtype) @ v


def _plain(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any) -> Any:
    """Attention [B, H, L, D] under a mask that says what may be seen; returns [B, L, H, D]."""
    if module.num_key_value_groups > 1:
        key, value = (t.repeat_interleave(module.num_key_value_groups, 1) for t in (key, value))
    return _attend(query, key, value, given["scaling"], attention_mask).transpose(1, 2).contiguous(), None


def _by_length(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **given: Any
) -> Any:
    """Attention within the pieces that `cu_seq_lens_q` cuts [1, H, S, D] into; returns [1, S, H, D]."""
    lengths = given["cu_seq_lens_q"].diff().tolist()
    runs: list[list[int]] = []
    for length in lengths:
        if runs and runs[-1][0] == length:
            runs[-1][1] += 1
        else:
            runs.append([length, 1])
    out: list[Tensor] = []
    cut = [tensor.split([n * count for n, count in runs], 2) for tensor in (query, key, value)]
    for (n, count), *parts in zip(runs, *cut, strict=True):
        q, k, v = (p[0].unflatten(1, (count, n)).transpose(0, 1) for p in parts)
        z = _attend(q, k, v, given["scaling"])
        out.append(z.transpose(1, 2).flatten(0, 1))
    return torch.cat(out)[None], None
