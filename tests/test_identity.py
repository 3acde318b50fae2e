"""Token identity with transformers: fp32, greedy, every variant, every execution, however the work is cut up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engines import (
    GREEDY,
    checked,
    engine,
    held,
    poison_before_each_step,
    preempt_before_each_step,
    prompts,
    recorded_logits,
    reference_logits,
    reference_tokens,
    token_ids,
)
from ostinato import LLM, SamplingParams
from tiny_checkpoints import VARIANTS

COMPILED = ("qwen3", "llama_bias")


def expected(variant: str, wanted: list[list[int]], count: int = 24) -> list[list[int]]:
    return [reference_tokens(variant, prompt, count) for prompt in wanted]


@pytest.mark.parametrize("execution", ["eager", "emulate"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_of_different_lengths_equals_the_reference(variant: str, execution: str) -> None:
    wanted = prompts(6)
    with engine(variant, execution=execution) as llm:
        assert token_ids(llm.generate(wanted, GREEDY)) == expected(variant, wanted)


@pytest.mark.parametrize("execution", ["eager", "emulate"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_chunks_mixed_with_decodes_equal_the_reference(variant: str, execution: str) -> None:
    wanted = prompts(8, seed=1, longest=60)
    with engine(variant, execution=execution, max_num_batched_tokens=7, block_size=3) as llm:
        assert token_ids(llm.generate(wanted, GREEDY)) == expected(variant, wanted)
        assert llm.stats().mixed_steps > 20


@pytest.mark.parametrize("budget", [4, 5, 16, 64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_reference(variant: str, budget: int) -> None:
    (prompt,) = prompts(2, seed=2, longest=40)[1:]
    with engine(variant, max_num_batched_tokens=budget) as llm, recorded_logits(llm) as seen:
        (tokens,) = token_ids(llm.generate(prompt, GREEDY))
    want = reference_logits(variant, prompt + tokens)[len(prompt) - 1 : -1]
    assert (torch.cat(seen) - want).abs().max() <= 2e-5 * want.abs().max()


@pytest.mark.parametrize("execution", ["eager", "emulate"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_batch_size_equals_the_reference(variant: str, execution: str) -> None:
    with engine(variant, execution=execution, max_num_seqs=5, enable_prefix_caching=False) as llm:
        every_batch_size(llm, variant, 5)


def every_batch_size(llm: LLM, variant: str, largest: int) -> None:
    wanted = prompts(largest, seed=3)
    want = expected(variant, wanted, 6)
    for size in range(1, largest + 1):
        outputs = llm.generate(wanted[:size], SamplingParams(temperature=0, max_tokens=6))
        assert token_ids(outputs) == want[:size], f"batch of {size}"


@pytest.mark.parametrize("execution", ["eager", "emulate"])
@pytest.mark.parametrize("variant", ["qwen3", "llama3_gqa"])
def test_preemption_at_every_step_changes_no_token(variant: str, execution: str) -> None:
    wanted = prompts(4, seed=4)
    with engine(variant, execution=execution) as llm:
        preempt_before_each_step(llm)
        assert token_ids(llm.generate(wanted, GREEDY)) == expected(variant, wanted)
        assert llm.stats().preemptions > 20


@pytest.mark.parametrize("caching", [True, False])
def test_a_cache_too_small_for_all_changes_no_token(caching: bool) -> None:
    wanted = prompts(6, seed=5)
    with engine("qwen3", max_model_len=64, enable_prefix_caching=caching) as roomy:
        block_bytes = roomy.plan.block_bytes
    with checked(
        engine("qwen3", max_model_len=64, kv_cache_memory=20 * block_bytes, enable_prefix_caching=caching)
    ) as llm:
        assert token_ids(llm.generate(wanted, GREEDY)) == expected("qwen3", wanted)
        stats = llm.stats()
        assert stats.preemptions > 0
        assert stats.blocks_used == 0
        assert stats.blocks_free + stats.blocks_cached == 19


@pytest.mark.parametrize("execution", ["eager", "emulate"])
def test_cold_warm_and_partly_warm_prefixes_give_the_same_tokens(execution: str) -> None:
    base = prompts(2, seed=6, longest=40)[1] + list(range(20))
    branched = [*base[: len(base) // 2], 7, 7, 7, 1, 2, 3]
    with engine("qwen3", execution=execution) as llm:
        cold, warm, partly = (llm.generate(prompt, GREEDY)[0] for prompt in (base, base, branched))
        assert token_ids([cold, warm, partly]) == expected("qwen3", [base, base, branched])
        assert cold.num_cached_tokens == 0
        assert warm.num_cached_tokens == (len(base) - 1) // 4 * 4
        assert partly.num_cached_tokens == len(base) // 2 // 4 * 4


def test_a_prompt_that_is_cached_whole_still_computes_a_token() -> None:
    prompt = list(range(32))  # a multiple of the block size
    with engine("qwen3") as llm:
        first, second = (llm.generate(prompt, GREEDY)[0] for _ in range(2))
        assert second.num_cached_tokens == 28
        assert token_ids([first, second]) == expected("qwen3", [prompt, prompt])


def test_multi_turn_continuation_reuses_generated_blocks() -> None:
    prompt = list(range(10, 30))
    with engine("qwen3") as llm:
        (answer,) = token_ids(llm.generate(prompt, GREEDY))
        longer = prompt + answer + [5, 6]
        again = llm.generate(longer, GREEDY)[0]
        assert again.num_cached_tokens >= 40
        assert token_ids([again]) == expected("qwen3", [longer])


@pytest.mark.parametrize("execution", ["eager", "emulate", "graph"])
def test_a_nan_poisoned_recycled_block_harms_nobody(execution: str) -> None:
    wanted = prompts(5, seed=7)
    with engine("qwen3", execution=execution, enable_prefix_caching=False) as llm:
        for keys, values in llm._core.runner.kv_cache:
            keys.fill_(float("nan"))
            values.fill_(float("nan"))
        assert token_ids(llm.generate(wanted, GREEDY)) == expected("qwen3", wanted)


@pytest.mark.parametrize("execution", ["emulate", "graph"])
def test_poisoned_padding_rows_leave_real_rows_bit_equal(execution: str) -> None:
    wanted = prompts(3, seed=8)
    caches = []
    for poison in (0.0, 1e4, float("nan")):
        with engine("qwen3", execution=execution, capture_sizes=[4], enable_prefix_caching=False) as llm:
            poison_before_each_step(llm, poison)
            assert token_ids(llm.generate(wanted, GREEDY)) == expected("qwen3", wanted)
            assert llm.stats().padding_rows > 10
            caches.append([page[1:].nan_to_num() for pages in llm._core.runner.kv_cache for page in pages])
    for other in caches[1:]:
        assert all(torch.equal(a, b) for a, b in zip(caches[0], other, strict=True))


def test_emulated_replay_is_bit_equal_to_eager() -> None:
    wanted = prompts(4, seed=9)
    caches = []
    for execution in ("eager", "emulate"):
        with engine("qwen3", execution=execution, enable_prefix_caching=False) as llm:
            fixed_table_width(llm)
            assert token_ids(llm.generate(wanted, GREEDY)) == expected("qwen3", wanted)
            caches.append([page[1:].clone() for pages in llm._core.runner.kv_cache for page in pages])
    assert all(torch.equal(a, b) for a, b in zip(*caches, strict=True))


def fixed_table_width(llm: LLM) -> None:
    """Let an eager engine read whole tables, as graphs do, so that sums run over the same terms."""
    llm._core.runner.buffers._fixed_width = True


@pytest.mark.parametrize("execution", ["eager", "emulate"])
def test_sampled_tokens_depend_on_neither_batch_mates_nor_preemption(execution: str) -> None:
    wanted = prompts(4, seed=10)
    params = [SamplingParams(temperature=0.9, top_k=40, top_p=0.95, seed=seed, max_tokens=16) for seed in range(4)]
    with engine("qwen3", execution=execution) as llm:
        alone = [llm.generate(prompt, param)[0] for prompt, param in zip(wanted, params, strict=True)]
        mixed = [*wanted, *prompts(4, seed=11)]
        together = llm.generate(mixed, [*params, *[GREEDY] * 4])[:4]
        preempt_before_each_step(llm)
        preempted = llm.generate(wanted, params)
    assert token_ids(alone) == token_ids(together) == token_ids(preempted)


# Compiled: one engine for each of a few structurally different variants; everything asked of it in turn.


@pytest.fixture(scope="module", params=COMPILED)
def compiled(request: pytest.FixtureRequest) -> Any:
    with engine(request.param, execution="graph", max_num_seqs=16) as llm:
        yield request.param, llm


def test_compiled_every_batch_size_equals_the_reference(compiled: Any) -> None:
    variant, llm = compiled
    llm.reset_prefix_cache()
    every_batch_size(llm, variant, 16)
    assert set(range(1, 17)) <= set(llm.stats().replays)
    assert llm.stats().compiles_after_warmup == llm.stats().captures_after_warmup == 0


def test_compiled_mixed_steps_of_every_length_compile_nothing(compiled: Any) -> None:
    variant, llm = compiled
    wanted = [prompt[:length] for length, prompt in zip(range(1, 60, 3), [list(range(60))] * 20, strict=True)]
    before = llm.stats().compiles
    assert token_ids(llm.generate(wanted, SamplingParams(temperature=0, max_tokens=4))) == expected(variant, wanted, 4)
    assert llm.stats().compiles == before


AMBIENTS = {
    "inference_mode": lambda: torch.inference_mode(),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default_device": lambda: torch.device("meta"),
    "default_dtype": lambda: default_dtype(torch.float64),
    "grad": lambda: torch.enable_grad(),
}


@pytest.mark.parametrize("execution", ["eager", "emulate"])
@pytest.mark.parametrize("ambient", AMBIENTS.values(), ids=AMBIENTS)
def test_an_engine_made_in_the_callers_modes_gives_the_same_tokens(ambient: Any, execution: str) -> None:
    wanted = prompts(5, seed=12)
    want = expected("qwen3", wanted)
    with ambient():
        llm = engine("qwen3", execution=execution)
        inside = token_ids(llm.generate(wanted, GREEDY))
    assert inside == token_ids(llm.generate(wanted, GREEDY)) == want
    llm.close()


@pytest.mark.parametrize("ambient", AMBIENTS.values(), ids=AMBIENTS)
def test_compiled_the_callers_modes_change_nothing(compiled: Any, ambient: Any) -> None:
    variant, llm = compiled
    wanted = prompts(5, seed=12)
    with ambient():
        outputs = llm.generate(wanted, GREEDY)
    assert token_ids(outputs) == expected(variant, wanted)
    assert llm.stats().compiles_after_warmup == 0


class default_dtype:
    """The process-wide default dtype, for a while."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self.before)


def test_compiled_preemption_at_every_step_changes_no_token(compiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    variant, llm = compiled
    wanted = prompts(4, seed=4)
    monkeypatch.setattr(llm._core, "step", llm._core.step)  # what follows is undone
    preempt_before_each_step(llm)
    before = llm.stats().preemptions
    assert token_ids(llm.generate(wanted, GREEDY)) == expected(variant, wanted)
    assert llm.stats().preemptions > before + 20


def test_compiled_cold_warm_and_partly_warm_prefixes_give_the_same_tokens(compiled: Any) -> None:
    variant, llm = compiled
    llm.reset_prefix_cache()
    base = list(range(30, 70))
    branched = [*base[:20], 7, 7, 1, 2, 3]
    outputs = [llm.generate(prompt, GREEDY)[0] for prompt in (base, base, branched)]
    assert token_ids(outputs) == expected(variant, [base, base, branched])
    assert [output.num_cached_tokens for output in outputs] == [0, 36, 20]


def test_compiled_a_reset_of_dynamo_by_the_host_is_survived_and_counted(compiled: Any) -> None:
    variant, llm = compiled
    wanted = prompts(3, seed=16)
    stream = llm.stream(wanted[0], GREEDY)
    got = next(stream).token_ids
    with held(llm):
        torch._dynamo.reset()
    got += [token for delta in stream for token in delta.token_ids]
    assert [got, *token_ids(llm.generate(wanted[1:], GREEDY))] == expected(variant, wanted)
    assert llm.stats().compiles_after_warmup > 0
    llm._core.runner._warm_compiles = llm._core.runner.pieces.compiles  # the next tests count from here


def test_compiled_sampling_draws_what_eager_draws(compiled: Any) -> None:
    variant, llm = compiled
    wanted = prompts(4, seed=13)
    params = [
        SamplingParams(temperature=0.8, seed=1, max_tokens=16),
        SamplingParams(temperature=0.8, top_k=20, seed=2, max_tokens=16),
        SamplingParams(temperature=1.2, top_p=0.8, min_p=0.01, seed=3, max_tokens=16),
        GREEDY,
    ]
    with engine(variant) as eager:
        want = token_ids(eager.generate(wanted, params))
    assert token_ids(llm.generate(wanted, params)) == want
    assert [token_ids(llm.generate(p, q))[0] for p, q in zip(wanted, params, strict=True)] == want


def test_compiled_without_graphs_equals_the_reference() -> None:
    wanted = prompts(5, seed=14)
    with engine("qwen3", execution="compile", max_num_seqs=16) as llm:
        assert token_ids(llm.generate(wanted, GREEDY)) == expected("qwen3", wanted)
        assert llm.stats().replays == {}


def test_ten_engines_of_different_sizes_in_one_process() -> None:
    (prompt,) = prompts(2, seed=15)[1:]
    engines = [
        engine("qwen3", execution="graph", max_num_seqs=1 + (i > 7), max_model_len=60 + 4 * i) for i in range(10)
    ]
    want = expected("qwen3", [prompt])
    assert all(token_ids(llm.generate(prompt, GREEDY)) == want for llm in engines)
    for llm in engines:
        llm.close()
