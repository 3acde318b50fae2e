"""Without ``output_size`` the host waits for the sum of the repeats: error 900 (torchtitan#3274)."""

import torch
from torch import Tensor


def step(hidden: Tensor, repeats: Tensor) -> Tensor:
    return hidden.repeat_interleave(repeats, dim=0)  # FAULT: data-dependent-shape


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), 1 + (torch.arange(batch_size) + variant) % 3
