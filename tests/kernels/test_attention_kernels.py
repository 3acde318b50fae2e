"""Decode and prefill attention over pages, in Triton's interpreter, against their definition in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.attention_cases import KINDS, Case, assert_close, make_case, reference, same_bits, scoring
from ostinato.layers.attention.scoring import Scoring
from ostinato.layers.kernels import paged_decode as decode_module
from ostinato.layers.kernels.paged_decode import decode_tile, mixed_splits, num_splits, paged_decode
from ostinato.layers.kernels.paged_varlen import paged_varlen

pytestmark = pytest.mark.kernels
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def decode(case: Case, how: Scoring) -> Tensor:
    return paged_decode(case.q, *case.pages, how)


def varlen(case: Case, how: Scoring, host: Tensor | None = None) -> Tensor:
    return paged_varlen(case.q, *case.pages, case.cu_seqlens_q, host, how)


def plain(case: Case) -> Scoring:
    return Scoring(case.q.shape[-1] ** -0.5)


@pytest.mark.parametrize(
    ("head_dim", "block_size", "heads", "kv_heads", "dtype", "lengths"),
    [
        (128, 16, 8, 1, FP32, [1, 2048, 700]),
        (128, 128, 4, 4, BF16, [129, 1000, 1]),
        (128, 256, 8, 4, FP16, [2048, 256, 257]),
        (64, 16, 12, 4, BF16, [2047, 15, 16, 17]),
        (64, 128, 14, 2, FP32, [1500, 127]),
        (64, 256, 4, 2, FP32, [1, 255, 2000]),
        (64, 32, 16, 1, FP16, [900]),
        (64, 64, 71, 1, BF16, [300]),
    ],
)
def test_decode_equals_the_definition(
    head_dim: int, block_size: int, heads: int, kv_heads: int, dtype: torch.dtype, lengths: list[int]
) -> None:
    case = make_case(lengths, heads=heads, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size, dtype=dtype)
    assert_close(decode(case, plain(case)), reference(case, plain(case)))


@pytest.mark.parametrize(
    ("head_dim", "block_size", "heads", "kv_heads", "dtype", "lengths", "new"),
    [
        (128, 16, 8, 1, BF16, [2048, 300, 77], [40, 1, 77]),
        (128, 128, 2, 2, FP16, [200, 129], [200, 2]),
        (128, 256, 4, 2, FP32, [300], [20]),
        (64, 16, 6, 2, BF16, [1000, 1, 63, 64, 65], [3, 1, 63, 64, 65]),
        (64, 128, 14, 2, FP16, [1024, 640], [25, 1]),
        (64, 256, 2, 2, FP32, [150, 257], [40, 1]),
        (64, 32, 71, 1, BF16, [40], [9]),
    ],
)
def test_prompts_chunks_and_decode_rows_together_equal_the_definition(
    head_dim: int, block_size: int, heads: int, kv_heads: int, dtype: torch.dtype, lengths: list[int], new: list[int]
) -> None:
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "block_size": block_size}
    case = make_case(lengths, new, dtype=dtype, **sizes)
    assert_close(varlen(case, plain(case)), reference(case, plain(case)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_each_scoring_equals_the_definition(kind: str, dtype: torch.dtype) -> None:
    case = make_case([1, 36, 37, 38, 400], heads=6, dtype=dtype)
    how = scoring(kind, 6, 64)
    assert_close(decode(case, how), reference(case, how))
    case = make_case([130, 200, 5, 60], [130, 20, 5, 1], heads=6, dtype=dtype)
    assert_close(varlen(case, how), reference(case, how))


@pytest.mark.parametrize("head_dim", [72, 80, 96, 112, 256])
@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_other_head_sizes_equal_the_definition(head_dim: int, dtype: torch.dtype) -> None:
    case = make_case([40, 70], [5, 1], head_dim=head_dim, dtype=dtype)
    assert_close(varlen(case, plain(case)), reference(case, plain(case)))


@st.composite
def odd_cases(draw: st.DrawFn, head_dim: int) -> tuple[Case, Scoring, int]:
    """Rows of any kind and a number of padding tokens and rows, over blocks of any size."""
    block_size = draw(st.sampled_from([1, 3, 4, 16, 32, 128]))
    edges = st.tuples(st.integers(0, 80 // block_size), st.integers(-1, 1))
    length = st.one_of(st.integers(1, 90), edges.map(lambda edge: max(1, edge[0] * block_size + edge[1])))
    lengths = draw(st.lists(length, min_size=1, max_size=4))
    new = [draw(st.one_of(st.just(1), st.just(length), st.integers(0, length))) for length in lengths]
    kv_heads, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8]))
    how = scoring(draw(st.sampled_from(KINDS)), kv_heads * group, head_dim, window=draw(st.integers(1, 70)))
    sizes = {"heads": kv_heads * group, "kv_heads": kv_heads, "head_dim": head_dim, "block_size": block_size}
    case = make_case(lengths, new, spare=draw(st.integers(0, 9)), seed=draw(st.integers(0, 9)), **sizes)
    return case, how, draw(st.integers(0, 3))


@settings(max_examples=40)
@given(odd_cases(head_dim=16))  # 32 queries and 16 keys a tile
def test_any_rows_equal_the_definition_beside_padding(drawn: tuple[Case, Scoring, int]) -> None:
    """Padding rows have no tokens and the null block, which holds NaN; padding tokens are those of no row."""
    case, how, padding = drawn
    padded_q = torch.cat([case.q, torch.full((padding, *case.q.shape[1:]), math.nan)])
    table = torch.nn.functional.pad(case.block_table, (0, 0, 0, padding))
    lengths = torch.nn.functional.pad(case.context_lens, (0, padding), value=1)
    cu = torch.nn.functional.pad(case.cu_seqlens_q, (0, padding), value=len(case.q))
    out = paged_varlen(padded_q, case.k_cache, case.v_cache, table, lengths, cu, None, how)
    assert_close(out[: len(case.q)], reference(case, how))
    assert same_bits(out[len(case.q) :], torch.zeros(padding, *case.q.shape[1:]))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of the NaN that is meant
@settings(max_examples=30)
@given(odd_cases(head_dim=64))  # 32 keys a tile
def test_decode_of_any_rows_equals_the_definition_beside_padding(drawn: tuple[Case, Scoring, int]) -> None:
    case, how, padding = drawn
    case = make_case(
        case.context_lens.tolist(),
        heads=case.q.shape[1],
        kv_heads=case.k_cache.shape[2],
        head_dim=case.q.shape[2],
        block_size=case.k_cache.shape[1],
    )
    padded_q = torch.nn.functional.pad(case.q, (0, 0, 0, 0, 0, padding))
    table = torch.nn.functional.pad(case.block_table, (0, 0, 0, padding))
    lengths = torch.nn.functional.pad(case.context_lens, (0, padding), value=1)
    out = paged_decode(padded_q, case.k_cache, case.v_cache, table, lengths, how)
    assert_close(out[: len(case.q)], reference(case, how))
    assert bool(out[len(case.q) :].isnan().all()), "the null block's NaN belongs to the rows that point at it"


def test_two_runs_have_the_same_bits() -> None:
    case = make_case([2000, 3, 500], [30, 1, 1], dtype=BF16)
    assert same_bits(varlen(case, plain(case)), varlen(case, plain(case)))
    case = make_case([2000, 3, 500], dtype=BF16)
    assert same_bits(decode(case, plain(case)), decode(case, plain(case)))


def test_a_row_has_the_same_bits_whatever_its_neighbours_are() -> None:
    case, other = (make_case([600, 33, 100], seed=seed, spare=20) for seed in (1, 2))
    before = decode(case, plain(case))
    others = torch.tensor([0, 2])
    # The neighbours get other queries, other contexts and other lengths, on pages of their own.
    k_cache, v_cache = (torch.cat(pair) for pair in ((case.k_cache, other.k_cache), (case.v_cache, other.v_cache)))
    case.q[others] = other.q[others]
    moved = other.block_table + len(case.k_cache)
    case.block_table[0], case.block_table[2] = moved[2], moved[1]
    lengths = torch.tensor([100, 33, 7], dtype=torch.int32)
    after = paged_decode(case.q, k_cache, v_cache, case.block_table, lengths, plain(case))
    assert same_bits(after[1], before[1])
    assert not same_bits(after, before)


def test_a_chunk_has_the_same_bits_whatever_its_neighbours_are() -> None:
    """The same row second of three, and second of two with a neighbour whose tokens are as many but others."""
    case = make_case([50, 80, 90], [50, 30, 1], seed=3)
    before = varlen(case, plain(case))
    changed = make_case([50, 80, 90], [50, 30, 1], seed=4)
    changed.q[50:80] = case.q[50:80]
    cells = case.block_table[1, :5].long()
    own = torch.arange(len(changed.k_cache), len(changed.k_cache) + 5)
    changed.k_cache = torch.cat([changed.k_cache, case.k_cache[cells]])
    changed.v_cache = torch.cat([changed.v_cache, case.v_cache[cells]])
    changed.block_table[1, :5] = own.int()
    after = varlen(changed, plain(case))
    assert same_bits(after[50:80], before[50:80])
    assert not same_bits(after[:50], before[:50])


def test_queries_may_be_a_part_of_a_fused_projection() -> None:
    case = make_case([70, 40], [9, 1])
    fused = torch.cat([case.q.flatten(1), torch.full((10, 256), math.nan)], 1)
    expected = varlen(case, plain(case))
    case.q = fused[:, :256].unflatten(1, (4, 64))
    got = varlen(case, plain(case))
    assert got.is_contiguous()
    assert same_bits(got, expected)
    case.q = expected.transpose(1, 2).contiguous().transpose(1, 2)  # the last dimension is not contiguous
    assert_close(varlen(case, plain(case)), reference(case, plain(case)))


@pytest.mark.parametrize("window", [1, 5, 32, 33])
def test_cells_behind_the_window_are_not_read(window: int) -> None:
    """The engine gives such blocks back: their cells are the null block's, which holds NaN here."""
    case, how = make_case([300, 90], block_size=4), Scoring(0.125, window)
    expected = decode(case, how)
    for row, length in enumerate(case.context_lens.tolist()):
        case.block_table[row, : max(0, length - window) // 4] = 0
    assert same_bits(decode(case, how), expected)
    assert_close(expected, reference(case, how))


def test_what_the_host_knows_changes_no_bit() -> None:
    for new in ([1, 1, 1], [20, 1, 7]):
        case = make_case([60, 40, 7], new)
        host = torch.tensor([max(new), 60, 1])
        assert same_bits(varlen(case, plain(case), host), varlen(case, plain(case)))


@pytest.mark.parametrize("num_multiprocessors", [1, 2, 8, 132])
def test_any_number_of_shares_gives_the_result(num_multiprocessors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "multiprocessors", lambda _: num_multiprocessors)
    case, how = make_case([1, 64, 65, 1000]), scoring("sinks", 4, 64)
    assert_close(decode(case, how), reference(case, how))


@pytest.mark.parametrize("num_multiprocessors", [1, 16])
def test_beside_prompts_only_rows_of_one_token_are_computed(
    num_multiprocessors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_module, "multiprocessors", lambda _: num_multiprocessors)
    case = make_case([200, 90, 5, 300], [3, 1, 0, 1])
    out = torch.full_like(case.q, 7.0)
    paged_decode(case.q, *case.pages, plain(case), case.cu_seqlens_q, out)
    assert same_bits(out[:3], torch.full_like(out[:3], 7.0))
    assert_close(out[3:], reference(case, plain(case))[3:])


def test_shares_fill_the_gpu_and_are_never_smaller_than_two_tiles() -> None:
    tile = decode_tile(128, BF16).tokens
    assert [num_splits(rows, 8, 40_960, 132, tile) for rows in (1, 2, 16, 64, 256)] == [64, 32, 4, 1, 1]
    assert [num_splits(1, 8, capacity, 132, tile) for capacity in (1, 64, 127, 128, 1024)] == [1, 1, 1, 2, 16]
    assert mixed_splits(256, 8, 40_960, 132, tile) == 8
    assert mixed_splits(256, 8, 2_048, 132, tile) == 1
