"""A list as an index is made into a tensor on the host and copied to the device: error 900."""

import torch
from torch import Tensor


def step(hidden: Tensor, heads: Tensor) -> Tensor:
    kept = heads[[0, 2]]  # FAULT: host-to-device
    return hidden @ kept.t()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(4, 8)
