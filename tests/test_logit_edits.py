"""Edits of logits against transformers' processors and plain loops, row by row, and the masks that the host packs."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edit_reference import edited
from ostinato import SamplingParams
from ostinato.edit_buffers import EditBuffers
from ostinato.graphs.streams import HostStream
from ostinato.layers.logit_edits import EditInputs, count_drawn, edit
from ostinato.models.step_inputs import BY_PASSES
from ostinato.request import Request
from ostinato.sampling_buffers import SamplingBuffers
from ostinato.token_masks import ListedTokens, num_words, pack

INF, NAN = float("inf"), float("nan")
ROWS = 4
VOCABULARIES = [1, 2, 31, 32, 33, 112, 200]


def running(number: int, prompt: list[int], answer: list[int], params: SamplingParams, mask: Any = None) -> Request:
    """A request as the scheduler would have admitted it, in a slot that is not its row."""
    request = Request(number, prompt, params, mask=mask)
    request.token_ids += answer
    request.row_slot, request.admission = (number + 1) % ROWS, number
    return request


def edit_inputs(requests: list[Request], vocab: int) -> EditInputs:
    """What the engine's buffers make of requests, and padding up to ``ROWS`` rows."""
    stream = HostStream(torch.device("cpu"), emulate=False)
    buffers, tables = SamplingBuffers(ROWS, stream, BY_PASSES), EditBuffers(ROWS, vocab, stream)
    for copy_to, source in buffers.pack(requests, 0):
        copy_to.copy_(source)
    for write in tables.sync(requests):
        write()
    slots = [request.row_slot for request in requests] + [ROWS] * (ROWS - len(requests))
    return buffers.edits(ROWS, torch.tensor(slots), tables.named_tensors())


def randn(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Equal but for the rounding of sums that are taken in another order; the same tokens are excluded."""
    return torch.equal(ours == -INF, theirs == -INF) and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def random_params(draw: random.Random, vocab: int) -> dict[str, Any]:
    """Any combination; each parameter is off about every other time."""
    ids = range(vocab)
    chosen: dict[str, Any] = {
        "repetition_penalty": draw.choice([0.01, 0.7, 1.3, 100.0]),
        "presence_penalty": draw.choice([-2.0, 0.4, 2.0]),
        "frequency_penalty": draw.choice([-1.1, 0.3, 2.0]),
        "logit_bias": {token: draw.uniform(-100, 100) for token in draw.sample(ids, draw.randint(1, min(vocab, 9)))},
        "allowed_token_ids": draw.sample(ids, draw.randint(1, vocab)),
    }
    return {name: value for name, value in chosen.items() if draw.random() < 0.5}


@settings(max_examples=150)
@given(vocab=st.sampled_from(VOCABULARIES), seed=st.integers(0, 10_000), dtype=st.sampled_from(["float32", "bfloat16"]))
def test_any_combination_of_edits_equals_the_processors(vocab: int, seed: int, dtype: str) -> None:
    draw = random.Random(seed)
    requests, wanted = [], []
    logits = randn(ROWS, vocab, seed=seed).to(getattr(torch, dtype))
    for row in range(draw.randint(1, ROWS)):
        prompt, answer = ([draw.randrange(vocab) for _ in range(draw.randint(least, 12))] for least in (1, 0))
        params = SamplingParams(**random_params(draw, vocab))
        words = [[draw.randrange(vocab) for _ in range(draw.choice([1, 2, 3]))] for _ in range(draw.choice([0, 0, 6]))]
        words += [[*(prompt + answer)[-2:], draw.randrange(vocab)]] if words else []
        allowed = params.allowed_token_ids
        mask = ListedTokens(vocab, allowed, words) if words or allowed is not None else None
        requests.append(running(row, prompt, answer, params, mask))
        wanted.append(edited(logits[row], prompt, answer, params, words))
    got = edit(logits, edit_inputs(requests, vocab))
    for row, want in enumerate(wanted):
        assert same(got[row], want), requests[row].params
    assert torch.equal(got[len(requests) :], logits[len(requests) :].float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_that_asks_for_nothing_keeps_its_logits_bit_for_bit(dtype: torch.dtype) -> None:
    logits = randn(ROWS, 77).to(dtype)
    logits[0, :3] = torch.tensor([0.0, -0.0, -INF])
    busy = running(1, [3], [4, 4], SamplingParams(repetition_penalty=2, presence_penalty=1, logit_bias={5: 9}))
    plain = running(0, [1, 2], [2], SamplingParams())
    inputs = edit_inputs([plain, busy], 77)
    inputs.counts.random_(0, 99)  # what a slot's former owner left
    inputs.bias.fill_(7)
    inputs.mask.zero_()
    assert torch.equal(edit(logits, inputs)[0], logits[0].float())


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("excluded", [True, False])
def test_a_row_that_is_not_finite_stays_so_even_where_it_is_masked(bad: float, excluded: bool) -> None:
    logits = randn(ROWS, 40)
    logits[0, 17] = bad
    mask = ListedTokens(40, [1, 2] if excluded else [17, 2])
    got = edit(logits, edit_inputs([running(0, [17], [], SamplingParams(repetition_penalty=2), mask)], 40))
    assert not (got[0] < INF).all()


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_the_last_token_of_a_vocabulary_can_be_biased_counted_and_masked(vocab: int) -> None:
    last = vocab - 1
    params = SamplingParams(logit_bias={last: 5}, frequency_penalty=0.5)
    got = edit(torch.zeros(ROWS, vocab), edit_inputs([running(0, [0], [last] * 3, params)], vocab))
    assert got[0, last] == 3.5
    alone = edit(
        torch.zeros(ROWS, vocab), edit_inputs([running(0, [0], [], params, ListedTokens(vocab, [last]))], vocab)
    )
    assert alone[0].isfinite().nonzero().tolist() == [[last]]


def test_drawn_tokens_are_counted_in_their_slots_and_failed_rows_count_nothing() -> None:
    counts = torch.zeros(5, 9, dtype=torch.int32)
    counts[2, 8] = 1  # in the prompt
    for tokens in ([8, 0, -1], [8, 1, 4]):
        count_drawn(counts, torch.tensor([2, 0, 3]), torch.tensor(tokens))
    assert {tuple(place): int(counts[tuple(place)]) for place in counts.nonzero().tolist()} == {
        (2, 8): 5,
        (0, 0): 2,
        (0, 1): 2,
        (3, 4): 2,
    }


def test_counting_by_the_step_equals_counting_by_the_host() -> None:
    draw = random.Random(4)
    prompt, answer = [draw.randrange(30) for _ in range(20)], [draw.randrange(30) for _ in range(50)]
    params = SamplingParams(presence_penalty=1)
    stepwise = edit_inputs([running(0, prompt, answer[:10], params)], 30)
    for token in answer[10:]:
        count_drawn(stepwise.counts, torch.tensor([1]), torch.tensor([token]))
    assert torch.equal(stepwise.counts, edit_inputs([running(0, prompt, answer, params)], 30).counts)
    assert stepwise.counts[1].tolist() == [2 * Counter(answer)[t] + (t in prompt) for t in range(30)]


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_packed_words_say_what_their_bools_do(vocab: int) -> None:
    allowed = np.random.default_rng(vocab).random(vocab) < 0.5
    words = pack(allowed)
    assert (words.dtype, words.shape) == (np.int32, (num_words(vocab),))
    assert [bool(int(words[t // 32]) >> (t % 32) & 1) for t in range(vocab)] == allowed.tolist()


def test_a_bad_word_excludes_its_last_token_after_the_others_and_only_then() -> None:
    mask = ListedTokens(70, None, [[5], [1, 2, 63], [2, 31]])
    assert mask.follows_tokens

    def excluded(*tokens: int) -> list[int]:
        words = mask.words(tokens)
        return [t for t in range(70) if not int(words[t // 32]) >> (t % 32) & 1]

    assert excluded(9) == excluded(1) == excluded(2, 1) == [5]
    assert excluded(1, 2) == [5, 31, 63]
    assert excluded(7, 2) == excluded(2) == [5, 31]
    assert not ListedTokens(70, [1], [[5]]).follows_tokens
