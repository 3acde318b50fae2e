"""Python's own ``max`` over a tensor compares elements one by one, and each comparison waits: error 900."""

import torch
from torch import Tensor


def step(hidden: Tensor, weights: Tensor) -> Tensor:
    top = max(weights)  # FAULT: device-sync
    return hidden * top


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.rand(4)
