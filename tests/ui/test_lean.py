"""What gradio is kept from doing: building components that an answer leaves as they are, describing them for every visitor."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from vsf.ui.guard import Guard
from vsf.ui.hosts import Hosts
from vsf.ui.model import Options


async def _import() -> Any:
    with warnings.catch_warnings():  # what gradio's own imports say
        warnings.simplefilter("ignore")
        import gradio
        import gradio.blocks
        import gradio.state_holder

        import vsf.ui.lean
        import vsf.ui.page

    return gradio, vsf.ui.page, vsf.ui.lean


# Inside a running event loop: outside, gradio makes one for each page and never closes it.
gr, pages, lean = asyncio.run(_import())


def within(build: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(build())


@pytest.fixture(scope="module")
def page() -> Any:
    async def build() -> Any:
        blocks = pages.build(Options())
        gr.state_holder.StateHolder().set_blocks(blocks)
        return blocks.vsf_page

    return within(build)


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The components that gradio describes from now on."""
    found, own = list[int](), gr.blocks.BlocksConfig.config_for_block

    def noted(number: int, *more: Any) -> dict[str, Any]:
        found.append(number)
        return own(number, *more)

    monkeypatch.setattr(gr.blocks.BlocksConfig, "config_for_block", staticmethod(noted))
    return found


def answer(blocks: Any, by: Callable[..., Any], handler: Any, updates: Any) -> tuple[list[Any], set[int]]:
    """What a visitor is sent, and the components that were built anew for them."""
    state = gr.state_holder.SessionState(blocks)
    before = dict(state.blocks_config.blocks)
    sent = asyncio.run(by(blocks, handler, updates, state))
    return sent, {number for number, part in state.blocks_config.blocks.items() if part is not before[number]}


def test_an_answer_builds_the_components_anew_that_it_changes_and_no_others(page: Any) -> None:
    blocks, desk = page.blocks, page.desk
    several = [fn for fn in blocks.fns.values() if fn.fn is not None and desk.status in fn.outputs]
    assert len(several) > 8
    for handler in several:
        for parts in ([desk.status], [desk.status, desk.cancel], handler.outputs[-2:], handler.outputs):

            def updates(parts: Any = parts) -> dict[Any, Any]:  # gradio takes them apart
                return {part: "A line" if part is desk.status else gr.update(visible=True) for part in parts}

            sent, built = answer(blocks, type(blocks).postprocess_data, handler, updates())
            theirs, all_of_them = answer(blocks, gr.Blocks.postprocess_data, handler, updates())
            # gradio's own leaves a mark among the properties of HTML that does not change.
            same = [theirs[i] if part in parts else gr.skip() for i, part in enumerate(handler.outputs)]
            assert sent == same
            assert built == {part._id for part in parts if part is not desk.status} <= all_of_them


def test_other_answers_are_gradios_own() -> None:
    async def build() -> tuple[Any, ...]:
        with lean.LeanBlocks() as blocks:
            text, number, state, other = gr.Textbox(), gr.Slider(0, 9, 1), gr.State(1), gr.Textbox()
            text.change(lambda: None, None, [text, number, state])
            text.change(lambda: None, None, [text])
            text.change(lambda: None, None, [text, text, number])
        return blocks, text, number, state, other

    blocks, text, number, state, other = within(build)
    several, one, twice = blocks.fns.values()
    for handler, updates in (
        (several, lambda: {text: "a", state: 5}),
        (several, lambda: {number: gr.update(value=3, maximum=12)}),
        (several, lambda: ["a", 2, 3]),
        (several, gr.skip),
        (one, lambda: {text: "a"}),
        (one, lambda: "a"),
        (one, lambda: gr.update(value="a")),
        (one, gr.skip),
        (twice, lambda: {text: "a"}),
    ):
        sent, _ = answer(blocks, lean.LeanBlocks.postprocess_data, handler, updates())
        assert sent == answer(blocks, gr.Blocks.postprocess_data, handler, updates())[0]
    with pytest.raises(ValueError, match="not specified as output"):
        answer(blocks, lean.LeanBlocks.postprocess_data, several, {other: "a"})


def test_no_component_is_described_for_a_new_visitor(page: Any, described: list[int]) -> None:
    blocks, desk, holder = page.blocks, page.desk, page.blocks.state_holder
    handler = next(fn for fn in blocks.fns.values() if fn.inputs == [page.panel.fields["method"]])
    reached = list[bytes]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "GET":  # as gradio does when a visitor leaves
            holder[scope["path"].rsplit("/", 1)[1]]
        else:
            reached.append((await receive())["body"])

    async def ask() -> None:
        asked = {"data": ["nag"], "event_data": None, "fn_index": handler._id, "session_hash": "abc"}
        messages = [{"type": "http.request", "body": json.dumps(asked).encode(), "more_body": False}]

        async def receive() -> Any:
            return messages.pop()

        async def send(message: Any) -> None:
            raise AssertionError(message)

        blocks._queue.pending_event_ids_session.clear()
        scope = {"type": "http", "query_string": b"", "headers": [(b"host", b"127.0.0.1")]}
        guard = Guard(app, blocks, Hosts("127.0.0.1"))
        await guard(scope | {"method": "POST", "path": "/gradio_api/queue/join"}, receive, send)
        await guard(scope | {"method": "GET", "path": "/gradio_api/heartbeat/who-asked-for-nothing"}, receive, send)

    asyncio.run(ask())
    state = holder["abc"]
    updates = {desk.status: "A line", desk.cancel: gr.update(interactive=True)}
    assert asyncio.run(blocks.postprocess_data(handler, updates, state))[:2] == [
        "A line",
        {"__type__": "update", "interactive": True},
    ]
    assert len(reached) == 1 and not described
    assert state[desk.cancel._id].interactive and not desk.cancel.interactive  # for this visitor alone
    lean.admit(blocks, "abc")
    assert holder["abc"] is state
    assert gr.state_holder.SessionState(blocks).config_values and described  # what it is measured against


def test_another_gradio_makes_its_own_state_of_a_visitor() -> None:
    blocks: Any = SimpleNamespace(state_holder=SimpleNamespace(session_data={}))
    lean.admit(blocks, "abc")
    assert not blocks.state_holder.session_data
