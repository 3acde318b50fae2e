"""``sleep`` gives the KV memory back, ``wake`` takes it again: the same tokens, nothing captured or compiled anew."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch

import fake_libcuda_memory as fake
from deferred_stream import DeferredStream
from engines import GREEDY, checkpoint, engine, prompts, reference_tokens, token_ids
from ostinato import LLM, EngineAsleep, EngineConfig, SamplingParams
from ostinato.core import EngineCore
from ostinato.graphs.regions import FixedRegion
from ostinato.kv_memory import KVMemory
from ostinato.layers.errors import ConfigError, EngineDead
from ostinato.load import load_decoder
from ostinato.models.checkpoint import read_config
from ostinato.output_processor import OutputProcessor
from ostinato.request import Request
from ostinato.runner import StepRunner

DRAWN = SamplingParams(temperature=0.9, top_p=0.9, seed=5, max_tokens=24)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> fake.Driver:
    """Engines on the CPU have their pages in the fake driver's memory, which faults while they sleep."""
    made = fake.install(monkeypatch)
    region_of = KVMemory.__init__.__globals__["region_of"]
    monkeypatch.setattr("ostinato.kv_memory.region_of", lambda sizes, device: region_of(sizes, fake.GPU))
    return made


class Loop:
    """An engine's loop without an ``LLM``: requests, steps, and a stream that may lag behind."""

    def __init__(self, stream: DeferredStream | None = None, **options: Any) -> None:
        folder = checkpoint("qwen3")[0]
        settings = {"device": "cpu", "execution": "emulate", "max_num_seqs": 3, "max_model_len": 128, "block_size": 4}
        config = EngineConfig(folder, **(settings | options), debug=True)
        self.plan = replace(config.resolve(), num_blocks=60)
        self.runner = StepRunner(self.plan, load_decoder(self.plan, read_config(folder), lambda *_: None), stream)
        self.runner.warm_up()
        self.core = EngineCore(self.plan, self.runner)
        self.requests: list[Request] = []

    def submit(self, prompt: list[int], params: SamplingParams = GREEDY) -> Request:
        request = Request(len(self.requests), prompt, params, params.seed or 0, frozenset())
        self.core.add(request, OutputProcessor(None, request, None))
        self.requests.append(request)
        return request

    def step(self) -> None:
        self.core.step()
        self.core.scheduler.check()

    def finish(self) -> list[list[int]]:
        while any(self.core.is_live(request) for request in self.requests):
            self.step()
        return [request.output_token_ids for request in self.requests]


def uninterrupted(wanted: list[list[int]], params: list[SamplingParams]) -> list[list[int]]:
    loop = Loop()
    for prompt, param in zip(wanted, params, strict=True):
        loop.submit(prompt, param)
    tokens = loop.finish()
    loop.core.close()
    return tokens


@pytest.mark.parametrize("stream", [lambda: None, lambda: DeferredStream(4, eagerness=0.1)], ids=["host", "lagging"])
def test_sleeping_before_any_step_changes_no_token(stream: Callable[[], Any], driver: fake.Driver) -> None:
    """Running, waiting and half computed requests, steps in flight: all go on, greedy and drawn ones alike."""
    wanted, draw = prompts(5, seed=1, longest=40), random.Random(2)
    params = [replace_seed(DRAWN, number) if number % 2 else GREEDY for number in range(5)]
    want = uninterrupted(wanted, params)
    loop = Loop(stream(), max_num_batched_tokens=16, prefill_capture_sizes=[16])
    waiting, slept = list(zip(wanted, params, strict=True)), 0
    while waiting or loop.core.is_busy:
        if waiting and draw.random() < 0.5:
            loop.submit(*waiting.pop(0))
        if draw.random() < 0.3:
            loop.core.sleep()
            assert driver.taken == 0, "and from here on whoever looks at a page faults"
            assert loop.core.scheduler.num_running == loop.core.pool.num_used == loop.core.pool.num_cached == 0
            loop.core.scheduler.check()
            loop.core.wake()
            slept += 1
        if loop.core.is_busy:
            loop.step()
    assert [request.output_token_ids for request in loop.requests] == want
    assert slept > 10
    assert loop.runner.late == (0, 0)
    loop.core.close()
    del loop
    gc.collect()
    assert driver.reserved == 0


def replace_seed(params: SamplingParams, seed: int) -> SamplingParams:
    return SamplingParams(temperature=params.temperature, top_p=params.top_p, seed=seed, max_tokens=params.max_tokens)


@pytest.mark.parametrize("execution", ["eager", "emulate"])
def test_an_engine_sleeps_and_wakes(execution: str) -> None:
    wanted = prompts(3, seed=3)
    want = [reference_tokens("qwen3", prompt, 24) for prompt in wanted]
    with engine("qwen3", execution=execution, debug=True) as llm:
        assert token_ids(llm.generate(wanted, GREEDY)) == want
        before = llm.memory
        stats = llm.stats()
        llm.sleep()
        llm.sleep()
        assert llm.memory.kv_cache == 0
        assert llm.memory.total == before.total - before.kv_cache
        llm.wake()
        llm.wake()
        assert llm.memory == before
        assert token_ids(llm.generate(wanted, GREEDY)) == want
        after = llm.stats()
        assert (after.compiles, after.captures) == (stats.compiles, stats.captures)
        assert (after.compiles_after_warmup, after.captures_after_warmup) == (0, 0)


def test_streams_go_on_after_it() -> None:
    wanted = prompts(2, seed=4)
    with engine("qwen3") as llm:
        streams = [llm.stream(prompt, GREEDY) for prompt in wanted]
        begun = [[*next(stream).token_ids] for stream in streams]
        llm.sleep()
        llm.wake()
        for tokens, stream in zip(begun, streams, strict=True):
            for delta in stream:
                tokens += delta.token_ids
        assert begun == [reference_tokens("qwen3", prompt, 24) for prompt in wanted]


def test_cached_prefixes_are_forgotten() -> None:
    prompt = prompts(2, seed=5, longest=60)[1] * 2
    with engine("qwen3") as llm:
        assert llm.generate([prompt], GREEDY)[0].num_cached_tokens == 0
        assert llm.generate([prompt], GREEDY)[0].num_cached_tokens > 0
        llm.sleep()
        llm.wake()
        output = llm.generate([prompt], GREEDY)[0]
        assert output.num_cached_tokens == 0
        assert output.outputs[0].token_ids == reference_tokens("qwen3", prompt, 24)
        assert llm.generate([prompt], GREEDY)[0].num_cached_tokens > 0


def test_what_can_be_asked_of_a_sleeping_engine(driver: fake.Driver) -> None:
    llm = engine("qwen3")
    want = llm.embed([[1, 2, 3]])
    llm.sleep()
    with pytest.raises(EngineAsleep, match=r"the engine is asleep, its KV memory given back: wake\(\) takes it again"):
        llm.generate([[1, 2, 3]], GREEDY)
    assert torch.equal(llm.embed([[1, 2, 3]]), want)
    assert llm.stats().requests_waiting == 0
    assert "asleep" not in str(llm.memory)
    llm.reset_prefix_cache()
    llm.close()
    with pytest.raises(EngineDead, match="the engine is closed"):
        llm.wake()
    with pytest.raises(EngineDead, match="the engine is closed"):
        llm.sleep()
    gc.collect()
    assert driver.reserved == 0


def test_no_memory_at_waking_is_said_and_may_be_tried_again(
    driver: fake.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = prompts(2, seed=6)
    with engine("qwen3", kv_cache_memory="1MiB") as llm:
        llm.sleep()
        driver.limit(0)
        with pytest.raises(ConfigError, match=r"wake: the KV cache needs 1023 KiB on cpu: CUDA out of memory: cuMem"):
            llm.wake()
        with monkeypatch.context() as patch:
            patch.setattr("ostinato.kv_memory.free_bytes", lambda device: 1000)
            with pytest.raises(ConfigError, match=r"wake: the KV cache needs .*; 1000 B are free on cpu"):
                llm.wake()
        with pytest.raises(EngineAsleep):
            llm.generate(wanted, GREEDY)
        driver.limit(-1)
        llm.wake()
        assert token_ids(llm.generate(wanted, GREEDY)) == [reference_tokens("qwen3", prompt, 24) for prompt in wanted]


def test_a_device_that_cannot_is_refused_and_everybody_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ostinato.kv_memory.region_of", lambda sizes, device: FixedRegion(sizes, device, "its driver is too old")
    )
    prompt = prompts(2, seed=7)[1]
    with engine("qwen3") as llm:
        stream = llm.stream(prompt, GREEDY)
        tokens = [*next(stream).token_ids]
        with pytest.raises(ConfigError, match="keep its addresses: its driver is too old"):
            llm.sleep()
        for delta in stream:
            tokens += delta.token_ids
        assert tokens == reference_tokens("qwen3", prompt, 24)


@pytest.mark.alone
def test_resident_memory_falls_and_the_pages_serve_again() -> None:
    mib, resident = 1 << 20, psutil.Process().memory_info
    with LLM(checkpoint("qwen3")[0], device="cpu", execution="eager", kv_cache_memory="200MiB") as llm:
        for pair in llm._core.runner.kv_cache:
            for pages in pair:
                pages.fill_(1)
        full = resident().rss
        llm.sleep()
        assert full - resident().rss > 190 * mib
        llm.wake()
        prompt = prompts(2)[1]
        assert token_ids(llm.generate([prompt], GREEDY)) == [reference_tokens("qwen3", prompt, 24)]
        assert full - resident().rss > 150 * mib, "pages come back one by one, as they are written"
