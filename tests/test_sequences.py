"""``n``: several sequences of one prompt, as requests of their own would give them, over one computation of it."""

from __future__ import annotations

import pytest

from engines import engine, preempt_before_each_step, prompts, token_ids
from ostinato import ParamError, SamplingParams

VARIANT = "qwen3"
PROMPT = list(range(30, 51))  # five full blocks of four, and one token
N = 3


def params(n: int = N, seed: int = 40, **options: object) -> SamplingParams:
    return SamplingParams(**{"n": n, "seed": seed, "max_tokens": 5, "temperature": 1.2} | options)  # type: ignore[arg-type]


def alone(prompt: list[int] = PROMPT) -> list[list[int]]:
    with engine(VARIANT) as llm:
        return token_ids([llm.generate(prompt, params(1, 40 + index))[0] for index in range(N)])


def test_sequence_i_is_what_a_request_with_seed_plus_i_gives() -> None:
    with engine(VARIANT) as llm:
        (output,) = llm.generate(PROMPT, params())
        assert llm.stats().blocks_used == llm.stats().requests_running == 0
    assert [completion.index for completion in output.outputs] == [0, 1, 2]
    got = [completion.token_ids for completion in output.outputs]
    assert got == alone()
    assert len({tuple(tokens) for tokens in got}) == N
    assert output.finished


@pytest.mark.parametrize("budget", [5, 512])
def test_the_prompt_is_computed_once_and_its_blocks_are_shared(budget: int) -> None:
    with engine(VARIANT, max_num_batched_tokens=budget) as llm:
        (output,) = llm.generate(PROMPT, params())
        stats = llm.stats()
    assert [completion.token_ids for completion in output.outputs] == alone()
    assert stats.prefix_hits == (N - 1) * 20
    assert stats.tokens_computed == len(PROMPT) + (N - 1) * 1 + N * 4
    assert output.num_cached_tokens == 0


def test_without_sharing_every_sequence_computes_the_prompt() -> None:
    with engine(VARIANT) as llm:
        (output,) = llm.generate(PROMPT, params(enable_prefix_caching=False))
        assert llm.stats().tokens_computed == N * (len(PROMPT) + 4)
    assert [completion.token_ids for completion in output.outputs] == alone()


def test_more_sequences_than_rows_beside_others_and_preempted() -> None:
    wanted = prompts(3, seed=9)
    many = params(9, 1, max_tokens=4)
    with engine(VARIANT) as llm:
        together = llm.generate([*wanted, PROMPT], [many, params(1), many, params(2)])
    with engine(VARIANT, max_num_seqs=2) as llm:
        preempt_before_each_step(llm)
        again = llm.generate([*wanted, PROMPT], [many, params(1), many, params(2)])
    assert [len(output.outputs) for output in together] == [9, 1, 9, 2]
    assert [output.outputs for output in together] == [output.outputs for output in again]
    assert [completion.token_ids for completion in together[3].outputs] == alone()[:2]


def test_unseeded_sequences_differ() -> None:
    with engine(VARIANT) as llm:
        (output,) = llm.generate([3, 4], SamplingParams(n=16, max_tokens=6, temperature=1.5))
    assert len({tuple(completion.token_ids) for completion in output.outputs}) > 12


def test_prompt_logprobs_belong_to_the_request_and_logprobs_to_each_sequence() -> None:
    with engine(VARIANT) as llm:
        (output,) = llm.generate(PROMPT, params(prompt_logprobs=1, logprobs=0))
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(PROMPT)
    assert all(len(completion.logprobs or []) == 5 for completion in output.outputs)
    assert len({completion.cumulative_logprob for completion in output.outputs}) == N


def test_a_stream_has_one_sequence() -> None:
    with engine(VARIANT) as llm, pytest.raises(ParamError, match="n: a stream has one sequence, got 3"):
        llm.stream(PROMPT, params())
