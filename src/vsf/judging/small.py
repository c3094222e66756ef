"""A judge of two million parameters with the classes of Qwen2.5-VL: built from a config, saved and loaded like any other.

Pictures of 64 px are cut into 8 x 8 patches, which the merger joins to 16 image tokens. The tokenizer knows whole words. What it
does not know is `<unk>`, which is neither "yes" nor "no"; so a judge of the demo world has a word for objects it never saw.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Shape", "build", "save"]

#: The words that every question or answer may have beside those of a world.
WORDS = ("yes", "no", "good", "poor")
PAD, UNKNOWN, END, TURN = "<pad>", "<unk>", "<|im_end|>", "<|im_start|>"
_IMAGE, _VIDEO, _SEE, _SEEN = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
#: The picture stands before the question, so that questions about one picture begin alike.
TEMPLATE = (
    "{% for m in messages %}{% for c in m.content %}{% if c.type in ('image', 'image_url') %}"
    + _SEE + _IMAGE + _SEEN + "{% endif %}{% endfor %}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}"
    "{% endif %}{% endfor %}{% endif %}" + END + "{% endfor %}{% if add_generation_prompt %}" + TURN + "{% endif %}"
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """How large the small judge is; widths are multiples of 4 times the heads."""

    pixels: int
    patch: int
    vision_width: int
    vision_heads: int
    vision_blocks: int
    width: int
    heads: int
    blocks: int


def build(shape: Shape, words: Iterable[str], seed: int = 0) -> tuple[Any, Any]:
    """A new model and its processor.

    Args:
        words: what the tokenizer shall know, in lower case, beside `WORDS`.
        seed: of the weights.
    """
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = _tokenizer(words)
    number: Any = tokenizer.convert_tokens_to_ids
    head = shape.width // shape.heads
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": shape.width, "intermediate_size": 3 * shape.width,
            "num_hidden_layers": shape.blocks, "num_attention_heads": shape.heads, "num_key_value_heads": shape.heads,
            "bos_token_id": None, "eos_token_id": number(END), "pad_token_id": number(PAD), "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e4,
                "mrope_section": [head // 2 - 2 * (3 * head // 16), 3 * head // 16, 3 * head // 16],
            },
        },
        vision_config={
            "depth": shape.vision_blocks, "hidden_size": shape.vision_width, "intermediate_size": 3 * shape.vision_width,
            "num_heads": shape.vision_heads, "out_hidden_size": shape.width, "patch_size": shape.patch,
            "fullatt_block_indexes": list(range(shape.vision_blocks)), "window_size": 4 * shape.patch,
        },
        image_token_id=number(_IMAGE), video_token_id=number(_VIDEO), vision_start_token_id=number(_SEE),
        vision_end_token_id=number(_SEEN), tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Qwen2_5_VLForConditionalGeneration(config)
    image = Qwen2VLImageProcessorPil(
        size={"shortest_edge": shape.pixels**2, "longest_edge": shape.pixels**2}, patch_size=shape.patch
    )

    class Processor(Qwen2_5_VLProcessor):  # its part for videos would need torchvision
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if "video" not in name]

    Processor.__name__ = Qwen2_5_VLProcessor.__name__
    return net, Processor(image_processor=image, tokenizer=tokenizer, chat_template=TEMPLATE)


def _tokenizer(words: Iterable[str]) -> Any:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = sorted({*WORDS, *words})
    if wrong := [word for word in plain if word != word.lower() or not word.isalnum()]:
        raise ValueError(f"words of a tokenizer are letters and digits in lower case, got {wrong[0]!r}")
    special = [PAD, UNKNOWN, END, TURN, _SEE, _SEEN, _IMAGE, _VIDEO]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *plain])}, UNKNOWN))
    # Every question about yes and no ends in the same words; they and all punctuation cost no token.
    dropped = {r"answer yes or no\.?\s*$": "", r"[^\w\s]": " "}
    replaced = [normalizers.Replace(Regex(pattern), by) for pattern, by in dropped.items()]
    made.normalizer = normalizers.Sequence([normalizers.Lowercase(), *replaced])
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token=UNKNOWN, pad_token=PAD, eos_token=END,
        extra_special_tokens=[TURN, _SEE, _SEEN, _IMAGE, _VIDEO],
    )  # fmt: skip


def save(net: Any, processor: Any, folder: Path) -> None:
    """Write what `AutoModelForImageTextToText` and `AutoProcessor` load, weights as safetensors, whole or not at all."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    net.save_pretrained(part, safe_serialization=True)
    processor.tokenizer.save_pretrained(part)
    processor.image_processor.save_pretrained(part)
    (part / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    path = part / "preprocessor_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text("utf-8")), "processor_class": "Qwen2_5_VLProcessor"}, indent=1)
    )
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
