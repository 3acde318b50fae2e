"""Models whose every layer has a sliding window: engines with a few blocks against transformers and roomy engines.

The checkpoint is a tiny Mistral with a window of 8 tokens; blocks hold 4. Before every step the null block is filled
with NaN: whatever reads a cell behind the window shows.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest
import torch

from engines import (
    checked,
    checkpoint,
    engine,
    paced,
    poison_before_each_step,
    preempt_before_each_step,
    reference_tokens,
    token_ids,
)
from ostinato import LLM, ConfigError, EngineConfig, SamplingParams
from ostinato.layers.attention import decode
from ostinato.layers.attention import varlen as varlen_module
from ostinato.layers.attention.decode import decode_attention
from ostinato.layers.attention.metadata import AttentionMetadata, within_window
from ostinato.layers.attention.scoring import Scoring
from ostinato.layers.attention.varlen import varlen_attention
from ostinato.plan import Plan

WINDOW, SIZE, VARIANT = 8, 4, "mistral_window"
LEAST = 3
"""Blocks that a request needs to progress: 8 positions lie in three blocks of 4 at most."""
LONG = SamplingParams(temperature=0, max_tokens=60)
NAN = float("nan")


def windowed(blocks: int, **options: Any) -> LLM:
    """An engine with ``blocks`` blocks that can be used, its null block poisoned before each step."""
    block_bytes = plan().block_bytes
    llm = engine(VARIANT, **{"max_model_len": 220, "kv_cache_memory": (blocks + 1) * block_bytes} | options)
    assert llm.plan.num_blocks == blocks + 1
    poison_before_each_step(llm, NAN)
    return llm


def plan(variant: str = VARIANT, **options: Any) -> Plan:
    settings = {"device": "cpu", "max_num_seqs": 4, "max_model_len": 220, "block_size": SIZE}
    return EngineConfig(checkpoint(variant)[0], **settings | options).resolve()


def long_prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(112) for _ in range(length)] for length in lengths]


def expected(wanted: list[list[int]], count: int = LONG.max_tokens) -> list[list[int]]:
    return [reference_tokens(VARIANT, prompt, count) for prompt in wanted]


# Tokens.


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("blocks", [LEAST, 5, 11])
@pytest.mark.parametrize("execution", ["eager", "emulate"])
def test_prompts_and_outputs_far_longer_than_the_cache_equal_the_reference(
    execution: str, blocks: int, caching: bool
) -> None:
    wanted = long_prompts(70, 3, 131, 40, 22)
    with windowed(blocks, execution=execution, enable_prefix_caching=caching) as llm:
        assert token_ids(llm.generate(wanted, LONG)) == expected(wanted)
        stats = llm.stats()
        assert stats.preemptions > 0
        assert (stats.blocks_used, stats.blocks_free + stats.blocks_cached) == (0, blocks)


def test_a_small_cache_gives_the_tokens_of_a_large_one() -> None:
    wanted = long_prompts(1, 8, 9, 64, 100, 33, seed=1)
    with engine(VARIANT, max_model_len=220) as roomy, windowed(LEAST + 1) as llm:
        assert roomy.plan.num_blocks > 4 * llm.plan.num_blocks
        assert token_ids(roomy.generate(wanted, LONG)) == token_ids(llm.generate(wanted, LONG)) == expected(wanted)


@pytest.mark.parametrize("budget", [4, 7, 64])
def test_chunks_of_any_size_equal_the_reference(budget: int) -> None:
    wanted = long_prompts(90, 17, 55, seed=2)
    with windowed(7, max_num_batched_tokens=budget, block_size=SIZE) as llm:
        assert token_ids(llm.generate(wanted, LONG)) == expected(wanted)


@pytest.mark.parametrize("execution", ["eager", "emulate"])
@pytest.mark.parametrize("caching", [True, False])
def test_preemption_at_every_step_changes_no_token(execution: str, caching: bool) -> None:
    wanted = long_prompts(30, 50, 21, seed=3)
    with windowed(8, execution=execution, enable_prefix_caching=caching) as llm:
        preempt_before_each_step(llm)
        assert token_ids(llm.generate(wanted, LONG)) == expected(wanted)
        assert llm.stats().preemptions > 20


@pytest.mark.parametrize("execution", ["eager", "emulate"])
def test_cold_warm_and_continued_prefixes_give_the_same_tokens(execution: str) -> None:
    (prompt,) = long_prompts(61, seed=4)
    with windowed(60, execution=execution) as llm:
        cold, warm = (llm.generate(prompt, LONG)[0] for _ in range(2))
        longer = prompt + token_ids([cold])[0] + [5, 6]
        again = llm.generate(longer, LONG)[0]
        assert token_ids([cold, warm, again]) == expected([prompt, prompt, longer])
        assert [output.num_cached_tokens for output in (cold, warm, again)] == [0, 60, 120]


def test_a_hit_holds_the_blocks_of_its_window_only() -> None:
    (prompt,) = long_prompts(81, seed=5)
    with windowed(30) as llm:
        llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1))
        pace = paced(llm)
        stream = llm.stream(prompt, LONG)
        pace.release()
        next(stream)
        (request,) = llm._core.scheduler.running
        assert (request.num_cached_tokens, request.block_ids[:18]) == (80, [0] * 18)
        assert llm.stats().blocks_used == 3
        stream.close()


def test_compiled_a_few_blocks_give_the_tokens_of_the_reference() -> None:
    wanted = long_prompts(70, 3, 131, 40, 22)
    with windowed(11, execution="graph") as llm:
        assert token_ids(llm.generate(wanted, LONG)) == expected(wanted)
        assert token_ids(llm.generate(wanted[0], LONG)) == expected(wanted[:1])  # a single row has a form of its own
        preempt_before_each_step(llm)
        assert token_ids(llm.generate(wanted[3:], LONG)) == expected(wanted[3:])
        stats = llm.stats()
        assert stats.compiles_after_warmup == stats.captures_after_warmup == 0
        assert sum(stats.replays.values()) > 100


@pytest.mark.parametrize("seed", range(4))
def test_interrupts_anywhere_leave_the_books_right(seed: int) -> None:
    """Ctrl-C strikes between any two lines of scheduler and block pool, again and again."""
    draw, remaining, strikes = random.Random(seed), [0], [0]

    def strike(frame: Any, event: str, _: Any) -> Any:
        if event == "line" and frame.f_code.co_filename.endswith(("scheduler.py", "block_pool.py")):
            remaining[0] -= 1
            if remaining[0] == 0:
                strikes[0] += 1
                raise KeyboardInterrupt
        return strike

    with windowed(9) as llm:
        step = llm._core.step

        def step_traced() -> None:
            sys.settrace(strike)
            try:
                step()
            finally:
                sys.settrace(None)

        for _ in range(12):
            (prompt,) = long_prompts(draw.randint(1, 60), seed=draw.randrange(1 << 20))
            stream = llm.stream(prompt, LONG)
            got = [token for _ in range(3) for token in next(stream).token_ids]
            remaining[0] = draw.randint(1, 1500)
            llm._core.step = step_traced  # type: ignore[method-assign]
            llm.generate(long_prompts(44, 2, seed=7), SamplingParams(temperature=0, max_tokens=8))
            llm._core.step = step  # type: ignore[method-assign]
            got += [token for delta in stream for token in delta.token_ids]
            assert [got] == expected([prompt])
        assert strikes[0] > 3
        assert llm.stats().blocks_used == 0


# The claim that a null block behind the window is harmless.


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize("window", [1, 2, 4, 5, 6, 13])
@pytest.mark.parametrize("plain", [True, False])
def test_no_path_of_attention_reads_a_cell_behind_the_window(
    window: int, sums: bool, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit-equal whether those cells name their blocks or a null block of NaN, for every length and chunk."""
    monkeypatch.setattr(decode, "prefers_sums", lambda _: sums)
    monkeypatch.setattr(varlen_module, "TILE_ELEMENTS", 40)
    softcap, slopes, sinks = (
        (0.0, None, None) if plain else (0.9, torch.linspace(0.5, 0.1, 4), torch.linspace(-1, 2, 4))
    )
    scoring = Scoring(0.3, window, softcap, slopes, sinks)
    draw = torch.Generator().manual_seed(0)
    caches = [torch.randn(8, SIZE, 2, 16, generator=draw) for _ in range(2)]
    for length in range(1, 25):
        for count in {1, min(3, length), length}:
            q = torch.randn(count, 4, 16, generator=draw)
            behind = max(0, length - count - window + 1) // SIZE
            whole = torch.arange(1, 7, dtype=torch.int32)[None]
            null = torch.where(torch.arange(6) < behind, 0, whole).int()
            lengths, ends = torch.tensor([length]).int(), torch.tensor([0, count]).int()
            for cache in caches:
                cache[0] = NAN
            varlen = [varlen_attention(q, *caches, table, lengths, ends, *scoring) for table in (whole, null)]
            assert torch.equal(*varlen)
            assert varlen[0].isfinite().all()
            if count == 1:
                decoded = [decode_attention(q, *caches, table, lengths, scoring) for table in (whole, null)]
                assert torch.equal(*decoded)
                assert decoded[0].isfinite().all()
                metas = [AttentionMetadata(ends, table, lengths, None, None, None) for table in (whole, null)]
                narrow = [within_window(meta, window, SIZE) for meta in metas]
                seen = [decode_attention(q, *caches, m.block_table, lengths, scoring, m.table_start) for m in narrow]
                assert torch.equal(*seen)
                assert seen[0].isfinite().all()


# The plan.


def test_the_plan_counts_on_the_window_and_says_so() -> None:
    made = plan(max_num_batched_tokens=64)
    assert made.window == WINDOW
    assert made.num_blocks - 1 == 4 + (4 * (WINDOW + SIZE - 3) + 64) // SIZE == 29  # not 4 * 55
    assert plan(max_model_len=24).num_blocks - 1 == 4 * 6  # no request needs more, however many tokens a step has
    assert "KV blocks behind the last 8 tokens of a request are given back" in made.notes
    assert "behind the last 8 tokens" in str(made)


def test_the_default_cache_is_enough_for_all_requests_at_once() -> None:
    with engine(VARIANT, max_model_len=220, max_num_seqs=3, max_num_batched_tokens=32) as llm:
        wanted = long_prompts(70, 90, 131, 40, 22, 64, seed=6)
        assert token_ids(llm.generate(wanted, LONG)) == expected(wanted)
        assert llm.stats().preemptions == 0


@pytest.mark.parametrize("variant", ["qwen3", "qwen2_windows", "gemma2"])
def test_a_model_with_a_layer_that_sees_everything_gives_nothing_back(variant: str) -> None:
    made = plan(variant)
    assert made.window is None
    assert made.num_blocks - 1 == 4 * 55
    assert "given back" not in str(made)


@pytest.mark.parametrize(("max_model_len", "window"), [(WINDOW + SIZE, None), (WINDOW + SIZE + 1, WINDOW)])
def test_a_window_that_no_request_outgrows_is_none(max_model_len: int, window: int | None) -> None:
    made = plan(max_model_len=max_model_len)
    assert (made.window, "given back" in str(made)) == (window, window is not None)


def test_a_length_shrinks_only_if_not_even_the_window_fits() -> None:
    block_bytes = plan().block_bytes
    fits = plan(max_model_len=None, kv_cache_memory=(LEAST + 1) * block_bytes)
    assert (fits.max_model_len, fits.window) == (256, WINDOW)
    shrunk = plan(max_model_len=None, kv_cache_memory=LEAST * block_bytes)
    assert (shrunk.max_model_len, shrunk.window) == (2 * SIZE + 1, None)
    with pytest.raises(ConfigError, match=r"one request of 220 tokens needs .* null block included"):
        plan(kv_cache_memory=LEAST * block_bytes)


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_cache_below_one_window_serves_what_fits(blocks: int) -> None:
    llm = engine(VARIANT, max_model_len=None, kv_cache_memory=(blocks + 1) * plan().block_bytes)
    with checked(llm):
        assert llm.plan.max_model_len == blocks * SIZE + 1
        wanted = long_prompts(1, blocks * SIZE, seed=8)
        want = [reference_tokens(VARIANT, prompt, blocks * SIZE + 1 - len(prompt)) for prompt in wanted]
        assert token_ids(llm.generate(wanted, LONG)) == want
