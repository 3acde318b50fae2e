"""A small cache of tables evicts the one that the graph reads: replay reads memory that belongs to somebody else."""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=1)
def decay_table(length: int, device: torch.device) -> Tensor:
    return torch.arange(1, 9, device=device) / (8.0 + length)


def step(hidden: Tensor, max_len: int) -> Tensor:
    return hidden * decay_table(max_len, hidden.device)  # FAULT: freed-input


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, int]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), 8 + variant
