"""The sampling kernels against ``layers.sampler``, token by token, in Triton's interpreter."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from ostinato.layers import sampler
from ostinato.layers.errors import ConfigError
from ostinato.layers.kernels import sampling, sampling_ops
from ostinato.layers.kernels.sampling_row import PENDING, exponential, noise_word
from ostinato.layers.sampler import FAILED, SamplingInputs
from test_sampler import OFF, inputs, select

pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")]
INF, NAN = math.inf, math.nan
FEW = 16
"""A capacity that sends most filtered rows the long way."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many programs for few tokens."""
    tiles = {"select": 64, "settle": 32}
    monkeypatch.setattr(sampling, "CHUNK", 128)
    monkeypatch.setattr(sampling, "GROUP", 16)
    stages = tuple(stage._replace(tile=tiles.get(stage.name, 0)) for stage in sampling.DRAWN)
    monkeypatch.setattr(sampling, "DRAWN", stages)


def randn(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_inputs(rows: int, seed: int, vocab: int, **fixed: Any) -> SamplingInputs:
    """A mixture of everything that a request may ask, other than what is ``fixed``."""
    draw = np.random.default_rng(seed)
    asked = {
        "temperature": draw.choice([0.0, 0.3, 1.0, 1.7], rows, p=[0.1, 0.3, 0.3, 0.3]),
        "top_k": draw.choice([1, 3, 20, 100, 2000, OFF, OFF], rows),
        "top_p": draw.choice([1e-6, 0.3, 0.8, 0.95, 1.0, 1.0], rows),
        "min_p": draw.choice([0.0, 0.0, 0.02, 0.4], rows),
        "seed": draw.integers(-(2**63), 2**63, rows),
        "position": draw.integers(0, 2**40, rows),
        "blocked": [[int(i) for i in draw.integers(0, vocab, draw.integers(0, 3))] for _ in range(rows)],
    }
    return inputs(rows, **(asked | fixed))


def row(given: SamplingInputs, index: int) -> SamplingInputs:
    return SamplingInputs(*(column[index : index + 1] for column in given))


def explained(logits: Tensor, asked: SamplingInputs, tokens: Sequence[int]) -> bool:
    """Whether rounding decides between two tokens of one row: in float64 either is drawn, up to a hair."""
    exact = sampler.temper(logits.double(), asked)
    mass_above = {token: exact.likelihood[0][exact.scores[0] > exact.scores[0, token]].sum() for token in tokens}
    kth = exact.scores[0].sort(descending=True).values[min(int(asked.top_k), logits.shape[1]) - 1]
    mass = exact.likelihood[0][exact.scores[0] >= kth].sum()
    at_the_edge = any(abs(above / mass - asked.top_p.item()) < 1e-5 for above in mass_above.values())
    noise = sampler.gumbel_noise(asked.seed, asked.position, logits.shape[1])[0]
    first, second = (exact.scores[0, token] + noise[token] for token in tokens)
    return at_the_edge or bool((first - second).abs() < 1e-5)


def check(logits: Tensor, asked: SamplingInputs, capacity: int = sampling.CAPACITY) -> None:
    """The kernels' tokens are the sampler's; at most one row of all may differ, where rounding decides."""
    got, want = sampling.sample_drawn(logits, asked, capacity), select(logits, asked)
    different = (got != want).nonzero()[:, 0].tolist()
    for index in different:
        tokens = [int(got[index]), int(want[index])]
        assert explained(logits[index : index + 1].float(), row(asked, index), tokens), (
            index,
            tokens,
            row(asked, index),
        )
    assert len(different) <= 1


@pytest.fixture
def left_open(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each call: how many rows the first two kernels left open."""
    counts: list[int] = []
    launch = sampling.launch

    def counting(stage: sampling.Stage, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        if stage.name == "bid":
            counts.append(int((arguments["out"] == PENDING.value).sum()))
        launch(stage, grid, arguments)

    monkeypatch.setattr(sampling, "launch", counting)
    return counts


# The noise.


@triton.jit
def _words(token, seed, position, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, noise_word(tl.load(token + at), tl.load(seed), tl.load(position)).to(tl.int64))


def test_the_noise_words_are_the_samplers() -> None:
    draw = np.random.default_rng(3)
    for _ in range(20):
        token = torch.from_numpy(draw.integers(0, 300_000, 64).astype(np.int32))
        seed, position = torch.from_numpy(draw.integers(-(2**63), 2**63, (2, 1)))
        position = position.abs() >> int(draw.integers(1, 60))
        got = torch.empty(64, dtype=torch.int64)
        _words[(1,)](token, seed, position, got, 64)
        assert torch.equal(got, sampler.philox(token.long(), position, seed))


@triton.jit
def _exponentials(word, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, exponential(tl.load(word + at).to(tl.uint32)))


def test_the_noise_is_the_samplers_to_the_last_bits() -> None:
    ends = [0, 1, 2, 127, 128, 2**24, 2**31, 2**32 - 256, 2**32 - 2, 2**32 - 1]
    words = torch.from_numpy(np.concatenate([ends, np.logspace(0, 32, 1014, base=2).astype(np.int64) - 1]))
    got = torch.empty(1024)
    _exponentials[(1,)](words, got, 1024)
    uniform = ((words.float() + 0.5) * 2.0**-32).clamp_max(1 - 2.0**-24)
    torch.testing.assert_close(got.double(), -torch.log1p(-uniform.double()), rtol=3e-7, atol=0)


# Greedy.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocab", [2, 63, 4096, 4097, 20_011])
def test_greedy_is_the_first_argmax(dtype: torch.dtype, vocab: int) -> None:
    logits = randn(4, vocab, scale=0.5).to(dtype)
    logits[1] = 0
    logits[2, vocab // 2 :] = logits[2].max()
    logits[3, : vocab - 1] = -INF
    got = sampling.sample_greedy(logits)
    assert got.dtype == torch.int64
    assert torch.equal(got, sampler.sample_greedy(logits))


@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("greedy", [True, False])
def test_a_row_that_is_not_finite_fails_alone(bad: float, greedy: bool) -> None:
    logits = randn(3, 9000)
    logits[1, 8999 if bad != -INF else slice(None)] = bad
    asked = inputs(3, temperature=torch.tensor([0.0, 0.8, 0.8]), top_k=9, top_p=0.9)
    got = sampling.sample(logits, asked, greedy)
    assert got.tolist() == (sampler.sample_greedy(logits) if greedy else select(logits, asked)).tolist()
    assert (got == FAILED).tolist() == [False, True, False]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_not_a_number_fails_a_row_whatever_else_is_in_it(temperature: float) -> None:
    logits = torch.full((3, 70), -INF)
    logits[0, 5], logits[1, 5], logits[2] = NAN, INF, 0
    asked = inputs(3, temperature=temperature, blocked=[[5], [5], range(70)], width=70)
    assert sampling.sample_drawn(logits, asked).tolist() == [FAILED] * 3 == select(logits, asked).tolist()


def test_temperature_0_tells_neighbouring_floats_apart() -> None:
    low = torch.tensor([-9.0, -0.01, 0.25, 7.0])
    logits = torch.stack([low, torch.nextafter(low, torch.tensor(INF)), low], -1)
    assert sampling.sample_drawn(logits, inputs(4, temperature=0)).eq(1).all()


# Drawn tokens.


@pytest.mark.parametrize("capacity", [sampling.CAPACITY, FEW])
@pytest.mark.parametrize("vocab", [2, 17, 64, 65, 512, 513, 4096, 4160, 9001])
def test_mixed_rows_draw_what_the_sampler_draws(vocab: int, capacity: int) -> None:
    logits = randn(12, vocab, seed=vocab) * torch.linspace(0.2, 3, 12)[:, None]
    logits[3] = logits[3].round()
    logits[4, ::3] = -INF
    logits[5] = 1
    check(logits, random_inputs(12, vocab + capacity, vocab), capacity)


@pytest.mark.parametrize("capacity", [sampling.CAPACITY, FEW])
@pytest.mark.parametrize("min_p", [0.0, 0.05])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("top_k", [OFF, 40, 1500])
def test_every_combination_of_filters_draws_what_the_sampler_draws(
    top_k: int, top_p: float, min_p: float, capacity: int
) -> None:
    asked = random_inputs(3, 1, 5000, temperature=[0.7, 1.0, 1.5], top_k=top_k, top_p=top_p, min_p=min_p)
    check(randn(3, 5000), asked, capacity)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_large_vocabulary_draws_what_the_sampler_draws(dtype: torch.dtype) -> None:
    logits = randn(4, 151_936, scale=3.0).to(dtype)
    filters = {"top_k": [20, OFF, OFF, OFF], "top_p": [0.95, 0.6, 1.0, 0.9], "min_p": [0.0, 0.0, 0.05, 0.0]}
    check(logits, random_inputs(4, 2, 151_936, temperature=[0.8, 0.7, 1.0, 1.5], **filters))


@pytest.mark.parametrize("top_k", [3000, OFF])
def test_a_flat_row_is_settled_by_rejecting_again_and_again(top_k: int, left_open: list[int]) -> None:
    asked = random_inputs(6, 4, 9000, temperature=1.0, top_k=top_k, top_p=0.02, min_p=0.0)
    check(randn(6, 9000, scale=0.3), asked, FEW)
    assert left_open == [6]


def test_a_large_top_k_alone_is_settled_by_rejection(left_open: list[int]) -> None:
    check(randn(6, 9000, scale=0.3), random_inputs(6, 4, 9000, temperature=1.0, top_k=1200, top_p=1.0, min_p=0.0))
    assert left_open == [6]


@pytest.mark.parametrize(
    "filters", [{"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.05}, {"top_k": 50, "top_p": 0.9, "min_p": 0.01}], ids=str
)
def test_rows_that_keep_few_tokens_are_settled_without_the_noise_of_all(
    filters: dict[str, float], left_open: list[int]
) -> None:
    logits = randn(3, 20_000, scale=3.0)
    asked = random_inputs(3, 5, 20_000, **({"temperature": 0.6, "top_k": OFF, "top_p": 1.0, "min_p": 0.0} | filters))
    check(logits, asked)
    check(logits, asked, FEW)
    assert left_open[0] == 0
    assert left_open[1] > 0 or filters == {"min_p": 0.05}


@pytest.mark.parametrize("capacity", [sampling.CAPACITY, FEW])
@pytest.mark.parametrize("top_k", [1, 7, 500, 2500])
def test_ties_of_the_kth_are_all_kept(top_k: int, capacity: int) -> None:
    logits = torch.randint(0, 4, (3, 3000), generator=torch.Generator().manual_seed(top_k)).float()
    asked = random_inputs(3, top_k, 3000, temperature=1.0, top_k=top_k, top_p=[1.0, 0.9, 0.2], min_p=0.0)
    check(logits, asked, capacity)


def test_likely_tokens_that_lie_together_are_all_found() -> None:
    """Frequent tokens have low ids: the groups' peaks say little then."""
    logits = randn(6, 8192)
    logits[:, 128:700] += 12
    top_k = [20, 300, 571, 600, OFF, OFF]
    check(logits, random_inputs(6, 8, 8192, temperature=1.0, top_k=top_k, top_p=[1.0, 0.9] * 3, min_p=0.0))


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("capacity", [32, 4])
def test_draws_follow_the_softmax_of_the_nucleus(capacity: int) -> None:
    rows, allowed = 100, [0, 2, 4]
    logits = torch.tensor([1.2, 0.3, 0.9, -0.4, 2.0, -1.5, 0.3])
    asked = inputs(rows, top_p=0.75, seed=11, position=torch.arange(rows) + (1 << 33))
    tokens = sampling.sample_drawn(logits.expand(rows, -1), asked, capacity).numpy()
    drawn = np.bincount(tokens, minlength=7)
    weights = np.exp(logits.double().numpy()[allowed])
    assert set(np.flatnonzero(drawn)) == set(allowed)
    assert stats.chisquare(drawn[allowed], rows * weights / weights.sum()).pvalue > 0.01


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("filters", [{}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_blocked_tokens_are_never_drawn(temperature: float, filters: dict[str, float]) -> None:
    logits = torch.tensor([5.0, 4.0, 0.0, 0.5]).expand(20, -1)
    blocked = [[0, 1], [1, 0, 0]] * 10
    asked = inputs(20, temperature=temperature, position=torch.arange(20), blocked=blocked, width=5, **filters)
    got = sampling.sample_drawn(logits, asked)
    assert torch.equal(got, select(logits, asked))
    assert set(got.tolist()) == ({3} if temperature == 0 else {2, 3})


@pytest.mark.parametrize("temperature", [1e-6, 1e-44, 1e6])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    logits = randn(3, 300)
    got = sampling.sample_drawn(logits, random_inputs(3, 6, 300, temperature=temperature, blocked=[]))
    assert ((got >= 0) & (got < 300)).all()
    if temperature < 1:
        assert torch.equal(got, logits.argmax(-1))


@pytest.mark.parametrize("capacity", [32, 4])
@pytest.mark.parametrize("top_p", [1e-46, 1e-45, 1e-38])
def test_the_likeliest_tokens_survive_any_top_p(top_p: float, capacity: int) -> None:
    logits = torch.stack([torch.arange(16.0), torch.zeros(16), torch.arange(16.0).clamp_min(6)])
    got = sampling.sample_drawn(logits, inputs(3, top_p=top_p), capacity)
    assert torch.equal(got, select(logits, inputs(3, top_p=top_p)))
    assert got[[0, 2]].tolist() == [15, 15]


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("capacity", [32, 1])
@pytest.mark.parametrize("filters", [{"top_k": 2}, {"top_k": 2, "top_p": 0.999}, {"top_p": 0.3}], ids=str)
def test_no_token_more_is_kept_than_the_filter_says(filters: dict[str, float], capacity: int) -> None:
    logits = torch.linspace(0, 1e-3, 9).expand(24, -1)
    asked = inputs(24, position=torch.arange(24), **filters)
    got = sampling.sample_drawn(logits, asked, capacity)
    assert torch.equal(got, select(logits, asked))
    assert set(got.tolist()) == ({6, 7, 8} if filters == {"top_p": 0.3} else {7, 8})


def test_a_row_draws_the_same_whatever_the_others_ask() -> None:
    rows, vocab = 16, 4500
    logits, asked = randn(rows, vocab), random_inputs(rows, 9, vocab)
    logits[3, 5] = NAN
    together = sampling.sample_drawn(logits, asked)
    alone = [sampling.sample_drawn(logits[i : i + 1], row(asked, i)).item() for i in range(rows)]
    assert together.tolist() == alone
    again = SamplingInputs(*(column.flip(0) for column in asked))
    assert torch.equal(sampling.sample_drawn(logits.flip(0), again).flip(0), together)


@pytest.mark.usefixtures("_small_tiles")
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 3),
    vocab=st.integers(2, 700),
    padding=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    capacity=st.sampled_from([1, 4, 64, 256]),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_stride_draws_what_the_sampler_draws(
    rows: int, vocab: int, padding: int, dtype: torch.dtype, capacity: int, seed: int
) -> None:
    storage = torch.full((rows, vocab + padding), NAN, dtype=dtype)
    storage[:, :vocab] = randn(rows, vocab, seed=seed).to(dtype)
    logits = storage[:, :vocab]
    check(logits, random_inputs(rows, seed, vocab), capacity)
    transposed = logits.T.contiguous().T
    assert torch.equal(sampling.sample_greedy(transposed), sampler.sample_greedy(logits))


# The operators.


def test_the_operators_are_traced_whole_and_draw_the_same() -> None:
    logits, asked = randn(3, 100), random_inputs(3, 7, 100)
    for greedy in (True, False):
        traced = torch.compile(sampling_ops.sample, fullgraph=True, backend="eager")
        assert torch.equal(traced(logits, asked, greedy), sampling.sample(logits, asked, greedy))
        name = "sample_greedy" if greedy else "sample_drawn"
        torch.library.opcheck(getattr(torch.ops.ostinato, name).default, (logits, *([] if greedy else asked)))


def test_without_the_interpreter_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ConfigError, match=r"sample_greedy.*TRITON_INTERPRET=1"):
        torch.ops.ostinato.sample_greedy(randn(2, 5))


def test_inputs_of_other_shapes_and_dtypes_are_refused() -> None:
    logits, asked = randn(3, 10), inputs(3)
    for wrong, message in (
        (asked._replace(top_k=torch.ones(2)), r"top_k is \[2\] torch.float32 for 3 rows"),
        (asked._replace(seed=torch.zeros(3)), r"seed is \[3\] torch.float32"),
        (asked._replace(blocked=torch.zeros(3, 1)), r"blocked_ids is \[3, 2\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            sampling_ops.sample(logits, wrong, False)
    with pytest.raises(ConfigError, match=r"float64"):
        sampling_ops.sample(logits.double(), asked, True)


def test_importing_the_operators_imports_no_triton() -> None:
    script = "import sys; import ostinato.layers.kernels.sampling_ops; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
