"""``AsyncLLM``: what asyncio tasks get, what their cancellation does, several loops, loops that are gone."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engines import GREEDY, checkpoint, engine, paced, prompts, reference_tokens, token_ids
from ostinato import LLM, AsyncLLM, SamplingParams
from ostinato.errors import EngineDead, OstinatoError, ParamError

LONG = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)


def in_loop(work: Callable[[LLM, AsyncLLM], Awaitable[None]], **options: Any) -> None:
    """Run ``work`` in a loop of its own, over a small engine."""
    with engine("qwen3", **options) as llm:
        asyncio.run(within(20, work(llm, AsyncLLM.of(llm))))
        stats = llm.stats()
        assert (stats.requests_running, stats.requests_waiting, stats.blocks_used) == (0, 0, 0)


async def within(seconds: float, work: Awaitable[None]) -> None:
    await asyncio.wait_for(work, seconds)


async def settled(llm: LLM, running: int) -> None:
    """Until the engine has that many requests: it serves what it was told before."""
    while llm.stats().requests_running != running:
        await asyncio.sleep(0)


def test_an_engine_is_made_used_and_closed_in_a_loop() -> None:
    async def main() -> None:
        folder = checkpoint("qwen3")[0]
        async with await AsyncLLM.create(folder, device="cpu", execution="eager", max_model_len=128) as llm:
            assert token_ids(await llm.generate([[1, 2, 3], [4, 5]], GREEDY)) == [
                reference_tokens("qwen3", prompt, 24) for prompt in ([1, 2, 3], [4, 5])
            ]
        with pytest.raises(EngineDead, match="closed"):
            await llm.generate([1])

    asyncio.run(main())
    direct = AsyncLLM(checkpoint("qwen3")[0], device="cpu", execution="eager", max_model_len=128)
    asyncio.run(direct.aclose())
    with pytest.raises(EngineDead, match="closed"):
        direct.llm.stats()


def test_streams_of_many_tasks_give_what_they_would_alone() -> None:
    async def main(llm: LLM, aio: AsyncLLM) -> None:
        async def read(prompt: list[int]) -> list[int]:
            deltas = [delta async for delta in aio.stream(prompt, GREEDY)]
            assert [delta.finished for delta in deltas] == [False] * (len(deltas) - 1) + [True]
            return [token for delta in deltas for token in delta.token_ids]

        wanted = prompts(8, seed=3)
        got = await asyncio.gather(*map(read, wanted))
        assert got == [reference_tokens("qwen3", prompt, 24) for prompt in wanted]

    in_loop(main)


def test_what_a_step_brings_to_a_loop_wakes_it_once() -> None:
    async def main(llm: LLM, aio: AsyncLLM) -> None:
        loop, wakes = asyncio.get_running_loop(), [0]
        wake = loop.call_soon_threadsafe

        def counting(callback: Any, *args: Any, **kwargs: Any) -> Any:
            wakes[0] += 1
            return wake(callback, *args, **kwargs)

        loop.call_soon_threadsafe = counting  # type: ignore[method-assign]
        streams = [aio.stream([n], GREEDY) for n in range(4)]

        async def read(stream: Any) -> int:
            return sum([len(delta.token_ids) async for delta in stream])

        assert await asyncio.gather(*map(read, streams)) == [24] * 4
        assert 0 < wakes[0] <= llm.stats().steps

    in_loop(main)


def test_a_result_in_time_and_one_that_is_not() -> None:
    async def main(llm: LLM, aio: AsyncLLM) -> None:
        pace = paced(llm)
        handle = aio.submit([1, 2, 3], GREEDY)
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError, match=f"request 0 has not ended after {timeout} seconds"):
                await handle.result(timeout)
        pace.release(100)
        assert token_ids([await handle.result()]) == [reference_tokens("qwen3", [1, 2, 3], 24)]
        assert handle.done()

    in_loop(main)


@pytest.mark.parametrize("how", ["stream", "kept stream", "result", "generate", "elsewhere"])
def test_a_cancelled_task_cancels_its_request_within_a_step(how: str) -> None:
    async def main(llm: LLM, aio: AsyncLLM) -> None:
        pace = paced(llm)
        keeper: list[Any] = []

        async def work() -> None:
            if how == "generate":
                await aio.generate([1, 2, 3], LONG)
            elif how == "result":
                await aio.submit([1, 2, 3], LONG).result()
            elif how == "stream":
                async for _ in aio.stream([1, 2, 3], LONG):
                    pass
            else:
                keeper.append(aio.stream([1, 2, 3], LONG))
                async for _ in keeper[0]:
                    if how == "elsewhere":
                        await asyncio.sleep(60)

        task = asyncio.create_task(work())
        pace.release()
        while llm.stats().steps < 1:
            await asyncio.sleep(0)
        for _ in range(3):  # the delta is read
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        stats = llm.stats()
        assert (stats.requests_running, stats.requests_waiting, stats.steps) == (0, 0, 1)

    in_loop(main)


@pytest.mark.parametrize("how", ["drop", "close", "aclose", "with", "break"])
def test_a_stream_that_ends_early_is_cancelled(how: str) -> None:
    async def main(llm: LLM, aio: AsyncLLM) -> None:
        pace = paced(llm)
        pace.release()
        stream: Any = aio.stream([1, 2, 3], LONG)
        if how == "break":
            async for _ in stream:
                break
            del stream
        else:
            await anext(stream)
        if how == "with":
            async with stream:
                pass
        elif how == "close":
            stream.close()
        elif how == "aclose":
            await stream.aclose()
        elif how == "drop":
            del stream
        gc.collect()
        assert (llm.stats().requests_running, llm.stats().steps) == (0, 1)
        if how in ("close", "aclose", "with"):
            assert [delta async for delta in stream] == []

    in_loop(main)


def test_a_task_that_reads_one_stream_after_another_keeps_nothing_of_them() -> None:
    async def main(llm: LLM, aio: AsyncLLM) -> None:
        for _ in range(3):
            async for _ in aio.stream([1], GREEDY):
                assert repr(asyncio.current_task()).count("LoopMailbox") <= 1
        assert "LoopMailbox" not in repr(asyncio.current_task())

    in_loop(main)


def test_loops_in_several_threads_share_an_engine() -> None:
    wanted = prompts(6, seed=4)
    got: dict[int, list[list[int]]] = {}
    with engine("qwen3") as llm:
        aio = AsyncLLM.of(llm)

        async def read(prompt: list[int]) -> list[int]:
            return [token async for delta in aio.stream(prompt, GREEDY) for token in delta.token_ids]

        async def main(index: int) -> None:
            got[index] = list(await asyncio.gather(*(read(prompt) for prompt in wanted)))

        threads = [threading.Thread(target=lambda n=n: asyncio.run(main(n))) for n in range(3)]
        for thread in threads:
            thread.start()
        assert token_ids(llm.generate(wanted, GREEDY)) == [reference_tokens("qwen3", p, 24) for p in wanted]
        for thread in threads:
            thread.join()
    assert list(got.values()) == [[reference_tokens("qwen3", prompt, 24) for prompt in wanted]] * 3


def test_a_loop_that_was_closed_has_its_requests_cancelled_and_others_go_on() -> None:
    with engine("qwen3") as llm:
        pace = paced(llm)
        aio = AsyncLLM.of(llm)
        other = llm.submit([4, 5], GREEDY)
        loop = asyncio.new_event_loop()

        async def begin() -> Any:
            return aio.stream([1, 2, 3], LONG)

        stream = loop.run_until_complete(begin())
        loop.close()
        assert llm.stats().requests_waiting == 2
        pace.release()
        while llm.stats().requests_running != 1:
            pass
        assert stream.done()
        pace.release(100)
        assert token_ids([other.result()]) == [reference_tokens("qwen3", [4, 5], 24)]
        assert asyncio.run(within_a_new_loop(aio)) == reference_tokens("qwen3", [1, 2, 3], 24)


async def within_a_new_loop(aio: AsyncLLM) -> list[int]:
    return [token async for delta in aio.stream([1, 2, 3], GREEDY) for token in delta.token_ids]


def test_errors_are_raised_where_something_is_asked_for() -> None:
    async def main(llm: LLM, aio: AsyncLLM) -> None:
        with pytest.raises(ParamError, match="token id at 0 is -1"):
            aio.stream([-1])
        with pytest.raises(ParamError, match="a request takes one prompt, got 2"):
            aio.submit([[1], [2]])

        def broken(step: Any) -> Any:
            raise ZeroDivisionError("injected")

        launch = llm._core.runner.launch
        llm._core.runner.launch = broken  # type: ignore[method-assign]
        with pytest.raises(OstinatoError, match="a step of 1 requests failed: ZeroDivisionError: injected"):
            await aio.generate([1], GREEDY)
        with pytest.raises(OstinatoError, match="injected"):
            async for _ in aio.stream([1], GREEDY):
                pass
        llm._core.runner.launch = launch  # type: ignore[method-assign]
        assert token_ids(await aio.generate([4, 5], GREEDY)) == [reference_tokens("qwen3", [4, 5], 24)]

    in_loop(main)


def test_an_engine_that_is_shared_stays_open() -> None:
    async def main(llm: LLM, aio: AsyncLLM) -> None:
        await aio.aclose()
        async with aio:
            pass
        assert len(await aio.generate([1], GREEDY)) == 1

    in_loop(main)


def test_no_loop_is_an_error_and_leaves_nothing() -> None:
    with engine("qwen3") as llm:
        with pytest.raises(RuntimeError, match="no running event loop"):
            AsyncLLM.of(llm).stream([1])
        assert llm.stats().requests_waiting == 0
