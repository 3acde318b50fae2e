"""``unique`` returns as many values as differ: the host waits for the count, error 900."""

import torch
from torch import Tensor


def step(adapters: Tensor, tables: Tensor) -> Tensor:
    used, inverse = torch.unique(adapters, return_inverse=True)  # FAULT: data-dependent-shape
    return tables[used][inverse]


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randint(0, 4, (batch_size,)), torch.randn(4, 8)
