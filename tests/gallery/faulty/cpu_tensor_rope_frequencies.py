"""The frequencies are computed on the host in each step: the product with device positions raises on a GPU."""

import torch
from torch import Tensor


def step(query: Tensor, positions: Tensor) -> Tensor:
    frequencies = 10000.0 ** -torch.linspace(0, 1, 4)
    angles = positions[:, None] * frequencies  # FAULT: cpu-tensor
    first, second = query.chunk(2, -1)
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.arange(batch_size) + 5.0 + variant
