"""Eight threads and two event loops on one engine with few blocks: they submit, cancel and give up at random.

Every request ends exactly once; what it generated is what it generates alone, greedy and seeded; every invariant of the
scheduler holds after each step; in the end nothing is held.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import threading
from collections import Counter
from typing import Any

import pytest

from engines import checked, checkpoint, engine
from ostinato import LLM, AsyncLLM, SamplingParams
from ostinato.errors import QueueFull

ROUNDS = 40 if os.environ.get("OSTINATO_SOAK") == "1" else 6
"""Requests of each of the ten clients."""
PROMPTS = [[n, *range(30, 30 + 3 * n)] for n in range(1, 7)]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=20, ignore_eos=True),
    SamplingParams(temperature=1.0, seed=7, max_tokens=16, ignore_eos=True),
    SamplingParams(temperature=0.8, top_k=20, seed=8, max_tokens=12, ignore_eos=True),
]


@functools.cache
def alone(prompt: int, params: int) -> list[int]:
    """What a request generates that has an engine for itself."""
    with engine("qwen3", enable_prefix_caching=False) as llm:
        tokens: list[int] = llm.generate(PROMPTS[prompt], PARAMS[params])[0].outputs[0].token_ids
    return tokens


class Client:
    """Draws requests and what becomes of them, and notes how each ended."""

    def __init__(self, seed: int, ends: Counter[str], lock: threading.Lock) -> None:
        self.rng, self._ends, self._lock = random.Random(seed), ends, lock

    def draw(self) -> tuple[int, int, dict[str, Any]]:
        limits = {"priority": self.rng.choice([0, 0, -1, 3])}
        if self.rng.random() < 0.2:
            limits["deadline"] = self.rng.choice([1e-4, 0.02, 60])
        return self.rng.randrange(len(PROMPTS)), self.rng.randrange(len(PARAMS)), limits

    def note(self, prompt: int, params: int, reason: str | None, tokens: list[int]) -> None:
        want = alone(prompt, params)
        assert tokens == (want if reason == "length" else want[: len(tokens)])
        self.count(str(reason))

    def note_deltas(self, prompt: int, params: int, deltas: list[Any], closed: bool) -> None:
        finished = [delta.finished for delta in deltas]
        tokens = [token for delta in deltas for token in delta.token_ids]
        if closed:
            assert not any(finished[:-1])
            self.note(prompt, params, "abort", tokens)
        else:
            assert finished == [False] * (len(deltas) - 1) + [True], "it ends exactly once"
            self.note(prompt, params, deltas[-1].finish_reason, tokens)

    def count(self, what: str) -> None:
        with self._lock:
            self._ends[what] += 1


def in_a_thread(llm: LLM, client: Client) -> None:
    for _ in range(ROUNDS):
        prompt, params, limits = client.draw()
        way, most = client.rng.choice(["result", "stream", "cancel", "close", "impatient"]), client.rng.randint(0, 9)
        try:
            handle = llm.submit(PROMPTS[prompt], PARAMS[params], **limits)
        except QueueFull:
            client.count("refused")
            continue
        if way in ("stream", "close"):
            deltas = []
            for delta in handle:
                deltas.append(delta)
                if way == "close" and len(deltas) > most:
                    handle.close()
            client.note_deltas(prompt, params, deltas, closed=not (deltas and deltas[-1].finished))
            continue
        if way == "cancel":
            handle.cancel()
        if way == "impatient":
            try:
                handle.result(0.001)
            except TimeoutError:
                client.count("not yet")
        completion = handle.result().outputs[0]
        client.note(prompt, params, completion.finish_reason, completion.token_ids)


async def in_a_task(aio: AsyncLLM, client: Client) -> None:
    for _ in range(ROUNDS // 2):
        prompt, params, limits = client.draw()
        way, most = client.rng.choice(["result", "stream", "break", "cancel"]), client.rng.randint(0, 9)
        try:
            handle = aio.submit(PROMPTS[prompt], PARAMS[params], **limits)
        except QueueFull:
            client.count("refused")
            await asyncio.sleep(0.001)
            continue
        if way in ("stream", "break"):
            deltas = []
            async for delta in handle:
                deltas.append(delta)
                if way == "break" and len(deltas) > most:
                    break
            client.note_deltas(prompt, params, deltas, closed=not deltas[-1].finished)
        elif way == "result":
            completion = (await handle.result()).outputs[0]
            client.note(prompt, params, completion.finish_reason, completion.token_ids)
        else:
            task = asyncio.create_task(handle.result())
            await asyncio.sleep(client.rng.random() * 0.01)
            task.cancel()
            await asyncio.wait([task])
            completion = (await handle.result()).outputs[0]
            client.note(prompt, params, completion.finish_reason, completion.token_ids)


async def in_a_loop(llm: LLM, clients: list[Client]) -> None:
    await asyncio.gather(*(in_a_task(AsyncLLM.of(llm), client) for client in clients))


@pytest.mark.parametrize("seed", range(2))
def test_threads_and_loops_at_random(seed: int) -> None:
    for prompt in range(len(PROMPTS)):
        for params in range(len(PARAMS)):
            alone(prompt, params)
    ends: Counter[str] = Counter()
    errors: list[BaseException] = []
    lock = threading.Lock()

    def guarded(work: Any) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    folder = checkpoint("qwen3")[0]
    with engine("qwen3", max_model_len=48) as probe:
        block_bytes = probe.plan.block_bytes
    options: dict[str, Any] = {"max_num_seqs": 4, "max_model_len": 48, "block_size": 4, "max_waiting": 8}
    with checked(LLM(folder, device="cpu", execution="eager", kv_cache_memory=21 * block_bytes, **options)) as llm:
        work: list[Any] = []
        for n in range(8):
            client = Client(100 * seed + n, ends, lock)
            work.append(lambda client=client: in_a_thread(llm, client))
        for n in (8, 9):
            clients = [Client(100 * seed + 10 * n + i, ends, lock) for i in range(2)]
            work.append(lambda clients=clients: asyncio.run(in_a_loop(llm, clients)))
        threads = [threading.Thread(target=guarded, args=(part,)) for part in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors
        stats = llm.stats()
        assert (stats.requests_running, stats.requests_waiting, stats.blocks_used) == (0, 0, 0)
        assert stats.preemptions > 0
        assert not (llm._core._processors or llm._core._live or llm._core._timed or llm._engine._tickets)
        assert llm._engine._accepted == llm._engine._ended == sum(ends.values()) - ends["refused"] - ends["not yet"]
    assert set(ends) >= {"length", "abort", "timeout"}
