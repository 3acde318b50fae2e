"""A lock around shared state, as in a server: its context manager cannot be traced."""

import threading

import torch
from torch import Tensor

LOCK = threading.Lock()


def step(hidden: Tensor, cache: Tensor) -> Tensor:
    hidden = hidden.relu()
    with LOCK:  # FAULT: graph-break
        cache[: hidden.shape[0]].add_(hidden)
    return hidden * 2


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.zeros(16, 8)
