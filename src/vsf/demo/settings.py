"""What is recommended for the demo model, in one place. Torch-free, so that command line help can show it."""

from __future__ import annotations

from ..guidance import VSF

#: The guidance used wherever nothing else is asked for: the best of twelve on dev cases (docs/evidence/demo).
RECOMMENDED = VSF(scale=1.5, offset=1.0, stop=0.75)

STEPS = 8
SIZE = 64
#: Text length given to the pipeline: every prompt of the demo world fits, and pads cost time.
TEXT_LENGTH = 16

#: (prompt, negative, noise seed) of the pictures in `vsf demo show`. Seeds whose unguided picture has the part, and
#: which look good: this is for show, how often it works is what `vsf demo eval` measures.
SHOWN: tuple[tuple[str, str, int], ...] = (
    ("a red bike on grass", "wheels", 2),
    ("a blue house on grass", "windows", 10),
    ("a yellow face", "glasses", 12),
    ("a green tree on grass", "apples", 2),
    ("a pink cake in a room", "candles", 8),
    ("a red train on grass", "smoke", 5),
    ("a brown table in a room", "cards", 2),
    ("a red castle at night", "flag", 11),
)
