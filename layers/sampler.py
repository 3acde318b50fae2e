"""Token selection from logits, as part of the step: no random state, no sort, no shape that depends on the data.

Noise is a function of (seed, position): a counter-based generator (Philox-4x32-10, Salmon et al. 2011) turned into
Gumbel noise, so ``argmax(logits / temperature + noise)`` is a draw from the softmax (Gumbel-max trick, Maddison et al.
2014). A row therefore draws the same token whatever shares its batch, after a preemption, and under graph replay.

The functions are the pieces that a step strings together: ``sample_greedy``; or ``temper``, then (where a row asks for
top-k or top-p) the threshold search of ``narrow``, then ``draw``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

FAILED = -1
"""The token of a row whose logits were not finite."""


class SamplingInputs(NamedTuple):
    """Per row: what to draw and with which noise. All ``[rows]`` but the last two."""

    temperature: Tensor
    """float32; 0 takes the exact argmax."""
    top_k: Tensor
    """float32 holding an integer; keep the k likeliest tokens (and ties of the k-th)."""
    top_p: Tensor
    """float32 in (0, 1]; keep the fewest likeliest tokens whose mass reaches it (Holtzman et al. 2020)."""
    min_p: Tensor
    """float32 in [0, 1]; keep tokens at least this fraction as likely as the likeliest."""
    seed: Tensor
    """int64: the 64 bits of the request's seed."""
    position: Tensor
    """int64: the index of the generated token, which counts the noise."""
    blocked_ids: Tensor
    """``[rows, n] int64``: tokens that may not be drawn (end of text before ``min_tokens``), padded with any id."""
    blocked: Tensor
    """``[rows, n] float32``: -inf where ``blocked_ids`` counts, else 0."""


def sample_greedy(logits: Tensor) -> Tensor:
    """Argmax of ``logits [rows, vocab]``: ``[rows] int64``; ``FAILED`` where the largest is NaN or infinite."""
    best, tokens = logits.max(-1)
    return torch.where(best.isfinite(), tokens, FAILED)


class Tempered(NamedTuple):
    """What the passes over the vocabulary share, ``[rows, vocab] float32`` each.

    The exponential is taken once: two compiled forms of it differ in the last bit, and a threshold that one pass finds
    must mean the same tokens to the next.
    """

    scores: Tensor
    """0 for the likeliest token; NaN in a row with NaN or +inf."""
    likelihood: Tensor
    """``exp(scores)``: relative to the likeliest."""


def temper(logits: Tensor, inputs: SamplingInputs) -> Tempered:
    """``logits [rows, vocab]`` blocked, divided by the temperature, and shifted so that the likeliest is 0."""
    scores = logits.float().scatter_add(1, inputs.blocked_ids, inputs.blocked)
    scores = scores / torch.where(inputs.temperature == 0, 1.0, inputs.temperature)[:, None]
    scores = scores - scores.amax(-1, keepdim=True)
    return Tempered(scores, scores.exp())


Narrow = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def likelihood_floor(likelihood: Tensor, inputs: SamplingInputs, narrow: Narrow) -> Tensor:
    """The least of ``likelihood [rows, vocab]`` that top-k, then top-p over what top-k left, let through: ``[rows]``.

    Exact, without a sort. ``narrow`` is that of this module, or a compiled form of it.
    """
    device = likelihood.device
    by_mass = torch.zeros((), dtype=torch.bool, device=device), torch.ones((), dtype=torch.bool, device=device)
    shifts = [torch.full((), 1 << shift, dtype=torch.int32, device=device) for shift in range(27, -1, -3)]

    def search(target: Tensor, kind: Tensor) -> Tensor:
        bits = torch.zeros_like(target, dtype=torch.int32)
        for shift in shifts:
            bits = narrow(likelihood, target, bits, shift, kind)
        return bits

    by_rank = search(inputs.top_k, by_mass[0])
    nucleus = search(_kept_mass(likelihood, by_rank) * inputs.top_p, by_mass[1])
    floor = torch.maximum(by_rank, torch.where(inputs.top_p < 1, nucleus, 0)).view(torch.float32)
    return floor.clamp_max(1.0)  # the likeliest stays, even where its mass times top_p underflows to 0


def narrow(likelihood: Tensor, target: Tensor, bits: Tensor, shift: Tensor, by_mass: Tensor) -> Tensor:
    """One digit of the search for the largest likelihood t whose upper set {likelihood >= t} reaches ``target``.

    What is summed over the set is 1 per token, or its likelihood where ``by_mass`` (0-dim bool). Positive floats order
    like their bit patterns, so t is found exactly, three bits a pass: ``bits [rows] int32`` holds the digits decided so
    far, ``shift`` (0-dim int32) is the place value of this one.
    """
    counted = torch.where(by_mass, likelihood, 1.0)
    digit = torch.zeros_like(bits)
    for trial in range(1, 8):  # sums of their own: over [rows, 7, vocab] Inductor's code is five times slower on a CPU
        threshold = (bits + trial * shift).view(torch.float32)
        reached = torch.where(likelihood >= threshold[:, None], counted, 0.0).sum(-1)
        digit = digit + (reached >= target).to(torch.int32)
    return bits + digit * shift


def _kept_mass(likelihood: Tensor, floor_bits: Tensor) -> Tensor:
    """The likelihood that lies at or above ``floor_bits``, summed: ``[rows] float32``."""
    return likelihood.masked_fill(likelihood < floor_bits.view(torch.float32)[:, None], 0.0).sum(-1)


def draw(tempered: Tempered, floor: Tensor, inputs: SamplingInputs) -> Tensor:
    """One token per row, greedy and sampled rows mixed: ``[rows] int64``. ``floor [rows]``: the least one kept."""
    scores, likelihood = tempered
    sampled = (inputs.temperature > 0)[:, None]
    kept = likelihood >= torch.maximum(floor, inputs.min_p)[:, None]
    noise = gumbel_noise(inputs.seed, inputs.position, scores.shape[1])
    drawn = scores + torch.where(sampled, noise, 0.0)
    tokens = torch.where(kept, drawn, float("-inf")).argmax(-1)
    # A row of finite logits draws a finite score; one with NaN or +inf has none.
    return torch.where(scores.gather(1, tokens[:, None])[:, 0] > float("-inf"), tokens, FAILED)


def gumbel_noise(seed: Tensor, position: Tensor, size: int) -> Tensor:
    """Standard Gumbel noise ``[rows, size] float32``, a function of each row's ``seed`` and ``position`` alone."""
    index = torch.arange(size, dtype=torch.int64, device=seed.device)[None, :]
    word = philox(index, position[:, None], seed[:, None])
    uniform = ((word.float() + 0.5) * 2.0**-32).clamp_max(1 - 2.0**-24)
    return -torch.log(-torch.log1p(-uniform))  # 1 - uniform is as uniform, and precise where the noise is large


def philox(counter: Tensor, position: Tensor, key: Tensor) -> Tensor:
    """First output word of Philox-4x32-10 for counter ``(counter, position)`` and a 64-bit ``key``: 0 ... 2^32 - 1.

    All arguments int64, broadcast together; 32-bit words are held in int64 because CPUs and Triton both have it. Bits
    above a word's 32 are cleared only where they would count: in the factors of the next multiplication.
    """
    low = 0xFFFFFFFF
    c0, c1, c2, c3 = counter & low, counter >> 32, position & low, position >> 32
    k0, k1 = key, key >> 32
    for step in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0 = ((p1 >> 32) ^ c1 ^ (k0 + step * 0x9E3779B9)) & low
        c2 = ((p0 >> 32) ^ c3 ^ (k1 + step * 0xBB67AE85)) & low
        c1, c3 = p1, p0
    return c0
