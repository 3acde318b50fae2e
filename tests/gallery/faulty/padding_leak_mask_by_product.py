"""The padding is multiplied by zero, but 0 * NaN is NaN: whatever the last batch left there spoils the sum."""

import torch
from torch import Tensor


def step(hidden: Tensor, num_rows: Tensor) -> Tensor:
    real = torch.arange(hidden.shape[0], device=hidden.device) < num_rows
    context = (hidden * real[:, None]).sum(0)  # FAULT: padding-leak
    return hidden + context


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.tensor((batch_size + 1) // 2)
