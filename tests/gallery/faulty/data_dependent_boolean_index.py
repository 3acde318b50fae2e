"""A boolean mask as an index keeps as many rows as are true: the host waits for the count, error 900."""

import torch
from torch import Tensor


def step(hidden: Tensor, finished: Tensor) -> Tensor:
    alive = hidden[~finished]  # FAULT: data-dependent-shape
    return alive.relu()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), (torch.arange(batch_size) + variant) % 3 == 1
