"""Attention of one new token per row over its pages, each row's keys shared out among several programs (split-KV).

Flash-decoding (Dao et al. 2023): program (KV head, row, split) takes an equal share of the tiles that the row may see,
for all query heads of the KV head at once, and a second kernel merges the shares in their order. The grid and the
number of shares depend on shapes alone; lengths are read on the device, so a captured launch serves any of them, and a
share without tiles ends at once. Nothing is added atomically: the same inputs give the same bits.
"""

# mypy: disable-error-code="no-untyped-def, misc, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ostinato.layers.attention.scoring import Scoring
from ostinato.layers.kernels.launch import MIN_DOT, dtype_name, multiprocessors, power_of_two, readable, strides
from ostinato.layers.kernels.specimen import Specimen
from ostinato.layers.kernels.tile import LOG2_E, narrowed, visit_tile

TILE_BYTES = 16 << 10
MAX_SPLITS = 64
PROGRAMS_PER_MULTIPROCESSOR = 4
"""As many as fit on one: all run at once, and each waits for its tiles most of the time."""
MIXED_SPLIT_TOKENS, MAX_MIXED_SPLITS = 4096, 8
"""Beside prompts: a share of that many tokens at most, whatever the rows, of which few have one token."""


class DecodeTile(NamedTuple):
    """How the kernel is compiled for one head size and dtype."""

    tokens: int
    num_warps: int
    num_stages: int


def decode_tile(head_dim: int, dtype: torch.dtype) -> DecodeTile:
    """Tiles whose keys and values are 16 KiB together where that makes 16 tokens, at most 128.

    Five stages keep two tiles on their way and the cells of the next two: in Triton's pipeline a load through another
    load counts twice. Shared memory is then about 40 KiB (fp32 heads of 256: 49), registers about 100: four programs
    fit on a multiprocessor of an A100 or H100, two on a smaller one.
    """
    row_bytes = power_of_two(head_dim) * dtype.itemsize
    tokens = max(MIN_DOT, min(128, TILE_BYTES // (2 * row_bytes)))
    return DecodeTile(tokens, 4, 5 if 2 * row_bytes * tokens <= TILE_BYTES else 3)


def num_splits(rows: int, num_kv_heads: int, capacity: int, num_multiprocessors: int, tile: int) -> int:
    """Shares of each row: as many programs as run at once, two tiles each at least; a power of two.

    ``capacity``: the tokens that a whole table row, or its window, can hold. No function of lengths: a row's bits
    depend on no other row's length.
    """
    fitting = PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors // (rows * num_kv_heads)
    return 1 << max(1, min(fitting, capacity // (2 * tile), MAX_SPLITS)).bit_length() - 1


def mixed_splits(rows: int, num_kv_heads: int, capacity: int, num_multiprocessors: int, tile: int) -> int:
    """``num_splits`` of a step of which few rows have one token, but those may have long contexts."""
    least = power_of_two(max(1, min(capacity // MIXED_SPLIT_TOKENS, MAX_MIXED_SPLITS)))
    return max(least, num_splits(rows, num_kv_heads, capacity, num_multiprocessors, tile))


@triton.jit
def _shares(length, splits, TILE: tl.constexpr, WINDOW: tl.constexpr):
    """A row's first visible token, its first tile, the end of its tiles, and how many tiles a share has (>= 1)."""
    first = 0
    if WINDOW > 0:
        first = tl.maximum(length - WINDOW, 0)
    first_tile = first // TILE
    end_tile = (length + TILE - 1) // TILE
    return first, first_tile, end_tile, tl.maximum((end_tile - first_tile + splits - 1) // splits, 1)


@triton.jit(
    do_not_specialize_on_alignment=["block_table", "context_lens", "cu_seqlens_q"], do_not_specialize=["stride_table"]
)
def _decode_kernel(
    q,
    k_cache,
    v_cache,
    block_table,
    context_lens,
    cu_seqlens_q,
    slopes,
    sinks,
    out,
    log_sums,
    scale,
    stride_qt,
    stride_qh,
    stride_kb,
    stride_ks,
    stride_kh,
    stride_vb,
    stride_vs,
    stride_vh,
    stride_table,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SPLIT: tl.constexpr,
):
    kv_head, row, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    token = row
    if cu_seqlens_q is not None:
        token = tl.load(cu_seqlens_q + row).to(tl.int64)
        if tl.load(cu_seqlens_q + row + 1) - token != 1:
            return
    length = tl.load(context_lens + row)
    first, first_tile, end_tile, share = _shares(length, tl.num_programs(2), TILE, WINDOW)
    begin = first_tile + split * share
    if SPLIT and begin >= end_tile:
        return

    member = tl.arange(0, PADDED_GROUP)
    real = member < GROUP
    head = kv_head * GROUP + member
    dims = tl.arange(0, PADDED_DIM)
    inside = real[:, None] & (dims < HEAD_DIM)[None, :]
    queries = tl.load(q + token * stride_qt + (head * stride_qh)[:, None] + dims[None, :], mask=inside, other=0.0)
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + head, mask=real, other=0.0)

    acc = tl.zeros([PADDED_GROUP, PADDED_DIM], tl.float32)
    highest = tl.full([PADDED_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([PADDED_GROUP], tl.float32)
    if sinks is not None:  # a score that yields nothing, seen once
        sink = tl.load(sinks + head, mask=real, other=0.0).to(tl.float32) * LOG2_E
        highest = tl.where(split == 0, sink, highest)
        total = tl.where(split == 0, 1.0, total)
    position = tl.full([PADDED_GROUP], 0, tl.int32) + (length - 1)
    k_head, v_head = k_cache + kv_head.to(tl.int64) * stride_kh, v_cache + kv_head.to(tl.int64) * stride_vh
    table = block_table + row * stride_table
    for tile in range(begin, tl.minimum(begin + share, end_tile)):
        acc, highest, total = visit_tile(
            acc, highest, total, queries, position, slope, scale, k_head, v_head, table, tile * TILE, first, length,
            stride_kb, stride_ks, stride_vb, stride_vs,
            HEAD_DIM, PADDED_DIM, BLOCK_SIZE, TILE, WINDOW, SOFTCAP, True,
        )  # fmt: skip

    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    num_heads = tl.num_programs(0) * GROUP
    if SPLIT:
        at = (row * num_heads + head) * tl.num_programs(2) + split
        tl.store(log_sums + at, highest + tl.math.log2(total), mask=real)
        tl.store(out + (at * HEAD_DIM)[:, None] + dims[None, :], result, mask=inside)
    else:
        at = (token * num_heads + head) * HEAD_DIM
        tl.store(out + at[:, None] + dims[None, :], narrowed(result, out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["context_lens", "cu_seqlens_q"])
def _merge_kernel(
    partial,
    log_sums,
    context_lens,
    cu_seqlens_q,
    out,
    splits,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
):
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    token = row
    if cu_seqlens_q is not None:
        token = tl.load(cu_seqlens_q + row).to(tl.int64)
        if tl.load(cu_seqlens_q + row + 1) - token != 1:
            return
    _, first_tile, end_tile, share = _shares(tl.load(context_lens + row), splits, TILE, WINDOW)
    each, dims = tl.arange(0, PADDED_SPLITS), tl.arange(0, PADDED_DIM)
    used = each < (end_tile - first_tile + share - 1) // share  # the others wrote nothing
    at = (row * tl.num_programs(0) + head) * splits + each
    logs = tl.load(log_sums + at, mask=used, other=float("-inf"))
    weights = tl.math.exp2(logs - tl.max(logs, 0))
    inside = used[:, None] & (dims < HEAD_DIM)[None, :]
    shares = tl.load(partial + (at * HEAD_DIM)[:, None] + dims[None, :], mask=inside, other=0.0)
    merged = tl.sum(shares * weights[:, None], 0) / tl.sum(weights, 0)
    at_out = (token * tl.num_programs(0) + head) * HEAD_DIM + dims
    tl.store(out + at_out, narrowed(merged, out.dtype.element_ty), mask=dims < HEAD_DIM)


def paged_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    scoring: Scoring,
    cu_seqlens_q: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Each row's attention over its first ``context_lens`` cached tokens, the last of which is its own.

    q ``[rows, num_heads, head_dim]``; caches ``[num_blocks, block_size, num_kv_heads, head_dim]``; block_table ``[rows,
    width] int32``; context_lens ``[rows] int32``, at least 1. Returns ``[rows, num_heads, head_dim]`` in ``q.dtype``.
    With ``cu_seqlens_q [rows + 1] int32`` and ``out [tokens, num_heads, head_dim]`` (contiguous): only rows that have
    exactly one of q's tokens are computed, into their tokens of ``out``; the rest of it is left as it is.
    """
    q = readable(q)
    (_, num_heads, head_dim), (rows, width) = q.shape, block_table.shape
    block_size, num_kv_heads = k_cache.shape[1], k_cache.shape[2]
    if out is None:
        out = q.new_empty(q.shape)
    if rows == 0:
        return out
    tile = decode_tile(head_dim, q.dtype)
    capacity = min(width * block_size, scoring.window or width * block_size)
    count = num_splits if cu_seqlens_q is None else mixed_splits
    splits = count(rows, num_kv_heads, capacity, multiprocessors(q.device), tile.tokens)
    partial, log_sums = out, None
    if splits > 1:
        partial = q.new_empty(rows, num_heads, splits, head_dim, dtype=torch.float32)
        log_sums = q.new_empty(rows, num_heads, splits, dtype=torch.float32)
    sizes = {"HEAD_DIM": head_dim, "PADDED_DIM": max(MIN_DOT, power_of_two(head_dim)), "TILE": tile.tokens}
    group = num_heads // num_kv_heads
    _decode_kernel[num_kv_heads, rows, splits](
        q, k_cache, v_cache, block_table, context_lens, cu_seqlens_q, scoring.slopes, scoring.sinks, partial, log_sums,
        scoring.scale, *strides(q), *strides(k_cache), *strides(v_cache), block_table.stride(0),
        GROUP=group, PADDED_GROUP=max(MIN_DOT, power_of_two(group)), BLOCK_SIZE=block_size,
        WINDOW=scoring.window, SOFTCAP=scoring.softcap, SPLIT=splits > 1,
        num_warps=tile.num_warps, num_stages=tile.num_stages, **sizes,
    )  # fmt: skip
    if splits > 1:
        _merge_kernel[num_heads, rows](
            partial, log_sums, context_lens, cu_seqlens_q, out, splits,
            PADDED_SPLITS=MAX_SPLITS, WINDOW=scoring.window, num_warps=4, num_stages=1, **sizes,
        )  # fmt: skip
    return out


def specimens() -> list[Specimen]:
    """The models that matter most, then each dtype, head size, block size, group and scoring variant at least once."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return [
        _specimen("plain", bf16, head_dim=128, block_size=16, group=8, split=True),
        _specimen("plain", bf16, head_dim=128, block_size=256, group=1, split=False),
        _specimen("plain", bf16, head_dim=64, block_size=16, group=71, split=True),
        _specimen("mixed", fp16, head_dim=64, block_size=128, group=4, split=True, mixed=True),
        _specimen("sinks-window", bf16, head_dim=64, block_size=16, group=8, split=True, window=128, sinks=True),
        _specimen("softcap", bf16, head_dim=256, block_size=16, group=4, split=True, softcap=50.0),
        _specimen("alibi", bf16, head_dim=80, block_size=4, group=1, split=False, alibi=True),
        _specimen("all", fp16, 256, 128, 16, split=True, window=4096, softcap=50.0, alibi=True, sinks=True),
        _specimen("plain", fp32, head_dim=128, block_size=16, group=2, split=True),
        _specimen("plain", fp32, head_dim=256, block_size=16, group=1, split=True),
        *(_merge_specimen(head_dim) for head_dim in (64, 128, 256)),
    ]


def _specimen(
    variant: str,
    dtype: torch.dtype,
    head_dim: int,
    block_size: int,
    group: int,
    *,
    split: bool,
    mixed: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    alibi: bool = False,
    sinks: bool = False,
) -> Specimen:
    element, tile = dtype_name(dtype), decode_tile(head_dim, dtype)
    stride_names = [name for name in _decode_kernel.arg_names if name.startswith("stride_")]
    optional = {"cu_seqlens_q": (mixed, "*i32"), "slopes": (alibi, "*fp32"), "sinks": (sinks, f"*{element}")}
    optional["log_sums"] = (split, "*fp32")
    return Specimen(
        f"decode-{variant}-{element}-d{head_dim}-b{block_size}-g{group}",
        _decode_kernel,
        dict.fromkeys(("q", "k_cache", "v_cache"), f"*{element}")
        | {"block_table": "*i32", "context_lens": "*i32", "out": "*fp32" if split else f"*{element}", "scale": "fp32"}
        | {name: kind for name, (given, kind) in optional.items() if given}
        | dict.fromkeys(stride_names, "i32"),
        {
            **{name: None for name, (given, _) in optional.items() if not given},
            "HEAD_DIM": head_dim,
            "PADDED_DIM": max(MIN_DOT, power_of_two(head_dim)),
            "GROUP": group,
            "PADDED_GROUP": max(MIN_DOT, power_of_two(group)),
            "BLOCK_SIZE": block_size,
            "TILE": tile.tokens,
            "WINDOW": window,
            "SOFTCAP": softcap,
            "SPLIT": split,
        },
        tile.num_warps,
        tile.num_stages,
        aligned=tuple(name for name in stride_names if name != "stride_table"),
    )


def _merge_specimen(head_dim: int) -> Specimen:
    return Specimen(
        f"merge-bf16-d{head_dim}",
        _merge_kernel,
        {"partial": "*fp32", "log_sums": "*fp32", "context_lens": "*i32", "out": "*bf16", "splits": "i32"},
        {
            "cu_seqlens_q": None,
            "HEAD_DIM": head_dim,
            "PADDED_DIM": power_of_two(head_dim),
            "PADDED_SPLITS": MAX_SPLITS,
            "TILE": decode_tile(head_dim, torch.bfloat16).tokens,
            "WINDOW": 0,
        },
        num_warps=4,
        num_stages=1,
    )
