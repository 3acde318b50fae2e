"""Rows of contexts in shuffled pages, and what attention over them is in float64. NaN wherever no token was written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ostinato.layers.attention.scoring import Scoring

KINDS = ["plain", "window", "softcap", "alibi", "sinks", "all"]
TOLERANCES = {
    torch.float32: (0.0, 6e-6),  # sums of some thousand products
    torch.float16: (2**-10, 1e-3),  # weights and results rounded to 11 bits
    torch.bfloat16: (2**-8, 2**-8),  # to 8 bits
}
"""Relative and absolute: values are standard normal, so results are below 4."""


def scoring(kind: str, heads: int, head_dim: int, window: int = 37) -> Scoring:
    """Everything that a score can have, alone and together."""
    slopes, sinks, scale = torch.linspace(0.5, 0.01, heads), torch.linspace(-1, 4, heads), head_dim**-0.5
    return {
        "plain": Scoring(scale),
        "window": Scoring(scale, window=window),
        "softcap": Scoring(scale, softcap=0.7),
        "alibi": Scoring(scale, slopes=slopes),
        "sinks": Scoring(scale, sinks=sinks),
        "all": Scoring(scale, window, 0.9, slopes, sinks),
    }[kind]


@dataclass
class Case:
    """A step of some rows: what each one's context is, and its last ``new`` tokens' queries."""

    new: Sequence[int]
    q: Tensor  # [tokens, heads, head_dim]
    keys: list[Tensor]  # per row [length, kv_heads, head_dim]
    values: list[Tensor]
    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    context_lens: Tensor

    @property
    def cu_seqlens_q(self) -> Tensor:
        return torch.tensor([0, *accumulate(self.new)], dtype=torch.int32)

    @property
    def pages(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.k_cache, self.v_cache, self.block_table, self.context_lens


def make_case(
    lengths: Sequence[int],
    new: Sequence[int] | None = None,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    spare: int = 2,
    num_blocks: int = 0,
    seed: int = 0,
) -> Case:
    """Random contexts of ``lengths`` tokens; ``new`` of each (default 1) are the step's. ``spare``: unused columns.

    ``num_blocks``: of the caches at least.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    new = [1] * len(lengths) if new is None else new
    counts = [-(-length // block_size) for length in lengths]
    num_blocks = max(num_blocks, sum(counts) + 4)
    shuffled = (torch.randperm(num_blocks - 1, generator=generator) + 1).tolist()
    table = torch.zeros(len(lengths), max(counts) + spare, dtype=torch.int32)
    shape = (num_blocks, block_size, kv_heads, head_dim)
    k_cache, v_cache = (torch.full(shape, math.nan, dtype=dtype) for _ in range(2))
    keys, values = ([normal(length, kv_heads, head_dim) for length in lengths] for _ in range(2))
    for row, count in enumerate(counts):
        table[row, :count] = torch.tensor([shuffled.pop() for _ in range(count)])
        at = torch.arange(lengths[row])
        block, offset = table[row, at // block_size].long(), at % block_size
        k_cache[block, offset], v_cache[block, offset] = keys[row], values[row]
    q = normal(sum(new), heads, head_dim)
    return Case(new, q, keys, values, k_cache, v_cache, table, torch.tensor(lengths, dtype=torch.int32))


def reference(case: Case, how: Scoring) -> Tensor:
    """``[tokens, heads, head_dim] float64`` by the definition, row after row."""
    rows = zip(case.q.split(list(case.new)), case.keys, case.values, strict=True)
    return torch.cat([_dense(q.double(), keys.double(), values.double(), how) for q, keys, values in rows])


def _dense(q: Tensor, keys: Tensor, values: Tensor, how: Scoring) -> Tensor:
    group = q.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    at = torch.arange(len(keys) - len(q), len(keys))
    distance = torch.arange(len(keys))[None, :] - at[:, None]  # [new, length]
    scores = torch.einsum("qhd,khd->hqk", q, keys) * how.scale
    if how.softcap:
        scores = how.softcap * torch.tanh(scores / how.softcap)
    if how.slopes is not None:
        scores = scores + how.slopes.double()[:, None, None] * distance
    visible = (distance <= 0) & (distance > -how.window if how.window else True)
    weights = scores.masked_fill(~visible, -math.inf).exp()
    total = weights.sum(-1)
    if how.sinks is not None:
        total = total + how.sinks.double().exp()[:, None]
    return torch.einsum("hqk,khd->qhd", weights / total[..., None], values)


def assert_close(got: Tensor, expected: Tensor) -> None:
    """Within what ``got``'s dtype allows."""
    relative, absolute = TOLERANCES[got.dtype]
    torch.testing.assert_close(got.double(), expected, rtol=relative, atol=absolute)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """NaN equals NaN, and 0 is not -0."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
