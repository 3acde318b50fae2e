"""Small steps for the tests of emulate, verify, padding and slots."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

BLOCK_SIZE, WIDTH, BLOCKS = 4, 3, 40
Step = Callable[..., Any]


def line(function: Any, text: str) -> int:
    """The line of ``function`` that contains ``text``."""
    source, first = inspect.getsourcelines(function)
    return first + next(number for number, each in enumerate(source) if text in each)


def hidden(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    """One float input ``[rows, 8]``."""
    return (torch.randn(batch_size, 8, generator=torch.Generator().manual_seed(variant)),)


class Attention(nn.Module):
    """Paged attention of one layer; ``bound`` keys are read."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor, cache: Tensor, slots: Tensor, tables: Tensor, lens: Tensor, bound: int) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        cache[0].view(-1, 8).index_copy_(0, slots, k)
        cache[1].view(-1, 8).index_copy_(0, slots, v)
        keys = cache[0][tables].flatten(1, 2)[:, :bound]
        values = cache[1][tables].flatten(1, 2)[:, :bound]
        past = torch.arange(keys.shape[1], device=x.device) >= lens[:, None]
        weights = torch.einsum("bh,bth->bt", q, keys).masked_fill(past, float("-inf")).softmax(-1)
        return self.out(torch.einsum("bt,bth->bh", weights, values))


class Paged(nn.Module):
    """Two layers over paged caches ``[2, blocks, block_size, 8]``, which it owns."""

    def __init__(self, static_bound: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Attention(), Attention()])
        self.static_bound = static_bound
        for number in range(2):
            self.register_buffer(f"kv_cache_{number}", torch.randn(2, BLOCKS, BLOCK_SIZE, 8))

    def forward(
        self, x: Tensor, slot_mapping: Tensor, block_tables: Tensor, context_lens: Tensor, max_len: int
    ) -> Tensor:
        bound = WIDTH * BLOCK_SIZE if self.static_bound else max_len
        for layer, cache in zip(self.layers, (self.kv_cache_0, self.kv_cache_1), strict=True):
            x = x + layer(x, cache, slot_mapping, block_tables, context_lens, bound)
        return x


def paged_inputs(batch_size: int, variant: int = 0) -> tuple[Any, ...]:
    """Rows of different lengths in scattered blocks; block 0 belongs to nobody."""
    order = 1 + torch.randperm(BLOCKS - 1, generator=torch.Generator().manual_seed(3))
    tables = order[: batch_size * WIDTH].view(batch_size, WIDTH)
    lens = torch.tensor([1 + 3 * row % 7 + variant for row in range(batch_size)])
    last = lens - 1
    slots = tables.gather(1, (last // BLOCK_SIZE)[:, None]).squeeze(1) * BLOCK_SIZE + last % BLOCK_SIZE
    return *hidden(batch_size, variant), slots, tables, lens, int(lens.max())
