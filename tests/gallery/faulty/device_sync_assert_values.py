"""An assertion about values reads them: error 900, although nothing else of the step depends on it."""

import torch
from torch import Tensor


def step(cache: Tensor, key: Tensor, slot_mapping: Tensor) -> Tensor:
    assert (slot_mapping < cache.shape[0]).all(), "slot outside of the cache"  # FAULT: device-sync
    cache.index_copy_(0, slot_mapping, key)
    return key.sum(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.zeros(64, 8), torch.randn(batch_size, 8), torch.arange(batch_size) * 4 + variant
