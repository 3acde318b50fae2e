"""Causal attention of many new tokens per row over the row's pages, which hold the new keys and values already.

Program (tile of queries, KV head) packs the query heads of its KV head into one matrix with the tile's tokens, and
visits the tiles of keys that any of them may see (Dao et al. 2022). Which row a program serves it finds on the device,
so the grid depends on shapes alone and a captured launch serves any division of the tokens into rows. Rows with one new
token are left to the decode kernel, which shares a long context out among programs.
"""

# mypy: disable-error-code="no-untyped-def, misc, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ostinato.layers.attention.scoring import Scoring
from ostinato.layers.kernels.launch import MIN_DOT, dtype_name, power_of_two, readable, strides
from ostinato.layers.kernels.paged_decode import paged_decode
from ostinato.layers.kernels.specimen import Specimen
from ostinato.layers.kernels.tile import LOG2_E, narrowed, visit_tile


class VarlenTile(NamedTuple):
    """How the kernel is compiled for one head size, dtype and group."""

    queries: int
    """Rows of the matrix: query heads of a KV head times tokens."""
    keys: int
    num_warps: int
    num_stages: int


def varlen_tile(head_dim: int, dtype: torch.dtype, group: int) -> VarlenTile:
    """Tiles that spill next to nothing on any target (see ``build``), in the 99 KiB that the smallest GPUs have."""
    padded = power_of_two(head_dim)
    if dtype.itemsize == 4:  # products without tensor cores, whose operands are registers
        tile = VarlenTile(32, 16, 8, 2)
    elif padded > 128:
        tile = VarlenTile(64, 32, 8, 3)
    elif padded > 64:  # registers leave room for one program on a multiprocessor: it keeps two tiles on their way
        tile = VarlenTile(128, 64 if padded == head_dim else 32, 8, 5)
    else:
        tile = VarlenTile(128, 64, 8, 3)
    return tile._replace(queries=max(tile.queries, power_of_two(group)))


@triton.jit(
    do_not_specialize=["rows", "stride_table"],
    do_not_specialize_on_alignment=["block_table", "context_lens", "cu_seqlens_q"],
)
def _varlen_kernel(
    q,
    k_cache,
    v_cache,
    block_table,
    context_lens,
    cu_seqlens_q,
    slopes,
    sinks,
    out,
    scale,
    rows,
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
    PADDED_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    TOKENS: tl.constexpr = QUERIES // GROUP
    program, kv_head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)  # the longest work first
    # Row r's first tile is cu_seqlens_q[r] // TOKENS + r: it grows with r, and leaves a row as many tiles as it needs.
    each = tl.arange(0, PADDED_ROWS)
    firsts = tl.load(cu_seqlens_q + each, mask=each < rows, other=0) // TOKENS + each
    row = (tl.sum(((each < rows) & (firsts <= program)).to(tl.int32), 0) - 1).to(tl.int64)
    start = tl.load(cu_seqlens_q + row)
    new = tl.load(cu_seqlens_q + row + 1) - start
    begin = (program - (start // TOKENS + row).to(tl.int32)) * TOKENS  # the tile's first token, of the row's new ones
    if (new <= 1) | (begin >= new):
        return
    length = tl.load(context_lens + row)
    cached = length - new

    packed = tl.arange(0, QUERIES)
    query = begin + packed // GROUP
    head = kv_head * GROUP + packed % GROUP
    real = (packed < TOKENS * GROUP) & (query < new)
    token = (start + query).to(tl.int64)
    dims = tl.arange(0, PADDED_DIM)
    inside = real[:, None] & (dims < HEAD_DIM)[None, :]
    queries = tl.load(q + (token * stride_qt + head * stride_qh)[:, None] + dims[None, :], mask=inside, other=0.0)
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + head, mask=real, other=0.0)

    acc = tl.zeros([QUERIES, PADDED_DIM], tl.float32)
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    if sinks is not None:  # a score that yields nothing
        highest = tl.load(sinks + head, mask=real, other=0.0).to(tl.float32) * LOG2_E
        total += 1.0
    position = cached + query
    k_head, v_head = k_cache + kv_head.to(tl.int64) * stride_kh, v_cache + kv_head.to(tl.int64) * stride_vh
    table = block_table + row * stride_table
    end = cached + tl.minimum(begin + TOKENS, new)  # beyond the last query's own position
    first = 0
    masked_from = (cached + begin + 1) // TILE * TILE  # up to here every query sees every key
    if WINDOW > 0:
        first = tl.maximum(cached + begin - WINDOW + 1, 0)
        masked_from = first // TILE * TILE
    else:
        for at in range(0, masked_from, TILE):
            acc, highest, total = visit_tile(
                acc, highest, total, queries, position, slope, scale, k_head, v_head, table, at, first, end,
                stride_kb, stride_ks, stride_vb, stride_vs,
                HEAD_DIM, PADDED_DIM, BLOCK_SIZE, TILE, WINDOW, SOFTCAP, False,
            )  # fmt: skip
    for at in range(masked_from, end, TILE):
        acc, highest, total = visit_tile(
            acc, highest, total, queries, position, slope, scale, k_head, v_head, table, at, first, end,
            stride_kb, stride_ks, stride_vb, stride_vs,
            HEAD_DIM, PADDED_DIM, BLOCK_SIZE, TILE, WINDOW, SOFTCAP, True,
        )  # fmt: skip

    result = narrowed(acc / tl.where(total > 0, total, 1.0)[:, None], out.dtype.element_ty)
    at_out = (token * (tl.num_programs(1) * GROUP) + head) * HEAD_DIM
    tl.store(out + at_out[:, None] + dims[None, :], result, mask=inside)


def paged_varlen(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    host: Tensor | None,
    scoring: Scoring,
) -> Tensor:
    """Causal attention of each row's new tokens over its whole context, which the pages hold, new tokens included.

    q ``[tokens, num_heads, head_dim]``; row ``r`` owns tokens ``cu_seqlens_q[r] : cu_seqlens_q[r + 1]`` (int32, the
    first is 0), the last ones of its ``context_lens[r]``. Tokens of no row, beyond ``cu_seqlens_q[-1]``, return zeros.
    ``host [3] int64`` on the CPU, if the caller knows it: most new tokens of a row, longest context, whether any row
    has cached tokens; it saves a launch that would find nothing to do, and changes no result.
    """
    q = readable(q)
    out = q.new_zeros(q.shape)
    (tokens, num_heads, head_dim), rows = q.shape, block_table.shape[0]
    if tokens == 0 or rows == 0:
        return out
    paged_decode(q, k_cache, v_cache, block_table, context_lens, scoring, cu_seqlens_q, out)
    if tokens == 1 or (host is not None and int(host[0]) <= 1):
        return out
    block_size, num_kv_heads = k_cache.shape[1], k_cache.shape[2]
    group = num_heads // num_kv_heads
    tile = varlen_tile(head_dim, q.dtype, group)
    _varlen_kernel[tokens // (tile.queries // group) + rows, num_kv_heads](
        q, k_cache, v_cache, block_table, context_lens, cu_seqlens_q, scoring.slopes, scoring.sinks, out,
        scoring.scale, rows, *strides(q), *strides(k_cache), *strides(v_cache), block_table.stride(0),
        HEAD_DIM=head_dim, PADDED_DIM=max(MIN_DOT, power_of_two(head_dim)),
        GROUP=group, PADDED_ROWS=power_of_two(rows), BLOCK_SIZE=block_size,
        QUERIES=tile.queries, TILE=tile.keys, WINDOW=scoring.window, SOFTCAP=scoring.softcap,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return out


def specimens() -> list[Specimen]:
    """The models that matter most, then each dtype, head size, block size, group and scoring variant at least once."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return [
        _specimen("plain", bf16, head_dim=128, block_size=16, group=8),
        _specimen("plain", fp16, head_dim=128, block_size=256, group=1),
        _specimen("plain", fp16, head_dim=64, block_size=128, group=4),
        _specimen("sinks-window", bf16, head_dim=64, block_size=16, group=8, window=128, sinks=True),
        _specimen("softcap", bf16, head_dim=256, block_size=16, group=4, softcap=50.0),
        _specimen("alibi", bf16, head_dim=80, block_size=4, group=3, alibi=True),
        _specimen("all", bf16, 128, 128, 16, window=4096, softcap=50.0, alibi=True, sinks=True),
        _specimen("plain", fp32, head_dim=128, block_size=16, group=2),
        _specimen("plain", fp32, head_dim=256, block_size=16, group=1),
    ]


def _specimen(
    variant: str,
    dtype: torch.dtype,
    head_dim: int,
    block_size: int,
    group: int,
    *,
    window: int = 0,
    softcap: float = 0.0,
    alibi: bool = False,
    sinks: bool = False,
) -> Specimen:
    element, tile = dtype_name(dtype), varlen_tile(head_dim, dtype, group)
    stride_names = [name for name in _varlen_kernel.arg_names if name.startswith("stride_")]
    optional = {"slopes": (alibi, "*fp32"), "sinks": (sinks, f"*{element}")}
    return Specimen(
        f"varlen-{variant}-{element}-d{head_dim}-b{block_size}-g{group}",
        _varlen_kernel,
        dict.fromkeys(("q", "k_cache", "v_cache", "out"), f"*{element}")
        | dict.fromkeys(("block_table", "context_lens", "cu_seqlens_q"), "*i32")
        | {"scale": "fp32", "rows": "i32"}
        | {name: kind for name, (given, kind) in optional.items() if given}
        | dict.fromkeys(stride_names, "i32"),
        {
            **{name: None for name, (given, _) in optional.items() if not given},
            "HEAD_DIM": head_dim,
            "PADDED_DIM": max(MIN_DOT, power_of_two(head_dim)),
            "GROUP": group,
            "PADDED_ROWS": 64,
            "BLOCK_SIZE": block_size,
            "QUERIES": tile.queries,
            "TILE": tile.keys,
            "WINDOW": window,
            "SOFTCAP": softcap,
        },
        tile.num_warps,
        tile.num_stages,
        aligned=tuple(name for name in stride_names if name != "stride_table"),
    )
