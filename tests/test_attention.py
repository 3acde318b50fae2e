"""Paged attention against a dense oracle in float64: shuffled pages, NaN wherever no token was written."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ostinato.layers.attention import decode
from ostinato.layers.attention import varlen as varlen_module
from ostinato.layers.attention.decode import decode_attention
from ostinato.layers.attention.metadata import AttentionMetadata, within_window
from ostinato.layers.attention.paged import write_pages
from ostinato.layers.attention.scoring import Scoring
from ostinato.layers.attention.varlen import varlen_attention

HEAD_DIM, SCALE = 8, 0.3
PLAIN = Scoring(SCALE)
KINDS = ["plain", "window", "softcap", "alibi", "sinks", "all"]


def scoring(kind: str, heads: int) -> Scoring:
    """Everything that a score can have, alone and together."""
    slopes, sinks = torch.linspace(0.5, 0.05, heads), torch.linspace(-1, 2, heads)
    return {
        "plain": PLAIN,
        "window": Scoring(SCALE, window=5),
        "softcap": Scoring(SCALE, softcap=0.7),
        "alibi": Scoring(SCALE, slopes=slopes),
        "sinks": Scoring(SCALE, sinks=sinks),
        "all": Scoring(SCALE, 6, 0.9, slopes, sinks),
    }[kind]


@dataclass
class Paged:
    """Contexts of some rows, dense and in pages. Every slot of the pages without a token holds NaN, block 0 too."""

    keys: list[Tensor]  # per row [length, num_kv_heads, head_dim]
    values: list[Tensor]
    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    context_lens: Tensor


def paged(
    lengths: list[int], block_size: int, kv_heads: int, dtype: torch.dtype = torch.float32, spare: int = 2
) -> Paged:
    """Random contexts of these lengths, on shuffled pages; the table has ``spare`` columns more than anyone needs."""
    generator = torch.Generator().manual_seed(sum(lengths) + block_size)

    def dense() -> list[Tensor]:
        return [torch.randn(length, kv_heads, HEAD_DIM, generator=generator).to(dtype) for length in lengths]

    keys, values = dense(), dense()
    counts = [-(-length // block_size) for length in lengths]
    shuffled = (torch.randperm(sum(counts) + 3, generator=generator) + 1).tolist()
    table = torch.zeros(len(lengths), max(counts) + spare, dtype=torch.int32)
    caches = [torch.full((sum(counts) + 4, block_size, kv_heads, HEAD_DIM), math.nan, dtype=dtype) for _ in range(2)]
    for row, count in enumerate(counts):
        table[row, :count] = torch.tensor([shuffled.pop() for _ in range(count)])
        positions = torch.arange(lengths[row])
        slots = table[row, positions // block_size].long() * block_size + positions % block_size
        for cache, new in zip(caches, (keys[row], values[row]), strict=True):
            write_pages(cache, new, slots)
    return Paged(keys, values, *caches, table, torch.tensor(lengths, dtype=torch.int32))


def oracle(q: Tensor, keys: Tensor, values: Tensor, how: Scoring = PLAIN) -> Tensor:
    """Causal attention of the last ``len(q)`` tokens of one row, head by head, in float64."""
    out = torch.empty_like(q, dtype=torch.float64)
    group = q.shape[1] // keys.shape[1]
    for i in range(len(q)):
        seen = len(keys) - len(q) + i + 1
        first = max(0, seen - how.window) if how.window else 0
        for head in range(q.shape[1]):
            k, v = (part[first:seen, head // group].double() for part in (keys, values))
            scores = how.scale * (k @ q[i, head].double())
            if how.softcap:
                scores = how.softcap * torch.tanh(scores / how.softcap)
            if how.slopes is not None:
                scores = scores + how.slopes[head].double() * (torch.arange(first, seen) - seen + 1)
            if how.sinks is not None:
                scores = torch.cat([scores, how.sinks[head].double().view(1)])
            out[i, head] = torch.softmax(scores, 0)[: len(v)] @ v
    return out


def queries(tokens: int, heads: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(tokens, heads, HEAD_DIM, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def assert_close(got: Tensor, want: Tensor) -> None:
    bound = 1e-5 if got.dtype is torch.float32 else 3e-2
    assert got.isfinite().all()
    assert (got.double() - want).abs().max() <= bound * want.abs().max()


def lengths_around(block_size: int) -> list[int]:
    """Contexts at, before and behind block borders."""
    edges = {1, block_size - 1, block_size, block_size + 1, 2 * block_size, 2 * block_size + 1, 3 * block_size - 1}
    return sorted(edges - {0})


# Decode: one token per row.


@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_decode_equals_the_oracle(group: int, block_size: int) -> None:
    lengths = lengths_around(block_size)
    rows, q = paged(lengths, block_size, kv_heads=2), queries(len(lengths), 2 * group)
    got = decode_attention(q, rows.k_cache, rows.v_cache, rows.block_table, rows.context_lens, PLAIN)
    want = [oracle(q[i : i + 1], rows.keys[i], rows.values[i]) for i in range(len(lengths))]
    assert_close(got, torch.cat(want))


@pytest.mark.parametrize("form", ["_attend_by_sums", "_attend_by_products"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 4, 5, 6, 7, 13, 30])
def test_both_forms_score_as_the_oracle(kind: str, length: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "prefers_sums", lambda _: form == "_attend_by_sums")
    row, q, how = paged([length], 4, kv_heads=2), queries(1, 6), scoring(kind, 6)
    got = decode_attention(q, row.k_cache, row.v_cache, row.block_table, row.context_lens, how)
    assert_close(got, oracle(q, row.keys[0], row.values[0], how))


def test_pages_behind_the_window_may_be_the_null_block_full_of_nan() -> None:
    how = scoring("window", 4)
    for count in (1, 7):
        row, q = paged([30], 4, kv_heads=2), queries(count, 4)
        row.block_table[0, : (30 - count - how.window + 1) // 4] = 0
        assert_close(varlen(q, row, [count], how=how), oracle(q, row.keys[0], row.values[0], how))


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 6, 9, 30, 100])
@pytest.mark.parametrize("form", ["_attend_by_sums", "_attend_by_products"])
def test_a_table_narrowed_to_the_window_shows_all_of_it(
    window: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "prefers_sums", lambda _: form == "_attend_by_sums")
    how = Scoring(SCALE, window=window, slopes=torch.linspace(0.5, 0.05, 4))
    for length in range(1, 31):
        row, q = paged([length], 4, kv_heads=2), queries(1, 4)
        none = torch.zeros(0)
        meta = within_window(AttentionMetadata(none, row.block_table, row.context_lens, None, None, None), window, 4)
        assert meta.block_table.shape[1] <= max(3, (window - 2) // 4 + 2)
        got = decode_attention(q, row.k_cache, row.v_cache, meta.block_table, row.context_lens, how, meta.table_start)
        assert_close(got, oracle(q, row.keys[0], row.values[0], how))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decode_in_16_bits_is_near_the_oracle(dtype: torch.dtype) -> None:
    rows, q = paged([1, 9, 30], 4, 2, dtype), queries(3, 4, dtype)
    got = decode_attention(q, rows.k_cache, rows.v_cache, rows.block_table, rows.context_lens, PLAIN)
    assert got.dtype is dtype
    assert_close(got, torch.cat([oracle(q[i : i + 1], rows.keys[i], rows.values[i]) for i in range(3)]))


@pytest.mark.parametrize("form", ["_attend_by_sums", "_attend_by_products"])
@pytest.mark.parametrize(("length", "group"), [(1, 1), (5, 2), (16, 4), (33, 2)])
def test_both_forms_of_a_single_row_equal_the_oracle(
    form: str, length: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "prefers_sums", lambda _: form == "_attend_by_sums")
    row, q = paged([length], 4, kv_heads=2), queries(1, 2 * group)
    got = decode_attention(q, row.k_cache, row.v_cache, row.block_table, row.context_lens, PLAIN)
    assert_close(got, oracle(q, row.keys[0], row.values[0]))


def test_both_forms_agree_on_large_scores() -> None:
    q, keys = 100 * queries(1, 4).view(1, 2, 2, HEAD_DIM), 100 * queries(12, 2).view(1, 3, 4, 2, HEAD_DIM)
    values, visible = queries(24, 1).view(1, 3, 4, 2, HEAD_DIM), (torch.arange(12) < 10).view(1, 3, 4)
    distance = torch.arange(12).view(1, 3, 4) - 9
    sums = decode._attend_by_sums(q, keys, values, distance, visible, PLAIN)
    products = decode._attend_by_products(q, keys, values, distance, visible, PLAIN)
    assert sums.isfinite().all()
    torch.testing.assert_close(sums.reshape(-1), products.reshape(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("extra", [0, 1, 7])
def test_a_wider_table_changes_nothing(extra: int) -> None:
    rows, q = paged([3, 11], 4, 2, spare=extra), queries(2, 4)
    got = decode_attention(q, rows.k_cache, rows.v_cache, rows.block_table, rows.context_lens, PLAIN)
    narrow = paged([3, 11], 4, 2, spare=0)
    want = decode_attention(q, narrow.k_cache, narrow.v_cache, narrow.block_table, narrow.context_lens, PLAIN)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_a_padded_row_reads_nothing_but_the_first_slot_of_the_null_block() -> None:
    """Padding writes there and then sees that one token; the rest of the block may hold anything."""
    rows, q = paged([6, 2], 4, 2), queries(4, 4)
    table = torch.cat([rows.block_table, torch.zeros_like(rows.block_table)])
    lengths = torch.cat([rows.context_lens, torch.ones(2, dtype=torch.int32)])
    for cache in (rows.k_cache, rows.v_cache):
        cache[0, 0] = 3.0
    got = decode_attention(q, rows.k_cache, rows.v_cache, table, lengths, PLAIN)
    assert_close(got[:2], torch.cat([oracle(q[i : i + 1], rows.keys[i], rows.values[i]) for i in range(2)]))
    assert torch.equal(got[2:], torch.full_like(got[2:], 3.0))


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e4])
def test_poison_in_padded_rows_leaves_real_rows_bit_equal(poison: float) -> None:
    rows, q = paged([6, 2], 4, 2), queries(4, 4)
    table = torch.cat([rows.block_table, torch.zeros_like(rows.block_table)])
    lengths = torch.cat([rows.context_lens, torch.ones(2, dtype=torch.int32)])
    want = decode_attention(q, rows.k_cache, rows.v_cache, table, lengths, PLAIN)
    q[2:] = poison
    for cache in (rows.k_cache, rows.v_cache):
        cache[0] = poison
    got = decode_attention(q, rows.k_cache, rows.v_cache, table, lengths, PLAIN)
    assert torch.equal(got[:2], want[:2])


# Variable lengths: prompts, chunks and decode rows in one call.


def varlen(q: Tensor, rows: Paged, counts: list[int], padded_rows: int = 0, how: Scoring = PLAIN) -> Tensor:
    """The operator on rows with these numbers of new tokens, and ``padded_rows`` rows without any."""
    ends = torch.tensor([0, *counts] + [0] * padded_rows).cumsum(0).to(torch.int32)
    table = torch.cat([rows.block_table, rows.block_table.new_zeros(padded_rows, rows.block_table.shape[1])])
    lengths = torch.cat([rows.context_lens, rows.context_lens.new_ones(padded_rows)])
    return varlen_attention(q, rows.k_cache, rows.v_cache, table, lengths, ends, *how)


def dense(q: Tensor, rows: Paged, counts: list[int], how: Scoring = PLAIN) -> Tensor:
    parts = zip(q[: sum(counts)].split(counts), rows.keys, rows.values, strict=True)
    return torch.cat([oracle(*part, how) for part in parts])


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_rows_of_all_kinds_in_one_call_equal_the_oracle(group: int, block_size: int) -> None:
    lengths, counts = [9, 1, 17, 6, 4, 16], [1, 1, 5, 6, 1, 2]  # decode, one-token prompt, chunk, prompt, decode, chunk
    rows, q = paged(lengths, block_size, kv_heads=2), queries(sum(counts), 2 * group)
    assert_close(varlen(q, rows, counts), dense(q, rows, counts))


@pytest.mark.parametrize("tile", [1 << 24, 60, 17])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_score_in_tiles_of_any_size_equals_the_oracle(
    kind: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen_module, "TILE_ELEMENTS", tile)
    lengths, counts, how = [9, 1, 17, 6, 4, 16, 31], [1, 1, 5, 6, 1, 2, 31], scoring(kind, 6)
    rows, q = paged(lengths, 4, kv_heads=2), queries(sum(counts), 6)
    assert_close(varlen(q, rows, counts, how=how), dense(q, rows, counts, how))


@pytest.mark.parametrize("count", range(1, 10))
def test_a_chunk_of_any_size_equals_the_oracle(count: int) -> None:
    rows, q = paged([9], 4, kv_heads=2), queries(count, 4)
    assert_close(varlen(q, rows, [count]), dense(q, rows, [count]))


@pytest.mark.parametrize("length", lengths_around(4))
def test_a_prompt_that_ends_at_any_place_of_a_block_equals_the_oracle(length: int) -> None:
    rows, q = paged([length], 4, kv_heads=2), queries(length, 4)
    assert_close(varlen(q, rows, [length]), dense(q, rows, [length]))


def test_cutting_a_prompt_into_chunks_changes_nothing() -> None:
    rows, q = paged([13], 4, kv_heads=2), queries(13, 4)
    whole = varlen(q, rows, [13])
    for end, count in ((5, 5), (6, 1), (13, 7)):
        part = paged([13], 4, kv_heads=2)
        part.context_lens[:] = end
        torch.testing.assert_close(varlen(q[end - count : end], part, [count]), whole[end - count : end])


def test_rows_and_tokens_beyond_the_step_return_zeros() -> None:
    rows, q = paged([5, 3], 4, kv_heads=2), queries(7, 4)
    q[4:] = math.nan
    got = varlen(q, rows, [3, 1], padded_rows=3)
    assert_close(got[:4], dense(q, rows, [3, 1]))
    assert torch.equal(got[4:], torch.zeros_like(got[4:]))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_recycled_block_full_of_poison_reaches_no_row(poison: float) -> None:
    """What an earlier owner left behind this row's tokens, in its last block and in blocks it does not own."""
    rows, q = paged([9, 5, 2], 4, kv_heads=2), queries(6, 4)
    for cache in (rows.k_cache, rows.v_cache):
        cache[cache.isnan()] = poison
    assert_close(varlen(q, rows, [1, 3, 2]), dense(q, rows, [1, 3, 2]))
    got = decode_attention(q[:3], rows.k_cache, rows.v_cache, rows.block_table, rows.context_lens, PLAIN)
    want = [oracle(q[i : i + 1], rows.keys[i], rows.values[i]) for i in range(3)]
    assert_close(got, torch.cat(want))


def test_the_operator_in_bfloat16_is_near_the_oracle() -> None:
    rows, q = paged([9, 12], 4, 2, torch.bfloat16), queries(13, 4, torch.bfloat16)
    got = varlen(q, rows, [1, 12])
    assert got.dtype is torch.bfloat16
    assert_close(got, dense(q, rows, [1, 12]))


def test_the_operator_keeps_torchs_rules_for_custom_operators() -> None:
    """Schema, fake tensor and dispatch: what ``torch.compile`` relies on."""
    rows, q = paged([5, 3], 4, kv_heads=2), queries(4, 4)
    ends = torch.tensor([0, 3, 4], dtype=torch.int32)
    args = (q, rows.k_cache.nan_to_num(), rows.v_cache.nan_to_num(), rows.block_table, rows.context_lens, ends, SCALE)
    torch.library.opcheck(torch.ops.ostinato.varlen_attention.default, args)


# Writing.


def test_tokens_are_written_at_their_slots_and_nowhere_else() -> None:
    cache = torch.zeros(3, 2, 1, 4)
    write_pages(cache, torch.ones(2, 1, 4) * torch.tensor([1.0, 2.0]).view(2, 1, 1), torch.tensor([5, 2]))
    assert cache[..., 0, 0].tolist() == [[0, 0], [2, 0], [0, 1]]
