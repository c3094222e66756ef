"""gradio without work that nobody needs: all visitors share the one thread that it is done in, and the drawing waits for it."""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio.state_holder import SessionState

__all__ = ["LeanBlocks", "admit"]


class LeanBlocks(gr.Blocks):
    """A page that, to answer an event, builds anew the components that the answer changes, and not all that it might."""

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        outputs = block_fn.outputs
        if not isinstance(predictions, dict) or not predictions or not set(predictions) <= set(outputs):
            return await super().postprocess_data(block_fn, predictions, state)
        narrow = copy(block_fn)
        narrow.outputs = [part for part in outputs if part in predictions]
        sent = iter(await super().postprocess_data(narrow, predictions, state))
        return [next(sent) if part in predictions else None if part.stateful else gr.skip() for part in outputs]


def admit(blocks: gr.Blocks, session: str) -> None:
    """Make gradio's state of a new visitor, without a description of every component as it is for them now.

    Those are for links to a page as it stands, which the guard refuses.
    """
    holder = blocks.state_holder
    if session in holder.session_data:
        return
    with suppress(AttributeError, TypeError):  # another gradio than we know: it makes its own
        state = SessionState(SimpleNamespace(default_config=blocks.default_config, blocks=()))  # pyright: ignore[reportArgumentType]
        setattr(state.blocks_config, "config_for_block", lambda *_: {})  # noqa: B010  # of what changes later, neither
        holder.session_data[session] = state
