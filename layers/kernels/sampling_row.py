"""What every pass over a row of logits shares on the device: how logits are read, how likely they are, and their noise.

A token is known by its *gap*, the row's largest logit less its own: 0 for the likeliest, an exact fp32 difference, so
that all passes order the tokens alike. Its likelihood, relative to the likeliest, is ``exp(-gap / temperature)``. Knows
no grid.
"""

# mypy: disable-error-code="no-untyped-def, misc, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from ostinato.layers.sampler import FAILED as _FAILED

INPUTS = ("temperature", "top_k", "top_p", "min_p", "seed", "position", "blocked_ids", "blocked")
"""Arguments that a kernel is not compiled anew for when they are aligned otherwise: slices of one buffer, mostly."""
FAILED = tl.constexpr(_FAILED)
PENDING = tl.constexpr(-2)
"""The token of a row that is not decided yet."""
INF = tl.constexpr(float("inf"))
DIGITS = tl.constexpr(8)
"""Trials of one step of a search: three bits."""
TOP_SHIFT = tl.constexpr(28)
"""Place value of a search's first digit, in bits: the bits of a gap, which has no sign, are 31."""


@triton.jit
def last_blocked(blocked, BLOCKED: tl.constexpr, BLOCKED_TILE: tl.constexpr):
    """How many of a row's ``blocked_ids`` there are to look at: up to the last that counts."""
    entry = tl.arange(0, BLOCKED_TILE)
    mask = tl.load(blocked + entry, mask=entry < BLOCKED, other=0.0)
    return tl.max(tl.where(mask < 0, entry + 1, 0), 0)


@triton.jit
def read_logits(logits, token, readable, blocked_ids, blocked, num_blocked):
    """One row's logits in fp32 at ``token`` (any shape), as ``lowered`` gives them; -inf where not readable."""
    return lowered(tl.load(logits + token, mask=readable, other=-INF), token, blocked_ids, blocked, num_blocked)


@triton.jit
def lowered(x, token, blocked_ids, blocked, num_blocked):
    """Logits ``x`` of ``token`` in fp32, the blocked ones -inf.

    NaN becomes +inf: either fails its row, and maxima carry only the latter.
    """
    x = x.to(tl.float32)
    if blocked_ids is not None:
        for entry in range(num_blocked):
            x += tl.where(token == tl.load(blocked_ids + entry).to(tl.int32), tl.load(blocked + entry), 0.0)
    return tl.where(x < INF, x, INF)


@triton.jit
def inverse(temperature):
    """``1 / temperature`` of a row that is not greedy; finite, so that a gap of 0 stays 0."""
    return tl.minimum(1.0 / temperature, 3e38)


@triton.jit
def order_bits(gap):
    """int32 that orders as ``gap`` does (it is not negative)."""
    return gap.to(tl.int32, bitcast=True)


@triton.jit
def exponential(word):
    """A standard exponential from 32 random bits: ``exp`` of the negated Gumbel noise of ``layers.sampler``.

    ``-log1p(-u)`` with the rounding of ``1 - u`` made good (Kahan; Goldberg 1991, theorem 4).
    """
    u = tl.minimum((word.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.9999999403953552)
    rest = 1.0 - u
    taken = tl.maximum(1.0 - rest, 5.9604644775390625e-08)
    return tl.where(rest == 1.0, u, -tl.log(rest) * (u / taken))


@triton.jit
def noise_word(token, seed, position):
    """First word of Philox-4x32-10 at counter ``(token, position)`` with key ``seed``: ``token``'s shape, uint32."""
    low = (position & 0xFFFFFFFF).to(tl.uint32)
    high = ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    word, _, _, _ = tl.philox(seed, token, 0, low, high)
    return word


@triton.jit
def best_bid(
    logits,
    start,
    vocab,
    blocked_ids,
    blocked,
    num_blocked,
    peak,
    heat,
    min_p,
    limit,
    seed,
    position,
    CHUNK: tl.constexpr,
):
    """The draw among tokens ``start : start + CHUNK`` of gap below ``limit``: (its arrival, the token).

    Every token arrives after an exponential time with its likelihood as rate, and the first is drawn. That is the
    argmax of score + Gumbel noise (Maddison et al. 2014), with one logarithm less. +inf where there is none.
    """
    token = start + tl.arange(0, CHUNK)
    x = read_logits(logits, token, token < vocab, blocked_ids, blocked, num_blocked)
    gap = peak - x
    allowed = (gap < limit) & (tl.exp(-gap * heat) >= min_p)
    time = tl.where(allowed, exponential(noise_word(token, seed, position)) * tl.exp(gap * heat), INF)
    earliest, first = tl.min(time, 0, return_indices=True)
    return earliest, start + first
