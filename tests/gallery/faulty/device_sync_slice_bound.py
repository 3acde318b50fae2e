"""A tensor as a slice bound becomes a Python int through ``__index__``: the host waits, error 900."""

import torch
from torch import Tensor


def step(hidden: Tensor, num_tokens: Tensor) -> Tensor:
    real = hidden[:num_tokens]  # FAULT: device-sync
    return real.relu()


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.tensor(max(1, batch_size - variant))
