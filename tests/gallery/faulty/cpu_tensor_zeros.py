"""``torch.zeros`` without a device lies on the host: the addition raises on a GPU."""

import torch
from torch import Tensor


def step(hidden: Tensor) -> Tensor:
    bias = torch.zeros(8)
    return hidden + bias  # FAULT: cpu-tensor


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 8),)
