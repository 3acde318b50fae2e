"""A Python list becomes a device tensor by a copy from pageable memory: error 900; its values would be kept."""

import torch
from torch import Tensor


def step(cache: Tensor, key: Tensor, slots: list[int]) -> Tensor:
    index = torch.tensor(slots, device=key.device)  # FAULT: host-to-device
    cache.index_copy_(0, index, key)
    return cache.sum(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, list[int]]:
    torch.manual_seed(variant)
    return torch.zeros(64, 8), torch.randn(batch_size, 8), [4 * row + variant for row in range(batch_size)]
