"""The last sampling kernels: the draw of a row that is still open, by rejection.

The first of all tokens to arrive is the draw if the filters keep it. If not, they keep nothing that is not likelier
(each keeps the likeliest so and so many), so the first of the likelier ones is tried next. This needs no threshold,
and gives the token that one would give. ``weigh_kernel`` (rows, splits) says of the first token what is likelier,
``settle_kernel`` (rows,) accepts it, or goes on by itself.
"""

# mypy: disable-error-code="no-untyped-def, misc, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from ostinato.layers.kernels.sampling_row import (
    DIGITS,
    FAILED,
    INF,
    INPUTS,
    PENDING,
    TOP_SHIFT,
    best_bid,
    inverse,
    last_blocked,
    order_bits,
    read_logits,
)


@triton.jit(do_not_specialize_on_alignment=INPUTS)
def weigh_kernel(
    logits,
    row_stride,
    vocab,
    temperature,
    top_k,
    top_p,
    blocked_ids,
    blocked,
    row_peak,
    arrivals,
    bidders,
    counts_above,
    masses_above,
    out,
    splits,
    SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCKED: tl.constexpr,
    BLOCKED_TILE: tl.constexpr,
):
    """How many tokens of a chunk, and what mass, are likelier than the first to arrive: two ``[rows, splits]``.

    For the rows that are ``PENDING`` in ``out [rows]`` and have top-k or top-p.
    """
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    filtered = (tl.load(top_k + row) < vocab) | (tl.load(top_p + row) < 1)
    if (tl.load(out + row) == PENDING) & filtered:
        token = split * CHUNK + tl.arange(0, CHUNK)
        logits += row * row_stride
        blocked_ids += row * BLOCKED
        blocked += row * BLOCKED
        num_blocked = last_blocked(blocked, BLOCKED, BLOCKED_TILE)
        peak, heat = tl.load(row_peak + row), inverse(tl.load(temperature + row))
        bids = _of_splits(arrivals + row * splits, splits, INF, SPLITS)
        names = _of_splits(bidders + row * splits, splits, 0, SPLITS)
        _, _, first = _earliest(bids, names, SPLITS)
        limit = peak - read_logits(logits, first, first < vocab, blocked_ids, blocked, num_blocked)
        gap = peak - read_logits(logits, token, token < vocab, blocked_ids, blocked, num_blocked)
        tl.store(counts_above + row * splits + split, tl.sum((gap < limit).to(tl.int32), 0))
        tl.store(masses_above + row * splits + split, tl.sum(tl.where(gap < limit, tl.exp(-gap * heat), 0.0), 0))


@triton.jit(do_not_specialize_on_alignment=INPUTS)
def settle_kernel(
    logits,
    row_stride,
    vocab,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    position,
    blocked_ids,
    blocked,
    row_peak,
    row_mass,
    arrivals,
    bidders,
    counts_above,
    masses_above,
    out,
    splits,
    SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCKED: tl.constexpr,
    BLOCKED_TILE: tl.constexpr,
):
    """Settle the rows that are ``PENDING`` in ``out [rows] int64``, from each chunk's bid ``[rows, splits]``.

    A chunk's bid, once its bidder is out, still says how early the others of the chunk can be at best: the chunk is
    looked at again only when no other has an earlier bid.
    """
    row = tl.program_id(0).to(tl.int64)
    if tl.load(out + row) == PENDING:
        logits += row * row_stride
        blocked_ids += row * BLOCKED
        blocked += row * BLOCKED
        num_blocked = last_blocked(blocked, BLOCKED, BLOCKED_TILE)
        most, nucleus, least = tl.maximum(tl.load(top_k + row), 1.0), tl.load(top_p + row), tl.load(min_p + row)
        peak, heat, mass = tl.load(row_peak + row), inverse(tl.load(temperature + row)), tl.load(row_mass + row)
        if (most < vocab) & (nucleus < 1):
            mass = _mass_of_top_k(logits, vocab, blocked_ids, blocked, num_blocked, peak, heat, most, TILE)
        share = tl.where(nucleus < 1, nucleus * mass, INF)
        bids = _of_splits(arrivals + row * splits, splits, INF, SPLITS)
        names = _of_splits(bidders + row * splits, splits, 0, SPLITS)
        bid, chunk, token = _earliest(bids, names, SPLITS)
        limit = peak - read_logits(logits, token, token < vocab, blocked_ids, blocked, num_blocked)
        if bid == INF:
            token = tl.full((), FAILED, tl.int32)
        elif (most < vocab) | (nucleus < 1):
            above = tl.sum(_of_splits(counts_above + row * splits, splits, 0, SPLITS), 0)
            mass_above = tl.sum(_of_splits(masses_above + row * splits, splits, 0.0, SPLITS), 0)
            if (above >= most) | ((mass_above >= share) & (above > 0)):
                token = tl.full((), PENDING, tl.int32)
        while token == PENDING:
            bid, chunk, name = _earliest(bids, names, SPLITS)
            gap = peak - read_logits(logits, name, name < vocab, blocked_ids, blocked, num_blocked)
            if bid == INF:
                token = tl.full((), FAILED, tl.int32)
            elif gap < limit:
                limit = gap
                above, mass_above = _likelier(logits, vocab, blocked_ids, blocked, num_blocked, peak, heat, gap, TILE)
                if (above < most) & ((mass_above < share) | (above == 0)):
                    token = name
            else:
                bid, name = best_bid(
                    logits,
                    chunk * CHUNK,
                    vocab,
                    blocked_ids,
                    blocked,
                    num_blocked,
                    peak,
                    heat,
                    least,
                    limit,
                    tl.load(seed + row),
                    tl.load(position + row),
                    CHUNK,
                )
                bids = tl.where(tl.arange(0, SPLITS) == chunk, bid, bids)
                names = tl.where(tl.arange(0, SPLITS) == chunk, name, names)
        tl.store(out + row, token.to(tl.int64))


@triton.jit
def _of_splits(values, splits, other, SPLITS: tl.constexpr):
    """A row's ``values``, one for each split, padded with ``other``: ``[SPLITS]``."""
    split = tl.arange(0, SPLITS)
    return tl.load(values + split, mask=split < splits, other=other)


@triton.jit
def _earliest(bids, names, SPLITS: tl.constexpr):
    """The earliest of ``bids [SPLITS]``, the first of equals: (it, its chunk, its token)."""
    bid, chunk = tl.min(bids, 0, return_indices=True)
    return bid, chunk, tl.sum(tl.where(tl.arange(0, SPLITS) == chunk, names, 0), 0)


@triton.jit
def _likelier(logits, vocab, blocked_ids, blocked, num_blocked, peak, heat, limit, TILE: tl.constexpr):
    """How many tokens have a gap below ``limit``, and their mass."""
    above, mass = tl.zeros((TILE,), tl.int32), tl.zeros((TILE,), tl.float32)
    for start in range(0, vocab, TILE):
        token = start + tl.arange(0, TILE)
        gap = peak - read_logits(logits, token, token < vocab, blocked_ids, blocked, num_blocked)
        above += (gap < limit).to(tl.int32)
        mass += tl.where(gap < limit, tl.exp(-gap * heat), 0.0)
    return tl.sum(above, 0), tl.sum(mass, 0)


@triton.jit
def _mass_of_top_k(logits, vocab, blocked_ids, blocked, num_blocked, peak, heat, most, TILE: tl.constexpr):
    """The mass of the ``most`` likeliest tokens and of those tied with the last of them.

    Its gap's order bits are found from the top, three at a time: the least number within which there are enough.
    """
    digit = tl.arange(0, DIGITS)
    bits = tl.zeros((), tl.int32)
    for step in range(11):  # 31 bits; the last step decides one
        shift = tl.maximum(TOP_SHIFT - 3 * step, 0)
        trial = bits + ((digit + 1) << shift) - 1  # 2^31 - 1 at most, by way of an overflow
        within = tl.zeros((DIGITS,), tl.int32)
        for start in range(0, vocab, TILE):
            token = start + tl.arange(0, TILE)
            gap = peak - read_logits(logits, token, token < vocab, blocked_ids, blocked, num_blocked)
            within += tl.sum((order_bits(gap)[None, :] <= trial[:, None]).to(tl.int32), 1)
        bits += tl.sum((within < most).to(tl.int32), 0) << shift
    mass = tl.zeros((TILE,), tl.float32)
    for start in range(0, vocab, TILE):
        token = start + tl.arange(0, TILE)
        gap = peak - read_logits(logits, token, token < vocab, blocked_ids, blocked, num_blocked)
        mass += tl.where(order_bits(gap) <= bits, tl.exp(-gap * heat), 0.0)
    return tl.sum(mass, 0)
