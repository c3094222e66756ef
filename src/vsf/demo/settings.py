"""What is recommended for the demo model, in one place. Torch-free, so that command line help can show it."""

from __future__ import annotations

from ..guidance import VSF

#: The guidance used wherever nothing else is asked for.
RECOMMENDED = VSF(scale=2.0, offset=0.1, normalize=1.0)

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
    ("a purple mountain", "snow", 11),
    ("a red castle at night", "flag", 11),
)
