"""Padding rows have slot −1, which Python's indexing takes for the last slot: a real block is written (vllm#43810)."""

import torch
from torch import Tensor


def step(kv_cache: Tensor, key: Tensor, slot_mapping: Tensor) -> Tensor:
    kv_cache[slot_mapping] = key  # FAULT: out-of-slot-write
    return key.sum(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    slots = torch.arange(batch_size) * 4 + variant
    slots[-1] = -1
    return torch.zeros(64, 8), torch.randn(batch_size, 8), slots
