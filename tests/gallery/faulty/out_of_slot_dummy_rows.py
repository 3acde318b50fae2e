"""Padding rows write to block 0 because their table is zero, and block 0 is the first row's."""

import torch
from torch import Tensor

BLOCK_SIZE = 4


def step(kv_cache: Tensor, key: Tensor, block_tables: Tensor, context_lens: Tensor) -> Tensor:
    last = (context_lens - 1).clamp(min=0)
    block = block_tables.gather(1, (last // BLOCK_SIZE)[:, None]).squeeze(1)
    kv_cache[block, last % BLOCK_SIZE] = key  # FAULT: out-of-slot-write
    return key.sum(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    rows = batch_size + 1
    tables = torch.arange(2 * rows).view(rows, 2)
    context_lens = torch.tensor([4 + (row + variant) % 4 for row in range(rows)])
    tables[-1], context_lens[-1] = 0, 0
    return torch.zeros(32, BLOCK_SIZE, 8), torch.randn(rows, 8), tables, context_lens
