"""vllm#43810: padding rows have slot −1, and floor division and modulo make it the last block's last place.

Seen: extracted hidden states were overwritten: 64 padding rows wrote over the real state in slot 79.
"""

import torch
from torch import Tensor


def basic_cache(to_cache: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    block_size = kv_cache.shape[1]
    kv_cache[slot_mapping // block_size, slot_mapping % block_size] = to_cache  # FAULT: out-of-slot-write


def step(hidden: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> Tensor:
    hidden = torch.tanh(hidden)
    basic_cache(hidden, kv_cache, slot_mapping)
    return hidden.sum(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    """``batch_size`` real tokens, padded to twice as many for the graph; the last real one is in the last slot."""
    torch.manual_seed(variant)
    real = 79 - torch.arange(batch_size) - 8 * variant
    padded = torch.cat([real, torch.full((batch_size,), -1)])
    return torch.randn(2 * batch_size, 8), torch.zeros(5, 16, 8), padded
