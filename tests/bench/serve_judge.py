"""`transformers serve` for a model of Qwen2.5-VL's classes where torchvision is missing, which only its part for videos needs."""

from __future__ import annotations

import sys

from transformers import Qwen2_5_VLProcessor

_stock = Qwen2_5_VLProcessor.get_attributes
_without = classmethod(lambda cls: [name for name in _stock() if "video" not in name])
Qwen2_5_VLProcessor.get_attributes = _without  # pyright: ignore[reportAttributeAccessIssue]

if __name__ == "__main__":
    from transformers.cli.transformers import main

    sys.argv[0] = "transformers"
    main()
