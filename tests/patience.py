"""How long a test waits for what has to come; CONTRIBUTING lists the waits that are not this one."""

from __future__ import annotations

#: Seconds, at least ten times what anything that is waited for needs on an idle machine (30 s, the start of ComfyUI).
#: Nothing waits for it to pass. pytest-timeout ends a test after twice as long.
PATIENCE = 300.0
