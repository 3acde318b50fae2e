"""The sampling kernels that share a row out among several programs: ``(rows, splits)``, one chunk of it each.

``scan_kernel`` reads every logit once, for what can be said without noise. ``bid_kernel`` does the noise, for the rows
that could not be settled without looking at all of their tokens.
"""

# mypy: disable-error-code="no-untyped-def, misc, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from ostinato.layers.kernels.sampling_row import INF, INPUTS, PENDING, best_bid, inverse, last_blocked, lowered


@triton.jit(do_not_specialize_on_alignment=INPUTS)
def scan_kernel(
    logits,
    row_stride,
    vocab,
    temperature,
    top_k,
    top_p,
    min_p,
    blocked_ids,
    blocked,
    peaks,
    peak_tokens,
    masses,
    group_peaks,
    num_groups,
    DRAWN: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCKED: tl.constexpr,
    BLOCKED_TILE: tl.constexpr,
):
    """Each chunk's largest logit and its first token; for a filtered row its mass and its groups' largest also.

    ``peaks, peak_tokens, masses [rows, splits]``; ``group_peaks [rows, num_groups]``. Without ``DRAWN`` the row is only
    asked for its argmax. A chunk's mass is relative to its own peak.
    """
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = split * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row * row_stride + token, mask=token < vocab, other=-INF)
    num_blocked = 0
    if DRAWN:
        blocked_ids += row * BLOCKED
        blocked += row * BLOCKED
        num_blocked = last_blocked(blocked, BLOCKED, BLOCKED_TILE)
    x = lowered(x, token, blocked_ids, blocked, num_blocked)
    peak, first = tl.max(x, 0, return_indices=True)
    cell = row * tl.num_programs(1) + split
    tl.store(peaks + cell, peak)
    tl.store(peak_tokens + cell, split * CHUNK + first)
    if DRAWN:
        degrees = tl.load(temperature + row)
        narrowed = (tl.load(top_k + row) < vocab) | (tl.load(top_p + row) < 1) | (tl.load(min_p + row) > 0)
        if (degrees > 0) & narrowed:
            reference = tl.where(peak > -INF, peak, 0.0)  # -inf less -inf is no number
            tl.store(masses + cell, tl.sum(tl.exp((x - reference) * inverse(degrees)), 0))
            group = split * (CHUNK // GROUP) + tl.arange(0, CHUNK // GROUP)
            highest = tl.max(tl.reshape(x, (CHUNK // GROUP, GROUP)), 1)
            tl.store(group_peaks + row * num_groups + group, highest, mask=group < num_groups)


@triton.jit(do_not_specialize_on_alignment=INPUTS)
def bid_kernel(
    logits,
    row_stride,
    vocab,
    temperature,
    min_p,
    seed,
    position,
    blocked_ids,
    blocked,
    row_peak,
    out,
    arrivals,
    bidders,
    CHUNK: tl.constexpr,
    BLOCKED: tl.constexpr,
    BLOCKED_TILE: tl.constexpr,
):
    """For a row that is ``PENDING`` in ``out [rows]``: each chunk's draw, in ``arrivals, bidders [rows, splits]``."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if tl.load(out + row) == PENDING:
        blocked_ids += row * BLOCKED
        blocked += row * BLOCKED
        arrival, bidder = best_bid(
            logits + row * row_stride,
            split * CHUNK,
            vocab,
            blocked_ids,
            blocked,
            last_blocked(blocked, BLOCKED, BLOCKED_TILE),
            tl.load(row_peak + row),
            inverse(tl.load(temperature + row)),
            tl.load(min_p + row),
            INF,
            tl.load(seed + row),
            tl.load(position + row),
            CHUNK,
        )
        cell = row * tl.num_programs(1) + split
        tl.store(arrivals + cell, arrival)
        tl.store(bidders + cell, bidder)
