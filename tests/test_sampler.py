"""The sampler against published vectors, transformers' warpers, a sort in float64, and chi-square."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from ostinato.layers import sampler
from ostinato.layers.sampler import FAILED, SamplingInputs, gumbel_noise, philox, sample_greedy

OFF = 1 << 24
INF, NAN = math.inf, math.nan


def inputs(rows: int, *, blocked: Sequence[Sequence[int]] = (), width: int = 2, **given: Any) -> SamplingInputs:
    """Sampling inputs of ``rows`` rows: everything off, seed 0, position 0; ``given`` are per row, or one for all."""
    values: dict[str, Any] = {"temperature": 1.0, "top_k": OFF, "top_p": 1.0, "min_p": 0.0, "seed": 0, "position": 0}
    values |= given
    dtypes = {"seed": torch.int64, "position": torch.int64}
    columns = [
        torch.as_tensor(values[name], dtype=dtypes.get(name, torch.float32)).expand(rows).clone()
        for name in SamplingInputs._fields[:6]
    ]
    ids, mask = torch.zeros(rows, width, dtype=torch.int64), torch.zeros(rows, width)
    for row, tokens in enumerate(blocked):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        mask[row, : len(tokens)] = -INF
    return SamplingInputs(*columns, ids, mask)


def select(logits: Tensor, given: SamplingInputs) -> Tensor:
    """What a step does with logits, all filters on."""
    tempered = sampler.temper(logits, given)
    floor = sampler.likelihood_floor(tempered.likelihood, given, sampler.narrow)
    return sampler.draw(tempered, floor, given)


def kept(logits: Tensor, given: SamplingInputs) -> Tensor:
    """Which tokens may be drawn: ``[rows, vocab] bool``."""
    likelihood = sampler.temper(logits, given).likelihood
    floor = sampler.likelihood_floor(likelihood, given, sampler.narrow)
    return likelihood >= torch.maximum(floor, given.min_p)[:, None]


def randn(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The noise.


@pytest.mark.parametrize(
    ("counter", "key", "word"),
    [  # philox4x32 10 of Random123's kat_vectors; counter and key words low to high; the first word of the answer
        ([0, 0, 0, 0], [0, 0], 0x6627E8D5),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, 0x408F276D),
        ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0], 0xD16CFE09),
    ],
)
def test_philox_gives_the_published_words(counter: list[int], key: list[int], word: int) -> None:
    halves = [low | high << 32 for low, high in (counter[:2], counter[2:], key)]
    assert philox(*(torch.from_numpy(np.array([half], np.uint64).view(np.int64)) for half in halves)).item() == word


def test_noise_depends_on_seed_and_position_alone() -> None:
    seeds, positions = torch.tensor([3, 3, -1, 2**62, 3]), torch.tensor([0, 1, 0, 7, 0])
    together = gumbel_noise(seeds, positions, 50)
    for row in range(5):
        assert torch.equal(together[row], gumbel_noise(seeds[row : row + 1], positions[row : row + 1], 50)[0])
    assert torch.equal(together[0], together[4])
    assert not torch.isclose(together[0], together[1]).any()
    assert not torch.isclose(together[0], together[2]).any()


def test_a_token_has_the_same_noise_in_a_larger_vocabulary() -> None:
    seed, position = torch.tensor([5]), torch.tensor([9])
    assert torch.equal(gumbel_noise(seed, position, 40), gumbel_noise(seed, position, 1000)[:, :40])


def test_noise_is_standard_gumbel() -> None:
    noise = gumbel_noise(torch.full((100,), 11), torch.arange(100), 1000).flatten()
    assert noise.isfinite().all()
    assert stats.kstest(noise.numpy()[::7], "gumbel_r").pvalue > 0.01


def test_noise_moves_no_global_generator() -> None:
    before = torch.get_rng_state()
    select(randn(2, 9), inputs(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("word", [0, 1, 2**32 - 1])
def test_noise_is_finite_at_both_ends_of_the_generator(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "philox", lambda *_: torch.tensor([[word]]))
    assert gumbel_noise(torch.tensor([0]), torch.tensor([0]), 1).isfinite().all()


# Greedy.


def test_greedy_takes_the_first_of_equal_maxima() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], [-INF, -5.0, -INF, -5.0]])
    assert sample_greedy(logits).tolist() == [1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_temperature_0_is_the_exact_argmax_among_sampled_rows(dtype: torch.dtype) -> None:
    logits = randn(64, 300, scale=0.5).to(dtype)
    if dtype is torch.bfloat16:  # many ties
        assert (logits == logits.amax(-1, keepdim=True)).sum() > 64
    temperature = torch.tensor([0.0, 0.9]).repeat(32)
    tokens = select(logits, inputs(64, temperature=temperature, top_k=5, top_p=0.5, position=torch.arange(64)))
    assert torch.equal(tokens[::2], sample_greedy(logits)[::2])


def test_temperature_0_tells_neighbouring_floats_apart() -> None:
    low = torch.cat([torch.linspace(-9, -0.01, 1000), torch.linspace(0.01, 9, 1000)])
    logits = torch.stack([low, torch.nextafter(low, torch.tensor(INF)), low], -1)
    assert select(logits, inputs(2000, temperature=0)).eq(1).all()


# Distributions, by chi-square on a fixed seed.


def chi_square(given: dict[str, float], allowed: Sequence[int], temperature: float) -> float:
    """p-value of 6,000 draws at as many positions against the softmax over ``allowed``; others must not occur."""
    logits, rows = torch.tensor([1.2, 0.3, 0.9, -0.4, 2.0, -1.5, 0.3]), 6000
    numbers = inputs(rows, temperature=temperature, seed=2024, position=torch.arange(rows), **given)
    drawn = np.bincount(select(logits.expand(rows, -1), numbers).numpy(), minlength=len(logits))
    assert set(np.flatnonzero(drawn)) == set(allowed)
    weights = np.exp(logits.numpy().astype(np.float64)[list(allowed)] / temperature)
    return float(stats.chisquare(drawn[list(allowed)], rows * weights / weights.sum()).pvalue)


@pytest.mark.parametrize(
    ("given", "allowed", "temperature"),
    [
        pytest.param({}, [0, 1, 2, 3, 4, 5, 6], 1.0, id="plain"),
        pytest.param({}, [0, 1, 2, 3, 4, 5, 6], 0.6, id="cold"),
        pytest.param({}, [0, 1, 2, 3, 4, 5, 6], 2.5, id="hot"),
        pytest.param({"top_k": 3}, [0, 2, 4], 1.0, id="top_k"),
        pytest.param({"top_k": 4}, [0, 1, 2, 4, 6], 0.8, id="top_k_keeps_a_tie"),
        pytest.param({"top_p": 0.75}, [0, 2, 4], 1.0, id="top_p"),
        pytest.param({"min_p": 0.2}, [0, 2, 4], 1.0, id="min_p"),
        pytest.param({"top_k": 5, "top_p": 0.9, "min_p": 0.1}, [0, 1, 2, 4, 6], 1.0, id="all"),
    ],
)
def test_draws_follow_the_softmax_of_what_is_kept(
    given: dict[str, float], allowed: list[int], temperature: float
) -> None:
    assert chi_square(given, allowed, temperature) > 0.01


def test_draws_at_neighbouring_seeds_and_positions_are_independent() -> None:
    seeds, positions = torch.arange(40).repeat_interleave(100), torch.arange(100).repeat(40)
    tokens = select(torch.zeros(4000, 4), inputs(4000, seed=seeds, position=positions)).view(40, 100)
    for first, second in ((tokens[:, :-1], tokens[:, 1:]), (tokens[:-1], tokens[1:])):
        pairs = np.bincount((4 * first + second).flatten().numpy(), minlength=16)
        assert stats.chisquare(pairs).pvalue > 0.01


# What is kept, against transformers.


def reference_kept(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """What transformers' processors leave, in the order in which ``generate`` applies them."""
    from transformers.generation import logits_process as lp

    processors: list[Any] = [lp.TemperatureLogitsWarper(temperature)]
    processors += [lp.TopKLogitsWarper(top_k)] if top_k else []
    processors += [lp.TopPLogitsWarper(top_p)] if top_p < 1 else []
    processors += [lp.MinPLogitsWarper(min_p)] if min_p else []
    scores = logits.float()
    for processor in processors:
        scores = processor(None, scores)
    return scores > -INF


FILTERS = [
    (1.0, 1, 1.0, 0.0),
    (1.0, 7, 1.0, 0.0),
    (0.7, 50, 1.0, 0.0),
    (1.0, 1000, 1.0, 0.0),  # more than the vocabulary
    (1.0, 0, 0.9, 0.0),
    (0.6, 0, 0.35, 0.0),
    (1.0, 0, 1e-7, 0.0),
    (1.5, 0, 0.999, 0.0),
    (1.0, 0, 1.0, 0.05),
    (1.3, 0, 1.0, 1.0),
    (0.8, 40, 0.95, 0.0),
    (0.9, 20, 0.8, 0.02),
    (1.0, 1000, 0.5, 0.3),
    (0.1, 3, 0.99, 0.001),
]


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p"), FILTERS)
def test_the_kept_tokens_are_those_of_transformers(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = randn(64, 200)
    numbers = inputs(64, temperature=temperature, top_k=top_k or OFF, top_p=top_p, min_p=min_p)
    assert torch.equal(kept(logits, numbers), reference_kept(logits, temperature, top_k, top_p, min_p))


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p"), FILTERS)
def test_with_ties_only_equals_of_the_least_kept_token_are_added(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Transformers cuts through equals where top-p ends; here equal tokens are kept or dropped together."""
    logits = randn(64, 200, scale=1.0).to(torch.bfloat16)
    numbers = inputs(64, temperature=temperature, top_k=top_k or OFF, top_p=top_p, min_p=min_p)
    ours, theirs = kept(logits, numbers), reference_kept(logits, temperature, top_k, top_p, min_p)
    least = logits.float().masked_fill(~theirs, INF).amin(-1, keepdim=True)
    assert torch.equal(ours, logits >= least)
    if top_p == 1:
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("top_p", [1e-46, 1e-45, 1e-38, 1e-7])
def test_the_likeliest_token_survives_any_top_p(top_p: float) -> None:
    assert select(torch.arange(8.0)[None], inputs(1, top_p=top_p)).item() == 7


# The threshold search, against a sort in float64.

LIKELIHOODS = st.one_of(
    st.floats(0, 1, width=32),
    st.sampled_from([0.0, 1.0, 0.5, 2.0**-24, 2.0**-126, 2.0**-149, 1 - 2.0**-24]),
)


@settings(max_examples=150)
@given(
    rows=st.integers(1, 12).flatmap(lambda n: st.lists(st.lists(LIKELIHOODS, min_size=n, max_size=n), max_size=3)),
    top_k=st.one_of(st.integers(1, 14), st.just(OFF)),
    top_p=st.floats(0, 1, width=32, exclude_min=True),
    top_p_on=st.booleans(),
)
def test_the_floor_is_that_of_a_sort_in_float64(
    rows: list[list[float]], top_k: int, top_p: float, top_p_on: bool
) -> None:
    rows = [[1.0, *row] for row in rows or [[]]]
    top_p = top_p if top_p_on else 1.0
    numbers = inputs(len(rows), top_k=top_k, top_p=top_p)
    floors = sampler.likelihood_floor(torch.tensor(rows), numbers, sampler.narrow).tolist()
    for row, floor in zip(rows, floors, strict=True):
        descending = np.sort(np.array(row, np.float64))[::-1]
        by_rank = descending[top_k - 1] if top_k <= len(row) else 0.0
        mass = descending[descending >= by_rank].sum()
        nucleus = descending[np.searchsorted(descending.cumsum(), top_p * mass * (1 - 1e-6))] if top_p < 1 else 0.0
        above = descending[descending > floor].sum()  # a sum may round across the target: then either side is right
        exact = floor == max(by_rank, nucleus)
        rounded = top_p < 1 and floor in row and floor >= by_rank and abs(above - top_p * mass) <= 2e-6 * mass
        assert exact or rounded, (row, top_k, top_p, floor)


def test_a_row_of_one_token_is_drawn_whatever_is_asked() -> None:
    assert select(torch.tensor([[-3.0]]), inputs(1, top_k=1, top_p=0.1, min_p=1.0)).item() == 0


# Rows that fail, tokens that are blocked.


@pytest.mark.parametrize("bad", [NAN, INF], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_row_that_is_not_finite_fails_alone(bad: float, temperature: float) -> None:
    logits, numbers = randn(4, 30), inputs(4, temperature=temperature, top_k=9, top_p=0.9, position=torch.arange(4))
    want = select(logits, numbers).tolist()
    logits[1, 17] = bad
    want[1] = FAILED
    assert select(logits, numbers).tolist() == want


@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=str)
def test_greedy_marks_a_row_without_a_finite_maximum(bad: float) -> None:
    logits = randn(3, 30)
    logits[2] = bad if bad == -INF else logits[2].index_fill(0, torch.tensor([4]), bad)
    assert sample_greedy(logits).tolist() == [*logits[:2].argmax(-1).tolist(), FAILED]


def test_a_row_with_every_token_excluded_fails() -> None:
    assert select(torch.full((1, 5), -INF), inputs(1)).item() == FAILED
    assert select(torch.zeros(1, 2), inputs(1, blocked=[[0, 1]])).item() == FAILED


def test_minus_infinity_is_a_token_never_drawn() -> None:
    logits = torch.tensor([-INF, 0.0, -INF, 0.0]).expand(400, -1)
    assert set(select(logits, inputs(400, position=torch.arange(400))).tolist()) == {1, 3}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_blocked_tokens_are_never_drawn(temperature: float) -> None:
    logits = torch.tensor([5.0, 4.0, 0.0, 0.5]).expand(300, -1)
    numbers = inputs(300, temperature=temperature, position=torch.arange(300), blocked=[[0, 1]] * 300, width=3)
    assert set(select(logits, numbers).tolist()) == ({3} if temperature == 0 else {2, 3})


def test_the_filters_count_without_blocked_tokens() -> None:
    logits = torch.tensor([[9.0, 3.0, 2.0, 1.0]])
    assert kept(logits, inputs(1, blocked=[[0]], top_k=2)).tolist() == [[False, True, True, False]]


def test_padding_of_the_blocked_ids_blocks_nothing() -> None:
    logits, numbers = randn(50, 20), inputs(50, position=torch.arange(50))
    for padding in (0, 7, 19):
        padded = numbers._replace(blocked_ids=torch.full((50, 8), padding), blocked=torch.zeros(50, 8))
        assert torch.equal(select(logits, padded), select(logits, numbers))


def test_a_token_named_twice_is_blocked_once() -> None:
    assert select(torch.zeros(1, 2), inputs(1, blocked=[[1, 1]])).item() == 0


# Rows do not see each other.


def test_a_row_draws_the_same_whatever_the_others_ask() -> None:
    rows = 40
    draw = np.random.default_rng(5)
    numbers = inputs(
        rows,
        temperature=draw.choice([0.0, 0.3, 1.0, 2.0], rows),
        top_k=draw.choice([1, 4, 30, OFF], rows),
        top_p=draw.choice([0.2, 0.9, 1.0], rows),
        min_p=draw.choice([0.0, 0.1], rows),
        seed=draw.integers(-(2**63), 2**63, rows),
        position=draw.integers(0, 2000, rows),
        blocked=[[int(i) for i in draw.integers(0, 60, draw.integers(0, 3))] for _ in range(rows)],
    )
    logits = randn(rows, 60)
    logits[3, 5] = NAN
    together = select(logits, numbers)
    alone = [
        select(logits[row : row + 1], SamplingInputs(*(column[row : row + 1] for column in numbers)))
        for row in range(rows)
    ]
    assert together.tolist() == torch.cat(alone).tolist()
    order = torch.from_numpy(draw.permutation(rows))
    shuffled = select(logits[order], SamplingInputs(*(column[order] for column in numbers)))
    assert torch.equal(shuffled, together[order])


def test_without_filters_the_search_changes_no_draw() -> None:
    """The drawn variant of a step skips the search: floor zero."""
    logits, numbers = randn(100, 50), inputs(100, position=torch.arange(100))
    drawn = sampler.draw(sampler.temper(logits, numbers), torch.zeros(100), numbers)
    assert torch.equal(drawn, select(logits, numbers))
