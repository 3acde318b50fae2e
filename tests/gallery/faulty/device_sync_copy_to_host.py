"""A result tensor made without a device lies on the host: filling it waits for the device, error 900."""

import torch
from torch import Tensor


def step(hidden: Tensor, weight: Tensor) -> Tensor:
    out = torch.empty(hidden.shape)
    out.copy_(hidden @ weight)  # FAULT: device-sync
    return out


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(8, 8)
