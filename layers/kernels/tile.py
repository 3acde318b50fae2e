"""What decode and prefill attention share on the device: one tile of a row's pages, taken into a running softmax.

Scores are kept in units of log2, so that ``exp2`` is all the exponentials there are. A query's running state is
``(acc, highest, total)``: the weighted sum of values, the greatest score so far and the sum of the weights, both taken
relative to that score (Milakov & Gimelshein 2018; Dao et al. 2022). Knows no grid and no row.
"""

# mypy: disable-error-code="no-untyped-def, misc, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether ``triton.jit`` gave functions for Triton's interpreter when this module was imported."""
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def product(a, b, acc):
    """``acc + a @ b`` in fp32; fp32 operands are not rounded to tf32. The interpreter knows no bf16 arithmetic."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def narrowed(x, dtype: tl.constexpr):
    """fp32 ``x`` as ``dtype``, rounded to nearest even as the hardware does.

    The interpreter loses a carry into the exponent when it makes bf16, so there the low half is rounded away first.
    """
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return bits.to(tl.float32, bitcast=True).to(dtype)
    else:
        return x.to(dtype)


@triton.jit
def load_rows(base, offsets, readable, HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, MASKED: tl.constexpr):
    """``[len(offsets), PADDED_DIM]`` from ``base + offsets``; zeros where not readable and beyond ``HEAD_DIM``."""
    dims = tl.arange(0, PADDED_DIM)
    pointers = base + offsets[:, None] + dims[None, :]
    if MASKED and HEAD_DIM < PADDED_DIM:
        return tl.load(pointers, mask=readable[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
    elif MASKED:
        return tl.load(pointers, mask=readable[:, None], other=0.0)
    elif HEAD_DIM < PADDED_DIM:
        return tl.load(pointers, mask=(dims < HEAD_DIM)[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def scored(products, distance, slope, scale, SOFTCAP: tl.constexpr):
    """Scores in log2 units of ``products = q k``; distance is key position less query position; see ``Scoring``."""
    if SOFTCAP > 0:
        # tanh(x) = 1 - 2 / (1 + exp(2 x)), right at both ends of the exponential's range
        growth = tl.math.exp2(products * (scale * (2 * LOG2_E / SOFTCAP)))
        scores = (SOFTCAP * LOG2_E) * (1 - 2 / (1 + growth))
    else:
        scores = products * (scale * LOG2_E)
    if slope is not None:
        scores += (slope * LOG2_E)[:, None] * distance
    return scores


@triton.jit
def visit_tile(
    acc,
    highest,
    total,
    q,
    position,
    slope,
    scale,
    k_head,
    v_head,
    table,
    start,
    first,
    end,
    stride_kb,
    stride_ks,
    stride_vb,
    stride_vs,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take keys ``start : start + TILE`` of one KV head into the state of the queries ``q [M, PADDED_DIM]``.

    position ``[M]`` of the queries; slope ``[M]`` or None; table: the row's cells; ``start`` is a multiple of ``TILE``.
    Nothing is read outside ``first : end``. Without ``MASKED`` the caller says that every query sees the whole tile.
    """
    keys_at = start + tl.arange(0, TILE)
    readable = (keys_at >= first) & (keys_at < end)
    if BLOCK_SIZE % TILE == 0:  # a tile lies within one block
        block = tl.load(table + start // BLOCK_SIZE).to(tl.int64)
    elif MASKED:
        block = tl.load(table + keys_at // BLOCK_SIZE, mask=readable, other=0).to(tl.int64)
    else:
        block = tl.load(table + keys_at // BLOCK_SIZE).to(tl.int64)
    slot = keys_at % BLOCK_SIZE

    keys = load_rows(k_head, block * stride_kb + slot * stride_ks, readable, HEAD_DIM, PADDED_DIM, MASKED)
    products = product(q, tl.trans(keys), tl.zeros([q.shape[0], TILE], tl.float32))
    distance = keys_at[None, :] - position[:, None]
    scores = scored(products, distance, slope, scale, SOFTCAP)
    if MASKED:
        visible = readable[None, :] & (distance <= 0)
        if WINDOW > 0:
            visible = visible & (distance > -WINDOW)
        scores = tl.where(visible, scores, float("-inf"))

    new_highest = tl.maximum(highest, tl.max(scores, 1))
    reference = new_highest
    if WINDOW > 0:  # a query may have seen nothing yet: -inf less -inf is no number
        reference = tl.where(new_highest == float("-inf"), 0.0, new_highest)
    weights = tl.math.exp2(scores - reference[:, None])
    shrink = tl.math.exp2(highest - reference)
    total = total * shrink + tl.sum(weights, 1)
    values = load_rows(v_head, block * stride_vb + slot * stride_vs, readable, HEAD_DIM, PADDED_DIM, MASKED)
    acc = product(narrowed(weights, values.dtype), values, acc * shrink[:, None])
    return acc, new_highest, total
