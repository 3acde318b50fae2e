"""Normalised with the statistics of the batch instead of the row: padding moves every row."""

import torch
from torch import Tensor


def step(hidden: Tensor) -> Tensor:
    mean = hidden.mean(0, keepdim=True)  # FAULT: padding-leak
    spread = (hidden - mean).pow(2).mean(0, keepdim=True)
    return (hidden - mean) * torch.rsqrt(spread + 1e-6)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return (torch.randn(batch_size, 8),)
