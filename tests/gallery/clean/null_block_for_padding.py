"""Padding rows write to slot 0 of a block that belongs to nobody, so no real block is touched."""

import torch
from torch import Tensor


def step(kv_cache: Tensor, key: Tensor, slot_mapping: Tensor) -> Tensor:
    kv_cache.index_put_((slot_mapping // 4, slot_mapping % 4), key)
    return key.sum(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    slots = 4 + torch.arange(batch_size) * 4 + variant % 4
    slots[batch_size // 2 + 1 :] = 0
    return torch.zeros(16, 4, 8), torch.randn(batch_size, 8), slots
