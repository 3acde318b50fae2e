"""A paged decode step as it should be: static cache, slots and tables as tensors, a constant bound, padding masked."""

import torch
from torch import Tensor

BLOCK_SIZE = 4


def step(
    query: Tensor, key: Tensor, kv_cache: Tensor, slot_mapping: Tensor, block_tables: Tensor, context_lens: Tensor
) -> Tensor:
    kv_cache.view(-1, 8).index_copy_(0, slot_mapping, key)
    keys = kv_cache[block_tables].flatten(1, 2)
    past = torch.arange(keys.shape[1], device=keys.device) >= context_lens[:, None]
    keys = torch.where(past[..., None], 0.0, keys)
    scores = torch.einsum("bh,bth->bt", query, keys).masked_fill(past, float("-inf"))
    return torch.einsum("bt,bth->bh", scores.softmax(-1), keys)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    tables = 1 + torch.arange(2 * batch_size).view(batch_size, 2)
    lens = torch.tensor([2 + (row + 2 * variant) % 6 for row in range(batch_size)])
    last = lens - 1
    slots = tables.gather(1, (last // BLOCK_SIZE)[:, None]).squeeze(1) * BLOCK_SIZE + last % BLOCK_SIZE
    cache = torch.randn(2 * batch_size + 1, BLOCK_SIZE, 8)
    return torch.randn(batch_size, 8), torch.randn(batch_size, 8), cache, slots, tables, lens
