"""The sampling kernels that put a row's chunks together, one program a row: the argmax, and the draw among a few.

Of the tokens that top-k, top-p and min-p keep there are mostly few. The groups of neighbouring tokens whose largest
logit is high enough hold them all, so ``select_kernel`` reads these groups alone, lists the candidates, counts for each
of them how many candidates and how much mass are likelier, and draws. Where the candidates are too many, or not
certainly all that are kept, the row stays ``PENDING``.
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
    exponential,
    inverse,
    last_blocked,
    noise_word,
    order_bits,
    read_logits,
)

BOUND_STEPS = tl.constexpr(6)
"""Of the search for a bound, three bits each: a gap is then known to one part in a thousand, upwards."""
BOUND_ROUNDING = tl.constexpr((1 << 28 - 3 * 5) - 1)
"""What the digits that were not searched for are at most."""
MOST_WANTED = tl.constexpr(128)
"""Groups that a row without top-k looks at."""
RIVALS = tl.constexpr(16)
"""Candidates that the others are compared with at a time."""


@triton.jit
def argmax_kernel(peaks, peak_tokens, out, splits, SPLITS: tl.constexpr):
    """The argmax of each row ``[rows] int64`` from those of its chunks ``[rows, splits]``; ``FAILED`` if not finite."""
    row = tl.program_id(0).to(tl.int64)
    peak, token, _ = _row_peak(peaks + row * splits, peak_tokens + row * splits, splits, SPLITS)
    tl.store(out + row, tl.where((peak > -INF) & (peak < INF), token, FAILED).to(tl.int64))


@triton.jit
def _row_peak(peaks, peak_tokens, splits, SPLITS: tl.constexpr):
    """A row's largest logit, its first token, and the peaks of the row's chunks ``[SPLITS]``."""
    split = tl.arange(0, SPLITS)
    chunk_peaks = tl.load(peaks + split, mask=split < splits, other=-INF)
    peak, first = tl.max(chunk_peaks, 0, return_indices=True)
    return peak, tl.load(peak_tokens + first), chunk_peaks


@triton.jit(do_not_specialize_on_alignment=INPUTS)
def select_kernel(
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
    peaks,
    peak_tokens,
    masses,
    group_peaks,
    num_groups,
    shortlist,
    candidates,
    gaps,
    row_peak,
    row_mass,
    out,
    splits,
    SPLITS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
    BLOCKED: tl.constexpr,
    BLOCKED_TILE: tl.constexpr,
):
    """Settle greedy rows, rows that fail, and rows whose kept tokens are few; the others are ``PENDING`` in ``out``.

    Scratch, all ``[rows, CAPACITY]``: ``shortlist`` (groups), ``candidates`` (tokens), ``gaps``. ``row_peak, row_mass
    [rows]`` are for the kernels that follow.
    """
    row = tl.program_id(0).to(tl.int64)
    peak, token, chunk_peaks = _row_peak(peaks + row * splits, peak_tokens + row * splits, splits, SPLITS)
    degrees = tl.load(temperature + row)
    most, nucleus, least = tl.maximum(tl.load(top_k + row), 1.0), tl.load(top_p + row), tl.load(min_p + row)
    tl.store(row_peak + row, peak)
    if (peak == -INF) | (peak == INF):
        token = tl.full((), FAILED, tl.int32)
    elif degrees > 0:
        token = tl.full((), PENDING, tl.int32)
        if (most < vocab) | (nucleus < 1) | (least > 0):
            heat = inverse(degrees)
            split = tl.arange(0, SPLITS)
            chunk_masses = tl.load(masses + row * splits + split, mask=split < splits, other=0.0)
            mass = tl.sum(chunk_masses * tl.exp((chunk_peaks - peak) * heat), 0)
            tl.store(row_mass + row, mass)
            bound = _bound(group_peaks + row * num_groups, num_groups, peak, most, vocab, GROUPS, CAPACITY)
            count = _list_groups(
                group_peaks + row * num_groups, num_groups, peak, bound, shortlist + row * CAPACITY, GROUPS, CAPACITY
            )
            if count <= CAPACITY:
                count = _list_candidates(
                    logits + row * row_stride,
                    vocab,
                    blocked_ids + row * BLOCKED,
                    blocked + row * BLOCKED,
                    last_blocked(blocked + row * BLOCKED, BLOCKED, BLOCKED_TILE),
                    peak,
                    bound,
                    shortlist + row * CAPACITY,
                    count,
                    candidates + row * CAPACITY,
                    gaps + row * CAPACITY,
                    GROUP,
                    CAPACITY,
                    TILE,
                )
            if count <= CAPACITY:
                token = _draw_among(
                    candidates + row * CAPACITY,
                    gaps + row * CAPACITY,
                    count,
                    bound,
                    vocab,
                    heat,
                    most,
                    nucleus,
                    least,
                    mass,
                    tl.load(seed + row),
                    tl.load(position + row),
                    CAPACITY,
                )
    tl.store(out + row, token.to(tl.int64))


@triton.jit
def _bound(group_peaks, num_groups, peak, most, vocab, GROUPS: tl.constexpr, CAPACITY: tl.constexpr):
    """The order bits up to which a token is a candidate.

    The k-th largest of the groups' peaks is at most the k-th largest logit. Rounded upwards, so that the search is
    short. Everything is a candidate where all fits.
    """
    group = tl.arange(0, GROUPS)
    bits = order_bits(peak - tl.load(group_peaks + group, mask=group < num_groups, other=-INF))
    without_top_k = tl.minimum(MOST_WANTED, tl.maximum(num_groups // 4, 1))
    wanted = tl.where(most < vocab, tl.minimum(most, num_groups).to(tl.int32), without_top_k)
    digit = tl.arange(0, DIGITS)
    bound = tl.zeros((), tl.int32)
    for step in range(BOUND_STEPS):
        shift = TOP_SHIFT - 3 * step
        trial = bound + ((digit + 1) << shift) - 1  # 2^31 - 1 at most, by way of an overflow
        within = tl.sum((bits[None, :] <= trial[:, None]).to(tl.int32), 1)
        bound += tl.sum((within < wanted).to(tl.int32), 0) << shift
    return tl.where(vocab <= CAPACITY, 0x7FFFFFFF, bound + BOUND_ROUNDING)


@triton.jit
def _list_groups(group_peaks, num_groups, peak, bound, shortlist, GROUPS: tl.constexpr, CAPACITY: tl.constexpr):
    """List the groups that have a token within ``bound``, in order; returns how many there are, listed or not."""
    group = tl.arange(0, GROUPS)
    bits = order_bits(peak - tl.load(group_peaks + group, mask=group < num_groups, other=-INF))
    chosen = (group < num_groups) & (bits <= bound)
    place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(shortlist + place, group, mask=chosen & (place < CAPACITY))
    tl.debug_barrier()  # the list is read by other threads than wrote it
    return tl.sum(chosen.to(tl.int32), 0)


@triton.jit
def _list_candidates(
    logits,
    vocab,
    blocked_ids,
    blocked,
    num_blocked,
    peak,
    bound,
    shortlist,
    num_groups,
    candidates,
    gaps,
    GROUP: tl.constexpr,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
):
    """List the tokens within ``bound`` of the groups on the shortlist, and their gaps; returns how many there are.

    In the order of the tokens. More than ``CAPACITY``: the list is not complete.
    """
    count = tl.zeros((), tl.int32)
    for start in range(0, num_groups, TILE // GROUP):
        slot = start + tl.arange(0, TILE // GROUP)
        group = tl.load(shortlist + slot, mask=slot < num_groups, other=0)
        tokens = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        inside = (slot < num_groups)[:, None] & (tokens < vocab)
        tile = read_logits(logits, tokens, inside, blocked_ids, blocked, num_blocked)
        token, gap = tl.reshape(tokens, (TILE,)), peak - tl.reshape(tile, (TILE,))
        chosen = tl.reshape(inside, (TILE,)) & (order_bits(gap) <= bound)
        place = count + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(candidates + place, token, mask=chosen & (place < CAPACITY))
        tl.store(gaps + place, gap, mask=chosen & (place < CAPACITY))
        count += tl.sum(chosen.to(tl.int32), 0)
    tl.debug_barrier()
    return count


@triton.jit
def _draw_among(
    candidates,
    gaps,
    count,
    bound,
    vocab,
    heat,
    most,
    nucleus,
    least,
    mass,
    seed,
    position,
    CAPACITY: tl.constexpr,
):
    """The draw among the candidates that are kept; ``PENDING`` where others may be kept too.

    Top-k keeps a token if fewer than k are likelier, top-p if less than its share of what top-k keeps is.
    """
    own = tl.arange(0, CAPACITY)
    gap = tl.load(gaps + own, mask=own < count, other=INF)
    token = tl.load(candidates + own, mask=own < count, other=0)
    likelihood = tl.exp(-gap * heat)
    above, mass_above = tl.zeros((CAPACITY,), tl.int32), tl.zeros((CAPACITY,), tl.float32)
    for start in range(0, count, RIVALS):
        other = start + tl.arange(0, RIVALS)
        rival = tl.load(gaps + other, mask=other < count, other=INF)
        likelier = rival[:, None] < gap[None, :]
        above += tl.sum(likelier.to(tl.int32), 0)
        mass_above += tl.sum(tl.where(likelier, tl.exp(-rival * heat)[:, None], 0.0), 0)
    ranked = above < most
    limited = most < vocab
    mass = tl.where(limited, tl.sum(tl.where(ranked, likelihood, 0.0), 0), mass)
    share = tl.where(nucleus < 1, nucleus * mass, INF)
    kept = ranked & ((mass_above < share) | (above == 0)) & (likelihood >= least)
    time = exponential(noise_word(token, seed, position)) * tl.exp(gap * heat)
    _, first = tl.min(tl.where(kept & (own < count), time, INF), 0, return_indices=True)

    by_rank = limited & (count >= most)
    by_mass = (most >= vocab) & (tl.sum(likelihood, 0) >= share)
    farthest = tl.exp(-tl.minimum(bound, 0x7F800000).to(tl.float32, bitcast=True) * heat)
    by_floor = ((most >= vocab) | (nucleus >= 1)) & (farthest < least)
    complete = by_rank | by_mass | by_floor | (count == vocab)
    return tl.where(complete, tl.load(candidates + first), PENDING)
