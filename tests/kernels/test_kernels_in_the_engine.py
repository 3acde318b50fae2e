"""Whole engines on our kernels, in Triton's interpreter: the tokens of transformers, through every path of a step."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

import fake_flash_attn
from deferred_stream import DeferredStream
from engines import checkpoint, engine, prompts, reference_logits, reference_tokens, token_ids
from ostinato import LLM, EngineConfig, ModelRunner, SamplingParams
from ostinato.core import EngineCore
from ostinato.layers.attention import flash_detect
from ostinato.layers.attention.backend import AttentionBackend
from ostinato.load import load_decoder
from ostinato.models.checkpoint import read_config
from ostinato.output_processor import OutputProcessor
from ostinato.request import Request
from ostinato.runner import StepRunner

pytestmark = pytest.mark.kernels

TOKENS = 8
GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS)
OPTIONS: dict[str, Any] = {"attention_backend": "triton", "max_num_seqs": 3, "capture_sizes": [1, 3]}
SCORINGS = {"qwen3": "plain", "gemma2": "window and softcap", "mpt": "ALiBi", "gpt_oss": "window and sinks"}


@pytest.mark.parametrize("variant", SCORINGS, ids=SCORINGS.get)
def test_greedy_tokens_are_those_of_transformers(variant: str) -> None:
    wanted = prompts(4, seed=3)
    with engine(variant, execution="emulate", prefill_capture_sizes=[64], **OPTIONS) as llm:
        assert llm.plan.attention.backend is AttentionBackend.TRITON
        assert token_ids(llm.generate(wanted, GREEDY)) == [reference_tokens(variant, p, TOKENS) for p in wanted]
        stats = llm.stats()
        assert stats.replays.keys() == {1, 3}
        assert stats.prefill_replays.keys() == {64}


def test_prompts_in_chunks_beside_decode_rows() -> None:
    wanted = prompts(3, seed=4)
    with engine("qwen3", max_num_batched_tokens=5, **OPTIONS) as llm:
        assert token_ids(llm.generate(wanted, GREEDY)) == [reference_tokens("qwen3", p, TOKENS) for p in wanted]


def test_compiled_pieces_around_the_kernels() -> None:
    """Inductor's code calls the operators, and the pages it hands them are the engine's own."""
    wanted = prompts(3, seed=6)
    with engine("qwen3", execution="graph", **OPTIONS) as llm:
        pages = [tensor.data_ptr() for pair in llm._core.runner.kv_cache for tensor in pair]
        assert token_ids(llm.generate(wanted, GREEDY)) == [reference_tokens("qwen3", p, TOKENS) for p in wanted]
        assert pages == [tensor.data_ptr() for pair in llm._core.runner.kv_cache for tensor in pair]
        assert llm.stats().compiles_after_warmup == 0
        assert llm.stats().eager_fallbacks == {}


def test_sampled_tokens_are_those_of_the_torch_sampler() -> None:
    wanted = prompts(3, seed=7)
    params = [
        SamplingParams(temperature=0.9, top_k=k, top_p=p, min_p=m, seed=k, max_tokens=TOKENS, min_tokens=4)
        for k, p, m in ((20, 0.9, 0.0), (0, 0.7, 0.0), (0, 1.0, 0.1))
    ]

    def generated(**options: Any) -> list[list[int]]:
        with engine("qwen3", **options) as llm:
            return token_ids(llm.generate(wanted, params))

    assert generated(**OPTIONS) == generated(max_num_seqs=3)


def test_the_whole_way_on_a_device_that_lags_behind() -> None:
    """Copies, captured decode and prompt steps, our kernels, tokens back: nothing of it waits for the host."""
    folder = checkpoint("qwen3")[0]
    options = {"execution": "emulate", "max_model_len": 128, "prefill_capture_sizes": [32], "debug": True}
    config = EngineConfig(folder, device="cpu", block_size=16, **options, **OPTIONS)
    plan = replace(config.resolve(), num_blocks=16)
    stream = DeferredStream(5, eagerness=0.2)
    runner = StepRunner(plan, load_decoder(plan, read_config(folder), lambda *_: None), stream)
    runner.warm_up()
    core = EngineCore(plan, runner)
    requests = []
    for number, prompt in enumerate(prompts(4, seed=8)):
        request = Request(number, prompt, GREEDY, number, frozenset())
        core.add(request, OutputProcessor(None, request, None))
        requests.append(request)
        core.step()
    while any(core.is_live(request) for request in requests):
        core.step()
    want = [reference_tokens("qwen3", request.prompt_token_ids, TOKENS) for request in requests]
    assert [request.output_token_ids for request in requests] == want
    assert stream.lag >= 1
    assert core.stats().prefill_replays


def test_a_callers_own_schedule_on_a_device_that_lags_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ModelRunner`` on our kernels: prompts and decode rows by graphs, then a prompt that none holds."""
    monkeypatch.setattr("ostinato.model_runner.stream_of", lambda device, emulate: DeferredStream(3, eagerness=0.2))
    options = {"execution": "emulate", "device": "cpu", "max_model_len": 128, "prefill_capture_sizes": [64]}
    with ModelRunner(checkpoint("qwen3")[0], block_size=4, **options, **OPTIONS) as runner:
        cache, wanted = runner.create_kv_cache(60), prompts(3, seed=4)
        tables = [list(cache.blocks)[20 * row : 20 * row + 20] for row in range(3)]
        tokens = [[token] for token in runner.prefill(cache, wanted, tables).tokens.tolist()]
        for step in range(5):
            at = [len(prompt) + step for prompt in wanted]
            out = runner.decode(cache, [row[-1] for row in tokens], at, tables)
            for row, token in zip(tokens, out.tokens.tolist(), strict=True):
                row.append(token)
        assert tokens == [reference_tokens("qwen3", prompt, 6) for prompt in wanted]
        assert cache.replays == {1: 0, 3: 5}
        assert cache.steps.graphs.prefill.replays == {64: 1}
        every = runner.prefill(cache, wanted, tables, logit_positions="all").logits.split([len(p) for p in wanted])
        for logits, prompt in zip(every, wanted, strict=True):
            torch.testing.assert_close(logits, reference_logits("qwen3", prompt), rtol=1e-3, atol=1e-3)


def test_half_precision_stays_near_the_reference() -> None:
    """bf16 logits through our kernels are as far from fp32 as those through torch's operations, within a factor."""
    wanted = prompts(2, seed=9)

    def logits(**options: Any) -> torch.Tensor:
        with LLM(checkpoint("qwen3")[0], device="cpu", execution="eager", max_model_len=64, **options) as llm:
            runner, seen = llm._core.runner, []
            head = runner.pieces._single.head
            watched = replace(runner.pieces._single, head=lambda *args: seen.append(head(*args)) or seen[-1])
            runner.pieces._single = runner.pieces._rows = watched
            llm.generate(wanted, SamplingParams(temperature=0, max_tokens=1))
            return torch.cat([each.float() for each in seen])

    exact = logits(dtype="float32")
    by_torch = (logits(dtype="bfloat16") - exact).abs().max()
    by_kernels = (logits(dtype="bfloat16", attention_backend="triton") - exact).abs().max()
    assert 0 < by_kernels < 2 * by_torch


def test_flash_attn_serves_an_engine_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that computes what flash-attn does; what it is not called for, our kernels serve."""
    monkeypatch.setattr(flash_detect, "capability_of", lambda device: ((8, 0), 108))
    for name in ("flash_attn_interface", "flash_attn_3"):
        monkeypatch.setitem(sys.modules, name, None)
    fake_flash_attn.install_flash2(monkeypatch)
    flash_detect._detect.cache_clear()
    wanted = prompts(3, seed=10)
    try:
        generated = {}
        for backend in ("torch", "flash"):
            options = OPTIONS | {"attention_backend": backend, "dtype": "float16", "block_size": "auto"}
            with engine("qwen3", **options, max_num_batched_tokens=9) as llm:
                generated[backend] = token_ids(llm.generate(wanted, GREEDY))
                plan = llm.plan
        assert generated["flash"] == generated["torch"]
        assert plan.attention.backend is AttentionBackend.FLASH
        assert plan.block_size == 256
        assert "FlashAttention-2 2.8.3" in str(plan)
        module = sys.modules["flash_attn"]
        assert module.flash_attn_with_kvcache.calls
        assert module.flash_attn_varlen_func.calls
    finally:
        flash_detect._detect.cache_clear()
