"""``range(tensor)`` becomes a Python int through ``__index__``: the host waits, error 900."""

import torch
from torch import Tensor


def step(hidden: Tensor, num_rounds: Tensor, weight: Tensor) -> Tensor:
    for _ in range(num_rounds):  # FAULT: device-sync
        hidden = torch.tanh(hidden @ weight)
    return hidden


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.tensor(2 + variant), torch.randn(8, 8)
