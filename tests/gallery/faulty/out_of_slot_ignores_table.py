"""The slot is computed from row and position as if the blocks lay in order: other requests' blocks are written."""

import torch
from torch import Tensor

BLOCK_SIZE = 4


def step(kv_cache: Tensor, key: Tensor, block_tables: Tensor, context_lens: Tensor) -> Tensor:
    last = context_lens - 1
    rows = torch.arange(key.shape[0], device=key.device)
    block = rows * block_tables.shape[1] + last // BLOCK_SIZE
    kv_cache[block, last % BLOCK_SIZE] = key  # FAULT: out-of-slot-write
    return key.sum(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    tables = 1 + torch.arange(2 * batch_size).flip(0).view(batch_size, 2)
    context_lens = torch.tensor([4 + (row + variant) % 4 for row in range(batch_size)])
    return torch.zeros(32, BLOCK_SIZE, 8), torch.randn(batch_size, 8), tables, context_lens
