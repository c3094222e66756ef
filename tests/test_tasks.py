"""A block belongs to the task that entered it, and follows where Python's context variables do."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import specs
import vsf.seam
from composition import pipes
from patience import PATIENCE
from test_contract import fingerprint, negatives, run, run_guided, untouched
from vsf import CFG, NAG, VSF, Guidance, NothingGuided, load_demo_pipeline, negative_guidance

SPECS = specs.load()


class Case:
    """A model, a call of it, two negatives, and what each draws."""

    def __init__(self, name: str) -> None:
        spec = SPECS[name]
        self.model: Any = spec.build(torch.float32)
        self.call = spec.inputs(1, 5, torch.float32)
        self.given = negatives(spec, 3, 6)
        self.plain = run(self.model, self.call)
        self.wanted = [run_guided(self.model, self.call, VSF(3.5), [n]) for n in self.given]
        assert not torch.equal(*self.wanted) and not torch.equal(self.wanted[0], self.plain)
        self.before = fingerprint(self.model)

    def draw(self) -> Tensor:
        return run(self.model, self.call)

    def block(self, which: int, method: Guidance | None = None) -> Any:
        return negative_guidance(self.model, method or VSF(3.5), negative_prompt_embeds=[self.given[which]])


@pytest.fixture(params=["sd3", "unet", "wan-i2v", "z-image"])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    case = Case(request.param)
    yield case
    assert untouched(case.model, case.before) and torch.equal(case.draw(), case.plain)


def test_a_thread_that_inherits_the_context_draws_guided(case: Case) -> None:
    async def main() -> Tensor:
        with case.block(0):
            return await asyncio.to_thread(case.draw)

    assert torch.equal(asyncio.run(main()), case.wanted[0])
    drawn: list[Tensor] = []
    with case.block(1):
        here = contextvars.copy_context()
        thread = threading.Thread(target=lambda: drawn.append(here.run(case.draw)))
        thread.start()
        thread.join()
    assert torch.equal(drawn[0], case.wanted[1])


def test_two_threads_of_one_block_at_a_time(case: Case) -> None:
    """Each forward pass has what it needs to itself."""
    start, drawn = threading.Barrier(3), []

    def work() -> None:
        start.wait()
        drawn.extend(case.draw() for _ in range(5))

    with case.block(0):
        threads = [threading.Thread(target=contextvars.copy_context().run, args=(work,)) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert len(drawn) == 15 and all(torch.equal(d, case.wanted[0]) for d in drawn)


@pytest.mark.parametrize("in_threads", [False, True])
def test_tasks_with_their_blocks_open_over_an_await_stay_apart(case: Case, in_threads: bool) -> None:
    async def main() -> list[Tensor]:
        inside: Any = asyncio.Barrier(3) if sys.version_info >= (3, 11) else None

        async def picture(which: int | None) -> Tensor:
            async def draw() -> Tensor:
                for _ in range(3):
                    await asyncio.sleep(0)
                if inside is not None:
                    await inside.wait()
                return await asyncio.to_thread(case.draw) if in_threads else case.draw()

            if which is None:
                return await draw()
            with case.block(which):
                return await draw()

        return list(await asyncio.gather(picture(0), picture(1), picture(None)))

    first, second, plain = asyncio.run(main())
    assert torch.equal(first, case.wanted[0])
    assert torch.equal(second, case.wanted[1])
    assert torch.equal(plain, case.plain)


def test_a_task_begun_inside_a_block_is_not_guided_after_it(case: Case) -> None:
    async def main() -> tuple[Tensor, Tensor]:
        go = asyncio.Event()

        async def later() -> Tensor:
            await go.wait()
            return case.draw()

        with case.block(0):
            inside = await asyncio.create_task(asyncio.to_thread(case.draw))
            task = asyncio.create_task(later())
        go.set()
        return inside, await task

    inside, after = asyncio.run(main())
    assert torch.equal(inside, case.wanted[0]) and torch.equal(after, case.plain)


def test_blocks_of_a_task_nest_in_those_of_its_parent(case: Case) -> None:
    async def main() -> list[Tensor]:
        async def child() -> Tensor:
            with case.block(1):
                await asyncio.sleep(0)
                return case.draw()

        with case.block(0):
            inner = await asyncio.create_task(child())
            return [inner, case.draw()]

    inner, outer = asyncio.run(main())
    assert torch.equal(inner, case.wanted[1]) and torch.equal(outer, case.wanted[0])


def test_a_block_left_in_another_context_is_left(case: Case) -> None:
    """As a framework does that runs the two halves of a `yield` in contexts of their own."""
    block, here = case.block(0), contextvars.copy_context()
    here.run(block.__enter__)
    assert torch.equal(here.run(case.draw), case.wanted[0])
    contextvars.copy_context().run(block.__exit__, None, None, None)
    assert torch.equal(here.run(case.draw), case.plain)


def plain_thread(work: Callable[[], Any]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def pool(work: Callable[[], Any]) -> None:
    with ThreadPoolExecutor(1) as executor:
        executor.submit(work).result()


@pytest.mark.skipif(
    getattr(__import__("sys").flags, "thread_inherit_context", False), reason="threads inherit the context here"
)
@pytest.mark.parametrize("elsewhere", [plain_thread, pool])
def test_a_thread_without_the_context_is_told_of(case: Case, elsewhere: Callable[[Callable[[], Any]], None]) -> None:
    drawn: list[Tensor] = []
    told = r"in a thread or task that does not belong to the block.*asyncio.to_thread"
    with pytest.warns(NothingGuided, match=told):  # noqa: SIM117
        with case.block(0):
            elsewhere(lambda: drawn.append(case.draw()))
    assert torch.equal(drawn[0], case.plain)


def test_a_block_is_not_told_that_one_inside_it_guided(case: Case) -> None:
    with case.block(0), case.block(1):
        assert torch.equal(case.draw(), case.wanted[1])


def test_a_block_in_which_nothing_runs_is_told_of(case: Case) -> None:
    with pytest.warns(NothingGuided, match="did not run inside"), case.block(0):
        pass


@pytest.mark.parametrize("which", ["empty", "neutral"])
def test_nothing_to_guide_needs_no_warning(case: Case, which: str) -> None:
    method, given = (VSF(), None) if which == "empty" else (NAG(1.0), case.given[0])
    with negative_guidance(case.model, method, negative_prompt_embeds=[given]):
        pass


def test_the_pipelines_own_guidance_follows_as_well() -> None:
    pipe: Any = load_demo_pipeline()
    pipe.set_progress_bar_config(disable=True)

    def draw(**more: Any) -> Tensor:
        call = {"num_inference_steps": 2, "guidance_scale": 0.0, "max_sequence_length": 16} | more
        return pipe("a red bike", generator=torch.Generator().manual_seed(0), output_type="latent", **call).images

    wanted = [draw(guidance_scale=4.0, negative_prompt=n) for n in ("wheels", "chain")]

    async def main() -> list[Tensor]:
        one = asyncio.Lock()  # a pipeline's scheduler is for one picture at a time

        async def picture(text: str) -> Tensor:
            with negative_guidance(pipe, CFG(4.0), text):
                await asyncio.sleep(0)
                async with one:
                    return await asyncio.to_thread(draw)

        return list(await asyncio.gather(picture("wheels"), picture("chain")))

    assert all(torch.equal(a, b) for a, b in zip(asyncio.run(main()), wanted, strict=True))


def test_a_block_that_ends_under_a_running_model(case: Case) -> None:
    """A cancelled task: the pass that is running keeps what it needs to its end, and the next one is not guided."""
    reached, go, drawn = threading.Event(), threading.Event(), []
    family_sites = vsf.arch.find_models(case.model)[0][1].sites(case.model)

    def pause(*_: Any) -> None:
        if threading.current_thread() is not threading.main_thread() and not reached.is_set():
            reached.set()
            assert go.wait(PATIENCE)

    handle = family_sites[1].register_forward_pre_hook(pause)

    async def main() -> None:
        async def picture() -> None:
            with case.block(0):
                await asyncio.to_thread(lambda: drawn.extend([case.draw(), case.draw()]))

        task = asyncio.create_task(picture())
        while not reached.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()

    with pytest.warns(NothingGuided, match="ended while .* was running in another thread"):
        asyncio.run(main())  # waits for its threads
    handle.remove()
    assert torch.equal(drawn[0], case.wanted[0]) and torch.equal(drawn[1], case.plain)


def test_the_model_exchanged_inside() -> None:
    pipe = pipes.make("sd3")
    stock = pipe.transformer
    other = SPECS["sd3-dual"].build(torch.float32)
    with pytest.warns(NothingGuided, match=r"transformer was exchanged inside the block"):  # noqa: SIM117
        with negative_guidance(pipe, VSF(3.5), "wheels"):
            pipe.transformer = other
            pipes.draw(pipe)
    pipe.transformer = stock
    with pytest.warns(NothingGuided, match=r"transformer was exchanged inside the block"):  # noqa: SIM117
        with negative_guidance(pipe, VSF(3.5), "wheels"):
            pipes.draw(pipe)
            pipe.transformer = other
            pipes.draw(pipe)
    with negative_guidance(pipe, VSF(3.5), "wheels"):
        pipes.draw(pipe)
