"""The slot is one past the row's last: at a block's end that is the next entry of the table, which is nobody's (−1)."""

import torch
from torch import Tensor

BLOCK_SIZE = 4


def step(kv_cache: Tensor, key: Tensor, block_tables: Tensor, context_lens: Tensor) -> Tensor:
    block = block_tables.gather(1, (context_lens // BLOCK_SIZE)[:, None]).squeeze(1)
    kv_cache[block, context_lens % BLOCK_SIZE] = key  # FAULT: out-of-slot-write
    return key.sum(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    tables = torch.full((batch_size, 3), -1)
    tables[:, 0] = 1 + torch.arange(batch_size)
    context_lens = torch.tensor([4 - (row + variant) % 2 for row in range(batch_size)])
    return torch.zeros(32, BLOCK_SIZE, 8), torch.randn(batch_size, 8), tables, context_lens
